//! One peer: its addresses, the one in use, and the doubts about it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use relay_wire::disco::{Message, PayloadSize, TxId};
use relay_wire::keys::SharedBox;

use super::candidate::{Candidate, is_usable, plain};
use super::core::{Core, InFlight, Purpose};
use super::reason;
use super::{BASE_MTU, Destination, Event, FEATURE_MTU_PROOF, PathState, PeerId, PeerInfo, Route};

/// How long an answered address is used alone.
pub(super) const TRUST: Duration = Duration::from_millis(6500);
/// How long after a send a peer counts as active.
const ACTIVE: Duration = Duration::from_secs(45);
/// Pings to the address in use.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(3);
/// Rounds of pings to all addresses while there is no direct path: quick at first.
const ROUNDS: [Duration; 3] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];
const ROUND: Duration = Duration::from_secs(5);
/// A path that works is compared with the other addresses this often.
pub(super) const COMPARE: Duration = Duration::from_secs(60);
/// No other address is looked for while answers come this fast.
const FAST: Duration = Duration::from_millis(5);
/// A path that is sent to and not heard from for so long is asked.
pub(super) const ASK_AFTER: Duration = Duration::from_millis(200);
/// Rounds after which an address that did not answer counts as tried.
const FULL_ROUNDS: usize = 3;
/// Most addresses remembered of one peer.
const MAX_CANDIDATES: usize = 64;
/// Pings remembered in order not to answer one twice.
const SEEN: usize = 32;

/// The address in use and what is known about it right now.
#[derive(Clone, Debug)]
pub(super) struct Best {
    pub(super) addr: SocketAddr,
    /// Used alone until then.
    pub(super) trusted_until: Instant,
    pub(super) next_heartbeat: Instant,
    /// Pings sent since the last pong.
    pub(super) unanswered: u32,
    /// The first send after which nothing was heard.
    pub(super) silent_since: Option<Instant>,
    /// Pings sent since then.
    pub(super) asked: u32,
    pub(super) next_ask: Instant,
    pub(super) last_heard: Instant,
    /// The relay is used as well.
    pub(super) doubted: bool,
    /// Unanswered pings of the proven size, and small ones answered meanwhile.
    pub(super) large_unanswered: u32,
    pub(super) small_answered: u32,
    pub(super) size_rounds: u32,
    pub(super) next_sizes: Instant,
}

pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) info: PeerInfo,
    pub(super) shared: Option<SharedBox>,
    pub(super) candidates: Vec<Candidate>,
    pub(super) best: Option<Best>,
    last_send: Option<Instant>,
    pub(super) rounds: usize,
    pub(super) next_round: Instant,
    last_call: Option<Instant>,
    seen: VecDeque<TxId>,
    told: Option<PathState>,
    pub(super) told_mtu: u16,
    /// All addresses had their rounds since the last direct path, and none answered.
    pub(super) tried: bool,
    /// The peer's NAT names one socket of it by several addresses.
    pub(super) varies: bool,
}

impl Peer {
    pub(super) fn new(id: PeerId, info: PeerInfo, core: &Core, now: Instant) -> Peer {
        let shared = info.disco.map(|disco| core.config.disco.shared(&disco));
        Peer {
            id,
            info,
            shared,
            candidates: Vec::new(),
            best: None,
            last_send: None,
            rounds: 0,
            next_round: now,
            last_call: None,
            seen: VecDeque::new(),
            told: None,
            told_mtu: BASE_MTU,
            tried: false,
            varies: false,
        }
    }

    /// Takes what coordination says now; keys do not change here.
    pub(super) fn update(&mut self, info: PeerInfo, core: &mut Core, now: Instant) {
        for candidate in &mut self.candidates {
            if std::mem::take(&mut candidate.listed) {
                candidate.noted = Some(now);
            }
        }
        let mut news = false;
        for addr in info.endpoints.iter().copied().map(plain) {
            news |= !self
                .candidates
                .iter()
                .any(|candidate| candidate.addr == addr);
            if let Some(candidate) = self.candidate(addr, now) {
                candidate.listed = true;
            }
        }
        self.varies = reason::varies(&info.endpoints);
        self.info = info;
        if news && !self.is_trusted(now) {
            self.look_soon(core, now);
        }
        self.tell(core, now);
    }

