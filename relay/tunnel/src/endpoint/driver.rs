//! The loop: one task that waits for whatever comes first and does one bounded turn of work.
//!
//! A turn reads bursts from the UDP socket and the relays, opens them, and writes what is inside to
//! the TUN device in one batch; then it reads the TUN device, and seals and sends what it read.
//! After a turn with work the other tasks get the thread.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use relay_wire::derp_map::DerpMap;
use relay_wire::disco::TxId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Sleep;

use super::busy::{BusyPoll, Moved};
use super::commands::Command;
use super::early::Early;
use super::exchange::Seat;
use super::handle::{Pong, States};
use super::local::Local;
use super::node::{FEATURE_EARLY_DATA, FEATURES, LocalNode};
use super::peers::Peers;
use super::relays::{Connections, Detour, Received, Relays};
use super::{EndpointConfig, Event, IDLE};
use crate::Error;
use crate::capture::Capture;
use crate::datagram::{self, Datagram, Delivery, Fragments, Outbox, Reassembler};
use crate::path::{self, PathConfig, PathState, Paths, PeerId};
use crate::stack::Injection;
use crate::udp::{ReceiveBuffers, UdpSocket};
use crate::wireguard::{Identity, Opened};

/// Relayed packets, datagrams and commands taken in one turn.
pub(super) const BATCH: usize = 128;
/// How often the machine's addresses are read again.
const INTERFACES: Duration = Duration::from_secs(10);
/// Tunnel MTU over a relay between relay ends: relays carry any size.
const RELAY_MTU: u16 = 1420;
/// Timers are not exacter than this, so that a busy loop need not set them each turn.
const SLACK: Duration = Duration::from_millis(1);

/// The loop's ends of the channels to the rest.
pub(super) struct Channels {
    pub(super) inbox: mpsc::Receiver<Command>,
    /// For tasks of the loop's own that report back; weak, so that the loop ends with the handles.
    pub(super) commands: mpsc::WeakSender<Command>,
    pub(super) outbox: Outbox,
    /// Present where there are other loops.
    pub(super) seat: Option<Seat>,
    /// What all loops of the endpoint share.
    pub(super) common: Common,
}

/// What the loops of one endpoint share with its handles.
#[derive(Clone)]
pub(super) struct Common {
    pub(super) events: mpsc::Sender<Event>,
    pub(super) delivery: Delivery,
    pub(super) node: Arc<watch::Sender<Option<LocalNode>>>,
    pub(super) states: States,
    pub(super) early: Early,
    /// Causes of warnings that were told.
    pub(super) said: Arc<Mutex<HashSet<String>>>,
    pub(super) capture: Option<Capture>,
}

/// All state of one loop: of the whole endpoint, or of a part of its peers.
pub(super) struct Driver {
    pub(super) identity: Identity,
    pub(super) addresses: Vec<Ipv6Addr>,
    pub(super) keepalive: bool,
    pub(super) udp: UdpSocket,
    pub(super) local: Local,
    pub(super) peers: Peers,
    pub(super) paths: Paths,
    pub(super) relays: Relays,
    pub(super) receive: ReceiveBuffers,
    pub(super) opened: Opened,
    pub(super) fragments: Fragments,
    pub(super) reassembler: Reassembler,
    pub(super) tsmp: HashMap<[u8; 8], (Instant, mpsc::Sender<Duration>)>,
    pub(super) disco: HashMap<TxId, oneshot::Sender<Result<Pong, Error>>>,
    /// Packets this loop made for the kernel.
    pub(super) to_tun: Vec<Vec<u8>>,
    pub(super) scratch: Vec<u8>,
    /// The TUN device gives errors; it is left alone then.
    pub(super) tun_failed: bool,
    /// Something in [`LocalNode`] may have changed.
    pub(super) node_changed: bool,
    pub(super) commands: mpsc::WeakSender<Command>,
    pub(super) common: Common,
    pub(super) seat: Option<Seat>,
    pub(super) template: LocalNode,
    direct: bool,
    inbox: mpsc::Receiver<Command>,
    outbox: Outbox,
    injections: mpsc::UnboundedReceiver<Injection>,
    /// In the loop that has the connections to relays.
    relayed: mpsc::Receiver<Received>,
    interfaces_at: Instant,
    /// When a packet of a peer or of the kernel was moved last.
    pub(super) busy_at: Instant,
    /// What this turn moved.
    pub(super) moved: Moved,
    busy_poll: BusyPoll,
    /// Buffers are given back and untouched since.
    released: bool,
}

