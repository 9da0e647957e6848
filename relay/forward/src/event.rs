//! What happens while ports are forwarded, for whoever shows it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use relay_wire::forwards::UnixForward;
use relay_wire::remote_forward::{REMOTE_BIND, RemoteForward};
use relay_wire::spec::Proto;

use crate::board::Row;

/// Something worth telling the user. Its text is the line that the command line prints, where it
/// is [for people](Event::is_for_people).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// What will be forwarded.
    Plan(Vec<Row>),
    /// A socket of a forward is open, on this machine or, for a reverse forward, in the workspace.
    Listening {
        /// The forward.
        row: Arc<Row>,
        /// Where it listens: an address with a port, or a path.
        address: String,
    },
    /// A forward was taken down. Connections that were open go on.
    Removed {
        /// The forward.
        row: Arc<Row>,
    },
    /// Something happened to a connection.
    Connection(Connection),
    /// A local Unix socket, or a port that leads to one of the workspace, is about to be opened.
    ForwardingUnix {
        /// From where to where.
        forward: UnixForward,
    },
    /// The workspace is about to be asked to listen.
    ForwardingBack {
        /// From where to where.
        forward: RemoteForward,
    },
    /// The workspace does not listen any more, and cannot be made to for now.
    BackRefused {
        /// From where to where.
        forward: RemoteForward,
        /// Why.
        reason: String,
    },
    /// A port that listens in the workspace is not forwarded.
    Skipped {
        /// The port.
        port: u16,
        /// The program that listens there; may be empty.
        program: String,
        /// Why.
        reason: String,
    },
    /// Something began to listen in the workspace and is forwarded.
    Appeared {
        /// Its port.
        port: u16,
        /// The program; may be empty.
        program: String,
    },
    /// Nothing listens on that port of the workspace any more.
    Vanished {
        /// The port.
        port: u16,
    },
    /// The agent does not tell what listens in the workspace.
    PortsUnknown {
        /// Why.
        reason: String,
    },
    /// The user switched direct paths off.
    RelaysOnly,
    /// The workspace was stopped and is being started.
    StartingWorkspace {
        /// Its name.
        workspace: String,
    },
    /// The workspace is being built; nothing to reach yet.
    WaitingForBuild {
        /// Its name.
        workspace: String,
    },
    /// The agent is not connected to its control plane.
    WaitingForAgent {
        /// Its name.
        agent: String,
        /// What the control plane says about it.
        status: String,
    },
    /// The agent does not answer through the tunnel so far.
    WaitingForTunnel {
        /// Its name.
        agent: String,
    },
    /// The workspace's start-up scripts are not done.
    WaitingForScripts {
        /// Its agent.
        agent: String,
    },
    /// They failed, or take longer than they may. The workspace may lack something.
    ScriptsFailed {
        /// Its agent.
        agent: String,
    },
    /// A local socket is about to be opened.
    Forwarding {
        /// Protocol of both sides.
        proto: Proto,
        /// Where it listens.
        local: SocketAddr,
        /// Port in the workspace.
        remote: u16,
    },
    /// A local socket for many ports is about to be opened.
    ForwardingRange {
        /// Protocol of both sides.
        proto: Proto,
        /// Where it listens.
        address: IpAddr,
        /// The ports there, as they are written in a spec.
        local: String,
        /// Ports in the workspace, in the same form.
        remote: String,
    },
    /// Ranges take a listener for each port.
    PortByPort {
        /// Why.
        reason: String,
    },
    /// Ports of a range are not forwarded: somebody listens there already.
    LeftToOthers {
        /// Protocol.
        proto: Proto,
        /// The range's address.
        address: IpAddr,
        /// The ports, in order.
        ports: Vec<u16>,
    },
    /// All local sockets are open and the tunnel answers; or, the session is open.
    Ready,
    /// A connection could not be made in the workspace; the local one was reset.
    DialFailed {
        /// Port in the workspace.
        remote: u16,
        /// Why.
        reason: String,
    },
    /// A connection could not be made to a Unix socket of the workspace.
    SocketDialFailed {
        /// Its path.
        path: String,
        /// Why.
        reason: String,
    },
    /// A connection that leads back from the workspace found nobody here.
    LocalDialFailed {
        /// Where it leads.
        forward: RemoteForward,
        /// Why.
        reason: String,
    },
    /// The SSH server does not do something that the session can do without.
    SshRefused {
        /// What.
        what: String,
    },
    /// A local socket broke. The others stay.
    ListenerStopped {
        /// Protocol.
        proto: Proto,
        /// Where it listened.
        local: SocketAddr,
        /// Why.
        reason: String,
    },
    /// How the agent is reached from now on.
    Path(Path),
    /// The agent runs on this machine: connections are handed over to it, past the tunnel.
    SameHost,
    /// The agent went away. The local sockets stay.
    AgentLost,
    /// The agent, or the one of the rebuilt workspace, answers.
    AgentBack,
}

