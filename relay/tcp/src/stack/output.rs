//! Packets that go out, connections in turn, and timers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::time::Duration;

use super::{ConnectionId, Event, Stack};
use crate::connection::{State, Transmit};
use crate::emit::{Bursts, One, PacketSink};
use crate::segment::Ip;
use crate::time::Instant;

/// How often writers that found no memory are tried again.
const STARVED: Duration = Duration::from_millis(10);
/// Writers that are tried again at a time: there is never memory for all at once.
const MOST_FED: usize = 64;

/// Timers of connections. A connection has at most one that counts; one that was set for later than
/// it is needed stays, and is set anew when it fires.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, ConnectionId)>>,
}

impl Timers {
    fn set(&mut self, at: Instant, id: ConnectionId) {
        self.heap.push(Reverse((at, id)));
    }

    fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    fn take_due(&mut self, now: Instant) -> Option<(Instant, ConnectionId)> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(timer)| timer)
    }
}

impl Stack {
    /// Writes the next run of packets into `sink` and returns the peer it is for; none: there is
    /// nothing to send now. Connections take turns.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        sink: &mut dyn PacketSink,
    ) -> Option<(IpAddr, Transmit)> {
        self.transmit(now, &mut One(sink))
    }

    /// The same, for an owner that has a burst for each peer.
    pub fn transmit(
        &mut self,
        now: Instant,
        bursts: &mut dyn Bursts,
    ) -> Option<(IpAddr, Transmit)> {
        if let Some(reply) = self.replies.pop_front() {
            let peer = Ip::parse(&reply, false).ok()?.destination;
            let bytes = reply.len();
            let mut copy = |room: &mut [u8]| room.copy_from_slice(&reply);
            bursts.burst_to(peer).packet(bytes, &mut copy);
            return Some((peer, Transmit { packets: 1, bytes }));
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(entry) = self.table.get(id) else {
                continue;
            };
            let peer = entry.connection.tuple().remote.ip();
            let sent = entry.connection.poll_transmit(now, bursts.burst_to(peer));
            if let Some(sent) = sent {
                self.ready.push_back(id);
                self.announce(id);
                return Some((peer, sent));
            }
            entry.ready = false;
            self.settle(id);
        }
        None
    }

    /// Whether connections wait for [`poll_transmit`](Self::poll_transmit).
    pub fn wants_to_transmit(&self) -> bool {
        !self.ready.is_empty() || !self.replies.is_empty()
    }

    /// Whether there are events for [`poll_event`](Self::poll_event).
    pub fn wants_to_tell(&self) -> bool {
        !self.changed.is_empty() || !self.notes.is_empty()
    }

    /// Notes what a connection that has nothing to send now waits for, and what its owner has to
    /// know; forgets it if it is over.
    fn settle(&mut self, id: ConnectionId) {
        self.announce(id);
        let Some(entry) = self.table.get(id) else {
            return;
        };
        let state = entry.connection.state();
        if let Some((at, _)) = entry.connection.poll_timeout()
            && entry.timer.is_none_or(|set| at < set)
        {
            entry.timer = Some(at);
            self.timers.set(at, id);
        }
        if state == State::Closed && entry.released {
            self.remove(id);
        } else if state == State::TimeWait && !entry.waits {
            entry.waits = true;
            self.in_time_wait += 1;
            self.time_wait.push_back(id);
            self.limit_time_wait();
        }
    }

    fn limit_time_wait(&mut self) {
        while self.in_time_wait > self.config.max_time_wait {
            let Some(oldest) = self.time_wait.pop_front() else {
                return;
            };
            let Some(entry) = self.table.get(oldest) else {
                continue;
            };
            entry.waits = false;
            self.in_time_wait -= 1;
            if entry.released {
                self.remove(oldest);
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called next if nothing happens before.
    /// Ask after transmitting.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let starved = (!self.starved.is_empty()).then_some(now + STARVED);
        let all = [self.timers.next(), self.requests.deadline(), starved];
        all.into_iter().flatten().min()
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, id)) = self.timers.take_due(now) {
            let Some(entry) = self.table.get(id) else {
                continue;
            };
            if entry.timer != Some(at) {
                continue;
            }
            entry.timer = None;
            entry.connection.handle_timeout(now);
            self.announce(id);
            self.make_ready(id);
        }
        while let Some(id) = self.requests.expire(now) {
            self.notes.push_back(Event::Withdrawn(id));
        }
        self.feed_starved();
    }

    /// Lets writers that found no memory try again once there is some.
    fn feed_starved(&mut self) {
        if self.starved.is_empty() || self.pool.is_exhausted() {
            return;
        }
        let some = self.starved.len().min(MOST_FED);
        for id in self.starved.drain(..some) {
            if let Some(entry) = self.table.get(id) {
                entry.connection.wake_writer();
                if !entry.ready {
                    entry.ready = true;
                    self.ready.push_back(id);
                }
            }
        }
    }
}
