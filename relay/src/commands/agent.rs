//! `relay agent`: the workspace's side.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use relay_agent::Config;
use relay_engine::{Engine, limits};
use relay_tunnel::endpoint::{BUSY_POLL, MAX_MTU, StackChoice};
use relay_tunnel::stack::{NetHelper, Offloads};
use url::Url;

use super::{block_on, interrupted};
use crate::cli::Global;

const EXAMPLES: &str = "\
Examples:
  relay agent --url https://relay.example.com --token TOKEN
  CODER_AGENT_URL=https://relay.example.com CODER_AGENT_TOKEN_FILE=/run/agent-token relay agent";

/// Flags of `relay agent`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
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
    /// File to read the agent's token from
    #[arg(long, env = "CODER_AGENT_TOKEN_FILE", value_name = "FILE")]
    #[arg(hide_env_values = true)]
    token_file: Option<PathBuf>,
    /// TCP/IP stack of the tunnel: auto, kernel or user
    #[arg(long, default_value = "auto", value_name = "STACK")]
    stack: StackChoice,
    /// Largest packet inside the tunnel, in bytes: 1280 as towards Coder's own, or more where a path
    /// is found to carry it
    #[arg(long, default_value_t = MAX_MTU, value_name = "BYTES")]
    #[arg(value_parser = clap::value_parser!(u16).range(1280..=i64::from(MAX_MTU)))]
    max_mtu: u16,
    /// How long to look for an answer to a small message before sleeping, in microseconds: spares
    /// small messages the time of being woken; 0 turns it off
    #[arg(
        long,
        env = "RELAY_BUSY_POLL",
        hide_env_values = true,
        value_name = "MICROSECONDS"
    )]
    #[arg(default_value_t = BUSY_POLL, value_parser = clap::value_parser!(u64).range(..=1000))]
    busy_poll: u64,
    /// Segmentation offloads to leave unused: tun-tcp, tun-udp, udp-send, udp-receive, or all; for
    /// kernels and cards that corrupt them
    #[arg(
        long,
        env = "RELAY_DISABLE_OFFLOADS",
        hide_env_values = true,
        value_name = "LIST"
    )]
    #[arg(default_value = "", hide_default_value = true, value_parser = Offloads::without)]
    disable_offloads: Offloads,
    /// How bytes are moved between sockets: auto, copy, splice, io-uring or sockmap
    #[arg(long, default_value = "auto", value_name = "ENGINE")]
    engine: Engine,
}

/// Runs the command.
pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let url = args.url()?;
    let token = args.read_token()?;
    // Before the first thread: the helper must be alone when it is forked.
    let helper = NetHelper::spawn()?;
    limits::raise_descriptor_limit();
    let config = Config {
        url,
        access: global.access(token)?,
        helper,
        direct: !global.disable_direct_connections,
        stack: args.stack,
        max_mtu: args.max_mtu,
        offloads: args.disable_offloads,
        busy_poll: Duration::from_micros(args.busy_poll),
        engine: args.engine,
    };
    block_on(async { Ok(relay_agent::run(config, interrupted()?).await?) })
}

impl Args {
    fn url(&self) -> anyhow::Result<Url> {
        let text = self.url.as_deref().filter(|text| !text.is_empty());
        let text = text.context("no URL of a control plane: give --url or CODER_AGENT_URL")?;
        let url: Url = text
            .parse()
            .with_context(|| format!("--url \"{text}\" is not a URL"))?;
        anyhow::ensure!(
            matches!(url.scheme(), "http" | "https") && url.has_host(),
            "--url \"{text}\" must start with http:// or https:// and name a host"
        );
        Ok(url)
    }

    fn read_token(&self) -> anyhow::Result<String> {
        if let Some(token) = self.token.as_deref().filter(|token| !token.is_empty()) {
            return Ok(token.to_owned());
        }
        let file = self
            .token_file
            .as_ref()
            .context("no agent token: give --token, CODER_AGENT_TOKEN or CODER_AGENT_TOKEN_FILE")?;
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the token file {}", file.display()))?;
        let token = text.trim();
        anyhow::ensure!(
            !token.is_empty(),
            "the token file {} is empty",
            file.display()
        );
        Ok(token.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &[&str]) -> Args {
        Cli::parse_from(words).args
    }

    #[test]
    fn the_token_comes_from_the_flag_or_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "from-file\n").unwrap();
        let path = file.path().to_str().unwrap();
        let both = args(&["agent", "--token", "from-flag", "--token-file", path]);
        assert_eq!(both.read_token().unwrap(), "from-flag");
        let from_file = args(&["agent", "--token-file", path]);
        assert_eq!(from_file.read_token().unwrap(), "from-file");
        let missing = args(&["agent", "--token-file", "/nonexistent/token"]);
        let error = missing.read_token().unwrap_err().to_string();
        assert!(error.contains("/nonexistent/token"), "{error}");
    }

    #[test]
    fn a_url_that_is_none_is_named() {
        for text in ["relay.example.com", "ftp://relay.example.com", "http://"] {
            let error = args(&["agent", "--url", text]).url().unwrap_err();
            assert!(format!("{error:#}").contains(text), "{error:#}");
        }
    }
}
