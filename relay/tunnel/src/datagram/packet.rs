//! IPv6 and UDP headers.

use std::net::{Ipv6Addr, SocketAddrV6};

/// IPv6 next-header number of UDP.
pub const PROTO_UDP: u8 = 17;
/// IPv6 next-header number of the fragment header.
pub const PROTO_FRAGMENT: u8 = 44;

pub(super) const IP_HEADER: usize = 40;
pub(super) const UDP_HEADER: usize = 8;
const HOP_LIMIT: u8 = 64;

/// Writes the IPv6 packet of one datagram into `out`, replacing what was there. The payload must
/// not exceed [`super::MAX_PAYLOAD`].
pub fn build(out: &mut Vec<u8>, source: SocketAddrV6, destination: SocketAddrV6, payload: &[u8]) {
    out.clear();
    let length = u16::try_from(UDP_HEADER + payload.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&[0x60, 0, 0, 0]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&[PROTO_UDP, HOP_LIMIT]);
    out.extend_from_slice(&source.ip().octets());
    out.extend_from_slice(&destination.ip().octets());
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(payload);
    let sum = match checksum(out) {
        0 => 0xffff,
        sum => sum,
    };
    out[IP_HEADER + 6..IP_HEADER + 8].copy_from_slice(&sum.to_be_bytes());
}

/// Reads a UDP packet: sender, receiver, payload. `None` when it is none, or damaged.
pub fn parse(packet: &[u8]) -> Option<(SocketAddrV6, SocketAddrV6, &[u8])> {
    if next_header(packet)? != PROTO_UDP {
        return None;
    }
    let udp = &packet[IP_HEADER..];
    let length = usize::from(be16(udp, 4)?);
    if length < UDP_HEADER || length > udp.len() || be16(udp, 6)? == 0 {
        return None;
    }
    if checksum(&packet[..IP_HEADER + length]) != 0 {
        return None;
    }
    let from = SocketAddrV6::new(source(packet)?, be16(udp, 0)?, 0, 0);
    let to = SocketAddrV6::new(destination(packet)?, be16(udp, 2)?, 0, 0);
    Some((from, to, &udp[UDP_HEADER..length]))
}

/// The source address of an IPv6 packet.
pub fn source(packet: &[u8]) -> Option<Ipv6Addr> {
    address(packet, 8)
}

/// The destination address of an IPv6 packet.
pub fn destination(packet: &[u8]) -> Option<Ipv6Addr> {
    address(packet, 24)
}

/// The next-header number of an IPv6 packet.
pub fn next_header(packet: &[u8]) -> Option<u8> {
    let is_ipv6 = packet.len() >= IP_HEADER && packet[0] >> 4 == 6;
    is_ipv6.then(|| packet[6])
}

fn address(packet: &[u8], at: usize) -> Option<Ipv6Addr> {
    next_header(packet)?;
    let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
    Some(bytes.into())
}

pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The Internet checksum of a UDP packet with its pseudo header; 0 when the field in it is right.
fn checksum(packet: &[u8]) -> u16 {
    let length = (packet.len() - IP_HEADER) as u64;
    let mut sum = length + u64::from(PROTO_UDP);
    let mut words = packet[8..].chunks_exact(4);
    for word in &mut words {
        sum += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let mut last = [0; 4];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    sum += u64::from(u32::from_be_bytes(last));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
