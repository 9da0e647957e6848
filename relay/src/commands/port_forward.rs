//! `relay port-forward`: makes ports of a workspace appear on this machine, and ports of this
//! machine in the workspace.

mod backend;
mod config;
mod json;
mod table;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use relay_engine::Engine;
use relay_forward::event::Reporter;
use relay_forward::{Board, Forwarder, Monitor, Options, Row, Wanted};
use relay_tunnel::stack::NetHelper;
use relay_wire::forwards::{AnyForward, parse_reverse};
use relay_wire::names::WorkspaceName;
use relay_wire::spec::{Forward, SpecError, parse_specs, read_list};
use serde::Serialize;
use tokio::task::JoinSet;

use self::backend::Events;
use self::config::Chosen;
use super::tunnel::{AutostartArgs, EngineArgs, TunnelArgs};
use super::{block_on, interrupted};
use crate::cli::{Global, environment};
use crate::output::{self, Format, one_line};
use crate::screen;
use crate::status::{self, Forwarded, Forwards, Traffic};

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
  relay port-forward dev --auto                      whatever listens in the workspace
  relay port-forward dev -R 8080:3000                port 8080 of the workspace leads to port 3000 here
  relay port-forward dev --unix d.sock:/var/run/docker.sock
                                                     a Unix socket; also LOCAL.sock:PORT, PORT:/REMOTE.sock
  relay port-forward --config forwards.toml --set web
                                                     what a file says
  relay port-forward dev -o json                     for programs: events and commands as JSON";

/// Flags of `relay port-forward`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// `[owner/]workspace[.agent]`
    #[arg(value_name = "WORKSPACE", required_unless_present = "config")]
    workspace: Option<String>,
    /// TCP ports: `[BIND:]LOCAL[:REMOTE]`, each a port or a range; commas and repetition are fine
    /// [env: CODER_PORT_FORWARD_TCP=]
    #[arg(short = 'p', long, value_name = "SPEC")]
    tcp: Vec<String>,
    /// UDP ports, in the same form [env: CODER_PORT_FORWARD_UDP=]
    #[arg(long, value_name = "SPEC")]
    udp: Vec<String>,
    /// Forward whatever listens in the workspace, on the same ports, as it comes and goes
    #[arg(long)]
    auto: bool,
    /// The other direction: `REMOTE[:[LOCAL_HOST:]LOCAL]`, each a port or a range, commas are fine; or
    /// `/REMOTE.sock:/LOCAL.sock`
    #[arg(short = 'R', long, value_name = "SPEC")]
    reverse: Vec<String>,
    /// Unix sockets: `LOCAL.sock:/REMOTE.sock`, `LOCAL.sock:PORT` or `PORT:/REMOTE.sock`
    #[arg(long, value_name = "SPEC")]
    unix: Vec<String>,
    /// Forward what a file says: sets such as `[web]` with `workspace`, and lists `tcp`, `udp`,
    /// `unix` and `reverse`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A set of that file; may be repeated
    #[arg(long, value_name = "NAME", requires = "config")]
    set: Vec<String>,
    #[command(flatten)]
    autostart: AutostartArgs,
    /// Send connections through the tunnel even when the workspace is on this machine
    #[arg(long)]
    always_tunnel: bool,
    /// Print what would be forwarded and stop
    #[arg(long)]
    dry_run: bool,
    /// How it is told what happens; json is for programs, see docs/port-forward-json.md
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(flatten)]
    tunnel: TunnelArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// A forward as a dry run prints it.
#[derive(Serialize)]
#[serde(untagged)]
enum Planned {
    Port {
        proto: &'static str,
        bind: Option<IpAddr>,
        local: u16,
        remote: u16,
    },
    Other {
        kind: &'static str,
        here: String,
        there: String,
    },
}

