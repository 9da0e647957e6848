//! TCP segments as they lie in IP packets: a view that is read in place.
//!
//! The view is made here instead of by a packet library because a burst has one header that is
//! patched 64 times, and because the options of a received segment are wanted without copies: both
//! are what such libraries' representations do not offer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::BitOr;

use crate::Error;
use crate::checksum::Sum;

/// Protocol number of TCP.
pub(crate) const PROTOCOL_TCP: u8 = 6;
/// Bytes of an IPv4 header without options.
pub(crate) const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header.
pub(crate) const IPV6_HEADER: usize = 40;
/// Bytes of a TCP header without options.
pub(crate) const TCP_HEADER: usize = 20;

/// The two bits of the IP header for explicit congestion notification (RFC 3168 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ecn {
    /// The sender does not know ECN.
    #[default]
    NotCapable,
    /// ECT(1), which RFC 3168 treats as ECT(0).
    Capable1,
    /// ECT(0).
    Capable0,
    /// A router was congested.
    Congested,
}

impl Ecn {
    fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::NotCapable,
            1 => Self::Capable1,
            2 => Self::Capable0,
            _ => Self::Congested,
        }
    }

    pub(crate) fn bits(self) -> u8 {
        match self {
            Self::NotCapable => 0,
            Self::Capable1 => 1,
            Self::Capable0 => 2,
            Self::Congested => 3,
        }
    }
}

/// The control bits of a segment (RFC 9293 §3.1, RFC 3168 §6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u8);

impl Flags {
    /// No bit.
    pub const NONE: Self = Self(0);
    /// The sender sends no more.
    pub const FIN: Self = Self(0x01);
    /// Synchronize sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Hand the data on at once.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgement number counts.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer counts.
    pub const URG: Self = Self(0x20);
    /// Congestion was seen.
    pub const ECE: Self = Self(0x40);
    /// The congestion window was reduced.
    pub const CWR: Self = Self(0x80);

    /// Whether all bits of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These bits without those of `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Up to four ranges of sequence numbers (RFC 2018 §3), the most recent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SackBlocks {
    blocks: [(u32, u32); 4],
    len: u8,
}

impl SackBlocks {
    /// The most ranges that fit beside timestamps.
    pub const BESIDE_TIMESTAMPS: usize = 3;

    /// Adds a range from its first number to one past its last; a fifth is ignored.
    pub fn push(&mut self, start: u32, end: u32) {
        if let Some(block) = self.blocks.get_mut(usize::from(self.len)) {
            *block = (start, end);
            self.len += 1;
        }
    }

    /// The ranges.
    pub fn as_slice(&self) -> &[(u32, u32)] {
        &self.blocks[..usize::from(self.len)]
    }

    /// Whether there is no range.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The options of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// The largest payload the sender of a SYN takes (RFC 9293 §3.7.1).
    pub mss: Option<u16>,
    /// By how many bits windows are shifted (RFC 7323 §2).
    pub window_scale: Option<u8>,
    /// Whether the sender of a SYN takes selective acknowledgements (RFC 2018 §2).
    pub sack_permitted: bool,
    /// Timestamp and echoed timestamp (RFC 7323 §3).
    pub timestamps: Option<(u32, u32)>,
    /// What arrived out of order.
    pub sack: SackBlocks,
}

/// A TCP segment, with the addresses of its packet. It borrows the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
    /// Number of the first byte (or of the SYN).
    pub seq: u32,
    /// The next number the sender expects; counts with [`Flags::ACK`].
    pub ack: u32,
    /// Control bits.
    pub flags: Flags,
    /// Window, not shifted.
    pub window: u16,
    /// Options.
    pub options: Options,
    /// ECN bits of the packet.
    pub ecn: Ecn,
    /// Data.
    pub payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads the segment of an IP packet. Checksums are verified if `verify`.
    ///
    /// IPv6 extension headers are not walked: inside a tunnel nothing sends TCP behind one.
    pub fn parse(packet: &'a [u8], verify: bool) -> Result<Self, Error> {
        let ip = Ip::parse(packet, verify)?;
        if ip.protocol != PROTOCOL_TCP {
            return Err(Error::NotTcp);
        }
        let tcp = ip.payload;
        if tcp.len() < TCP_HEADER {
            return Err(Error::Truncated);
        }
        let header = usize::from(tcp[12] >> 4) * 4;
        if header < TCP_HEADER || header > tcp.len() {
            return Err(Error::Truncated);
        }
        if verify {
            let sum = Sum::default().pseudo(ip.source, ip.destination, PROTOCOL_TCP, tcp.len());
            if sum.add(tcp).finish() != [0, 0] {
                return Err(Error::Checksum);
            }
        }
        Ok(Self {
            source: SocketAddr::new(ip.source, u16_at(tcp, 0)),
            destination: SocketAddr::new(ip.destination, u16_at(tcp, 2)),
            seq: u32_at(tcp, 4),
            ack: u32_at(tcp, 8),
            flags: Flags(tcp[13]),
            window: u16_at(tcp, 14),
            options: Options::parse(&tcp[TCP_HEADER..header]),
            ecn: ip.ecn,
            payload: &tcp[header..],
        })
    }

    /// The numbers the segment takes: its payload, and one each for SYN and FIN.
    pub fn length(&self) -> u64 {
        let control = u64::from(self.flags.has(Flags::SYN)) + u64::from(self.flags.has(Flags::FIN));
        self.payload.len() as u64 + control
    }
}

