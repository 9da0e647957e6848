//! Disco: the sealed messages by which two nodes find a direct path. They travel over UDP and over relays, told apart
//! from WireGuard by their first six bytes. Source: coder_wire.md §7.3.
//!
//! A packet is magic (6), sender's disco key (32), nonce (24), box. The box holds type, version and payload. Coder pads
//! pings and pongs (version 1) so that an answer proves that packets as big as the tunnel's pass; both forms are read.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::addr::DERP_MAGIC;
use crate::keys::{DiscoPublic, NONCE_LEN, NodePublic, SharedBox, TAG_LEN};
use crate::{Error, Result};

/// First bytes of every disco packet.
pub const MAGIC: [u8; 6] = [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac];
/// Bytes before the box.
pub const HEADER_LEN: usize = MAGIC.len() + 32 + NONCE_LEN;
/// Bytes a packet is longer than its plaintext.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;
/// Plaintext bytes of a padded message that proves the common tunnel MTU (1310 bytes of UDP payload).
pub const PADDED_LEN: usize = 1232;

const PING: u8 = 1;
const PONG: u8 = 2;
const CALL_ME_MAYBE: u8 = 3;
/// Type and version.
const PREFIX_LEN: usize = 2;
const TX_LEN: usize = 12;
/// An address on the wire: IPv6 or IPv4-mapped, and the port.
const ADDRESS_LEN: usize = 18;

/// Identity of a ping; its pong carries the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TxId(pub [u8; TX_LEN]);

/// What a disco packet says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// "Answer me on this path."
    Ping {
        /// Identity, random.
        tx: TxId,
        /// The sender's node key; older senders leave it out.
        node_key: Option<NodePublic>,
    },
    /// The answer to a ping.
    Pong {
        /// The ping's identity.
        tx: TxId,
        /// Where the ping was seen to come from.
        source: SocketAddr,
    },
    /// "Ping me at these addresses", sent over a relay.
    CallMeMaybe {
        /// The sender's endpoints.
        endpoints: Vec<SocketAddr>,
    },
}

/// How big pings and pongs are made. Call-me-maybe is never padded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PayloadSize {
    /// Version 0: as short as it goes.
    V0,
    /// Version 1: zeros up to so many bytes of plaintext; the UDP payload is [`OVERHEAD`] longer.
    Padded(usize),
}

impl PayloadSize {
    /// What Coder's peers send.
    pub const PADDED: Self = Self::Padded(PADDED_LEN);

    /// The padding that makes a UDP payload of `len` bytes.
    pub const fn of_packet(len: usize) -> Self {
        Self::Padded(len.saturating_sub(OVERHEAD))
    }
}

/// True when a packet is disco (or pretends to be).
pub fn is_disco(packet: &[u8]) -> bool {
    packet.len() >= HEADER_LEN && packet.starts_with(&MAGIC)
}

