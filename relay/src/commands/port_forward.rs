//! `relay port-forward`: makes ports of a workspace appear on this machine.

use crate::cli::Global;

/// Flags of `relay port-forward`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// `[owner/]workspace[.agent]`
    workspace: String,
}

/// Runs the command.
pub(crate) fn run(args: Args, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("`relay port-forward {}` is not built yet", args.workspace)
}
