//! One direction of a connection, and its gate: while the far end keeps up, the program sends on
//! what arrives; what it passes is sent on here, and until that has caught up the program passes
//! all. The kernel's part is in `relay-ebpf/program/src/gate.rs`.
//!
//! What has been passed is looked at, sent on, and left where it lies until the gate is open again:
//! so the sender runs out of window, and it can be caught up with.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::record::Record;
use super::sys;
use crate::end::unsent;

/// Most bytes of a direction that may be under way at the far end.
pub(super) const HIGH: u64 = 8 << 20;
/// With no more than this under way bytes are sent on from here.
const LOW: u64 = HIGH / 2;
/// Most packets of a direction that may be under way, or small ones would take too much memory.
pub(super) const PACKETS: u64 = 4096;
/// Room for what goes to the far end, so that nothing ever waits in front of the socket: there,
/// what was passed in the other direction would wait behind it.
const SEND_BUFFER: i32 = (HIGH + (1 << 20)) as i32;
/// Much larger than the window, so that the window can be opened although bytes lie here.
const RECEIVE_BUFFER: i32 = 1 << 20;
const WINDOW: i32 = 384 << 10;
/// How far a receive buffer grows, as the kernel counts it, when bytes in the window were dropped.
const MOST_RECEIVE: u32 = 8 << 20;
const GROWTH: u32 = 1 << 20;
/// How near a receive buffer must be to its limit to have dropped for want of room.
const NEAR_FULL: u32 = 64 << 10;
/// Bytes that are left to be read one by one; see [`Direction::discard`].
const KEPT: usize = 8;
/// Rounds of sending on before others get their turn.
const ROUNDS: usize = 16;

/// How often a busy direction is looked at.
pub(super) const TICK: Duration = Duration::from_micros(500);
/// The same, when nothing moves.
const SLOW: Duration = Duration::from_millis(8);

/// Which end of a direction broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Source,
    Sink,
}

/// What a direction is made of.
#[derive(Clone, Copy)]
pub(super) struct Wire<'a> {
    pub(super) from: &'a OwnedFd,
    pub(super) to: &'a OwnedFd,
    pub(super) record: &'a Record<'a>,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Direction {
    pub(super) index: u32,
    /// The source is in the map. Else its bytes are copied.
    pub(super) is_joined: bool,
    /// The source said that nothing more will come.
    pub(super) is_ended: bool,
    /// The sink was told so.
    pub(super) is_shut: bool,
    /// It has to be looked at.
    pub(super) is_active: bool,
    /// When.
    pub(super) next: Instant,
    pause: Duration,
    /// Bytes of the source's stream, and of the sink's, before this began.
    read: u64,
    base: u64,
    /// Passed bytes that were sent on.
    forwarded: u64,
    /// Bytes that were sent on and still lie at the source.
    unread: usize,
    /// Nothing that was redirected is in front of what was passed.
    is_clear: bool,
    taken: u64,
    drops: u32,
    has_grown: bool,
    /// Copied bytes that the sink did not take yet.
    rest: Vec<u8>,
}

impl Direction {
    /// Prepares the sockets; `read` bytes of the source were read before. Nothing is joined yet.
    pub(super) fn new(
        index: u32,
        wire: Wire<'_>,
        read: u64,
        now: Instant,
    ) -> std::io::Result<Self> {
        let next = sys::unread_from(wire.from, read)?;
        wire.record.reset(HIGH, PACKETS, next);
        sys::set_receive_buffer(wire.from, RECEIVE_BUFFER)?;
        sys::clamp_window(wire.from, WINDOW)?;
        sys::force_send_buffer(wire.to, SEND_BUFFER)?;
        Ok(Self {
            index,
            is_joined: false,
            is_ended: false,
            is_shut: false,
            is_active: false,
            next: now,
            pause: TICK,
            read,
            base: written(wire.to)?,
            forwarded: 0,
            unread: 0,
            is_clear: false,
            taken: 0,
            drops: sys::memory(wire.from)?.drops,
            has_grown: false,
            rest: Vec::new(),
        })
    }

    /// There is news of it.
    pub(super) fn wake(&mut self, wire: Wire<'_>, now: Instant) {
        (self.next, self.pause) = (now, TICK);
        if !self.is_active {
            self.is_active = true;
            self.clamp(wire);
        }
    }

