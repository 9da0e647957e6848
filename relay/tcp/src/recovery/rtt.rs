//! Round-trip times and the retransmission timeout (RFC 6298).

use std::time::Duration;

use crate::time::Instant;

/// How long a smallest round-trip time counts before a larger one takes its place.
const MIN_WINDOW: Duration = Duration::from_secs(60);
/// Timeout before the first sample (RFC 6298 §2.1).
const INITIAL_RTO: Duration = Duration::from_secs(1);

/// What was measured of the path's round trips.
#[derive(Debug, Clone)]
pub(crate) struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
    /// The smallest of the current window and of the one before, and when the current one began.
    min: Duration,
    min_before: Duration,
    min_since: Instant,
    rto_min: Duration,
    rto_max: Duration,
    backoff: u32,
}

impl Rtt {
    pub(crate) fn new(rto_min: Duration, rto_max: Duration) -> Self {
        Self {
            smoothed: None,
            variation: Duration::ZERO,
            min: Duration::MAX,
            min_before: Duration::MAX,
            min_since: Instant::ZERO,
            rto_min,
            rto_max,
            backoff: 0,
        }
    }

    /// Takes a sample (RFC 6298 §2.2, §2.3).
    pub(crate) fn sample(&mut self, rtt: Duration, now: Instant) {
        let rtt = rtt.max(Duration::from_micros(1));
        match self.smoothed {
            None => {
                self.smoothed = Some(rtt);
                self.variation = rtt / 2;
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(rtt)) / 4;
                self.smoothed = Some((smoothed * 7 + rtt) / 8);
            }
        }
        if now.since(self.min_since) > MIN_WINDOW {
            self.min_before = self.min;
            self.min = rtt;
            self.min_since = now;
        }
        self.min = self.min.min(rtt);
    }

    /// Smoothed round-trip time, if there was a sample.
    pub(crate) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// The smallest round-trip time of the last one or two windows, if there was a sample.
    pub(crate) fn min(&self) -> Option<Duration> {
        self.smoothed.map(|_| self.min.min(self.min_before))
    }

    /// The timeout, doubled for each time it passed in vain (RFC 6298 §5.5).
    pub(crate) fn rto(&self) -> Duration {
        let base = match self.smoothed {
            None => INITIAL_RTO,
            Some(smoothed) => smoothed + self.variation * 4,
        };
        let base = base.clamp(self.rto_min, self.rto_max);
        base.saturating_mul(1 << self.backoff.min(16))
            .min(self.rto_max)
    }

    /// The timeout passed in vain.
    pub(crate) fn back_off(&mut self) {
        self.backoff += 1;
    }

    /// The peer is heard again.
    pub(crate) fn reset_backoff(&mut self) {
        self.backoff = 0;
    }

    /// Timeouts in a row.
    pub(crate) fn backoff(&self) -> u32 {
        self.backoff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rtt() -> Rtt {
        Rtt::new(Duration::from_millis(200), Duration::from_secs(60))
    }

    #[test]
    fn the_timeout_follows_rfc_6298() {
        let mut rtt = rtt();
        assert_eq!(rtt.rto(), Duration::from_secs(1));
        rtt.sample(Duration::from_millis(100), Instant::ZERO);
        assert_eq!(rtt.rto(), Duration::from_millis(300));
        rtt.sample(Duration::from_millis(200), Instant::ZERO);
        // Variation (150 + 100) / 4 = 62.5 ms, smoothed (700 + 200) / 8 = 112.5 ms.
        assert_eq!(rtt.rto(), Duration::from_micros(362_500));
        for _ in 0..100 {
            rtt.sample(Duration::from_millis(1), Instant::ZERO);
        }
        assert_eq!(rtt.rto(), Duration::from_millis(200));
    }

    #[test]
    fn the_timeout_doubles_up_to_a_limit() {
        let mut rtt = rtt();
        rtt.sample(Duration::from_millis(100), Instant::ZERO);
        let times: Vec<u128> = (0..10)
            .map(|_| {
                rtt.back_off();
                rtt.rto().as_millis()
            })
            .collect();
        assert_eq!(times[..3], [600, 1200, 2400]);
        assert_eq!(times[9], 60_000);
    }

    #[test]
    fn an_old_minimum_is_forgotten() {
        let mut rtt = rtt();
        rtt.sample(Duration::from_millis(10), Instant::ZERO);
        for second in 1..200 {
            rtt.sample(
                Duration::from_millis(50),
                Instant::from_millis(second * 1000),
            );
            let expected = if second < 122 { 10 } else { 50 };
            assert_eq!(rtt.min(), Some(Duration::from_millis(expected)), "{second}");
        }
    }
}
