//! What arrives: data, the peer's end, windows offered, and when to acknowledge.

use std::time::Duration;

use super::{Connection, State};
use crate::segment::{Flags, Options, SackBlocks, Segment};
use crate::seq;
use crate::time::Instant;

/// At the start each segment is acknowledged at once, so that the peer's window grows fast.
const QUICK: u32 = 16;
/// Places beyond gaps that are remembered until they were told often enough.
const MOST_TOUCHED: usize = 48;
/// How often each is told: an acknowledgement may be lost (RFC 2018 §4).
const TELLINGS: u8 = 2;
/// A buffer that was large goes back to its first size after so much silence.
const SHRINK_AFTER: Duration = Duration::from_secs(10);

/// When to acknowledge.
#[derive(Debug, Clone, Default)]
pub(super) struct AckDue {
    pub(super) immediate: bool,
    pub(super) delayed_until: Option<Instant>,
    /// Bytes and segments that arrived since the last acknowledgement.
    bytes: u64,
    segments: u32,
    quick: u32,
    /// The number acknowledged last.
    pub(super) last_sent: u64,
    /// What came twice (RFC 2883).
    pub(super) duplicate: Option<(u64, u64)>,
    /// Where data beyond gaps came that was not told often enough, the latest last (RFC 2018 §4: its
    /// range is told first).
    touched: Vec<Touched>,
    /// One past the data that came beyond a gap last.
    touched_end: u64,
    /// Segments out of order that were not answered; a peer without SACK counts answers.
    pub(super) out_of_order: u32,
    /// The largest payload seen.
    largest: u64,
}

impl AckDue {
    /// Acknowledges with the next transmission.
    pub(super) fn now(&mut self) {
        self.immediate = true;
    }

    /// An acknowledgement of `number` was sent.
    pub(super) fn sent(&mut self, number: u64) {
        self.immediate = false;
        self.delayed_until = None;
        self.bytes = 0;
        self.segments = 0;
        self.last_sent = number;
        self.duplicate = None;
        self.out_of_order = 0;
        // The last one stays: until something new comes, its range is still the latest.
        let latest = self.touched.pop();
        self.touched
            .extend(latest.map(|touched| Touched { told: 0, ..touched }));
        self.touched.retain_mut(|touched| {
            touched.told += 1;
            touched.told < TELLINGS
        });
    }

    fn touch(&mut self, start: u64, length: u64) {
        if start != self.touched_end || self.touched.is_empty() {
            if self.touched.len() >= MOST_TOUCHED {
                self.touched.remove(0);
            }
            self.touched.push(Touched {
                position: start,
                told: 0,
            });
        }
        self.touched_end = start + length;
    }
}

/// Where data beyond a gap came.
#[derive(Debug, Clone, Copy)]
struct Touched {
    position: u64,
    /// In how many acknowledgements.
    told: u8,
}

/// How fast the application reads, which decides how large the buffer should be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tuning {
    since: Instant,
    bytes: u64,
}

impl Tuning {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            bytes: 0,
        }
    }
}

impl Connection {
    /// RFC 9293 §3.10.7.4, seventh and eighth.
    pub(super) fn handle_data(&mut self, now: Instant, segment: &Segment<'_>, position: u64) {
        let (start, payload) = self.cut_to_window(segment, position);
        let has_fin = segment.flags.has(Flags::FIN);
        if !self.state.may_receive() {
            if !segment.payload.is_empty() || has_fin {
                self.ack_due.now();
            }
            return;
        }
        if !payload.is_empty() {
            if self.read_closed {
                // RFC 9293 §3.6.1: nobody will read this, and the peer should know.
                self.abort();
                return;
            }
            self.store(now, start, payload);
        } else if !segment.payload.is_empty() {
            // All of it lies beyond the window.
            self.ack_due.now();
        }
        let fin = position + segment.payload.len() as u64;
        if has_fin
            && self.fin_at.is_none()
            && fin >= self.receive.next()
            && fin <= self.receive_edge
        {
            self.fin_at = Some(fin);
            if fin > self.receive.next() {
                self.ack_due.now();
            }
        }
        if self.fin_at == Some(self.receive.next()) {
            self.fin_taken = true;
            self.events.finished = true;
            self.events.readable = true;
            self.acknowledge_end(now);
        }
    }

