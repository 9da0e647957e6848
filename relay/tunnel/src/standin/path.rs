//! Which way packets reach each peer, the plain way: every endpoint is pinged, the first that
//! answers is used for as long as it goes on answering; the relay otherwise.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use relay_wire::disco::{self, Message, PayloadSize, TxId};
use relay_wire::keys::{DiscoPrivate, DiscoPublic, NodePublic, SharedBox};
use relay_wire::stun;
use uuid::Uuid;

/// Names a peer for as long as it lives; what coordination calls it.
pub type PeerId = Uuid;
/// Bit of [`PeerInfo::features`]: the peer answers disco pings of any size.
pub const FEATURE_MTU_PROOF: u64 = 1;
/// Inner MTU that every path carries.
pub const BASE_MTU: u16 = 1280;

const TRUST: Duration = Duration::from_millis(6500);
const ACTIVE: Duration = Duration::from_secs(45);
const HEARTBEAT: Duration = Duration::from_secs(2);
const SEARCH: Duration = Duration::from_secs(1);
/// A direct path that is sent to and silent for so long is asked whether it lives.
const DOUBT: Duration = Duration::from_millis(400);
/// And after so long packets go through the relay as well.
const SUSPECT: Duration = Duration::from_millis(800);
/// Pause between the questions.
const ASK: Duration = Duration::from_millis(200);
const STUN_ROUND: Duration = Duration::from_secs(25);
/// MTUs that are tried on a direct path, the last on loopback only: four such packets fill a burst.
const LADDER: [u16; 4] = [1380, 1420, 8920, 16_344];
/// Rounds of tries on a path that was just found.
const TRIES: u8 = 3;
/// What disco and WireGuard add to an inner packet, to make pings of the same size.
const DISCO_OVERHEAD: u16 = 78;
const WIREGUARD_OVERHEAD: u16 = 32;
/// Endpoints kept of one peer.
const MAX_ENDPOINTS: usize = 32;

/// What one endpoint's paths have in common.
pub struct PathConfig {
    /// Our disco key.
    pub disco: DiscoPrivate,
    /// Our node key, named in pings.
    pub node: NodePublic,
    /// Whether direct paths are allowed.
    pub direct: bool,
    /// Largest inner MTU worth proving on a direct path.
    pub max_mtu: u16,
    /// Inner MTU through a relay towards peers that announce [`FEATURE_MTU_PROOF`].
    pub relay_mtu: u16,
}

/// What coordination says about a peer.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Its node key.
    pub node: NodePublic,
    /// Its disco key.
    pub disco: Option<DiscoPublic>,
    /// The relay region it listens on.
    pub home: Option<u16>,
    /// Where it may be reached over UDP.
    pub endpoints: Vec<SocketAddr>,
    /// Extensions it announces.
    pub features: u64,
}

/// How the next burst for a peer is sent; when both are set, it is sent both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Route {
    /// Over UDP to this address.
    pub direct: Option<SocketAddr>,
    /// Through this relay region, to this node.
    pub relay: Option<(u16, NodePublic)>,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Over UDP.
    Udp(SocketAddr),
    /// Through a relay region.
    Relay(u16, NodePublic),
}

/// A packet this machine wants sent.
#[derive(Clone, Debug)]
pub struct Transmit {
    /// Where to.
    pub to: Destination,
    /// The bytes.
    pub payload: Vec<u8>,
}

/// What a `relay ping` went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Straight to this address.
    Direct(SocketAddr),
    /// Through this relay region.
    Relay(u16),
}

/// Why a peer is not reached directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Direct paths are switched off.
    DirectOff,
    /// The peer told no address, or has no disco key.
    NoEndpoints,
    /// The addresses are still being tried.
    NoAnswer,
    /// UDP does not leave this network.
    UdpBlocked,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::DirectOff => "direct connections are off",
            Reason::NoEndpoints => "the peer offers no address",
            Reason::NoAnswer => "no answer from the peer's addresses yet",
            Reason::UdpBlocked => "UDP seems to be blocked",
        })
    }
}

/// How a peer is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathState {
    /// Straight to this address.
    Direct(SocketAddr),
    /// Through this relay region, and why.
    Relayed(u16, Reason),
    /// Not at all.
    None,
}

