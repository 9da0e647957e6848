//! `relay status`: which forwards and sessions run on this machine, and how they are doing.

use anyhow::{Context, Result};
use serde::Serialize;

use super::block_on;
use crate::output::{self, Format};
use crate::status::{self, Running, Silent, Tunnel};

const EXAMPLES: &str = "\
Examples:
  relay status              forwards and SSH sessions of this user, with their paths
  relay status -o json      the same for programs";

/// Flags of `relay status`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// How to print the results
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Serialize)]
struct Document<'a> {
    running: &'a [Running],
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (running, silent) = block_on(async {
        let asked = status::all().await;
        asked.context("cannot look for running commands")
    })?;
    for Silent { pid, reason } in silent {
        let process = pid.map_or_else(|| "a process".to_owned(), |pid| format!("process {pid}"));
        output::notice(format_args!(
            "{process} does not tell about itself: {reason}"
        ));
    }
    match args.output {
        Format::Json => output::json(&Document { running: &running }),
        Format::Text if running.is_empty() => {
            output::notice("nothing runs; start something with relay port-forward or relay ssh");
            Ok(())
        }
        Format::Text => running.iter().try_for_each(|one| output::result(text(one))),
    }
}

fn text(running: &Running) -> String {
    let (command, pid) = (&running.command, running.pid);
    let engine = running.engine.as_ref();
    let engine = engine.map_or_else(String::new, |engine| format!(", engine {engine}"));
    let mut text = match &running.tunnel {
        None => format!("{command} (process {pid}): the tunnel is not open yet"),
        Some(tunnel) => {
            let Tunnel {
                workspace,
                agent,
                mtu,
                stack,
                sent_bytes,
                received_bytes,
                ..
            } = tunnel;
            format!(
                "{command} {workspace}.{agent} (process {pid}): {}\n  {}, MTU {mtu}, {sent} sent, {received} received, \
                 stack {stack}{engine}",
                path(tunnel),
                times(tunnel),
                sent = size(*sent_bytes),
                received = size(*received_bytes),
            )
        }
    };
    let (shown, total) = (&running.forwards.forwards, running.forwards.forwards_total);
    for forward in shown {
        let (kind, here, there) = (&forward.kind, &forward.here, &forward.there);
        text += &format!("\n  {kind} {here} -> {there}");
        if let Some(traffic) = forward.traffic {
            text += &format!(
                ": {} open, {} in all, {} sent, {} received",
                traffic.open,
                traffic.connections,
                size(traffic.sent_bytes),
                size(traffic.received_bytes),
            );
        }
    }
    if total > shown.len() {
        text += &format!("\n  and {} more", total - shown.len());
    }
    text
}

fn path(tunnel: &Tunnel) -> String {
    if tunnel.same_host {
        return "same host, connections go past the tunnel".to_owned();
    }
    let via = tunnel.via.as_deref().unwrap_or("nothing");
    let kind = if tunnel.direct { "direct" } else { "relayed" };
    match &tunnel.explanation {
        Some(why) => format!("{kind} via {via}: {why}"),
        None => format!("{kind} via {via}"),
    }
}

fn times(tunnel: &Tunnel) -> String {
    let rtt = match tunnel.rtt_ms {
        Some(ms) => format!("{ms} ms there and back"),
        None => "no answer now".to_owned(),
    };
    match tunnel.handshake_age_seconds {
        Some(age) => format!("{rtt}, handshake {age:.0} s ago"),
        None => format!("{rtt}, no handshake yet"),
    }
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        unit => format!("{value:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::status::{Forwarded, Forwards, Traffic};

    #[test]
    fn a_forward_is_told_with_its_path_and_bytes() {
        let running = Running {
            pid: 7,
            command: "port-forward".to_owned(),
            started: DateTime::UNIX_EPOCH,
            engine: Some("auto".to_owned()),
            tunnel: Some(Tunnel {
                workspace: "alice/dev".to_owned(),
                agent: "main".to_owned(),
                direct: false,
                same_host: false,
                via: Some("Here".to_owned()),
                reason: Some("udp_blocked".to_owned()),
                explanation: Some("UDP is blocked".to_owned()),
                rtt_ms: Some(1.5),
                mtu: 1420,
                handshake_age_seconds: Some(3.2),
                sent_bytes: 2048,
                received_bytes: 5,
                stack: "kernel".to_owned(),
            }),
            forwards: Forwards::of(
                [Forwarded {
                    kind: "tcp".to_owned(),
                    here: "8080".to_owned(),
                    there: "8000".to_owned(),
                    traffic: Some(Traffic {
                        open: 1,
                        connections: 2,
                        sent_bytes: 3 << 20,
                        received_bytes: 0,
                    }),
                }]
                .into_iter(),
                3,
            ),
        };
        let told = text(&running);
        for part in [
            "port-forward alice/dev.main (process 7): relayed via Here: UDP is blocked",
            "1.5 ms there and back, handshake 3 s ago, MTU 1420, 2.0 KiB sent, 5 B received",
            "stack kernel, engine auto",
            "tcp 8080 -> 8000: 1 open, 2 in all, 3.0 MiB sent, 0 B received\n  and 2 more",
        ] {
            assert!(told.contains(part), "no {part:?} in {told}");
        }
        let opening = Running {
            tunnel: None,
            forwards: Forwards::default(),
            ..running
        };
        assert!(text(&opening).ends_with("not open yet"));
    }
}
