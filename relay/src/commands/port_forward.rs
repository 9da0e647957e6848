//! `relay port-forward`: makes ports of a workspace appear on this machine.

use std::net::IpAddr;

use anyhow::{Context, Result};
use clap::builder::BoolishValueParser;
use relay_forward::Options;
use relay_forward::event::Reporter;
use relay_tunnel::stack::NetHelper;
use relay_wire::names::WorkspaceName;
use relay_wire::spec::{Forward, SpecError, parse_specs, read_list};
use serde::Serialize;

use super::tunnel::{EngineArgs, TunnelArgs};
use super::{block_on, interrupted};
use crate::cli::{Global, environment};
use crate::output::{self, Format};

const EXAMPLES: &str = "\
Examples:
  relay port-forward dev --tcp 8080                  port 8080 of workspace `dev` on localhost:8080
  relay port-forward dev --tcp 8080:8000             port 8000, on localhost:8080
  relay port-forward dev --tcp 8080,9000:3000        several
  relay port-forward dev --tcp 5000-5009             a range
  relay port-forward dev --tcp 8000-8009:9000-9009   a range, on other local ports
  relay port-forward dev --tcp 127.77.0.1:1-65535    every port, on an address of its own
  relay port-forward dev --udp 5353:53               UDP
  relay port-forward dev --tcp 0.0.0.0:8080:80       for other machines too
  relay port-forward alice/dev.gpu --tcp 8888        one agent of somebody's workspace

The other direction, a local port in the workspace, is `ssh -R`.";

/// Flags of `relay port-forward`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// `[owner/]workspace[.agent]`
    #[arg(value_name = "WORKSPACE")]
    workspace: String,
    /// TCP ports: `[BIND:]LOCAL[:REMOTE]`, each a port or a range; commas and repetition are fine
    /// [env: CODER_PORT_FORWARD_TCP=]
    #[arg(short = 'p', long, value_name = "SPEC")]
    tcp: Vec<String>,
    /// UDP ports, in the same form [env: CODER_PORT_FORWARD_UDP=]
    #[arg(long, value_name = "SPEC")]
    udp: Vec<String>,
    /// Do not start a stopped workspace
    #[arg(long, env = "CODER_SSH_DISABLE_AUTOSTART", hide_env_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true
    )]
    #[arg(value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    disable_autostart: bool,
    /// Print what would be forwarded and stop
    #[arg(long)]
    dry_run: bool,
    /// How a dry run is printed
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    tunnel: TunnelArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// A forward as a dry run prints it.
#[derive(Serialize)]
struct Planned {
    proto: &'static str,
    bind: Option<IpAddr>,
    local: u16,
    remote: u16,
}

impl From<&Forward> for Planned {
    fn from(forward: &Forward) -> Self {
        let Forward {
            proto,
            bind,
            local,
            remote,
        } = *forward;
        Self {
            proto: proto.as_str(),
            bind,
            local,
            remote,
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: Args, global: &Global) -> Result<()> {
    let forwards = forwards(&args).context("parse port-forward specs")?;
    let name: WorkspaceName = args.workspace.parse()?;
    if args.dry_run {
        return show(&forwards, args.output);
    }
    let client = global.client()?;
    // Both before any thread exists: the helper is forked, and the limit is the process's.
    let helper = NetHelper::spawn()?;
    relay_engine::limits::raise_descriptor_limit();
    let options = Options {
        client,
        name,
        autostart: !args.disable_autostart,
        direct: !global.disable_direct_connections,
        stack: args.tunnel.stack,
        max_mtu: args.tunnel.max_mtu,
        offloads: args.tunnel.disable_offloads,
        busy_poll: args.tunnel.busy_poll(),
    };
    let engine = args.engine.choose();
    block_on(async {
        let signal = interrupted()?;
        let shutdown = async {
            signal.await;
            output::notice("\nReceived signal, closing all listeners and active connections");
        };
        let report = Reporter::new(|event| output::notice(event));
        let forwarded =
            relay_forward::forward(options, &forwards, engine, helper, report, shutdown);
        Ok(forwarded.await?)
    })
}

/// What environment and flags ask for, the environment first.
fn forwards(args: &Args) -> Result<Vec<Forward>, SpecError> {
    let list = |variable: &str, flags: &[String]| {
        let mut occurrences: Vec<String> = environment(variable).into_iter().collect();
        occurrences.extend_from_slice(flags);
        read_list(&occurrences)
    };
    let tcp = list("CODER_PORT_FORWARD_TCP", &args.tcp)?;
    let udp = list("CODER_PORT_FORWARD_UDP", &args.udp)?;
    parse_specs(&tcp, &udp)
}

fn show(forwards: &[Forward], format: Format) -> Result<()> {
    match format {
        Format::Json => output::json(&forwards.iter().map(Planned::from).collect::<Vec<_>>()),
        Format::Text => {
            for listen in forwards.iter().flat_map(Forward::listens) {
                output::result(listen.notice())?;
            }
            Ok(())
        }
    }
}