/// What woke the loop.
enum Wake {
    Packets,
    Relayed,
    Datagrams,
    Commands(usize),
    Injected(Injection),
    Timer,
    /// Another loop has something for this one.
    Rung,
    /// Nothing came while it was waited for awake.
    Silence,
}

impl Driver {
    pub(super) fn new(
        config: EndpointConfig,
        udp: UdpSocket,
        local: Local,
        injections: mpsc::UnboundedReceiver<Injection>,
        channels: Channels,
    ) -> Driver {
        let public = config.node.public();
        let template = LocalNode {
            id: config.id,
            key: public,
            disco: config.disco.public(),
            home: 0,
            addresses: config.addresses.clone(),
            endpoints: Vec::new(),
            latency: Default::default(),
            features: if local.takes_early_data() {
                FEATURES | FEATURE_EARLY_DATA
            } else {
                FEATURES
            },
        };
        let identity = Identity::with_cipher(config.node.to_bytes(), config.offloads.cipher());
        let paths = Paths::new(
            PathConfig {
                disco: config.disco,
                node: public,
                direct: config.direct,
                max_mtu: config.max_mtu,
                relay_mtu: RELAY_MTU.min(config.max_mtu),
            },
            rand::random(),
        );
        let (sender, relayed) = mpsc::channel(4 * BATCH);
        let commands = channels.commands.clone();
        let others = channels.seat.as_ref().filter(|seat| !seat.is_first());
        let number = others.map_or(0, Seat::number);
        let relays = match others {
            Some(seat) => Relays::Through(Detour::new(seat.again())),
            None => Relays::Own(Box::new(Connections::new(
                config.node,
                config.tls,
                config.force_websockets,
                sender,
                commands.clone(),
            ))),
        };
        let now = Instant::now();
        let mut driver = Driver {
            identity,
            addresses: config.addresses,
            keepalive: config.keepalive,
            injections,
            udp,
            local,
            peers: Peers::of_loop(number),
            paths,
            relays,
            receive: ReceiveBuffers::default(),
            opened: Opened::default(),
            fragments: Fragments::new(rand::random()),
            reassembler: Reassembler::default(),
            tsmp: HashMap::new(),
            disco: HashMap::new(),
            to_tun: Vec::new(),
            scratch: Vec::new(),
            tun_failed: false,
            node_changed: false,
            commands,
            common: channels.common,
            seat: channels.seat,
            template,
            direct: config.direct,
            inbox: channels.inbox,
            outbox: channels.outbox,
            relayed,
            interfaces_at: now + INTERFACES,
            busy_at: now,
            moved: Moved::default(),
            busy_poll: BusyPoll::new(awake(config.busy_poll)),
            released: true,
        };
        driver.read_interfaces(now);
        driver
    }

