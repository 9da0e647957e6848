//! `relay speedtest`: how fast bytes go to or from a workspace.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use relay_forward::speedtest::{self, Direction, Interval, Measured, Plan};
use relay_forward::{Options, event};
use relay_tunnel::capture::{self, Capture, Recorded, Recording};
use relay_tunnel::stack::NetHelper;
use relay_wire::names::WorkspaceName;
use serde::Serialize;

use super::tunnel::TunnelArgs;
use super::{block_on, interrupted, waiting_reporter};
use crate::cli::Global;
use crate::duration;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  relay speedtest dev                          from the workspace, for 5 seconds
  relay speedtest dev --direction up -t 10s    to the workspace
  relay speedtest dev -d -o json               over a direct path or not at all; for programs
  relay speedtest dev --pcap-file test.pcap    then `tcpdump -r test.pcap`";

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
    /// Columns of the table, in this order, with commas between them
    #[arg(short, long, value_enum, ignore_case = true, value_delimiter = ',')]
    #[arg(default_values_t = [Column::Interval, Column::Throughput], value_name = "COLUMNS")]
    column: Vec<Column>,
    /// Record the packets inside the tunnel in this file, for tcpdump: headers, and the start of what
    /// they carry
    #[arg(long, value_name = "FILE")]
    pcap_file: Option<PathBuf>,
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

/// A column of the table; the names are Coder's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Column {
    /// The part of the test.
    Interval,
    /// How fast bytes went.
    Throughput,
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
    let direct = !global.disable_direct_connections;
    anyhow::ensure!(
        !args.direct || direct,
        "--direct waits for ever with --disable-direct-connections; leave one of them out"
    );
    let client = global.client()?;
    // Before any thread exists: the helper is forked.
    let helper = NetHelper::spawn()?;
    let (capture, recording) = args.record()?.unzip();
    let options = Options {
        autostart: false,
        direct,
        stack: args.tunnel.stack,
        max_mtu: args.tunnel.max_mtu,
        offloads: args.tunnel.offloads(),
        busy_poll: args.tunnel.busy_poll(),
        capture,
        ..Options::new(client, name)
    };
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
                    let _ = output::result(row(&args.column, ["INTERVAL", "THROUGHPUT"]));
                }
                let _ = output::result(line(&args.column, interval));
            }
        };
        let run = speedtest::run(
            options,
            helper,
            waiting_reporter(),
            plan,
            waiting,
            each,
            signal,
        );
        Ok(run.await?)
    });
    let recorded = recording.map(|recording| args.tell_recorded(recording));
    let measured = measured?;
    recorded.transpose()?;
    let Some(measured) = measured else {
        return Ok(());
    };
    match args.output {
        Format::Json => output::json(&args.document(&measured)),
        Format::Table => {
            let overall = line(&args.column, &measured.overall);
            output::result("-".repeat(overall.len()))?;
            output::result(overall)?;
            let (mtu, stack) = (measured.mtu, measured.stack);
            output::notice(format_args!("{}; MTU {mtu}, stack {stack}", measured.route));
            Ok(())
        }
    }
}

fn line(columns: &[Column], interval: &Interval) -> String {
    let (start, end) = (interval.start.as_secs_f64(), interval.end.as_secs_f64());
    let span = format!("{start:.2}-{end:.2} sec");
    let rate = format!("{:>10.2} Mbits/sec", interval.megabits());
    row(columns, [&span, &rate])
}

/// A row of the table, of which the first is its interval and the second its throughput.
fn row(columns: &[Column], [interval, throughput]: [&str; 2]) -> String {
    let cell = |column: &Column| match column {
        Column::Interval => format!("{interval:<18}"),
        Column::Throughput => format!("{throughput:<20}"),
    };
    let cells: Vec<String> = columns.iter().map(cell).collect();
    cells.join("  ").trim_end().to_owned()
}

impl Args {
    fn record(&self) -> Result<Option<(Capture, Recording)>> {
        let Some(path) = &self.pcap_file else {
            return Ok(None);
        };
        let started = capture::start(path);
        let started = started.with_context(|| format!("cannot record in {}", path.display()));
        started.map(Some)
    }

    fn tell_recorded(&self, recording: Recording) -> Result<()> {
        let shown = self.pcap_file.as_deref().unwrap_or(Path::new("")).display();
        let recorded = recording.finish();
        let Recorded { packets, lost } =
            recorded.with_context(|| format!("cannot write all packets to {shown}"))?;
        let missing = match lost {
            0 => String::new(),
            lost => format!("; {lost} more came faster than they could be written"),
        };
        output::notice(format_args!("{shown} has {packets} packets{missing}"));
        Ok(())
    }

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
            direct: matches!(path, Some(event::Path::Direct(_))),
            via: path.as_ref().map(|path| match path {
                event::Path::Direct(address) => address.to_string(),
                event::Path::Relayed(name) => name.clone(),
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
        let usual = [Column::Interval, Column::Throughput];
        assert_eq!(
            line(&usual, &interval),
            "0.00-1.00 sec           100.00 Mbits/sec"
        );
        let head = row(&usual, ["INTERVAL", "THROUGHPUT"]);
        assert_eq!(head, "INTERVAL            THROUGHPUT");
        assert_eq!(line(&usual[..1], &interval), "0.00-1.00 sec");
        let turned = [Column::Throughput, Column::Interval];
        let turned = line(&turned, &interval);
        assert!(
            turned.ends_with("100.00 Mbits/sec  0.00-1.00 sec"),
            "{turned}"
        );
    }
}
