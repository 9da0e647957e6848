//! The programs that the tests run beside relay, and the packages that hold them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::run;

/// Program, and the Debian package it comes from.
const TOOLS: &[(&str, &str)] = &[
    ("bpftool", "bpftool"),
    ("chromedriver", "chromium-driver"),
    ("chromium", "chromium"),
    ("haproxy", "haproxy"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("mount", "mount"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("prlimit", "util-linux"),
    ("rsync", "rsync"),
    ("scp", "openssh-client"),
    ("setpriv", "util-linux"),
    ("sftp", "openssh-client"),
    ("socat", "socat"),
    ("ss", "iproute2"),
    ("ssh", "openssh-client"),
    ("ssh-add", "openssh-client"),
    ("ssh-agent", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("sshd", "openssh-server"),
    ("unshare", "util-linux"),
    ("wg", "wireguard-tools"),
    ("wireguard-go", "wireguard-go"),
];

/// Installs missing tools when that is possible, else prints the line that does. A test whose tool
/// is missing says so itself, so this is never an error.
pub(crate) fn provide() -> Result<()> {
    let packages = missing_packages();
    if packages.is_empty() {
        return Ok(());
    }
    if !can_install() {
        run::say(format_args!(
            "Some tests will be skipped; to run them all, first run (as root): {}",
            install_line(&packages)
        ));
    } else if let Err(error) = install(&packages) {
        run::say(format_args!(
            "warning: {error:#}; some tests will be skipped"
        ));
    }
    Ok(())
}

/// Installs Debian packages; an error says what to run where that is not possible.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if !can_install() {
        bail!("first run (as root): {}", install_line(packages));
    }
    let mut install = Command::new("apt-get");
    install
        .args(["install", "-y", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Installing an SSH server must not start one.
        .env("RUNLEVEL", "1")
        .stdout(Stdio::null());
    let mut update = Command::new("apt-get");
    update.arg("update").stdout(Stdio::null());
    run::checked(&mut update)?;
    run::checked(&mut install)
}

fn install_line(packages: &[&str]) -> String {
    format!(
        "apt-get update && apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    )
}

fn can_install() -> bool {
    is_root() && find("apt-get").is_some()
}

fn missing_packages() -> Vec<&'static str> {
    let mut packages: Vec<_> = TOOLS
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Looks a program up where root's programs may be, too.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(Path::new("/proc/self")).is_ok_and(|metadata| metadata.uid() == 0)
}
