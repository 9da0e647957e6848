//! The little of IPv6, TCP and ICMPv6 the stack looks at and writes: headers, flows, checksums,
//! and the packets it answers with. No state and no I/O.

use std::net::Ipv6Addr;

pub(super) use relay_tcp::sum_of_words as sum;

pub(super) const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
/// No path of IPv6 may be smaller.
pub(super) const MIN_MTU: usize = 1280;

pub(super) const HOP_BY_HOP: u8 = 0;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
pub(super) const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const CWR: u8 = 0x80;

const PACKET_TOO_BIG: u8 = 2;

/// A TCP connection as the packets of the peer that opened it name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) source: Ipv6Addr,
    pub(super) source_port: u16,
    pub(super) destination: Ipv6Addr,
    pub(super) destination_port: u16,
}

/// What a packet turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parsed {
    /// A whole TCP segment.
    Tcp {
        flow: Flow,
        flags: u8,
        sequence: u32,
        /// Where the TCP header starts.
        offset: usize,
    },
    /// A piece of a TCP segment.
    TcpFragment,
    /// Anything else that is IPv6.
    Other,
    /// Not a well-formed IPv6 packet.
    Malformed,
}

/// Reads as much of `packet` as accepting on demand needs, extension headers included.
pub(super) fn parse(packet: &[u8]) -> Parsed {
    if packet.len() < IPV6_HEADER || packet[0] >> 4 != 6 {
        return Parsed::Malformed;
    }
    let mut protocol = packet[6];
    let mut offset = IPV6_HEADER;
    let mut fragment = false;
    loop {
        match protocol {
            TCP if fragment => return Parsed::TcpFragment,
            TCP => return tcp(packet, offset),
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT | AUTHENTICATION => {}
            _ => return Parsed::Other,
        }
        let Some(extension) = packet.get(offset..offset + 8) else {
            return Parsed::Malformed;
        };
        offset += match protocol {
            FRAGMENT => {
                fragment = true;
                8
            }
            AUTHENTICATION => (usize::from(extension[1]) + 2) * 4,
            _ => (usize::from(extension[1]) + 1) * 8,
        };
        protocol = extension[0];
    }
}

fn tcp(packet: &[u8], offset: usize) -> Parsed {
    let Some(header) = packet.get(offset..offset + TCP_HEADER) else {
        return Parsed::Malformed;
    };
    Parsed::Tcp {
        flow: Flow {
            source: address(packet, 8),
            source_port: u16_at(header, 0),
            destination: address(packet, 24),
            destination_port: u16_at(header, 2),
        },
        flags: header[13],
        sequence: u32_at(header, 4),
        offset,
    }
}

