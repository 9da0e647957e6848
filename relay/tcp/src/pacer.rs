//! Spreads a window over a round trip: bursts small enough for queues, large enough for one send.

use std::time::Duration;

use crate::time::{Instant, bytes_in, time_for};

/// Time whose worth of data makes one burst.
const QUANTUM: Duration = Duration::from_millis(1);
/// After a pause so much may go out at once.
const SLACK: Duration = Duration::from_millis(2);
/// A timer that is late is made up for by so much. Without that a busy machine would send slower
/// than it should, the congestion control would measure that, and send slower still.
const LATE: Duration = Duration::from_millis(25);

/// When the next burst may go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pacer {
    next: Instant,
    /// Data waits for that moment.
    waiting: bool,
}

impl Pacer {
    /// Bytes that may be sent now, or when some may be sent. Ask only if there is data to send.
    pub(crate) fn allowance(
        &mut self,
        now: Instant,
        rate: Option<u64>,
        mss: u64,
    ) -> Result<u64, Instant> {
        let Some(rate) = rate else {
            return Ok(u64::MAX);
        };
        if self.next > now {
            self.waiting = true;
            return Err(self.next);
        }
        let credit = if self.waiting { LATE } else { SLACK };
        self.next = self.next.max(now - credit);
        Ok(bytes_in(rate, QUANTUM).max(2 * mss))
    }

    /// Counts what was sent.
    pub(crate) fn sent(&mut self, rate: Option<u64>, bytes: u64) {
        if let Some(rate) = rate {
            self.next += time_for(bytes, rate);
        }
    }

    /// Nothing waits to be sent.
    pub(crate) fn idle(&mut self) {
        self.waiting = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Option<u64> = Some(125_000_000);

    fn send_all(pacer: &mut Pacer, now: Instant) -> u64 {
        let mut sent = 0;
        while let Ok(bytes) = pacer.allowance(now, RATE, 1000) {
            pacer.sent(RATE, bytes);
            sent += bytes;
        }
        sent
    }

    #[test]
    fn the_rate_is_kept_although_timers_are_late() {
        for late in [1300, 7000, 20_000] {
            let (mut pacer, mut now, mut sent) = (Pacer::default(), Instant::from_millis(1000), 0);
            for _ in 0..1000 {
                sent += send_all(&mut pacer, now);
                now += Duration::from_micros(late);
            }
            let expected = 125 * late * 1000;
            let slack = expected / 100 + 500_000;
            assert!(
                (expected - slack..expected + slack).contains(&sent),
                "{sent}"
            );
        }
    }

    #[test]
    fn a_pause_is_not_made_up_for() {
        let (mut pacer, now) = (Pacer::default(), Instant::from_millis(1000));
        send_all(&mut pacer, now);
        pacer.idle();
        let sent = send_all(&mut pacer, now + Duration::from_secs(10));
        assert!(sent < 500_000, "{sent}");
    }
}
