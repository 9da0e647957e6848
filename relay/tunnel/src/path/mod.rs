//! Which way packets reach each peer: straight over UDP or through a relay. A state machine without I/O: time and
//! packets come in, packets to send and events come out. What is inside a WireGuard packet is never looked at here.

mod candidate;
mod core;
mod interfaces;
mod keep;
mod local;
mod machine;
mod mtu;
mod peer;
mod reason;
#[cfg(test)]
mod simulation;
mod survey;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use relay_wire::disco::TxId;
use relay_wire::keys::{DiscoPrivate, DiscoPublic, NodePublic};
use uuid::Uuid;

pub use interfaces::interfaces;
pub use machine::Paths;
pub use reason::{Reason, Side};
pub use survey::{Nat, Stun, StunServer, Survey};

/// Names a peer for as long as it lives; what coordination calls it.
pub type PeerId = Uuid;

/// Bit of [`PeerInfo::features`]: the peer answers disco pings of any size, so a path's MTU can be proven.
pub const FEATURE_MTU_PROOF: u64 = 1;

/// Inner MTU that every path carries; larger ones have to be proven.
pub const BASE_MTU: u16 = 1280;

/// What one endpoint's paths have in common.
pub struct PathConfig {
    /// Our disco key.
    pub disco: DiscoPrivate,
    /// Our node key, named in pings.
    pub node: NodePublic,
    /// Whether direct paths are allowed; without them there are no endpoints and no disco on UDP.
    pub direct: bool,
    /// Largest inner MTU worth proving on a direct path.
    pub max_mtu: u16,
    /// Inner MTU towards peers that announce [`FEATURE_MTU_PROOF`] while they are reached through a relay.
    pub relay_mtu: u16,
}

/// What coordination says about a peer.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Its node key, by which relays know it.
    pub node: NodePublic,
    /// Its disco key; without one only relays reach it.
    pub disco: Option<DiscoPublic>,
    /// The relay region it listens on.
    pub home: Option<u16>,
    /// Where it may be reached over UDP.
    pub endpoints: Vec<SocketAddr>,
    /// Extensions it announces, see [`FEATURE_MTU_PROOF`].
    pub features: u64,
}

/// How the next burst for a peer is sent; when both are set, it is sent both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Route {
    /// Over UDP to this address.
    pub direct: Option<SocketAddr>,
    /// Through this relay region, to this node.
    pub relay: Option<(u16, NodePublic)>,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Over UDP.
    Udp(SocketAddr),
    /// Through a relay region.
    Relay(u16, NodePublic),
}

/// A packet this machine wants sent.
#[derive(Clone, Debug)]
pub struct Transmit {
    /// Where to. When sending over UDP fails for a packet that is larger than the link allows, drop the packet and
    /// say nothing: sizes are tried on purpose.
    pub to: Destination,
    /// The bytes.
    pub payload: Vec<u8>,
}

/// What a `relay ping` went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Straight to this address.
    Direct(SocketAddr),
    /// Through this relay region.
    Relay(u16),
}

/// How a peer is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathState {
    /// Straight to this address.
    Direct(SocketAddr),
    /// Through this relay region, and why.
    Relayed(u16, Reason),
    /// Not at all: no address and no relay.
    None,
}

impl PathState {
    /// Whether packets go where they went before, for whatever reason.
    pub fn is_same_way(self, other: PathState) -> bool {
        match (self, other) {
            (PathState::Relayed(one, _), PathState::Relayed(other, _)) => one == other,
            _ => self == other,
        }
    }
}

/// What the endpoint has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The addresses to offer to peers have changed.
    LocalEndpoints(Vec<SocketAddr>),
    /// A peer is reached another way.
    Path {
        /// The peer.
        peer: PeerId,
        /// The way.
        state: PathState,
    },
    /// The largest inner packet towards a peer has changed; told before the path that needs it is used.
    Mtu {
        /// The peer.
        peer: PeerId,
        /// The inner MTU.
        mtu: u16,
    },
    /// A ping of [`Paths::start_ping`] was answered.
    Pong {
        /// Which ping.
        tx: TxId,
        /// How long it took.
        rtt: Duration,
        /// Which way it went.
        via: Via,
    },
}
