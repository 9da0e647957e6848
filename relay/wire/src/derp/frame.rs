//! The frames of DERP and their bytes.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::{HEADER_LEN, MAGIC};
use crate::keys::{NONCE_LEN, NodePublic};
use crate::{Error, Result};

const SERVER_KEY: u8 = 0x01;
const CLIENT_INFO: u8 = 0x02;
const SERVER_INFO: u8 = 0x03;
const SEND_PACKET: u8 = 0x04;
const RECV_PACKET: u8 = 0x05;
const KEEP_ALIVE: u8 = 0x06;
const NOTE_PREFERRED: u8 = 0x07;
const PEER_GONE: u8 = 0x08;
const PEER_PRESENT: u8 = 0x09;
const FORWARD_PACKET: u8 = 0x0a;
const WATCH_CONNS: u8 = 0x10;
const CLOSE_PEER: u8 = 0x11;
const PING: u8 = 0x12;
const PONG: u8 = 0x13;
const HEALTH: u8 = 0x14;
const RESTARTING: u8 = 0x15;
const KEY_LEN: usize = 32;

/// One frame. Packets are shared slices of what was read, not copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// S→C, first: the relay's key.
    ServerKey(NodePublic),
    /// C→S: who the client is; open it with [`super::handshake::open_client_info`].
    ClientInfo {
        /// The client's key.
        client: NodePublic,
        /// Nonce of the box.
        nonce: [u8; NONCE_LEN],
        /// Sealed JSON.
        sealed: Bytes,
    },
    /// S→C: what the relay grants; open it with [`super::handshake::open_server_info`].
    ServerInfo {
        /// Nonce of the box.
        nonce: [u8; NONCE_LEN],
        /// Sealed JSON.
        sealed: Bytes,
    },
    /// C→S: a packet for another client.
    SendPacket {
        /// Receiver.
        destination: NodePublic,
        /// The packet.
        packet: Bytes,
    },
    /// S→C: a packet from another client.
    RecvPacket {
        /// Sender.
        source: NodePublic,
        /// The packet.
        packet: Bytes,
    },
    /// S→C, about once a minute.
    KeepAlive,
    /// C→S: whether this relay is the client's home.
    NotePreferred(bool),
    /// S→C: a peer is not (any more) at this relay.
    PeerGone {
        /// The peer.
        peer: NodePublic,
        /// Why.
        reason: GoneReason,
    },
    /// S→C, to watchers: a peer connected.
    PeerPresent {
        /// The peer.
        peer: NodePublic,
        /// Its address, when told.
        address: Option<SocketAddr>,
    },
    /// Between relays: a packet passed on.
    ForwardPacket {
        /// Sender.
        source: NodePublic,
        /// Receiver.
        destination: NodePublic,
        /// The packet.
        packet: Bytes,
    },
    /// Between relays: ask for peers' comings and goings.
    WatchConns,
    /// Between relays: drop a peer.
    ClosePeer(NodePublic),
    /// Answer with a pong of the same data.
    Ping([u8; 8]),
    /// The answer to a ping.
    Pong([u8; 8]),
    /// S→C: a problem with this connection; empty means it is over.
    Health(String),
    /// S→C: the relay restarts.
    Restarting {
        /// Reconnect after this long.
        reconnect_in: Duration,
        /// Keep trying for this long.
        try_for: Duration,
    },
    /// A type we do not know; its body was skipped.
    Unknown(u8),
}

/// Why a peer is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GoneReason {
    /// It was here and closed its connection.
    Disconnected,
    /// It is not here; answer to a packet that could not be delivered.
    NotHere,
    /// A reason we do not know.
    Other(u8),
}

impl From<u8> for GoneReason {
    fn from(number: u8) -> Self {
        match number {
            0 => Self::Disconnected,
            1 => Self::NotHere,
            other => Self::Other(other),
        }
    }
}

impl From<GoneReason> for u8 {
    fn from(reason: GoneReason) -> Self {
        match reason {
            GoneReason::Disconnected => 0,
            GoneReason::NotHere => 1,
            GoneReason::Other(other) => other,
        }
    }
}

