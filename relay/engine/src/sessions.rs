//! A bounded table of sessions, each of which ends after a time of silence. UDP has no end of a
//! connection, so one is made up here: one session for each client address.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Sessions by key. When it is full, the one that was silent for longest makes room.
#[derive(Debug)]
pub struct Sessions<K, V> {
    sessions: HashMap<K, Session<V>>,
    /// One entry a session; may be too early, never too late.
    deadlines: BinaryHeap<Reverse<Deadline<K>>>,
    limit: usize,
    idle: Duration,
    serial: u64,
}

#[derive(Debug)]
struct Session<V> {
    value: V,
    last: Instant,
    serial: u64,
}

#[derive(Debug)]
struct Deadline<K> {
    at: Instant,
    serial: u64,
    key: K,
}

impl<K> PartialEq for Deadline<K> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<K> Eq for Deadline<K> {}

impl<K> PartialOrd for Deadline<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<K> Ord for Deadline<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

impl<K: Eq + Hash + Clone, V> Sessions<K, V> {
    /// An empty table of at most `limit` sessions, each ending after `idle` without a `get`.
    pub fn new(limit: usize, idle: Duration) -> Self {
        let (sessions, deadlines) = (HashMap::new(), BinaryHeap::new());
        Self {
            sessions,
            deadlines,
            limit: limit.max(1),
            idle,
            serial: 0,
        }
    }

    /// A session, which starts its time of silence anew.
    pub fn get(&mut self, key: &K, now: Instant) -> Option<&mut V> {
        let session = self.sessions.get_mut(key)?;
        session.last = now;
        Some(&mut session.value)
    }

    /// Adds a session, and returns the one that had its key or that had to make room for it.
    pub fn insert(&mut self, key: K, value: V, now: Instant) -> Option<V> {
        let mut gone = self.remove(&key);
        if gone.is_none() && self.sessions.len() >= self.limit {
            let oldest = self.sessions.iter().min_by_key(|(_, session)| session.last);
            let oldest = oldest.map(|(key, _)| key.clone());
            gone = oldest.and_then(|key| self.remove(&key));
        }
        self.serial += 1;
        let serial = self.serial;
        self.deadlines.push(Reverse(Deadline {
            at: now + self.idle,
            serial,
            key: key.clone(),
        }));
        self.sessions.insert(
            key,
            Session {
                value,
                last: now,
                serial,
            },
        );
        gone
    }

    /// Takes a session out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let value = self.sessions.remove(key).map(|session| session.value);
        // Its deadline stays behind; there must not be many of those.
        if self.deadlines.len() > 2 * self.sessions.len() + 16 {
            let sessions = &self.sessions;
            let is_current = |deadline: &Reverse<Deadline<K>>| {
                let session = sessions.get(&deadline.0.key);
                session.is_some_and(|session| session.serial == deadline.0.serial)
            };
            self.deadlines.retain(is_current);
        }
        value
    }

    /// Takes out the sessions whose time is over.
    pub fn expire(&mut self, now: Instant) -> Vec<(K, V)> {
        let mut gone = Vec::new();
        while let Some(Reverse(first)) = self.deadlines.peek()
            && first.at <= now
        {
            let Some(Reverse(Deadline { serial, key, .. })) = self.deadlines.pop() else {
                break;
            };
            let current = self
                .sessions
                .get(&key)
                .filter(|session| session.serial == serial);
            let Some(at) = current.map(|session| session.last + self.idle) else {
                continue;
            };
            if at > now {
                self.deadlines.push(Reverse(Deadline { at, serial, key }));
            } else if let Some(session) = self.sessions.remove(&key) {
                gone.push((key, session.value));
            }
        }
        gone
    }

    /// When to call [`expire`](Self::expire) next.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.deadlines.peek().map(|first| first.0.at)
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// All sessions, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.sessions.values().map(|session| &session.value)
    }

    /// Takes out all.
    pub fn clear(&mut self) {
        self.sessions.clear();
        self.deadlines.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(120);

    #[test]
    fn a_silent_session_ends_and_a_busy_one_stays() {
        let start = Instant::now();
        let mut table = Sessions::new(8, IDLE);
        table.insert("silent", 1, start);
        table.insert("busy", 2, start);
        let later = start + IDLE / 2;
        assert_eq!(table.get(&"busy", later), Some(&mut 2));
        assert_eq!(table.next_expiry(), Some(start + IDLE));
        assert_eq!(table.expire(start + IDLE), [("silent", 1)]);
        assert_eq!(table.next_expiry(), Some(later + IDLE));
        assert_eq!(table.expire(later + IDLE), [("busy", 2)]);
        assert!(table.is_empty() && table.next_expiry().is_none());
    }

    #[test]
    fn a_full_table_gives_up_the_session_silent_for_longest() {
        let start = Instant::now();
        let mut table = Sessions::new(3, IDLE);
        for key in 0..3 {
            table.insert(key, key, start + Duration::from_secs(key));
        }
        table.get(&0, start + Duration::from_secs(9));
        assert_eq!(table.insert(3, 3, start + Duration::from_secs(10)), Some(1));
        assert_eq!(table.len(), 3);
    }

    #[test]
    fn a_flood_of_addresses_leaves_neither_sessions_nor_deadlines_behind() {
        let start = Instant::now();
        let mut table = Sessions::new(10, IDLE);
        for key in 0..10_000_u64 {
            table.insert(key, (), start + Duration::from_micros(key));
        }
        assert_eq!(table.len(), 10);
        assert!(table.deadlines.len() <= 36, "{}", table.deadlines.len());
    }
}
