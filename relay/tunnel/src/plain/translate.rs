//! IPv4 inside the tunnel over a stack that speaks IPv6: packets are translated without state, as
//! RFC 7915 says. IPv4 addresses appear to the stack below a prefix of the range for local use
//! (RFC 8215) that adds nothing to checksums, so that TCP and UDP pass as they are.

use std::net::{Ipv4Addr, Ipv6Addr};

/// 64:ff9b:1:fffe::/96.
const PREFIX: [u8; 12] = [0, 0x64, 0xff, 0x9b, 0, 1, 0xff, 0xfe, 0, 0, 0, 0];

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const FRAGMENT_HEADER: usize = 8;
/// By how much a packet grows when it becomes one of IPv6 (fragments: by 8 more).
pub(super) const GROWTH: u16 = (V6_HEADER - V4_HEADER) as u16;
/// What every IPv6 link carries.
const V6_MIN_MTU: u16 = 1280;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;

const SYN: u8 = 2;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// What the stack knows an IPv4 address by.
pub(super) fn map(address: Ipv4Addr) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..12].copy_from_slice(&PREFIX);
    octets[12..].copy_from_slice(&address.octets());
    octets.into()
}

/// The IPv4 address that the stack knows by this one.
pub(super) fn unmap(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = address.octets();
    let last: [u8; 4] = octets.strip_prefix(&PREFIX)?.try_into().ok()?;
    Some(last.into())
}

/// Where packets are too large for the way, and how large they may be, if `packet` says that
/// (RFC 4443 §3.2).
pub(super) fn too_big(packet: &[u8]) -> Option<(Ipv6Addr, u16)> {
    const TOO_BIG: u8 = 2;
    const MESSAGE: usize = 40;
    const INNER: usize = MESSAGE + 8;
    let is_that = packet.len() >= INNER + 40 && packet[6] == 58 && packet[MESSAGE] == TOO_BIG;
    let mtu = packet.get(MESSAGE + 4..INNER).filter(|_| is_that)?;
    let mtu = u32::from_be_bytes(mtu.try_into().ok()?);
    let to: [u8; 16] = packet[INNER + 24..INNER + 40].try_into().ok()?;
    Some((to.into(), u16::try_from(mtu).unwrap_or(u16::MAX)))
}

/// Makes an IPv4 packet of the stack's, behind what is in `out`. False when it is of no kind that
/// goes through: nothing is added then.
pub(super) fn to_v4(packet: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let done = write_v4(packet, out).is_some();
    if !done {
        out.truncate(start);
    }
    done
}

fn write_v4(packet: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let length = usize::from(be16(packet, 4)?);
    let mut payload = packet.get(V6_HEADER..V6_HEADER + length)?;
    let (from, to) = (
        unmap(v6_address(packet, 8)?)?,
        unmap(v6_address(packet, 24)?)?,
    );
    let mut protocol = packet[6];
    let (mut id, mut fragment) = (0, DONT_FRAGMENT);
    if protocol == FRAGMENT {
        let (header, rest) = payload.split_at_checked(FRAGMENT_HEADER)?;
        let field = be16(header, 2)?;
        protocol = header[0];
        id = be16(header, 6)?;
        fragment = field >> 3 | if field & 1 == 1 { MORE_FRAGMENTS } else { 0 };
        payload = rest;
        // Its checksum would be another, and only the whole has it.
        if protocol == ICMPV6 {
            return None;
        }
    }
    let class = (be16(packet, 0)? >> 4) as u8;
    let icmp = protocol == ICMPV6;
    let written = if icmp { ICMP } else { protocol };
    if ![ICMP, TCP, UDP].contains(&written) {
        return None;
    }
    let header = V4 {
        class,
        id,
        fragment,
        ttl: packet[7],
        protocol: written,
        from,
        to,
    };
    header.write(payload.len(), out)?;
    let start = out.len();
    out.extend_from_slice(payload);
    if icmp {
        let kind = match payload.first()? {
            128 => 8,
            129 => 0,
            _ => return None,
        };
        let message = &mut out[start..];
        message[0] = kind;
        set_icmp_sum(message, 0)?;
    }
    Some(())
}

struct V4 {
    class: u8,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    from: Ipv4Addr,
    to: Ipv4Addr,
}

