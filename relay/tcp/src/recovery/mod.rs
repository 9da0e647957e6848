//! The sender's memory: what is on its way, what is lost, when to send again, and what the
//! congestion control is told of it. It knows positions and times, and no packets.

mod alarms;
mod prr;
mod rack;
mod rate;
mod rtt;
mod scoreboard;

use std::time::Duration;

use crate::cc::{Ack, Congestion, Lost, Signal};
use crate::seq;
use crate::time::Instant;

pub(crate) use alarms::Alarm;
use alarms::TailProbe;
use prr::Prr;
use rack::{Conditions, Rack};
use rate::RateSampler;
pub(crate) use rtt::Rtt;
use scoreboard::Scoreboard;
pub(crate) use scoreboard::Sent;

/// Duplicate acknowledgements that mean a loss, where the peer knows no SACK (RFC 5681 §3.2).
const DUPLICATE_ACKS: u32 = 3;
/// Milliseconds after which an echoed timestamp is not believed.
const ECHO_EXPIRES: u32 = 300_000;

/// Whether something is being repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing is.
    Open,
    /// A loss that acknowledgements told (RFC 6675).
    Recovery,
    /// A loss that the timeout told.
    Timeout,
}

/// An acknowledgement as the recovery sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AckInput<'a> {
    pub(crate) now: Instant,
    /// The edge it acknowledges.
    pub(crate) edge: u64,
    /// What the peer holds beyond gaps.
    pub(crate) sacked: &'a [(u64, u64)],
    /// What the peer got twice.
    pub(crate) duplicate: Option<(u64, u64)>,
    /// Echoed timestamp in milliseconds of our clock.
    pub(crate) echo: Option<u32>,
    /// Whether it carries neither data nor a new window.
    pub(crate) is_bare: bool,
    /// Whether the peer echoes congestion.
    pub(crate) congested: bool,
}

/// What acknowledgements told that were not judged yet.
#[derive(Debug, Clone, Copy, Default)]
struct News {
    /// Bytes that arrived.
    acked: u64,
    in_flight_before: u64,
    rtt: Option<Duration>,
    /// The edge moved.
    moved: bool,
    undone: bool,
    congested: bool,
    probe_repaired: bool,
}

/// What an acknowledgement tells of segments that were believed lost.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    /// One arrived that was not sent again.
    late_original: bool,
    /// When the first that was not acknowledged had been sent again.
    first_resent: Option<Instant>,
}

/// What could be wrong about the repair that goes on.
#[derive(Debug, Clone, Copy)]
struct Undo {
    /// Retransmissions that were not reported as duplicates, those of an earlier repair included; none
    /// if there is no knowing.
    unexplained: Option<u32>,
    /// When the first retransmission was sent.
    first: Option<Instant>,
}

/// The sender's memory of one connection.
#[derive(Debug)]
pub(crate) struct Recovery {
    pub(crate) rtt: Rtt,
    board: Scoreboard,
    rate: RateSampler,
    rack: Rack,
    prr: Option<Prr>,
    cc: Box<dyn Congestion>,
    phase: Phase,
    /// The repair is over when this position is acknowledged.
    point: u64,
    undo: Option<Undo>,
    news: Option<News>,
    probe: Option<TailProbe>,
    /// Edge of what is acknowledged, and the next position to be sent.
    edge: u64,
    next: u64,
    mss: u64,
    sack: bool,
    duplicate_acks: u32,
    /// No second reaction to an echo of congestion before this position is acknowledged.
    congestion_point: u64,
    alarm: Option<(Instant, Alarm)>,
    window_limited: bool,
    /// Whether the window was reduced and the peer was not told (RFC 3168 §6.1.2).
    reduced: bool,
    /// When the peer acknowledged something last, or something was sent after a pause.
    pub(crate) progress: Instant,
    delivered: Vec<Sent>,
    lost: Vec<Sent>,
}

