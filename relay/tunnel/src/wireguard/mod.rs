//! WireGuard without I/O: who a datagram is from, and per peer the handshake, the keys and the
//! timers. Packets travel in bursts; which path they take is decided elsewhere.

mod burst;
mod handshake;
mod message;
mod noise;
mod peer;
mod session;
#[cfg(test)]
mod tests;
mod window;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use boringtun::noise::Packet;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;

use message::{Data, Message};
use noise::Timestamp;

pub use burst::{Burst, Opened, Run};
pub use peer::{Peer, PeerOptions, PlainOptions};
pub use relay_aead::Implementation as Cipher;

/// Bytes by which a sealed packet is longer than the packet and its padding; large packets have none.
pub const OVERHEAD: usize = 32;

/// Handshake messages a second above which a sender must prove its address by a cookie. A thousand
/// clients whose server restarts stay below it.
const HANDSHAKES_PER_SECOND: u64 = 1000;

/// This end's WireGuard key, shared by all its peers.
pub struct Identity {
    secret: x25519::StaticSecret,
    public: x25519::PublicKey,
    limiter: Arc<RateLimiter>,
    clock: Clock,
    draw: Draw,
    cipher: Cipher,
}

/// Draws the secret of one handshake.
type Draw = fn() -> [u8; 32];

/// What time it is, for handshakes: it never goes back while this runs.
#[derive(Debug, Clone, Copy)]
struct Clock {
    start: Instant,
    /// Since 1970.
    start_time: Duration,
}

impl Clock {
    fn new(start: Instant, time: SystemTime) -> Self {
        let start_time = time.duration_since(SystemTime::UNIX_EPOCH);
        Self {
            start,
            start_time: start_time.unwrap_or_default(),
        }
    }

    /// TAI64N, without leap seconds, as other implementations have it.
    fn timestamp(&self, now: Instant) -> Timestamp {
        const EPOCH: u64 = (1 << 62) + 10;
        let time = self.start_time + now.saturating_duration_since(self.start);
        let mut timestamp = Timestamp::default();
        timestamp[..8].copy_from_slice(&(EPOCH + time.as_secs()).to_be_bytes());
        timestamp[8..].copy_from_slice(&time.subsec_nanos().to_be_bytes());
        timestamp
    }
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
    /// The identity of a private key, with the fastest cipher.
    pub fn new(secret: [u8; 32]) -> Identity {
        Identity::with_cipher(secret, Cipher::best())
    }

    /// The same with a cipher of choice.
    pub fn with_cipher(secret: [u8; 32], cipher: Cipher) -> Identity {
        let secret = x25519::StaticSecret::from(secret);
        let public = x25519::PublicKey::from(&secret);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND));
        Identity {
            secret,
            public,
            limiter,
            clock: Clock::new(Instant::now(), SystemTime::now()),
            draw: rand::random,
            cipher,
        }
    }

    /// Who sent a WireGuard datagram. Nothing is proven yet: opening it does that. `None` for
    /// anything that is no WireGuard message to this key.
    pub fn sender(&self, datagram: &[u8], from: Option<IpAddr>) -> Option<Sender> {
        match Message::parse(datagram)? {
            Message::Data(data) => Some(Sender::Index(data.receiver >> 8)),
            Message::Response(response) => Some(Sender::Index(response.receiver() >> 8)),
            Message::CookieReply(reply) => Some(Sender::Index(reply.receiver() >> 8)),
            Message::Initiation(_) => {
                // The cheap check comes first: who does not know this key costs a hash only.
                self.limiter.reset_count();
                let mut cookie = [0; message::COOKIE_REPLY];
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
    Data::parse(datagram).map(|data| data.receiver >> 8)
}

/// The source of an IP packet, and its length, as its header has it: padding may follow. `None` for
/// anything else.
fn source(packet: &[u8]) -> Option<(IpAddr, usize)> {
    let word = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    let (source, len): (IpAddr, _) = match packet.first()? >> 4 {
        4 => {
            let source = <[u8; 4]>::try_from(packet.get(12..16)?).ok()?;
            (Ipv4Addr::from(source).into(), usize::from(word(2)?))
        }
        6 => {
            let source = <[u8; 16]>::try_from(packet.get(8..24)?).ok()?;
            (Ipv6Addr::from(source).into(), usize::from(word(4)?) + 40)
        }
        _ => return None,
    };
    (20..=packet.len()).contains(&len).then_some((source, len))
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(secret)")
    }
}