/// What happened to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The forward that it belongs to.
    pub row: Arc<Row>,
    /// Its number, from 1 on.
    pub id: u64,
    /// Who made it, where that has an address.
    pub from: Option<SocketAddr>,
    /// What happened.
    pub phase: Phase,
}

/// Where a connection is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It was accepted.
    Opened,
    /// It has ended.
    Closed {
        /// Bytes to the workspace.
        sent: u64,
        /// Bytes from the workspace.
        received: u64,
    },
    /// Nobody took it on the other side.
    Failed {
        /// Why.
        reason: String,
    },
}

/// A way to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// Straight to this address.
    Direct(SocketAddr),
    /// Over the relay of this name.
    Relayed(String),
}

impl fmt::Display for Path {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(address) => write!(out, "direct via {address}"),
            Self::Relayed(name) => write!(out, "relayed via {name}"),
        }
    }
}

impl Event {
    /// Whether it is worth a line for a person. The others are for programs that follow closely.
    pub fn is_for_people(&self) -> bool {
        !matches!(
            self,
            Self::Plan(_) | Self::Listening { .. } | Self::Removed { .. } | Self::Connection(_)
        )
    }
}

impl fmt::Display for Event {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plan(rows) => write!(out, "{} forwards", rows.len()),
            Self::Listening { row, address } => write!(out, "{}: listening on {address}", row.name),
            Self::Removed { row } => write!(out, "{}: removed", row.name),
            Self::Connection(Connection { row, id, phase, .. }) => match phase {
                Phase::Opened => write!(out, "{}: connection {id}", row.name),
                Phase::Closed { .. } => write!(out, "{}: connection {id} ended", row.name),
                Phase::Failed { reason } => write!(out, "{}: connection {id}: {reason}", row.name),
            },
            Self::ForwardingUnix { forward } => write!(
                out,
                "Forwarding '{}' locally to '{}' in the workspace",
                forward.here, forward.there
            ),
            Self::ForwardingBack { forward } => {
                let (there, here) = ends(forward);
                write!(
                    out,
                    "Forwarding '{there}' in the workspace to '{here}' locally"
                )
            }
            Self::BackRefused { forward, reason } => {
                let (there, _) = ends(forward);
                write!(
                    out,
                    "Cannot listen on '{there}' in the workspace for now: {reason}"
                )
            }
            Self::Skipped {
                port,
                program,
                reason,
            } => write!(
                out,
                "Skipping port {port}{} of the workspace: {reason}",
                by(program)
            ),
            Self::Appeared { port, program } => {
                write!(out, "Port {port}{} listens in the workspace", by(program))
            }
            Self::Vanished { port } => {
                write!(out, "Port {port} listens no more in the workspace")
            }
            Self::PortsUnknown { reason } => {
                write!(out, "The agent does not tell what listens: {reason}")
            }
            Self::RelaysOnly => out.write_str("Direct connections are off: using relays only"),
            Self::StartingWorkspace { workspace } => {
                write!(out, "Starting workspace \"{workspace}\"")
            }
            Self::WaitingForBuild { workspace } => {
                write!(out, "Waiting for the build of workspace \"{workspace}\"")
            }
            Self::WaitingForAgent { agent, status } => {
                write!(
                    out,
                    "Waiting for agent \"{agent}\" to connect (now: {status})"
                )
            }
            Self::WaitingForTunnel { agent } => {
                write!(
                    out,
                    "Waiting for agent \"{agent}\" to answer through the tunnel"
                )
            }
            Self::WaitingForScripts { agent } => {
                write!(out, "Waiting for the start-up scripts of agent \"{agent}\"")
            }
            Self::ScriptsFailed { agent } => {
                write!(out, "The start-up scripts of agent \"{agent}\" failed")
            }
            Self::Forwarding {
                proto,
                local,
                remote,
            } => {
                write!(
                    out,
                    "Forwarding '{proto}://{local}' locally to '{proto}://127.0.0.1:{remote}' \
                     in the workspace"
                )
            }
            Self::ForwardingRange {
                proto,
                address,
                local,
                remote,
            } => {
                write!(
                    out,
                    "Forwarding '{proto}://{address}:{local}' locally to \
                     '{proto}://127.0.0.1:{remote}' in the workspace"
                )
            }
            Self::PortByPort { reason } => {
                write!(out, "Listening port by port: {reason}")
            }
            Self::LeftToOthers {
                proto,
                address,
                ports,
            } => {
                write!(
                    out,
                    "Left to other programs of this machine: {proto} {} on {address}",
                    listed(ports)
                )
            }
            Self::Ready => out.write_str("Ready!"),
            Self::DialFailed { remote, reason } => {
                write!(
                    out,
                    "Failed to dial 'tcp://127.0.0.1:{remote}' in workspace: {reason}"
                )
            }
            Self::SocketDialFailed { path, reason } => {
                write!(out, "Failed to dial '{path}' in workspace: {reason}")
            }
            Self::LocalDialFailed { forward, reason } => {
                write!(out, "Failed to dial for remote forward {forward}: {reason}")
            }
            Self::SshRefused { what } => write!(out, "The workspace refuses {what}"),
            Self::ListenerStopped {
                proto,
                local,
                reason,
            } => {
                write!(out, "Stopped listening on '{proto}://{local}': {reason}")
            }
            Self::Path(path) => write!(out, "path: {path}"),
            Self::SameHost => out.write_str("path: same host, connections go past the tunnel"),
            Self::AgentLost => out.write_str("agent lost, waiting"),
            Self::AgentBack => out.write_str("agent back"),
        }
    }
}

/// The two ends of a reverse forward, the workspace's first.
fn ends(forward: &RemoteForward) -> (String, String) {
    match forward {
        RemoteForward::Tcp { remote, host, port } => (
            format!("tcp://{REMOTE_BIND}:{remote}"),
            format!("tcp://{host}:{port}"),
        ),
        RemoteForward::Unix { remote, local } => (remote.clone(), local.display().to_string()),
    }
}

fn by(program: &str) -> String {
    match program {
        "" => String::new(),
        program => format!(" ({program})"),
    }
}

/// Names the first ports, and says how many more there are.
fn listed(ports: &[u16]) -> String {
    const NAMED: usize = 12;
    let named: Vec<_> = ports.iter().take(NAMED).map(u16::to_string).collect();
    match ports.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// Takes events as they happen. Called on the data path's thread: it must not wait.
#[derive(Clone)]
pub struct Reporter(Arc<dyn Fn(&Event) + Send + Sync>);

impl Reporter {
    /// Calls a function for each event.
    pub fn new(report: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(report))
    }

    /// Tells an event.
    pub(crate) fn tell(&self, event: Event) {
        (self.0)(&event);
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Reporter")
    }
}
