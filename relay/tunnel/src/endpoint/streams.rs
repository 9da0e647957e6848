//! Ends TCP streams whose peer is gone, by packets that make the kernel find out: nobody would
//! answer its retransmissions any more, and an idle stream would wait for ever.

use std::net::Ipv6Addr;

const PROTO_TCP: u8 = 6;
const IP_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A TCP packet without options or data.
pub(super) type Packet = [u8; IP_HEADER + TCP_HEADER];

/// The ports (source, destination) of a packet that begins a stream.
pub(super) fn opening(packet: &[u8]) -> Option<(u16, u16)> {
    let flags = flags(packet)?;
    (flags & (SYN | ACK) == SYN).then(|| ports(packet))
}

/// The reset that answers `packet`, when it belongs to a stream that had been established.
pub(super) fn reset_for(packet: &[u8]) -> Option<Packet> {
    let flags = flags(packet)?;
    if flags & ACK == 0 || flags & RST != 0 {
        return None;
    }
    let acknowledged = u32::from_be_bytes(packet[48..52].try_into().ok()?);
    let source: [u8; 16] = packet[8..24].try_into().ok()?;
    let destination: [u8; 16] = packet[24..40].try_into().ok()?;
    let (from, to) = ports(packet);
    Some(build(
        destination.into(),
        to,
        source.into(),
        from,
        acknowledged,
        0,
        RST,
    ))
}

/// A packet out of every window, as if from the peer. The kernel answers it with an
/// acknowledgement, and that meets a reset: of the peer's new stack, or of this end
/// ([`reset_for`]) when there is no peer.
pub(super) fn nudge(peer: Ipv6Addr, theirs: u16, own_address: Ipv6Addr, own: u16) -> Packet {
    let far: u32 = rand::random();
    build(peer, theirs, own_address, own, far, far, ACK)
}

fn flags(packet: &[u8]) -> Option<u8> {
    let is_tcp =
        packet.len() >= IP_HEADER + TCP_HEADER && packet[0] >> 4 == 6 && packet[6] == PROTO_TCP;
    is_tcp.then(|| packet[53] & (FIN | SYN | RST | ACK))
}

fn ports(packet: &[u8]) -> (u16, u16) {
    let at = |n: usize| u16::from_be_bytes([packet[n], packet[n + 1]]);
    (at(40), at(42))
}

fn build(
    source: Ipv6Addr,
    source_port: u16,
    destination: Ipv6Addr,
    destination_port: u16,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
) -> Packet {
    let mut packet = [0; IP_HEADER + TCP_HEADER];
    packet[0] = 0x60;
    packet[5] = TCP_HEADER as u8;
    packet[6] = PROTO_TCP;
    packet[7] = 64;
    packet[8..24].copy_from_slice(&source.octets());
    packet[24..40].copy_from_slice(&destination.octets());
    packet[40..42].copy_from_slice(&source_port.to_be_bytes());
    packet[42..44].copy_from_slice(&destination_port.to_be_bytes());
    packet[44..48].copy_from_slice(&sequence.to_be_bytes());
    packet[48..52].copy_from_slice(&acknowledged.to_be_bytes());
    packet[52] = (TCP_HEADER as u8 / 4) << 4;
    packet[53] = flags;
    let pseudo = TCP_HEADER as u32 + u32::from(PROTO_TCP);
    let words = packet[8..]
        .chunks_exact(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let mut sum = pseudo + words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[56..58].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0, 0, 0, 0, 0, 0, 1);
    const B: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0, 0, 0, 0, 0, 0, 2);

    #[test]
    fn a_reset_has_the_sequence_the_kernel_expects() {
        let segment = build(A, 1000, B, 80, 5, 77, ACK);
        let reset = reset_for(&segment).unwrap();
        assert_eq!(reset[44..48], 77u32.to_be_bytes());
        assert_eq!(ports(&reset), (80, 1000));
        assert_eq!(reset_for(&reset), None, "a reset is never answered");
    }

    #[test]
    fn the_first_packet_of_a_stream_is_not_reset() {
        let opening_packet = build(A, 1000, B, 80, 5, 0, SYN);
        assert_eq!(reset_for(&opening_packet), None);
        assert_eq!(opening(&opening_packet), Some((1000, 80)));
        assert_eq!(opening(&build(A, 1000, B, 80, 5, 6, SYN | ACK)), None);
        assert_eq!(opening(&[0x60; 50]), None);
    }

    #[test]
    fn the_checksum_adds_up() {
        let packet = nudge(A, 80, B, 1000);
        let words = packet[8..]
            .chunks_exact(2)
            .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
        let mut sum = TCP_HEADER as u32 + u32::from(PROTO_TCP) + words.sum::<u32>();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        assert_eq!(sum, 0xffff);
    }
}