    /// Runs until the last handle is gone.
    pub(super) async fn run(mut self) {
        let mut relayed = Vec::new();
        let mut datagrams: Vec<Datagram> = Vec::new();
        let mut commands = Vec::new();
        let mut sleep = Box::pin(tokio::time::sleep(Duration::ZERO));
        let mut sleeps_until = Instant::now();
        let first = self.is_first();
        loop {
            self.set_sleep(&mut sleep, &mut sleeps_until);
            let wake = tokio::select! {
                _ = self.udp.readable() => Wake::Packets,
                () = self.local.readable(self.tun_failed) => Wake::Packets,
                _ = self.relayed.recv_many(&mut relayed, BATCH), if first => Wake::Relayed,
                _ = self.outbox.recv_many(&mut datagrams, BATCH) => Wake::Datagrams,
                count = self.inbox.recv_many(&mut commands, BATCH) => Wake::Commands(count),
                Some(injection) = self.injections.recv() => Wake::Injected(injection),
                () = &mut sleep => Wake::Timer,
                () = rung(&self.seat), if self.seat.is_some() => Wake::Rung,
                () = look_again(self.busy_poll.until()), if self.busy_poll.until().is_some() => Wake::Silence,
            };
            let now = Instant::now();
            match wake {
                Wake::Commands(0) => break,
                Wake::Injected(injection) => self.inject(injection),
                Wake::Timer => self.handle_timers(now),
                Wake::Rung => self.heed_others(&mut relayed, now),
                Wake::Relayed => self.hand_over(&mut relayed),
                Wake::Silence => {
                    self.busy_poll.gave_up();
                    continue;
                }
                Wake::Packets | Wake::Datagrams | Wake::Commands(_) => {}
            }
            for command in commands.drain(..) {
                self.handle_command(command, now);
            }
            for datagram in datagrams.drain(..) {
                self.send_inner_datagram(&datagram);
            }
            let mut worked = !relayed.is_empty();
            self.take_relayed(&relayed, now);
            relayed.clear();
            worked |= self.take_udp(now);
            // Answers and acknowledgements that the kernel makes of what came in go out at once.
            worked |= self.take_tun(now) | self.take_user(now);
            self.flush(now).await;
            self.handle_events(now);
            self.flush(now).await;
            self.publish();
            self.busy_poll.worked(std::mem::take(&mut self.moved), now);
            if worked {
                self.released = false;
                tokio::task::yield_now().await;
            }
        }
        if first {
            self.common.delivery.close();
        }
    }

    /// Whether this is the loop that speaks for the endpoint; the only one, usually.
    pub(super) fn is_first(&self) -> bool {
        self.seat.as_ref().is_none_or(Seat::is_first)
    }

    fn set_sleep(&mut self, sleep: &mut Pin<Box<Sleep>>, until: &mut Instant) {
        let idle = (!self.released).then(|| (self.busy_at + IDLE, "give buffers back"));
        let fragments = self.reassembler.poll_timeout().map(|at| (at, "fragments"));
        let interfaces =
            (self.direct && self.is_first()).then_some((self.interfaces_at, "read interfaces"));
        let next = [
            self.paths.poll_timeout(),
            self.peers.poll_timeout(),
            idle,
            fragments,
            interfaces,
            self.local.poll_timeout(Instant::now()),
        ];
        let next = next.into_iter().flatten().min_by_key(|(at, _)| *at);
        let (at, reason) = next.unwrap_or((Instant::now() + Duration::from_secs(3600), "nothing"));
        let moved = if at > *until {
            at - *until
        } else {
            *until - at
        };
        if moved > SLACK || sleep.is_elapsed() {
            tracing::trace!(reason, "next timer");
            *until = at;
            sleep.as_mut().reset(at.into());
        }
    }

    fn handle_timers(&mut self, now: Instant) {
        self.paths.handle_timeout(now);
        self.peers.handle_timeout(now);
        self.reassembler.expire(now);
        if self.direct && self.is_first() && now >= self.interfaces_at {
            self.read_interfaces(now);
        }
        if !self.released && now >= self.busy_at + IDLE {
            self.released = true;
            self.receive.release();
            self.opened.release();
            self.scratch = Vec::new();
            self.to_tun = Vec::new();
            self.local.release();
            self.peers.iter_mut().for_each(super::peers::Slot::release);
        }
    }

    fn inject(&mut self, injection: Injection) {
        let mut next = Some(injection);
        while let Some(injection) = next {
            match injection {
                Injection::ToTun(packet) => self.to_tun.push(packet),
                Injection::ToPeer(packet) => {
                    let peer = datagram::destination(&packet)
                        .and_then(|address| self.peers.index_of_address(address));
                    if let Some(index) = peer {
                        self.send_to(index, &packet);
                    }
                }
            }
            next = self.injections.try_recv().ok();
        }
    }

