//! `relay demo`: the 60-second proof.

use crate::cli::Global;

/// Flags of `relay demo`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) fn run(_args: Args, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("`relay demo` is not built yet")
}
