//! Who is told what about whom: the rules of coordination (coder_wire §6.4), without I/O.
//!
//! Peers take a seat, ask for tunnels and tell their nodes; what comes of it leaves by
//! [`Coordinator::poll_output`]. A newer seat of the same peer replaces the older one.

mod rules;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use relay_wire::proto::tailnet::{CoordinateRequest, Node, coordinate_request};
use uuid::Uuid;

pub(crate) use rules::Role;

/// Names a seat; never used twice.
pub(crate) type SeatId = u64;

/// What a seat is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Output {
    /// Something about another peer.
    Update(Uuid, Change),
    /// A request was not granted.
    Error(String),
    /// Nothing more follows.
    End,
}

/// What became of a peer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// How it is reached.
    Node(Arc<Node>),
    /// It left, or the tunnel was taken down.
    Disconnected(&'static str),
    /// Its control connection broke, for this reason if that is known.
    Lost(&'static str),
    /// It has installed the receiver.
    Ready,
}

/// All peers and tunnels.
#[derive(Default)]
pub(crate) struct Coordinator {
    peers: HashMap<Uuid, Peer>,
    seats: HashMap<SeatId, Uuid>,
    /// From a peer to those it opened tunnels to, and the other way round.
    opened: HashMap<Uuid, HashSet<Uuid>>,
    accepted: HashMap<Uuid, HashSet<Uuid>>,
    next_seat: SeatId,
    outputs: VecDeque<(SeatId, Output)>,
}

struct Peer {
    seat: SeatId,
    role: Role,
    node: Option<Arc<Node>>,
    /// The nodes it knows, as they were sent last.
    announced: HashMap<Uuid, Arc<Node>>,
}

impl Coordinator {
    /// A peer connects.
    pub(crate) fn join(&mut self, id: Uuid, role: Role) -> SeatId {
        if let Some(old) = self.peers.remove(&id) {
            self.seats.remove(&old.seat);
            let text = "peer ID overwritten by new connection".to_owned();
            self.outputs.push_back((old.seat, Output::Error(text)));
            self.outputs.push_back((old.seat, Output::End));
        }
        self.next_seat += 1;
        let seat = self.next_seat;
        let peer = Peer {
            seat,
            role,
            node: None,
            announced: HashMap::new(),
        };
        self.peers.insert(id, peer);
        self.seats.insert(seat, id);
        for other in self.joined(id) {
            self.announce(other, id);
        }
        seat
    }

    /// A peer asks for something. Seats that were replaced are not heard.
    pub(crate) fn handle(&mut self, seat: SeatId, request: CoordinateRequest) {
        let Some(&id) = self.seats.get(&seat) else {
            return;
        };
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        if let Err(text) = rules::check(id, peer.role, &request) {
            self.outputs.push_back((seat, Output::Error(text)));
            self.outputs.push_back((seat, Output::End));
            self.leave(seat, "");
            return;
        }
        if let Some(node) = request.update_self.and_then(|update| update.node) {
            self.update(id, node);
        }
        if let Some(other) = tunnel(request.add_tunnel.as_ref()) {
            self.add_tunnel(id, other);
        }
        if let Some(other) = tunnel(request.remove_tunnel.as_ref()) {
            self.remove_tunnel(id, other);
        }
        if request.disconnect.is_some() {
            self.depart(id, &Change::Disconnected("graceful disconnect"));
            self.outputs.push_back((seat, Output::End));
            return;
        }
        self.ready(id, seat, &request.ready_for_handshake);
    }

    /// A seat's stream ended without a word, for this reason if that is known.
    pub(crate) fn leave(&mut self, seat: SeatId, reason: &'static str) {
        if let Some(&id) = self.seats.get(&seat) {
            self.depart(id, &Change::Lost(reason));
        }
    }

    /// Whether a peer has a seat.
    pub(crate) fn has(&self, id: Uuid) -> bool {
        self.peers.contains_key(&id)
    }

    /// How many tunnels are open.
    pub(crate) fn tunnels(&self) -> usize {
        self.opened.values().map(HashSet::len).sum()
    }

    /// What is to be told next, in order.
    pub(crate) fn poll_output(&mut self) -> Option<(SeatId, Output)> {
        self.outputs.pop_front()
    }

    fn update(&mut self, id: Uuid, node: Node) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.node.as_ref().is_none_or(|old| !same(old, &node)) {
            peer.node = Some(Arc::new(node));
        }
        for other in self.joined(id) {
            self.announce(id, other);
        }
    }

    fn add_tunnel(&mut self, from: Uuid, to: Uuid) {
        self.opened.entry(from).or_default().insert(to);
        self.accepted.entry(to).or_default().insert(from);
        self.announce(to, from);
        self.announce(from, to);
    }

    fn remove_tunnel(&mut self, from: Uuid, to: Uuid) {
        self.forget_tunnel(from, to);
        if !self.are_joined(from, to) {
            let change = Change::Disconnected("remove tunnel");
            self.withdraw(to, from, &change);
            self.withdraw(from, to, &change);
        }
    }

    fn ready(&mut self, id: Uuid, seat: SeatId, ready: &[coordinate_request::ReadyForHandshake]) {
        let mut refused = None;
        for other in ready.iter().take(rules::READY) {
            match Uuid::from_slice(&other.id) {
                Ok(other) if self.are_joined(id, other) => {
                    if let Some(peer) = self.peers.get(&other) {
                        let output = Output::Update(id, Change::Ready);
                        self.outputs.push_back((peer.seat, output));
                    }
                }
                Ok(other) => refused = Some(format!("no tunnel to {other}")),
                Err(_) => refused = Some(format!("invalid UUID (got {} bytes)", other.id.len())),
            }
        }
        if let Some(why) = refused {
            let text = format!("ready for handshake error: {why}");
            self.outputs.push_back((seat, Output::Error(text)));
        }
    }

    /// Takes a peer out. Tunnels it opened are forgotten, those to it stay.
    fn depart(&mut self, id: Uuid, change: &Change) {
        for other in self.joined(id) {
            self.withdraw(id, other, change);
        }
        for other in self.opened.remove(&id).unwrap_or_default() {
            remove_from(&mut self.accepted, other, id);
        }
        if let Some(peer) = self.peers.remove(&id) {
            self.seats.remove(&peer.seat);
        }
    }

    /// Tells `to` the node of `of`, unless it knows it.
    fn announce(&mut self, of: Uuid, to: Uuid) {
        let node = self.peers.get(&of).and_then(|peer| peer.node.clone());
        let (Some(node), Some(receiver)) = (node, self.peers.get_mut(&to)) else {
            return;
        };
        let known = receiver.announced.get(&of);
        if known.is_some_and(|known| Arc::ptr_eq(known, &node) || same(known, &node)) {
            return;
        }
        receiver.announced.insert(of, Arc::clone(&node));
        let output = Output::Update(of, Change::Node(node));
        self.outputs.push_back((receiver.seat, output));
    }

    /// Tells `to` that `of` is gone, if it ever heard of it.
    fn withdraw(&mut self, of: Uuid, to: Uuid, change: &Change) {
        if let Some(receiver) = self.peers.get_mut(&to)
            && receiver.announced.remove(&of).is_some()
        {
            let output = Output::Update(of, change.clone());
            self.outputs.push_back((receiver.seat, output));
        }
    }

    /// Everybody who has a tunnel to or from this peer.
    fn joined(&self, id: Uuid) -> Vec<Uuid> {
        let opened = self.opened.get(&id).into_iter().flatten();
        let accepted = self.accepted.get(&id).into_iter().flatten();
        let twice = |other: &&Uuid| !self.opened.get(&id).is_some_and(|set| set.contains(*other));
        opened.chain(accepted.filter(twice)).copied().collect()
    }

    fn are_joined(&self, a: Uuid, b: Uuid) -> bool {
        let has = |from, to| self.opened.get(from).is_some_and(|set| set.contains(to));
        has(&a, &b) || has(&b, &a)
    }

    fn forget_tunnel(&mut self, from: Uuid, to: Uuid) {
        remove_from(&mut self.opened, from, to);
        remove_from(&mut self.accepted, to, from);
    }
}

fn remove_from(sets: &mut HashMap<Uuid, HashSet<Uuid>>, key: Uuid, value: Uuid) {
    if let Some(set) = sets.get_mut(&key) {
        set.remove(&value);
        if set.is_empty() {
            sets.remove(&key);
        }
    }
}

fn tunnel(tunnel: Option<&coordinate_request::Tunnel>) -> Option<Uuid> {
    Uuid::from_slice(&tunnel?.id).ok()
}

/// Whether two nodes say the same, whenever they said it.
fn same(a: &Node, b: &Node) -> bool {
    let timeless = |node: &Node| Node {
        as_of: None,
        ..node.clone()
    };
    timeless(a) == timeless(b)
}
