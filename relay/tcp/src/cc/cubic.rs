//! CUBIC (RFC 9438): after a reduction the window grows along a cubic curve back to where it was,
//! and beyond.

use std::time::Duration;

use super::hystart::{HyStart, Verdict};
use super::{Ack, Congestion, INITIAL_SEGMENTS, Lost, Signal};
use crate::time::{Instant, rate};

/// Segments per second cubed (RFC 9438 §5.1).
const C: f64 = 0.4;
/// What is left of the window after congestion (RFC 9438 §4.6).
const BETA: f64 = 0.7;
/// Additive increase that makes CUBIC as fast as Reno where Reno is faster (RFC 9438 §4.3).
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

/// CUBIC with HyStart++.
#[derive(Debug, Clone)]
pub struct Cubic {
    state: State,
    /// The state before the last reduction, in case it was for nothing.
    before: Option<Box<State>>,
    mss: f64,
}

#[derive(Debug, Clone)]
struct State {
    /// Bytes.
    window: f64,
    /// Slow start ends here, in bytes.
    threshold: f64,
    hystart: HyStart,
    /// Window before the last reduction, in segments.
    max: f64,
    epoch: Option<Epoch>,
    smoothed_rtt: Duration,
}

/// A stage of congestion avoidance.
#[derive(Debug, Clone, Copy)]
struct Epoch {
    start: Instant,
    /// Where the curve is flat, in segments, and seconds until it is there.
    origin: f64,
    k: f64,
    /// What Reno's window would be, in segments.
    reno: f64,
}

impl Cubic {
    /// A control for segments of `mss` bytes.
    pub fn new(mss: u64) -> Self {
        let mss = mss as f64;
        Self {
            state: State {
                window: INITIAL_SEGMENTS as f64 * mss,
                threshold: f64::INFINITY,
                hystart: HyStart::new(),
                max: 0.0,
                epoch: None,
                smoothed_rtt: Duration::ZERO,
            },
            before: None,
            mss,
        }
    }

    fn in_slow_start(&self) -> bool {
        self.state.window < self.state.threshold
    }

    fn slow_start(&mut self, ack: &Ack) {
        let state = &mut self.state;
        let is_first = state.threshold.is_infinite();
        let verdict = match is_first {
            true => state.hystart.acknowledged(ack.rtt, ack.edge, ack.next),
            false => Verdict::Grow(1),
        };
        match verdict {
            Verdict::Grow(divisor) => state.window += ack.acked as f64 / divisor as f64,
            Verdict::Exit => state.threshold = state.window,
        }
        if !is_first {
            state.window = state.window.min(state.threshold + self.mss);
        }
    }

    /// RFC 9438 §4.2 to §4.5.
    fn avoid_congestion(&mut self, ack: &Ack, rtt: Duration) {
        let segments = self.state.window / self.mss;
        let max = self.state.max;
        let epoch = self.state.epoch.get_or_insert_with(|| {
            let origin = max.max(segments);
            Epoch {
                start: ack.now,
                origin,
                k: ((origin - segments) / C).cbrt(),
                reno: segments,
            }
        });
        let acked = ack.acked as f64 / self.mss;
        let alpha = if epoch.reno < max { ALPHA } else { 1.0 };
        epoch.reno += alpha * acked / segments;
        let time = (ack.now.since(epoch.start) + rtt).as_secs_f64() - epoch.k;
        let target = (C * time.powi(3) + epoch.origin).clamp(segments, 1.5 * segments);
        let cubic = segments + (target - segments) / segments * acked;
        self.state.window = cubic.max(epoch.reno) * self.mss;
    }

    /// RFC 9438 §4.6, §4.7.
    fn reduce(&mut self, in_flight: u64) {
        self.before = Some(Box::new(self.state.clone()));
        let state = &mut self.state;
        // A window that was not used says nothing of the path.
        let window = state.window.min((in_flight as f64).max(state.window / 2.0));
        let segments = window / self.mss;
        state.max = match segments < state.max {
            // Fast convergence: leaves room for new flows.
            true => segments * (1.0 + BETA) / 2.0,
            false => segments,
        };
        state.threshold = (window * BETA).max(2.0 * self.mss);
        state.epoch = None;
    }
}

impl Congestion for Cubic {
    fn window(&self) -> u64 {
        self.state.window as u64
    }

    fn pacing_rate(&self) -> Option<u64> {
        let rtt = self.state.smoothed_rtt;
        if rtt.is_zero() {
            return None;
        }
        let gain = if self.in_slow_start() { 2.0 } else { 1.2 };
        Some(rate((self.state.window * gain) as u64, rtt))
    }

    fn reduction_target(&self) -> Option<u64> {
        Some(self.state.threshold as u64)
    }

