//! Loss detection by time (RFC 8985 §6): a segment is lost when one that was sent enough later has
//! arrived.

use std::time::Duration;

use super::scoreboard::{Scoreboard, Sent};
use crate::seq;
use crate::time::Instant;

/// Recoveries for which a widened window of reordering lasts (RFC 8985 §6.2 step 4).
const PERSIST: u32 = 16;
/// Segments held beyond a gap that mean loss while no reordering was seen.
const DUPLICATES: usize = 3;

/// During a repair so long is waited for the next acknowledgement, which tells again what one that was
/// lost had told.
const ACK_GAP: Duration = Duration::from_millis(2);

/// What RACK remembers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rack {
    /// Time and end of the most recently sent segment that arrived.
    newest: Option<(Instant, u64)>,
    rtt: Duration,
    /// The highest position that arrived.
    forward: u64,
    reordering_seen: bool,
    /// Quarters of the smallest round trip by which segments may overtake each other, less one.
    widened: u32,
    persist: u32,
    /// A duplicate was reported; others count again when this position is acknowledged.
    duplicate_round: Option<u64>,
}

/// What the window of reordering depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conditions {
    pub(crate) min_rtt: Duration,
    pub(crate) smoothed_rtt: Duration,
    pub(crate) recovering: bool,
}

impl Rack {
    /// A segment arrived. `echo` is the timestamp by which the acknowledgement tells which transmission
    /// that was, if it does, in milliseconds of our clock (RFC 8985 §6.2 steps 2 and 3).
    pub(crate) fn delivered(
        &mut self,
        sent: &Sent,
        now: Instant,
        min_rtt: Option<Duration>,
        echo: Option<u32>,
    ) {
        if sent.end > self.forward {
            self.forward = sent.end;
        } else if sent.end < self.forward && !sent.retransmitted {
            self.reordering_seen = true;
        }
        let rtt = now.since(sent.time);
        if sent.retransmitted {
            // The acknowledgement may be for the first transmission.
            let is_first =
                echo.is_some_and(|echo| seq::is_older(echo, sent.time.as_millis() as u32));
            if is_first || min_rtt.is_some_and(|min| rtt < min) {
                return;
            }
        }
        self.rtt = rtt;
        let this = (sent.time, sent.end);
        if self.newest.is_none_or(|newest| this > newest) {
            self.newest = Some(this);
        }
    }

    /// The peer reported that it got something twice.
    pub(crate) fn duplicate_reported(&mut self, next: u64) {
        if self.duplicate_round.is_none() {
            self.duplicate_round = Some(next);
            self.widened = (self.widened + 1).min(15);
            self.persist = PERSIST;
        }
    }

    /// All below `position` is acknowledged.
    pub(crate) fn acknowledged(&mut self, position: u64) {
        if self.duplicate_round.is_some_and(|round| position >= round) {
            self.duplicate_round = None;
        }
    }

    /// A recovery ended.
    pub(crate) fn recovered(&mut self) {
        self.persist = self.persist.saturating_sub(1);
        if self.persist == 0 {
            self.widened = 0;
        }
    }

    /// By how much segments may overtake each other (RFC 8985 §6.2 step 4).
    pub(crate) fn window(&self, board: &Scoreboard, conditions: Conditions) -> Duration {
        let quarter = conditions.min_rtt / 4;
        if !self.reordering_seen && conditions.recovering {
            return quarter.min(ACK_GAP);
        }
        if !self.reordering_seen && board.sacked_segments() >= DUPLICATES {
            return Duration::ZERO;
        }
        let window = quarter * (self.widened + 1);
        window.min(conditions.smoothed_rtt)
    }

    /// Adds the segments that are lost by now to `lost`, and returns when to look again
    /// (RFC 8985 §6.2 step 5).
    pub(crate) fn detect(
        &self,
        board: &mut Scoreboard,
        conditions: Conditions,
        now: Instant,
        lost: &mut Vec<Sent>,
    ) -> Option<Instant> {
        let newest = self.newest?;
        let window = self.window(board, conditions);
        while let Some((id, sent)) = board.oldest_sent() {
            if (sent.time, sent.end) >= newest {
                return None;
            }
            let deadline = sent.time + self.rtt + window;
            if deadline > now {
                return Some(deadline);
            }
            lost.extend(board.lose(id));
        }
        None
    }

    /// The round-trip time of the most recently sent segment that arrived.
    pub(crate) fn rtt(&self) -> Duration {
        self.rtt
    }
}
