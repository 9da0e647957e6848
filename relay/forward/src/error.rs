//! What can end a forward, each with what to do about it.

use std::net::{Ipv4Addr, SocketAddr};

use relay_wire::spec::Proto;

/// Why ports cannot be forwarded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A local address that cannot be opened.
    #[error("listen '{proto}://{local}': {reason}")]
    Listen {
        /// Its protocol.
        proto: Proto,
        /// The address.
        local: SocketAddr,
        /// What the operating system says.
        reason: String,
    },
    /// A Unix socket that cannot be opened.
    #[error("listen '{path}': {reason}")]
    ListenUnix {
        /// Its path.
        path: String,
        /// Why not.
        reason: String,
    },
    /// The workspace does not listen for a reverse forward.
    #[error("the workspace does not listen for {forward}: {reason}")]
    BackRefused {
        /// The forward.
        forward: String,
        /// Why not.
        reason: String,
    },
    /// To be removed, and not there.
    #[error("{0} is not forwarded; name it as it was added")]
    NotForwarded(String),
    /// To be removed, and not alone.
    #[error("{forward} is a part of {range}; remove all of it")]
    PartOfRange {
        /// What was named.
        forward: String,
        /// What it belongs to.
        range: String,
    },
    /// The forwarder has ended.
    #[error("nothing is forwarded any more: the forwarder has ended")]
    Ended,
    /// Another process has a range there.
    #[error(
        "{proto} ports of {address} are forwarded by another relay: take another address, such as \
         127.77.0.2"
    )]
    Claimed {
        /// Of this protocol.
        proto: Proto,
        /// The address.
        address: Ipv4Addr,
    },
    /// More sockets than this process may have.
    #[error(
        "{sockets} local sockets are too many, there is room for {room}: {}raise the limit of open \
         files (ulimit -n)",
        own_address(.spec.as_deref())
    )]
    TooManySockets {
        /// How many it would take.
        sockets: u64,
        /// How many there may be.
        room: u64,
        /// What takes one socket instead, where that is possible.
        spec: Option<String>,
    },
    /// The workspace has no agents.
    #[error("workspace \"{0}\" has no agents: is its template meant to be connected to?")]
    NoAgents(String),
    /// There is a choice, and none was made.
    #[error("workspace \"{workspace}\" has several agents; name one of them: {names}")]
    SeveralAgents {
        /// The workspace.
        workspace: String,
        /// What could be given instead.
        names: String,
    },
    /// An agent that is not there.
    #[error("workspace \"{workspace}\" has no agent \"{agent}\"; it has: {names}")]
    UnknownAgent {
        /// The workspace.
        workspace: String,
        /// The name asked for.
        agent: String,
        /// Names that are there.
        names: String,
    },
    /// The workspace does not exist, or not for this user.
    #[error("there is no workspace \"{0}\": see `relay list`")]
    UnknownWorkspace(String),
    /// The workspace is not started, and may not be.
    #[error("workspace \"{0}\" is stopped: start it, or leave out --disable-autostart")]
    Stopped(String),
    /// The workspace is in no state to be started from.
    #[error("workspace \"{workspace}\" is {status}; it must be running")]
    NotRunning {
        /// The workspace.
        workspace: String,
        /// Its state.
        status: String,
    },
    /// The agent is going away.
    #[error("agent \"{agent}\" is {state}: start the workspace again")]
    AgentEnding {
        /// The agent.
        agent: String,
        /// Where it is in its life.
        state: String,
    },
    /// The workspace was stopped while it was in use.
    #[error("workspace \"{0}\" was stopped, and its connections with it")]
    WorkspaceStopped(String),
    /// Nothing takes SSH connections in the workspace.
    #[error(
        "agent \"{0}\" takes no SSH connections: its SSH server is turned off, or it is too old"
    )]
    NoSshServer(String),
    /// The SSH server does not answer.
    #[error("the SSH server of agent \"{agent}\" does not answer: {reason}; try `relay ping`")]
    SshUnreachable {
        /// The agent.
        agent: String,
        /// How the last attempt ended.
        reason: String,
    },
    /// The SSH server does not do what was asked.
    #[error("the workspace's SSH server refuses {0}")]
    SshRefused(String),
    /// The SSH connection broke.
    #[error("the SSH connection is lost: {0}")]
    SshLost(String),
    /// The agent serves no speed tests, or not this one.
    #[error("no speed test with agent \"{agent}\": {reason}")]
    SpeedTest {
        /// The agent.
        agent: String,
        /// What it says, or how the connection ended.
        reason: String,
    },
    /// Standard input or output cannot be used.
    #[error("cannot use {what}: {reason}")]
    Standard {
        /// Which.
        what: &'static str,
        /// What the operating system says.
        reason: String,
    },
    /// Every listener broke.
    #[error("no listener is left: start the command again")]
    NothingLeft,
    /// Talking to the control plane failed.
    #[error(transparent)]
    Control(#[from] relay_control::Error),
    /// The tunnel failed.
    #[error(transparent)]
    Tunnel(#[from] relay_tunnel::Error),
}

fn own_address(spec: Option<&str>) -> String {
    spec.map_or_else(String::new, |spec| {
        format!("give the range an address of its own, which takes one socket as root: {spec}; or ")
    })
}
