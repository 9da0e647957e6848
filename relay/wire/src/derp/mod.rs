//! DERP: the relay protocol. Frames are a type byte, a length (32 bits, big endian) and a body. Source: coder_wire.md §8.
//!
//! Opening, after the HTTP upgrade: [`Frame::ServerKey`] from the server, [`Frame::ClientInfo`] from the client,
//! [`Frame::ServerInfo`] from the server ([`handshake`]). After that the client sends packets to node keys, and the
//! server hands each to the newest connection of that key.

mod decoder;
mod frame;
pub mod handshake;

pub use decoder::{Decoder, Limits};
pub use frame::{Frame, GoneReason, put_forward_packet, put_recv_packet, put_send_packet};

/// Version of the protocol.
pub const PROTOCOL_VERSION: u32 = 2;
/// First bytes of the server key's body.
pub const MAGIC: [u8; 8] = [0x44, 0x45, 0x52, 0x50, 0xf0, 0x9f, 0x94, 0x91];
/// Most bytes of a relayed packet.
pub const MAX_PACKET: usize = 65536;
/// Bytes of a frame before its body.
pub const HEADER_LEN: usize = 5;
