//! `relay agent`: the workspace's side.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use relay_agent::{Config, ssh};
use relay_engine::limits;
use relay_tunnel::stack::NetHelper;
use url::Url;

use super::tunnel::{EngineArgs, LoopsArgs, TunnelArgs};
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
    /// Refuse connections from SSH clients to what the workspace can reach (ssh -L, -D, -W);
    /// `relay port-forward` goes on
    #[arg(long, env = "CODER_AGENT_BLOCK_LOCAL_PORT_FORWARDING")]
    block_local_port_forwarding: bool,
    /// Refuse listeners in the workspace for SSH clients (ssh -R)
    #[arg(long, env = "CODER_AGENT_BLOCK_REVERSE_PORT_FORWARDING")]
    block_reverse_port_forwarding: bool,
    /// Refuse the programs that move files over SSH: nc, rsync, scp, sftp
    #[arg(long, env = "CODER_AGENT_BLOCK_FILE_TRANSFER")]
    block_file_transfer: bool,
    #[command(flatten)]
    tunnel: TunnelArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    loops: LoopsArgs,
    /// Serve figures for Prometheus on this address, at /metrics; docs/metrics.md lists them
    /// [default: none]
    #[arg(
        long,
        env = "CODER_AGENT_PROMETHEUS_ADDRESS",
        value_name = "IP:PORT",
        hide_env_values = true
    )]
    prometheus_address: Option<String>,
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
        stack: args.tunnel.stack,
        max_mtu: args.tunnel.max_mtu,
        offloads: args.tunnel.offloads(),
        busy_poll: args.tunnel.busy_poll(),
        engine: args.engine.choose(),
        ssh: ssh::Options {
            block_local_forwarding: args.block_local_port_forwarding,
            block_reverse_forwarding: args.block_reverse_port_forwarding,
            block_file_transfer: args.block_file_transfer,
        },
        loops: args.loops.count(),
        prometheus: args.prometheus()?,
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

    fn prometheus(&self) -> anyhow::Result<Option<SocketAddr>> {
        let text = self.prometheus_address.as_deref();
        let Some(text) = text.filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let address = text.parse().ok();
        let address = address.with_context(|| {
            format!(
                "--prometheus-address \"{text}\" is not an address with a port, such as \
                 127.0.0.1:2112"
            )
        })?;
        Ok(Some(address))
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
    fn figures_are_served_where_that_is_asked_for() {
        assert_eq!(args(&["agent"]).prometheus().unwrap(), None);
        let empty = args(&["agent", "--prometheus-address", ""]);
        assert_eq!(empty.prometheus().unwrap(), None);
        let given = args(&["agent", "--prometheus-address", "127.0.0.1:2112"]);
        assert_eq!(given.prometheus().unwrap().unwrap().port(), 2112);
        let wrong = args(&["agent", "--prometheus-address", "2112"]);
        assert!(
            wrong
                .prometheus()
                .unwrap_err()
                .to_string()
                .contains("\"2112\"")
        );
    }

    #[test]
    fn a_url_that_is_none_is_named() {
        for text in ["relay.example.com", "ftp://relay.example.com", "http://"] {
            let error = args(&["agent", "--url", text]).url().unwrap_err();
            assert!(format!("{error:#}").contains(text), "{error:#}");
        }
    }
}