/// What the endpoint has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The addresses to offer to peers have changed.
    LocalEndpoints(Vec<SocketAddr>),
    /// A peer is reached another way.
    Path {
        /// The peer.
        peer: PeerId,
        /// The way.
        state: PathState,
    },
    /// The largest inner packet towards a peer has changed.
    Mtu {
        /// The peer.
        peer: PeerId,
        /// The inner MTU.
        mtu: u16,
    },
    /// A ping of [`Paths::start_ping`] was answered.
    Pong {
        /// Which ping.
        tx: TxId,
        /// How long it took.
        rtt: Duration,
        /// Which way it went.
        via: Via,
    },
}

/// The addresses of all interfaces that are up, loopback last.
pub fn interfaces() -> std::io::Result<Vec<std::net::IpAddr>> {
    let mut found: Vec<std::net::IpAddr> = nix::ifaddrs::getifaddrs()
        .map_err(std::io::Error::from)?
        .filter(|interface| {
            interface
                .flags
                .contains(nix::net::if_::InterfaceFlags::IFF_UP)
        })
        .filter_map(|interface| interface.address)
        .filter_map(
            |address| match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => Some(v4.ip().into()),
                (_, Some(v6)) if !v6.ip().is_unicast_link_local() => Some(v6.ip().into()),
                _ => None,
            },
        )
        .collect();
    found.sort_by_key(std::net::IpAddr::is_loopback);
    found.dedup();
    Ok(found)
}

struct Peer {
    info: PeerInfo,
    shared: Option<SharedBox>,
    /// The address in use and when something came from it last.
    best: Option<(SocketAddr, Instant)>,
    pings: HashMap<TxId, Ping>,
    active: Option<Instant>,
    next: Instant,
    asked: Option<Instant>,
    /// When something was sent straight that nothing has come back for since.
    waiting: Option<Instant>,
    state: Option<PathState>,
    /// The MTU proven on the address in use.
    mtu: u16,
    tries: u8,
}

#[derive(Clone, Copy)]
struct Ping {
    sent: Instant,
    /// Somebody waits for the answer.
    asked: bool,
    mtu: u16,
}

impl Peer {
    fn is_active(&self, now: Instant) -> bool {
        let recent = |at| now.saturating_duration_since(at) < ACTIVE;
        self.shared.is_some() && self.active.is_some_and(recent)
    }

    fn learn(&mut self, addr: SocketAddr) {
        let endpoints = &mut self.info.endpoints;
        if !endpoints.contains(&addr) && endpoints.len() < MAX_ENDPOINTS {
            endpoints.push(addr);
        }
    }
}

/// What every message is made with.
struct Sealer {
    config: PathConfig,
    public: DiscoPublic,
    out: VecDeque<Transmit>,
}

impl Sealer {
    fn send(&mut self, message: &Message, size: PayloadSize, shared: &SharedBox, to: Destination) {
        let payload = disco::seal(message, size, &self.public, shared, rand::random());
        self.out.push_back(Transmit { to, payload });
    }

    /// A ping as large as a WireGuard packet that carries `mtu`.
    fn ping(
        &mut self,
        peer: &mut Peer,
        to: Destination,
        mtu: u16,
        asked: bool,
        now: Instant,
    ) -> TxId {
        let tx = TxId(rand::random());
        if let Some(shared) = &peer.shared {
            let node_key = Some(self.config.node);
            let plain = usize::from(mtu + WIREGUARD_OVERHEAD - DISCO_OVERHEAD);
            let size = PayloadSize::Padded(plain.max(disco::PADDED_LEN));
            self.send(&Message::Ping { tx, node_key }, size, shared, to);
            peer.pings.insert(
                tx,
                Ping {
                    sent: now,
                    asked,
                    mtu,
                },
            );
        }
        tx
    }
}

/// The paths to all peers.
pub struct Paths {
    sealer: Sealer,
    peers: HashMap<PeerId, Peer>,
    local: Vec<SocketAddr>,
    mapped: Vec<SocketAddr>,
    servers: Vec<SocketAddr>,
    next_stun: Option<Instant>,
    events: VecDeque<Event>,
}

impl Paths {
    /// Paths of an endpoint without peers.
    pub fn new(config: PathConfig, _seed: [u8; 32]) -> Paths {
        let public = config.disco.public();
        Paths {
            sealer: Sealer {
                config,
                public,
                out: VecDeque::new(),
            },
            peers: HashMap::new(),
            local: Vec::new(),
            mapped: Vec::new(),
            servers: Vec::new(),
            next_stun: None,
            events: VecDeque::new(),
        }
    }

