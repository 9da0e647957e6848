//! Building packets: one header for a burst of segments, patched for each.

use std::net::{IpAddr, SocketAddr};

use crate::checksum::Sum;
use crate::segment::{
    Ecn, Flags, IPV4_HEADER, IPV6_HEADER, Options, PROTOCOL_TCP, Segment, TCP_HEADER,
};

/// Where outgoing packets are written: the caller's burst.
pub trait PacketSink {
    /// Adds one packet of exactly `length` bytes behind those before it. `write` writes it, once, and
    /// all of it: what is in the room before means nothing.
    fn packet(&mut self, length: usize, write: &mut dyn FnMut(&mut [u8]));
}

/// The caller's bursts, one for each peer.
pub trait Bursts {
    /// Where packets to `peer` are written. It may be asked for a peer that then gets none.
    fn burst_to(&mut self, peer: IpAddr) -> &mut dyn PacketSink;
}

/// One burst for all peers.
pub(crate) struct One<'a>(pub(crate) &'a mut dyn PacketSink);

impl Bursts for One<'_> {
    fn burst_to(&mut self, _peer: IpAddr) -> &mut dyn PacketSink {
        &mut *self.0
    }
}

impl PacketSink for Vec<Vec<u8>> {
    fn packet(&mut self, length: usize, write: &mut dyn FnMut(&mut [u8])) {
        let mut packet = vec![0; length];
        write(&mut packet);
        self.push(packet);
    }
}

/// Whether checksums of TCP are computed and verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksums {
    /// As the RFC says.
    #[default]
    Full,
    /// Neither. Only between two ends that agreed on it and whose packets are authenticated on the
    /// way, as those of a tunnel are.
    Skip,
}

/// The most bytes of headers in front of a payload: IPv6, TCP and 40 bytes of options.
pub(crate) const MAX_HEADERS: usize = IPV6_HEADER + TCP_HEADER + 40;

/// The headers of a run of segments that differ in sequence number, length and flags only.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    bytes: [u8; MAX_HEADERS],
    /// Where the TCP header starts.
    tcp: usize,
    /// Where the payload starts.
    length: usize,
    from: IpAddr,
    to: IpAddr,
    checksums: Checksums,
}

impl Template {
    pub(crate) fn new(
        from: SocketAddr,
        to: SocketAddr,
        ack: u32,
        window: u16,
        options: &Options,
        ecn: Ecn,
        checksums: Checksums,
    ) -> Self {
        let mut bytes = [0; MAX_HEADERS];
        let tcp = ip_header(&mut bytes, from.ip(), to.ip(), PROTOCOL_TCP, ecn);
        let header = &mut bytes[tcp..];
        header[0..2].copy_from_slice(&from.port().to_be_bytes());
        header[2..4].copy_from_slice(&to.port().to_be_bytes());
        header[8..12].copy_from_slice(&ack.to_be_bytes());
        header[14..16].copy_from_slice(&window.to_be_bytes());
        let with_options = TCP_HEADER + write_options(&mut header[TCP_HEADER..], options);
        header[12] = (with_options as u8 / 4) << 4;
        Self {
            bytes,
            tcp,
            length: tcp + with_options,
            from: from.ip(),
            to: to.ip(),
            checksums,
        }
    }

    /// Writes one segment; `fill` gets the room of the payload.
    pub(crate) fn write(
        &self,
        sink: &mut dyn PacketSink,
        seq: u32,
        flags: Flags,
        payload: usize,
        fill: impl Fn(&mut [u8]),
    ) -> usize {
        let total = self.length + payload;
        sink.packet(total, &mut |packet| {
            packet[..self.length].copy_from_slice(&self.bytes[..self.length]);
            fill(&mut packet[self.length..]);
            finish_ip(packet, self.tcp);
            let tcp = &mut packet[self.tcp..];
            tcp[4..8].copy_from_slice(&seq.to_be_bytes());
            tcp[13] = flags.0;
            if self.checksums == Checksums::Full {
                let sum = Sum::default().pseudo(self.from, self.to, PROTOCOL_TCP, tcp.len());
                let sum = sum.add(tcp).finish();
                tcp[16..18].copy_from_slice(&sum);
            }
        });
        total
    }
}

