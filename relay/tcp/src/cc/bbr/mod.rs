//! BBR version 3 (draft-ietf-ccwg-bbr): a model of the path, made of the rate at which data
//! arrives and of the shortest round trip, decides how fast to send and how much may be in flight.
//!
//! | file | job |
//! |---|---|
//! | here | pacing and window that follow from the model |
//! | `model` | what is measured: bandwidth, aggregation, bounds that loss sets |
//! | `phases` | when to probe for more, drain, and look for the shortest round trip |

mod model;
mod phases;

use std::time::Duration;

use super::{Ack, Congestion, INITIAL_SEGMENTS, Lost, Signal};
use crate::time::{Instant, bytes_in, rate};

use model::{Bounds, Model, Round};
use phases::{Cycle, MinRtt, Phase};

/// Share of lost data that means congestion (draft §2.7).
const LOSS_THRESHOLD: f64 = 0.02;
/// What is left of a bound after congestion (draft §2.7).
const BETA: f64 = 0.7;
/// Share of the long-term bound left to others while cruising (draft §2.7).
const HEADROOM: f64 = 0.15;
/// The window is never smaller, in segments (draft §2.7).
const MIN_SEGMENTS: u64 = 4;
/// Pacing is slower than the estimate by so much, so that queues drain (draft §2.5).
const PACING_MARGIN: f64 = 0.01;

/// BBR.
#[derive(Debug, Clone)]
pub struct Bbr {
    mss: u64,
    window: u64,
    pacing_rate: u64,
    /// Window before a repair or a look for the shortest round trip.
    prior_window: u64,
    phase: Phase,
    model: Model,
    round: Round,
    bounds: Bounds,
    cycle: Cycle,
    min_rtt: MinRtt,
    /// A repair goes on.
    recovering: bool,
    /// Sending began again after a pause.
    restarted: bool,
    undo: Option<Bounds>,
    /// Segments lost beyond the threshold in the last rounds.
    excess: f64,
    random: u64,
}

impl Bbr {
    /// A control for segments of `mss` bytes; `seed` spreads the probing of many flows.
    pub fn new(mss: u64, seed: u64) -> Self {
        let window = INITIAL_SEGMENTS * mss;
        let nominal = rate(window, Duration::from_millis(1));
        Self {
            mss,
            window,
            pacing_rate: (nominal as f64 * Phase::Startup.pacing_gain()) as u64,
            prior_window: 0,
            phase: Phase::Startup,
            model: Model::default(),
            round: Round::default(),
            bounds: Bounds::default(),
            cycle: Cycle::default(),
            min_rtt: MinRtt::default(),
            recovering: false,
            restarted: false,
            undo: None,
            excess: 0.0,
            random: seed | 1,
        }
    }

    /// A random number below `limit` (xorshift).
    fn random_below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    /// The bandwidth that is acted on: the measured one, within what loss allows.
    fn bandwidth(&self) -> u64 {
        self.model.max_bandwidth().min(self.bounds.bandwidth_short)
    }

    /// `gain` times what the path holds when its queues are empty.
    fn bdp(&self, bandwidth: u64, gain: f64) -> u64 {
        match self.min_rtt.value() {
            None => INITIAL_SEGMENTS * self.mss,
            Some(rtt) => (bytes_in(bandwidth, rtt) as f64 * gain) as u64,
        }
    }

    /// Bytes that go out at a time (draft §5.6.3).
    fn quantum(&self) -> u64 {
        bytes_in(self.pacing_rate, Duration::from_millis(1)).clamp(2 * self.mss, 64 << 10)
    }

    /// Room for bursts and held back acknowledgements on top of `in_flight` (draft §5.6.4.2).
    fn quantize(&self, in_flight: u64) -> u64 {
        let least = (3 * self.quantum()).max(MIN_SEGMENTS * self.mss);
        let more = match self.phase {
            Phase::ProbeUp => 2 * self.mss,
            _ => 0,
        };
        in_flight.max(least) + more
    }

    /// What should be in flight at `gain`.
    fn inflight(&self, bandwidth: u64, gain: f64) -> u64 {
        self.quantize(self.bdp(bandwidth, gain))
    }

    /// Draft §5.6.2.
    fn set_pacing_rate(&mut self, gain: f64) {
        let rate = self.bandwidth() as f64 * gain * (1.0 - PACING_MARGIN);
        let rate = rate as u64;
        if rate > 0 && (self.round.full_reached || rate > self.pacing_rate) {
            self.pacing_rate = rate;
        }
    }