impl Recovery {
    /// A memory without anything sent; the first byte has position `start`.
    pub(crate) fn new(rtt: Rtt, cc: Box<dyn Congestion>, start: u64, mss: u64, sack: bool) -> Self {
        Self {
            rtt,
            board: Scoreboard::default(),
            rate: RateSampler::default(),
            rack: Rack::default(),
            prr: None,
            cc,
            phase: Phase::Open,
            point: start,
            undo: None,
            news: None,
            probe: None,
            edge: start,
            next: start,
            mss,
            sack,
            duplicate_acks: 0,
            congestion_point: start,
            alarm: None,
            window_limited: false,
            reduced: false,
            progress: Instant::ZERO,
            delivered: Vec::new(),
            lost: Vec::new(),
        }
    }

    /// Edge of what is acknowledged.
    pub(crate) fn edge(&self) -> u64 {
        self.edge
    }

    /// The next position to be sent for the first time.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Bytes on their way, as far as is known.
    pub(crate) fn in_flight(&self) -> u64 {
        // Without SACK, each duplicate acknowledgement tells that one segment arrived.
        let arrived = u64::from(self.duplicate_acks) * self.mss;
        self.board.in_flight().saturating_sub(arrived)
    }

    /// How much more may be put in flight now.
    pub(crate) fn room(&self) -> u64 {
        self.window().saturating_sub(self.in_flight())
    }

    /// The congestion window.
    pub(crate) fn window(&self) -> u64 {
        self.prr.as_ref().map_or(self.cc.window(), Prr::window)
    }

    /// How fast to send, in bytes per second.
    pub(crate) fn pacing_rate(&self) -> Option<u64> {
        self.cc.pacing_rate()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.board.is_empty()
    }

    /// The lowest segment that has to be sent again.
    pub(crate) fn first_lost(&self) -> Option<(u64, Sent)> {
        self.board.first_lost()
    }

    pub(crate) fn alarm(&self) -> Option<(Instant, Alarm)> {
        self.alarm
    }

    /// Whether the congestion window is what keeps data back.
    pub(crate) fn set_window_limited(&mut self) {
        self.window_limited = true;
    }

    /// The application has no more to send while the window would take more.
    pub(crate) fn set_app_limited(&mut self) {
        if !self.board.has_lost() {
            self.window_limited = false;
            self.rate.set_app_limited(self.in_flight());
        }
    }

    /// Segments have another size from now on; longer ones that are in flight are believed lost,
    /// which is no sign of congestion.
    pub(crate) fn set_mss(&mut self, mss: u64) {
        if mss < self.mss {
            self.board.cut(mss);
        }
        self.mss = mss;
        self.cc.set_mss(mss);
    }

    /// Whether the window was reduced since the last call.
    pub(crate) fn take_reduced(&mut self) -> bool {
        std::mem::take(&mut self.reduced)
    }

    /// All below `position` was acknowledged without having been sent by this memory's word.
    pub(crate) fn skip_to(&mut self, position: u64) {
        self.edge = self.edge.max(position);
        self.next = self.next.max(position);
    }

    /// The connection is over: nothing is on its way, and nothing is waited for.
    pub(crate) fn forget(&mut self) {
        self.board = Scoreboard::default();
        self.alarm = None;
        self.probe = None;
        self.news = None;
    }

    /// New data of `length` bytes is sent.
    pub(crate) fn sent(&mut self, now: Instant, length: u64) {
        let in_flight = self.in_flight();
        if self.board.is_empty() {
            self.progress = now;
        }
        self.count_sent(now, in_flight, length);
        let stamp = self.rate.stamp(now, in_flight, length);
        self.board.push(self.next, self.next + length, now, stamp);
        self.next += length;
    }

