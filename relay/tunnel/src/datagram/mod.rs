//! UDP inside the tunnel, without a stack: relay writes and reads the IPv6 and UDP headers itself,
//! fragments what exceeds the tunnel's MTU and puts fragments together again.

mod fragment;
mod hub;
mod packet;
#[cfg(test)]
mod tests;

use std::net::SocketAddrV6;

use bytes::Bytes;

pub use fragment::{Fragments, Reassembler};
pub use hub::{Datagrams, Flow};
pub(crate) use hub::{Delivery, Home, Outbox};
pub use packet::{PROTO_FRAGMENT, PROTO_UDP, build, destination, next_header, parse, source};

/// The largest payload of one datagram.
pub const MAX_PAYLOAD: usize = 65_507;
/// The largest payload towards a peer that takes no fragments: what 1280 bytes hold.
pub const MAX_UNFRAGMENTED: usize = 1232;

/// One UDP datagram inside the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Sender.
    pub source: SocketAddrV6,
    /// Receiver.
    pub destination: SocketAddrV6,
    /// What it carries.
    pub payload: Bytes,
}
