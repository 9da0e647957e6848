//! What BBR measures: rounds, bandwidth, aggregation, and the bounds that loss sets
//! (draft §5.5).

use std::time::Duration;

use super::{BETA, Bbr, HEADROOM, LOSS_THRESHOLD, MIN_SEGMENTS, Phase};
use crate::cc::{Ack, Lost, RateSample};
use crate::time::{Instant, bytes_in};

/// Rounds that a measure of aggregation counts (draft §2.11), in two halves.
const AGGREGATION_ROUNDS: u64 = 5;
/// Segments lost in a round of startup that may mean a full queue (draft §5.3.1.3).
const STARTUP_LOSSES: u32 = 6;

/// A longer time without acknowledgements is a stall.
const LONGEST_GAP: Duration = Duration::from_millis(50);
/// Lost segments that alone mean nothing.
const FEW_LOSSES: u64 = 1;
/// Standard deviations by which loss exceeds the threshold when that is no chance. Random loss of half
/// the threshold is further away than that; and the more there are, the later a small flight gives
/// way to others. To leave startup too early costs most.
const CONFIDENCE: f64 = 1.0;
const STARTUP_CONFIDENCE: f64 = 2.0;

/// Bandwidth and aggregation.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    /// The highest rate of this cycle of probing and of the one before.
    bandwidth: [u64; 2],
    /// Bytes acknowledged beyond what the bandwidth explains: the most of two halves of the window.
    extra: [u64; 2],
    /// The longest time between two acknowledgements, in the same halves.
    gap: [Duration; 2],
    last_ack: Option<Instant>,
    extra_round: u64,
    interval_start: Instant,
    interval_acked: u64,
}

impl Model {
    pub(super) fn max_bandwidth(&self) -> u64 {
        self.bandwidth[0].max(self.bandwidth[1])
    }

    fn sample(&mut self, sample: &RateSample) {
        if sample.rate >= self.max_bandwidth() || !sample.app_limited {
            self.bandwidth[0] = self.bandwidth[0].max(sample.rate);
        }
    }

    /// A cycle of probing ended: what was measured two cycles ago is forgotten.
    pub(super) fn advance(&mut self) {
        if self.bandwidth[0] > 0 {
            self.bandwidth = [0, self.bandwidth[0]];
        }
    }

    /// Room for what comes in clumps. The draft counts what was acknowledged beyond the bandwidth;
    /// where the clumps are longer than the round trip (two busy machines near each other) that
    /// never lets the window grow, so that what the bandwidth brings between two clumps counts,
    /// too: once for what is on its way, once for its acknowledgements.
    pub(super) fn extra_acked(&self, bandwidth: u64) -> u64 {
        let gap = self.gap[0].max(self.gap[1]);
        let between = bytes_in(bandwidth, gap).saturating_mul(2);
        self.extra[0].max(self.extra[1]).max(between)
    }

    fn restart_aggregation(&mut self, now: Instant) {
        self.interval_start = now;
        self.interval_acked = 0;
    }

    /// Sending begins anew after a pause, which is no clump.
    pub(super) fn restart(&mut self, now: Instant) {
        self.restart_aggregation(now);
        self.last_ack = None;
    }

    fn note_gap(&mut self, ack: &Ack) {
        let app_limited = ack.sample.is_none_or(|sample| sample.app_limited);
        if let (Some(last), false) = (self.last_ack, app_limited) {
            let gap = ack.now.since(last).min(LONGEST_GAP);
            self.gap[0] = self.gap[0].max(gap);
        }
        self.last_ack = Some(ack.now);
    }

