//! The loop's side: packets in, local sockets, packets out. All of it is done in the loop's own
//! turns; nothing here waits.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant as Clock};

use relay_engine::{Ending, Side};
use relay_tcp::{
    Algorithm, Bursts, Config, ConnectionId, Event, Events, Instant, RequestId, Stack, StackConfig,
};
use tokio::sync::mpsc::error::TrySendError;

use super::super::kernel::lock;
use super::super::stream::Incoming;
use super::flow::{Flow, Next};
use super::inbox::{Ask, SocketWaker};
use super::local::Local;
use super::{Shared, UserOptions, Wanted};
use crate::path::BASE_MTU;

/// Bytes of packets that one turn makes before what it made is sent.
const TURN: usize = 256 << 10;
/// How long a peer may leave data without acknowledgement, about as long as with the kernel's TCP.
const SILENCE: Duration = Duration::from_secs(300);

/// The loop's side of the stack.
#[derive(Debug)]
pub(crate) struct UserLoop {
    stack: Stack,
    started: Clock,
    shared: Arc<Shared>,
    flows: HashMap<ConnectionId, Flow>,
    /// Flows that stopped for others' sake.
    again: Vec<ConnectionId>,
    /// When flows are to be run at the latest. A flow has one alarm that counts.
    alarms: BinaryHeap<Reverse<(Instant, ConnectionId)>>,
    /// To what receive buffers grow over short ways, in bytes.
    near: u64,
    asks: Vec<Ask>,
    ready: Vec<ConnectionId>,
}

/// What a turn made.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Made {
    pub(crate) packets: usize,
    pub(crate) bytes: usize,
}

impl UserLoop {
    pub(super) fn new(options: UserOptions, shared: Arc<Shared>) -> Self {
        let connection = Config {
            mtu: BASE_MTU,
            rto_max: Duration::from_secs(1),
            time_wait: Duration::from_secs(10),
            user_timeout: SILENCE,
            keepalive: None,
            // No router in a tunnel can mark a packet.
            ecn: false,
            early_data: options.between_relays,
            patient_acks: options.between_relays,
            ..Config::default()
        };
        let config = StackConfig {
            connection,
            addresses: options.addresses.into_iter().map(IpAddr::V6).collect(),
            ..StackConfig::default()
        };
        Self {
            stack: Stack::new(config, rand::random()),
            started: Clock::now(),
            shared,
            flows: HashMap::new(),
            again: Vec::new(),
            alarms: BinaryHeap::new(),
            near: options.udp_receive_buffer as u64,
            asks: Vec::new(),
            ready: Vec::new(),
        }
    }

    /// Waits until there is something to do that no packet and no timer tells.
    pub(crate) fn readable(&self) -> impl Future<Output = ()> + Send + use<> {
        let (is_pending, shared) = (self.is_pending(), Arc::clone(&self.shared));
        poll_fn(move |context| match is_pending {
            true => Poll::Ready(()),
            false => shared.inbox.poll(context),
        })
    }

    /// Whether the last turn left work.
    pub(crate) fn is_pending(&self) -> bool {
        !self.again.is_empty() || self.stack.wants_to_transmit() || self.stack.wants_to_tell()
    }

