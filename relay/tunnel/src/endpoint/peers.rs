//! The peers of one endpoint, found by tunnel address, key, index or id, and what waits for each.

use std::collections::{HashMap, HashSet};
use std::net::Ipv6Addr;
use std::time::Instant;

use crate::path::{BASE_MTU, PeerId};
use crate::wireguard::{Burst, Identity, Peer, PeerOptions};

use super::MAX_LOOPS;
use super::node::PeerNode;

/// Bytes of packets kept for a peer that has no path or no keys at the moment.
const HELD: usize = 256 * 1024;
/// Streams remembered a peer; beyond, the memory starts anew.
const MAX_STREAMS: usize = 16 * 1024;

/// One peer.
pub(super) struct Slot {
    pub(super) id: PeerId,
    pub(super) wireguard: Peer,
    pub(super) node: PeerNode,
    pub(super) mtu: u16,
    /// Packets collected in this turn.
    pub(super) outgoing: Burst,
    /// Packets that could not go out yet, not sealed.
    pub(super) held: Burst,
    /// Handshake messages and keepalives to send.
    pub(super) control: Vec<Vec<u8>>,
    /// Listed for the end of this turn.
    pub(super) touched: bool,
    /// (own port, peer's port) of streams seen to begin.
    pub(super) streams: HashSet<(u16, u16)>,
    pub(super) sent: u64,
    pub(super) received: u64,
    /// Datagrams too large for this peer, dropped.
    pub(super) oversize: u64,
}

impl Slot {
    /// Adds a packet to those of this turn. With `at_once` it is sealed now where it can be, which saves
    /// a copy; if there turns out to be no way to the peer it is lost then.
    pub(super) fn add(&mut self, packet: &[u8], at_once: bool) {
        let Slot {
            wireguard,
            outgoing,
            held,
            ..
        } = self;
        let begins = at_once && outgoing.is_empty() && held.is_empty();
        let may_seal = begins || outgoing.is_sealed();
        let is_sealed = may_seal && wireguard.seal_packet(packet, outgoing);
        // Behind sealed packets there is no place for others.
        if !is_sealed && !outgoing.is_sealed() {
            outgoing.push(packet);
        }
    }

    /// Adds a packet of `length` bytes that `write` writes, as [`Slot::add`] does. What is sealed at
    /// once is written to `scratch`, which is as long as the longest packet so far.
    pub(super) fn add_written(
        &mut self,
        length: usize,
        write: &mut dyn FnMut(&mut [u8]),
        at_once: bool,
        scratch: &mut Vec<u8>,
    ) {
        let goes_aside = self.outgoing.is_sealed() || at_once && self.wireguard.is_ready();
        if !goes_aside {
            return write(self.outgoing.room(length));
        }
        if scratch.len() < length {
            scratch.resize(length, 0);
        }
        write(&mut scratch[..length]);
        self.add(&scratch[..length], at_once);
    }

    /// Puts the packets of this turn behind those that already wait.
    pub(super) fn hold(&mut self) {
        let Slot { held, outgoing, .. } = self;
        if outgoing.is_sealed() {
            return outgoing.clear();
        }
        outgoing.packets().for_each(|packet| held.push(packet));
        outgoing.clear();
        held.keep_newest(HELD);
    }

    /// Remembers a stream that begins.
    pub(super) fn note_stream(&mut self, own: u16, theirs: u16) {
        if self.streams.len() >= MAX_STREAMS {
            self.streams.clear();
        }
        self.streams.insert((own, theirs));
    }

    /// Gives back memory that an idle peer does not need.
    pub(super) fn release(&mut self) {
        if self.outgoing.is_empty() {
            self.outgoing = Burst::default();
        }
        if self.held.is_empty() {
            self.held = Burst::default();
        }
        self.control.shrink_to_fit();
    }
}

/// All peers.
#[derive(Default)]
pub(super) struct Peers {
    slots: HashMap<u32, Slot>,
    by_address: HashMap<Ipv6Addr, u32>,
    by_key: HashMap<[u8; 32], u32>,
    by_id: HashMap<PeerId, u32>,
    next_index: u32,
    /// Peers with something to send at the end of this turn.
    touched: Vec<u32>,
    /// The earliest time a peer's timers may want something; none before it.
    timer: Option<(Instant, &'static str)>,
}

/// What a change of peers leaves to be cleaned up: streams to a node that is gone.
#[derive(Default)]
pub(super) struct Gone {
    pub(super) addresses: Vec<Ipv6Addr>,
    pub(super) streams: Vec<(u16, u16)>,
}

impl Peers {
    /// The peers of one of an endpoint's loops. No two loops give the same index, so that a loop
    /// takes no packet for one of its own that was meant for another.
    pub(super) fn of_loop(number: usize) -> Peers {
        Peers {
            next_index: number as u32,
            ..Peers::default()
        }
    }

