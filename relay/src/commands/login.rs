//! `relay login` and `relay logout`: the session that the other commands use.

use crate::cli::Global;

/// Flags of `relay login`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Flags of `relay logout`.
#[derive(clap::Args)]
pub(crate) struct LogoutArgs {}

/// Signs in.
pub(crate) fn run(_args: Args, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("`relay login` is not built yet")
}

/// Forgets the session.
pub(crate) fn logout(_args: LogoutArgs, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("`relay logout` is not built yet")
}
