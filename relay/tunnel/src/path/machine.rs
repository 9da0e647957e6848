//! The paths of all peers behind one interface: finds the peer a message is from, and keeps the clock.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::Rng as _;
use relay_wire::disco::{self, Message, TxId};
use relay_wire::keys::{DiscoPublic, NodePublic};
use relay_wire::stun;

use super::candidate::plain;
use super::core::{Core, Purpose};
use super::peer::{Origin, Peer};
use super::survey::{Nat, Stun, Survey};
use super::{Event, PathConfig, PeerId, PeerInfo, Route, Transmit, Via};

/// The paths to all peers of one endpoint.
pub struct Paths {
    core: Core,
    peers: HashMap<PeerId, Peer>,
    by_disco: HashMap<DiscoPublic, PeerId>,
    /// Own addresses changed; noticed at the next timer, which knows the time.
    moved: bool,
}

impl Paths {
    /// Paths of an endpoint without peers; `seed` feeds nonces and transaction ids, so it must be random.
    pub fn new(config: PathConfig, seed: [u8; 32]) -> Paths {
        Paths {
            core: Core::new(config, seed),
            peers: HashMap::new(),
            by_disco: HashMap::new(),
            moved: false,
        }
    }

    /// The addresses of this machine's interfaces with the tunnel's UDP port.
    pub fn set_local_endpoints(&mut self, endpoints: &[SocketAddr]) {
        if self.core.config.direct && self.core.local.set_interfaces(endpoints) {
            self.tell_endpoints();
        }
    }

    fn tell_endpoints(&mut self) {
        self.moved = true;
        let endpoints = self.core.local.endpoints();
        self.core.events.push_back(Event::LocalEndpoints(endpoints));
    }

    /// Asks these servers, again and again, how they see this machine.
    pub fn set_stun_servers(&mut self, servers: &[SocketAddr], now: Instant) {
        if self.core.config.direct {
            self.core.local.set_servers(servers, now);
            self.core.wake_at(now);
        }
    }

    /// Installs or changes a peer. With other keys it is another peer, of which nothing is known yet.
    pub fn upsert_peer(&mut self, id: PeerId, info: PeerInfo, now: Instant) {
        let same = |peer: &Peer| peer.info.node == info.node && peer.info.disco == info.disco;
        if !self.peers.get(&id).is_some_and(same) {
            self.remove_peer(id);
            self.peers
                .insert(id, Peer::new(id, info.clone(), &self.core, now));
        }
        if let Some(disco) = info.disco {
            self.by_disco.insert(disco, id);
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.update(info, &mut self.core, now);
        }
    }

    /// Forgets a peer.
    pub fn remove_peer(&mut self, id: PeerId) {
        let Some(disco) = self.peers.remove(&id).and_then(|peer| peer.info.disco) else {
            return;
        };
        if self.by_disco.get(&disco) == Some(&id) {
            self.by_disco.remove(&disco);
            // The same node may be known under another id too.
            let other = self
                .peers
                .values()
                .find(|peer| peer.info.disco == Some(disco));
            if let Some(other) = other.map(|peer| peer.id) {
                self.by_disco.insert(disco, other);
            }
        }
    }