    pub(super) fn candidate(&mut self, addr: SocketAddr, now: Instant) -> Option<&mut Candidate> {
        if let Some(at) = self
            .candidates
            .iter()
            .position(|candidate| candidate.addr == addr)
        {
            return self.candidates.get_mut(at);
        }
        if !is_usable(addr) {
            return None;
        }
        if self.candidates.len() >= MAX_CANDIDATES {
            let best = self.best.as_ref().map(|best| best.addr);
            self.candidates
                .retain(|c| Some(c.addr) == best || !c.is_stale(now));
            if self.candidates.len() >= MAX_CANDIDATES {
                return None;
            }
        }
        self.candidates.push(Candidate::new(addr));
        self.candidates.last_mut()
    }

    pub(super) fn is_active(&self, now: Instant) -> bool {
        self.last_send
            .is_some_and(|at| now.saturating_duration_since(at) < ACTIVE)
    }

    pub(super) fn is_trusted(&self, now: Instant) -> bool {
        self.best
            .as_ref()
            .is_some_and(|best| !best.doubted && now < best.trusted_until)
    }

    fn relay(&self) -> Option<(u16, relay_wire::keys::NodePublic)> {
        self.info.home.map(|home| (home, self.info.node))
    }

    fn can_be_direct(&self, core: &Core) -> bool {
        core.config.direct && self.shared.is_some()
    }

    pub(super) fn proves_sizes(&self) -> bool {
        self.info.features & FEATURE_MTU_PROOF != 0
    }

    /// The way of the next burst, which makes the peer active.
    pub(super) fn route(&mut self, core: &mut Core, now: Instant) -> Route {
        let rested = !self.is_active(now);
        self.last_send = Some(now);
        let relay = self.relay();
        let Some(best) = &mut self.best else {
            if rested {
                self.look_soon(core, now);
            } else if self.can_be_direct(core) {
                core.wake_at(self.next_round);
            }
            return Route {
                direct: None,
                relay,
            };
        };
        if rested {
            best.next_heartbeat = now;
            best.unanswered = 0;
            core.wake_at(now);
        }
        if best.silent_since.is_none() {
            best.silent_since = Some(now);
            best.next_ask = now + ASK_AFTER;
            core.wake_at(best.next_ask);
        }
        let both = best.doubted || now >= best.trusted_until;
        Route {
            direct: Some(best.addr),
            relay: relay.filter(|_| both),
        }
    }

    /// The way of a message that is not worth looking for a path.
    pub(super) fn quiet_route(&self, now: Instant) -> Route {
        let relay = self.relay();
        match &self.best {
            None => Route {
                direct: None,
                relay,
            },
            Some(best) => {
                let both = best.doubted || now >= best.trusted_until;
                Route {
                    direct: Some(best.addr),
                    relay: relay.filter(|_| both),
                }
            }
        }
    }

    /// Something authentic came straight from `from`.
    pub(super) fn heard(&mut self, from: SocketAddr, now: Instant) {
        if let Some(best) = self.best.as_mut().filter(|best| best.addr == from) {
            best.last_heard = now;
            best.silent_since = None;
            best.asked = 0;
            // What is heard vouches for the way here only; a doubt ends by an answer.
        }
    }

    /// The peer uses the relay: it may have lost the direct path that we still trust.
    pub(super) fn heard_relayed(&mut self, core: &mut Core, now: Instant) {
        let Some(best) = &mut self.best else { return };
        if best.doubted || now.saturating_duration_since(best.last_heard) < ASK_AFTER {
            return;
        }
        best.doubted = true;
        best.silent_since.get_or_insert(now);
        best.next_ask = now;
        core.wake_at(now);
    }

    pub(super) fn look_soon(&mut self, core: &mut Core, now: Instant) {
        self.rounds = 0;
        self.next_round = now;
        core.wake_at(now);
    }

    /// Our own addresses have changed: the path in use may be gone, and the peer should know the new ones.
    pub(super) fn moved(&mut self, core: &mut Core, now: Instant) {
        if !self.is_active(now) {
            return;
        }
        if let Some(best) = &mut self.best {
            best.next_heartbeat = now;
        }
        self.look_soon(core, now);
    }

