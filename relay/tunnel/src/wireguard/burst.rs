//! The buffers packets travel in: a burst to one peer, laid out so that sealing it in place makes
//! datagrams that lie side by side; and the packets opened from a burst.

use std::ops::Range;

use super::OVERHEAD;
use crate::udp::{MAX_BURST, MAX_SEGMENTS};

/// Bytes in front of a packet that its sealed form needs; the rest of [`OVERHEAD`] follows it.
const HEAD: usize = 16;

/// Smaller packets are padded to this, so that acknowledgements, opening segments and short messages
/// that lie side by side are of one length and go out as one send.
const SMALLEST: usize = 96;
/// Up to this length packets are padded to a multiple of 16, as the WireGuard paper's §5.4.6 has it.
/// Longer ones are left as they are: padding may not make a packet larger than the path takes.
const LARGEST_PADDED: usize = 256;

/// Packets to one peer, sealed or not yet. Each lies in a slot with room for header and tag, and its
/// sealed form in the same place of a second buffer; those that are sealed at once are in that alone.
#[derive(Debug, Default)]
pub struct Burst {
    /// Both are as long as the longest burst so far, and more.
    plain: Vec<u8>,
    sealed_data: Vec<u8>,
    packets: Vec<Slot>,
    /// Of all slots.
    bytes: usize,
    sealed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    start: usize,
    /// Of the packet.
    len: usize,
    /// Of the packet and its padding.
    padded: usize,
}

impl Slot {
    fn packet(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    fn plaintext(&self) -> Range<usize> {
        self.start..self.start + self.padded
    }

    fn datagram(&self) -> Range<usize> {
        self.start - HEAD..self.start + self.padded + OVERHEAD - HEAD
    }
}

/// Part of a sealed burst that can go out as one send: datagrams of `segment` bytes, of which the
/// last may be shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Where its bytes are.
    pub range: Range<usize>,
    /// Bytes of each datagram.
    pub segment: usize,
}

impl Burst {
    /// Adds a packet. Only before the burst is sealed.
    pub fn push(&mut self, packet: &[u8]) {
        self.room(packet.len()).copy_from_slice(packet);
    }

    /// Room for a packet of `len` bytes, to be written in place: what is in it means nothing. Only before
    /// the burst is sealed.
    pub fn room(&mut self, len: usize) -> &mut [u8] {
        debug_assert!(!self.sealed, "a sealed burst takes no more packets");
        let slot = self.add_slot(len);
        if self.plain.len() < self.bytes {
            self.plain.resize(self.bytes.next_power_of_two(), 0);
        }
        self.plain[slot.packet().end..slot.plaintext().end].fill(0);
        &mut self.plain[slot.packet()]
    }

    /// Adds a packet sealed, to an empty burst or to others that were: what it was made of is not
    /// kept. `seal` is as for [`Burst::seal_each`].
    pub(super) fn push_sealed(
        &mut self,
        packet: &[u8],
        seal: &mut dyn FnMut(&[u8], &mut [u8]) -> bool,
    ) {
        debug_assert!(
            self.sealed || self.is_empty(),
            "it has packets to be sealed"
        );
        self.sealed = true;
        let slot = self.add_slot(packet.len());
        if self.sealed_data.len() < self.bytes {
            self.sealed_data.resize(self.bytes.next_power_of_two(), 0);
        }
        let mut padding = [0; LARGEST_PADDED];
        let plaintext = if slot.padded == slot.len {
            packet
        } else {
            padding[..packet.len()].copy_from_slice(packet);
            &padding[..slot.padded]
        };
        if !seal(plaintext, &mut self.sealed_data[slot.datagram()]) {
            self.packets.pop();
            self.bytes = slot.datagram().start;
            self.sealed = !self.packets.is_empty();
        }
    }

    fn add_slot(&mut self, len: usize) -> Slot {
        let slot = Slot {
            start: self.bytes + HEAD,
            len,
            padded: padded(len),
        };
        self.packets.push(slot);
        self.bytes = slot.datagram().end;
        slot
    }

