//! How the loops of one endpoint talk. Relays know an endpoint by its key, one connection a key, so
//! the first loop holds the connections, and relayed packets of the others' peers change loops, in
//! queues that are bounded: what finds no room is lost, as on any network. What all must know stands
//! on a board. Nothing of this exists where there is one loop.

use std::cell::Cell;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;
use relay_wire::keys::NodePublic;
use tokio::sync::Notify;

use super::MAX_LOOPS;
use super::directory::Directory;
use super::relays::Received;

/// Packets that may wait in each direction between the first loop and another: some bursts of the
/// fastest stream.
const QUEUE: usize = 512;

/// A packet that another loop wants sent through a relay.
#[derive(Debug)]
pub(super) struct Outward {
    pub(super) region: u16,
    pub(super) node: NodePublic,
    pub(super) packet: Bytes,
}

/// What the loops of an endpoint have in common.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) directory: Directory,
    bells: Vec<Notify>,
    /// Of the second loop and those after it.
    lanes: Vec<Lane>,
    board: Mutex<Board>,
    /// Changes of the board so far.
    changes: AtomicU64,
}

/// The queues between the first loop and another.
#[derive(Debug)]
struct Lane {
    inward: ArrayQueue<Received>,
    outward: ArrayQueue<Outward>,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Board {
    /// Addresses of the machine's interfaces.
    interfaces: Vec<IpAddr>,
    stun_servers: Vec<SocketAddr>,
    /// Regions the endpoint is connected to.
    connected: HashSet<u16>,
    /// Of each loop: where it may be reached.
    endpoints: Vec<Vec<SocketAddr>>,
    /// Of each loop: the regions its peers listen on.
    homes: Vec<HashSet<u16>>,
}

/// One loop's place in the exchange.
#[derive(Debug)]
pub(super) struct Seat {
    exchange: Arc<Exchange>,
    number: usize,
    /// Changes of the board that were seen.
    seen: u64,
    /// Losses that were told.
    lost: u64,
}

impl Exchange {
    /// An exchange and the seats of so many loops.
    pub(super) fn new(loops: usize) -> (Arc<Exchange>, Vec<Seat>) {
        let lane = |_| Lane {
            inward: ArrayQueue::new(QUEUE),
            outward: ArrayQueue::new(QUEUE),
            lost: AtomicU64::new(0),
        };
        let board = Board {
            endpoints: vec![Vec::new(); loops],
            homes: vec![HashSet::new(); loops],
            ..Board::default()
        };
        let exchange = Arc::new(Exchange {
            directory: Directory::new(loops),
            bells: (0..loops).map(|_| Notify::new()).collect(),
            lanes: (1..loops).map(lane).collect(),
            board: Mutex::new(board),
            changes: AtomicU64::new(0),
        });
        let seat = |number| Seat {
            exchange: Arc::clone(&exchange),
            number,
            seen: 0,
            lost: 0,
        };
        let seats = (0..loops).map(seat).collect();
        (exchange, seats)
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queues of a loop that is not the first.
    fn lane(&self, number: usize) -> Option<&Lane> {
        self.lanes.get(number.checked_sub(1)?)
    }

    fn ring_others(&self, but: usize) {
        self.changes.fetch_add(1, Ordering::Release);
        for (number, bell) in self.bells.iter().enumerate() {
            if number != but {
                bell.notify_one();
            }
        }
    }
}

impl Seat {
    /// Which loop sits here.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Whether it is the one that holds the connections to relays.
    pub(super) fn is_first(&self) -> bool {
        self.number == 0
    }

    /// Another end for the same loop.
    pub(super) fn again(&self) -> Seat {
        Seat {
            exchange: Arc::clone(&self.exchange),
            ..*self
        }
    }

    /// Waits until another loop has something for this one.
    pub(super) async fn rung(&self) {
        self.exchange.bells[self.number].notified().await;
    }

    /// Whether the board changed since the last time.
    pub(super) fn board_changed(&mut self) -> bool {
        let changes = self.exchange.changes.load(Ordering::Acquire);
        std::mem::replace(&mut self.seen, changes) != changes
    }

    /// The first loop hands packets over to the loops of their senders; those of its own peers, and
    /// of nobody known, stay.
    pub(super) fn hand_over(&self, relayed: &mut Vec<Received>) {
        let exchange = &*self.exchange;
        // One look a packet: peers come and go meanwhile.
        let home = Cell::new(0);
        let elsewhere = |packet: &mut Received| {
            let found = exchange.directory.home_of_key(packet.source.as_bytes());
            home.set(found.unwrap_or(0));
            home.get() != 0
        };
        let mut news = [false; MAX_LOOPS as usize];
        for packet in relayed.extract_if(.., elsewhere) {
            if let Some(lane) = exchange.lane(home.get()) {
                lane.put_inward(packet);
                news[home.get()] = true;
            }
        }
        for (bell, news) in exchange.bells.iter().zip(news) {
            if news {
                bell.notify_one();
            }
        }
    }