    /// A segment is sent again.
    pub(crate) fn resent(&mut self, now: Instant, id: u64, length: u64) {
        let in_flight = self.in_flight();
        self.count_sent(now, in_flight, length);
        let stamp = self.rate.stamp(now, in_flight, length);
        self.board.retransmit(id, now, stamp);
        if let Some(undo) = &mut self.undo {
            undo.first = undo.first.or(Some(now));
            if let Some(count) = &mut undo.unexplained {
                *count += 1;
            }
        }
    }

    fn count_sent(&mut self, now: Instant, in_flight: u64, length: u64) {
        self.cc
            .on_sent(now, in_flight, length, self.rate.is_app_limited());
        if let Some(prr) = &mut self.prr {
            prr.sent(length);
        }
    }

    /// Takes an acknowledgement. Returns whether it moved the edge. What it means is judged by
    /// [`judge`](Self::judge), once for all that came together: what arrived may take several of them
    /// to be told, and the first alone would make the rest look lost.
    pub(crate) fn acknowledged(&mut self, input: &AckInput<'_>) -> bool {
        let now = input.now;
        let mut news = self.news.take().unwrap_or_else(|| News {
            in_flight_before: self.in_flight(),
            ..News::default()
        });
        let moved = input.edge > self.edge;
        let mut delivered = std::mem::take(&mut self.delivered);
        self.board.acknowledge(input.edge, &mut delivered);
        let in_order = delivered.len();
        for &(start, end) in input.sacked {
            self.board
                .sack(start.max(input.edge), end.min(self.next), &mut delivered);
        }
        if moved {
            self.edge = input.edge;
            self.next = self.next.max(input.edge);
            self.progress = now;
            self.rtt.reset_backoff();
            self.rack.acknowledged(input.edge);
        }
        news.rtt = self
            .note_delivered(&delivered, in_order, input)
            .or(news.rtt);
        news.acked += delivered.iter().map(Sent::length).sum::<u64>();
        let arrival = Arrival {
            late_original: delivered
                .iter()
                .any(|sent| sent.fate == scoreboard::Fate::Lost && !sent.retransmitted),
            first_resent: (delivered[..in_order].first())
                .and_then(|sent| sent.retransmitted.then_some(sent.time)),
        };
        delivered.clear();
        self.delivered = match self.board.is_empty() {
            true => Vec::new(),
            false => delivered,
        };
        news.acked += self.count_duplicate_ack(input, moved);
        self.note_duplicate(input);
        news.moved |= moved;
        news.undone |= self.undo_if_spurious(input, arrival);
        news.congested |= input.congested;
        news.probe_repaired |= self.end_probe(input);
        self.news = Some(news);
        if !self.sack {
            // Each duplicate counts.
            self.judge(now);
        }
        moved
    }

    /// Judges the acknowledgements that came since the last call.
    pub(crate) fn judge(&mut self, now: Instant) {
        let Some(news) = self.news.take() else { return };
        let lost = self.detect(now, news.moved);
        if news.probe_repaired && self.phase == Phase::Open && lost == 0 {
            self.cc.on_congestion(now, Signal::Loss, self.in_flight());
            self.cc.on_recovered(now);
        }
        self.change_phase(now, news.moved, lost, news.undone);
        if news.congested {
            self.heed_congestion(now);
        }
        let ack = Ack {
            now,
            acked: news.acked,
            lost,
            in_flight_before: news.in_flight_before,
            in_flight: self.in_flight(),
            delivered: self.rate.total(),
            sample: self.rate.finish(self.rtt.min()),
            rtt: news.rtt,
            smoothed_rtt: self.rtt.smoothed(),
            edge: self.edge,
            next: self.next,
            window_limited: self.window_limited,
            recovering: self.phase == Phase::Recovery,
        };
        self.cc.on_ack(&ack);
        if let (Some(prr), Some(target)) = (&mut self.prr, self.cc.reduction_target()) {
            let safe = news.moved && lost == 0;
            prr.acknowledged(news.acked, ack.in_flight, target, self.mss, safe);
        }
        // RFC 6298 §5.3, RFC 8985 §7.2: news restart the timer.
        if news.acked > 0 || news.moved || lost > 0 || self.alarm.is_none() {
            self.arm(now);
        }
    }

