//! `relay list`: lists workspaces.

use crate::cli::Global;

/// Flags of `relay list`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) fn run(_args: Args, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("`relay list` is not built yet")
}
