//! `relay bench`: this program's routes beside OpenSSH, other forwarders and plain loopback, on this
//! machine.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use relay_benches::link::Link;
use relay_benches::runner::{self, Plan, Progress};
use relay_benches::{Route, report, soak};
use serde::Serialize;

use crate::cli::Global;
use crate::output::{self, Format};

const EXAMPLES: &str = "\
Examples:
  relay bench                                     everything, about seven minutes
  relay bench --route p2p --route ssh --rounds 1 --seconds 1
  relay bench --route dashboard                   a browser's way to an HTTP app, beside haproxy
  relay bench --peers                             other forwarders too, those that are installed
  relay bench --soak                              50 GiB and six minutes, every byte checked
  relay bench --html bench.html --json bench.json";

/// Arguments of `relay bench`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Route to measure, may be repeated: direct, p2p, p2p-1280, p2p-user (relay's own TCP at both
    /// ends), relayed, dashboard (HTTP through the server's app proxy, beside haproxy as a plain HTTP
    /// proxy where that is installed), ssh, ssh-tunnel (ssh through relay: encrypted twice), or a
    /// peer's name [default: all but peers]
    #[arg(long = "route", value_name = "ROUTE")]
    routes: Vec<String>,
    /// Add the other forwarders that are installed (onetun, boringtun, gotatun, rathole, bore,
    /// dumbpipe, socat, haproxy), and say how the others are installed
    #[arg(long, conflicts_with = "link")]
    peers: bool,
    /// Rounds; the table has the medians and ranges over them
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Seconds that each figure runs in a round
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// GiB of bulk over each route before its memory is looked at; 0 leaves that out
    #[arg(long, default_value_t = 1.0, value_name = "GIB")]
    memory_gib: f64,
    /// Soak instead: checked bulk with segmentation offloads on, off and mixed, then over several
    /// changes of keys; fails on a bad byte or a stall
    #[arg(long, conflicts_with_all = ["routes", "peers", "link", "html"])]
    soak: bool,
    /// GiB that a soak moves with the four settings of offloads together
    #[arg(long, default_value_t = 50.0, requires = "soak", value_name = "GIB")]
    soak_gib: f64,
    /// Seconds that a soak goes on without a pause over changes of keys, one each 120 s
    #[arg(
        long,
        default_value_t = 375.0,
        requires = "soak",
        value_name = "SECONDS"
    )]
    soak_seconds: f64,
    /// Milliseconds without a byte that a soak accepts
    #[arg(long, default_value_t = 200, requires = "soak", value_name = "MS")]
    soak_stall_ms: u64,
    /// Put the two ends on an emulated path of RTT, loss and rate, for example 40ms,0.5%,300mbit
    #[arg(long, value_name = "PATH")]
    link: Option<Link>,
    /// Also write all numbers as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write one self-contained HTML page with plots to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print the numbers on stdout as this
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Measures and prints.
pub(crate) fn run(args: Args, _: &Global) -> anyhow::Result<()> {
    // A thousand connections are held at both ends, which are both here.
    relay_engine::limits::raise_descriptor_limit();
    if args.soak {
        return soak(&args);
    }
    let plan = plan(&args)?;
    let report = Bar::during(|bar| runner::run(&plan, bar))?;
    if let Some(path) = &args.json {
        write(path, &json(&report)?)?;
    }
    if let Some(path) = &args.html {
        write(path, &report::html(&report))?;
    }
    match args.output {
        Format::Json => output::json(&report),
        Format::Text => output::result(report::table(&report).trim_end()),
    }
}

fn soak(args: &Args) -> anyhow::Result<()> {
    for (flag, number) in [("gib", args.soak_gib), ("seconds", args.soak_seconds)] {
        if !(0.0..=1e6).contains(&number) {
            bail!("--soak-{flag} {number} is not between 0 and 1000000");
        }
    }
    let plan = soak::Plan {
        program: own_program()?,
        bytes: (args.soak_gib * f64::from(1 << 30)) as u64,
        length: Duration::from_secs_f64(args.soak_seconds),
        stall: Duration::from_millis(args.soak_stall_ms),
    };
    let report = Bar::during(|bar| soak::run(&plan, bar))?;
    if let Some(path) = &args.json {
        write(path, &json(&report)?)?;
    }
    match args.output {
        Format::Json => output::json(&report)?,
        Format::Text => output::result(report.table().trim_end())?,
    }
    let failures = report.failures();
    if failures.is_empty() {
        return Ok(());
    }
    bail!("the soak failed: {}", failures.join("; "))
}

fn own_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}

fn plan(args: &Args) -> anyhow::Result<Plan> {
    if !(0.1..=3600.0).contains(&args.seconds) {
        bail!("--seconds {} is not between 0.1 and 3600", args.seconds);
    }
    let mut routes = args
        .routes
        .iter()
        .map(|name| name.parse())
        .collect::<Result<Vec<Route>, _>>()?;
    if routes.is_empty() {
        routes = Route::usual();
    }
    if args.peers {
        routes.extend(Route::peers());
        routes.sort_unstable();
        routes.dedup();
    }
    if !(0.0..=1024.0).contains(&args.memory_gib) {
        bail!("--memory-gib {} is not between 0 and 1024", args.memory_gib);
    }
    Ok(Plan {
        program: own_program()?,
        routes,
        rounds: args.rounds.into(),
        length: Duration::from_secs_f64(args.seconds),
        memory_gib: args.memory_gib,
        link: args.link,
    })
}

fn json(report: &impl Serialize) -> anyhow::Result<String> {
    serde_json::to_string_pretty(report).context("cannot write the report as JSON")
}

fn write(path: &PathBuf, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

struct Bar(ProgressBar);

impl Bar {
    /// Shows a bar while `work` goes on.
    fn during<T, E>(work: impl FnOnce(&mut Self) -> Result<T, E>) -> Result<T, E> {
        let mut bar = Self(ProgressBar::hidden());
        let result = work(&mut bar);
        bar.0.finish_and_clear();
        result
    }
}

impl Progress for Bar {
    fn steps(&mut self, count: usize) {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}");
        self.0 = ProgressBar::new(count as u64)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    }

    fn step(&mut self, what: &str) {
        self.0.set_message(what.to_owned());
        self.0.inc(1);
    }
}