/// Writes an IP header without lengths into `bytes`, and returns its length.
pub(crate) fn ip_header(
    bytes: &mut [u8],
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    ecn: Ecn,
) -> usize {
    const HOPS: u8 = 64;
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes[0] = 0x45;
            bytes[1] = ecn.bits();
            // Don't fragment.
            bytes[6] = 0x40;
            bytes[8] = HOPS;
            bytes[9] = protocol;
            bytes[12..16].copy_from_slice(&from.octets());
            bytes[16..20].copy_from_slice(&to.octets());
            IPV4_HEADER
        }
        (from, to) => {
            bytes[0] = 0x60;
            bytes[1] = ecn.bits() << 4;
            bytes[6] = protocol;
            bytes[7] = HOPS;
            bytes[8..24].copy_from_slice(&as_v6(from));
            bytes[24..40].copy_from_slice(&as_v6(to));
            IPV6_HEADER
        }
    }
}

/// Fills in the lengths of the IP header in front of `packet`, whose payload starts at `payload`.
pub(crate) fn finish_ip(packet: &mut [u8], payload: usize) {
    let total = packet.len();
    if packet[0] >> 4 == 4 {
        packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        packet[10..12].copy_from_slice(&[0, 0]);
        let sum = Sum::default().add(&packet[..payload]).finish();
        packet[10..12].copy_from_slice(&sum);
    } else {
        packet[4..6].copy_from_slice(&((total - payload) as u16).to_be_bytes());
    }
}