    /// Another loop takes what was handed over to it, up to `limit` packets.
    pub(super) fn take_inward(&mut self, limit: usize, relayed: &mut Vec<Received>) {
        let Some(lane) = self.exchange.lane(self.number) else {
            return;
        };
        relayed.extend(std::iter::from_fn(|| lane.inward.pop()).take(limit));
        if !lane.inward.is_empty() {
            self.exchange.bells[self.number].notify_one();
        }
        let lost = lane.lost.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.lost, lost) != lost {
            tracing::debug!(number = self.number, lost, "no room between loops");
        }
    }

    /// Another loop wants a packet sent through a relay; [`Seat::ring_first`] tells the first.
    pub(super) fn put_outward(&self, region: u16, node: NodePublic, packet: &[u8]) {
        let Some(lane) = self.exchange.lane(self.number) else {
            return;
        };
        if lane.outward.is_full() {
            lane.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let packet = Bytes::copy_from_slice(packet);
        // Nobody else puts anything in, so there is room still.
        let _ = lane.outward.push(Outward {
            region,
            node,
            packet,
        });
    }

    pub(super) fn ring_first(&self) {
        self.exchange.bells[0].notify_one();
    }

    /// The first loop takes what the others want sent, up to `limit` packets of each.
    pub(super) fn take_outward(&self, limit: usize, mut each: impl FnMut(Outward)) {
        let mut more = false;
        for lane in &self.exchange.lanes {
            let packets = std::iter::from_fn(|| lane.outward.pop());
            packets.take(limit).for_each(&mut each);
            more |= !lane.outward.is_empty();
        }
        if more {
            self.ring_first();
        }
    }

    /// Tells the others the addresses of the machine's interfaces.
    pub(super) fn post_interfaces(&self, addresses: &[IpAddr]) {
        self.post(|board| replace(&mut board.interfaces, addresses.to_vec()));
    }

    /// Tells the others the STUN servers.
    pub(super) fn post_stun_servers(&self, servers: &[SocketAddr]) {
        self.post(|board| replace(&mut board.stun_servers, servers.to_vec()));
    }

    /// Tells the others which regions are connected.
    pub(super) fn post_connected(&self, regions: HashSet<u16>) {
        self.post(|board| replace(&mut board.connected, regions));
    }

    /// Tells the others where this loop may be reached.
    pub(super) fn post_endpoints(&self, endpoints: &[SocketAddr]) {
        self.post(|board| replace(&mut board.endpoints[self.number], endpoints.to_vec()));
    }

    /// Tells the others the regions this loop's peers listen on.
    pub(super) fn post_homes(&self, homes: HashSet<u16>) {
        self.post(|board| replace(&mut board.homes[self.number], homes));
    }

    fn post(&self, change: impl FnOnce(&mut Board) -> bool) {
        if change(&mut self.exchange.board()) {
            self.exchange.ring_others(self.number);
        }
    }

    pub(super) fn interfaces(&self) -> Vec<IpAddr> {
        self.exchange.board().interfaces.clone()
    }

    pub(super) fn stun_servers(&self) -> Vec<SocketAddr> {
        self.exchange.board().stun_servers.clone()
    }

    pub(super) fn connected(&self) -> HashSet<u16> {
        self.exchange.board().connected.clone()
    }

    /// The regions that peers of any loop listen on.
    pub(super) fn homes(&self) -> HashSet<u16> {
        self.exchange
            .board()
            .homes
            .iter()
            .flatten()
            .copied()
            .collect()
    }

    /// Where any of the loops may be reached, loopback last.
    pub(super) fn endpoints(&self) -> Vec<SocketAddr> {
        let mut all = self.exchange.board().endpoints.concat();
        all.sort_by_key(|address| address.ip().is_loopback());
        all
    }
}

impl Lane {
    fn put_inward(&self, packet: Received) {
        if self.inward.push(packet).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Whether that changed anything.
fn replace<T: PartialEq>(old: &mut T, new: T) -> bool {
    let changed = *old != new;
    *old = new;
    changed
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::FutureExt;
    use relay_wire::keys::NodePrivate;

    use super::*;
    use crate::path::PeerId;

    const REGION: u16 = 999;

    fn node(number: u8) -> NodePublic {
        NodePrivate::from_bytes([number; 32]).public()
    }

    /// Three loops, and a peer of each: peer 1 of the first, 2 of the second, 3 of the third.
    fn three() -> [Seat; 3] {
        let (exchange, seats) = Exchange::new(3);
        for number in 1..=3 {
            let id = PeerId::from_u128(number.into());
            let placed = exchange.directory.place(id, *node(number).as_bytes(), &[]);
            assert_eq!(placed.home, usize::from(number) - 1);
        }
        seats.try_into().unwrap()
    }

    fn received(from: u8, number: u32) -> Received {
        Received {
            region: REGION,
            source: node(from),
            packet: Bytes::copy_from_slice(&number.to_be_bytes()),
        }
    }

    fn number(packet: &[u8]) -> u32 {
        u32::from_be_bytes(packet.try_into().unwrap())
    }

    fn numbers(packets: &[Received]) -> Vec<u32> {
        packets
            .iter()
            .map(|packet| number(&packet.packet))
            .collect()
    }

    fn rung(seat: &Seat) -> bool {
        seat.rung().now_or_never().is_some()
    }

    #[test]
    fn relayed_packets_reach_the_loop_of_their_sender_in_order() {
        let [first, mut second, mut third] = three();
        let stranger = 9;
        let from = [1, 2, 3, 2, stranger, 3, 2, 1];
        let mut relayed: Vec<Received> =
            (0..).zip(from).map(|(n, from)| received(from, n)).collect();
        first.hand_over(&mut relayed);
        assert_eq!(
            numbers(&relayed),
            [0, 4, 7],
            "its own and a stranger's stay"
        );
        assert!(rung(&second) && rung(&third) && !rung(&first));

        let mut taken = Vec::new();
        second.take_inward(2, &mut taken);
        assert_eq!(numbers(&taken), [1, 3]);
        assert!(rung(&second), "it must not sleep over the rest");
        second.take_inward(2, &mut taken);
        assert_eq!(numbers(&taken), [1, 3, 6]);
        assert!(!rung(&second));
        taken.clear();
        third.take_inward(8, &mut taken);
        assert_eq!(numbers(&taken), [2, 5]);
    }

    #[test]
    fn one_loops_own_packets_wake_nobody() {
        let [first, second, third] = three();
        let mut relayed = vec![received(1, 0), received(1, 1)];
        first.hand_over(&mut relayed);
        assert_eq!(numbers(&relayed), [0, 1]);
        assert!(!rung(&first) && !rung(&second) && !rung(&third));
    }

    #[test]
    fn what_finds_no_room_is_counted_and_nobody_elses() {
        let [first, mut second, mut third] = three();
        let more = 10;
        let mut relayed: Vec<Received> = (0..QUEUE as u32 + more).map(|n| received(2, n)).collect();
        relayed.push(received(3, 7));
        first.hand_over(&mut relayed);
        let mut taken = Vec::new();
        second.take_inward(2 * QUEUE, &mut taken);
        assert_eq!(numbers(&taken), (0..QUEUE as u32).collect::<Vec<_>>());
        assert_eq!(second.lost, u64::from(more));
        taken.clear();
        third.take_inward(1, &mut taken);
        assert_eq!((numbers(&taken), third.lost), (vec![7], 0));
    }

    #[test]
    fn what_others_send_through_relays_comes_to_the_first_in_order_and_bounded() {
        let [first, second, third] = three();
        for n in 0..QUEUE as u32 + 5 {
            second.put_outward(REGION, node(2), &n.to_be_bytes());
        }
        third.put_outward(REGION, node(3), &7u32.to_be_bytes());
        third.ring_first();
        assert!(rung(&first));
        let mut taken: Vec<(NodePublic, u32)> = Vec::new();
        let mut take =
            |limit| first.take_outward(limit, |out| taken.push((out.node, number(&out.packet))));
        take(2);
        assert!(rung(&first), "it must not sleep over the rest");
        take(QUEUE);
        assert!(!rung(&first));
        let of = |wanted| {
            taken
                .iter()
                .filter(move |(node, _)| *node == wanted)
                .map(|(_, n)| *n)
        };
        assert!(of(node(2)).eq(0..QUEUE as u32));
        assert!(of(node(3)).eq([7]));
        assert_eq!(
            taken.iter().position(|(to, _)| *to == node(3)),
            Some(2),
            "each gets its turn"
        );
    }

    #[test]
    fn the_board_wakes_the_others_when_it_changes() {
        let [mut first, mut second, mut third] = three();
        first.post_connected([REGION].into());
        assert!(second.board_changed() && rung(&second) && rung(&third));
        assert!(!second.board_changed());
        assert_eq!(second.connected(), [REGION].into());
        first.post_connected([REGION].into());
        assert!(!second.board_changed() && !rung(&second), "nothing new");
        assert!(!rung(&first));

        second.post_homes([1, 2].into());
        third.post_homes([2, 3].into());
        assert!(first.board_changed() && third.board_changed());
        assert_eq!(first.homes(), [1, 2, 3].into());
    }

    #[test]
    fn all_loops_are_told_as_one_node_with_loopback_last() {
        let [first, second, third] = three();
        let at = |ip: Ipv4Addr, port| SocketAddr::from((ip, port));
        let public = Ipv4Addr::new(192, 0, 2, 1);
        for (seat, port) in [(&first, 1), (&second, 2), (&third, 3)] {
            seat.post_endpoints(&[at(public, port), at(Ipv4Addr::LOCALHOST, port)]);
        }
        let near = (1..=3).map(|port| at(Ipv4Addr::LOCALHOST, port));
        let all: Vec<_> = (1..=3).map(|port| at(public, port)).chain(near).collect();
        assert_eq!(first.endpoints(), all);
    }
}