    pub(super) fn tick(&mut self, core: &mut Core, now: Instant) {
        if !self.is_active(now) || !self.can_be_direct(core) {
            return;
        }
        self.settle(core, now);
        self.question(core, now);
        self.heartbeat(core, now);
        self.prove_sizes(core, now);
        if now >= self.next_round {
            self.round(core, now);
        }
    }

    pub(super) fn deadline(&self, core: &Core, now: Instant) -> Option<Instant> {
        if !self.is_active(now) || !self.can_be_direct(core) {
            return None;
        }
        let mut at = self.next_round;
        if let Some(best) = &self.best {
            at = at.min(best.next_heartbeat);
            if best.silent_since.is_some() {
                at = at.min(best.next_ask);
            }
            if self.sizes_wanted(core, best) {
                at = at.min(best.next_sizes);
            }
        }
        let settle = self
            .candidates
            .iter()
            .filter_map(|candidate| candidate.settle)
            .min();
        Some(settle.map_or(at, |settle| at.min(settle)))
    }

    pub(super) fn ping(
        &mut self,
        core: &mut Core,
        addr: SocketAddr,
        purpose: Purpose,
        now: Instant,
    ) {
        let Some(shared) = &self.shared else { return };
        core.ping(self.id, Destination::Udp(addr), purpose, shared, now);
        if let Some(candidate) = self.candidates.iter_mut().find(|c| c.addr == addr) {
            candidate.last_ping = Some(now);
        }
    }

    /// Pings every address and asks the peer, over the relay, to do the same.
    fn round(&mut self, core: &mut Core, now: Instant) {
        let settled = self.is_trusted(now);
        let pause = ROUNDS.get(self.rounds).copied().unwrap_or(ROUND);
        self.rounds += 1;
        self.next_round = now + if settled { COMPARE } else { pause };
        let fast = self
            .best_candidate()
            .is_some_and(|c| c.rtt < FAST || c.addr.ip().is_loopback());
        if settled && fast && self.rounds > 1 {
            return;
        }
        let best = self.best.as_ref().map(|best| best.addr);
        self.candidates
            .retain(|c| Some(c.addr) == best || !c.is_stale(now));
        self.ping_all(core, Purpose::Path, now);
        if self.best.is_none() && self.rounds >= FULL_ROUNDS {
            self.tried = true;
            self.ping_all(core, Purpose::Small, now);
        }
        self.call(core);
        self.tell(core, now);
    }

    fn ping_all(&mut self, core: &mut Core, purpose: Purpose, now: Instant) {
        let near = self.may_be_here(core);
        let all: Vec<SocketAddr> = self.candidates.iter().map(|c| c.addr).collect();
        for addr in all {
            if near || !addr.ip().is_loopback() {
                self.ping(core, addr, purpose, now);
            }
        }
    }

    /// Whether the peer may run on this machine, so that its loopback addresses are worth a try. Only an answer from its
    /// disco key makes a path of one.
    fn may_be_here(&self, core: &Core) -> bool {
        let mut others = self
            .candidates
            .iter()
            .map(|c| c.addr.ip())
            .filter(|ip| !ip.is_loopback());
        others.clone().next().is_none() || others.any(|ip| core.local.owns(ip))
    }

    fn call(&mut self, core: &mut Core) {
        let endpoints = core.local.endpoints();
        let (Some((region, node)), Some(shared)) = (self.relay(), &self.shared) else {
            return;
        };
        if !endpoints.is_empty() {
            let message = Message::CallMeMaybe { endpoints };
            core.send(
                Destination::Relay(region, node),
                &message,
                PayloadSize::V0,
                shared,
            );
        }
    }

    pub(super) fn best_candidate(&self) -> Option<&Candidate> {
        let best = self.best.as_ref()?;
        self.candidates
            .iter()
            .find(|candidate| candidate.addr == best.addr)
    }