impl Frame {
    /// Appends the frame's bytes.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::ServerKey(key) => put(out, SERVER_KEY, &[&MAGIC, key.as_bytes()]),
            Self::ClientInfo {
                client,
                nonce,
                sealed,
            } => put(out, CLIENT_INFO, &[client.as_bytes(), nonce, sealed]),
            Self::ServerInfo { nonce, sealed } => put(out, SERVER_INFO, &[nonce, sealed]),
            Self::SendPacket {
                destination,
                packet,
            } => put_send_packet(out, destination, packet),
            Self::RecvPacket { source, packet } => put_recv_packet(out, source, packet),
            Self::KeepAlive => put(out, KEEP_ALIVE, &[]),
            Self::NotePreferred(preferred) => put(out, NOTE_PREFERRED, &[&[u8::from(*preferred)]]),
            Self::PeerGone { peer, reason } => {
                put(out, PEER_GONE, &[peer.as_bytes(), &[u8::from(*reason)]])
            }
            Self::PeerPresent {
                peer,
                address: None,
            } => put(out, PEER_PRESENT, &[peer.as_bytes()]),
            Self::PeerPresent {
                peer,
                address: Some(address),
            } => {
                let ip = match address.ip() {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                put(
                    out,
                    PEER_PRESENT,
                    &[peer.as_bytes(), &ip.octets(), &address.port().to_be_bytes()],
                );
            }
            Self::ForwardPacket {
                source,
                destination,
                packet,
            } => {
                put_forward_packet(out, source, destination, packet);
            }
            Self::WatchConns => put(out, WATCH_CONNS, &[]),
            Self::ClosePeer(peer) => put(out, CLOSE_PEER, &[peer.as_bytes()]),
            Self::Ping(data) => put(out, PING, &[data]),
            Self::Pong(data) => put(out, PONG, &[data]),
            Self::Health(problem) => put(out, HEALTH, &[problem.as_bytes()]),
            Self::Restarting {
                reconnect_in,
                try_for,
            } => {
                put(
                    out,
                    RESTARTING,
                    &[&millis(*reconnect_in), &millis(*try_for)],
                );
            }
            Self::Unknown(kind) => put(out, *kind, &[]),
        }
    }

    /// The frame's bytes alone.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        out.freeze()
    }

    /// Reads a whole body.
    pub(super) fn decode(kind: u8, body: Bytes) -> Result<Self> {
        let mut body = Body(body);
        Ok(match kind {
            SERVER_KEY => {
                if body.array::<8>("a DERP server key")? != MAGIC {
                    return Err(Error::Not("a DERP server's first frame"));
                }
                Self::ServerKey(body.key("a DERP server key")?)
            }
            CLIENT_INFO => Self::ClientInfo {
                client: body.key("DERP client info")?,
                nonce: body.array("DERP client info")?,
                sealed: body.0,
            },
            SERVER_INFO => Self::ServerInfo {
                nonce: body.array("DERP server info")?,
                sealed: body.0,
            },
            SEND_PACKET => Self::SendPacket {
                destination: body.key("a DERP send frame")?,
                packet: body.0,
            },
            RECV_PACKET => Self::RecvPacket {
                source: body.key("a DERP receive frame")?,
                packet: body.0,
            },
            KEEP_ALIVE => Self::KeepAlive,
            NOTE_PREFERRED => Self::NotePreferred(body.array("a DERP preference")? != [0]),
            PEER_GONE => Self::PeerGone {
                peer: body.key("a DERP peer-gone frame")?,
                reason: body.0.first().copied().unwrap_or(0).into(),
            },
            PEER_PRESENT => Self::PeerPresent {
                peer: body.key("a DERP peer-present frame")?,
                address: body.address(),
            },
            FORWARD_PACKET => Self::ForwardPacket {
                source: body.key("a DERP forward frame")?,
                destination: body.key("a DERP forward frame")?,
                packet: body.0,
            },
            WATCH_CONNS => Self::WatchConns,
            CLOSE_PEER => Self::ClosePeer(body.key("a DERP close-peer frame")?),
            PING => Self::Ping(body.array("a DERP ping")?),
            PONG => Self::Pong(body.array("a DERP pong")?),
            HEALTH => Self::Health(String::from_utf8_lossy(&body.0).into_owned()),
            RESTARTING => Self::Restarting {
                reconnect_in: body.duration()?,
                try_for: body.duration()?,
            },
            other => Self::Unknown(other),
        })
    }
}

/// True for types whose body is read; other bodies are skipped without keeping them.
pub(super) fn is_known(kind: u8) -> bool {
    matches!(kind, SERVER_KEY..=FORWARD_PACKET | WATCH_CONNS..=RESTARTING)
}

/// True for the frame of [`Frame::ClientInfo`], which has a limit of its own.
pub(super) fn is_client_info(kind: u8) -> bool {
    kind == CLIENT_INFO
}

/// Appends a [`Frame::SendPacket`] without making one.
pub fn put_send_packet(out: &mut BytesMut, destination: &NodePublic, packet: &[u8]) {
    put(out, SEND_PACKET, &[destination.as_bytes(), packet]);
}

/// Appends a [`Frame::RecvPacket`] without making one.
pub fn put_recv_packet(out: &mut BytesMut, source: &NodePublic, packet: &[u8]) {
    put(out, RECV_PACKET, &[source.as_bytes(), packet]);
}

/// Appends a [`Frame::ForwardPacket`] without making one.
pub fn put_forward_packet(
    out: &mut BytesMut,
    source: &NodePublic,
    destination: &NodePublic,
    packet: &[u8],
) {
    put(
        out,
        FORWARD_PACKET,
        &[source.as_bytes(), destination.as_bytes(), packet],
    );
}

fn put(out: &mut BytesMut, kind: u8, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.reserve(HEADER_LEN + len);
    out.put_u8(kind);
    out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    for part in parts {
        out.put_slice(part);
    }
}

fn millis(duration: Duration) -> [u8; 4] {
    u32::try_from(duration.as_millis())
        .unwrap_or(u32::MAX)
        .to_be_bytes()
}

/// What is left of a frame's body.
struct Body(Bytes);

impl Body {
    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let have = self.0.len();
        let array = *self.0.first_chunk().ok_or(Error::Short {
            what,
            need: N,
            have,
        })?;
        drop(self.0.split_to(N));
        Ok(array)
    }

    fn key(&mut self, what: &'static str) -> Result<NodePublic> {
        self.array::<KEY_LEN>(what).map(NodePublic::from_bytes)
    }

    fn duration(&mut self) -> Result<Duration> {
        let millis = u32::from_be_bytes(self.array("a DERP restart notice")?);
        Ok(Duration::from_millis(millis.into()))
    }

    fn address(&mut self) -> Option<SocketAddr> {
        let ip: [u8; 16] = self.array("").ok()?;
        let port: [u8; 2] = self.array("").ok()?;
        Some(SocketAddr::new(
            Ipv6Addr::from(ip).to_canonical(),
            u16::from_be_bytes(port),
        ))
    }
}
