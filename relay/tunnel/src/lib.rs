//! Packets between a TCP/IP stack and a WireGuard peer: one endpoint is one key, one stack and one
//! UDP socket, with many peers. What a peer may do, and who is a peer, is decided above this crate.

pub mod capture;
pub mod datagram;
pub mod derp;
pub mod dial;
pub mod endpoint;
mod error;
pub mod netcheck;
pub mod path;
pub mod plain;
pub mod stack;
pub mod udp;
pub mod wireguard;

pub use error::Error;