impl V4 {
    fn write(&self, payload: usize, out: &mut Vec<u8>) -> Option<()> {
        let length = u16::try_from(V4_HEADER + payload).ok()?;
        let mut header = [0; V4_HEADER];
        header[0] = 0x45;
        header[1] = self.class;
        header[2..4].copy_from_slice(&length.to_be_bytes());
        header[4..6].copy_from_slice(&self.id.to_be_bytes());
        header[6..8].copy_from_slice(&self.fragment.to_be_bytes());
        (header[8], header[9]) = (self.ttl, self.protocol);
        header[12..16].copy_from_slice(&self.from.octets());
        header[16..20].copy_from_slice(&self.to.octets());
        let sum = !fold(sum(&header));
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        out.extend_from_slice(&header);
        Some(())
    }
}

/// An IPv4 header that was read, and what is behind it.
struct Read<'a> {
    class: u8,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    from: Ipv4Addr,
    to: Ipv4Addr,
    /// Bytes behind the header, as the header says: a quoted packet has fewer.
    length: usize,
    payload: &'a [u8],
}

impl<'a> Read<'a> {
    fn parse(packet: &'a [u8]) -> Option<Self> {
        let first = *packet.first()?;
        let header = usize::from(first & 15) * 4;
        if first >> 4 != 4 || header < V4_HEADER {
            return None;
        }
        let total = usize::from(be16(packet, 2)?);
        let length = total.checked_sub(header)?;
        let payload = packet.get(header..)?;
        Some(Read {
            class: packet[1],
            id: be16(packet, 4)?,
            fragment: be16(packet, 6)?,
            ttl: packet[8],
            protocol: packet[9],
            from: v4_address(packet, 12)?,
            to: v4_address(packet, 16)?,
            length,
            payload: &payload[..payload.len().min(length)],
        })
    }

    fn is_fragment(&self) -> bool {
        self.fragment & (OFFSET | MORE_FRAGMENTS) != 0
    }

    /// Writes the header of IPv6, and that of a fragment where it is one.
    fn write_header(&self, protocol: u8, out: &mut Vec<u8>) -> Option<()> {
        let extra = if self.is_fragment() {
            FRAGMENT_HEADER
        } else {
            0
        };
        let length = u16::try_from(self.length + extra).ok()?;
        let next = if self.is_fragment() {
            FRAGMENT
        } else {
            protocol
        };
        out.extend_from_slice(&(0x6000 | u16::from(self.class) << 4).to_be_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&[next, self.ttl]);
        out.extend_from_slice(&map(self.from).octets());
        out.extend_from_slice(&map(self.to).octets());
        if self.is_fragment() {
            let more = u16::from(self.fragment & MORE_FRAGMENTS != 0);
            let field = (self.fragment & OFFSET) << 3 | more;
            out.extend_from_slice(&[protocol, 0]);
            out.extend_from_slice(&field.to_be_bytes());
            out.extend_from_slice(&u32::from(self.id).to_be_bytes());
        }
        Some(())
    }
}

/// Makes a packet for the stack of one of IPv4, behind what is in `out`. False when it is of no
/// kind that goes through: nothing is added then.
pub(super) fn to_v6(packet: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let done = write_v6(packet, out).is_some();
    if !done {
        out.truncate(start);
    }
    done
}

fn write_v6(packet: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let read = Read::parse(packet)?;
    if read.payload.len() < read.length {
        return None;
    }
    match read.protocol {
        TCP => {
            read.write_header(TCP, out)?;
            out.extend_from_slice(read.payload);
            Some(())
        }
        UDP => write_udp(&read, out),
        ICMP if !read.is_fragment() => write_icmp(&read, out),
        _ => None,
    }
}

fn write_udp(read: &Read<'_>, out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    read.write_header(UDP, out)?;
    let udp = out.len();
    out.extend_from_slice(read.payload);
    let begins = read.fragment & OFFSET == 0;
    if begins && be16(read.payload, 6)? == 0 {
        // IPv6 knows no datagram without a checksum, and only the whole has one.
        if read.is_fragment() {
            return None;
        }
        let pseudo = pseudo_header(&out[start..], UDP)?;
        let sum = !fold(pseudo + sum(&out[udp..]));
        let sum = if sum == 0 { 0xffff } else { sum };
        out[udp + 6..udp + 8].copy_from_slice(&sum.to_be_bytes());
    }
    Some(())
}

