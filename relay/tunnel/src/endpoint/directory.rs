//! Which of an endpoint's loops each peer belongs to. A peer stays with its loop for as long as it is
//! installed, and so does whoever takes its place.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::path::PeerId;

type Key = [u8; 32];

/// The peers of all loops.
#[derive(Debug)]
pub(super) struct Directory(RwLock<State>);

#[derive(Debug)]
struct State {
    /// Peers of each loop.
    loads: Vec<usize>,
    peers: HashMap<Key, Entry>,
    by_id: HashMap<PeerId, Key>,
    by_address: HashMap<Ipv6Addr, Key>,
}

#[derive(Debug)]
struct Entry {
    id: PeerId,
    home: usize,
    addresses: Vec<Ipv6Addr>,
}

/// Where a peer goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// Its loop.
    pub(super) home: usize,
    /// Peers of other loops whose place it takes: they are to be removed there first.
    pub(super) elsewhere: Vec<(usize, PeerId)>,
}

impl Directory {
    /// No peers, in so many loops.
    pub(super) fn new(loops: usize) -> Directory {
        Directory(RwLock::new(State {
            loads: vec![0; loops],
            peers: HashMap::new(),
            by_id: HashMap::new(),
            by_address: HashMap::new(),
        }))
    }

    /// Finds the loop for a peer that comes or changes, and keeps it: the one it has, or that of the
    /// peer whose place it takes, or the one with the fewest peers.
    pub(super) fn place(&self, id: PeerId, key: Key, addresses: &[Ipv6Addr]) -> Placed {
        let mut state = self.write();
        let known = state.remove(&key).map(|entry| entry.home);
        let by_address = addresses
            .iter()
            .map(|address| state.by_address.get(address));
        let rivals = std::iter::once(state.by_id.get(&id)).chain(by_address);
        let rivals: Vec<Key> = rivals.flatten().copied().collect();
        // One may be named by its id and by several addresses; it is removed once.
        let rivals: Vec<Entry> = rivals.iter().filter_map(|key| state.remove(key)).collect();
        let home = known
            .or_else(|| rivals.first().map(|rival| rival.home))
            .unwrap_or_else(|| state.least());
        let foreign = rivals.iter().filter(|rival| rival.home != home);
        let elsewhere = foreign.map(|rival| (rival.home, rival.id)).collect();
        let addresses = addresses.to_vec();
        state.insert(
            key,
            Entry {
                id,
                home,
                addresses,
            },
        );
        Placed { home, elsewhere }
    }

    /// Forgets a peer, and says which loop had it.
    pub(super) fn remove(&self, id: PeerId) -> Option<usize> {
        let mut state = self.write();
        let key = *state.by_id.get(&id)?;
        Some(state.remove(&key)?.home)
    }

    pub(super) fn home_of(&self, id: PeerId) -> Option<usize> {
        let state = self.read();
        Some(state.peers.get(state.by_id.get(&id)?)?.home)
    }

    pub(super) fn home_of_address(&self, address: Ipv6Addr) -> Option<usize> {
        let state = self.read();
        Some(state.peers.get(state.by_address.get(&address)?)?.home)
    }

    pub(super) fn home_of_key(&self, key: &Key) -> Option<usize> {
        Some(self.read().peers.get(key)?.home)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The loop with the fewest peers; of several the first, which is awake anyway.
    fn least(&self) -> usize {
        let loads = self.loads.iter().enumerate();
        loads.min_by_key(|(_, load)| **load).map_or(0, |(at, _)| at)
    }

    fn insert(&mut self, key: Key, entry: Entry) {
        self.loads[entry.home] += 1;
        self.by_id.insert(entry.id, key);
        for address in &entry.addresses {
            self.by_address.insert(*address, key);
        }
        self.peers.insert(key, entry);
    }

    fn remove(&mut self, key: &Key) -> Option<Entry> {
        let entry = self.peers.remove(key)?;
        self.loads[entry.home] -= 1;
        self.by_id.remove(&entry.id);
        for address in &entry.addresses {
            self.by_address.remove(address);
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> PeerId {
        PeerId::from_u128(number)
    }

    fn address(number: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd7a, 0, 0, 0, 0, 0, 0, number)
    }

    /// Peer `number`, with id, key and address of that number.
    fn place(directory: &Directory, number: u8) -> usize {
        let addresses = [address(number.into())];
        let placed = directory.place(id(number.into()), [number; 32], &addresses);
        assert_eq!(placed.elsewhere, []);
        placed.home
    }

    fn fill(directory: &Directory, peers: u8) {
        for number in 1..=peers {
            place(directory, number);
        }
    }

    #[test]
    fn peers_spread_over_the_loops_and_stay_where_they_are() {
        let directory = Directory::new(3);
        let homes: Vec<usize> = (1..=6).map(|number| place(&directory, number)).collect();
        assert_eq!(homes, [0, 1, 2, 0, 1, 2]);
        assert_eq!(place(&directory, 2), 1, "known already");
        assert_eq!(directory.home_of(id(2)), Some(1));
        assert_eq!(directory.home_of_address(address(3)), Some(2));
        assert_eq!(directory.home_of_key(&[6; 32]), Some(2));
        assert_eq!(directory.home_of_key(&[7; 32]), None);
    }

    #[test]
    fn the_next_peer_takes_the_room_of_one_that_left() {
        let directory = Directory::new(3);
        fill(&directory, 6);
        assert_eq!(directory.remove(id(5)), Some(1));
        assert_eq!(directory.remove(id(5)), None);
        assert_eq!(directory.home_of_address(address(5)), None);
        assert_eq!(place(&directory, 7), 1);
    }

    #[test]
    fn a_new_key_takes_the_place_of_the_old_one_in_its_loop() {
        let directory = Directory::new(3);
        fill(&directory, 3);
        let placed = directory.place(id(2), [9; 32], &[address(9)]);
        assert_eq!((placed.home, placed.elsewhere), (1, vec![]));
        assert_eq!(directory.home_of_key(&[2; 32]), None);
        assert_eq!(directory.home_of_address(address(2)), None);
        assert_eq!(place(&directory, 4), 0, "no place was lost or won");
    }

    #[test]
    fn whose_place_is_taken_in_another_loop_is_named() {
        let directory = Directory::new(3);
        fill(&directory, 3);
        // The id of one, the addresses of that and of another.
        let placed = directory.place(id(2), [9; 32], &[address(2), address(3)]);
        let elsewhere = vec![(2, id(3))];
        assert_eq!(placed, Placed { home: 1, elsewhere });
        assert_eq!(directory.home_of_address(address(3)), Some(1));
        assert_eq!(directory.home_of(id(3)), None);
        assert_eq!(place(&directory, 4), 2);
    }

    #[test]
    fn a_known_key_under_another_id_is_the_same_peer() {
        let directory = Directory::new(2);
        fill(&directory, 2);
        let placed = directory.place(id(7), [2; 32], &[address(2)]);
        assert_eq!((placed.home, placed.elsewhere), (1, vec![]));
        assert_eq!(
            (directory.home_of(id(2)), directory.home_of(id(7))),
            (None, Some(1))
        );
    }
}
