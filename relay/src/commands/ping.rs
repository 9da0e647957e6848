//! `relay ping`: measures the way to a workspace.

use std::time::Duration;

use anyhow::{Result, ensure};
use relay_forward::event::{Path, Reporter};
use relay_forward::{Options, Pong};
use relay_tunnel::endpoint::{MAX_MTU, StackChoice};
use relay_tunnel::stack::{NetHelper, Offloads};
use relay_wire::names::WorkspaceName;
use serde::Serialize;

use super::{block_on, interrupted};
use crate::cli::Global;
use crate::output::{self, Format};

/// Flags of `relay ping`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// `[owner/]workspace[.agent]`
    #[arg(value_name = "WORKSPACE")]
    workspace: String,
    /// Stop after so many pings
    #[arg(short = 'n', long, alias = "num", value_name = "COUNT")]
    count: Option<u64>,
    /// How to print the results
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
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
}

/// The result of one ping, as JSON shows it.
#[derive(Serialize)]
struct Row {
    /// Milliseconds; none is a time-out.
    ms: Option<f64>,
    direct: bool,
    via: Option<String>,
}

impl From<&Option<Pong>> for Row {
    fn from(pong: &Option<Pong>) -> Self {
        let path = pong.as_ref().map(|pong| &pong.path);
        Self {
            ms: pong.as_ref().map(|pong| milliseconds(pong.time)),
            direct: matches!(path, Some(Path::Direct(_))),
            via: path.map(|path| match path {
                Path::Direct(address) => address.to_string(),
                Path::Relayed(name) => name.clone(),
            }),
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Runs the command. An agent that never answered is an error.
pub(crate) fn run(args: Args, global: &Global) -> Result<()> {
    ensure!(
        args.count != Some(0),
        "--count 0 measures nothing; give 1 or more"
    );
    let name: WorkspaceName = args.workspace.parse()?;
    let client = global.client()?;
    let helper = NetHelper::spawn()?;
    let direct = !global.disable_direct_connections;
    let options = Options {
        client,
        name,
        autostart: false,
        direct,
        stack: args.stack,
        max_mtu: MAX_MTU,
        offloads: Offloads::default(),
        busy_poll: Duration::ZERO,
    };
    let mut pongs: Vec<Option<Pong>> = Vec::new();
    let result = block_on(async {
        let signal = interrupted()?;
        let each = |pong: Option<Pong>| {
            if args.output == Format::Text {
                let _ = output::result(line(&args.workspace, pong.as_ref()));
            }
            // An endless run remembers the latest, for the summary.
            if pongs.len() >= 100_000 {
                pongs.remove(0);
            }
            pongs.push(pong);
        };
        let report = Reporter::new(|event| tracing::debug!("{event}"));
        Ok(relay_forward::ping(options, helper, report, args.count, each, signal).await?)
    });
    result?;
    match args.output {
        Format::Json => output::json(&pongs.iter().map(Row::from).collect::<Vec<_>>())?,
        Format::Text => output::notice(summary(&pongs)),
    }
    let answered = pongs.is_empty() || pongs.iter().any(Option::is_some);
    ensure!(answered, "agent of \"{}\" answered no ping", args.workspace);
    Ok(())
}

fn line(workspace: &str, pong: Option<&Pong>) -> String {
    match pong {
        None => format!("ping to \"{workspace}\" timed out"),
        Some(Pong { time, path }) => {
            let ms = milliseconds(*time);
            match path {
                Path::Direct(address) => {
                    format!("pong from {workspace} p2p via {address} in {ms} ms")
                }
                Path::Relayed(name) => {
                    format!("pong from {workspace} proxied via DERP({name}) in {ms} ms")
                }
            }
        }
    }
}

fn summary(pongs: &[Option<Pong>]) -> String {
    let times: Vec<f64> = pongs
        .iter()
        .flatten()
        .map(|pong| milliseconds(pong.time))
        .collect();
    let verdict = match pongs.iter().flatten().next_back().map(|pong| &pong.path) {
        Some(Path::Direct(_)) => "the connection is direct",
        Some(Path::Relayed(_)) => "the connection is relayed",
        None => "no answer",
    };
    if times.is_empty() {
        return format!("{} pings, 0 answered: {verdict}", pongs.len());
    }
    let least = times.iter().copied().fold(f64::INFINITY, f64::min);
    let most = times.iter().copied().fold(0.0, f64::max);
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    format!(
        "{} pings, {} answered, {least:.3}/{mean:.3}/{most:.3} ms least/mean/most: {verdict}",
        pongs.len(),
        times.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pong_says_which_way_it_came() {
        let pong = |path| Pong {
            time: Duration::from_micros(1500),
            path,
        };
        let direct = pong(Path::Direct("10.0.0.2:41641".parse().unwrap()));
        let relayed = pong(Path::Relayed("Here".to_owned()));
        assert_eq!(
            line("dev", Some(&direct)),
            "pong from dev p2p via 10.0.0.2:41641 in 1.5 ms"
        );
        assert_eq!(
            line("dev", Some(&relayed)),
            "pong from dev proxied via DERP(Here) in 1.5 ms"
        );
        assert_eq!(line("dev", None), "ping to \"dev\" timed out");
        assert!(summary(&[Some(relayed), Some(direct), None]).ends_with("is direct"));
    }
}