    /// Looks after it: grants credit, sends on what was passed.
    pub(super) fn tend(
        &mut self,
        wire: Wire<'_>,
        buffer: &mut [u8],
        now: Instant,
    ) -> Result<(), Fault> {
        let record = wire.record;
        if record.is_broken() {
            return Err(Fault::Source);
        }
        if record.passed() != self.forwarded {
            self.make_room(wire);
        }
        let taken = self.grant(wire)?;
        let is_open = self.forward(wire, buffer, taken)?;
        self.pause = if taken == self.taken {
            (self.pause * 3 / 2).min(SLOW)
        } else {
            TICK
        };
        self.taken = taken;
        self.next = now + self.pause - TICK / 2;
        if is_open && self.unread > 0 {
            self.discard(wire, buffer, self.unread - 1)?;
            if self.unread > 0 {
                self.next = now + TICK;
                return Ok(());
            }
        }
        if is_open && self.under_way(record, taken) * 4 < HIGH {
            self.rest_if_idle(wire, now)?;
        }
        Ok(())
    }

    /// Not to be looked at until there is news, unless there is some already.
    fn rest_if_idle(&mut self, wire: Wire<'_>, now: Instant) -> Result<(), Fault> {
        wire.record.listen();
        let taken = self.grant(wire)?;
        let is_busy =
            wire.record.passed() != self.forwarded || self.under_way(wire.record, taken) * 2 > HIGH;
        if is_busy {
            (self.next, self.pause) = (now, TICK);
        } else {
            self.is_active = false;
        }
        Ok(())
    }

    /// Tells the program what the far end has taken.
    fn grant(&self, wire: Wire<'_>) -> Result<u64, Fault> {
        let info = sys::info(wire.to).map_err(|_| Fault::Sink)?;
        let taken = info.acked.saturating_sub(self.base);
        wire.record.drain(taken);
        Ok(taken)
    }

    fn under_way(&self, record: &Record<'_>, taken: u64) -> u64 {
        (record.redirected() + self.forwarded).saturating_sub(taken)
    }

