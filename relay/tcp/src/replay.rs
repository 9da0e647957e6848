//! Recognizes connection requests whose data was taken before. A SYN without data opens nothing by
//! itself, as its sender must answer once more; one with data is acted upon at once, so a copy of it
//! that the network kept must not be acted upon again (RFC 7413 §6.1, where a cookie does not
//! prevent that either).

use std::collections::HashSet;
use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use crate::time::Instant;

/// A copy older than this is not expected: no network keeps a packet so long.
pub const REPLAY_MEMORY: Duration = Duration::from_secs(120);
/// Requests remembered in one span of [`REPLAY_MEMORY`]; a few MiB at most.
const MAX_SEEN: usize = 1 << 17;

/// What is known about a SYN with data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Not seen before; it is remembered now.
    New,
    /// Its data was taken before.
    Before,
    /// Nothing is known, and there is no room to remember it.
    Unknown,
}

/// Requests of the last [`REPLAY_MEMORY`] at least, and twice as long at most. Peers must not be able
/// to guess the hasher's key.
#[derive(Debug, Default)]
pub struct Replays<S> {
    hasher: S,
    current: HashSet<u64>,
    previous: HashSet<u64>,
    since: Option<Instant>,
}

impl<S: BuildHasher> Replays<S> {
    /// Remembers nothing yet.
    pub fn new(hasher: S) -> Self {
        Self {
            hasher,
            current: HashSet::new(),
            previous: HashSet::new(),
            since: None,
        }
    }

    /// Takes note of a request, known by its addresses, ports and first sequence number.
    pub fn note(&mut self, ends: &impl Hash, sequence: u32, now: Instant) -> Seen {
        if self.contains(ends, sequence, now) {
            return Seen::Before;
        }
        if self.current.len() >= MAX_SEEN {
            return Seen::Unknown;
        }
        self.current.insert(self.hasher.hash_one((ends, sequence)));
        Seen::New
    }

    /// Whether the data of this request was taken before.
    pub fn contains(&mut self, ends: &impl Hash, sequence: u32, now: Instant) -> bool {
        self.turn(now);
        let key = self.hasher.hash_one((ends, sequence));
        self.current.contains(&key) || self.previous.contains(&key)
    }

    fn turn(&mut self, now: Instant) {
        let age = now.since(*self.since.get_or_insert(now));
        if age >= REPLAY_MEMORY {
            self.previous = std::mem::take(&mut self.current);
            self.since = Some(now);
        }
        if age >= 2 * REPLAY_MEMORY {
            self.previous = HashSet::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::hash_map::RandomState;

    use super::*;

    fn start() -> (Replays<RandomState>, Instant) {
        (Replays::default(), Instant::from_millis(5))
    }

    #[test]
    fn a_request_is_new_once_within_two_minutes() {
        let (mut replays, start) = start();
        assert_eq!(replays.note(&80, 1, start), Seen::New);
        assert_eq!(replays.note(&80, 2, start), Seen::New);
        assert_eq!(replays.note(&81, 1, start), Seen::New);
        let late = start + Duration::from_secs(119);
        for ends in [80, 81] {
            assert!(replays.contains(&ends, 1, late));
            assert_eq!(replays.note(&ends, 1, late), Seen::Before);
        }
        let just_before = start + Duration::from_secs(119);
        assert_eq!(replays.note(&82, 1, just_before), Seen::New);
        let later = just_before + REPLAY_MEMORY;
        assert_eq!(replays.note(&82, 1, later), Seen::Before);
    }

    #[test]
    fn what_is_old_is_forgotten_and_its_memory_with_it() {
        let (mut replays, start) = start();
        replays.note(&80, 1, start);
        let late = start + 2 * REPLAY_MEMORY;
        assert_eq!(replays.note(&80, 1, late), Seen::New);
        assert_eq!(replays.previous.capacity(), 0);
    }

    #[test]
    fn a_full_memory_says_so_and_keeps_what_it_knows() {
        let (mut replays, start) = start();
        for sequence in 0..MAX_SEEN as u32 {
            assert_eq!(replays.note(&80, sequence, start), Seen::New);
        }
        assert_eq!(replays.note(&81, 0, start), Seen::Unknown);
        assert_eq!(replays.note(&80, 0, start), Seen::Before);
    }
}
