//! `relay server`: the control plane.

use crate::cli::Global;

/// Flags of `relay server`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) fn run(_args: Args, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("`relay server` is not built yet")
}
