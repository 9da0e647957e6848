//! Connections by id, and ids by the connection's ends.

use std::collections::HashMap;
use std::hash::{BuildHasher, DefaultHasher, Hash};
use std::net::IpAddr;

use crate::connection::{Connection, Secrets, Tuple};
use crate::time::{Instant, nanos};

/// Names a connection; never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    slot: u32,
    generation: u32,
}

/// A random number that peers do not know: no peer can make others' hashes collide, or guess
/// sequence numbers (RFC 6528).
#[derive(Debug, Clone, Copy)]
pub(super) struct Secret(pub(super) [u64; 2]);

impl BuildHasher for Secret {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        self.0.hash(&mut hasher);
        hasher
    }
}

impl Secret {
    /// A number that follows from `what` and cannot be guessed.
    pub(super) fn number(&self, what: &impl Hash) -> u64 {
        self.hash_one(what)
    }

    /// RFC 6528 §3: a clock that ticks every 4 µs, from a start that differs for each pair of ends.
    pub(super) fn of_connection(&self, tuple: &Tuple, now: Instant) -> Secrets {
        let clock = (now.as_nanos() / 4_000) as u32;
        let numbers = self.number(tuple);
        Secrets {
            initial_sequence: (numbers as u32).wrapping_add(clock),
            timestamp_offset: (numbers >> 32) as u32,
            seed: self.number(&(tuple, nanos(now.since(Instant::ZERO)))),
        }
    }
}

/// A connection and where the stack has it noted.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) connection: Box<Connection>,
    /// It is in the queue of those that may send.
    pub(super) ready: bool,
    /// It is in the queue of those with events.
    pub(super) announced: bool,
    /// It is in the queue of those in TIME-WAIT.
    pub(super) waits: bool,
    /// The owner gave its id up.
    pub(super) released: bool,
    /// The earliest timer that is set for it.
    pub(super) timer: Option<Instant>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    entry: Option<Entry>,
}

/// All connections.
#[derive(Debug)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_tuple: HashMap<Tuple, u32, Secret>,
}

impl Table {
    pub(super) fn new(secret: Secret) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_tuple: HashMap::with_hasher(secret),
        }
    }

    pub(super) fn insert(&mut self, connection: Connection) -> ConnectionId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        self.by_tuple.insert(connection.tuple(), slot);
        let place = &mut self.slots[slot as usize];
        place.entry = Some(Entry {
            connection: Box::new(connection),
            ready: false,
            announced: false,
            waits: false,
            released: false,
            timer: None,
        });
        ConnectionId {
            slot,
            generation: place.generation,
        }
    }

    pub(super) fn find(&self, tuple: &Tuple) -> Option<ConnectionId> {
        let slot = *self.by_tuple.get(tuple)?;
        let generation = self.slots.get(slot as usize)?.generation;
        Some(ConnectionId { slot, generation })
    }

    pub(super) fn get(&mut self, id: ConnectionId) -> Option<&mut Entry> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        slot.entry
            .as_mut()
            .filter(|_| slot.generation == id.generation)
    }

    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Entry> {
        self.get(id)?;
        let slot = &mut self.slots[id.slot as usize];
        slot.generation = slot.generation.wrapping_add(1);
        let entry = slot.entry.take()?;
        self.free.push(id.slot);
        let tuple = entry.connection.tuple();
        if self.by_tuple.get(&tuple) == Some(&id.slot) {
            self.by_tuple.remove(&tuple);
        }
        Some(entry)
    }

    /// All connections to `peer`. Looks at each connection.
    pub(super) fn of_peer(&self, peer: IpAddr) -> Vec<ConnectionId> {
        let with_slot = (0..).zip(&self.slots);
        with_slot
            .filter(|(_, place)| {
                let entry = place.entry.as_ref();
                entry.is_some_and(|entry| entry.connection.tuple().remote.ip() == peer)
            })
            .map(|(slot, place)| ConnectionId {
                slot,
                generation: place.generation,
            })
            .collect()
    }

    pub(super) fn len(&self) -> usize {
        self.by_tuple.len()
    }
}
