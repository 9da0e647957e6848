//! A connected client as others see it: two bounded queues and who wrote to it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::BytesMut;
use futures_util::task::AtomicWaker;
use relay_wire::derp::{Frame, put_recv_packet};
use relay_wire::disco;
use relay_wire::keys::NodePublic;

use super::shrink;

/// Packets that may wait in a queue.
const PACKETS: usize = 512;
/// Bytes that may wait in a queue.
const BYTES: usize = 2 << 20;
/// Senders that are told when the client is gone.
const SOURCES: usize = 1024;

/// A connection of a client.
pub(super) struct Client {
    pub(super) key: NodePublic,
    /// Whether it is the newest connection of its key.
    receiving: AtomicBool,
    queues: Mutex<Queues>,
    sources: Mutex<HashSet<NodePublic>>,
    waker: AtomicWaker,
    dropped: AtomicU64,
}

/// Frames ready to be written, in one piece.
#[derive(Default)]
struct Queue {
    bytes: BytesMut,
    packets: usize,
}

#[derive(Default)]
struct Queues {
    /// Disco packets and what the relay itself says: they find better paths and must not wait.
    urgent: Queue,
    bulk: Queue,
}

impl Queue {
    fn has_room(&self, length: usize) -> bool {
        self.packets < PACKETS && self.bytes.len() + length <= BYTES
    }

    fn take(&mut self, out: &mut BytesMut) -> bool {
        if self.packets == 0 {
            return false;
        }
        self.packets = 0;
        std::mem::swap(&mut self.bytes, out);
        true
    }
}

impl Client {
    pub(super) fn new(key: NodePublic) -> Self {
        Self {
            key,
            receiving: AtomicBool::new(false),
            queues: Mutex::default(),
            sources: Mutex::default(),
            waker: AtomicWaker::new(),
            dropped: AtomicU64::new(0),
        }
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a packet; false when too much waits already, and it is dropped.
    pub(super) fn packet(&self, source: &NodePublic, packet: &[u8]) -> bool {
        let mut queues = self.queues();
        let queue = if disco::is_disco(packet) {
            &mut queues.urgent
        } else {
            &mut queues.bulk
        };
        let room = queue.has_room(packet.len());
        if room {
            put_recv_packet(&mut queue.bytes, source, packet);
            queue.packets += 1;
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            tracing::trace!(client = ?self.key, "a relayed packet was dropped");
        }
        room
    }

    /// Queues a frame of the relay's own.
    pub(super) fn control(&self, frame: &Frame) {
        let mut queues = self.queues();
        if queues.urgent.has_room(0) {
            frame.encode(&mut queues.urgent.bytes);
            queues.urgent.packets += 1;
        }
    }

    /// Swaps an empty buffer for one with everything of the more urgent queue.
    pub(super) fn take(&self, out: &mut BytesMut) -> bool {
        let mut queues = self.queues();
        queues.urgent.take(out) || queues.bulk.take(out)
    }

    /// Gives back memory that a burst left behind.
    pub(super) fn shrink(&self) {
        let mut queues = self.queues();
        shrink(&mut queues.urgent.bytes);
        shrink(&mut queues.bulk.bytes);
    }

    /// Packets that found no room.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Remembers who sent to this client.
    pub(super) fn add_source(&self, source: NodePublic) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.len() < SOURCES {
            sources.insert(source);
        }
    }

    pub(super) fn take_sources(&self) -> HashSet<NodePublic> {
        std::mem::take(&mut self.sources.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_receiving(&self, receiving: bool) {
        self.receiving.store(receiving, Ordering::Release);
    }

    pub(super) fn is_receiving(&self) -> bool {
        self.receiving.load(Ordering::Acquire)
    }

    /// Has its connection look at the queues.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    /// Who is woken by [`Client::wake`].
    pub(super) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }
}
