//! The server's own way into workspaces: streams to ports of an agent's loopback, through a tunnel
//! of which the server is one end like any client.

mod keeper;
mod listening;
mod plan;
mod tunnels;

use std::io;

use futures_util::future::{self, BoxFuture};
use relay_tunnel::path::PathState;
use tokio::net::TcpStream;
use uuid::Uuid;

pub(crate) use listening::{ListenError, listening_ports};
pub(crate) use tunnels::{Setup, Tunnels};

/// Opens streams to agents.
pub trait Dial: Send + Sync + 'static {
    /// A stream to a port of the agent's loopback; bounded in time.
    fn dial(&self, agent: Uuid, port: u16) -> BoxFuture<'_, Result<TcpStream, DialError>>;

    /// How the agent is reached at the moment; `None` without a tunnel to it.
    fn path(&self, agent: Uuid) -> Option<PathState>;

    /// Ends the tunnels to all agents that are not among these.
    fn keep_only(&self, _agents: &[Uuid]) {}
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// This server has no end of a tunnel.
    #[error("this server cannot open tunnels: {0}")]
    NoStack(String),
    /// The agent has no session with this server.
    #[error("the agent is not connected")]
    NotConnected,
    /// Nothing listens on the port.
    #[error("nothing listens on the port")]
    Refused,
    /// No answer came.
    #[error("the agent does not answer")]
    TimedOut,
    /// Anything else.
    #[error("the connection through the tunnel failed: {0}")]
    Io(io::Error),
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Io(error),
        }
    }
}

/// Where a tunnel cannot be had: every dial says why.
pub(crate) struct NoTunnels(pub(crate) String);

impl Dial for NoTunnels {
    fn dial(&self, _agent: Uuid, _port: u16) -> BoxFuture<'_, Result<TcpStream, DialError>> {
        Box::pin(future::ready(Err(DialError::NoStack(self.0.clone()))))
    }

    fn path(&self, _agent: Uuid) -> Option<PathState> {
        None
    }
}