    /// Number of packets.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Whether its packets are sealed.
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Bytes the burst takes, headers and tags included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets the packets and keeps the memory.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.bytes = 0;
        self.sealed = false;
    }

    /// The packets of a burst that is not sealed.
    pub fn packets(&self) -> impl Iterator<Item = &[u8]> {
        self.packets.iter().map(|slot| &self.plain[slot.packet()])
    }

    /// The datagrams of a sealed burst.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        let sealed = self.sealed;
        let slots = self.packets.iter().filter(move |_| sealed);
        slots.map(|slot| &self.sealed_data[slot.datagram()])
    }

    /// The bytes a [`Run`] points into.
    pub fn data(&self) -> &[u8] {
        &self.sealed_data
    }

    /// A sealed burst as sends of as many datagrams as one send takes.
    pub fn runs(&self) -> impl Iterator<Item = Run> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let first = self.packets.get(at).filter(|_| self.sealed)?;
            let Range { start, end } = first.datagram();
            let segment = end - start;
            let mut end = start;
            let mut count = 0;
            while let Some(slot) = self.packets.get(at) {
                let len = slot.datagram().len();
                let full = count == MAX_SEGMENTS || end - start + len > MAX_BURST;
                if len > segment || (full && count > 0) {
                    break;
                }
                end += len;
                count += 1;
                at += 1;
                if len < segment {
                    break;
                }
            }
            Some(Run {
                range: start..end,
                segment,
            })
        })
    }

    /// Replaces every packet by its sealed form, in order: `seal` gets the packet with its padding and
    /// the room for the datagram, and says whether it filled it; if not, the packet is dropped.
    pub(super) fn seal_each(&mut self, seal: &mut dyn FnMut(&[u8], &mut [u8]) -> bool) {
        if self.sealed_data.len() < self.bytes {
            self.sealed_data.resize(self.bytes.next_power_of_two(), 0);
        }
        let (plain, sealed) = (&self.plain, &mut self.sealed_data);
        self.packets
            .retain(|slot| seal(&plain[slot.plaintext()], &mut sealed[slot.datagram()]));
        self.sealed = true;
    }

    /// Drops the oldest packets until the burst takes at most `limit` bytes.
    pub fn keep_newest(&mut self, limit: usize) {
        if self.bytes <= limit {
            return;
        }
        let mut kept = Burst::default();
        let surplus = self.bytes - limit;
        for slot in self
            .packets
            .iter()
            .filter(|slot| slot.start - HEAD >= surplus)
        {
            kept.push(&self.plain[slot.packet()]);
        }
        *self = kept;
    }

    /// Bytes of memory held.
    pub fn capacity(&self) -> usize {
        self.plain.capacity()
            + self.sealed_data.capacity()
            + self.packets.capacity() * size_of::<Slot>()
    }
}

/// Bytes that are sealed for a packet of `len` bytes. An empty packet is a keepalive and stays empty.
fn padded(len: usize) -> usize {
    match len {
        0 => 0,
        1..=LARGEST_PADDED => len.next_multiple_of(16).max(SMALLEST),
        _ => len,
    }
}

/// Packets opened from bursts of any peers, side by side.
#[derive(Debug, Default)]
pub struct Opened {
    data: Vec<u8>,
    used: usize,
    packets: Vec<(u32, Range<usize>)>,
}

impl Opened {
    /// The packets in the order they came, each with the index of its peer.
    pub fn packets(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.packets
            .iter()
            .map(|(peer, range)| (*peer, &self.data[range.clone()]))
    }

    /// Number of packets.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether nothing was opened.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Forgets the packets and keeps the memory.
    pub fn clear(&mut self) {
        self.used = 0;
        self.packets.clear();
    }

    /// Gives the memory back.
    pub fn release(&mut self) {
        *self = Opened::default();
    }

    /// Room for what a message with `len` sealed bytes carries.
    pub(super) fn room(&mut self, len: usize) -> &mut [u8] {
        let end = self.used + len;
        if self.data.len() < end {
            self.data.resize(end.next_power_of_two().max(64 * 1024), 0);
        }
        &mut self.data[self.used..end]
    }

    /// Keeps the first `len` bytes of the room as a packet.
    pub(super) fn keep(&mut self, peer: u32, len: usize) {
        self.packets.push((peer, self.used..self.used + len));
        self.used += len;
    }
}
