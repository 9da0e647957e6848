//! Finds neighbours in a burst that the kernel may take as one super-packet, and has them written
//! so. Payloads are never copied, only headers are.

use std::io::IoSlice;

use rustix::io::Errno;

use super::packet::{
    ACK, FIN, IPV6_HEADER, PSH, TCP, UDP, fold, length_sum, pseudo_sum, put_u16, u16_at, u32_at,
};
use super::segment::{MAX_HEADERS, VNET_HEADER, VnetHeader};

/// The most packets that one write takes: the system's limit on pieces of a write is 1,024.
const MAX_PACKETS: usize = 512;
/// The largest super-packet: its length field has 16 bits.
const MAX_BYTES: usize = 65_535;

/// The first packets of a burst, to be written as one.
#[derive(Debug)]
pub(super) struct Train {
    /// How many packets; with one the rest means nothing.
    pub(super) packets: usize,
    /// Bytes of headers each of the packets begins with.
    pub(super) headers: usize,
    start: [u8; VNET_HEADER + MAX_HEADERS],
}

impl Train {
    /// What goes before the payloads: the device's note and the headers of the super-packet.
    pub(super) fn start(&self) -> &[u8] {
        &self.start[..VNET_HEADER + self.headers]
    }

    fn single() -> Self {
        Self {
            packets: 1,
            headers: 0,
            start: [0; VNET_HEADER + MAX_HEADERS],
        }
    }

    /// The longest train at the start of `packets`, which must not be empty.
    pub(super) fn find(packets: &[&[u8]], tcp: bool, udp: bool) -> Self {
        let first = packets[0];
        let Some((protocol, headers)) = shape(first) else {
            return Self::single();
        };
        let allowed = match protocol {
            TCP => tcp && first[53] & !PSH == ACK,
            _ => udp,
        };
        let size = first.len() - headers;
        if !allowed || packets.len() < 2 || size == 0 || headers > MAX_HEADERS {
            return Self::single();
        }
        let mut train = Self::single();
        let mut bytes = first.len();
        let mut flags = if protocol == TCP { first[53] } else { 0 };
        for next in &packets[1..packets.len().min(MAX_PACKETS)] {
            // A push is passed on with the whole: what follows it is here already and makes nothing wait.
            let ended = flags & FIN != 0 || !(bytes - headers).is_multiple_of(size);
            let length = next.len().saturating_sub(headers);
            if ended || length == 0 || length > size || bytes + length > MAX_BYTES {
                break;
            }
            let follows = match protocol {
                TCP => follows_tcp(first, next, headers, bytes - headers),
                _ => follows_udp(first, next),
            };
            if !follows {
                break;
            }
            if protocol == TCP {
                flags |= next[53];
            }
            bytes += length;
            train.packets += 1;
        }
        if train.packets > 1 {
            train.headers = headers;
            train.write_start(first, protocol, size, bytes, flags);
        }
        train
    }

    fn write_start(&mut self, first: &[u8], protocol: u8, size: usize, bytes: usize, flags: u8) {
        let note = VnetHeader::train(protocol, self.headers, size);
        self.start[..VNET_HEADER].copy_from_slice(&note.to_bytes());
        let headers = &mut self.start[VNET_HEADER..VNET_HEADER + self.headers];
        headers.copy_from_slice(&first[..self.headers]);
        let length = bytes - IPV6_HEADER;
        put_u16(headers, 4, length as u16);
        let field = if protocol == TCP {
            headers[53] = flags;
            56
        } else {
            put_u16(headers, 44, length as u16);
            46
        };
        let pseudo = fold(pseudo_sum(headers, protocol) + length_sum(length));
        headers[field..field + 2].copy_from_slice(&pseudo);
    }
}

/// Which packets are merged: fewer as the kernel refuses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Merger {
    pub(super) tcp: bool,
    pub(super) udp: bool,
}