    /// Draft §5.5.9: how much more is acknowledged at once than the bandwidth explains.
    fn aggregate(&mut self, ack: &Ack, bandwidth: u64, window: u64, round: u64, long: bool) {
        let length = if long { AGGREGATION_ROUNDS } else { 1 };
        if round >= self.extra_round + length {
            self.extra_round = round;
            self.extra = [0, self.extra[0]];
            self.gap = [Duration::ZERO, self.gap[0]];
        }
        self.note_gap(ack);
        let mut expected = bytes_in(bandwidth, ack.now.since(self.interval_start));
        if self.interval_acked <= expected {
            self.restart_aggregation(ack.now);
            expected = 0;
        }
        self.interval_acked += ack.acked;
        let extra = self.interval_acked.saturating_sub(expected).min(window);
        self.extra[0] = self.extra[0].max(extra);
    }
}

/// Counting of round trips by data delivered, and what the current one brought.
#[derive(Debug, Clone, Default)]
pub(super) struct Round {
    pub(super) count: u64,
    /// Whether the last acknowledgement began a round.
    pub(super) started: bool,
    next: u64,
    /// The same for rounds in which loss is counted.
    loss_next: u64,
    loss_started: bool,
    lost: u64,
    losses: u32,
    /// What was lost of that which was sent after the last probe.
    lost_since_probe: u64,
    delivered_before: u64,
    /// Whether a repair went on when the round began.
    recovering: bool,
    /// Loss or ECN in this round says that the path is congested.
    pub(super) congested: bool,
    bandwidth: u64,
    pub(super) delivered: u64,
    /// Whether the rate stopped growing: lately, and ever.
    pub(super) full_now: bool,
    pub(super) full_reached: bool,
    full_bandwidth: u64,
    full_count: u32,
}

impl Round {
    /// A new round begins with what is sent from now on.
    pub(super) fn begin(&mut self, delivered: u64) {
        self.next = delivered;
    }

    pub(super) fn reset_signals(&mut self) {
        self.congested = false;
        self.lost = 0;
        self.losses = 0;
        self.lost_since_probe = 0;
        self.bandwidth = 0;
        self.delivered = 0;
    }

    pub(super) fn reset_full(&mut self) {
        self.full_bandwidth = 0;
        self.full_count = 0;
        self.full_now = false;
    }

    pub(super) fn set_full_bandwidth(&mut self, rate: u64) {
        self.full_bandwidth = rate;
    }

    /// Draft §5.3.1.2: the path is full when three rounds brought less than a quarter more.
    fn check_full(&mut self, sample: &RateSample) {
        if self.full_now || !self.started || sample.app_limited {
            return;
        }
        if sample.rate >= self.full_bandwidth + self.full_bandwidth / 4 {
            self.reset_full();
            self.full_bandwidth = sample.rate;
            return;
        }
        self.full_count += 1;
        if self.full_count >= 3 {
            self.full_now = true;
            self.full_reached = true;
        }
    }
}

/// Bounds of the model; `u64::MAX` is none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// What may be in flight, as probing found.
    pub(super) inflight_long: u64,
    /// What recent loss leaves of bandwidth and flight.
    pub(super) bandwidth_short: u64,
    pub(super) inflight_short: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            inflight_long: u64::MAX,
            bandwidth_short: u64::MAX,
            inflight_short: u64::MAX,
        }
    }
}

impl Bounds {
    pub(super) fn reset_short(&mut self) {
        self.bandwidth_short = u64::MAX;
        self.inflight_short = u64::MAX;
    }
}

impl Bbr {
    /// The first part of each acknowledgement: measures.
    pub(super) fn update_model(&mut self, ack: &Ack) {
        self.round.started = false;
        self.round.loss_started = false;
        if let Some(sample) = &ack.sample {
            self.round.bandwidth = self.round.bandwidth.max(sample.rate);
            self.round.delivered = self.round.delivered.max(sample.delivered);
            if sample.prior_delivered >= self.round.loss_next {
                self.round.loss_next = ack.delivered;
                self.round.loss_started = true;
            }
            if sample.prior_delivered >= self.round.next {
                self.round.begin(ack.delivered);
                self.round.count += 1;
                self.round.started = true;
                self.cycle.rounds += 1;
            }
            self.model.sample(sample);
        }
        if self.round.loss_started {
            self.judge_round(ack);
        }
        let bandwidth = self.bandwidth();
        let (window, round) = (self.window, self.round.count);
        self.model
            .aggregate(ack, bandwidth, window, round, self.round.full_reached);
        if let Some(sample) = &ack.sample {
            self.round.check_full(sample);
        }
    }

