//! `relay speedtest`: how fast bytes go to or from a workspace.

use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use relay_forward::event::{Event, Path, Reporter};
use relay_forward::speedtest::{self, Direction, Interval, Measured, Plan};
use relay_forward::{Monitor, Options};
use relay_tunnel::stack::NetHelper;
use relay_wire::names::WorkspaceName;
use serde::Serialize;

use super::tunnel::TunnelArgs;
use super::{block_on, interrupted};
use crate::cli::Global;
use crate::duration;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  relay speedtest dev                          from the workspace, for 5 seconds
  relay speedtest dev --direction up -t 10s    to the workspace
  relay speedtest dev -d -o json               over a direct path or not at all; for programs";

/// Flags of `relay speedtest`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// `[owner/]workspace[.agent]`
    #[arg(value_name = "WORKSPACE")]
    workspace: String,
    /// Wait for a direct path before measuring
    #[arg(short, long)]
    direct: bool,
    /// Which way the bytes go: down is from the workspace
    #[arg(long, value_enum, default_value_t, value_name = "DIRECTION")]
    direction: Way,
    /// How long to measure, an hour at most
    #[arg(short, long, default_value = "5s", value_name = "SPAN")]
    #[arg(value_parser = duration::parse_positive)]
    time: Duration,
    /// How to print the results
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    tunnel: TunnelArgs,
}

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Way {
    /// From the workspace.
    #[default]
    Down,
    /// To the workspace.
    Up,
}

/// How results are printed; the names are Coder's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people: a line a second.
    #[default]
    #[value(alias = "text")]
    Table,
    /// For programs: one JSON document.
    Json,
}

/// What JSON shows.
#[derive(Serialize)]
struct Document<'a> {
    overall: Row,
    intervals: Vec<Row>,
    workspace: &'a str,
    agent: &'a str,
    direction: &'static str,
    direct: bool,
    via: Option<String>,
    reason: Option<&'static str>,
    mtu: u16,
    stack: String,
}

#[derive(Serialize)]
struct Row {
    start_time_seconds: f64,
    end_time_seconds: f64,
    throughput_mbits: f64,
}

impl From<&Interval> for Row {
    fn from(interval: &Interval) -> Self {
        Self {
            start_time_seconds: interval.start.as_secs_f64(),
            end_time_seconds: interval.end.as_secs_f64(),
            throughput_mbits: interval.megabits(),
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: Args, global: &Global) -> Result<()> {
    let name: WorkspaceName = args.workspace.parse()?;
    let client = global.client()?;
    let helper = NetHelper::spawn()?;
    let options = Options {
        client,
        name,
        autostart: false,
        direct: !global.disable_direct_connections,
        stack: args.tunnel.stack,
        max_mtu: args.tunnel.max_mtu,
        offloads: args.tunnel.disable_offloads,
        busy_poll: args.tunnel.busy_poll(),
        monitor: Monitor::default(),
    };
    anyhow::ensure!(
        !args.direct || options.direct,
        "--direct waits for ever with --disable-direct-connections; leave one of them out"
    );
    let plan = Plan {
        time: args.time,
        direction: match args.direction {
            Way::Down => Direction::Down,
            Way::Up => Direction::Up,
        },
        wait_direct: args.direct,
    };
    let measured = block_on(async {
        let signal = interrupted()?;
        let waiting = |route: &_| {
            output::notice(format_args!("waiting for a direct path; now {route}"));
        };
        let table = args.output == Format::Table;
        let mut head = false;
        let each = |interval: &Interval| {
            if table {
                if !std::mem::replace(&mut head, true) {
                    let _ = output::result("INTERVAL            THROUGHPUT");
                }
                let _ = output::result(line(interval));
            }
        };
        let run = speedtest::run(options, helper, reporter(), plan, waiting, each, signal);
        Ok(run.await?)
    })?;
    let Some(measured) = measured else {
        return Ok(());
    };
    match args.output {
        Format::Json => output::json(&args.document(&measured)),
        Format::Table => {
            output::result("-".repeat(37))?;
            output::result(line(&measured.overall))?;
            let (mtu, stack) = (measured.mtu, measured.stack);
            output::notice(format_args!("{}; MTU {mtu}, stack {stack}", measured.route));
            Ok(())
        }
    }
}

fn reporter() -> Reporter {
    Reporter::new(|event| match event {
        Event::WaitingForBuild { .. }
        | Event::WaitingForAgent { .. }
        | Event::WaitingForTunnel { .. }
        | Event::RelaysOnly => output::notice(event),
        _ => tracing::debug!("{event}"),
    })
}

fn line(interval: &Interval) -> String {
    let (start, end) = (interval.start.as_secs_f64(), interval.end.as_secs_f64());
    let span = format!("{start:.2}-{end:.2} sec");
    format!("{span:<18}  {:>10.2} Mbits/sec", interval.megabits())
}

impl Args {
    fn document<'a>(&'a self, measured: &'a Measured) -> Document<'a> {
        let (path, reason) = (&measured.route.path, measured.route.reason);
        Document {
            overall: (&measured.overall).into(),
            intervals: measured.intervals.iter().map(Row::from).collect(),
            workspace: &self.workspace,
            agent: &measured.agent,
            direction: match self.direction {
                Way::Down => "down",
                Way::Up => "up",
            },
            direct: matches!(path, Some(Path::Direct(_))),
            via: path.as_ref().map(|path| match path {
                Path::Direct(address) => address.to_string(),
                Path::Relayed(name) => name.clone(),
            }),
            reason: reason.map(relay_tunnel::path::Reason::code),
            mtu: measured.mtu,
            stack: measured.stack.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_part_and_its_rate() {
        let interval = Interval {
            start: Duration::ZERO,
            end: Duration::from_secs(1),
            bytes: 12_500_000,
        };
        assert_eq!(line(&interval), "0.00-1.00 sec           100.00 Mbits/sec");
    }
}