    /// Measures with what arrived, of which the first `in_order` were below the edge, and returns
    /// the round-trip time if there was one.
    fn note_delivered(
        &mut self,
        delivered: &[Sent],
        in_order: usize,
        input: &AckInput<'_>,
    ) -> Option<Duration> {
        let rtt = round_trip(delivered, in_order, input);
        if let Some(rtt) = rtt {
            self.rtt.sample(rtt, input.now);
        } else if let (Some(echo), false) = (input.echo, delivered.is_empty()) {
            // Only the echoed timestamp tells which transmission was answered (RFC 7323 §4.1).
            let age = (input.now.as_millis() as u32).wrapping_sub(echo);
            if age < ECHO_EXPIRES {
                self.rtt
                    .sample(Duration::from_millis(u64::from(age.max(1))), input.now);
            }
        }
        for (index, sent) in delivered.iter().enumerate() {
            self.rate.delivered(sent, input.now);
            // What arrives beyond a gap does not change the echo (RFC 7323 §4.3).
            let echo = input.echo.filter(|_| index == 0 && in_order > 0);
            self.rack.delivered(sent, input.now, self.rtt.min(), echo);
        }
        rtt
    }

    /// Counts a duplicate acknowledgement of a peer without SACK, and returns the bytes it stands
    /// for.
    fn count_duplicate_ack(&mut self, input: &AckInput<'_>, moved: bool) -> u64 {
        if self.sack {
            return 0;
        }
        if moved {
            self.duplicate_acks = 0;
            return 0;
        }
        if !input.is_bare || self.board.is_empty() {
            return 0;
        }
        let most = (self.board.in_flight() / self.mss) as u32;
        if self.duplicate_acks >= most {
            return 0;
        }
        self.duplicate_acks += 1;
        self.mss
    }

    fn note_duplicate(&mut self, input: &AckInput<'_>) {
        if input.duplicate.is_none() {
            return;
        }
        self.rack.duplicate_reported(self.next);
        if let Some(Undo {
            unexplained: Some(count),
            ..
        }) = &mut self.undo
        {
            *count = count.saturating_sub(1);
        }
    }

    /// Eifel by timestamps (RFC 3522), by duplicates reported (RFC 3708), and F-RTO's rule that a
    /// segment which arrives without having been sent again proves the timeout wrong (RFC 5682).
    ///
    /// The timestamp is that of what filled the first gap. It is compared with when that was sent
    /// again, too, which may have been during an earlier repair.
    fn undo_if_spurious(&mut self, input: &AckInput<'_>, arrival: Arrival) -> bool {
        if self.phase == Phase::Open {
            return false;
        }
        let Some(undo) = self.undo else { return false };
        let by_timestamp = match (undo.first, arrival.first_resent, input.echo) {
            (Some(first), Some(resent), Some(echo)) => {
                seq::is_older(echo, first.min(resent).as_millis() as u32)
            }
            _ => false,
        };
        let by_duplicates = undo.first.is_some() && undo.unexplained == Some(0);
        let by_original = self.phase == Phase::Timeout && arrival.late_original;
        if !(by_timestamp || by_duplicates || by_original) {
            return false;
        }
        self.cc.undo(input.now);
        self.board.unlose();
        self.phase = Phase::Open;
        self.prr = None;
        self.undo = None;
        true
    }

    /// Finds losses and returns their bytes.
    fn detect(&mut self, now: Instant, moved: bool) -> u64 {
        let mut lost = std::mem::take(&mut self.lost);
        if self.sack {
            let conditions = self.conditions();
            self.rack
                .detect(&mut self.board, conditions, now, &mut lost);
        } else {
            self.detect_without_sack(moved, &mut lost);
        }
        let bytes = self.report_lost(now, &lost);
        lost.clear();
        self.lost = lost;
        bytes
    }