    /// The last part of each acknowledgement: a round of loss that ended makes room for the next.
    pub(super) fn end_ack(&mut self, ack: &Ack) {
        if let (true, Some(sample)) = (self.round.loss_started, &ack.sample) {
            self.round.bandwidth = sample.rate;
            self.round.delivered = sample.delivered;
        }
    }

    /// Draft §5.5.10.3, with one difference: loss below [`LOSS_THRESHOLD`] sets no short-term
    /// bounds. With any loss at all doing so, each round would be slower than the one before by
    /// the share that is lost, and by the pacing margin, until the next probe.
    fn judge_round(&mut self, ack: &Ack) {
        let delivered = ack.delivered - self.round.delivered_before;
        let total = delivered + self.round.lost;
        self.leave_startup_on_loss(total);
        let is_probing = matches!(
            self.phase,
            Phase::Startup | Phase::ProbeRefill | Phase::ProbeUp
        );
        let lost = self.round.lost_since_probe;
        if is_probing {
            self.excess = 0.0;
        } else if self.is_loss_sustained(lost, delivered + lost) || self.round.congested {
            self.lower_bounds();
            self.excess = 0.0;
        }
        self.round.delivered_before = ack.delivered;
        self.round.recovering = self.recovering;
        self.round.lost = 0;
        self.round.losses = 0;
        self.round.lost_since_probe = 0;
        self.round.congested = false;
    }

    /// Adds up what each round lost beyond the threshold, so that rounds of which each alone might be
    /// chance are told from loss that stays (a CUSUM test).
    fn is_loss_sustained(&mut self, lost: u64, sent: u64) -> bool {
        self.excess = (self.excess + excess(lost, sent, self.mss)).max(0.0);
        self.excess > (CONFIDENCE * deviation(sent, self.mss)).max(FEW_LOSSES as f64)
    }

    fn lower_bounds(&mut self) {
        let bounds = &mut self.bounds;
        if bounds.bandwidth_short == u64::MAX {
            bounds.bandwidth_short = self.model.max_bandwidth();
        }
        if bounds.inflight_short == u64::MAX {
            bounds.inflight_short = self.window;
        }
        let beta = |value: u64| (value as f64 * BETA) as u64;
        bounds.bandwidth_short = beta(bounds.bandwidth_short).max(self.round.bandwidth);
        bounds.inflight_short = beta(bounds.inflight_short).max(self.round.delivered);
    }

    /// Draft §5.3.1.3.
    fn leave_startup_on_loss(&mut self, total: u64) {
        let excess = excess(self.round.lost, total, self.mss);
        let too_much = excess > STARTUP_CONFIDENCE * deviation(total, self.mss);
        let means_full = too_much && self.round.losses >= STARTUP_LOSSES && self.round.recovering;
        if self.phase == Phase::Startup && (means_full || self.round.congested) {
            self.round.full_reached = true;
            let bdp = self.bdp(self.model.max_bandwidth(), 1.0);
            self.bounds.inflight_long = bdp.max(self.round.delivered);
        }
    }

    /// A segment is believed lost (draft §5.5.10.2).
    pub(super) fn note_lost(&mut self, lost: &Lost) {
        self.round.lost += lost.bytes;
        self.round.losses += 1;
        if lost.prior_delivered >= self.cycle.probe_end {
            self.round.lost_since_probe += lost.bytes;
        }
        if !self.cycle.samples_probe {
            return;
        }
        if !is_too_high(lost.lost_since, lost.in_flight_when_sent, self.mss) {
            return;
        }
        // What was in flight when the share of loss became too high.
        let flight_before = lost.in_flight_when_sent.saturating_sub(lost.bytes) as f64;
        let lost_before = lost.lost_since.saturating_sub(lost.bytes) as f64;
        let prefix = (LOSS_THRESHOLD * flight_before - lost_before) / (1.0 - LOSS_THRESHOLD);
        let in_flight = (flight_before + prefix).max(0.0) as u64;
        self.react_to_too_high(lost.now, lost.delivered, in_flight, lost.app_limited);
    }