fn as_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Writes options, padded to words, and returns their length. Timestamps come first and are padded
/// in front (RFC 7323 appendix A), so that they lie in words.
fn write_options(out: &mut [u8], options: &Options) -> usize {
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        out[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    if let Some(mss) = options.mss {
        put(&[2, 4]);
        put(&mss.to_be_bytes());
    }
    match (options.sack_permitted, options.timestamps.is_some()) {
        (true, true) => put(&[4, 2]),
        (true, false) => put(&[1, 1, 4, 2]),
        (false, true) => put(&[1, 1]),
        (false, false) => {}
    }
    if let Some((value, echo)) = options.timestamps {
        put(&[8, 10]);
        put(&value.to_be_bytes());
        put(&echo.to_be_bytes());
    }
    if let Some(shift) = options.window_scale {
        put(&[1, 3, 3, shift]);
    }
    if !options.sack.is_empty() {
        let blocks = options.sack.as_slice();
        put(&[1, 1, 5, 2 + 8 * blocks.len() as u8]);
        for (start, end) in blocks {
            put(&start.to_be_bytes());
            put(&end.to_be_bytes());
        }
    }
    at
}

/// Bytes that `options` take in a header.
pub(crate) fn options_length(options: &Options) -> usize {
    let mut scratch = [0; 60];
    write_options(&mut scratch, options)
}

/// Bytes of the IP and TCP headers without options between two ends of a family.
pub(crate) fn headers_length(address: IpAddr) -> usize {
    TCP_HEADER
        + match address {
            IpAddr::V4(_) => IPV4_HEADER,
            IpAddr::V6(_) => IPV6_HEADER,
        }
}

/// Answers a segment that belongs to no connection with a reset (RFC 9293 §3.10.7.1); a reset is
/// not answered. Returns whether something was written.
pub fn reset_for(segment: &Segment<'_>, sink: &mut dyn PacketSink) -> bool {
    if segment.flags.has(Flags::RST) {
        return false;
    }
    let (seq, ack, flags) = if segment.flags.has(Flags::ACK) {
        (segment.ack, 0, Flags::RST)
    } else {
        let ack = segment.seq.wrapping_add(segment.length() as u32);
        (0, ack, Flags::RST | Flags::ACK)
    };
    let template = Template::new(
        segment.destination,
        segment.source,
        ack,
        0,
        &Options::default(),
        Ecn::NotCapable,
        Checksums::Full,
    );
    template.write(sink, seq, flags, 0, |_| {});
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Error;
    use crate::segment::SackBlocks;

    fn options() -> impl Strategy<Value = Options> {
        let blocks = prop::collection::vec(any::<(u32, u32)>(), 0..=3);
        (
            any::<Option<u16>>(),
            prop::option::of(0u8..=14),
            any::<bool>(),
            any::<Option<(u32, u32)>>(),
            blocks,
        )
            .prop_map(|(mss, window_scale, sack_permitted, timestamps, blocks)| {
                let is_syn = mss.is_some();
                let mut sack = SackBlocks::default();
                for (start, end) in blocks.into_iter().filter(|_| !is_syn) {
                    sack.push(start, end);
                }
                Options {
                    mss,
                    window_scale: window_scale.filter(|_| is_syn),
                    sack_permitted: sack_permitted && is_syn,
                    timestamps,
                    sack,
                }
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            v6: bool, seq: u32, ack: u32, window: u16, bits: u8, options in options(),
            ecn in 0u8..4, payload in prop::collection::vec(any::<u8>(), 0..100), flip: prop::sample::Index,
        ) {
            let (from, to) = if v6 { ("[fd00::1]:10", "[fd00::2]:20") } else { ("10.0.0.1:10", "10.0.0.2:20") };
            let (source, destination): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let ecn = [Ecn::NotCapable, Ecn::Capable1, Ecn::Capable0, Ecn::Congested][usize::from(ecn)];
            let template = Template::new(source, destination, ack, window, &options, ecn, Checksums::Full);
            let mut sink = Vec::new();
            template.write(&mut sink, seq, Flags(bits), payload.len(), |room| room.copy_from_slice(&payload));
            let expected = Segment {
                source, destination, seq, ack, flags: Flags(bits), window, options, ecn, payload: &payload,
            };
            prop_assert_eq!(Segment::parse(&sink[0], true), Ok(expected));
            // A flipped bit is noticed, except where no checksum of IPv6 reaches.
            let mut packet = sink[0].clone();
            let at = flip.index(packet.len());
            packet[at] ^= 0x10;
            if !v6 || at >= 8 {
                prop_assert!(Segment::parse(&packet, true).is_err());
            }
        }
    }

    #[test]
    fn a_segment_of_no_connection_is_answered_with_a_reset() {
        let (source, destination) = ("10.0.0.1:10", "10.0.0.2:20");
        let segment = Segment {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            seq: 100,
            ack: 7,
            flags: Flags::SYN,
            window: 0,
            options: Options::default(),
            ecn: Ecn::NotCapable,
            payload: &[0; 3],
        };
        let mut sink = Vec::new();
        assert!(reset_for(&segment, &mut sink));
        let answer = Segment::parse(&sink[0], true).unwrap();
        assert_eq!((answer.seq, answer.ack), (0, 104));
        assert_eq!(answer.flags, Flags::RST | Flags::ACK);

        let with_ack = Segment {
            flags: Flags::ACK,
            ..segment
        };
        assert!(reset_for(&with_ack, &mut sink));
        let answer = Segment::parse(&sink[1], true).unwrap();
        assert_eq!((answer.seq, answer.flags), (7, Flags::RST));
        let reset = Segment {
            flags: Flags::RST,
            ..segment
        };
        assert!(!reset_for(&reset, &mut sink));
    }

    #[test]
    fn fragments_and_short_packets_are_refused() {
        assert_eq!(Segment::parse(&[], true), Err(Error::Truncated));
        assert_eq!(Segment::parse(&[0x60; 39], true), Err(Error::Truncated));
        let mut fragment = [0; 40];
        fragment[..10].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x20, 0, 64, 6]);
        assert_eq!(Segment::parse(&fragment, false), Err(Error::NotTcp));
        fragment[6] = 0;
        assert_eq!(Segment::parse(&fragment, false), Err(Error::Truncated));
    }
}