    /// Installs or changes a peer. A node with another key takes the place of the one that has the
    /// same id or an address of it; what was there is returned.
    pub(super) fn upsert(
        &mut self,
        identity: &Identity,
        id: PeerId,
        node: PeerNode,
        keepalive: bool,
        now: Instant,
    ) -> (u32, Vec<(PeerId, Gone)>) {
        let mut replaced = Vec::new();
        let key = *node.key.as_bytes();
        let known = self.by_key.get(&key).copied();
        let rivals: HashSet<u32> = node
            .addresses
            .iter()
            .filter_map(|address| self.by_address.get(address))
            .chain(self.by_id.get(&id))
            .copied()
            .filter(|index| Some(*index) != known)
            .collect();
        for index in rivals {
            if let Some(slot) = self.remove_index(index) {
                let gone = Gone {
                    addresses: slot.node.addresses.clone(),
                    streams: slot.streams.into_iter().collect(),
                };
                replaced.push((slot.id, gone));
            }
        }
        let index = match known {
            Some(index) => {
                self.unlink(index);
                if let Some(slot) = self.slots.get_mut(&index) {
                    slot.wireguard.set_addresses(node.addresses.clone());
                    slot.id = id;
                    slot.node = node;
                }
                index
            }
            None => {
                let index = self.free_index();
                let options = PeerOptions {
                    key,
                    index,
                    addresses: node.addresses.clone(),
                    keepalive,
                };
                let slot = Slot {
                    id,
                    wireguard: Peer::new(identity, options, now),
                    node,
                    mtu: BASE_MTU,
                    outgoing: Burst::default(),
                    held: Burst::default(),
                    control: Vec::new(),
                    touched: false,
                    streams: HashSet::new(),
                    sent: 0,
                    received: 0,
                    oversize: 0,
                };
                self.slots.insert(index, slot);
                index
            }
        };
        self.link(index);
        (index, replaced)
    }

    /// Forgets a peer.
    pub(super) fn remove(&mut self, id: PeerId) -> Option<Gone> {
        let index = *self.by_id.get(&id)?;
        let slot = self.remove_index(index)?;
        let streams = slot.streams.into_iter().collect();
        Some(Gone {
            addresses: slot.node.addresses,
            streams,
        })
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Slot> {
        self.slots.get_mut(&index)
    }

    pub(super) fn index_of_address(&self, address: Ipv6Addr) -> Option<u32> {
        self.by_address.get(&address).copied()
    }

    pub(super) fn index_of_key(&self, key: &[u8; 32]) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    pub(super) fn index_of_id(&self, id: PeerId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.values_mut()
    }

    /// Regions that peers listen on.
    pub(super) fn homes(&self) -> HashSet<u16> {
        self.slots
            .values()
            .filter_map(|slot| slot.node.home)
            .collect()
    }

    /// Takes note of a peer's timers, which may have become earlier.
    pub(super) fn note_timer(&mut self, index: u32) {
        if let Some(slot) = self.slots.get(&index)
            && let Some(timer) = slot.wireguard.poll_timeout()
            && self.timer.is_none_or(|(at, _)| timer.0 < at)
        {
            self.timer = Some(timer);
        }
    }

    /// Lists a peer for the end of this turn.
    pub(super) fn touch(&mut self, index: u32) {
        let Some(slot) = self.slots.get_mut(&index) else {
            return;
        };
        if !slot.touched {
            slot.touched = true;
            self.touched.push(index);
        }
    }

    /// The peers listed in this turn.
    pub(super) fn take_touched(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.touched)
    }

    /// Gives the list's memory back for the next turn.
    pub(super) fn return_touched(&mut self, mut list: Vec<u32>) {
        if self.touched.is_empty() {
            list.clear();
            self.touched = list;
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.timer
    }

    /// Runs the timers of all peers, if any is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.timer.is_none_or(|(at, _)| at > now) {
            return;
        }
        self.timer = None;
        for (index, slot) in &mut self.slots {
            slot.wireguard.handle_timeout(now, &mut slot.control);
            if !slot.control.is_empty() && !slot.touched {
                slot.touched = true;
                self.touched.push(*index);
            }
            let timer = slot.wireguard.poll_timeout();
            self.timer = [self.timer, timer]
                .into_iter()
                .flatten()
                .min_by_key(|(at, _)| *at);
        }
    }

    fn remove_index(&mut self, index: u32) -> Option<Slot> {
        self.unlink(index);
        self.slots.remove(&index)
    }

    fn link(&mut self, index: u32) {
        let Some(slot) = self.slots.get(&index) else {
            return;
        };
        self.by_id.insert(slot.id, index);
        self.by_key.insert(*slot.node.key.as_bytes(), index);
        for address in &slot.node.addresses {
            self.by_address.insert(*address, index);
        }
    }

    fn unlink(&mut self, index: u32) {
        self.by_id.retain(|_, other| *other != index);
        self.by_key.retain(|_, other| *other != index);
        self.by_address.retain(|_, other| *other != index);
    }

    fn free_index(&mut self) -> u32 {
        loop {
            self.next_index = (self.next_index + u32::from(MAX_LOOPS)) & 0x00ff_ffff;
            if !self.slots.contains_key(&self.next_index) {
                return self.next_index;
            }
        }
    }
}