    /// The addresses of this machine.
    pub fn set_local_endpoints(&mut self, endpoints: &[SocketAddr]) {
        if self.local != endpoints {
            self.local = endpoints.to_vec();
            self.events.push_back(Event::LocalEndpoints(self.offered()));
        }
    }

    fn offered(&self) -> Vec<SocketAddr> {
        let mut all = self.local.clone();
        all.extend(self.mapped.iter().filter(|addr| !self.local.contains(addr)));
        all
    }

    /// Asks these servers, again and again, how they see this machine.
    pub fn set_stun_servers(&mut self, servers: &[SocketAddr], now: Instant) {
        self.servers = servers.to_vec();
        self.ask_servers(now);
    }

    fn ask_servers(&mut self, now: Instant) {
        self.next_stun = (!self.servers.is_empty()).then(|| now + STUN_ROUND);
        for server in &self.servers {
            let payload = stun::request(rand::random());
            self.sealer.out.push_back(Transmit {
                to: Destination::Udp(*server),
                payload,
            });
        }
    }

    /// Installs or changes a peer.
    pub fn upsert_peer(&mut self, id: PeerId, info: PeerInfo, now: Instant) {
        let shared = info
            .disco
            .map(|disco| self.sealer.config.disco.shared(&disco));
        let old = self
            .peers
            .remove(&id)
            .filter(|old| old.info.disco == info.disco);
        let mut peer = old.unwrap_or_else(|| Peer {
            info: info.clone(),
            shared: None,
            best: None,
            pings: HashMap::new(),
            active: None,
            next: now,
            asked: None,
            waiting: None,
            state: None,
            mtu: BASE_MTU,
            tries: 0,
        });
        peer.info = info;
        peer.shared = shared;
        peer.active = Some(now);
        self.peers.insert(id, peer);
        self.search(id, now);
        self.tell(id);
    }

    /// Forgets a peer.
    pub fn remove_peer(&mut self, id: PeerId) {
        self.peers.remove(&id);
    }