impl Merger {
    /// Gives the pieces of one write after another to `write` until all packets are written.
    /// Packets the kernel has no room for are lost, as on any network.
    pub(super) fn write_all(
        &mut self,
        packets: &[&[u8]],
        write: &mut dyn FnMut(&[IoSlice<'_>]) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut write = |pieces: &[IoSlice<'_>]| match write(pieces) {
            Err(Errno::AGAIN | Errno::NOBUFS) => Ok(()),
            outcome => outcome,
        };
        let mut rest = packets;
        while !rest.is_empty() {
            let train = Train::find(rest, self.tcp, self.udp);
            let (now, later) = rest.split_at(train.packets);
            rest = later;
            if now.len() > 1 {
                let mut pieces = Vec::with_capacity(1 + now.len());
                pieces.push(IoSlice::new(train.start()));
                pieces.extend(
                    now.iter()
                        .map(|packet| IoSlice::new(&packet[train.headers..])),
                );
                match write(&pieces) {
                    Err(Errno::INVAL) => self.switch_off(now[0][6]),
                    outcome => {
                        outcome?;
                        continue;
                    }
                }
            }
            for packet in now {
                let pieces = [IoSlice::new(&[0; VNET_HEADER]), IoSlice::new(packet)];
                match write(&pieces) {
                    // Only the packet itself can be the reason.
                    Err(Errno::INVAL) => {}
                    outcome => outcome?,
                }
            }
        }
        Ok(())
    }

    fn switch_off(&mut self, protocol: u8) {
        let (merging, name) = match protocol {
            UDP => (&mut self.udp, "UDP"),
            _ => (&mut self.tcp, "TCP"),
        };
        *merging = false;
        tracing::warn!(
            "the kernel refuses {name} super-packets on the TUN device: every packet is written \
             by itself from now on, which is slower"
        );
    }
}

/// Protocol and length of the headers of a packet that may travel in a train.
fn shape(packet: &[u8]) -> Option<(u8, usize)> {
    if packet.len() < IPV6_HEADER + 8 || packet[0] >> 4 != 6 {
        return None;
    }
    if usize::from(u16_at(packet, 4)) != packet.len() - IPV6_HEADER {
        return None;
    }
    match packet[6] {
        UDP => Some((UDP, IPV6_HEADER + 8)),
        TCP if packet.len() >= IPV6_HEADER + 20 => {
            let header = usize::from(packet[52] >> 4) * 4;
            let headers = IPV6_HEADER + header;
            (header >= 20 && headers <= packet.len()).then_some((TCP, headers))
        }
        _ => None,
    }
}

/// Whether `next` differs from `first` in nothing but its place in the stream, where it comes
/// `distance` bytes later.
fn follows_tcp(first: &[u8], next: &[u8], headers: usize, distance: usize) -> bool {
    shape(next) == Some((TCP, headers))
        && first[..4] == next[..4]
        && first[6..44] == next[6..44]
        && u32_at(next, 44) == u32_at(first, 44).wrapping_add(distance as u32)
        && first[48..53] == next[48..53]
        && next[53] & !(PSH | FIN) == ACK
        && first[54..56] == next[54..56]
        && first[58..headers] == next[58..headers]
}

fn follows_udp(first: &[u8], next: &[u8]) -> bool {
    shape(next).is_some_and(|(protocol, _)| protocol == UDP)
        && first[..4] == next[..4]
        && first[6..44] == next[6..44]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stack::packet::tests::{flow, tcp_packet};
    use crate::stack::packet::{SYN, put_u32};
    use crate::stack::segment::cut;

    fn refs(packets: &[Vec<u8>]) -> Vec<&[u8]> {
        packets.iter().map(Vec::as_slice).collect()
    }

    fn join(packets: &[Vec<u8>], train: &Train) -> Vec<u8> {
        let mut whole = train.start().to_vec();
        for packet in &packets[..train.packets] {
            whole.extend_from_slice(&packet[train.headers..]);
        }
        whole
    }

    /// A super-packet as the kernel makes it: the checksum field holds the pseudo header's sum.
    fn super_packet(
        protocol: u8,
        flags: u8,
        sequence: u32,
        options: usize,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut packet = tcp_packet(flow(8080), flags, sequence, payload);
        put_u32(&mut packet, 48, 77);
        put_u16(&mut packet, 54, 512);
        let field = if protocol == UDP {
            packet[6] = UDP;
            packet.drain(48..60);
            let length = (packet.len() - 40) as u16;
            put_u16(&mut packet, 44, length);
            46
        } else {
            packet.splice(60..60, (0..options * 4).map(|i| i as u8 | 1));
            packet[52] = (5 + options as u8) << 4;
            56
        };
        let length = packet.len() - 40;
        put_u16(&mut packet, 4, length as u16);
        let pseudo = fold(pseudo_sum(&packet, protocol) + length_sum(length));
        packet[field..field + 2].copy_from_slice(&pseudo);
        packet
    }

    proptest! {
        #[test]
        fn merging_what_was_cut_gives_the_super_packet_back(
            udp in any::<bool>(),
            ending in prop::sample::select(vec![0, PSH, FIN, PSH | FIN]),
            sequence in any::<u32>(),
            options in 0usize..11,
            size in 300usize..9000,
            payload in prop::collection::vec(any::<u8>(), 1..60_000),
        ) {
            prop_assume!(payload.len() > size && payload.len() / size < 500);
            let (protocol, headers) = if udp { (UDP, 48) } else { (TCP, 60 + options * 4) };
            let whole = super_packet(protocol, ACK | ending, sequence, options, &payload);
            let mut packets = Vec::new();
            let count = cut(
                &mut whole.clone(),
                VnetHeader::train(protocol, headers, size),
                &mut |segment| packets.push(segment.to_vec()),
            );
            prop_assert_eq!(count, payload.len().div_ceil(size));
            let train = Train::find(&refs(&packets), true, true);
            prop_assert_eq!(train.packets, count);
            let joined = join(&packets, &train);
            prop_assert_eq!(&joined[..VNET_HEADER], &VnetHeader::train(protocol, headers, size).to_bytes()[..]);
            prop_assert_eq!(&joined[VNET_HEADER..], &whole[..]);
        }

        #[test]
        fn no_bytes_can_make_it_panic(packets in prop::collection::vec(
            prop::collection::vec(any::<u8>(), 0..90), 1..6)) {
            let forced: Vec<Vec<u8>> = packets.into_iter().map(|mut packet| {
                if packet.len() > 53 {
                    packet[0] = 0x60;
                    packet[6] = TCP;
                    let length = (packet.len() - 40) as u16;
                    put_u16(&mut packet, 4, length);
                    packet[53] = ACK;
                }
                packet
            }).collect();
            let train = Train::find(&refs(&forced), true, true);
            prop_assert!(train.packets >= 1 && train.packets <= forced.len());
        }
    }

    fn piece(sequence: u32, flags: u8, length: usize) -> Vec<u8> {
        tcp_packet(flow(80), flags, sequence, &vec![1; length])
    }

    fn length_of(packets: &[Vec<u8>]) -> usize {
        Train::find(&refs(packets), true, true).packets
    }

    #[test]
    fn a_train_ends_where_the_stream_does_not_go_on_evenly() {
        let a = piece(0, ACK, 100);
        assert_eq!(
            length_of(&[a.clone(), piece(100, ACK, 100), piece(200, ACK, 100)]),
            3
        );
        assert_eq!(length_of(&[a.clone(), piece(101, ACK, 100)]), 1, "gap");
        assert_eq!(length_of(&[a.clone(), piece(0, ACK, 100)]), 1, "repetition");
        assert_eq!(length_of(&[a.clone(), piece(100, ACK, 101)]), 1, "longer");
        assert_eq!(length_of(&[a.clone(), piece(100, ACK, 0)]), 1, "empty");
        assert_eq!(
            length_of(&[a.clone(), piece(100, ACK, 50), piece(150, ACK, 100)]),
            2,
            "short"
        );
        assert_eq!(
            length_of(&[a.clone(), piece(100, ACK | PSH, 100), piece(200, ACK, 100)]),
            3,
            "pushed"
        );
        assert_eq!(
            length_of(&[piece(0, ACK | PSH, 100), piece(100, ACK, 100)]),
            2,
            "pushed first"
        );
        let pushed = [piece(0, ACK | PSH, 100), piece(100, ACK, 100)];
        let train = Train::find(&refs(&pushed), true, true);
        assert_eq!(join(&pushed, &train)[VNET_HEADER + 53], ACK | PSH);
        assert_eq!(
            length_of(&[a.clone(), piece(100, ACK | FIN, 10)]),
            2,
            "finished"
        );
        assert_eq!(length_of(&[a.clone(), piece(100, ACK | SYN, 10)]), 1, "SYN");
        let mut other = piece(100, ACK, 100);
        other[43] ^= 1;
        assert_eq!(length_of(&[a.clone(), other]), 1, "other port");
        let mut window = piece(100, ACK, 100);
        window[55] ^= 1;
        assert_eq!(length_of(&[a.clone(), window]), 1, "other window");
        let mut marked = piece(100, ACK, 100);
        marked[1] |= 0x30;
        assert_eq!(length_of(&[a, marked]), 1, "other congestion mark");
    }

    #[test]
    fn a_kernel_that_refuses_super_packets_gets_every_packet_by_itself_and_no_more_of_them() {
        let packets: Vec<Vec<u8>> = (0..3).map(|n| piece(n * 100, ACK, 100)).collect();
        let mut merger = Merger {
            tcp: true,
            udp: true,
        };
        let mut written: Vec<Vec<u8>> = Vec::new();
        let mut attempts = 0;
        let mut write = |pieces: &[IoSlice<'_>]| {
            attempts += 1;
            if pieces[0][1] != 0 {
                return Err(Errno::INVAL);
            }
            written.push(pieces[1].to_vec());
            Err(Errno::AGAIN)
        };
        merger.write_all(&refs(&packets), &mut write).unwrap();
        merger.write_all(&refs(&packets), &mut write).unwrap();
        assert_eq!(attempts, 7);
        assert_eq!(written, [packets.clone(), packets].concat());
        assert_eq!((merger.tcp, merger.udp), (false, true));
        let broken = merger.write_all(&[&[0; 60]], &mut |_| Err(Errno::IO));
        assert_eq!(broken, Err(Errno::IO));
    }

    #[test]
    fn what_is_switched_off_is_not_merged() {
        let packets = [piece(0, ACK, 100), piece(100, ACK, 100)];
        assert_eq!(Train::find(&refs(&packets), false, true).packets, 1);
    }
}
