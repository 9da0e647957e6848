//! WireGuard without I/O: who a datagram is from, and per peer the handshake, the keys and the
//! timers. Packets travel in bursts; which path they take is decided elsewhere.

mod burst;
mod peer;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn};
use boringtun::x25519;

pub use burst::{Burst, Opened, Run};
pub use peer::{Peer, PeerOptions, PlainOptions};

/// Bytes by which a sealed packet is longer than the packet and its padding; large packets have none.
pub const OVERHEAD: usize = 32;

/// Handshake messages a second above which a sender must prove its address by a cookie. A thousand
/// clients whose server restarts stay below it.
const HANDSHAKES_PER_SECOND: u64 = 1000;
const TRANSPORT: [u8; 4] = 4u32.to_le_bytes();
const MAC1_COOKIE_ROOM: usize = 64;

/// This end's WireGuard key, shared by all its peers.
pub struct Identity {
    secret: x25519::StaticSecret,
    public: x25519::PublicKey,
    limiter: Arc<RateLimiter>,
}

/// How the sender of a datagram names itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// By the index this end gave the peer (the low 24 bits; see [`PeerOptions::index`]).
    Index(u32),
    /// By its public key, in the first message of a handshake.
    Key([u8; 32]),
}

impl Identity {
    /// The identity of a private key.
    pub fn new(secret: [u8; 32]) -> Identity {
        let secret = x25519::StaticSecret::from(secret);
        let public = x25519::PublicKey::from(&secret);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND));
        Identity {
            secret,
            public,
            limiter,
        }
    }

    /// Who sent a WireGuard datagram. Nothing is proven yet: opening it does that. `None` for
    /// anything that is no WireGuard message to this key.
    pub fn sender(&self, datagram: &[u8], from: Option<IpAddr>) -> Option<Sender> {
        if let Some(index) = transport_index(datagram) {
            return Some(Sender::Index(index));
        }
        match Tunn::parse_incoming_packet(datagram).ok()? {
            Packet::PacketData(data) => Some(Sender::Index(data.receiver_idx >> 8)),
            Packet::HandshakeResponse(response) => Some(Sender::Index(response.receiver_idx >> 8)),
            Packet::PacketCookieReply(reply) => Some(Sender::Index(reply.receiver_idx >> 8)),
            Packet::HandshakeInit(_) => {
                // The cheap check comes first: who does not know this key costs a hash only.
                self.limiter.reset_count();
                let mut cookie = [0; MAC1_COOKIE_ROOM];
                match self.limiter.verify_packet(from, datagram, &mut cookie) {
                    Ok(Packet::HandshakeInit(initiation)) => {
                        parse_handshake_anon(&self.secret, &self.public, &initiation)
                            .ok()
                            .map(|half| Sender::Key(half.peer_static_public))
                    }
                    _ => None,
                }
            }
        }
    }
}

/// The peer index in a transport message, the case that must be fast.
pub fn transport_index(datagram: &[u8]) -> Option<u32> {
    if datagram.len() < OVERHEAD || datagram[..4] != TRANSPORT {
        return None;
    }
    let index = datagram[4..8].try_into().ok().map(u32::from_le_bytes)?;
    Some(index >> 8)
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(secret)")
    }
}
