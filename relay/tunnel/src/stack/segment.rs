//! Cuts the super-packets that the kernel hands out of a TUN device into IP packets, in place: the
//! header of a segment is written over the end of the segment before it, which is already used.

use super::packet::{
    CWR, FIN, IPV6_HEADER, PSH, TCP, UDP, checksum, length_sum, pseudo_sum, put_u16, put_u32, sum,
    u32_at,
};

/// Bytes of the header in front of each packet on the device.
pub(super) const VNET_HEADER: usize = 10;
/// The longest run of IP and transport headers that is cut or merged.
pub(super) const MAX_HEADERS: usize = 128;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// The device's note on a packet: what is left to do before it may go on a wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct VnetHeader {
    flags: u8,
    gso_type: u8,
    headers: u16,
    gso_size: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl VnetHeader {
    /// A train of TCP segments, or of UDP datagrams, of `gso_size` bytes of payload each.
    pub(super) fn train(protocol: u8, headers: usize, gso_size: usize) -> Self {
        let (gso_type, checksum_offset) = match protocol {
            UDP => (GSO_UDP, 6),
            _ => (GSO_TCP6, 16),
        };
        Self {
            flags: NEEDS_CHECKSUM,
            gso_type,
            headers: headers as u16,
            gso_size: gso_size as u16,
            checksum_start: IPV6_HEADER as u16,
            checksum_offset,
        }
    }

    pub(super) fn to_bytes(self) -> [u8; VNET_HEADER] {
        let mut bytes = [0; VNET_HEADER];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.headers.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.checksum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.checksum_offset.to_ne_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; VNET_HEADER]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            headers: word(2),
            gso_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }

    /// Whether the checksum in the packet covers all it should.
    pub(super) fn is_finished(self) -> bool {
        self.flags & NEEDS_CHECKSUM == 0
    }

    /// The largest IP packet that comes out of `length` bytes.
    pub(super) fn largest(self, length: usize) -> usize {
        match self.gso_type & !GSO_ECN {
            GSO_TCP6 | GSO_UDP => {
                length.min(usize::from(self.headers) + usize::from(self.gso_size))
            }
            _ => length,
        }
    }
}

/// Gives every IP packet that `packet` stands for to `each`, complete with lengths and checksums,
/// and returns their number. What cannot be cut is dropped.
pub(super) fn cut(packet: &mut [u8], note: VnetHeader, each: &mut dyn FnMut(&[u8])) -> usize {
    if packet.len() < IPV6_HEADER || packet[0] >> 4 != 6 {
        return 0;
    }
    match note.gso_type & !GSO_ECN {
        GSO_NONE => whole(packet, note, each),
        GSO_TCP6 => segments(packet, note, TCP, each),
        GSO_UDP => segments(packet, note, UDP, each),
        _ => 0,
    }
}

fn whole(packet: &mut [u8], note: VnetHeader, each: &mut dyn FnMut(&[u8])) -> usize {
    if note.flags & NEEDS_CHECKSUM != 0 {
        let start = usize::from(note.checksum_start);
        let field = start + usize::from(note.checksum_offset);
        if field + 2 > packet.len() {
            return 0;
        }
        // The field already holds the sum of the pseudo header.
        let mut value = checksum(sum(&packet[start..], 0));
        if value == [0, 0] && packet[6] == UDP {
            value = [0xff, 0xff];
        }
        packet[field..field + 2].copy_from_slice(&value);
    }
    each(packet);
    1
}

