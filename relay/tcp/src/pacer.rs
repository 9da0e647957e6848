//! Spreads a window over a round trip: bursts small enough for queues, large enough for one send.

use std::time::Duration;

use crate::time::{Instant, bytes_in, time_for};

/// Time whose worth of data makes one burst.
const QUANTUM: Duration = Duration::from_millis(1);
/// A late timer may be made up for by so much.
const SLACK: Duration = Duration::from_millis(2);

/// When the next burst may go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pacer {
    next: Instant,
}

impl Pacer {
    /// Bytes that may be sent now, or when some may be sent.
    pub(crate) fn allowance(
        &self,
        now: Instant,
        rate: Option<u64>,
        mss: u64,
    ) -> Result<u64, Instant> {
        let Some(rate) = rate else {
            return Ok(u64::MAX);
        };
        if self.next > now {
            return Err(self.next);
        }
        Ok(bytes_in(rate, QUANTUM).max(2 * mss))
    }

    /// Counts what was sent.
    pub(crate) fn sent(&mut self, now: Instant, rate: Option<u64>, bytes: u64) {
        if let Some(rate) = rate {
            self.next = self.next.max(now - SLACK) + time_for(bytes, rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_although_the_timer_is_late() {
        let (mut pacer, mut now, mut sent) = (Pacer::default(), Instant::from_millis(1000), 0);
        let rate = Some(125_000_000);
        for _ in 0..1000 {
            while let Ok(bytes) = pacer.allowance(now, rate, 1000) {
                pacer.sent(now, rate, bytes);
                sent += bytes;
            }
            now += Duration::from_micros(1300);
        }
        let expected = 125_000_000 * 13 / 10;
        assert!((expected..expected + 500_000).contains(&sent), "{sent}");
    }
}
