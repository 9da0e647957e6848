//! `relay agent`: the workspace's side.

use crate::cli::Global;

/// Flags of `relay agent`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// URL of the control plane
    // `url` and `token` have the names of the global flags on purpose: here they mean the agent's.
    #[arg(long, env = "CODER_AGENT_URL", value_name = "URL")]
    url: Option<String>,
    /// The agent's token
    #[arg(
        long,
        env = "CODER_AGENT_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
}

/// Runs the command.
pub(crate) fn run(args: Args, _global: &Global) -> anyhow::Result<()> {
    anyhow::ensure!(args.url.is_some(), "no URL: give --url or CODER_AGENT_URL");
    anyhow::ensure!(
        args.token.is_some(),
        "no token: give --token or CODER_AGENT_TOKEN"
    );
    anyhow::bail!("`relay agent` is not built yet")
}
