//! What a test needs of the machine. A test that cannot run says why and returns; with
//! `RELAY_REQUIRE_ALL=1` (CI) it fails instead.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// One thing that a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Root, and the right to make network namespaces with links between them.
    Namespaces,
    /// nftables, program and kernel.
    Nft,
    /// The kernel's NAT, by nftables, of both kinds of mapping.
    Nat,
    /// Unprivileged user namespaces, and the right to make a TUN node in a mount namespace.
    Rootless,
    /// User namespaces in which a process can be left without TUN device and namespaces.
    Confined,
    /// A program in the `PATH`.
    Program(&'static str),
}

/// Returns from the test, with its reason printed, when the machine lacks something.
#[macro_export]
macro_rules! needs {
    ($($need:expr),+ $(,)?) => {
        $(if let Err(reason) = $crate::needs::check($need) {
            $crate::skip!("{reason}");
        })+
    };
}

/// Returns, with its reason printed, from a test that is about the kernel's TCP, where tunnels have
/// relay's own in this run. Nothing is missing then, so that `RELAY_REQUIRE_ALL` allows it.
#[macro_export]
macro_rules! kernel_stack_only {
    ($reason:literal) => {
        if $crate::needs::stack() != "kernel" {
            $crate::say(concat!("NOT FOR THIS STACK: ", $reason));
            return;
        }
    };
}

/// Returns, with its reason printed, from a test that is about what a container cannot do, where
/// [all programs are confined](crate::rootless::all_are_confined) in this run.
#[macro_export]
macro_rules! unconfined_only {
    ($reason:literal) => {
        if $crate::rootless::all_are_confined() {
            $crate::say(concat!("NOT FOR CONTAINERS: ", $reason));
            return;
        }
    };
}

/// The stack that tunnels have in this run, as `--stack` names it: relay's own where `RELAY_STACK`
/// says so or [all are confined](crate::rootless::all_are_confined).
pub fn stack() -> &'static str {
    let asked = std::env::var_os("RELAY_STACK").is_some_and(|name| name == "user");
    match asked || crate::rootless::all_are_confined() {
        true => "user",
        false => "kernel",
    }
}

/// Prints why the test does not run here, and returns from it; panics where nothing may be skipped.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {{
        $crate::needs::skipped(&format!($($reason)+));
        return;
    }};
}

/// What [`skip!`] does before it returns.
///
/// # Panics
/// With `RELAY_REQUIRE_ALL=1`.
pub fn skipped(reason: &str) {
    crate::say(format_args!("SKIPPED: {reason}"));
    let strict = std::env::var_os("RELAY_REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(!strict, "skipped where every test must run: {reason}");
}

/// Tries one need.
///
/// # Errors
/// The reason, as a sentence.
pub fn check(need: Need) -> Result<(), String> {
    match need {
        Need::Namespaces => {
            program("ip")?;
            if !nix::unistd::geteuid().is_root() {
                return Err("making network namespaces with links needs root".to_owned());
            }
            works(
                "unshare",
                &["-n", "ip", "link", "add", "br0", "type", "bridge"],
            )
        }
        Need::Nft => {
            program("nft")?;
            works(
                "unshare",
                &["-n", "nft", "add", "table", "inet", "relay_lab"],
            )
        }
        Need::Nat => {
            program("nft")?;
            let rules = "add table ip relay_nat
                 add chain ip relay_nat out { type nat hook postrouting priority 100; }
                 add rule ip relay_nat out masquerade fully-random";
            works("unshare", &["-n", "nft", rules])
        }
        Need::Rootless => {
            for name in ["unshare", "setpriv", "mount", "mknod"] {
                program(name)?;
            }
            works("unshare", &["-m", "sh", "-c", crate::rootless::PROBE])
        }
        Need::Confined => {
            for name in ["unshare", "setpriv", "mount"] {
                program(name)?;
            }
            let words = ["-m", "-U", "--map-root-user", "sh", "-c"];
            let words = [&words[..], &[crate::rootless::CONFINED_PROBE]].concat();
            works("unshare", &words)
        }
        Need::Program(name) => program(name).map(drop),
    }
}

/// Finds a program, also where root's programs are.
///
/// # Errors
/// Says that it is missing.
pub fn program(name: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/go/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| format!("`{name}` is not installed"))
}

fn works(name: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program(name)?)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("`{name}` does not start: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().next().unwrap_or("no reason given");
    Err(format!("`{name} {}` fails: {line}", args.join(" ")))
}
