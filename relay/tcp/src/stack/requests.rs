//! SYNs that nobody has decided on: bounded in number and time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::table::Secret;
use crate::connection::{Request, Tuple};
use crate::time::Instant;

/// Names a request; never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u64);

/// The requests that wait.
#[derive(Debug)]
pub(super) struct Requests {
    next: u64,
    waiting: BTreeMap<RequestId, Request>,
    by_tuple: HashMap<Tuple, RequestId, Secret>,
    of_peer: BTreeMap<IpAddr, usize>,
    /// When each gives up, in order; those decided on are skipped.
    deadlines: VecDeque<(Instant, RequestId)>,
}

impl Requests {
    pub(super) fn new(secret: Secret) -> Self {
        Self {
            next: 0,
            waiting: BTreeMap::new(),
            by_tuple: HashMap::with_hasher(secret),
            of_peer: BTreeMap::new(),
            deadlines: VecDeque::new(),
        }
    }

    /// Keeps a request until `now + patience`.
    pub(super) fn add(&mut self, request: Request, now: Instant, patience: Duration) -> RequestId {
        let id = RequestId(self.next);
        self.next += 1;
        *self.of_peer.entry(request.tuple.remote.ip()).or_default() += 1;
        self.by_tuple.insert(request.tuple, id);
        self.waiting.insert(id, request);
        self.deadlines.push_back((now + patience, id));
        id
    }

    pub(super) fn find(&self, tuple: &Tuple) -> Option<RequestId> {
        self.by_tuple.get(tuple).copied()
    }

    /// Takes a request out.
    pub(super) fn take(&mut self, id: RequestId) -> Option<Request> {
        let request = self.waiting.remove(&id)?;
        self.by_tuple.remove(&request.tuple);
        let peer = request.tuple.remote.ip();
        if let Some(count) = self.of_peer.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.of_peer.remove(&peer);
            }
        }
        self.skip_decided();
        Some(request)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn len_of(&self, peer: IpAddr) -> usize {
        self.of_peer.get(&peer).copied().unwrap_or(0)
    }

    /// When the first request gives up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|&(at, _)| at)
    }

    /// Takes out a request that waited too long.
    pub(super) fn expire(&mut self, now: Instant) -> Option<RequestId> {
        let &(at, id) = self.deadlines.front()?;
        if at > now {
            return None;
        }
        self.take(id).map(|_| id)
    }

    /// Takes out the requests of `peer`.
    pub(super) fn forget(&mut self, peer: IpAddr) -> impl Iterator<Item = RequestId> + use<> {
        let ids: Vec<RequestId> = self
            .waiting
            .iter()
            .filter(|(_, request)| request.tuple.remote.ip() == peer)
            .map(|(&id, _)| id)
            .collect();
        for &id in &ids {
            self.take(id);
        }
        ids.into_iter()
    }

    fn skip_decided(&mut self) {
        while let Some((_, id)) = self.deadlines.front() {
            if self.waiting.contains_key(id) {
                return;
            }
            self.deadlines.pop_front();
        }
    }
}
