//! What happens while ports are forwarded, for whoever shows it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use relay_wire::remote_forward::RemoteForward;
use relay_wire::spec::Proto;

/// Something worth telling the user. Its text is the line that the command line prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
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
    /// The agent went away. The local sockets stay.
    AgentLost,
    /// The agent, or the one of the rebuilt workspace, answers.
    AgentBack,
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

impl fmt::Display for Event {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
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
            Self::AgentLost => out.write_str("agent lost, waiting"),
            Self::AgentBack => out.write_str("agent back"),
        }
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