    /// The part of a payload that lies in the window, and before the peer's end.
    fn cut_to_window<'a>(&self, segment: &Segment<'a>, position: u64) -> (u64, &'a [u8]) {
        let mut payload = segment.payload;
        let edge = self
            .fin_at
            .map_or(self.receive_edge, |fin| fin.min(self.receive_edge));
        let room = edge.saturating_sub(position);
        if payload.len() as u64 > room {
            payload = &payload[..room as usize];
        }
        // Positions below the first byte belong to no data of this connection.
        let below = (self.receive_start + 1).saturating_sub(position);
        let below = below.min(payload.len() as u64) as usize;
        (position + below as u64, &payload[below..])
    }

    fn store(&mut self, now: Instant, start: u64, payload: &[u8]) {
        let length = payload.len() as u64;
        let had_gap = !self.receive.beyond().is_empty();
        let stored = self.receive.store(start, payload);
        self.ack_due.largest = self.ack_due.largest.max(length);
        self.ack_due.bytes += length;
        self.ack_due.segments += 1;
        self.ack_due.duplicate = self.ack_due.duplicate.or(stored.duplicate);
        if stored.in_order > 0 {
            self.events.readable = true;
        } else {
            self.ack_due.touch(start, length);
            self.ack_due.out_of_order += 1;
        }
        let is_plain = stored.in_order > 0 && !had_gap && stored.duplicate.is_none();
        if !is_plain || stored.refused || self.is_ack_owed(length) {
            self.ack_due.now();
        } else {
            self.acknowledge_later(now);
        }
    }

    /// RFC 9293 §3.8.6.3: at least every second full segment.
    fn is_ack_owed(&mut self, length: u64) -> bool {
        let patient = self.config.patient_acks;
        if self.ack_due.quick < QUICK && !(patient && length < self.mss as u64 / 2) {
            self.ack_due.quick += 1;
            return true;
        }
        self.ack_due.bytes >= 2 * self.ack_due.largest || patient && self.ack_due.segments >= 2
    }

    /// Acknowledges with the next segment, or after a while.
    fn acknowledge_later(&mut self, now: Instant) {
        if self.ack_due.delayed_until.is_none() {
            self.ack_due.delayed_until = Some(now + self.config.delayed_ack);
        }
    }

    /// The peer's end was taken. While ours is to come, it may carry the acknowledgement.
    fn acknowledge_end(&mut self, now: Instant) {
        match self.config.patient_acks && !self.fin_queued {
            true => self.acknowledge_later(now),
            false => self.ack_due.now(),
        }
    }

    /// The window to offer, and the edge it stands for. The edge never moves back, and moves
    /// forward only in steps worth a segment (RFC 9293 §3.8.6.2.2).
    pub(super) fn offer_window(&mut self) -> u16 {
        let next = self.receive_next();
        let shift = self.agreed.receive_shift;
        let wanted = next + self.free();
        let step = (self.receive_limit / 2).min(self.ack_due.largest.max(self.mss as u64));
        let edge = match wanted >= self.receive_edge + step || self.receive_edge <= next {
            true => wanted.max(self.receive_edge),
            false => self.receive_edge,
        };
        let unit = 1_u64 << shift;
        let window = edge - next;
        // Rounded down, except where that would move the edge back.
        let mut field = window >> shift;
        if next + field * unit < self.receive_edge {
            field = window.div_ceil(unit);
        }
        let field = field.min(0xffff);
        self.receive_edge = self.receive_edge.max(next + field * unit);
        field as u16
    }

    /// The window in the SYN or its answer, which is not shifted (RFC 7323 §2.2).
    pub(super) fn offer_first_window(&mut self) -> u16 {
        let window = self.free().min(0xffff);
        if self.state == State::SynReceived {
            self.receive_edge = self.receive_edge.max(self.receive_next() + window);
        }
        window as u16
    }

    pub(super) fn free(&self) -> u64 {
        self.receive_limit.saturating_sub(self.receive.unread())
    }

    /// Tells the peer that there is room again, once it is worth a packet.
    pub(super) fn offer_window_after_read(&mut self) {
        if !self.state.may_receive() || self.fin_at.is_some() {
            return;
        }
        let next = self.receive_next();
        let current = self.receive_edge.saturating_sub(next);
        let gain = (next + self.free()).saturating_sub(self.receive_edge);
        let segment = self.ack_due.largest.max(self.mss as u64);
        let was_closed = current < segment && gain >= segment.min(self.receive_limit / 2);
        if was_closed || gain >= (self.receive_limit / 4).max(2 * segment) {
            self.ack_due.now();
        }
    }

    /// Lets the buffer grow with what the application reads in a round trip. It has to hold that
    /// several times: the peer's window may double each round, and while a lost segment comes again
    /// nothing can be read. It is a promise, not memory: pieces are taken as data comes.
    pub(super) fn tune_receive_limit(&mut self, now: Instant, read: u64) {
        let config = &self.config;
        let elapsed = now.since(self.tuning.since);
        let is_scarce = self.receive.pool().is_scarce();
        if elapsed > SHRINK_AFTER || is_scarce {
            self.receive_limit = config.receive_buffer.min(self.receive_max);
        }
        self.tuning.bytes += read;
        let round = self
            .recovery
            .rtt
            .min()
            .unwrap_or(Duration::from_millis(100));
        if elapsed < round {
            return;
        }
        if !is_scarce {
            let wanted = self.tuning.bytes.saturating_mul(8).min(self.receive_max);
            self.receive_limit = self.receive_limit.max(wanted);
        }
        self.tuning = Tuning::new(now);
    }

    /// The options of the acknowledgements that are due: timestamps, and what arrived out of order,
    /// the latest first (RFC 2018 §4, RFC 2883 §4). There are as many as it takes to tell all that
    /// came since the last acknowledgement: what the peer is not told it believes lost.
    pub(super) fn ack_options(&self, now: Instant) -> Vec<Options> {
        let plain = self.data_options(now);
        if !self.agreed.sack || !self.has_gaps_to_tell() {
            // A peer without SACK counts the answers to segments out of order (RFC 5681 §3.2).
            let count = match self.agreed.sack {
                true => 1,
                false => self.ack_due.out_of_order.clamp(1, 64),
            };
            return vec![plain; count as usize];
        }
        let room = match self.agreed.timestamps {
            true => SackBlocks::BESIDE_TIMESTAMPS,
            false => 4,
        };
        let (mut blocks, news) = self.blocks_to_tell(room);
        // All acknowledgements of a run have the same length.
        let count = news.div_ceil(room).max(1);
        blocks.truncate(count * room);
        let length = blocks.len() / count;
        let with = |blocks: &[(u64, u64)]| {
            let mut options = plain;
            for &(start, end) in blocks {
                options.sack.push(seq::number(start), seq::number(end));
            }
            options
        };
        // The latest news go out last, as the newest acknowledgement.
        blocks.chunks_exact(length.max(1)).rev().map(with).collect()
    }

    /// What came twice, then the ranges that changed and were not told often enough, the latest first,
    /// then others; and how many of them have to be told.
    fn blocks_to_tell(&self, room: usize) -> (Vec<(u64, u64)>, usize) {
        let beyond = self.receive.beyond();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let touched = self.ack_due.touched.iter().rev();
        for block in touched.filter_map(|touched| beyond.around(touched.position)) {
            if !ranges.contains(&block) {
                ranges.push(block);
            }
        }
        let changed = ranges.len();
        for block in beyond.downwards().take(changed + 2 * room) {
            if !ranges.contains(&block) {
                ranges.push(block);
            }
        }
        // What came twice may lie in a range that is told as well.
        let twice = self.ack_due.duplicate;
        let news = changed + usize::from(twice.is_some());
        (twice.into_iter().chain(ranges).collect(), news)
    }

    /// The options each segment has.
    pub(super) fn data_options(&self, now: Instant) -> Options {
        let timestamps = self.agreed.timestamps;
        Options {
            timestamps: timestamps.then(|| (self.timestamp(now), self.timestamps.recent)),
            ..Options::default()
        }
    }

    /// Whether an acknowledgement has more to tell than its number.
    pub(super) fn has_gaps_to_tell(&self) -> bool {
        !self.receive.beyond().is_empty() || self.ack_due.duplicate.is_some()
    }
}
