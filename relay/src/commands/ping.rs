//! `relay ping`: measures the way to a workspace, and says which it is and why.

mod summary;

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Result, ensure};
use chrono::{DateTime, Local, SecondsFormat, Utc};
use relay_forward::event::Path;
use relay_forward::{Options, Pace, Pong, Step};
use relay_tunnel::endpoint::StackChoice;
use relay_tunnel::stack::NetHelper;
use relay_wire::names::WorkspaceName;

use self::summary::{Sample, Seen};
use super::{block_on, interrupted, waiting_reporter};
use crate::cli::Global;
use crate::duration;
use crate::output::{self, Format};

/// The longest that an answer is waited for.
const LONGEST: Duration = Duration::from_secs(5);
/// An endless run remembers so many of its latest pings, and of the ways that they took.
const REMEMBERED: usize = 100_000;

const EXAMPLES: &str = "\
Examples:
  relay ping dev                     once a second, until Ctrl-C
  relay ping dev -n 3 -o json        one JSON document: each ping, p50 and p99, the path and why it is none better";

/// Flags of `relay ping`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// `[owner/]workspace[.agent]`
    #[arg(value_name = "WORKSPACE")]
    workspace: String,
    /// Stop after so many pings [default: at Ctrl-C]
    #[arg(short = 'n', long, alias = "num", value_name = "COUNT")]
    count: Option<u64>,
    /// How long an answer may take, 5s at most
    #[arg(short, long, default_value = "5s", value_name = "SPAN")]
    #[arg(value_parser = duration::parse_positive)]
    timeout: Duration,
    /// From one ping to the next
    #[arg(long, default_value = "1s", value_name = "SPAN", value_parser = duration::parse)]
    wait: Duration,
    /// Begin each line with the time of the answer
    #[arg(long)]
    time: bool,
    /// The same in UTC
    #[arg(long)]
    utc: bool,
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

/// Runs the command. An agent that never answered is an error.
pub(crate) fn run(args: Args, global: &Global) -> Result<()> {
    let pace = args.pace()?;
    let name: WorkspaceName = args.workspace.parse()?;
    let client = global.client()?;
    let helper = NetHelper::spawn()?;
    let options = Options {
        autostart: false,
        direct: !global.disable_direct_connections,
        stack: args.stack,
        busy_poll: Duration::ZERO,
        ..Options::new(client, name)
    };
    let mut seen = Seen::default();
    let report = block_on(async {
        let signal = interrupted()?;
        let each = |step| args.show(step, &mut seen);
        Ok(relay_forward::ping(options, helper, waiting_reporter(), pace, each, signal).await?)
    })?;
    let Some(report) = report else {
        return Ok(());
    };
    match args.output {
        Format::Json => output::json(&summary::document(&args.workspace, &seen, &report))?,
        Format::Text => output::notice(summary::text(&seen.samples, &report)),
    }
    let answered =
        seen.samples.is_empty() || seen.samples.iter().any(|sample| sample.pong.is_some());
    ensure!(answered, "agent of \"{}\" answered no ping", args.workspace);
    Ok(())
}

impl Args {
    fn pace(&self) -> Result<Pace> {
        ensure!(
            self.count != Some(0),
            "--count 0 measures nothing; give 1 or more"
        );
        ensure!(
            self.timeout <= LONGEST,
            "--timeout is longer than 5s, after which an answer is not recognised any more"
        );
        Ok(Pace {
            count: self.count,
            timeout: self.timeout,
            wait: self.wait,
        })
    }

    fn show(&self, step: Step, seen: &mut Seen) {
        match step {
            Step::Route(route) => {
                output::notice(format_args!("path: {route}"));
                push(&mut seen.routes, (Utc::now(), route));
            }
            Step::Pong(pong) => {
                let sample = Sample {
                    at: Utc::now(),
                    pong,
                };
                if self.output == Format::Text {
                    let line = line(&self.workspace, sample.pong.as_ref());
                    let _ = output::result(format_args!("{}{line}", self.stamp(sample.at)));
                }
                push(&mut seen.samples, sample);
            }
        }
    }

    fn stamp(&self, at: DateTime<Utc>) -> String {
        match (self.utc, self.time) {
            (true, _) => format!("{} ", at.to_rfc3339_opts(SecondsFormat::Millis, true)),
            (false, true) => {
                let at = at.with_timezone(&Local);
                format!("{} ", at.to_rfc3339_opts(SecondsFormat::Millis, false))
            }
            (false, false) => String::new(),
        }
    }
}

fn push<T>(list: &mut VecDeque<T>, item: T) {
    if list.len() >= REMEMBERED {
        list.pop_front();
    }
    list.push_back(item);
}

fn line(workspace: &str, pong: Option<&Pong>) -> String {
    match pong {
        None => format!("ping to \"{workspace}\" timed out"),
        Some(Pong { time, path }) => {
            let ms = duration::milliseconds(*time);
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

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
    }

    #[test]
    fn the_pace_is_read_and_nonsense_refused() {
        let pace = |words: &[&str]| {
            let words = ["ping", "dev"].iter().chain(words);
            Cli::try_parse_from(words).unwrap().args.pace()
        };
        let usual = pace(&[]).unwrap();
        assert_eq!(
            (usual.timeout, usual.wait),
            (LONGEST, Duration::from_secs(1))
        );
        let other = pace(&["-n", "3", "-t", "200ms", "--wait", "0"]).unwrap();
        assert_eq!(other.count, Some(3));
        assert_eq!(other.timeout, Duration::from_millis(200));
        assert!(pace(&["-n", "0"]).is_err() && pace(&["-t", "6s"]).is_err());
        assert!(Cli::try_parse_from(["ping", "dev", "-t", "0s"]).is_err());
    }
}
