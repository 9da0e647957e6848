//! One end of the tunnel: a key, a stack, a UDP socket and many peers, moved by one task. Who the
//! peers are is told from above; what the streams carry is none of its business.

mod busy;
mod commands;
mod driver;
mod early;
mod handle;
mod inbound;
mod node;
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
pub use node::{FEATURES, LocalNode, PeerNode};

use crate::dial::TlsOptions;
use crate::path::{PathState, PeerId};
use crate::stack::{NetHelper, Offloads};
use crate::udp::{UdpOffloads, UdpSocket};
use crate::{Error, datagram, stack};

/// The largest inner MTU that is tried: four such packets fill one burst of UDP on loopback.
pub const MAX_MTU: u16 = 16_344;

/// How long the answer to a small message may take on one machine or one switch: what is worth
/// waiting for awake, microseconds.
pub const BUSY_POLL: u64 = 100;

/// Which TCP/IP stack turns packets into streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StackChoice {
    /// The best one that works here.
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
            "user" => Err(Error::UserStack),
            _ => Err(Error::UnknownStack(name.to_owned())),
        }
    }
}

/// What an endpoint is made of.
#[derive(Debug)]
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
    /// The UDP port, any if `None`.
    pub udp_port: Option<u16>,
    /// How long to look for an answer to a small message before sleeping; zero is off. Of use where
    /// the runtime has one thread, which spares small messages a wake-up each.
    pub busy_poll: Duration,
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
            udp_port: None,
            busy_poll: Duration::ZERO,
        }
    }
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

/// Opens an endpoint and starts the task that moves its packets. Must be called inside a tokio
/// runtime; the endpoint closes when the last handle is dropped.
pub fn start(
    config: EndpointConfig,
    helper: NetHelper,
) -> Result<(Endpoint, EndpointEvents), Error> {
    if config.stack == StackChoice::User {
        return Err(Error::UserStack);
    }
    let offloads = UdpOffloads {
        segmentation: config.offloads.udp_send,
        coalescing: config.offloads.udp_receive,
    };
    let udp = UdpSocket::bind(config.udp_port.unwrap_or(0), offloads)?;
    let options = stack::StackOptions {
        mtu: config.max_mtu,
        offloads: config.offloads,
        // Half, so that what several streams send at once still finds room.
        udp_receive_buffer: udp.receive_buffer() / 2,
    };
    let (tun, stack) = stack::start(helper, &config.addresses, options)?;
    let (events, receiver) = mpsc::channel(EVENTS);
    let source = config
        .addresses
        .first()
        .copied()
        .unwrap_or(Ipv6Addr::UNSPECIFIED);
    let (datagrams, outbox, delivery) = datagram::Datagrams::new(source);
    let (commands, inbox) = mpsc::channel(handle::COMMANDS);
    let (node, node_watch) = tokio::sync::watch::channel(None);
    let channels = driver::Channels {
        inbox,
        commands: commands.downgrade(),
        events,
        outbox,
        delivery,
        node,
    };
    let driver = driver::Driver::new(config, udp, tun, stack.clone(), channels);
    let (states, early) = (driver.states(), driver.early.clone());
    let task = tokio::spawn(driver.run());
    let endpoint = Endpoint::new(
        commands, stack, datagrams, node_watch, source, states, early, task,
    );
    Ok((endpoint, receiver))
}

/// How long the loop waits for work before it gives its buffers back.
const IDLE: Duration = Duration::from_secs(3);
