//! The retransmission timer, and tail loss probes (RFC 6298, RFC 8985 §6.3 and §7).

use std::time::Duration;

use super::scoreboard::{Fate, Sent};
use super::{AckInput, Phase, Recovery, Undo};
use crate::time::Instant;

/// A peer may hold an acknowledgement of a lone segment back for so long (RFC 8985 §7.2).
const WORST_DELAYED_ACK: Duration = Duration::from_millis(200);

/// What a retransmission timer does when it fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alarm {
    /// Looks whether segments that were overtaken are lost by now (RFC 8985 §6.3).
    Reordering,
    /// Sends a probe so that a lost tail is noticed (RFC 8985 §7).
    Probe,
    /// Believes all lost that should have arrived (RFC 6298).
    Timeout,
}

/// A tail loss probe that is on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct TailProbe {
    end: u64,
    retransmitted: bool,
}

impl Recovery {
    /// Sets the timer after something was sent: it runs from the first of what is in flight
    /// (RFC 6298 §5.1), a probe's from the last (RFC 8985 §7.2).
    pub(crate) fn arm_after_sending(&mut self, now: Instant) {
        if !matches!(self.alarm, Some((_, Alarm::Timeout | Alarm::Reordering))) {
            self.arm(now);
        }
    }

    /// RFC 8985 §7.4.2: an acknowledgement beyond a probe that was a retransmission tells that the
    /// probe repaired a loss, unless the peer says it had the segment. Returns whether it did.
    pub(super) fn end_probe(&mut self, input: &AckInput<'_>) -> bool {
        let Some(probe) = self.probe else {
            return false;
        };
        if input.edge < probe.end {
            return false;
        }
        let had_it = input.duplicate.is_some_and(|(_, end)| end == probe.end);
        let is_beyond = input.edge > probe.end;
        if !probe.retransmitted || had_it {
            self.probe = None;
            return false;
        }
        if is_beyond || input.is_bare && input.sacked.is_empty() {
            self.probe = None;
        }
        is_beyond
    }

    /// Chooses the timer anew.
    pub(super) fn arm(&mut self, now: Instant) {
        self.alarm = self.choose_alarm(now);
    }

    fn choose_alarm(&mut self, now: Instant) -> Option<(Instant, Alarm)> {
        if self.board.is_empty() {
            return None;
        }
        if self.sack {
            let conditions = self.conditions();
            let mut lost = std::mem::take(&mut self.lost);
            let at = self
                .rack
                .detect(&mut self.board, conditions, now, &mut lost);
            // Everything that is due was found before.
            self.report_lost(now, &lost);
            lost.clear();
            self.lost = lost;
            if let Some(at) = at {
                return Some((at, Alarm::Reordering));
            }
        }
        let timeout = now + self.rtt.rto();
        let may_probe = self.sack
            && self.phase == Phase::Open
            && self.probe.is_none()
            && self.rtt.backoff() == 0
            && self.board.sacked_segments() == 0;
        if may_probe {
            let at = now + self.probe_timeout();
            if at < timeout {
                return Some((at, Alarm::Probe));
            }
        }
        Some((timeout, Alarm::Timeout))
    }

    /// RFC 8985 §7.2.
    fn probe_timeout(&self) -> Duration {
        match self.rtt.smoothed() {
            None => Duration::from_secs(1),
            Some(smoothed) if self.board.len() == 1 => smoothed * 2 + WORST_DELAYED_ACK,
            Some(smoothed) => smoothed * 2 + Duration::from_millis(2),
        }
    }

    /// The alarm went off. Returns which it was.
    pub(crate) fn alarmed(&mut self, now: Instant) -> Option<Alarm> {
        self.judge(now);
        let (at, alarm) = self.alarm?;
        if at > now {
            return None;
        }
        match alarm {
            Alarm::Reordering => {
                let lost = self.detect(now, false);
                self.change_phase(now, false, lost, false);
                self.arm(now);
            }
            // The connection sends the probe, and says so.
            Alarm::Probe => self.alarm = Some((now + self.rtt.rto(), Alarm::Timeout)),
            Alarm::Timeout => self.timed_out(now),
        }
        Some(alarm)
    }

    /// A tail loss probe was sent: new data, or the last segment again.
    pub(crate) fn probed(&mut self, now: Instant, retransmitted: bool) {
        self.probe = Some(TailProbe {
            end: self.next,
            retransmitted,
        });
        self.alarm = Some((now + self.rtt.rto(), Alarm::Timeout));
    }

    /// What a tail loss probe sends if there is no new data.
    pub(crate) fn tail(&self) -> Option<(u64, Sent)> {
        self.board.last_missing()
    }

    /// RFC 6298 §5.4 to §5.7, RFC 8985 §6.3: what was sent long enough ago is lost.
    fn timed_out(&mut self, now: Instant) {
        // A peer that says it holds the first segment and does not acknowledge it takes back what
        // it said (RFC 2018 §8).
        if self
            .board
            .front()
            .is_some_and(|sent| sent.fate == Fate::Sacked)
        {
            self.board.forget_sacks();
        }
        let age = self.rack.rtt() + self.rack.window(&self.board, self.conditions());
        let first = self.board.front().map(|sent| sent.start);
        let all = !self.sack;
        let ids = self
            .board
            .in_flight_where(|sent| all || Some(sent.start) == first || sent.time + age <= now);
        let lost: Vec<Sent> = ids
            .into_iter()
            .filter_map(|id| self.board.lose(id))
            .collect();
        self.report_lost(now, &lost);
        let bytes: u64 = lost.iter().map(Sent::length).sum();
        if self.phase != Phase::Timeout {
            self.cc.on_timeout(now, self.board.in_flight() + bytes);
            self.undo = Some(Undo {
                unexplained: Some(0),
                first: None,
            });
        }
        self.phase = Phase::Timeout;
        self.prr = None;
        self.probe = None;
        self.duplicate_acks = 0;
        self.point = self.next;
        self.reduced = true;
        self.rtt.back_off();
        self.alarm = Some((now + self.rtt.rto(), Alarm::Timeout));
    }
}
