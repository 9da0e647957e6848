//! Fragmentation and reassembly of IPv6 packets (RFC 8200 §4.5), bounded in bytes and in time.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::packet::{IP_HEADER, PROTO_FRAGMENT, be16, destination, next_header, source};

const FRAGMENT_HEADER: usize = 8;
/// A packet whose fragments take longer is given up.
const PATIENCE: Duration = Duration::from_secs(5);
/// Memory that unfinished packets may take together.
const MAX_BYTES: usize = 4 << 20;
/// Unfinished packets of one sender.
const MAX_PER_SENDER: usize = 16;
/// Fragments of one packet: what 1280-byte fragments of the largest packet come to, twice.
const MAX_FRAGMENTS: usize = 128;

/// Cuts packets that exceed an MTU.
#[derive(Debug)]
pub struct Fragments {
    identification: u32,
}

impl Fragments {
    /// `seed` is where identifications begin; any random number.
    pub fn new(seed: u32) -> Fragments {
        Fragments {
            identification: seed,
        }
    }

    /// Gives `packet` to `each`, in fragments of at most `mtu` bytes where it is longer.
    pub fn cut(&mut self, packet: &[u8], mtu: usize, each: &mut dyn FnMut(&[u8])) {
        if packet.len() <= mtu {
            return each(packet);
        }
        self.identification = self.identification.wrapping_add(1);
        let step = (mtu.saturating_sub(IP_HEADER + FRAGMENT_HEADER) & !7).max(8);
        let (header, payload) = packet.split_at(IP_HEADER);
        let mut fragment = Vec::with_capacity(mtu);
        let mut offset = 0;
        for part in payload.chunks(step) {
            let more = u16::from(offset + part.len() < payload.len());
            let length = (FRAGMENT_HEADER + part.len()) as u16;
            fragment.clear();
            fragment.extend_from_slice(header);
            fragment[4..6].copy_from_slice(&length.to_be_bytes());
            fragment[6] = PROTO_FRAGMENT;
            fragment.extend_from_slice(&[header[6], 0]);
            fragment.extend_from_slice(&(offset as u16 | more).to_be_bytes());
            fragment.extend_from_slice(&self.identification.to_be_bytes());
            fragment.extend_from_slice(part);
            each(&fragment);
            offset += part.len();
        }
    }
}

/// Puts fragments together.
#[derive(Debug, Default)]
pub struct Reassembler {
    unfinished: HashMap<Key, Assembly>,
    bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    source: Ipv6Addr,
    destination: Ipv6Addr,
    identification: u32,
}

#[derive(Debug)]
struct Assembly {
    started: Instant,
    /// The whole packet as far as it is known, IPv6 header first.
    packet: Vec<u8>,
    /// What of the payload has arrived, in the order it came.
    parts: Vec<Range<usize>>,
    /// Bytes of the payload, known once the last fragment has come.
    total: Option<usize>,
}

impl Reassembler {
    /// The protocol inside a fragment; `None` when the packet is none.
    pub fn protocol(packet: &[u8]) -> Option<u8> {
        if next_header(packet)? != PROTO_FRAGMENT {
            return None;
        }
        packet.get(IP_HEADER).copied()
    }