    /// Puts one packet into the burst to a peer.
    pub(super) fn send_to(&mut self, index: u32, packet: &[u8]) {
        if let Some(slot) = self.peers.get_mut(index) {
            slot.add(packet, false);
            self.peers.touch(index);
        }
    }

    fn handle_events(&mut self, now: Instant) {
        while let Some(event) = self.paths.poll_event() {
            match event {
                path::Event::LocalEndpoints(endpoints) => self.set_endpoints(endpoints),
                path::Event::Path { peer, state } => {
                    tracing::debug!(%peer, ?state, "path");
                    let same_way = self.set_state(peer, state);
                    self.tell(Event::Path { peer, state });
                    if !same_way {
                        self.measure(peer, state, now);
                        self.path_returned(peer, now);
                    }
                }
                path::Event::Mtu { peer, mtu } => self.set_mtu(peer, mtu, now),
                path::Event::Pong { tx, rtt, via } => {
                    if let Some(done) = self.disco.remove(&tx) {
                        let _ = done.send(Ok(Pong { rtt, via }));
                    }
                }
            }
        }
        if let Some(warning) = self.udp.take_warning() {
            self.warn(warning);
        }
    }

    /// Finds out how long the way to a peer is that takes early data, once a way.
    fn measure(&mut self, peer: PeerId, state: PathState, now: Instant) {
        let Some(slot) = (self.peers.index_of_id(peer)).and_then(|index| self.peers.get_mut(index))
        else {
            return;
        };
        let rtt = match state {
            PathState::Direct(_) => self.paths.rtt(peer),
            PathState::Relayed(..) | PathState::None => None,
        };
        self.common.early.moved(&slot.node.addresses, rtt);
        for address in &slot.node.addresses {
            let near = rtt.is_some_and(|rtt| rtt < super::early::LONG);
            self.local.set_peer_near(*address, near);
        }
        let address = slot.node.addresses.first().copied();
        if let (PathState::Relayed(..), Some(remote)) = (state, address)
            && self.keepalive
            && self.common.early.takes(remote)
        {
            let (data, pong) = (rand::random(), mpsc::channel(1).0);
            self.handle_command(Command::TsmpPing { remote, data, pong }, now);
        }
    }

    /// What waited for a path goes out now; a greeting that may have been lost is repeated.
    fn path_returned(&mut self, peer: PeerId, now: Instant) {
        let Some(index) = self.peers.index_of_id(peer) else {
            return;
        };
        if let Some(slot) = self.peers.get_mut(index) {
            if !slot.wireguard.is_ready() && (self.keepalive || !slot.held.is_empty()) {
                slot.wireguard.greet(true, now, &mut slot.control);
            }
            self.peers.touch(index);
        }
    }

    fn set_mtu(&mut self, peer: PeerId, mtu: u16, now: Instant) {
        let Some(index) = self.peers.index_of_id(peer) else {
            return;
        };
        let rtt = self.paths.rtt(peer);
        if let Some(slot) = self.peers.get_mut(index) {
            // Sizes are proven one after the other: each is one more measurement.
            for address in &slot.node.addresses {
                if let Some(rtt) = rtt {
                    self.common.early.answered(*address, rtt);
                }
            }
            slot.mtu = mtu;
            for address in &slot.node.addresses {
                self.local.set_peer_mtu(now, *address, mtu);
            }
        }
    }

    /// Notes how a peer is reached; whether that is the way by which it was reached before.
    pub(super) fn set_state(&mut self, peer: PeerId, state: PathState) -> bool {
        let mut states = self
            .common
            .states
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match states.get(&peer) {
            Some(watch) if state == PathState::None && watch.receiver_count() == 0 => {
                states.remove(&peer);
                false
            }
            Some(watch) => watch.send_replace(state).is_same_way(state),
            None if state == PathState::None => false,
            None => {
                states.insert(peer, watch::channel(state).0);
                false
            }
        }
    }