    /// Takes packets of peers, whose source addresses were checked.
    pub(crate) fn handle_packets<'a>(
        &mut self,
        now: Clock,
        packets: impl IntoIterator<Item = &'a [u8]>,
    ) {
        let now = self.moment(now);
        self.stack.handle_packets(now, packets);
    }

    /// Does what is due, moves bytes between connections and sockets, and writes packets.
    pub(crate) fn turn(&mut self, now: Clock, bursts: &mut dyn Bursts) -> Made {
        let now = self.moment(now);
        self.stack.handle_timeout(now);
        self.answer(now);
        for id in std::mem::take(&mut self.again) {
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.listed = false;
            }
            self.run(id, now, false);
        }
        self.ring(now);
        while let Some(event) = self.stack.poll_event() {
            self.handle_event(event, now);
        }
        let mut made = Made::default();
        while made.bytes < TURN {
            let Some((_, sent)) = self.stack.transmit(now, bursts) else {
                break;
            };
            made.packets += sent.packets;
            made.bytes += sent.bytes;
        }
        made
    }

    /// When [`turn`](Self::turn) is to be called next if nothing happens before.
    pub(crate) fn poll_timeout(&self, now: Clock) -> Option<(Clock, &'static str)> {
        let alarm = self.alarms.peek().map(|Reverse((at, _))| *at);
        let next = [self.stack.poll_timeout(self.moment(now)), alarm];
        let at = next.into_iter().flatten().min()?;
        Some((self.started + at.since(Instant::ZERO), "user stack"))
    }

    /// Sets the largest packet that reaches this peer; streams that are open follow at once.
    pub(crate) fn set_peer_mtu(&mut self, now: Clock, peer: Ipv6Addr, mtu: u16) {
        let now = self.moment(now);
        self.shared.ways.set(peer, mtu);
        self.stack.set_mtu(now, peer.into(), mtu);
    }

    /// The way to this peer carries no packets larger than `mtu`, as somebody on it says.
    pub(crate) fn narrow(&mut self, now: Clock, peer: Ipv6Addr, mtu: u16) {
        // No IPv6 link carries less, and a forged message must not make it slow.
        let mtu = mtu.max(BASE_MTU);
        if self.shared.ways.knows(peer) && mtu < self.shared.ways.get(peer) {
            self.set_peer_mtu(now, peer, mtu);
        }
    }

    /// Says whether the way to this peer is known to be short. Over a short way no more may be
    /// under way than the UDP socket takes in one piece, and nothing is gained by pacing.
    pub(crate) fn set_peer_near(&mut self, peer: Ipv6Addr, near: bool) {
        let (algorithm, most) = match near {
            true => (Algorithm::Cubic, self.near),
            false => (Algorithm::Bbr, u64::MAX),
        };
        self.stack.set_way(peer.into(), algorithm, most);
    }

    /// Forgets a peer and ends the streams to it.
    pub(crate) fn forget_peer(&mut self, peer: Ipv6Addr) {
        self.shared.ways.remove(peer);
        self.stack.forget_peer(peer.into());
    }

    /// Gives memory back that is not in use.
    pub(crate) fn release(&mut self) {
        self.stack.trim();
        (self.asks, self.ready) = (Vec::new(), Vec::new());
        super::sys::give_memory_back();
    }

    fn moment(&self, now: Clock) -> Instant {
        let since = now.saturating_duration_since(self.started);
        Instant::ZERO + since
    }

    /// Does what the handles asked for, and what sockets are ready for.
    fn answer(&mut self, now: Instant) {
        let (mut asks, mut ready) = (
            std::mem::take(&mut self.asks),
            std::mem::take(&mut self.ready),
        );
        self.shared.inbox.take(&mut asks, &mut ready);
        for ask in asks.drain(..) {
            self.handle_ask(ask, now);
        }
        for id in ready.drain(..) {
            self.run(id, now, true);
        }
        (self.asks, self.ready) = (asks, ready);
    }

    fn handle_ask(&mut self, ask: Ask, now: Instant) {
        match ask {
            Ask::Connect {
                ticket,
                source,
                remote,
                first,
                done,
            } => {
                if ticket.is_given_up() {
                    return;
                }
                let (local, far) = (source.into(), remote.into());
                match self.stack.connect_with(now, local, far, &first) {
                    Ok((id, taken)) => self.insert(now, &ticket, id, Flow::opening(done, taken)),
                    Err(error) => drop(done.send(Err(io::Error::other(error)))),
                }
            }
            Ask::Join {
                ticket,
                local,
                moved,
                done,
            } => {
                let Some(id) = ticket.id() else { return };
                let waker = SocketWaker::new(&self.shared, id);
                if let Some(flow) = self.flows.get_mut(&id) {
                    flow.local = Some(Local::new(local, waker));
                    (flow.moved, flow.done) = (moved, done);
                    // Whoever opened the connection came by the socket first.
                    flow.near = Side::A;
                    self.run(id, now, false);
                }
            }
            Ask::Accept {
                ticket,
                request,
                patience,
                local,
                moved,
                connected,
                done,
            } => match self.stack.accept(now, request) {
                Ok(id) => {
                    if let Some(longest) = patience {
                        self.stack.set_user_timeout(id, longest);
                    }
                    let waker = SocketWaker::new(&self.shared, id);
                    let mut flow = Flow::accepted(connected, Local::new(local, waker));
                    (flow.moved, flow.done) = (moved, done);
                    self.insert(now, &ticket, id, flow);
                }
                Err(error) => {
                    tracing::debug!(%error, "a peer's connection did not come about");
                    let _ = connected.send(Err(io::ErrorKind::ConnectionReset.into()));
                    relay_engine::abort(local);
                }
            },
            Ask::Refuse(request) => drop(self.stack.refuse(request)),
            Ask::Close(ticket) => {
                if let Some(id) = ticket.id() {
                    self.flows.remove(&id);
                    self.stack.close(now, id);
                }
            }
            Ask::Reset(ticket) => {
                if let Some(id) = ticket.id() {
                    self.flows.remove(&id);
                    self.stack.abort(id);
                }
            }
        }
    }

    fn insert(
        &mut self,
        now: Instant,
        ticket: &super::inbox::Ticket,
        id: ConnectionId,
        flow: Flow,
    ) {
        if !ticket.made(id) {
            self.stack.abort(id);
            return;
        }
        self.flows.insert(id, flow);
        self.run(id, now, false);
    }

    fn handle_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Requested {
                request,
                local,
                remote,
            } => self.offer(request, local, remote),
            // Whoever dials for it finds that out when it accepts.
            Event::Withdrawn(_) => {}
            Event::Changed { id, events } => self.changed(id, events, now),
        }
    }

    /// Offers a connection that a peer wants to whoever takes them.
    fn offer(&mut self, request: RequestId, local: SocketAddr, remote: SocketAddr) {
        let sender = lock(&self.shared.incoming).clone();
        let (Some(sender), SocketAddr::V6(destination), SocketAddr::V6(source)) =
            (sender, local, remote)
        else {
            let _ = self.stack.refuse(request);
            return;
        };
        let plain = |address: SocketAddrV6| SocketAddrV6::new(*address.ip(), address.port(), 0, 0);
        let wanted = Wanted {
            shared: Arc::clone(&self.shared),
            request: Some(request),
            source: plain(source),
            destination: plain(destination),
            patience: None,
        };
        // Dropped because nobody takes it, it is refused.
        if let Err(TrySendError::Full(Incoming::User(mut wanted))) =
            sender.try_send(Incoming::User(wanted))
        {
            // The peer repeats it.
            wanted.request = None;
            self.stack.ignore(request);
        }
    }

    fn changed(&mut self, id: ConnectionId, events: Events, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        if events.connected && !flow.connected() {
            self.flows.remove(&id);
            self.stack.abort(id);
            return;
        }
        if events.writable {
            flow.unblock();
        }
        if let Some(reason) = events.closed {
            flow.closed(reason, now);
        }
        self.run(id, now, false);
    }

    fn run(&mut self, id: ConnectionId, now: Instant, woken: bool) {
        let Some(flow) = self.flows.get_mut(&id) else {
            return;
        };
        match flow.run(&mut self.stack, id, now, woken) {
            Next::Over(ending) => self.end(id, now, ending),
            Next::Again if !flow.listed => {
                flow.listed = true;
                self.again.push(id);
            }
            Next::Wait | Next::Again => {}
            Next::Until(at) if flow.alarm.is_none_or(|set| at < set) => {
                flow.alarm = Some(at);
                self.alarms.push(Reverse((at, id)));
            }
            Next::Until(_) => {}
        }
    }

    /// Runs the flows whose alarms are due.
    fn ring(&mut self, now: Instant) {
        while let Some(&Reverse((at, id))) = self.alarms.peek()
            && at <= now
        {
            self.alarms.pop();
            if let Some(flow) = self.flows.get_mut(&id)
                && flow.alarm == Some(at)
            {
                flow.alarm = None;
                self.run(id, now, false);
            }
        }
    }

    fn end(&mut self, id: ConnectionId, now: Instant, ending: Ending) {
        let Some(flow) = self.flows.remove(&id) else {
            return;
        };
        match ending {
            Ending::Finished => self.stack.close(now, id),
            Ending::Reset(_) => self.stack.abort(id),
        }
        let is_reset = ending == Ending::Reset(flow.far());
        if let Some(local) = flow.local.filter(|_| is_reset) {
            local.reset();
        }
        if let Some(done) = flow.done {
            let _ = done.send(ending);
        }
    }
}

impl Drop for UserLoop {
    fn drop(&mut self) {
        self.shared.inbox.close();
    }
}
