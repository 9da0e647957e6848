//! When BBR probes for more bandwidth, drains queues, and looks for the shortest round trip
//! (draft §5.3).

use std::time::Duration;

use super::{Bbr, MIN_SEGMENTS};
use crate::cc::{Ack, RateSample};
use crate::time::Instant;

/// How often the shortest round trip is looked for, and for how long (draft §2.13).
const PROBE_RTT_INTERVAL: Duration = Duration::from_secs(5);
const PROBE_RTT_DURATION: Duration = Duration::from_millis(200);
const PROBE_RTT_GAIN: f64 = 0.5;
/// How long a shortest round trip counts.
const MIN_RTT_LENGTH: Duration = Duration::from_secs(10);
/// Rounds after which a flow probes to keep pace with Reno (draft §5.3.3.5.1).
const RENO_ROUNDS: u64 = 63;

/// What BBR does at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Doubles the rate each round until the path is full.
    Startup,
    /// Empties the queue that made.
    Drain,
    /// Sends slower than the bandwidth.
    ProbeDown,
    /// Sends at the bandwidth.
    ProbeCruise,
    /// Fills the path before it sends faster.
    ProbeRefill,
    /// Sends faster than the bandwidth.
    ProbeUp,
    /// Keeps little in flight.
    ProbeRtt,
}

impl Phase {
    pub(super) fn pacing_gain(self) -> f64 {
        match self {
            Self::Startup => 2.77,
            Self::Drain => 0.5,
            Self::ProbeDown => 0.9,
            Self::ProbeUp => 1.25,
            Self::ProbeCruise | Self::ProbeRefill | Self::ProbeRtt => 1.0,
        }
    }

    pub(super) fn window_gain(self) -> f64 {
        match self {
            Self::ProbeUp => 2.25,
            Self::ProbeRtt => PROBE_RTT_GAIN,
            _ => 2.0,
        }
    }

    pub(super) fn is_probing_bandwidth(self) -> bool {
        !matches!(self, Self::Startup | Self::Drain | Self::ProbeRtt)
    }
}

/// Where acknowledgements stand in relation to probing (draft §2.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Feedback {
    #[default]
    None,
    Starting,
    Probing,
    Stopping,
    Refilling,
}

/// The cycle of probing.
#[derive(Debug, Clone, Default)]
pub(super) struct Cycle {
    since: Instant,
    wait: Duration,
    /// Rounds since the last probe.
    pub(super) rounds: u64,
    feedback: Feedback,
    /// Whether segments sent while probing are being judged.
    pub(super) samples_probe: bool,
    /// What was delivered when the last probe ended. What was sent before and is lost tells of the
    /// probe's rate, which is no longer sent at.
    pub(super) probe_end: u64,
    /// Growth of the long-term bound: rounds, bytes acknowledged, bytes for each segment.
    pub(super) up_rounds: u32,
    pub(super) up_acked: u64,
    pub(super) up_step: u64,
}

/// The shortest round trip.
#[derive(Debug, Clone, Default)]
pub(super) struct MinRtt {
    value: Option<(Duration, Instant)>,
    probe: Option<(Duration, Instant)>,
    expired: bool,
    done_at: Option<Instant>,
    round_done: bool,
}

impl MinRtt {
    pub(super) fn value(&self) -> Option<Duration> {
        self.value.map(|(rtt, _)| rtt)
    }

    /// Draft §5.5.7.
    fn update(&mut self, now: Instant, rtt: Option<Duration>) {
        self.expired = self
            .probe
            .is_some_and(|(_, since)| now.since(since) > PROBE_RTT_INTERVAL);
        if let Some(rtt) = rtt
            && (self.expired || self.probe.is_none_or(|(shortest, _)| rtt < shortest))
        {
            self.probe = Some((rtt, now));
        }
        let Some((probe, since)) = self.probe else {
            return;
        };
        let is_better = self
            .value
            .is_none_or(|(shortest, at)| probe < shortest || now.since(at) > MIN_RTT_LENGTH);
        if is_better {
            self.value = Some((probe, since));
        }
    }
}

impl Bbr {
    /// The second part of each acknowledgement: goes on to another phase if it is time.
    pub(super) fn update_phase(&mut self, ack: &Ack) {
        let now = ack.now;
        if self.phase == Phase::Startup && self.round.full_reached {
            self.phase = Phase::Drain;
            self.cycle.probe_end = ack.delivered;
        }
        if self.phase == Phase::Drain
            && ack.in_flight <= self.inflight(self.model.max_bandwidth(), 1.0)
        {
            self.start_probe_down(now, Some(ack.delivered));
        }
        if self.round.full_reached {
            self.adapt_long_bound(ack);
            if self.phase.is_probing_bandwidth() {
                self.update_cycle(ack);
            }
        }
        self.min_rtt.update(now, ack.rtt);
        self.update_probe_rtt(ack);
    }

