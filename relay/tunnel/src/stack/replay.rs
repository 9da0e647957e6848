//! Recognizes connection requests whose data the kernel was given before. A SYN without data opens
//! nothing by itself, as its sender must answer once more; one with data is acted upon at once, so
//! a copy of it that the network kept must not reach the kernel again. No I/O; time comes in.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use super::packet::Flow;

/// A copy older than this is not expected: no network keeps a packet so long.
const MEMORY: Duration = Duration::from_secs(120);
/// Requests remembered in one span of [`MEMORY`]; a few MiB at most.
const MAX_SEEN: usize = 1 << 17;

/// What is known about a SYN with data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Not seen before; it is remembered now.
    New,
    /// The kernel was given its data before.
    Before,
    /// Nothing is known, and there is no room to remember it.
    Unknown,
}

/// Requests of the last [`MEMORY`] at least, and twice as long at most.
#[derive(Debug, Default)]
pub(super) struct Replays {
    hasher: RandomState,
    current: HashSet<u64>,
    previous: HashSet<u64>,
    since: Option<Instant>,
}

impl Replays {
    /// Takes note of a request, known by its addresses, ports and first sequence number.
    pub(super) fn note(&mut self, flow: Flow, sequence: u32, now: Instant) -> Seen {
        if self.contains(flow, sequence, now) {
            return Seen::Before;
        }
        if self.current.len() >= MAX_SEEN {
            return Seen::Unknown;
        }
        self.current.insert(self.hasher.hash_one((flow, sequence)));
        Seen::New
    }

    /// Whether the kernel was given this request before.
    pub(super) fn contains(&mut self, flow: Flow, sequence: u32, now: Instant) -> bool {
        self.turn(now);
        let key = self.hasher.hash_one((flow, sequence));
        self.current.contains(&key) || self.previous.contains(&key)
    }

    fn turn(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let age = now.saturating_duration_since(since);
        if age >= MEMORY {
            self.previous = std::mem::take(&mut self.current);
            self.since = Some(now);
        }
        if age >= 2 * MEMORY {
            self.previous = HashSet::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::packet::tests::flow;

    #[test]
    fn a_request_is_new_once_within_two_minutes() {
        let (mut replays, start) = (Replays::default(), Instant::now());
        assert_eq!(replays.note(flow(80), 1, start), Seen::New);
        assert_eq!(replays.note(flow(80), 2, start), Seen::New);
        assert_eq!(replays.note(flow(81), 1, start), Seen::New);
        for seconds in [0, 1, 60, 119, 120] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(replays.note(flow(80), 1, now), Seen::Before, "{seconds}");
        }
        let late = start + Duration::from_secs(119);
        assert_eq!(replays.note(flow(82), 1, late), Seen::New);
        let later = late + MEMORY;
        assert_eq!(replays.note(flow(82), 1, later), Seen::Before);
    }

    #[test]
    fn what_is_old_is_forgotten_and_its_memory_with_it() {
        let (mut replays, start) = (Replays::default(), Instant::now());
        replays.note(flow(80), 1, start);
        assert_eq!(replays.note(flow(80), 1, start + 2 * MEMORY), Seen::New);
        assert_eq!(replays.previous.capacity(), 0);
    }

    #[test]
    fn a_full_memory_says_so_and_keeps_what_it_knows() {
        let (mut replays, start) = (Replays::default(), Instant::now());
        for sequence in 0..MAX_SEEN as u32 {
            assert_eq!(replays.note(flow(80), sequence, start), Seen::New);
        }
        assert_eq!(replays.note(flow(81), 0, start), Seen::Unknown);
        assert_eq!(replays.note(flow(80), 0, start), Seen::Before);
    }
}