    /// Takes a fragment, and returns the packet it completes.
    pub fn push(&mut self, packet: &[u8], now: Instant) -> Option<Vec<u8>> {
        let protocol = Self::protocol(packet)?;
        let length = usize::from(be16(packet, 4)?);
        let part = packet.get(IP_HEADER + FRAGMENT_HEADER..IP_HEADER + length)?;
        let field = be16(packet, IP_HEADER + 2)?;
        let (offset, more) = (usize::from(field & !7), field & 1 != 0);
        let identification = packet.get(IP_HEADER + 4..IP_HEADER + 8)?.try_into().ok()?;
        let key = Key {
            source: source(packet)?,
            destination: destination(packet)?,
            identification: u32::from_be_bytes(identification),
        };
        let range = offset..offset + part.len();
        if part.is_empty() || (more && part.len() % 8 != 0) || range.end > usize::from(u16::MAX) {
            return None;
        }

        self.expire(now);
        if !self.unfinished.contains_key(&key) {
            self.make_room(key.source);
            let mut header = packet[..IP_HEADER].to_vec();
            header[6] = protocol;
            self.bytes += IP_HEADER;
            let (parts, total) = (Vec::new(), None);
            self.unfinished.insert(
                key,
                Assembly {
                    started: now,
                    packet: header,
                    parts,
                    total,
                },
            );
        }
        let assembly = self.unfinished.get_mut(&key)?;
        let before = assembly.packet.len();
        let outcome = assembly.add(range, more, part);
        self.bytes += assembly.packet.len() - before;
        match outcome {
            Outcome::Waiting => {
                if self.bytes > MAX_BYTES {
                    self.drop_oldest();
                }
                None
            }
            Outcome::Bad => {
                self.remove(&key);
                None
            }
            Outcome::Complete => {
                let mut whole = self.remove(&key)?;
                let length = u16::try_from(whole.len() - IP_HEADER).ok()?;
                whole[4..6].copy_from_slice(&length.to_be_bytes());
                Some(whole)
            }
        }
    }

    /// Forgets packets that have waited too long.
    pub fn expire(&mut self, now: Instant) {
        let bytes = &mut self.bytes;
        self.unfinished.retain(|_, assembly| {
            let keep = now.saturating_duration_since(assembly.started) < PATIENCE;
            if !keep {
                *bytes -= assembly.packet.len();
            }
            keep
        });
    }

    /// When [`Reassembler::expire`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.unfinished
            .values()
            .map(|assembly| assembly.started + PATIENCE)
            .min()
    }

    fn remove(&mut self, key: &Key) -> Option<Vec<u8>> {
        let assembly = self.unfinished.remove(key)?;
        self.bytes -= assembly.packet.len();
        Some(assembly.packet)
    }

    fn make_room(&mut self, source: Ipv6Addr) {
        let of_sender = |key: &&Key| key.source == source;
        if self.unfinished.keys().filter(of_sender).count() >= MAX_PER_SENDER {
            let ours = self
                .unfinished
                .iter()
                .filter(|(key, _)| key.source == source);
            let oldest = ours
                .min_by_key(|(_, assembly)| assembly.started)
                .map(|(key, _)| *key);
            oldest.and_then(|key| self.remove(&key));
        }
    }

    fn drop_oldest(&mut self) {
        let oldest = self
            .unfinished
            .iter()
            .min_by_key(|(_, assembly)| assembly.started);
        let key = oldest.map(|(key, _)| *key);
        key.and_then(|key| self.remove(&key));
    }
}

enum Outcome {
    Waiting,
    Complete,
    Bad,
}

impl Assembly {
    fn add(&mut self, range: Range<usize>, more: bool, part: &[u8]) -> Outcome {
        if self.parts.contains(&range) {
            return Outcome::Waiting;
        }
        let overlaps = |other: &Range<usize>| range.start < other.end && other.start < range.end;
        if self.parts.iter().any(overlaps) || self.parts.len() >= MAX_FRAGMENTS {
            return Outcome::Bad;
        }
        let highest = self.parts.iter().map(|part| part.end).max().unwrap_or(0);
        match self.total {
            Some(total) if range.end > total || !more => return Outcome::Bad,
            None if !more && highest > range.end => return Outcome::Bad,
            None if !more => self.total = Some(range.end),
            _ => {}
        }
        let end = IP_HEADER + range.end;
        if self.packet.len() < end {
            self.packet.resize(end, 0);
        }
        self.packet[IP_HEADER + range.start..end].copy_from_slice(part);
        self.parts.push(range);
        let arrived: usize = self.parts.iter().map(|part| part.len()).sum();
        if self.total == Some(arrived) {
            Outcome::Complete
        } else {
            Outcome::Waiting
        }
    }
}
