//! `cargo xtask CHORE`: every chore of the repository is one command, and CI calls only these.

mod binaries;
mod ci;
mod ebpf;
mod manual;
mod run;
mod test;
mod tools;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};

/// Chores of the relay repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install what the tests need, build the binary once, run every test.
    Test(test::Args),
    /// Everything that must hold before a change lands: fmt, eBPF object, clippy, docs, tests,
    /// vectors, demo.
    Ci,
    /// Build the eBPF programs anew, after installing what that takes.
    Ebpf,
    /// Write manual pages and the shells' completion scripts.
    Completions {
        /// Folder for them (default: `manual` in cargo's target folder)
        dir: Option<PathBuf>,
    },
    /// Run vector files through the real code.
    Vectors {
        /// Folder with the vector files (default: the repository's copy)
        dir: Option<PathBuf>,
        /// Name the files that nothing runs instead of failing on them
        #[arg(long)]
        known_only: bool,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().chore {
        Chore::Test(args) => test::run(&args),
        Chore::Ci => ci::run(),
        Chore::Ebpf => ebpf::run(),
        Chore::Completions { dir } => manual::run(dir),
        Chore::Vectors { dir, known_only } => vectors(dir, known_only),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            run::say(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn vectors(dir: Option<PathBuf>, known_only: bool) -> anyhow::Result<()> {
    // Built with the whole workspace, as the tests are: nothing is built a second time.
    let words = ["build", "--workspace", "--example", "vectors"];
    run::checked(run::cargo(&words).current_dir(run::root()))?;
    let mut command = Command::new(run::target_dir()?.join("debug/examples/vectors"));
    command.args(dir);
    if known_only {
        command.arg("--known-only");
    }
    run::checked(&mut command)
}
