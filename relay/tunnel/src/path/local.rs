//! Our own addresses: those of the interfaces, and those STUN servers see us at.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use rand::Rng as _;
use rand::rngs::StdRng;
use relay_wire::stun;

use super::candidate::{is_usable, plain};
use super::survey::{Nat, Stun, StunServer};
use super::{Destination, Transmit};

/// Pause before a request that got no answer is repeated.
const RETRY: Duration = Duration::from_millis(500);

/// From one round to the next, milliseconds.
const ROUND: Range<u64> = 20_000..26_000;
/// The same while no server answers: that UDP passes again is worth to be seen soon.
const SILENT_ROUND: Range<u64> = 4_000..6_000;

/// Requests of one round to one server.
const TRIES: u32 = 3;

struct Server {
    addr: SocketAddr,
    transaction: Option<[u8; 12]>,
    tries: u32,
    /// When this round's next request is due.
    retry: Option<Instant>,
    /// When this round's last request went out.
    sent: Option<Instant>,
    mapped: Option<SocketAddr>,
    /// How long the last answer took.
    rtt: Option<Duration>,
    /// Whether the last complete round got no answer.
    silent: bool,
}

impl Server {
    fn state(&self) -> Stun {
        match (self.mapped, self.silent) {
            (Some(_), _) => Stun::Answers,
            (None, true) => Stun::Silent,
            // An answer that names an address nobody can use is one all the same.
            (None, false) if self.rtt.is_some() => Stun::Answers,
            (None, false) => Stun::Asked,
        }
    }
}

/// Our addresses and the STUN rounds that find them.
#[derive(Default)]
pub(super) struct Local {
    interfaces: Vec<SocketAddr>,
    servers: Vec<Server>,
    next_round: Option<Instant>,
}

impl Local {
    pub(super) fn set_interfaces(&mut self, addresses: &[SocketAddr]) -> bool {
        let wanted: Vec<SocketAddr> = addresses.iter().copied().map(plain).collect();
        let changed = wanted != self.interfaces;
        self.interfaces = wanted;
        changed
    }

    pub(super) fn set_servers(&mut self, servers: &[SocketAddr], now: Instant) {
        let servers: Vec<SocketAddr> = servers.iter().copied().map(plain).collect();
        self.servers.retain(|server| servers.contains(&server.addr));
        for addr in servers {
            if self.servers.iter().any(|server| server.addr == addr) {
                continue;
            }
            self.servers.push(Server {
                addr,
                transaction: None,
                tries: 0,
                retry: Some(now),
                sent: None,
                mapped: None,
                rtt: None,
                silent: false,
            });
        }
    }

    /// Whether `ip` is one of this machine's own, loopback apart.
    pub(super) fn owns(&self, ip: IpAddr) -> bool {
        !ip.is_loopback() && self.interfaces.iter().any(|addr| addr.ip() == ip)
    }

    /// What is offered to peers: interfaces, STUN's answers, loopback last.
    pub(super) fn endpoints(&self) -> Vec<SocketAddr> {
        let mut offered: Vec<SocketAddr> = Vec::new();
        let loopback = |addr: &SocketAddr| addr.ip().is_loopback();
        let interfaces = || {
            self.interfaces
                .iter()
                .copied()
                .filter(|addr| is_usable(*addr))
        };
        let mapped = self.servers.iter().filter_map(|server| server.mapped);
        let all = interfaces()
            .filter(|addr| !loopback(addr))
            .chain(mapped)
            .chain(interfaces().filter(loopback));
        for addr in all {
            if !offered.contains(&addr) {
                offered.push(addr);
            }
        }
        offered
    }

    /// What STUN servers say, all in all.
    pub(super) fn stun(&self) -> Stun {
        let mut states = self.servers.iter().map(Server::state).peekable();
        match states.peek() {
            None => Stun::Unknown,
            Some(_) => states.min().unwrap_or(Stun::Unknown),
        }
    }