impl From<&AnyForward> for Planned {
    fn from(forward: &AnyForward) -> Self {
        match forward {
            AnyForward::Port(forward) => Self::Port {
                proto: forward.proto.as_str(),
                bind: forward.bind,
                local: forward.local,
                remote: forward.remote,
            },
            other => {
                let row = Row::from(other);
                Self::Other {
                    kind: row.kind.as_str(),
                    here: row.here,
                    there: row.there,
                }
            }
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: Args, global: &Global) -> Result<()> {
    let chosen = match &args.config {
        Some(path) => config::read(path, &args.set)?,
        None => Chosen::default(),
    };
    let workspace = args.workspace.clone().or_else(|| chosen.workspace.clone());
    let workspace = workspace.context(
        "no WORKSPACE is named: give one, or let the set of the file have workspace = \"NAME\"",
    )?;
    let wanted = wanted(&args, &chosen).context("parse port-forward specs")?;
    let name: WorkspaceName = workspace.parse()?;
    if args.dry_run {
        return show(&wanted, args.output);
    }
    let client = global.client()?;
    // Both before any thread exists: the helper is forked, and the limit is the process's.
    let helper = NetHelper::spawn()?;
    relay_engine::limits::raise_descriptor_limit();
    let options = Options {
        autostart: args.autostart.allowed(),
        direct: !global.disable_direct_connections,
        stack: args.tunnel.stack,
        max_mtu: args.tunnel.max_mtu,
        offloads: args.tunnel.offloads(),
        busy_poll: args.tunnel.busy_poll(),
        same_host: !args.always_tunnel,
        ..Options::new(client, name)
    };
    let engine = args.engine.choose();
    match args.output {
        Format::Text => for_people(options, helper, engine, wanted),
        Format::Json => for_a_program(options, helper, engine, wanted, workspace),
    }
}

/// Lines on stderr, and on a terminal a table below them.
fn for_people(options: Options, helper: NetHelper, engine: Engine, wanted: Wanted) -> Result<()> {
    block_on(async {
        let signal = interrupted()?;
        let shutdown = async {
            signal.await;
            screen::release();
            output::notice("\nReceived signal, closing all listeners and active connections");
        };
        let monitor = options.monitor.clone();
        let mut drawing = JoinSet::new();
        let forwarder = Forwarder::new(options, helper).engine(engine);
        let (live, board) = (screen::is_live(), forwarder.handle().board().clone());
        let _published = publish(monitor, engine, board.clone());
        let (ready, is_ready) = tokio::sync::watch::channel(false);
        let report = Reporter::new(move |event| {
            if event.is_for_people() {
                output::notice(event);
            }
            if *event == relay_forward::event::Event::Ready {
                ready.send_replace(true);
            }
        });
        if live {
            let mut is_ready = is_ready;
            drawing.spawn(async move {
                if is_ready.wait_for(|ready| *ready).await.is_ok() {
                    table::draw(board).await;
                }
            });
        }
        let forwarded = forwarder.report(report).run(wanted, shutdown).await;
        drop(drawing);
        screen::release();
        Ok(forwarded?)
    })
}

/// Events on stdout, commands on stdin.
fn for_a_program(
    options: Options,
    helper: NetHelper,
    engine: Engine,
    mut wanted: Wanted,
    workspace: String,
) -> Result<()> {
    wanted.stay = true;
    let monitor = options.monitor.clone();
    let (events, writer, gone) = Events::start().context("cannot write events")?;
    let told = events.clone();
    let report = Reporter::new(move |event| {
        if let Some(line) = json::line(event, &workspace) {
            told.tell(line);
        }
    });
    let result = block_on(async {
        let signal = interrupted()?;
        let shutdown = async {
            tokio::select! {
                () = signal => {}
                Ok(()) = gone => {}
            }
        };
        let forwarder = Forwarder::new(options, helper)
            .engine(engine)
            .report(report);
        let board = forwarder.handle().board().clone();
        let _published = publish(monitor, engine, board);
        let mut commands = JoinSet::new();
        commands.spawn(backend::obey(forwarder.handle(), events.clone()));
        Ok(forwarder.run(wanted, shutdown).await?)
    });
    if let Err(error) = &result {
        events.tell(json::fatal(&one_line(&format!("{error:#}"))));
    }
    drop(events);
    writer.finish();
    result
}

/// Shows the forwards in `relay status`.
fn publish(monitor: Monitor, engine: Engine, board: Board) -> Option<status::Published> {
    let look = move || {
        let (rows, total) = board.traffic(status::SHOWN);
        let row = |one: relay_forward::Traffic| Forwarded {
            kind: one.row.kind.to_string(),
            here: one.row.here,
            there: one.row.there,
            traffic: Some(Traffic {
                open: one.open,
                connections: one.connections,
                sent_bytes: one.sent,
                received_bytes: one.received,
            }),
        };
        Forwards::of(rows.into_iter().map(row), total)
    };
    status::publish(
        "port-forward",
        Some(engine.to_string()),
        monitor,
        Arc::new(look),
    )
}

/// What environment, file and flags ask for, in this order.
fn wanted(args: &Args, chosen: &Chosen) -> Result<Wanted> {
    let list = |variable: &str, file: &[String], flags: &[String]| {
        let mut occurrences: Vec<String> = environment(variable).into_iter().collect();
        occurrences.extend_from_slice(file);
        occurrences.extend_from_slice(flags);
        read_list(&occurrences)
    };
    let tcp = list("CODER_PORT_FORWARD_TCP", &chosen.tcp, &args.tcp)?;
    let udp = list("CODER_PORT_FORWARD_UDP", &chosen.udp, &args.udp)?;
    let mut others = Vec::new();
    for spec in chosen.unix.iter().chain(&args.unix) {
        others.push(AnyForward::Unix(spec.parse()?));
    }
    for spec in chosen.reverse.iter().chain(&args.reverse) {
        others.extend(parse_reverse(spec)?.into_iter().map(AnyForward::Reverse));
    }
    let auto = args.auto || chosen.auto;
    // A program may add forwards later, but there is nothing to plan for a dry run.
    let may_be_none = auto || (args.output == Format::Json && !args.dry_run);
    let ports = match parse_specs(&tcp, &udp) {
        Err(SpecError::NoForwards) if may_be_none || !others.is_empty() => Vec::new(),
        parsed => parsed?,
    };
    let mut forwards: Vec<_> = ports.into_iter().map(AnyForward::Port).collect();
    forwards.extend(others);
    Ok(Wanted {
        forwards,
        auto,
        stay: false,
    })
}

fn show(wanted: &Wanted, format: Format) -> Result<()> {
    if format == Format::Json {
        let list: Vec<_> = wanted.forwards.iter().map(Planned::from).collect();
        return output::json(&list);
    }
    for forward in &wanted.forwards {
        match forward {
            AnyForward::Port(port) => listens(port)?,
            other => {
                let Row { here, there, .. } = Row::from(other);
                output::result(match other {
                    AnyForward::Reverse(_) => {
                        format!("Forwarding '{there}' in the workspace to '{here}' locally")
                    }
                    _ => format!("Forwarding '{here}' locally to '{there}' in the workspace"),
                })?;
            }
        }
    }
    if wanted.auto {
        output::result("Forwarding whatever listens in the workspace, on the same ports")?;
    }
    Ok(())
}

fn listens(forward: &Forward) -> Result<()> {
    for listen in forward.listens() {
        output::result(listen.notice())?;
    }
    Ok(())
}
