//! Which peers are there, which are lost, and which are asked whether they live. Time comes in as an
//! argument.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// A lost peer goes when its last handshake is older than this: for so long a machine may sleep.
const KEEP_LOST: Duration = Duration::from_secs(15 * 60);
/// How often lost peers are looked at.
const LOOK: Duration = Duration::from_secs(60);

/// Whether a lost peer is to be given up, by the age of its last handshake.
pub(super) fn is_over(handshake_age: Option<Duration>) -> bool {
    handshake_age.is_none_or(|age| age > KEEP_LOST)
}

/// One asking of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Round {
    id: Uuid,
    number: u64,
}

/// The peers.
#[derive(Debug, Default)]
pub(super) struct Roll {
    present: HashSet<Uuid>,
    lost: HashSet<Uuid>,
    /// Of those who are lost and asked, the number of the asking.
    asked: HashMap<Uuid, u64>,
    rounds: u64,
    next_look: Option<Instant>,
}

impl Roll {
    /// A peer is named. Whatever was asked of it before does not matter any more.
    pub(super) fn present(&mut self, id: Uuid) {
        self.forget(id);
        self.present.insert(id);
    }

    /// A peer's control connection broke. When the peer's own end `closed` it, the peer is to be
    /// asked; [`Roll::answered`] takes what comes of it.
    pub(super) fn lost(&mut self, id: Uuid, closed: bool, now: Instant) -> Option<Round> {
        if !self.present.remove(&id) {
            return None;
        }
        self.lost.insert(id);
        self.next_look.get_or_insert(now + LOOK);
        closed.then(|| {
            self.rounds += 1;
            let number = self.rounds;
            self.asked.insert(id, number);
            Round { id, number }
        })
    }

    /// Nobody is known to be there.
    pub(super) fn all_lost(&mut self, now: Instant) {
        for id in std::mem::take(&mut self.present) {
            self.lost.insert(id);
            self.next_look.get_or_insert(now + LOOK);
        }
    }

    /// A peer has answered, or not; gives the peer if it is to go. One that answers lives, and may
    /// sleep like any other from then on.
    pub(super) fn answered(&mut self, round: Round, answered: bool) -> Option<Uuid> {
        let Round { id, number } = round;
        if self.asked.get(&id) != Some(&number) {
            return None;
        }
        self.asked.remove(&id);
        (!answered).then_some(id)
    }

    /// A peer has gone; says whether it was known.
    pub(super) fn gone(&mut self, id: Uuid) -> bool {
        self.present.remove(&id) | self.forget(id)
    }

    /// When [`Roll::look`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.next_look.filter(|_| !self.lost.is_empty())
    }

    /// Those who may have been lost for too long.
    pub(super) fn look(&mut self, now: Instant) -> Vec<Uuid> {
        self.next_look = Some(now + LOOK);
        self.lost.iter().copied().collect()
    }

    fn forget(&mut self, id: Uuid) -> bool {
        self.asked.remove(&id);
        let known = self.lost.remove(&id);
        if self.lost.is_empty() {
            self.next_look = None;
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn with(peers: &[Uuid]) -> Roll {
        let mut roll = Roll::default();
        peers.iter().for_each(|id| roll.present(*id));
        roll
    }

    #[test]
    fn a_peer_that_closed_its_connection_is_asked_and_goes_when_it_is_silent() {
        let (mut roll, now) = (with(&[ID]), Instant::now());
        let round = roll.lost(ID, true, now).expect("asked");
        assert_eq!(roll.answered(round, false), Some(ID));
        assert!(roll.gone(ID));
        assert_eq!(roll.poll_timeout(), None);
    }

    #[test]
    fn one_that_answers_or_is_named_again_stays() {
        let (mut roll, now) = (with(&[ID]), Instant::now());
        let round = roll.lost(ID, true, now).expect("asked");
        assert_eq!(roll.answered(round, true), None);
        assert_eq!(roll.poll_timeout(), Some(now + LOOK), "it is lost still");

        roll.present(ID);
        let round = roll.lost(ID, true, now).expect("asked");
        roll.present(ID);
        assert_eq!(roll.answered(round, false), None, "it is another one's now");
        let again = roll.lost(ID, true, now).expect("asked");
        assert_eq!(roll.answered(round, false), None);
        assert_eq!(roll.answered(again, false), Some(ID));
    }

    #[test]
    fn a_machine_that_sleeps_is_waited_for() {
        let (mut roll, now) = (with(&[ID, OTHER]), Instant::now());
        assert_eq!(roll.lost(ID, false, now), None);
        roll.all_lost(now + LOOK / 2);
        assert_eq!(roll.poll_timeout(), Some(now + LOOK));
        assert_eq!(roll.look(now + LOOK).len(), 2);
        assert_eq!(roll.poll_timeout(), Some(now + 2 * LOOK));
        assert!(!is_over(Some(KEEP_LOST)));
        assert!(is_over(Some(KEEP_LOST + LOOK)) && is_over(None));
    }

    #[test]
    fn who_is_not_there_is_not_lost() {
        let (mut roll, now) = (with(&[]), Instant::now());
        assert_eq!(roll.lost(ID, true, now), None);
        assert!(!roll.gone(ID));
        assert_eq!(roll.poll_timeout(), None);
    }
}