    /// A ping of the peer: answered where it came from.
    ///
    /// The answer to a ping that is not padded is not padded either: it may be all that passes.
    pub(super) fn take_ping(
        &mut self,
        tx: TxId,
        from: Origin,
        padded: bool,
        core: &mut Core,
        now: Instant,
    ) {
        if self.seen.contains(&tx) {
            return;
        }
        if self.seen.len() == SEEN {
            self.seen.pop_front();
        }
        self.seen.push_back(tx);
        let Some(shared) = &self.shared else { return };
        let (to, source) = match from {
            Origin::Udp(from) => (Destination::Udp(from), from),
            Origin::Relay(region) => {
                let source = relay_wire::disco::derp_source(region);
                (Destination::Relay(region, self.info.node), source)
            }
        };
        let size = match padded {
            true => PayloadSize::PADDED,
            false => PayloadSize::V0,
        };
        core.send(to, &Message::Pong { tx, source }, size, shared);
        let Origin::Udp(from) = from else { return };
        let Some(candidate) = self.candidate(from, now) else {
            return;
        };
        candidate.noted = Some(now);
        candidate.last_asked = Some(now);
        // The peer reaches us from there, so our ping may now reach it, through its NAT as well.
        let known = candidate.answered_within(now, HEARTBEAT);
        let asked = candidate.pinged_within(now, Duration::from_millis(20));
        if !known && !asked {
            self.ping(core, from, Purpose::Path, now);
        }
    }

    /// The peer names its addresses and is pinging ours.
    pub(super) fn take_call(&mut self, endpoints: &[SocketAddr], core: &mut Core, now: Instant) {
        let recent = |at: Instant| now.saturating_duration_since(at) < Duration::from_millis(100);
        if !self.can_be_direct(core) || self.last_call.is_some_and(recent) {
            return;
        }
        self.last_call = Some(now);
        for addr in endpoints.iter().take(MAX_CANDIDATES).copied().map(plain) {
            if let Some(candidate) = self.candidate(addr, now) {
                candidate.noted = Some(now);
            }
        }
        self.varies = reason::varies(endpoints);
        self.ping_all(core, Purpose::Path, now);
        self.tell(core, now);
    }

    /// A ping of ours was answered.
    pub(super) fn take_pong(&mut self, ping: InFlight, core: &mut Core, now: Instant) {
        let Destination::Udp(addr) = ping.to else {
            return;
        };
        let rtt = now.saturating_duration_since(ping.sent);
        let Some(candidate) = self.candidate(addr, now) else {
            return;
        };
        if ping.purpose == Purpose::Small {
            candidate.last_small = Some(now);
            return self.tell(core, now);
        }
        candidate.pong(now, rtt);
        if let Purpose::Mtu(mtu) = ping.purpose
            && mtu >= candidate.mtu
        {
            candidate.mtu = mtu;
            candidate.proven = Some(now);
        }
        self.confirm(addr, ping, core, now);
        self.choose(addr, core, now);
        self.tell(core, now);
    }

    /// How a ping on demand goes: the way that packets go.
    pub(super) fn destination(&self) -> Option<Destination> {
        match (&self.best, self.relay()) {
            (Some(best), _) if !best.doubted => Some(Destination::Udp(best.addr)),
            (_, Some((region, node))) => Some(Destination::Relay(region, node)),
            (Some(best), None) => Some(Destination::Udp(best.addr)),
            (None, None) => None,
        }
    }

    /// Tells what has changed; the size comes before the path that needs it.
    pub(super) fn tell(&mut self, core: &mut Core, now: Instant) {
        let state = match (&self.best, self.info.home) {
            (Some(best), _) => PathState::Direct(best.addr),
            (None, Some(home)) => PathState::Relayed(home, self.reason(core, now)),
            (None, None) => PathState::None,
        };
        let mtu = match state {
            PathState::Direct(_) => self.best_candidate().map_or(BASE_MTU, |c| c.mtu),
            PathState::Relayed(..) if self.proves_sizes() => core.config.relay_mtu.max(BASE_MTU),
            _ => BASE_MTU,
        };
        if mtu != self.told_mtu {
            self.told_mtu = mtu;
            core.events.push_back(Event::Mtu { peer: self.id, mtu });
        }
        if self.told != Some(state) {
            self.told = Some(state);
            core.events.push_back(Event::Path {
                peer: self.id,
                state,
            });
        }
    }
}

/// Where a disco message came from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    Udp(SocketAddr),
    Relay(u16),
}