/// The disco key that a packet claims to be from.
pub fn sender(packet: &[u8]) -> Option<DiscoPublic> {
    if !is_disco(packet) {
        return None;
    }
    packet
        .get(MAGIC.len()..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .map(DiscoPublic::from_bytes)
}

/// The packet of a message. `shared` is the box between our key `own` and the receiver's; `nonce` must be random.
pub fn seal(
    message: &Message,
    size: PayloadSize,
    own: &DiscoPublic,
    shared: &SharedBox,
    nonce: [u8; 24],
) -> Vec<u8> {
    let sealed = shared.seal(&nonce, &encode(message, size));
    let mut packet = Vec::with_capacity(HEADER_LEN + sealed.len());
    packet.extend_from_slice(&MAGIC);
    packet.extend_from_slice(own.as_bytes());
    packet.extend_from_slice(&nonce);
    packet.extend_from_slice(&sealed);
    packet
}

/// Opens and reads a packet. `shared` is the box between our key and [`sender`]'s.
pub fn open(packet: &[u8], shared: &SharedBox) -> Result<Message> {
    if !is_disco(packet) {
        return Err(Error::Not("a disco packet"));
    }
    let (header, sealed) = packet.split_at(HEADER_LEN);
    let nonce = header.last_chunk().ok_or(Error::Not("a disco packet"))?;
    decode(
        &shared
            .open(nonce, sealed)
            .map_err(|_| Error::Sealed("a disco packet"))?,
    )
}

/// Plaintext of a message.
pub fn encode(message: &Message, size: PayloadSize) -> Vec<u8> {
    let mut plain = Vec::new();
    let version = u8::from(size != PayloadSize::V0);
    match message {
        Message::Ping { tx, node_key } => {
            plain.extend_from_slice(&[PING, version]);
            plain.extend_from_slice(&tx.0);
            if let Some(key) = node_key {
                plain.extend_from_slice(key.as_bytes());
            }
        }
        Message::Pong { tx, source } => {
            plain.extend_from_slice(&[PONG, version]);
            plain.extend_from_slice(&tx.0);
            put_address(&mut plain, source);
        }
        Message::CallMeMaybe { endpoints } => {
            plain.extend_from_slice(&[CALL_ME_MAYBE, 0]);
            for endpoint in endpoints {
                put_address(&mut plain, endpoint);
            }
            return plain;
        }
    }
    if let PayloadSize::Padded(len) = size {
        plain.resize(plain.len().max(len), 0);
    }
    plain
}

/// Reads a plaintext. Bytes behind a ping or a pong are padding.
pub fn decode(plain: &[u8]) -> Result<Message> {
    let short = |need| Error::Short {
        what: "a disco message",
        need,
        have: plain.len(),
    };
    let &[kind, version, ref payload @ ..] = plain else {
        return Err(short(PREFIX_LEN));
    };
    match kind {
        PING => {
            let tx = *payload
                .first_chunk()
                .ok_or_else(|| short(PREFIX_LEN + TX_LEN))?;
            let node_key = payload[TX_LEN..]
                .first_chunk()
                .copied()
                .map(NodePublic::from_bytes);
            Ok(Message::Ping {
                tx: TxId(tx),
                node_key: node_key.filter(|key| !key.is_zero()),
            })
        }
        PONG => {
            let need = || short(PREFIX_LEN + TX_LEN + ADDRESS_LEN);
            let tx = *payload.first_chunk().ok_or_else(need)?;
            let address = payload[TX_LEN..].first_chunk().ok_or_else(need)?;
            Ok(Message::Pong {
                tx: TxId(tx),
                source: get_address(address),
            })
        }
        CALL_ME_MAYBE => {
            let (addresses, rest) = payload.as_chunks();
            let readable = version == 0 && rest.is_empty();
            let endpoints = if readable {
                addresses.iter().map(get_address).collect()
            } else {
                Vec::new()
            };
            Ok(Message::CallMeMaybe { endpoints })
        }
        kind => Err(Error::UnknownType {
            what: "a disco message",
            kind,
        }),
    }
}

/// The source that a pong names when the ping came over a relay.
pub fn derp_source(region: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(DERP_MAGIC), region)
}

fn put_address(out: &mut Vec<u8>, address: &SocketAddr) {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    out.extend_from_slice(&ip.octets());
    out.extend_from_slice(&address.port().to_be_bytes());
}

fn get_address(bytes: &[u8; ADDRESS_LEN]) -> SocketAddr {
    let (mut ip, mut port) = ([0; 16], [0; 2]);
    ip.copy_from_slice(&bytes[..16]);
    port.copy_from_slice(&bytes[16..]);
    SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), u16::from_be_bytes(port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::DiscoPrivate;

    #[test]
    fn a_padded_ping_has_the_size_asked_for() {
        let (ours, theirs) = (
            DiscoPrivate::from_bytes([1; 32]),
            DiscoPrivate::from_bytes([2; 32]),
        );
        let message = Message::Ping {
            tx: TxId([3; 12]),
            node_key: None,
        };
        for len in [200, 1310, 1452, 8952] {
            let size = PayloadSize::of_packet(len);
            let packet = seal(
                &message,
                size,
                &ours.public(),
                &ours.shared(&theirs.public()),
                [4; 24],
            );
            assert_eq!(packet.len(), len);
            assert_eq!(sender(&packet), Some(ours.public()));
            assert_eq!(
                open(&packet, &theirs.shared(&ours.public())),
                Ok(message.clone())
            );
        }
    }

    #[test]
    fn a_packet_for_another_key_does_not_open() {
        let (ours, theirs) = (
            DiscoPrivate::from_bytes([1; 32]),
            DiscoPrivate::from_bytes([2; 32]),
        );
        let message = Message::CallMeMaybe {
            endpoints: vec![derp_source(999)],
        };
        let packet = seal(
            &message,
            PayloadSize::V0,
            &ours.public(),
            &ours.shared(&theirs.public()),
            [4; 24],
        );
        assert_eq!(
            open(&packet, &ours.shared(&ours.public())),
            Err(Error::Sealed("a disco packet"))
        );
        assert!(open(&packet[..50], &theirs.shared(&ours.public())).is_err());
        assert_eq!(sender(b"\x01\0\0\0 wireguard"), None);
    }
}
