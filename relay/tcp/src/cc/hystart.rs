//! HyStart++ (RFC 9406): leaves slow start when round trips grow, before the queue overflows.

use std::time::Duration;

const MIN_THRESHOLD: Duration = Duration::from_millis(4);
const MAX_THRESHOLD: Duration = Duration::from_millis(16);
/// The threshold is this part of the round trip.
const DIVISOR: u32 = 8;
const SAMPLES: u32 = 8;
/// Slower growth in conservative slow start.
const GROWTH_DIVISOR: u64 = 4;
/// Rounds of conservative slow start.
const ROUNDS: u32 = 5;

/// What to do with slow start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Grow by this part (a divisor) of what was acknowledged.
    Grow(u64),
    /// Slow start is over.
    Exit,
}

/// The state of one slow start.
#[derive(Debug, Clone)]
pub(super) struct HyStart {
    round_end: u64,
    last_min: Duration,
    current_min: Duration,
    samples: u32,
    /// Smallest round trip when conservative slow start began, and rounds of it so far.
    conservative: Option<(Duration, u32)>,
}

impl HyStart {
    pub(super) fn new() -> Self {
        Self {
            round_end: 0,
            last_min: Duration::MAX,
            current_min: Duration::MAX,
            samples: 0,
            conservative: None,
        }
    }

    /// Takes an acknowledgement up to `edge`, while data up to `next` was sent (RFC 9406 §4.2).
    pub(super) fn acknowledged(&mut self, rtt: Option<Duration>, edge: u64, next: u64) -> Verdict {
        if edge >= self.round_end && self.begin_round(next) {
            return Verdict::Exit;
        }
        if let Some(rtt) = rtt {
            self.current_min = self.current_min.min(rtt);
            self.samples += 1;
            self.judge();
        }
        match self.conservative {
            Some(_) => Verdict::Grow(GROWTH_DIVISOR),
            None => Verdict::Grow(1),
        }
    }

    /// Returns whether conservative slow start lasted long enough.
    fn begin_round(&mut self, next: u64) -> bool {
        self.round_end = next;
        self.last_min = self.current_min;
        self.current_min = Duration::MAX;
        self.samples = 0;
        if let Some((_, rounds)) = &mut self.conservative {
            *rounds += 1;
            return *rounds > ROUNDS;
        }
        false
    }

    fn judge(&mut self) {
        if self.samples < SAMPLES || self.last_min == Duration::MAX {
            return;
        }
        match self.conservative {
            None => {
                let threshold = (self.last_min / DIVISOR).clamp(MIN_THRESHOLD, MAX_THRESHOLD);
                if self.current_min >= self.last_min + threshold {
                    self.conservative = Some((self.current_min, 0));
                }
            }
            // It was jitter: the round trip is short again.
            Some((baseline, _)) if self.current_min < baseline => self.conservative = None,
            Some(_) => {}
        }
    }
}