    /// Something of this peer came straight from `from`: that way lives.
    pub fn heard(&mut self, id: PeerId, from: SocketAddr, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&id)
            && let Some((best, at)) = &mut peer.best
            && *best == from
        {
            *at = now;
            peer.waiting = None;
        }
    }

    fn search(&mut self, id: PeerId, now: Instant) {
        if !self.sealer.config.direct {
            return;
        }
        let offered = self.offered();
        let Paths { sealer, peers, .. } = self;
        let Some(peer) = peers.get_mut(&id) else {
            return;
        };
        peer.pings
            .retain(|_, ping| now.saturating_duration_since(ping.sent) < TRUST);
        let Some((addr, _)) = peer.best else {
            for addr in peer.info.endpoints.clone() {
                sealer.ping(peer, Destination::Udp(addr), BASE_MTU, false, now);
            }
            if let (Some(home), Some(shared)) = (peer.info.home, &peer.shared) {
                let call = Message::CallMeMaybe { endpoints: offered };
                let to = Destination::Relay(home, peer.info.node);
                sealer.send(&call, PayloadSize::V0, shared, to);
            }
            peer.next = now + SEARCH;
            return;
        };
        // The heartbeat is as large as the packets it stands for, so it notices a path that
        // became narrower.
        let to = Destination::Udp(addr);
        sealer.ping(peer, to, peer.mtu, false, now);
        peer.next = now + HEARTBEAT;
        if peer.tries > 0 && peer.info.features & FEATURE_MTU_PROOF != 0 {
            peer.tries -= 1;
            peer.next = now + SEARCH;
            let most = sealer.config.max_mtu;
            let most = if addr.ip().is_loopback() {
                most
            } else {
                most.min(LADDER[2])
            };
            let (least, most) = (peer.mtu, most);
            for mtu in LADDER
                .into_iter()
                .filter(|mtu| *mtu > least && *mtu <= most)
            {
                sealer.ping(peer, to, mtu, false, now);
            }
        }
    }

    /// Takes a datagram that is disco or STUN; false when it is neither.
    pub fn handle_udp(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> bool {
        if disco::is_disco(datagram) {
            if self.sealer.config.direct {
                self.take(Via::Direct(from), datagram, now);
            }
            return true;
        }
        if !self.servers.contains(&from) || !stun::is_stun(datagram) {
            return false;
        }
        if let Ok((_, mapped)) = stun::parse_response(datagram)
            && !self.mapped.contains(&mapped)
        {
            self.mapped = vec![mapped];
            self.events.push_back(Event::LocalEndpoints(self.offered()));
        }
        true
    }

    /// Takes a relayed packet that is disco; false when it is not.
    pub fn handle_relayed(
        &mut self,
        region: u16,
        _from: NodePublic,
        packet: &[u8],
        now: Instant,
    ) -> bool {
        let is_disco = disco::is_disco(packet);
        if is_disco {
            self.take(Via::Relay(region), packet, now);
        }
        is_disco
    }

    fn take(&mut self, via: Via, packet: &[u8], now: Instant) -> Option<()> {
        let sender = disco::sender(packet)?;
        let known = |(_, peer): &(&PeerId, &mut Peer)| peer.info.disco == Some(sender);
        let Paths {
            sealer,
            peers,
            events,
            ..
        } = self;
        let (id, peer) = peers.iter_mut().find(known)?;
        let (id, shared) = (*id, peer.shared.as_ref()?);
        match disco::open(packet, shared).ok()? {
            Message::Ping { tx, .. } => {
                let (to, source) = match via {
                    Via::Direct(from) => (Destination::Udp(from), from),
                    Via::Relay(region) => (
                        Destination::Relay(region, peer.info.node),
                        disco::derp_source(region),
                    ),
                };
                let size = PayloadSize::Padded(disco::PADDED_LEN);
                sealer.send(&Message::Pong { tx, source }, size, shared, to);
                if let Via::Direct(from) = via {
                    if peer.best.is_none() && !peer.info.endpoints.contains(&from) {
                        peer.next = now;
                    }
                    peer.learn(from);
                }
            }
            Message::Pong { tx, .. } => {
                let Ping { sent, asked, mtu } = peer.pings.remove(&tx)?;
                if asked {
                    let rtt = now.saturating_duration_since(sent);
                    events.push_back(Event::Pong { tx, rtt, via });
                }
                if let Via::Direct(from) = via {
                    match &mut peer.best {
                        None => {
                            peer.best = Some((from, now));
                            peer.tries = TRIES;
                            peer.next = now;
                        }
                        Some((best, at)) if *best == from => {
                            let since = peer.waiting.take().unwrap_or(now);
                            let silent = now.saturating_duration_since(since) > SUSPECT;
                            *at = now;
                            if mtu > peer.mtu {
                                peer.mtu = mtu;
                                events.push_back(Event::Mtu { peer: id, mtu });
                            } else if mtu < peer.mtu && silent {
                                // Small packets pass and large ones did not.
                                peer.mtu = BASE_MTU;
                                peer.tries = TRIES;
                                events.push_back(Event::Mtu {
                                    peer: id,
                                    mtu: BASE_MTU,
                                });
                            }
                        }
                        Some(_) => {}
                    }
                }
                self.tell(id);
            }
            Message::CallMeMaybe { endpoints } => {
                endpoints.into_iter().for_each(|addr| peer.learn(addr));
                if peer.best.is_none() && self.sealer.config.direct {
                    for addr in peer.info.endpoints.clone() {
                        self.sealer
                            .ping(peer, Destination::Udp(addr), BASE_MTU, false, now);
                    }
                }
            }
        }
        Some(())
    }

    /// How the next burst for a peer is sent.
    pub fn route(&mut self, id: PeerId, now: Instant) -> Route {
        let Paths { sealer, peers, .. } = self;
        let Some(peer) = peers.get_mut(&id) else {
            return Route::default();
        };
        if !peer.is_active(now) {
            // After a rest nothing is known against the path; doubt comes soon enough.
            peer.next = now;
            peer.waiting = None;
            if let Some((_, at)) = &mut peer.best {
                *at = now;
            }
        }
        peer.active = Some(now);
        let relay = peer.info.home.map(|home| (home, peer.info.node));
        let Some((addr, _)) = peer.best else {
            return Route {
                direct: None,
                relay,
            };
        };
        let since = *peer.waiting.get_or_insert(now);
        let silent = now.saturating_duration_since(since);
        let asked = peer
            .asked
            .is_some_and(|at| now.saturating_duration_since(at) < ASK);
        if silent > DOUBT && !asked {
            peer.asked = Some(now);
            sealer.ping(peer, Destination::Udp(addr), BASE_MTU, false, now);
        }
        Route {
            direct: Some(addr),
            relay: relay.filter(|_| silent > SUSPECT),
        }
    }

    /// How a keepalive is sent, which does not make the peer one that paths are looked for.
    pub fn quiet_route(&self, id: PeerId, now: Instant) -> Route {
        let Some(peer) = self.peers.get(&id) else {
            return Route::default();
        };
        let relay = peer.info.home.map(|home| (home, peer.info.node));
        match peer.best {
            Some((addr, at)) => {
                let old = now.saturating_duration_since(at) > TRUST;
                Route {
                    direct: Some(addr),
                    relay: relay.filter(|_| old),
                }
            }
            None => Route {
                direct: None,
                relay,
            },
        }
    }

    /// Something of this peer came through a relay: it has doubts about the direct path.
    pub fn heard_relayed(&mut self, id: PeerId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&id)
            && peer
                .best
                .is_some_and(|(_, at)| now.saturating_duration_since(at) > ASK)
            && let Some(since) = now.checked_sub(SUSPECT + ASK)
        {
            peer.waiting = Some(peer.waiting.map_or(since, |at| at.min(since)));
        }
    }

    /// A send to a direct address failed.
    pub fn path_failed(&mut self, id: PeerId, addr: SocketAddr, now: Instant) {
        let best = self.peers.get(&id).and_then(|peer| peer.best);
        if best.is_some_and(|(best, _)| best == addr) {
            self.lose(id, now);
        }
    }

    /// The address in use is given up.
    fn lose(&mut self, id: PeerId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.best = None;
            peer.next = now + ASK;
            if peer.mtu != BASE_MTU {
                peer.mtu = BASE_MTU;
                self.events.push_back(Event::Mtu {
                    peer: id,
                    mtu: BASE_MTU,
                });
            }
        }
        self.tell(id);
    }

    /// Sends a ping the way packets go at the moment.
    pub fn start_ping(&mut self, id: PeerId, now: Instant) -> TxId {
        let route = self.route(id, now);
        let to = match (route.direct, route.relay) {
            (Some(addr), _) => Destination::Udp(addr),
            (None, Some((region, node))) => Destination::Relay(region, node),
            (None, None) => return TxId(rand::random()),
        };
        match self.peers.get_mut(&id) {
            Some(peer) => self.sealer.ping(peer, to, BASE_MTU, true, now),
            None => TxId(rand::random()),
        }
    }

    fn tell(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let reason = if !self.sealer.config.direct {
            Reason::DirectOff
        } else if peer.info.endpoints.is_empty() || peer.shared.is_none() {
            Reason::NoEndpoints
        } else {
            Reason::NoAnswer
        };
        let state = match (peer.best, peer.info.home) {
            (Some((addr, _)), _) => PathState::Direct(addr),
            (None, Some(home)) => PathState::Relayed(home, reason),
            (None, None) => PathState::None,
        };
        if peer.state != Some(state) {
            peer.state = Some(state);
            self.events.push_back(Event::Path { peer: id, state });
        }
    }

    /// A packet to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.sealer.out.pop_front()
    }

    /// Something to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Paths::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if !self.sealer.config.direct {
            return None;
        }
        let now = Instant::now();
        let active = self.peers.values().filter(|peer| peer.is_active(now));
        let stun = self.next_stun.map(|at| (at, "stun"));
        active
            .map(|peer| (peer.next, "path"))
            .chain(stun)
            .min_by_key(|(at, _)| *at)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next_stun.is_some_and(|at| at <= now) {
            self.ask_servers(now);
        }
        let due = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.next <= now && peer.is_active(now));
        let due: Vec<PeerId> = due.map(|(id, _)| *id).collect();
        for id in due {
            let best = self.peers.get(&id).and_then(|peer| peer.best);
            if best.is_some_and(|(_, at)| now.saturating_duration_since(at) > TRUST) {
                self.lose(id, now);
            }
            self.search(id, now);
        }
    }
}
