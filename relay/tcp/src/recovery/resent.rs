//! What was sent again lately, to tell whether a duplicate that the peer reports is one of it.

use std::collections::VecDeque;

/// The most ranges that are remembered. Reports come within a round trip.
const MOST: usize = 256;
/// The same once all is acknowledged: there may be thousands of idle connections.
const FEW: usize = 8;

/// What was sent again, the latest last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Resent {
    ranges: VecDeque<Range>,
}

#[derive(Debug, Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
    /// Others that arrived told the loss, and no timer.
    overtaken: bool,
}

impl Resent {
    /// `start..end` is sent again. `overtaken`: because others arrived, and no timer told it.
    pub(crate) fn push(&mut self, start: u64, end: u64, overtaken: bool) {
        if self.ranges.len() >= MOST {
            self.ranges.pop_front();
        }
        self.ranges.push_back(Range {
            start,
            end,
            overtaken,
        });
    }

    /// The peer got `start..end` twice: whether it had been overtaken when it was sent again; none
    /// if it was not sent so often.
    pub(crate) fn take(&mut self, start: u64, end: u64) -> Option<bool> {
        let mut ranges = self.ranges.iter();
        let index = ranges.position(|range| range.start < end && start < range.end)?;
        self.ranges.remove(index).map(|range| range.overtaken)
    }

    /// All is acknowledged; only reports of the last ranges may come.
    pub(crate) fn settle(&mut self) {
        if self.ranges.len() > FEW {
            self.ranges.drain(..self.ranges.len() - FEW);
        }
        self.ranges.shrink_to(FEW);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_retransmission_explains_one_duplicate() {
        let mut resent = Resent::default();
        resent.push(10, 20, true);
        resent.push(30, 40, false);
        assert_eq!(resent.take(20, 30), None);
        assert_eq!(resent.take(10, 20), Some(true));
        assert_eq!(resent.take(10, 20), None);
        assert_eq!(resent.take(35, 45), Some(false));
    }

    #[test]
    fn memory_is_bounded() {
        let mut resent = Resent::default();
        for start in 0..10_000 {
            resent.push(start * 10, start * 10 + 10, true);
        }
        assert_eq!(resent.ranges.len(), MOST);
        resent.settle();
        assert!(resent.ranges.capacity() < 2 * FEW);
        assert_eq!(resent.take(99_990, 100_000), Some(true));
        assert_eq!(resent.take(0, 10), None);
    }
}