fn segments(
    packet: &mut [u8],
    note: VnetHeader,
    protocol: u8,
    each: &mut dyn FnMut(&[u8]),
) -> usize {
    let transport = usize::from(note.checksum_start);
    let size = usize::from(note.gso_size);
    let header = match protocol {
        TCP if packet.len() > transport + 12 => usize::from(packet[transport + 12] >> 4) * 4,
        TCP => return 0,
        _ => 8,
    };
    let headers = transport + header;
    let smallest = if protocol == TCP { 20 } else { 8 };
    if transport < IPV6_HEADER
        || header < smallest
        || headers > MAX_HEADERS
        || size == 0
        || packet.len() <= headers
    {
        return 0;
    }
    let mut template = [0; MAX_HEADERS];
    template[..headers].copy_from_slice(&packet[..headers]);
    let template = &template[..headers];
    let payload = packet.len() - headers;
    let pseudo = pseudo_sum(template, protocol);
    let mut at = 0;
    let mut count = 0;
    while at < payload {
        let length = size.min(payload - at);
        let segment = &mut packet[at..at + headers + length];
        segment[..headers].copy_from_slice(template);
        put_u16(segment, 4, (headers - IPV6_HEADER + length) as u16);
        let (first, last) = (at == 0, at + length == payload);
        let field = transport + if protocol == TCP { 16 } else { 6 };
        if protocol == TCP {
            let sequence = u32_at(template, transport + 4).wrapping_add(at as u32);
            put_u32(segment, transport + 4, sequence);
            if !first {
                segment[transport + 13] &= !CWR;
            }
            if !last {
                segment[transport + 13] &= !(FIN | PSH);
            }
        } else {
            put_u16(segment, transport + 4, (header + length) as u16);
        }
        put_u16(segment, field, 0);
        let total = sum(&segment[transport..], pseudo + length_sum(header + length));
        let mut value = checksum(total);
        if value == [0, 0] && protocol == UDP {
            value = [0xff, 0xff];
        }
        segment[field..field + 2].copy_from_slice(&value);
        each(segment);
        at += length;
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::packet::ACK;
    use crate::stack::packet::tests::{checksum_holds, flow, tcp_packet};

    fn cut_all(packet: &[u8], note: VnetHeader) -> Vec<Vec<u8>> {
        let mut packet = packet.to_vec();
        let mut segments = Vec::new();
        cut(&mut packet, note, &mut |segment| {
            segments.push(segment.to_vec())
        });
        segments
    }

    #[test]
    fn tcp_segments_carry_their_own_sequence_flags_and_checksum() {
        let payload: Vec<u8> = (0..2500u32).map(|i| i as u8).collect();
        let large = tcp_packet(flow(80), ACK | PSH | FIN | CWR, u32::MAX - 999, &payload);
        let segments = cut_all(&large, VnetHeader::train(TCP, 60, 1000));
        assert_eq!(segments.len(), 3);
        let flags: Vec<u8> = segments.iter().map(|segment| segment[53]).collect();
        assert_eq!(flags, [ACK | CWR, ACK, ACK | PSH | FIN]);
        let sequences: Vec<u32> = segments.iter().map(|segment| u32_at(segment, 44)).collect();
        assert_eq!(sequences, [u32::MAX - 999, 0, 1000]);
        for segment in &segments {
            assert!(checksum_holds(segment));
            assert_eq!(
                usize::from(segment[4]) << 8 | usize::from(segment[5]),
                segment.len() - 40
            );
        }
        let together: Vec<u8> = segments
            .iter()
            .flat_map(|segment| segment[60..].to_vec())
            .collect();
        assert_eq!(together, payload);
    }

    #[test]
    fn segments_shorter_than_their_headers_come_out_whole() {
        let payload: Vec<u8> = (0..55u8).collect();
        let large = tcp_packet(flow(80), ACK, 7, &payload);
        let segments = cut_all(&large, VnetHeader::train(TCP, 60, 10));
        let together: Vec<u8> = segments
            .iter()
            .flat_map(|segment| segment[60..].to_vec())
            .collect();
        assert_eq!(together, payload);
        assert!(segments.iter().all(|segment| checksum_holds(segment)));
    }

    #[test]
    fn udp_datagrams_get_their_length_and_checksum() {
        let mut large = tcp_packet(flow(53), 0, 0, &[9; 300]);
        large[6] = UDP;
        large.drain(48..60);
        let segments = cut_all(&large, VnetHeader::train(UDP, 48, 128));
        let lengths: Vec<usize> = segments.iter().map(Vec::len).collect();
        assert_eq!(lengths, [176, 176, 92]);
        for segment in &segments {
            assert!(checksum_holds(segment));
            assert_eq!(usize::from(segment[45]), (segment.len() - 40) & 0xff);
        }
    }

    #[test]
    fn nonsense_is_dropped() {
        let packet = tcp_packet(flow(80), ACK, 7, &[1; 100]);
        for note in [
            VnetHeader {
                gso_size: 0,
                ..VnetHeader::train(TCP, 60, 10)
            },
            VnetHeader {
                checksum_start: 9,
                ..VnetHeader::train(TCP, 60, 10)
            },
            VnetHeader {
                checksum_start: 900,
                ..VnetHeader::train(TCP, 60, 10)
            },
            VnetHeader {
                gso_type: 1,
                ..VnetHeader::train(TCP, 60, 10)
            },
            VnetHeader {
                flags: 1,
                checksum_start: 200,
                ..VnetHeader::default()
            },
        ] {
            assert!(cut_all(&packet, note).is_empty(), "{note:?}");
        }
        assert!(cut_all(&[0x45; 80], VnetHeader::default()).is_empty());
        assert!(cut_all(&[0x60; 8], VnetHeader::default()).is_empty());
    }
}
