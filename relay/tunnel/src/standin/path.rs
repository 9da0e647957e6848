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
    /// The address in use and when it answered last.
    best: Option<(SocketAddr, Instant)>,
    pings: HashMap<TxId, (Instant, Option<SocketAddr>, bool)>,
    active: Option<Instant>,
    next: Instant,
    state: Option<PathState>,
}

/// The paths to all peers.
pub struct Paths {
    config: PathConfig,
    public: DiscoPublic,
    peers: HashMap<PeerId, Peer>,
    local: Vec<SocketAddr>,
    mapped: Vec<SocketAddr>,
    out: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

impl Paths {
    /// Paths of an endpoint without peers.
    pub fn new(config: PathConfig, _seed: [u8; 32]) -> Paths {
        let public = config.disco.public();
        let (out, events) = (VecDeque::new(), VecDeque::new());
        let (peers, local, mapped) = (HashMap::new(), Vec::new(), Vec::new());
        Paths {
            config,
            public,
            peers,
            local,
            mapped,
            out,
            events,
        }
    }

    /// The addresses of this machine.
    pub fn set_local_endpoints(&mut self, endpoints: &[SocketAddr]) {
        if self.local != endpoints {
            self.local = endpoints.to_vec();
            self.offer();
        }
    }

    fn offer(&mut self) {
        let mut all = self.local.clone();
        all.extend(self.mapped.iter().filter(|addr| !self.local.contains(addr)));
        self.events.push_back(Event::LocalEndpoints(all));
    }

    /// Asks these servers how they see this machine.
    pub fn set_stun_servers(&mut self, servers: &[SocketAddr], _now: Instant) {
        for server in servers {
            let payload = stun::request(rand::random());
            self.out.push_back(Transmit {
                to: Destination::Udp(*server),
                payload,
            });
        }
    }

    /// Installs or changes a peer.
    pub fn upsert_peer(&mut self, id: PeerId, info: PeerInfo, now: Instant) {
        let shared = info.disco.map(|disco| self.config.disco.shared(&disco));
        let old = self
            .peers
            .remove(&id)
            .filter(|old| old.info.disco == info.disco);
        let best = old.as_ref().and_then(|old| old.best);
        let state = old.and_then(|old| old.state);
        let (pings, active) = (HashMap::new(), Some(now));
        self.peers.insert(
            id,
            Peer {
                info,
                shared,
                best,
                pings,
                active,
                next: now,
                state,
            },
        );
        self.search(id, now);
        self.tell(id, now);
    }

    /// Forgets a peer.
    pub fn remove_peer(&mut self, id: PeerId) {
        self.peers.remove(&id);
    }

    fn search(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let Some(shared) = peer.shared.as_ref().filter(|_| self.config.direct) else {
            return;
        };
        peer.pings
            .retain(|_, (at, _, _)| now.saturating_duration_since(*at) < TRUST);
        let best = peer.best.map(|(addr, _)| addr);
        let all = peer.info.endpoints.iter().copied();
        let targets: Vec<SocketAddr> = best.map_or_else(|| all.collect(), |addr| vec![addr]);
        for addr in targets {
            let tx = TxId(rand::random());
            let ping = Message::Ping {
                tx,
                node_key: Some(self.config.node),
            };
            let size = PayloadSize::Padded(disco::PADDED_LEN);
            let payload = disco::seal(&ping, size, &self.public, shared, rand::random());
            peer.pings.insert(tx, (now, Some(addr), false));
            self.out.push_back(Transmit {
                to: Destination::Udp(addr),
                payload,
            });
        }
        if let Some(home) = peer.info.home.filter(|_| best.is_none()) {
            let endpoints = self.local.iter().chain(&self.mapped).copied().collect();
            let call = Message::CallMeMaybe { endpoints };
            let payload = disco::seal(&call, PayloadSize::V0, &self.public, shared, rand::random());
            self.out.push_back(Transmit {
                to: Destination::Relay(home, peer.info.node),
                payload,
            });
        }
        peer.next = now + if best.is_some() { HEARTBEAT } else { SEARCH };
    }

