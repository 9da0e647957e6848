//! `cargo xtask ebpf`: builds the eBPF programs, and puts the object where the loader includes it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{run, tools};

/// What builds it on Debian 12 and newer: a compiler with the core library for eBPF, and what the
/// linker is built with.
const PACKAGES: &[&str] = &["rustc-web", "libstd-rust-web-dev-bpf", "llvm-22-dev"];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";
const LLVM: &str = "/usr/lib/llvm-22/bin";

const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";

const TARGET: &str = "bpfel-unknown-none";
/// Without version 3, atomic operations that give back a value do not link.
const FLAGS: &str = "-C linker=bpf-linker -C target-cpu=v3";

/// Builds, and replaces the object that is checked in.
pub(crate) fn run() -> Result<()> {
    let built = build()?;
    let (object, sources) = (folder().join("relay.o"), folder().join("relay.o.sources"));
    std::fs::copy(&built, &object).with_context(|| format!("copy to {}", object.display()))?;
    std::fs::write(&sources, hash_of_sources()?)
        .with_context(|| format!("write {}", sources.display()))?;
    let size = std::fs::metadata(&object)?.len();
    run::say(format_args!("{}: {size} bytes", object.display()));
    Ok(())
}

/// Fails when the object that is checked in was made from other sources. Builds a fresh one, which
/// the commands of this process use from then on.
pub(crate) fn check() -> Result<()> {
    let noted = std::fs::read_to_string(folder().join("relay.o.sources")).unwrap_or_default();
    if noted != hash_of_sources()? {
        bail!(
            "relay-ebpf/object/relay.o was not made from these sources; run `cargo xtask ebpf` and \
             commit what it writes"
        );
    }
    let built = build()?;
    let same = std::fs::read(&built)? == std::fs::read(folder().join("relay.o"))?;
    if same {
        run::say("the fresh object is the one that is checked in");
    } else {
        run::say("another compiler made another object: what follows uses the fresh one");
        run::use_object(built);
    }
    Ok(())
}

/// Where the object is checked in.
fn folder() -> PathBuf {
    run::root().join("relay-ebpf/object")
}

fn build() -> Result<PathBuf> {
    let compiler = Compiler::find()?;
    linker()?;
    let target = run::target_dir()?.join("ebpf");
    let mut build = compiler.cargo();
    build
        .args(["build", "--release", "--locked", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target)
        .args(compiler.flags())
        // The library is built without an object: it is about to be made.
        .env("RELAY_EBPF_OBJECT", "/dev/null")
        .env("RUSTFLAGS", FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(run::root().join("relay-ebpf/program"));
    run::checked(&mut build)?;
    Ok(target.join(TARGET).join("release/relay"))
}

/// What compiles for eBPF.
enum Compiler {
    /// Debian's, which comes with a core library for eBPF.
    Debian,
    /// rustup's nightly, with the sources of the core library.
    Nightly,
}

impl Compiler {
    /// Takes what is there, says so, and else installs Debian's.
    fn find() -> Result<Self> {
        if !has_debian() && has_nightly() {
            run::say("eBPF: by rustup's nightly, with rust-src");
            return Ok(Self::Nightly);
        }
        if !has_debian() {
            tools::install(PACKAGES)?;
        }
        if !has_debian() {
            bail!(
                "no compiler for eBPF: install the packages {} (Debian), or rustup's nightly with \
                 the component rust-src",
                PACKAGES.join(" ")
            );
        }
        run::say("eBPF: by Debian's rustc-web");
        Ok(Self::Debian)
    }

    fn cargo(&self) -> Command {
        match self {
            Self::Debian => {
                let mut cargo = run::cargo(&[]);
                // It calls itself stable, and building for this target is not.
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
            Self::Nightly => {
                let mut cargo = Command::new("rustup");
                cargo.args(["run", "nightly", "cargo"]);
                cargo.env_remove("RUSTC").env_remove("CARGO");
                cargo
            }
        }
    }

    fn flags(&self) -> &'static [&'static str] {
        match self {
            Self::Debian => &[],
            Self::Nightly => &["-Z", "build-std=core"],
        }
    }
}

fn has_debian() -> bool {
    Path::new(DEBIAN_RUSTC).is_file() && Path::new(DEBIAN_CORE).is_dir()
}

fn has_nightly() -> bool {
    let words = ["component", "list", "--toolchain", "nightly", "--installed"];
    output("rustup", &words).is_some_and(|text| text.lines().any(|line| line == "rust-src"))
}

/// Installs the linker, unless it is there.
fn linker() -> Result<()> {
    let there = output(LINKER, &["--version"]);
    match there.as_deref().and_then(|text| text.split(' ').nth(1)) {
        Some(version) if version.trim() == LINKER_VERSION => return Ok(()),
        Some(version) => bail!(
            "{LINKER} {} is installed, {LINKER_VERSION} is needed: remove it, and run this again",
            version.trim()
        ),
        None => {}
    }
    if !Path::new(LLVM).is_dir() {
        tools::install(PACKAGES)?;
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let mut install = run::cargo(&["install", LINKER, "--version", LINKER_VERSION, "--locked"]);
    install
        .args(["--no-default-features", "--features", "llvm-22"])
        .env("PATH", format!("{LLVM}:{path}"));
    run::checked(&mut install)
}

fn output(program: &str, words: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    let output = command.args(words).stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One hash over names and contents of all that the object is made from.
fn hash_of_sources() -> Result<String> {
    let root = run::root().join("relay-ebpf");
    let mut files = vec![
        root.join("program/Cargo.toml"),
        root.join("program/Cargo.lock"),
    ];
    for folder in ["src", "program/src"] {
        collect(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let text = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let name = file.strip_prefix(&root).unwrap_or(&file);
        hash.update(name.to_string_lossy().as_bytes());
        hash.update([0]);
        hash.update(u64::try_from(text.len())?.to_le_bytes());
        hash.update(text);
    }
    let mut line = String::new();
    for byte in hash.finalize() {
        let _ = write!(line, "{byte:02x}");
    }
    line.push('\n');
    Ok(line)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = folder.read_dir();
    for entry in entries.with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        match path.is_dir() {
            true => collect(&path, files)?,
            false => files.push(path),
        }
    }
    Ok(())
}