fn write_icmp(read: &Read<'_>, out: &mut Vec<u8>) -> Option<()> {
    let (kind, code) = (*read.payload.first()?, *read.payload.get(1)?);
    let rest = read.payload.get(4..8)?;
    let mut message = match (kind, code) {
        (8, _) => return write_echo(read, 128, out),
        (0, _) => return write_echo(read, 129, out),
        (3, 3) => vec![1, 4, 0, 0, 0, 0, 0, 0],
        (3, 4) => {
            let mtu = be16(rest, 2)?.saturating_add(GROWTH).max(V6_MIN_MTU);
            let mut message = vec![2, 0, 0, 0, 0, 0];
            message.extend_from_slice(&mtu.to_be_bytes());
            message
        }
        (3, 9 | 10 | 13) => vec![1, 1, 0, 0, 0, 0, 0, 0],
        (3, 0 | 1 | 5..=8 | 11 | 12) => vec![1, 0, 0, 0, 0, 0, 0, 0],
        (11, code) => vec![3, code, 0, 0, 0, 0, 0, 0],
        _ => return None,
    };
    let quoted = Read::parse(&read.payload[8..])?;
    if ![TCP, UDP].contains(&quoted.protocol) {
        return None;
    }
    quoted.write_header(quoted.protocol, &mut message)?;
    message.extend_from_slice(quoted.payload);
    let outer = Read {
        length: message.len(),
        payload: &message,
        ..*read
    };
    finish_icmp(&outer, out)
}

fn write_echo(read: &Read<'_>, kind: u8, out: &mut Vec<u8>) -> Option<()> {
    let mut message = read.payload.to_vec();
    message[0] = kind;
    let payload = &message[..];
    finish_icmp(&Read { payload, ..*read }, out)
}

fn finish_icmp(read: &Read<'_>, out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    read.write_header(ICMPV6, out)?;
    let message = out.len();
    out.extend_from_slice(read.payload);
    let pseudo = pseudo_header(&out[start..], ICMPV6)?;
    set_icmp_sum(&mut out[message..], pseudo)
}

fn set_icmp_sum(message: &mut [u8], pseudo: u32) -> Option<()> {
    message.get_mut(2..4)?.fill(0);
    let sum = !fold(pseudo + sum(message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(())
}

/// What an IPv6 header adds to the checksum of what it carries (RFC 8200 §8.1).
fn pseudo_header(packet: &[u8], protocol: u8) -> Option<u32> {
    Some(sum(packet.get(8..V6_HEADER)?) + u32::from(be16(packet, 4)?) + u32::from(protocol))
}

/// Whether a packet is a SYN.
pub(super) fn opens_stream(packet: &[u8]) -> bool {
    packet.get(6) == Some(&TCP)
        && packet
            .get(V6_HEADER + 13)
            .is_some_and(|flags| flags & SYN != 0)
}

/// Lowers the largest segment that the sender of a SYN takes to what fits the tunnel.
pub(super) fn clamp_segments(packet: &mut [u8], largest: u16) {
    if !opens_stream(packet) || packet.len() < V6_HEADER + 20 {
        return;
    }
    let tcp = &mut packet[V6_HEADER..];
    let header = usize::from(tcp[12] >> 4) * 4;
    if header < 20 || header > tcp.len() {
        return;
    }
    let mut at = 20;
    while at + 4 <= header {
        match tcp[at] {
            0 => return,
            1 => at += 1,
            2 if tcp[at + 1] == 4 => {
                let old = u16::from_be_bytes([tcp[at + 2], tcp[at + 3]]);
                if old > largest {
                    tcp[at + 2..at + 4].copy_from_slice(&largest.to_be_bytes());
                    // The option may begin at an odd place, where bytes count the other way round.
                    let turn = |value: u16| {
                        if at % 2 == 1 {
                            value.swap_bytes()
                        } else {
                            value
                        }
                    };
                    let before = u16::from_be_bytes([tcp[16], tcp[17]]);
                    let sum = u32::from(!before) + u32::from(!turn(old)) + u32::from(turn(largest));
                    tcp[16..18].copy_from_slice(&(!fold(sum)).to_be_bytes());
                }
                return;
            }
            _ => at += usize::from(tcp[at + 1]).max(2),
        }
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn v6_address(packet: &[u8], at: usize) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
    Some(octets.into())
}

pub(super) fn v4_address(packet: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

/// The sum of 16-bit words; at most 64 KiB, so that it does not overflow.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2);
    words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)))
        .sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
#[path = "translate_tests.rs"]
mod tests;
