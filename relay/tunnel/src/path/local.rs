//! Our own addresses: those of the interfaces, and those STUN servers see us at.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::Rng as _;
use rand::rngs::StdRng;
use relay_wire::stun;

use super::candidate::{is_usable, plain};
use super::{Destination, Transmit};

/// Pause before a request that got no answer is repeated.
const RETRY: Duration = Duration::from_millis(500);

/// Requests of one round to one server.
const TRIES: u32 = 3;

struct Server {
    addr: SocketAddr,
    transaction: Option<[u8; 12]>,
    tries: u32,
    /// When this round's next request is due.
    retry: Option<Instant>,
    mapped: Option<SocketAddr>,
    /// Whether the last complete round got no answer.
    silent: bool,
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
                mapped: None,
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

    /// Whether STUN servers are known and none of them answers.
    pub(super) fn is_blocked(&self) -> bool {
        !self.servers.is_empty() && self.servers.iter().all(|server| server.silent)
    }

    /// Takes a STUN message; true when our addresses have changed.
    pub(super) fn handle(&mut self, packet: &[u8]) -> bool {
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
            self.next_round = Some(now + Duration::from_millis(rng.random_range(20_000..26_000)));
            for server in &mut self.servers {
                server.tries = 0;
                server.retry = Some(now);
            }
        }
        let mut changed = false;
        for server in &mut self.servers {
            if server.retry.is_none_or(|at| at > now) {
                continue;
            }
            if server.tries == TRIES {
                server.retry = None;
                server.silent = true;
                changed |= server.mapped.take().is_some();
                continue;
            }
            let transaction = *server.transaction.get_or_insert_with(|| rng.random());
            server.tries += 1;
            server.retry = Some(now + RETRY);
            out.push_back(Transmit {
                to: Destination::Udp(server.addr),
                payload: stun::request(transaction),
            });
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
