//! When the loop looks again instead of sleeping: a process that sleeps while the answer to a
//! message is a moment away pays for being woken, which on a virtual machine costs more than all
//! else that is done for a small message. Pure decisions: time comes in as an argument.

use std::time::{Duration, Instant};

/// A turn that moved more is bulk, or one of many at once: the processor has better things to do
/// than to wait.
const SMALL: Moved = Moved {
    packets: 2,
    bytes: 4096,
};
/// After bulk there is no waiting for so long.
const BULK: Duration = Duration::from_millis(5);
/// Waits in a row that may be in vain before waiting is given up.
const PATIENCE: u8 = 8;
/// Once given up, every so many small turns it is tried again.
const RETRY: u8 = 32;

/// Packets of peers and of the kernel that a turn moved.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moved {
    pub(super) packets: usize,
    pub(super) bytes: usize,
}

impl Moved {
    /// One packet more.
    pub(super) fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes;
    }
}

/// Whether waiting awake pays, learnt from how the last waits ended.
#[derive(Debug)]
pub(super) struct BusyPoll {
    window: Duration,
    until: Option<Instant>,
    bulk_at: Option<Instant>,
    /// Waits in vain that are still allowed.
    credit: u8,
    skipped: u8,
}

impl BusyPoll {
    /// Waits at most `window` after a small turn; zero turns it off.
    pub(super) fn new(window: Duration) -> Self {
        Self {
            window,
            until: None,
            bulk_at: None,
            credit: PATIENCE,
            skipped: 0,
        }
    }

    /// Until when to look instead of sleeping.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// A turn moved this much.
    pub(super) fn worked(&mut self, moved: Moved, now: Instant) {
        // A timer or a command is no answer, and ends no wait for one.
        if self.window.is_zero() || moved.packets == 0 {
            return;
        }
        if self.until.take().is_some() {
            self.credit = PATIENCE;
        }
        if moved.bytes > SMALL.bytes {
            self.bulk_at = Some(now);
            return;
        }
        if moved.packets > SMALL.packets {
            return;
        }
        if self.bulk_at.is_some_and(|at| now < at + BULK) {
            return;
        }
        if self.credit == 0 {
            self.skipped += 1;
            if self.skipped < RETRY {
                return;
            }
            self.skipped = 0;
        }
        self.until = Some(now + self.window);
    }

    /// The wait was in vain.
    pub(super) fn gave_up(&mut self) {
        self.until = None;
        self.credit = self.credit.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_micros(100);
    const MESSAGE: Moved = Moved {
        packets: 1,
        bytes: 100,
    };

    #[test]
    fn a_small_message_is_waited_for_awake() {
        let now = Instant::now();
        let mut poll = BusyPoll::new(WINDOW);
        assert_eq!(poll.until(), None);
        poll.worked(MESSAGE, now);
        assert_eq!(poll.until(), Some(now + WINDOW));
        poll.gave_up();
        assert_eq!(poll.until(), None);
    }

    #[test]
    fn bulk_and_crowds_are_not_waited_for() {
        let (now, mut poll) = (Instant::now(), BusyPoll::new(WINDOW));
        let crowd = Moved {
            packets: 3,
            bytes: 300,
        };
        poll.worked(crowd, now);
        assert_eq!(poll.until(), None);
        let bulk = Moved {
            packets: 40,
            bytes: 60_000,
        };
        poll.worked(bulk, now);
        poll.worked(MESSAGE, now + BULK / 2);
        assert_eq!(poll.until(), None, "bulk was a moment ago");
        poll.worked(MESSAGE, now + BULK);
        assert!(poll.until().is_some());
    }

    #[test]
    fn waits_in_vain_are_given_up_and_tried_again_now_and_then() {
        let (now, mut poll) = (Instant::now(), BusyPoll::new(WINDOW));
        let mut waits = 0;
        for _ in 0..200 {
            poll.worked(MESSAGE, now);
            if poll.until().is_some() {
                waits += 1;
                poll.gave_up();
            }
        }
        let tries = (200 - u32::from(PATIENCE)) / u32::from(RETRY);
        assert_eq!(waits, u32::from(PATIENCE) + tries);
        while poll.until().is_none() {
            poll.worked(MESSAGE, now);
        }
        // Answered: it pays again.
        for _ in 0..PATIENCE {
            poll.worked(MESSAGE, now);
            assert!(poll.until().is_some());
        }
    }

    #[test]
    fn a_turn_without_packets_is_no_answer() {
        let (now, mut poll) = (Instant::now(), BusyPoll::new(WINDOW));
        poll.worked(MESSAGE, now);
        poll.worked(Moved::default(), now + WINDOW / 2);
        assert_eq!(poll.until(), Some(now + WINDOW));
        for _ in 0..PATIENCE {
            poll.worked(MESSAGE, now);
            poll.worked(Moved::default(), now);
            poll.gave_up();
        }
        poll.worked(MESSAGE, now);
        assert_eq!(poll.until(), None, "timers did not make it worth while");
    }

    #[test]
    fn a_window_of_zero_turns_it_off() {
        let mut poll = BusyPoll::new(Duration::ZERO);
        poll.worked(MESSAGE, Instant::now());
        assert_eq!(poll.until(), None);
    }
}
