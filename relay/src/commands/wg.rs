//! `relay wg`: ports of hosts behind a plain WireGuard peer, on this machine.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use relay_forward::wg::Options;
use relay_tunnel::endpoint::StackChoice;
use relay_tunnel::stack::NetHelper;
use relay_wire::spec::{Proto, read_list};
use relay_wire::wg::{Config, Forward};

use super::tunnel::{EngineArgs, OffloadsArgs};
use super::{block_on, interrupted};
use crate::output;

const EXAMPLES: &str = "\
Examples:
  relay wg --config wg0.conf --tcp 8080:10.0.0.2:80          port 80 of 10.0.0.2 on localhost:8080
  relay wg --config wg0.conf --tcp 5432:[fd00::7]:5432       over IPv6
  relay wg --config wg0.conf --udp 5353:10.0.0.53:53         UDP
  relay wg --config wg0.conf --tcp 0.0.0.0:8080:10.0.0.2:80  for other machines too

The file is that of wg-quick. No root is needed, and the network of this machine stays as it is: DNS,
Table and commands to run are left out. Hosts are named by address.";

/// Flags of `relay wg`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// File with this end and its peers, as wg-quick reads it; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// TCP port of a host in the tunnel: `[BIND:]LOCAL:HOST:PORT`; commas and repetition are fine
    #[arg(short = 'p', long, value_name = "SPEC")]
    tcp: Vec<String>,
    /// UDP port of a host in the tunnel, in the same form
    #[arg(long, value_name = "SPEC")]
    udp: Vec<String>,
    #[command(flatten)]
    engine: EngineArgs,
    /// TCP/IP stack inside the tunnel: kernel is the kernel's in a private network namespace, user
    /// is relay's own, which needs no device and no privileges; auto is kernel where it can be had
    #[arg(
        long,
        env = "RELAY_STACK",
        default_value = "auto",
        value_name = "STACK"
    )]
    #[arg(hide_env_values = true)]
    stack: StackChoice,
    #[command(flatten)]
    offloads: OffloadsArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let forwards = forwards(&args)?;
    let config = read(&args.config)?;
    // Both before any thread exists: the helper is forked, and the limit is the process's.
    let helper = NetHelper::spawn()?;
    relay_engine::limits::raise_descriptor_limit();
    let options = Options {
        config,
        forwards,
        engine: args.engine.choose(),
        stack: args.stack,
        offloads: args.offloads.allowed(),
    };
    block_on(async {
        let signal = interrupted()?;
        let shutdown = async {
            signal.await;
            output::notice("\nReceived signal, closing all listeners and active connections");
        };
        let tell = |event| output::notice(event);
        Ok(relay_forward::wg::forward(options, helper, tell, shutdown).await?)
    })
}

fn forwards(args: &Args) -> Result<Vec<Forward>> {
    let mut forwards = Vec::new();
    for (proto, flags) in [(Proto::Tcp, &args.tcp), (Proto::Udp, &args.udp)] {
        for text in read_list(flags)? {
            forwards.push(Forward::parse(proto, text.trim())?);
        }
    }
    anyhow::ensure!(
        !forwards.is_empty(),
        "nothing to forward; say what by --tcp or --udp, such as --tcp 8080:10.0.0.2:80"
    );
    Ok(forwards)
}

fn read(path: &Path) -> Result<Config> {
    let text = match path.to_str() {
        Some("-") => {
            let mut text = String::new();
            let read = std::io::stdin().read_to_string(&mut text);
            read.map(|_| text)
        }
        _ => std::fs::read_to_string(path),
    };
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    text.parse().with_context(|| path.display().to_string())
}
