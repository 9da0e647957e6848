//! Running commands, and telling what is run.

use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

static OBJECT: OnceLock<PathBuf> = OnceLock::new();

/// Prints a line on stderr.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// The folder of the workspace.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// A cargo command.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(args);
    if let Some(object) = OBJECT.get() {
        command.env("RELAY_EBPF_OBJECT", object);
    }
    command
}

/// The eBPF object that commands of cargo build in from now on.
pub(crate) fn use_object(path: PathBuf) {
    let _ = OBJECT.set(path);
}

/// Runs a command to its end; an exit status that is not 0 is an error which names the command.
pub(crate) fn checked(command: &mut Command) -> Result<()> {
    let words = words(command);
    say(format_args!("$ {words}"));
    let status = command
        .status()
        .with_context(|| format!("cannot start `{words}`"))?;
    if !status.success() {
        bail!("`{words}` failed: {status}");
    }
    Ok(())
}

/// Names a step, runs it, and says how long it took.
pub(crate) fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    say(format_args!("== {name}"));
    let start = Instant::now();
    work().with_context(|| format!("step `{name}`"))?;
    let took = start.elapsed();
    say(format_args!("== {name}: ok, {:.1} s", took.as_secs_f64()));
    Ok(took)
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let output = cargo(&["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root())
        .output()
        .context("cannot start `cargo metadata`")?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("`cargo metadata` printed no JSON")?;
    let dir = metadata["target_directory"].as_str();
    Ok(dir
        .context("`cargo metadata` names no target folder")?
        .into())
}

fn words(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    std::iter::once(program)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