    fn react_to_too_high(
        &mut self,
        now: Instant,
        delivered: u64,
        in_flight: u64,
        app_limited: bool,
    ) {
        // Once for each probe.
        self.cycle.samples_probe = false;
        if !app_limited {
            let target = self.bdp(self.bandwidth(), 1.0).min(self.window);
            self.bounds.inflight_long = in_flight.max((target as f64 * BETA) as u64);
        }
        if self.phase == Phase::ProbeUp {
            self.cycle.probe_end = delivered;
            self.start_probe_down(now, None);
        }
    }

    /// Draft §5.5.10.1: raises the long-term bound, or lowers it.
    pub(super) fn adapt_long_bound(&mut self, ack: &Ack) {
        let Some(sample) = ack.sample else { return };
        self.advance_filter(&sample);
        if is_too_high(sample.lost, sample.in_flight_when_sent, self.mss) {
            if self.cycle.samples_probe {
                let in_flight = sample.in_flight_when_sent;
                self.react_to_too_high(ack.now, ack.delivered, in_flight, sample.app_limited);
            }
            return;
        }
        if self.bounds.inflight_long == u64::MAX {
            return;
        }
        self.bounds.inflight_long = self.bounds.inflight_long.max(sample.in_flight_when_sent);
        if self.phase == Phase::ProbeUp {
            self.probe_upward(ack);
        }
    }

    /// Draft §5.3.3.6: the bound grows by a segment, then two, then four a round.
    fn probe_upward(&mut self, ack: &Ack) {
        if !ack.window_limited || self.window < self.bounds.inflight_long {
            return;
        }
        self.cycle.up_acked += ack.acked;
        if self.cycle.up_acked >= self.cycle.up_step {
            let count = self.cycle.up_acked / self.cycle.up_step;
            self.cycle.up_acked -= count * self.cycle.up_step;
            self.bounds.inflight_long += count * self.mss;
        }
        if self.round.started {
            self.steepen();
        }
    }

    /// Doubles the growth of the long-term bound.
    pub(super) fn steepen(&mut self) {
        let segments = 1_u64 << self.cycle.up_rounds;
        self.cycle.up_rounds = (self.cycle.up_rounds + 1).min(30);
        self.cycle.up_step = (self.window / segments).max(self.mss);
    }

    /// What may be in flight with some of the long-term bound left to others.
    pub(super) fn inflight_with_headroom(&self) -> u64 {
        let bound = self.bounds.inflight_long;
        if bound == u64::MAX {
            return bound;
        }
        let headroom = ((bound as f64 * HEADROOM) as u64).max(self.mss);
        bound.saturating_sub(headroom).max(MIN_SEGMENTS * self.mss)
    }
}

/// Whether more of `sent` bytes was lost than is fine. Each loss is a draw: of a few hundred segments
/// twice as many may be lost as usual, by chance, and that is no sign of a full queue; the draft has no
/// such margin.
fn is_too_high(lost: u64, sent: u64, mss: u64) -> bool {
    excess(lost, sent, mss) > CONFIDENCE * deviation(sent, mss) && lost > FEW_LOSSES * mss
}

/// Segments that were lost beyond the threshold.
fn excess(lost: u64, sent: u64, mss: u64) -> f64 {
    (lost as f64 - sent as f64 * LOSS_THRESHOLD) / mss as f64
}

/// Standard deviation of the segments that are lost of `sent` bytes when loss is at the threshold.
fn deviation(sent: u64, mss: u64) -> f64 {
    (sent as f64 * LOSS_THRESHOLD / mss as f64).sqrt()
}