    /// Each server, and what it said last.
    pub(super) fn servers(&self) -> impl Iterator<Item = StunServer> {
        self.servers.iter().map(|server| StunServer {
            address: server.addr,
            state: server.state(),
            mapped: server.mapped,
            rtt: server.rtt,
        })
    }

    /// How this machine's NAT names one socket towards several servers. A server that is on this side of
    /// the NAT, and sees an address of ours or the loopback's, says nothing about it.
    pub(super) fn nat(&self) -> Nat {
        let mapped: Vec<SocketAddr> = self
            .servers
            .iter()
            .filter_map(|server| server.mapped)
            .collect();
        let ours = |ip: IpAddr| ip.is_loopback() || self.owns(ip);
        let behind = || mapped.iter().filter(|addr| !ours(addr.ip()));
        let of_family = |v4: bool| behind().filter(move |addr| addr.is_ipv4() == v4);
        let varies = |v4| {
            let mut all = of_family(v4);
            let first = all.next();
            all.any(|addr| Some(addr) != first)
        };
        if varies(true) || varies(false) {
            Nat::EndpointDependent
        } else if of_family(true).count() > 1 || of_family(false).count() > 1 {
            Nat::EndpointIndependent
        } else if behind().next().is_some() {
            Nat::Present
        } else if mapped.is_empty() {
            Nat::Unknown
        } else {
            Nat::None
        }
    }

    /// Takes a STUN message; true when our addresses have changed.
    pub(super) fn handle(&mut self, packet: &[u8], now: Instant) -> bool {
        let Ok((transaction, mapped)) = stun::parse_response(packet) else {
            return false;
        };
        let Some(server) = self
            .servers
            .iter_mut()
            .find(|server| server.transaction == Some(transaction))
        else {
            return false;
        };
        server.transaction = None;
        server.retry = None;
        server.tries = 0;
        server.silent = false;
        server.rtt = server.sent.map(|sent| now.saturating_duration_since(sent));
        let mapped = Some(plain(mapped)).filter(|addr| is_usable(*addr));
        let changed = server.mapped != mapped;
        server.mapped = mapped;
        changed
    }

    /// Starts the requests that are due; true when our addresses have changed because a server fell silent.
    pub(super) fn tick(
        &mut self,
        active: bool,
        now: Instant,
        rng: &mut StdRng,
        out: &mut VecDeque<Transmit>,
    ) -> bool {
        let round = self.next_round.is_none_or(|at| at <= now);
        if round && active && !self.servers.is_empty() {
            self.next_round = Some(now + Duration::from_millis(rng.random_range(ROUND)));
            for server in &mut self.servers {
                server.tries = 0;
                server.retry = Some(now);
            }
        }
        let mut changed = false;
        let mut fell_silent = false;
        for server in &mut self.servers {
            if server.retry.is_none_or(|at| at > now) {
                continue;
            }
            if server.tries == TRIES {
                server.retry = None;
                server.silent = true;
                fell_silent = true;
                server.rtt = None;
                changed |= server.mapped.take().is_some();
                continue;
            }
            let transaction = *server.transaction.get_or_insert_with(|| rng.random());
            server.tries += 1;
            server.retry = Some(now + RETRY);
            server.sent = Some(now);
            out.push_back(Transmit {
                to: Destination::Udp(server.addr),
                payload: stun::request(transaction),
            });
        }
        if fell_silent && self.stun() == Stun::Silent {
            let soon = now + Duration::from_millis(rng.random_range(SILENT_ROUND));
            self.next_round = self.next_round.map(|at| at.min(soon));
        }
        changed
    }

    pub(super) fn deadline(&self, active: bool, now: Instant) -> Option<Instant> {
        let round = match self.next_round {
            _ if !active || self.servers.is_empty() => None,
            Some(at) => Some(at),
            None => Some(now),
        };
        self.servers
            .iter()
            .filter_map(|server| server.retry)
            .chain(round)
            .min()
    }
}