    /// Draft §5.3.3.6.
    fn update_cycle(&mut self, ack: &Ack) {
        match self.phase {
            Phase::ProbeDown | Phase::ProbeCruise if self.is_time_to_refill(ack) => {
                self.start_refill(ack);
            }
            Phase::ProbeDown if self.is_time_to_cruise(ack) => self.phase = Phase::ProbeCruise,
            Phase::ProbeRefill if self.round.started => {
                self.cycle.samples_probe = true;
                self.start_probe_up(ack);
            }
            Phase::ProbeUp => self.look_for_the_top(ack),
            _ => {}
        }
    }

    pub(super) fn start_probe_down(&mut self, now: Instant, delivered: Option<u64>) {
        self.round.reset_signals();
        self.cycle.rounds = self.random_below(2);
        let spread = self.random_below(1_000_000);
        self.cycle.wait = Duration::from_secs(2) + Duration::from_micros(spread);
        self.cycle.since = now;
        self.cycle.feedback = Feedback::Stopping;
        if let Some(delivered) = delivered {
            self.round.begin(delivered);
        }
        self.phase = Phase::ProbeDown;
    }

    fn is_time_to_refill(&self, ack: &Ack) -> bool {
        let target = self.bdp(self.bandwidth(), 1.0).min(self.window);
        let rounds = (target / self.mss).min(RENO_ROUNDS);
        ack.now.since(self.cycle.since) > self.cycle.wait || self.cycle.rounds >= rounds
    }

    fn start_refill(&mut self, ack: &Ack) {
        self.bounds.reset_short();
        self.cycle.up_rounds = 0;
        self.cycle.up_acked = 0;
        self.cycle.feedback = Feedback::Refilling;
        self.round.begin(ack.delivered);
        self.phase = Phase::ProbeRefill;
    }

    fn start_probe_up(&mut self, ack: &Ack) {
        self.cycle.feedback = Feedback::Starting;
        self.round.begin(ack.delivered);
        self.round.reset_full();
        if let Some(sample) = ack.sample {
            self.round.set_full_bandwidth(sample.rate);
        }
        self.cycle.since = ack.now;
        self.phase = Phase::ProbeUp;
        self.steepen();
    }

    fn is_time_to_cruise(&self, ack: &Ack) -> bool {
        ack.in_flight <= self.inflight_with_headroom()
            && ack.in_flight <= self.inflight(self.model.max_bandwidth(), 1.0)
    }

    /// Ends the probe once the rate does not grow any more.
    fn look_for_the_top(&mut self, ack: &Ack) {
        if ack.window_limited && self.window >= self.bounds.inflight_long {
            // The bound was in the way; only now does the rate tell whether there is more.
            self.round.reset_full();
            self.round
                .set_full_bandwidth(ack.sample.map_or(0, |sample| sample.rate));
        } else if self.round.full_now {
            self.cycle.probe_end = ack.delivered;
            self.start_probe_down(ack.now, Some(ack.delivered));
        }
    }

    /// Forgets old bandwidth once a cycle of probing is over (draft §5.5.6).
    pub(super) fn advance_filter(&mut self, sample: &RateSample) {
        if !self.round.started {
            return;
        }
        match self.cycle.feedback {
            Feedback::Starting => self.cycle.feedback = Feedback::Probing,
            Feedback::Stopping => {
                self.cycle.samples_probe = false;
                self.cycle.feedback = Feedback::None;
                if self.phase.is_probing_bandwidth() && !sample.app_limited {
                    self.model.advance();
                }
            }
            _ => {}
        }
    }

    /// Draft §5.3.4.
    fn update_probe_rtt(&mut self, ack: &Ack) {
        let is_due = self.min_rtt.expired && !self.restarted;
        if self.phase != Phase::ProbeRtt && is_due {
            self.save_window();
            self.phase = Phase::ProbeRtt;
            self.min_rtt.done_at = None;
            self.cycle.feedback = Feedback::Stopping;
            self.round.begin(ack.delivered);
        }
        if self.phase == Phase::ProbeRtt {
            self.stay_in_probe_rtt(ack);
        }
        if ack.acked > 0 {
            self.restarted = false;
        }
    }

    fn stay_in_probe_rtt(&mut self, ack: &Ack) {
        if self.min_rtt.done_at.is_none() {
            if ack.in_flight <= self.probe_rtt_window() {
                self.min_rtt.done_at = Some(ack.now + PROBE_RTT_DURATION);
                self.min_rtt.round_done = false;
                self.round.begin(ack.delivered);
            }
            return;
        }
        self.min_rtt.round_done |= self.round.started;
        if self.min_rtt.round_done {
            self.check_probe_rtt_done(ack.now);
        }
    }

    pub(super) fn check_probe_rtt_done(&mut self, now: Instant) {
        if self.min_rtt.done_at.is_none_or(|at| at > now) {
            return;
        }
        if let Some((_, since)) = &mut self.min_rtt.probe {
            *since = now;
        }
        self.restore_window();
        self.bounds.reset_short();
        if self.round.full_reached {
            self.start_probe_down(now, None);
            self.phase = Phase::ProbeCruise;
        } else {
            self.phase = Phase::Startup;
        }
    }

    pub(super) fn probe_rtt_window(&self) -> u64 {
        self.bdp(self.bandwidth(), PROBE_RTT_GAIN)
            .max(MIN_SEGMENTS * self.mss)
    }
}
