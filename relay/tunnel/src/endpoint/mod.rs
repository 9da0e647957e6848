//! One end of the tunnel: a key, a stack, a UDP socket and many peers, moved by one loop, or by
//! several with a device, a socket and peers each. Who the peers are is told from above; what the
//! streams carry is none of its business.

mod busy;
mod commands;
mod directory;
mod driver;
mod early;
mod exchange;
mod handle;
mod inbound;
mod local;
mod loops;
mod node;
mod others;
mod outbound;
mod peers;
mod relays;
mod streams;

use std::time::Duration;

use relay_wire::keys::{DiscoPrivate, NodePrivate};
use std::net::Ipv6Addr;
use tokio::sync::mpsc;
use uuid::Uuid;

pub use early::EarlyData;
pub use handle::{Endpoint, PeerStats, Pong};
pub use loops::{MAX_LOOPS, start, usual_loops};
pub use node::{FEATURES, LocalNode, PeerNode};

use crate::Error;
use crate::capture::Capture;
use crate::dial::TlsOptions;
use crate::path::{PathState, PeerId};
use crate::stack::Offloads;

/// The largest inner MTU that is tried: four such packets fill one burst of UDP on loopback.
pub const MAX_MTU: u16 = 16_344;

/// How long the answer to a small message may take on one machine or one switch: what is worth
/// waiting for awake, microseconds.
pub const BUSY_POLL: u64 = 100;

/// Which TCP/IP stack turns packets into streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StackChoice {
    /// The kernel's where it works, otherwise relay's own.
    #[default]
    Auto,
    /// The kernel's, in a namespace of its own.
    Kernel,
    /// relay's own.
    User,
}

impl std::str::FromStr for StackChoice {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "auto" => Ok(StackChoice::Auto),
            "kernel" => Ok(StackChoice::Kernel),
            "user" => Ok(StackChoice::User),
            _ => Err(Error::UnknownStack(name.to_owned())),
        }
    }
}

impl std::fmt::Display for StackChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            StackChoice::Auto => "auto",
            StackChoice::Kernel => "kernel",
            StackChoice::User => "user",
        })
    }
}

/// What an endpoint is made of.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// Its WireGuard key, which relays know it by.
    pub node: NodePrivate,
    /// Its disco key.
    pub disco: DiscoPrivate,
    /// Its addresses in the tunnel; streams and flows come from the first.
    pub addresses: Vec<Ipv6Addr>,
    /// The id its node number follows from.
    pub id: Uuid,
    /// Whether direct paths may be used.
    pub direct: bool,
    /// Speak to relays over WebSocket only.
    pub force_websockets: bool,
    /// Which stack.
    pub stack: StackChoice,
    /// Which offloads may be used.
    pub offloads: Offloads,
    /// TLS settings for relays.
    pub tls: TlsOptions,
    /// The largest tunnel MTU to try for.
    pub max_mtu: u16,
    /// Greet peers at once and keep the tunnel to them open: what clients do.
    pub keepalive: bool,
    /// Loops that share the peers, each with a thread of its own but the first; at most
    /// [`MAX_LOOPS`]. More than one is of use where there are many peers and more than two cores.
    pub loops: u8,
    /// The UDP port of the first loop, any if `None`.
    pub udp_port: Option<u16>,
    /// How long to look for an answer to a small message before sleeping; zero is off. Of use where
    /// the runtime has one thread, which spares small messages a wake-up each.
    pub busy_poll: Duration,
    /// Where the packets inside the tunnel are recorded, if anywhere.
    pub capture: Option<Capture>,
}

impl EndpointConfig {
    /// A configuration with the usual choices.
    pub fn new(node: NodePrivate, disco: DiscoPrivate, addresses: Vec<Ipv6Addr>) -> Self {
        EndpointConfig {
            node,
            disco,
            addresses,
            id: Uuid::nil(),
            direct: true,
            force_websockets: false,
            stack: StackChoice::Auto,
            offloads: Offloads::default(),
            tls: TlsOptions::default(),
            max_mtu: MAX_MTU,
            keepalive: false,
            loops: 1,
            udp_port: None,
            busy_poll: Duration::ZERO,
            capture: None,
        }
    }
}

/// The addresses of a map's STUN servers.
pub(crate) async fn stun_servers(map: &relay_wire::derp_map::DerpMap) -> Vec<std::net::SocketAddr> {
    relays::find_stun_servers(map).await
}

/// Something about the tunnel that a person may want to know.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A peer is reached another way.
    Path {
        /// The peer.
        peer: PeerId,
        /// The way.
        state: PathState,
    },
    /// The home relay is connected, or no longer.
    Relay {
        /// The region.
        region: u16,
        /// Whether it is connected.
        connected: bool,
    },
    /// Said once a cause.
    Warning(String),
}

/// Where an endpoint's [`Event`]s appear. Events that nobody reads are dropped.
pub type EndpointEvents = mpsc::Receiver<Event>;

/// Events kept for a reader that is slow.
const EVENTS: usize = 256;

/// How long the loop waits for work before it gives its buffers back.
const IDLE: Duration = Duration::from_secs(3);
