//! What an acknowledgement does to the sending side (RFC 9293 §3.10.7.4, fifth).

use super::{CloseReason, Connection, State};
use crate::recovery::AckInput;
use crate::segment::{Flags, Segment};
use crate::seq;
use crate::time::Instant;

impl Connection {
    /// Takes the acknowledgement of a segment at `position`. Returns whether the segment's data
    /// may be looked at.
    pub(super) fn handle_ack(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        position: u64,
    ) -> bool {
        let edge = self.recovery.edge();
        let ack = seq::position(edge, segment.ack);
        if self.state == State::SynReceived && !self.open_by_ack(now, segment, ack) {
            return false;
        }
        // RFC 5961 §5: neither what was never sent, nor what is older than any window.
        if ack > self.recovery.next() || ack + self.send_window_max.max(1 << 16) < edge {
            self.challenge(now);
            return false;
        }
        let window_changed = self.update_window(segment, position, ack);
        self.tell_recovery(now, segment, ack, window_changed);
        if self.recovery.edge() > edge {
            self.buffer.acknowledge(self.recovery.edge());
            self.tell_writer();
        }
        true
    }

    /// In SYN-RECEIVED only an acknowledgement of our SYN counts, and of what was sent behind it.
    fn open_by_ack(&mut self, now: Instant, segment: &Segment<'_>, ack: u64) -> bool {
        if !(self.recovery.edge()..=self.recovery.next()).contains(&ack) {
            self.reset = Some(ack);
            if self.passive {
                self.finish(CloseReason::Reset);
                self.reset = Some(ack);
            }
            return false;
        }
        self.establish(now);
        let window = u64::from(segment.window) << self.shift_of(segment);
        self.send_edge = ack + window;
        self.send_window_max = self.send_window_max.max(window);
        true
    }

    fn shift_of(&self, segment: &Segment<'_>) -> u8 {
        match segment.flags.has(Flags::SYN) {
            true => 0,
            false => self.agreed.send_shift,
        }
    }

    /// Takes the window of a segment that is not older than the one that told it last. Returns
    /// whether it changed.
    fn update_window(&mut self, segment: &Segment<'_>, position: u64, ack: u64) -> bool {
        if ack < self.recovery.edge() || (position, ack) < self.window_from {
            return false;
        }
        self.window_from = (position, ack);
        let window = u64::from(segment.window) << self.shift_of(segment);
        let changed = ack + window != self.send_edge;
        self.send_edge = ack + window;
        self.send_window_max = self.send_window_max.max(window);
        if window > 0
            && let Some(persist) = &mut self.persist
        {
            persist.opened();
        }
        changed
    }

    fn tell_recovery(
        &mut self,
        now: Instant,
        segment: &Segment<'_>,
        ack: u64,
        window_changed: bool,
    ) {
        let edge = self.recovery.edge();
        let ack = ack.max(edge);
        let (mut blocks, mut count) = ([(0, 0); 4], 0);
        let mut duplicate = None;
        if self.agreed.sack {
            for (index, &(start, end)) in segment.options.sack.as_slice().iter().enumerate() {
                let (start, end) = (seq::position(edge, start), seq::position(edge, end));
                if start >= end || end > self.recovery.next() {
                    continue;
                }
                let old = end <= ack;
                let inside = || {
                    let next = segment.options.sack.as_slice().get(1).copied();
                    next.is_some_and(|(from, to)| {
                        seq::position(edge, from) <= start && end <= seq::position(edge, to)
                    })
                };
                if index == 0 && (old || inside()) {
                    // RFC 2883 §4: the first block tells what came twice.
                    duplicate = Some((start, end));
                } else if !old {
                    blocks[count] = (start.max(ack), end);
                    count += 1;
                }
            }
        }
        let blocks = &mut blocks[..count];
        blocks.sort_unstable();
        let offset = self.secrets.timestamp_offset;
        let echo = segment
            .options
            .timestamps
            .filter(|_| self.agreed.timestamps);
        self.recovery.acknowledged(&AckInput {
            now,
            edge: ack,
            sacked: blocks,
            duplicate,
            echo: echo.map(|(_, echo)| echo.wrapping_sub(offset)),
            is_bare: segment.length() == 0 && !window_changed,
            congested: self.agreed.ecn && segment.flags.has(Flags::ECE),
        });
    }

    /// Tells a writer that was cut short once there is room worth waking it for, and one that waits
    /// for the end of all it wrote.
    pub(super) fn tell_writer(&mut self) {
        let worthwhile = self.config.send_reserve.min(self.config.send_buffer_max) / 2;
        if self.buffer.len() + worthwhile <= self.send_limit() {
            self.wake_writer();
        }
        if self.flush_awaited && self.is_flushed() {
            self.flush_awaited = false;
            self.events.writable = true;
        }
    }
}