    /// Before the first estimate the rate follows from the first window and round trip.
    fn set_first_pacing_rate(&mut self, smoothed: Option<Duration>) {
        if self.model.max_bandwidth() == 0
            && let Some(rtt) = smoothed
        {
            let nominal = rate(self.window, rtt.max(Duration::from_micros(10)));
            self.pacing_rate = (nominal as f64 * Phase::Startup.pacing_gain()) as u64;
        }
    }

    /// Draft §5.6.4.
    fn set_window(&mut self, ack: &Ack) {
        let wanted = self.bdp(self.bandwidth(), self.phase.window_gain());
        let most = self.quantize(wanted + self.model.extra_acked(self.bandwidth()));
        if self.round.full_reached {
            self.window = (self.window + ack.acked).min(most);
        } else if self.window < most || ack.delivered < INITIAL_SEGMENTS * self.mss {
            self.window += ack.acked;
        }
        self.window = self.window.max(MIN_SEGMENTS * self.mss);
        if self.phase == Phase::ProbeRtt {
            self.window = self.window.min(self.probe_rtt_window());
        }
        self.bound_window();
    }

    /// Draft §5.6.4.7: what loss taught bounds the window.
    fn bound_window(&mut self) {
        let cap = match self.phase {
            Phase::ProbeDown | Phase::ProbeRefill | Phase::ProbeUp => self.bounds.inflight_long,
            Phase::ProbeCruise | Phase::ProbeRtt => self.inflight_with_headroom(),
            Phase::Startup | Phase::Drain => u64::MAX,
        };
        let cap = cap
            .min(self.bounds.inflight_short)
            .max(MIN_SEGMENTS * self.mss);
        self.window = self.window.min(cap);
    }

    fn save_window(&mut self) {
        self.prior_window = match self.recovering || self.phase == Phase::ProbeRtt {
            true => self.prior_window.max(self.window),
            false => self.window,
        };
    }

    fn restore_window(&mut self) {
        self.window = self.window.max(self.prior_window);
    }
}

impl Congestion for Bbr {
    fn window(&self) -> u64 {
        self.window
    }

    fn pacing_rate(&self) -> Option<u64> {
        Some(self.pacing_rate)
    }

    fn reduction_target(&self) -> Option<u64> {
        None
    }

    /// Draft §5.4.1: after a pause the path is sent to at its rate, not faster.
    fn on_sent(&mut self, now: Instant, in_flight: u64, _bytes: u64, app_limited: bool) {
        if in_flight > 0 || !app_limited {
            return;
        }
        self.restarted = true;
        self.model.restart(now);
        if self.phase.is_probing_bandwidth() {
            self.set_pacing_rate(1.0);
        } else if self.phase == Phase::ProbeRtt {
            self.check_probe_rtt_done(now);
        }
    }

    fn on_lost(&mut self, lost: &Lost) {
        self.note_lost(lost);
    }

    fn on_ack(&mut self, ack: &Ack) {
        self.set_first_pacing_rate(ack.smoothed_rtt);
        self.update_model(ack);
        self.update_phase(ack);
        self.end_ack(ack);
        self.set_pacing_rate(self.phase.pacing_gain());
        self.set_window(ack);
    }

    fn on_congestion(&mut self, _now: Instant, signal: Signal, _in_flight: u64) {
        match signal {
            Signal::Loss => {
                self.save_window();
                self.undo = Some(self.bounds);
                self.recovering = true;
            }
            // An echo of congestion counts as much as a round with too much loss.
            Signal::Ecn => self.round.congested = true,
        }
    }

    fn on_recovered(&mut self, _now: Instant) {
        self.restore_window();
        self.recovering = false;
        self.bound_window();
    }

    fn on_timeout(&mut self, _now: Instant, _in_flight: u64) {
        self.save_window();
        self.undo = Some(self.bounds);
        self.recovering = true;
        self.window = self.mss;
    }

    fn undo(&mut self, _now: Instant) {
        if let Some(bounds) = self.undo.take() {
            self.bounds = bounds;
        }
        self.round.reset_full();
        self.restore_window();
        self.recovering = false;
    }

    fn set_mss(&mut self, mss: u64) {
        self.mss = mss;
        self.window = self.window.max(MIN_SEGMENTS * mss);
    }
}