    /// Sends on what the program passed. Whether that is all, and the gate open.
    fn forward(&mut self, wire: Wire<'_>, buffer: &mut [u8], taken: u64) -> Result<bool, Fault> {
        for _ in 0..ROUNDS {
            let passed = wire.record.passed();
            if passed == self.forwarded {
                self.open(wire, buffer)?;
                return Ok(true);
            }
            if !self.is_clear && !self.may_send(wire, taken)? {
                return Ok(false);
            }
            self.is_clear = true;
            if self.unread * 2 > buffer.len() {
                self.discard(wire, buffer, 0)?;
            }
            let most = usize::try_from(passed - self.forwarded).unwrap_or(usize::MAX);
            let most = most.saturating_add(self.unread).min(buffer.len());
            let there = match sys::receive(wire.from, &mut buffer[..most], true) {
                Err(Errno::AGAIN) => return Ok(false),
                Err(_) => return Err(Fault::Source),
                Ok(there) if there <= self.unread => return Ok(false),
                Ok(there) => there,
            };
            let written = match sys::send(wire.to, &buffer[self.unread..there]) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(false),
                Err(_) => return Err(Fault::Sink),
                Ok(written) => written,
            };
            let is_whole = self.unread + written == there;
            self.forwarded += written as u64;
            self.unread += written;
            if self.forwarded == passed {
                // First the gate, and only then the window; and what was passed meanwhile is seen
                // by the next round.
                self.is_clear = false;
                wire.record.consume(passed);
            } else if !is_whole {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Whether all that was redirected is in the sink's stream, so that what was passed may follow.
    /// Until that was sent on, nothing more is redirected.
    fn may_send(&self, wire: Wire<'_>, taken: u64) -> Result<bool, Fault> {
        let sum = wire.record.redirected() + self.forwarded;
        if sum.saturating_sub(taken) > LOW {
            return Ok(false);
        }
        Ok(self.sent(wire)? >= sum)
    }

    /// Bytes that are in the sink's stream, or fewer.
    fn sent(&self, wire: Wire<'_>) -> Result<u64, Fault> {
        // In this order: what is confirmed in between counts in neither.
        let acked = sys::info(wire.to).map_err(|_| Fault::Sink)?.acked;
        Ok((acked + unsent(wire.to) as u64).saturating_sub(self.base))
    }

    /// With the gate open, lets the source's window open as well.
    fn open(&mut self, wire: Wire<'_>, buffer: &mut [u8]) -> Result<(), Fault> {
        if self.unread == 0 {
            return Ok(());
        }
        if self.has_grown {
            self.has_grown = false;
            let _ = sys::set_receive_buffer(wire.from, RECEIVE_BUFFER);
        }
        self.clamp(wire);
        self.discard(wire, buffer, KEPT)
    }

    /// The kernel forgets it when it measures the sender anew.
    fn clamp(&self, wire: Wire<'_>) {
        let _ = sys::clamp_window(wire.from, WINDOW);
    }

    /// Reads what was sent on, except for `keep` bytes; the last ones by themselves. A whole window
    /// may arrive within a read and is then confirmed with a window that subtracts it; only one
    /// more read tells the sender of the room, which else waits for 200 ms.
    fn discard(&mut self, wire: Wire<'_>, buffer: &mut [u8], keep: usize) -> Result<(), Fault> {
        while self.unread > keep {
            let most = if self.unread > keep + 2 {
                self.unread - keep - 2
            } else {
                1
            };
            let most = most.min(buffer.len());
            match sys::receive(wire.from, &mut buffer[..most], false) {
                Ok(0) | Err(_) => return Err(Fault::Source),
                Ok(read) => self.unread -= read,
            }
        }
        Ok(())
    }

    /// Grows the receive buffer when bytes in the window were dropped: what waited in front of it is
    /// counted late, and then even the peer's confirmations are dropped.
    fn make_room(&mut self, wire: Wire<'_>) {
        let Ok(memory) = sys::memory(wire.from) else {
            return;
        };
        let is_full = memory.used.saturating_add(NEAR_FULL) > memory.limit;
        if memory.drops != self.drops && is_full && memory.limit < MOST_RECEIVE {
            self.has_grown = true;
            let bytes = (memory.used.max(memory.limit).min(MOST_RECEIVE) + GROWTH) / 2;
            let _ = sys::force_receive_buffer(wire.from, bytes.cast_signed());
        }
        self.drops = memory.drops;
    }

    /// Whether everything before the end of the source's stream is in the sink's.
    pub(super) fn is_complete(&mut self, wire: Wire<'_>) -> Result<bool, Fault> {
        if !self.is_joined {
            return Ok(self.is_ended && self.rest.is_empty());
        }
        if !self.is_ended {
            return Ok(false);
        }
        let received = sys::info(wire.from).map_err(|_| Fault::Source)?.received;
        // The end counts one.
        let all = received.saturating_sub(1 + self.read);
        let passed = wire.record.passed();
        let seen = wire.record.redirected() + passed;
        if seen < all {
            self.kick(wire)?;
        }
        Ok(seen == all && passed == self.forwarded && self.sent(wire)? >= all)
    }

    /// Whether all that came is in the sink's stream and confirmed.
    pub(super) fn is_delivered(&self, wire: Wire<'_>) -> Result<bool, Fault> {
        if !self.is_joined {
            return Ok(self.rest.is_empty() && unsent(wire.to) == 0);
        }
        let passed = wire.record.passed();
        let sum = wire.record.redirected() + passed;
        Ok(passed == self.forwarded && self.sent(wire)? >= sum && unsent(wire.to) == 0)
    }

    /// Has the kernel give the program what lies at the source. A reset that is there is told by this
    /// and by nothing else any more.
    pub(super) fn kick(&self, wire: Wire<'_>) -> Result<(), Fault> {
        match sys::receive(wire.from, &mut [0], true) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(_) => Err(Fault::Source),
        }
    }

    /// Copies what there is, when the source is not in the map. Returns how much the sink took.
    pub(super) fn copy(&mut self, wire: Wire<'_>, buffer: &mut [u8]) -> Result<usize, Fault> {
        let mut copied = 0;
        loop {
            if !self.rest.is_empty() {
                match sys::send(wire.to, &self.rest) {
                    Ok(written) => {
                        self.rest.drain(..written);
                        copied += written;
                    }
                    Err(Errno::AGAIN) => return Ok(copied),
                    Err(_) => return Err(Fault::Sink),
                }
                continue;
            }
            if self.is_ended {
                return Ok(copied);
            }
            match sys::receive(wire.from, buffer, false) {
                Ok(0) => self.is_ended = true,
                Ok(read) => self.rest = buffer[..read].to_vec(),
                Err(Errno::AGAIN) => return Ok(copied),
                Err(_) => return Err(Fault::Source),
            }
        }
    }

    /// Bytes that went from end to end by the gate.
    pub(super) fn carried(&self, record: &Record<'_>) -> u64 {
        record.redirected() + self.forwarded
    }
}

/// Bytes that were written to a socket so far. Nobody writes meanwhile.
fn written(socket: &OwnedFd) -> std::io::Result<u64> {
    loop {
        let before = sys::info(socket)?.acked;
        let waiting = unsent(socket) as u64;
        if sys::info(socket)?.acked == before {
            return Ok(before + waiting);
        }
    }
}