    fn on_sent(&mut self, now: Instant, in_flight: u64, _bytes: u64, _app_limited: bool) {
        // RFC 9438 §5.8: time in which nothing was sent is not time on the curve.
        if in_flight == 0
            && let Some(epoch) = &mut self.state.epoch
        {
            epoch.start = epoch.start.max(now - Duration::from_secs_f64(epoch.k));
        }
    }

    fn on_lost(&mut self, _lost: &Lost) {}

    fn on_ack(&mut self, ack: &Ack) {
        if let Some(rtt) = ack.smoothed_rtt {
            self.state.smoothed_rtt = rtt;
        }
        if ack.recovering || ack.acked == 0 {
            return;
        }
        if self.in_slow_start() {
            // What was sent once as far as the window went may have been kept back by others since, and
            // doubling has no end then (RFC 9438 §5.8).
            let is_used = ack.in_flight_before >= self.window() / 2;
            if ack.window_limited && is_used || self.state.threshold.is_finite() {
                self.slow_start(ack);
            }
        } else if ack.window_limited {
            self.avoid_congestion(ack, self.state.smoothed_rtt);
        }
    }

    fn on_congestion(&mut self, _now: Instant, signal: Signal, in_flight: u64) {
        self.reduce(in_flight);
        if signal == Signal::Ecn {
            self.state.window = self.state.threshold;
        }
    }

    fn on_recovered(&mut self, _now: Instant) {
        self.state.window = self.state.threshold;
    }

    fn on_timeout(&mut self, _now: Instant, in_flight: u64) {
        self.reduce(in_flight);
        self.state.window = self.mss;
    }

    fn undo(&mut self, _now: Instant) {
        if let Some(before) = self.before.take() {
            let window = self.state.window.max(before.window);
            self.state = State { window, ..*before };
        }
    }

    fn set_mss(&mut self, mss: u64) {
        let mss = mss as f64;
        self.state.max *= self.mss / mss;
        if let Some(epoch) = &mut self.state.epoch {
            epoch.reno *= self.mss / mss;
            epoch.origin *= self.mss / mss;
        }
        self.mss = mss;
        self.state.window = self.state.window.max(2.0 * mss);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: u64 = 1000;

    fn ack(now: Instant, acked: u64) -> Ack {
        Ack {
            now,
            acked,
            lost: 0,
            in_flight_before: 1 << 40,
            in_flight: 0,
            delivered: 0,
            sample: None,
            rtt: Some(Duration::from_millis(100)),
            smoothed_rtt: Some(Duration::from_millis(100)),
            edge: 0,
            next: 0,
            window_limited: true,
            recovering: false,
        }
    }

    #[test]
    fn slow_start_doubles_the_window_a_round() {
        let mut cubic = Cubic::new(MSS);
        for _ in 0..10 {
            cubic.on_ack(&ack(Instant::ZERO, MSS));
        }
        assert_eq!(cubic.window(), 20 * MSS);
    }

    #[test]
    fn a_window_of_which_less_than_half_is_used_does_not_double() {
        let mut cubic = Cubic::new(MSS);
        let half = Ack {
            in_flight_before: 5 * MSS,
            ..ack(Instant::ZERO, MSS)
        };
        cubic.on_ack(&half);
        assert_eq!(cubic.window(), 11 * MSS);
        cubic.on_ack(&half);
        assert_eq!(cubic.window(), 11 * MSS);
    }

    #[test]
    fn the_window_is_back_where_it_was_after_k_seconds() {
        let mut cubic = Cubic::new(MSS);
        cubic.state.window = (1000 * MSS) as f64;
        let mut now = Instant::ZERO;
        cubic.on_congestion(now, Signal::Loss, 1000 * MSS);
        cubic.on_recovered(now);
        assert_eq!(cubic.window(), 700 * MSS);
        // K = cbrt(300 / 0.4) = 9.086 s.
        let mut windows = Vec::new();
        for _ in 0..95 {
            for _ in 0..10 {
                cubic.on_ack(&ack(now, cubic.window() / 10));
            }
            now += Duration::from_millis(100);
            windows.push(cubic.window() / MSS);
        }
        assert!((990..=1005).contains(&windows[90]), "{}", windows[90]);
        assert!(
            windows[45] > 930,
            "most of it is won in the first half: {}",
            windows[45]
        );
    }

    #[test]
    fn a_reduction_for_nothing_is_taken_back() {
        let mut cubic = Cubic::new(MSS);
        cubic.on_ack(&ack(Instant::ZERO, 10 * MSS));
        let before = cubic.window();
        cubic.on_timeout(Instant::ZERO, before);
        assert_eq!(cubic.window(), MSS);
        cubic.undo(Instant::ZERO);
        assert_eq!(cubic.window(), before);
        cubic.on_ack(&ack(Instant::ZERO, MSS));
        assert_eq!(cubic.window(), before + MSS);
    }
}