    pub(super) fn set_map(&mut self, map: DerpMap) {
        let Some(relays) = self.relays.own() else {
            return;
        };
        relays.set_map(map);
        let servers = relays.stun_servers();
        self.update_relays();
        self.node_changed = true;
        if self.direct {
            let commands = self.commands.clone();
            tokio::spawn(async move {
                let found = super::relays::look_up(servers).await;
                if let Some(commands) = commands.upgrade() {
                    let _ = commands.send(Command::StunServers(found)).await;
                }
            });
        }
    }

    pub(super) fn relay_changed(&mut self, region: u16, connected: bool, now: Instant) {
        if self.relays.own().and_then(|relays| relays.home()) == Some(region) {
            self.node_changed = true;
            self.tell(Event::Relay { region, connected });
        }
        self.post_connected();
        if connected {
            self.relay_returned(region, now);
        }
    }

    /// What waited for a relay goes out now.
    pub(super) fn relay_returned(&mut self, region: u16, now: Instant) {
        let peers: Vec<PeerId> = self
            .peers
            .iter_mut()
            .filter(|slot| slot.node.home == Some(region))
            .map(|slot| slot.id)
            .collect();
        for peer in peers {
            self.path_returned(peer, now);
        }
    }

    pub(super) fn read_interfaces(&mut self, now: Instant) {
        self.interfaces_at = now + INTERFACES;
        if !self.direct {
            return;
        }
        match path::interfaces() {
            Ok(addresses) => {
                if let Some(seat) = self.seat.as_ref().filter(|seat| seat.is_first()) {
                    seat.post_interfaces(&addresses);
                }
                self.set_interfaces(addresses);
            }
            Err(error) => tracing::debug!(%error, "reading the machine's addresses"),
        }
    }

    pub(super) fn set_interfaces(&mut self, addresses: Vec<IpAddr>) {
        let (dual, port) = (self.udp.is_dual_stack(), self.udp.port());
        let usable = addresses.into_iter().filter(|ip| dual || ip.is_ipv4());
        let endpoints: Vec<_> = usable.map(|ip| SocketAddr::new(ip, port)).collect();
        self.paths.set_local_endpoints(&endpoints);
    }

    /// Tells the rest about this node, when it has changed and a relay of its own hears for it.
    fn publish(&mut self) {
        if !std::mem::take(&mut self.node_changed) {
            return;
        }
        let Some(relays) = self.relays.own() else {
            return;
        };
        let Some(home) = relays.connected_home() else {
            return;
        };
        self.template.home = home;
        self.template.latency = relays.latency();
        let node = &self.template;
        self.common.node.send_if_modified(|current| {
            let changed = current.as_ref() != Some(node);
            if changed {
                *current = Some(node.clone());
            }
            changed
        });
    }

    pub(super) fn tell(&self, event: Event) {
        let _ = self.common.events.try_send(event);
    }

    /// Tells a warning unless it was told before.
    pub(super) fn warn(&mut self, text: String) {
        let mut said = (self.common.said.lock()).unwrap_or_else(PoisonError::into_inner);
        let new = said.insert(text.clone());
        drop(said);
        if new {
            tracing::debug!("{text}");
            self.tell(Event::Warning(text));
        }
    }
}

/// Waits until another loop has something for this one.
async fn rung(seat: &Option<Seat>) {
    match seat {
        Some(seat) => seat.rung().await,
        None => std::future::pending().await,
    }
}

/// On the only processor nothing can come while it is waited for.
fn awake(window: Duration) -> Duration {
    match std::thread::available_parallelism() {
        Ok(processors) if processors.get() > 1 => window,
        _ => Duration::ZERO,
    }
}

/// Keeps the runtime looking for events until then, without sleeping. Other processes that want
/// the processor get it.
async fn look_again(until: Option<Instant>) {
    while until.is_some_and(|until| Instant::now() < until) {
        std::thread::yield_now();
        tokio::task::yield_now().await;
    }
}
