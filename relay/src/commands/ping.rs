//! `relay ping`: measures the way to a workspace.

use crate::cli::Global;

/// Flags of `relay ping`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) fn run(_args: Args, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("`relay ping` is not built yet")
}