impl Options {
    /// Reads options until one does not hold together; what was read until there counts.
    fn parse(mut bytes: &[u8]) -> Self {
        let mut options = Self::default();
        while let Some((&kind, rest)) = bytes.split_first() {
            match kind {
                0 => break,
                1 => {
                    bytes = rest;
                    continue;
                }
                _ => {}
            }
            let length = rest.first().map_or(0, |&length| usize::from(length));
            if length < 2 || length > bytes.len() {
                break;
            }
            options.take(kind, &bytes[2..length]);
            bytes = &bytes[length..];
        }
        options
    }

    fn take(&mut self, kind: u8, value: &[u8]) {
        match (kind, value.len()) {
            (2, 2) => self.mss = Some(u16_at(value, 0)),
            // RFC 7323 §2.3: more than 14 is taken as 14.
            (3, 1) => self.window_scale = Some(value[0].min(14)),
            (4, 0) => self.sack_permitted = true,
            (5, length) if length % 8 == 0 => {
                for block in value.as_chunks::<8>().0 {
                    self.sack.push(u32_at(block, 0), u32_at(block, 4));
                }
            }
            (8, 8) => self.timestamps = Some((u32_at(value, 0), u32_at(value, 4))),
            _ => {}
        }
    }
}

/// What an IP header says of its packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ip<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) ecn: Ecn,
    pub(crate) payload: &'a [u8],
}

impl<'a> Ip<'a> {
    pub(crate) fn parse(packet: &'a [u8], verify: bool) -> Result<Self, Error> {
        match packet.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(packet, verify),
            Some(6) => Self::parse_v6(packet),
            Some(_) => Err(Error::NotTcp),
            None => Err(Error::Truncated),
        }
    }

    fn parse_v4(packet: &'a [u8], verify: bool) -> Result<Self, Error> {
        if packet.len() < IPV4_HEADER {
            return Err(Error::Truncated);
        }
        let header = usize::from(packet[0] & 15) * 4;
        let total = usize::from(u16_at(packet, 2));
        if header < IPV4_HEADER || total < header || total > packet.len() {
            return Err(Error::Truncated);
        }
        // More fragments to come, or not the first one.
        if u16_at(packet, 6) & 0x3fff != 0 {
            return Err(Error::NotTcp);
        }
        if verify && Sum::default().add(&packet[..header]).finish() != [0, 0] {
            return Err(Error::Checksum);
        }
        let address = |at: usize| {
            let octets = [packet[at], packet[at + 1], packet[at + 2], packet[at + 3]];
            IpAddr::V4(Ipv4Addr::from(octets))
        };
        Ok(Self {
            source: address(12),
            destination: address(16),
            protocol: packet[9],
            ecn: Ecn::from_bits(packet[1]),
            payload: &packet[header..total],
        })
    }

    fn parse_v6(packet: &'a [u8]) -> Result<Self, Error> {
        if packet.len() < IPV6_HEADER {
            return Err(Error::Truncated);
        }
        let end = IPV6_HEADER + usize::from(u16_at(packet, 4));
        if end > packet.len() {
            return Err(Error::Truncated);
        }
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&packet[at..at + 16]);
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        Ok(Self {
            source: address(8),
            destination: address(24),
            protocol: packet[6],
            ecn: Ecn::from_bits(packet[1] >> 4),
            payload: &packet[IPV6_HEADER..end],
        })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