/// The address at `at`: 8 is the source, 24 the destination.
pub(super) fn address(packet: &[u8], at: usize) -> Ipv6Addr {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&packet[at..at + 16]);
    bytes.into()
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub(super) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Folds a sum to 16 bits, ready to be stored as it is.
pub(super) fn fold(sum: u64) -> [u8; 2] {
    let mut sum = (sum >> 32) + (sum & 0xffff_ffff);
    sum = (sum >> 32) + (sum & 0xffff_ffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    sum = (sum >> 16) + (sum & 0xffff);
    (sum as u16).to_ne_bytes()
}

/// The complement of a folded sum: what a checksum field carries.
pub(super) fn checksum(sum: u64) -> [u8; 2] {
    fold(sum).map(|byte| !byte)
}

/// The part of the pseudo header that all segments of one flow share.
pub(super) fn pseudo_sum(packet: &[u8], protocol: u8) -> u64 {
    sum(
        &packet[8..IPV6_HEADER],
        u64::from(u16::from(protocol).to_be()),
    )
}

/// A length as the pseudo header adds it.
pub(super) fn length_sum(length: usize) -> u64 {
    u64::from((length as u32).to_be())
}

/// The bytes of data that a TCP packet carries, whose header starts at `offset`.
fn payload(packet: &[u8], offset: usize) -> usize {
    let data_offset = usize::from(packet[offset + 12] >> 4) * 4;
    packet.len().saturating_sub(offset + data_offset)
}

/// The sequence number of a SYN that carries data.
pub(super) fn early_data(syn: &[u8]) -> Option<u32> {
    match parse(syn) {
        Parsed::Tcp {
            sequence, offset, ..
        } => (payload(syn, offset) > 0).then_some(sequence),
        _ => None,
    }
}

/// Takes the data out of a SYN; its sender sends it again once the connection is open.
pub(super) fn without_data(mut syn: Vec<u8>) -> Vec<u8> {
    if let Parsed::Tcp { offset, .. } = parse(&syn) {
        syn.truncate(syn.len() - payload(&syn, offset));
        let length = syn.len() - IPV6_HEADER;
        put_u16(&mut syn, 4, length as u16);
        put_u16(&mut syn, offset + 16, 0);
        let total = pseudo_sum(&syn, TCP) + length_sum(syn.len() - offset);
        let sum = checksum(sum(&syn[offset..], total));
        syn[offset + 16..offset + 18].copy_from_slice(&sum);
    }
    syn
}

/// The RST|ACK that says to the sender of `syn` that nothing listens there.
pub(super) fn reset_for(syn: &[u8]) -> Option<Vec<u8>> {
    let Parsed::Tcp {
        flow,
        flags,
        sequence,
        offset,
    } = parse(syn)
    else {
        return None;
    };
    let payload = payload(syn, offset) as u32;
    let counted = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let mut packet = header(TCP, TCP_HEADER, flow.destination, flow.source);
    let tcp = IPV6_HEADER;
    put_u16(&mut packet, tcp, flow.destination_port);
    put_u16(&mut packet, tcp + 2, flow.source_port);
    let acknowledged = sequence.wrapping_add(payload).wrapping_add(counted);
    put_u32(&mut packet, tcp + 8, acknowledged);
    packet[tcp + 12] = (TCP_HEADER as u8 / 4) << 4;
    packet[tcp + 13] = RST | ACK;
    finish(&mut packet, TCP, tcp + 16);
    Some(packet)
}

/// The ICMPv6 message that tells the sender of `packet` how large its packets may be.
pub(super) fn too_big_for(packet: &[u8], mtu: u16) -> Vec<u8> {
    let quoted = &packet[..packet.len().min(MIN_MTU - IPV6_HEADER - 8)];
    let mut answer = header(
        ICMPV6,
        8 + quoted.len(),
        address(packet, 24),
        address(packet, 8),
    );
    answer[IPV6_HEADER] = PACKET_TOO_BIG;
    put_u32(&mut answer, IPV6_HEADER + 4, u32::from(mtu));
    answer[IPV6_HEADER + 8..].copy_from_slice(quoted);
    finish(&mut answer, ICMPV6, IPV6_HEADER + 2);
    answer
}

fn header(protocol: u8, payload: usize, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let mut packet = vec![0; IPV6_HEADER + payload];
    packet[0] = 0x60;
    put_u16(&mut packet, 4, payload as u16);
    packet[6] = protocol;
    packet[7] = 64;
    packet[8..24].copy_from_slice(&source.octets());
    packet[24..40].copy_from_slice(&destination.octets());
    packet
}

fn finish(packet: &mut [u8], protocol: u8, field: usize) {
    let total = pseudo_sum(packet, protocol) + length_sum(packet.len() - IPV6_HEADER);
    let sum = checksum(sum(&packet[IPV6_HEADER..], total));
    packet[field..field + 2].copy_from_slice(&sum);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A TCP packet with the payload given and a complete checksum.
    pub(in super::super) fn tcp_packet(
        flow: Flow,
        flags: u8,
        sequence: u32,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut packet = header(
            TCP,
            TCP_HEADER + payload.len(),
            flow.source,
            flow.destination,
        );
        put_u16(&mut packet, 40, flow.source_port);
        put_u16(&mut packet, 42, flow.destination_port);
        put_u32(&mut packet, 44, sequence);
        packet[52] = 5 << 4;
        packet[53] = flags;
        packet[60..].copy_from_slice(payload);
        finish(&mut packet, TCP, 56);
        packet
    }

    pub(in super::super) fn flow(port: u16) -> Flow {
        Flow {
            source: "fd7a:115c:a1e0::1".parse().unwrap(),
            source_port: 40000,
            destination: "fd7a:115c:a1e0::2".parse().unwrap(),
            destination_port: port,
        }
    }

    /// A receiver's check: the sum over pseudo header and segment, checksum included, is all ones.
    pub(in super::super) fn checksum_holds(packet: &[u8]) -> bool {
        let protocol = packet[6];
        let total = pseudo_sum(packet, protocol) + length_sum(packet.len() - IPV6_HEADER);
        fold(sum(&packet[IPV6_HEADER..], total)) == [0xff, 0xff]
    }

    #[test]
    fn the_sum_does_not_depend_on_how_the_bytes_are_grouped() {
        let bytes: Vec<u8> = (0..1001u32).map(|i| (i * 7 + 3) as u8).collect();
        let mut slow = 0u64;
        for pair in bytes.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            slow += u64::from(u16::from_be_bytes([pair[0], low]));
        }
        while slow > 0xffff {
            slow = (slow >> 16) + (slow & 0xffff);
        }
        assert_eq!(fold(sum(&bytes, 0)), (slow as u16).to_be_bytes());
    }

    #[test]
    fn a_reset_acknowledges_the_syn_and_its_data() {
        let syn = tcp_packet(flow(80), SYN, 99, b"early");
        let reset = reset_for(&syn).unwrap();
        assert!(checksum_holds(&reset));
        let Parsed::Tcp {
            flow: back, flags, ..
        } = parse(&reset)
        else {
            panic!("not TCP");
        };
        assert_eq!(flags, RST | ACK);
        assert_eq!(back.destination_port, 40000);
        assert_eq!(u32_at(&reset, 48), 105);
    }

    #[test]
    fn a_syn_without_its_data_is_the_same_request() {
        let syn = tcp_packet(flow(80), SYN, 7, b"request");
        assert_eq!(early_data(&syn), Some(7));
        let bare = without_data(syn);
        assert!(checksum_holds(&bare));
        assert_eq!(bare, tcp_packet(flow(80), SYN, 7, b""));
        assert_eq!(early_data(&bare), None);
    }

    #[test]
    fn too_big_quotes_the_packet_within_the_smallest_mtu() {
        let large = tcp_packet(flow(80), ACK, 1, &[7; 4000]);
        let answer = too_big_for(&large, 1400);
        assert_eq!(answer.len(), MIN_MTU);
        assert!(checksum_holds(&answer));
        assert_eq!(u32_at(&answer, 44), 1400);
        assert_eq!(answer[48..100], large[..52]);
    }

    #[test]
    fn tcp_is_found_behind_extension_headers_and_fragments_are_named() {
        let plain = tcp_packet(flow(22), SYN, 5, b"");
        let mut hidden = plain[..40].to_vec();
        hidden[6] = DESTINATION_OPTIONS;
        hidden.extend_from_slice(&[TCP, 0, 1, 4, 0, 0, 0, 0]);
        hidden.extend_from_slice(&plain[40..]);
        assert!(matches!(
            parse(&hidden),
            Parsed::Tcp {
                offset: 48,
                flags: SYN,
                ..
            }
        ));
        hidden[6] = FRAGMENT;
        assert_eq!(parse(&hidden), Parsed::TcpFragment);
        hidden.truncate(44);
        assert_eq!(parse(&hidden), Parsed::Malformed);
        assert_eq!(parse(&[0x45; 60]), Parsed::Malformed);
    }
}
