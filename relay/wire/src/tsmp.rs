//! TSMP (IP protocol 99): the ping by which a peer asks, inside the tunnel, whether the other side is there. It must be
//! answered before the packet reaches any TCP/IP stack, for none knows it. Source: coder_wire.md §9.

use std::net::Ipv6Addr;

/// Protocol number in the IPv6 header.
pub const PROTOCOL: u8 = 99;
/// Bytes of a ping packet.
pub const PING_LEN: usize = IP_HEADER_LEN + 9;
/// Bytes of a pong packet.
pub const PONG_LEN: usize = IP_HEADER_LEN + 11;

const IP_HEADER_LEN: usize = 40;
const HOP_LIMIT: u8 = 64;
const PING: u8 = b'p';
const PONG: u8 = b'o';

/// A TSMP packet that was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tsmp {
    /// "Are you there?"
    Ping {
        /// Sender.
        src: Ipv6Addr,
        /// Receiver.
        dst: Ipv6Addr,
        /// Identity, random.
        data: [u8; 8],
    },
    /// "Yes."
    Pong {
        /// Sender.
        src: Ipv6Addr,
        /// Receiver.
        dst: Ipv6Addr,
        /// The ping's identity.
        data: [u8; 8],
        /// Port of the peer API; 0 is none.
        port: u16,
    },
}

/// The packet that asks.
pub fn ping_packet(src: Ipv6Addr, dst: Ipv6Addr, data: [u8; 8]) -> [u8; PING_LEN] {
    let mut packet = packet(src, dst, PING, data);
    packet[4..6].copy_from_slice(&9_u16.to_be_bytes());
    packet
}

/// The packet that answers; `src` is the one asked.
pub fn pong_packet(src: Ipv6Addr, dst: Ipv6Addr, data: [u8; 8], port: u16) -> [u8; PONG_LEN] {
    let mut packet: [u8; PONG_LEN] = packet(src, dst, PONG, data);
    packet[4..6].copy_from_slice(&11_u16.to_be_bytes());
    packet[PING_LEN..].copy_from_slice(&port.to_be_bytes());
    packet
}

/// Reads a whole IPv6 packet; `None` when it is no TSMP ping or pong. A pong may lack the port.
pub fn parse(packet: &[u8]) -> Option<Tsmp> {
    let header = packet.first_chunk::<IP_HEADER_LEN>()?;
    if header[0] >> 4 != 6 || header[6] != PROTOCOL {
        return None;
    }
    let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let (&kind, body) = packet
        .get(IP_HEADER_LEN..IP_HEADER_LEN + len)?
        .split_first()?;
    let (src, dst) = (ip(&header[8..24])?, ip(&header[24..40])?);
    let (&data, rest) = body.split_first_chunk()?;
    match kind {
        PING => Some(Tsmp::Ping { src, dst, data }),
        PONG => {
            let port = rest.first_chunk().copied().map_or(0, u16::from_be_bytes);
            Some(Tsmp::Pong {
                src,
                dst,
                data,
                port,
            })
        }
        _ => None,
    }
}

fn packet<const N: usize>(src: Ipv6Addr, dst: Ipv6Addr, kind: u8, data: [u8; 8]) -> [u8; N] {
    let mut packet = [0; N];
    packet[0] = 6 << 4;
    packet[6] = PROTOCOL;
    packet[7] = HOP_LIMIT;
    packet[8..24].copy_from_slice(&src.octets());
    packet[24..40].copy_from_slice(&dst.octets());
    packet[IP_HEADER_LEN] = kind;
    packet[IP_HEADER_LEN + 1..IP_HEADER_LEN + 9].copy_from_slice(&data);
    packet
}

fn ip(bytes: &[u8]) -> Option<Ipv6Addr> {
    bytes.first_chunk::<16>().copied().map(Ipv6Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_packets_are_left_alone() {
        let (src, dst) = (Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED);
        let mut packet = ping_packet(src, dst, [1; 8]);
        assert_eq!(
            parse(&packet),
            Some(Tsmp::Ping {
                src,
                dst,
                data: [1; 8]
            })
        );
        assert_eq!(parse(&packet[..48]), None);
        packet[40] = b'!';
        assert_eq!(parse(&packet), None);
        packet[40] = b'p';
        packet[6] = 6;
        assert_eq!(parse(&packet), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn a_pong_names_its_port() {
        let (src, dst) = (Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED);
        let packet = pong_packet(src, dst, [1; 8], 4242);
        assert_eq!(
            parse(&packet),
            Some(Tsmp::Pong {
                src,
                dst,
                data: [1; 8],
                port: 4242
            })
        );
    }
}