    /// Takes a datagram that is disco or STUN; false when it is neither.
    pub fn handle_udp(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> bool {
        if disco::is_disco(datagram) {
            if self.core.config.direct {
                self.take(Origin::Udp(plain(from)), datagram, now);
            }
            return true;
        }
        if !stun::is_stun(datagram) {
            return false;
        }
        let before = self.core.verdict();
        if self.core.local.handle(datagram, now) {
            self.tell_endpoints();
            self.core.wake_at(now);
        }
        self.tell_reasons(before, now);
        true
    }

    /// Takes a relayed packet that is disco; false when it is not.
    pub fn handle_relayed(
        &mut self,
        region: u16,
        from: NodePublic,
        packet: &[u8],
        now: Instant,
    ) -> bool {
        if !disco::is_disco(packet) {
            return false;
        }
        let sender = disco::sender(packet).and_then(|key| self.by_disco.get(&key));
        // A relay vouches for the node key; only the disco key's owner may use it.
        let peer = sender.and_then(|id| self.peers.get(id));
        if peer.is_some_and(|peer| peer.info.node == from) {
            self.take(Origin::Relay(region), packet, now);
        }
        true
    }

    /// What STUN servers say is a reason of every peer without a direct path.
    fn tell_reasons(&mut self, before: (Stun, Nat), now: Instant) {
        if self.core.verdict() != before {
            for peer in self.peers.values_mut() {
                peer.tell(&mut self.core, now);
            }
        }
    }

    fn take(&mut self, origin: Origin, packet: &[u8], now: Instant) -> Option<()> {
        let id = *self.by_disco.get(&disco::sender(packet)?)?;
        let peer = self.peers.get_mut(&id)?;
        let message = disco::open(packet, peer.shared.as_ref()?);
        let message = match message {
            Ok(message) => message,
            Err(error) => {
                tracing::trace!(%error, "disco message dropped");
                return None;
            }
        };
        match message {
            Message::Ping { tx, node_key } => {
                if node_key.is_none_or(|key| key == peer.info.node) {
                    let padded = packet.len() >= disco::OVERHEAD + disco::PADDED_LEN;
                    peer.take_ping(tx, origin, padded, &mut self.core, now);
                }
            }
            Message::Pong { tx, .. } => {
                let ping = self.core.answered(&tx, id)?;
                if ping.purpose == Purpose::Asked {
                    let rtt = now.saturating_duration_since(ping.sent);
                    let via = match origin {
                        Origin::Udp(from) => Via::Direct(from),
                        Origin::Relay(region) => Via::Relay(region),
                    };
                    self.core.events.push_back(Event::Pong { tx, rtt, via });
                }
                let straight = matches!(origin, Origin::Udp(_));
                if straight && self.core.config.direct {
                    peer.take_pong(ping, &mut self.core, now);
                }
            }
            Message::CallMeMaybe { endpoints } => {
                if matches!(origin, Origin::Relay(_)) {
                    peer.take_call(&endpoints, &mut self.core, now);
                }
            }
        }
        Some(())
    }

    /// The round trip on a peer's direct path, if it has one.
    pub fn rtt(&self, id: PeerId) -> Option<Duration> {
        let best = self.peers.get(&id)?.best_candidate()?;
        Some(best.rtt)
    }

    /// What this end knows about its own network.
    pub fn survey(&self) -> Survey {
        let local = &self.core.local;
        Survey {
            endpoints: local.endpoints(),
            stun: local.stun(),
            servers: local.servers().collect(),
            nat: local.nat(),
        }
    }

    /// How the next burst for a peer is sent; this makes the peer active.
    pub fn route(&mut self, id: PeerId, now: Instant) -> Route {
        match self.peers.get_mut(&id) {
            Some(peer) => peer.route(&mut self.core, now),
            None => Route::default(),
        }
    }

    /// How a message is sent that is not worth looking for a path, such as a keepalive.
    pub fn quiet_route(&self, id: PeerId, now: Instant) -> Route {
        self.peers
            .get(&id)
            .map(|peer| peer.quiet_route(now))
            .unwrap_or_default()
    }

    /// Something authentic of this peer came straight from `from`.
    pub fn heard(&mut self, id: PeerId, from: SocketAddr, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.heard(plain(from), now);
        }
    }

    /// Something authentic of this peer came through a relay.
    pub fn heard_relayed(&mut self, id: PeerId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.heard_relayed(&mut self.core, now);
        }
    }

    /// Sending to a direct address failed: it is left at once.
    pub fn path_failed(&mut self, id: PeerId, addr: SocketAddr, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.failed(plain(addr), &mut self.core, now);
        }
    }

    /// Sends a ping the way packets go at the moment; its answer is an [`Event::Pong`].
    pub fn start_ping(&mut self, id: PeerId, now: Instant) -> TxId {
        self.route(id, now);
        let sent = self.peers.get(&id).and_then(|peer| {
            let shared = peer.shared.as_ref()?;
            Some(
                self.core
                    .ping(id, peer.destination()?, Purpose::Asked, shared, now),
            )
        });
        // Without a way to the peer the ping stays unanswered.
        sent.unwrap_or_else(|| TxId(self.core.rng.random()))
    }

    /// A packet to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.core.out.pop_front()
    }

    /// Something to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.core.events.pop_front()
    }

    /// When [`Paths::handle_timeout`] has something to do, and what.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.core.wake.map(|at| (at, "paths"))
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.core.wake.is_none_or(|at| at > now) {
            return;
        }
        self.core.wake = None;
        let moved = std::mem::take(&mut self.moved);
        self.core.forget_old_pings(now);
        let mut active = false;
        for peer in self.peers.values_mut() {
            if moved {
                peer.moved(&mut self.core, now);
            }
            peer.tick(&mut self.core, now);
            active |= peer.is_active(now);
        }
        if self.core.config.direct {
            let before = self.core.verdict();
            let Core {
                local, rng, out, ..
            } = &mut self.core;
            if local.tick(active, now, rng, out) {
                self.tell_endpoints();
                self.core.wake_at(now);
            }
            self.tell_reasons(before, now);
        }
        // What was woken meanwhile stays; the rest is counted anew.
        let peers = self
            .peers
            .values()
            .filter_map(|peer| peer.deadline(&self.core, now));
        let next = peers.chain(self.core.local.deadline(active, now)).min();
        if let Some(next) = next {
            self.core.wake_at(next);
        }
    }
}

impl std::fmt::Debug for Paths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paths")
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}

/// Only for the tests of this module.
#[cfg(test)]
impl Paths {
    pub(super) fn local_endpoints(&self) -> Vec<SocketAddr> {
        self.core.local.endpoints()
    }
}