    /// Takes a datagram that is disco or STUN; false when it is neither.
    pub fn handle_udp(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> bool {
        if let Ok((_, mapped)) = stun::parse_response(datagram) {
            if !self.mapped.contains(&mapped) {
                self.mapped = vec![mapped];
                self.offer();
            }
            return true;
        }
        if !disco::is_disco(datagram) {
            return false;
        }
        if self.config.direct {
            self.take(Via::Direct(from), datagram, now);
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
        let (id, peer) = self.peers.iter_mut().find(known)?;
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
                let pong = Message::Pong { tx, source };
                let payload = disco::seal(&pong, size, &self.public, shared, rand::random());
                self.out.push_back(Transmit { to, payload });
                if let Via::Direct(from) = via
                    && !peer.info.endpoints.contains(&from)
                    && peer.info.endpoints.len() < 32
                {
                    peer.info.endpoints.push(from);
                    peer.next = now;
                }
            }
            Message::Pong { tx, .. } => {
                let (sent, _, asked) = peer.pings.remove(&tx)?;
                if asked {
                    let rtt = now.saturating_duration_since(sent);
                    self.events.push_back(Event::Pong { tx, rtt, via });
                }
                if let Via::Direct(from) = via {
                    let current = peer.best.map(|(addr, _)| addr);
                    if current.is_none() || current == Some(from) {
                        peer.best = Some((from, now));
                        peer.next = peer.next.max(now + HEARTBEAT);
                    }
                }
                self.tell(id, now);
            }
            Message::CallMeMaybe { endpoints } => {
                for addr in endpoints {
                    if !peer.info.endpoints.contains(&addr) && peer.info.endpoints.len() < 32 {
                        peer.info.endpoints.push(addr);
                    }
                }
                if peer.best.is_none() && self.config.direct {
                    let all: Vec<_> = peer.info.endpoints.clone();
                    for addr in all {
                        let tx = TxId(rand::random());
                        let ping = Message::Ping {
                            tx,
                            node_key: Some(self.config.node),
                        };
                        let size = PayloadSize::Padded(disco::PADDED_LEN);
                        let payload =
                            disco::seal(&ping, size, &self.public, shared, rand::random());
                        peer.pings.insert(tx, (now, Some(addr), false));
                        self.out.push_back(Transmit {
                            to: Destination::Udp(addr),
                            payload,
                        });
                    }
                }
            }
        }
        Some(())
    }

    /// How the next burst for a peer is sent.
    pub fn route(&mut self, id: PeerId, now: Instant) -> Route {
        let Some(peer) = self.peers.get_mut(&id) else {
            return Route::default();
        };
        if peer
            .active
            .is_none_or(|at| now.saturating_duration_since(at) > ACTIVE)
        {
            peer.next = now;
        }
        peer.active = Some(now);
        let relay = peer.info.home.map(|home| (home, peer.info.node));
        match peer.best {
            Some((addr, at)) if now.saturating_duration_since(at) < TRUST => Route {
                direct: Some(addr),
                relay: None,
            },
            Some((addr, _)) => Route {
                direct: Some(addr),
                relay,
            },
            None => Route {
                direct: None,
                relay,
            },
        }
    }

    /// A send to a direct address failed.
    pub fn path_failed(&mut self, id: PeerId, addr: SocketAddr, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&id)
            && peer.best.is_some_and(|(best, _)| best == addr)
        {
            peer.best = None;
            self.tell(id, now);
        }
    }

    /// Sends a ping the way packets go at the moment.
    pub fn start_ping(&mut self, id: PeerId, now: Instant) -> TxId {
        let tx = TxId(rand::random());
        let route = self.route(id, now);
        if let Some(peer) = self.peers.get_mut(&id)
            && let Some(shared) = &peer.shared
        {
            let to = match (route.direct, route.relay) {
                (Some(addr), _) => Destination::Udp(addr),
                (None, Some((region, node))) => Destination::Relay(region, node),
                (None, None) => return tx,
            };
            let ping = Message::Ping {
                tx,
                node_key: Some(self.config.node),
            };
            let payload = disco::seal(&ping, PayloadSize::V0, &self.public, shared, rand::random());
            peer.pings.insert(tx, (now, route.direct, true));
            self.out.push_back(Transmit { to, payload });
        }
        tx
    }

    fn tell(&mut self, id: PeerId, _now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let state = match (peer.best, peer.info.home) {
            (Some((addr, _)), _) => PathState::Direct(addr),
            (None, Some(home)) if !self.config.direct => {
                PathState::Relayed(home, Reason::DirectOff)
            }
            (None, Some(home)) => PathState::Relayed(home, Reason::NoAnswer),
            (None, None) => PathState::None,
        };
        if peer.state != Some(state) {
            peer.state = Some(state);
            self.events.push_back(Event::Path { peer: id, state });
        }
    }

    /// A packet to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.pop_front()
    }

    /// Something to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Paths::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if !self.config.direct {
            return None;
        }
        let active = self.peers.values().filter(|peer| {
            peer.active.is_some_and(|at| at.elapsed() < ACTIVE) && peer.shared.is_some()
        });
        active
            .map(|peer| (peer.next, "path"))
            .min_by_key(|(at, _)| *at)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.next <= now && peer.shared.is_some())
            .filter(|(_, peer)| {
                peer.active
                    .is_some_and(|at| now.saturating_duration_since(at) < ACTIVE)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            if let Some(peer) = self.peers.get_mut(&id)
                && peer
                    .best
                    .is_some_and(|(_, at)| now.saturating_duration_since(at) > TRUST)
            {
                peer.best = None;
                self.tell(id, now);
            }
            self.search(id, now);
        }
    }
}
