//! When a connection has become bulk and may be carried otherwise: a direction has moved much in a
//! short time, and neither has bytes that left one socket and did not reach the other.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// In this time, or less.
const SHORT_TIME: Duration = Duration::from_millis(50);

const WAITS: u8 = 0;
const HOLDS: u8 = 1;
const OVER: u8 = 2;

/// What a direction tells the other one. Both are run by one task.
#[derive(Default)]
pub(super) struct Course(AtomicU8);

impl Course {
    /// Has come to its end, so that the connection stays here.
    pub(super) fn is_over(&self) {
        self.0.store(OVER, Ordering::Relaxed);
    }
}

/// How fast a direction is.
pub(super) struct Pace<'a> {
    /// How many bytes are bulk. Without it nothing is.
    bulk: Option<u64>,
    own: &'a Course,
    other: &'a Course,
    since: Option<Instant>,
    moved: u64,
}

impl<'a> Pace<'a> {
    pub(super) fn new(bulk: Option<u64>, own: &'a Course, other: &'a Course) -> Self {
        Self {
            bulk,
            own,
            other,
            since: None,
            moved: 0,
        }
    }

    /// Whether bytes are between the sockets.
    pub(super) fn holds(&self, holds: bool) {
        let state = if holds { HOLDS } else { WAITS };
        self.own.0.store(state, Ordering::Relaxed);
    }

    /// Has come to its end.
    pub(super) fn ends(&self) {
        self.own.is_over();
    }

    /// Counts what was moved. Whether the connection is bulk, and free to be given away.
    pub(super) fn is_bulk(&mut self, moved: usize) -> bool {
        let Some(bulk) = self.bulk else {
            return false;
        };
        let now = Instant::now();
        if self.since.is_none_or(|since| now - since > SHORT_TIME) {
            (self.since, self.moved) = (Some(now), 0);
        }
        self.moved += moved as u64;
        self.moved >= bulk && self.other.0.load(Ordering::Relaxed) == WAITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_is_given_away_when_the_other_direction_holds_nothing() {
        let [own, other] = [(); 2].map(|()| Course::default());
        let mut pace = Pace::new(Some(1000), &own, &other);
        let back = Pace::new(Some(1000), &other, &own);
        assert!(!pace.is_bulk(999));
        back.holds(true);
        assert!(!pace.is_bulk(1));
        back.holds(false);
        assert!(pace.is_bulk(1));
        other.is_over();
        assert!(!pace.is_bulk(1));
    }

    #[test]
    fn a_connection_that_takes_its_time_is_not_bulk() {
        let [own, other] = [(); 2].map(|()| Course::default());
        let mut pace = Pace::new(Some(1000), &own, &other);
        assert!(!pace.is_bulk(600));
        pace.since = Instant::now().checked_sub(2 * SHORT_TIME);
        assert!(!pace.is_bulk(600));
        assert!(pace.is_bulk(600));
    }
}