    /// NewReno (RFC 6582): three duplicates mean that the first segment is lost, and a partial
    /// acknowledgement during the repair that the next one is.
    fn detect_without_sack(&mut self, moved: bool, lost: &mut Vec<Sent>) {
        let by_duplicates = self.phase == Phase::Open && self.duplicate_acks == DUPLICATE_ACKS;
        let by_part = self.phase == Phase::Recovery && moved && self.edge < self.point;
        if !(by_duplicates || by_part) {
            return;
        }
        if let Some((id, sent)) = self.board.first_missing()
            && !(by_part && sent.retransmitted)
        {
            lost.extend(self.board.lose(id));
        }
    }

    fn report_lost(&mut self, now: Instant, lost: &[Sent]) -> u64 {
        let mut bytes = 0;
        for sent in lost {
            bytes += sent.length();
            self.rate.lost(sent.length());
            self.cc.on_lost(&Lost {
                now,
                bytes: sent.length(),
                in_flight_when_sent: sent.stamp.in_flight,
                lost_since: self.rate.lost_since(&sent.stamp),
                prior_delivered: sent.stamp.delivered,
                delivered: self.rate.total(),
                app_limited: sent.stamp.app_limited,
            });
        }
        bytes
    }

    fn change_phase(&mut self, now: Instant, moved: bool, lost: u64, undone: bool) {
        if self.phase != Phase::Open && moved && self.edge >= self.point {
            self.finish_repair(now);
        }
        if self.phase == Phase::Open && lost > 0 {
            self.begin_recovery(now, undone);
        }
    }

    fn begin_recovery(&mut self, now: Instant, undone: bool) {
        let in_flight = self.in_flight();
        // RFC 5681 §3.1: all that was sent and not acknowledged, also what the peer says it holds.
        let flight = self.next - self.edge;
        self.cc.on_congestion(now, Signal::Loss, flight);
        self.prr = self
            .cc
            .reduction_target()
            .map(|_| Prr::start(flight, in_flight, self.mss));
        self.phase = Phase::Recovery;
        self.point = self.next;
        self.congestion_point = self.next;
        self.reduced = true;
        let on_their_way = self.board.count_in_flight(|sent| sent.retransmitted);
        self.undo = Some(Undo {
            unexplained: (!undone).then_some(on_their_way as u32),
            first: None,
        });
    }

    fn finish_repair(&mut self, now: Instant) {
        if self.phase == Phase::Recovery {
            self.rack.recovered();
        }
        self.phase = Phase::Open;
        self.prr = None;
        self.undo = None;
        self.duplicate_acks = 0;
        self.cc.on_recovered(now);
    }

    /// RFC 3168 §6.1.2: one reduction for a window of data.
    fn heed_congestion(&mut self, now: Instant) {
        if self.phase == Phase::Open && self.edge >= self.congestion_point {
            self.cc.on_congestion(now, Signal::Ecn, self.in_flight());
            self.congestion_point = self.next;
            self.reduced = true;
        }
    }

    fn conditions(&self) -> Conditions {
        Conditions {
            min_rtt: self.rtt.min().unwrap_or_default(),
            smoothed_rtt: self.rtt.smoothed().unwrap_or_default(),
            recovering: self.phase != Phase::Open,
        }
    }
}

/// The round-trip time that the newest of the delivered segments tells (RFC 6298 §3): none of what
/// was sent twice, and none of what waited below the edge for something that was sent twice.
fn round_trip(delivered: &[Sent], in_order: usize, input: &AckInput<'_>) -> Option<Duration> {
    let waited = delivered[..in_order].iter().any(|sent| sent.retransmitted);
    let told = if waited {
        &delivered[in_order..]
    } else {
        delivered
    };
    let once = told.iter().filter(|sent| !sent.retransmitted);
    let newest = once.max_by_key(|sent| sent.time)?;
    Some(input.now.since(newest.time))
}

#[cfg(test)]
mod tests;
