//! One address a peer may be reached at, and the choice between them.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use relay_wire::addr::is_tunnel_address;

use super::BASE_MTU;

/// How long an address that only the network told us (not coordination) is remembered.
const REMEMBERED: Duration = Duration::from_secs(310);

/// A new address has to be better by this much, so that noise does not move a path.
const MARGIN: Duration = Duration::from_micros(500);

/// An address of a peer.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) addr: SocketAddr,
    /// Named by coordination now.
    pub(super) listed: bool,
    /// Last time a call-me-maybe named it or a packet came from it.
    pub(super) noted: Option<Instant>,
    pub(super) last_ping: Option<Instant>,
    pub(super) last_pong: Option<Instant>,
    /// Last time a packet smaller than the tunnel's was answered.
    pub(super) last_small: Option<Instant>,
    /// Last time a ping of the peer came from it.
    pub(super) last_asked: Option<Instant>,
    pub(super) rtt: Duration,
    /// Inner MTU proven here.
    pub(super) mtu: u16,
    /// When `mtu` was proven.
    pub(super) proven: Option<Instant>,
    /// While its MTU is being proven for the first time: when to stop waiting for larger sizes.
    pub(super) settle: Option<Instant>,
}

impl Candidate {
    pub(super) fn new(addr: SocketAddr) -> Candidate {
        Candidate {
            addr,
            listed: false,
            noted: None,
            last_ping: None,
            last_pong: None,
            last_small: None,
            last_asked: None,
            rtt: Duration::from_secs(5),
            mtu: BASE_MTU,
            proven: None,
            settle: None,
        }
    }

    pub(super) fn pong(&mut self, now: Instant, rtt: Duration) {
        self.rtt = match self.last_pong {
            // A moving average: one late answer must not move a path.
            Some(_) => (self.rtt * 3 + rtt) / 4,
            None => rtt,
        };
        self.last_pong = Some(now);
    }

    pub(super) fn answered_within(&self, now: Instant, span: Duration) -> bool {
        self.last_pong
            .is_some_and(|at| now.saturating_duration_since(at) < span)
    }

    pub(super) fn pinged_within(&self, now: Instant, span: Duration) -> bool {
        self.last_ping
            .is_some_and(|at| now.saturating_duration_since(at) < span)
    }

    pub(super) fn is_stale(&self, now: Instant) -> bool {
        let old = |at: Option<Instant>| {
            at.is_none_or(|at| now.saturating_duration_since(at) > REMEMBERED)
        };
        !self.listed && old(self.noted) && old(self.last_pong)
    }

    /// Lower is better: the round trip, less a bonus for addresses that are surely near.
    fn cost(&self) -> Duration {
        let mut percent = 100;
        if is_private(self.addr.ip()) {
            percent -= 20;
        }
        if self.addr.is_ipv6() {
            percent -= 10;
        }
        self.rtt * percent / 100
    }

    /// Whether a path should move from `other`, which still works, to this address.
    pub(super) fn is_clearly_better_than(&self, other: &Candidate) -> bool {
        match (self.addr.ip().is_loopback(), other.addr.ip().is_loopback()) {
            (true, false) => return true,
            (false, true) => return false,
            _ => {}
        }
        let (own, others) = (self.cost(), other.cost());
        own + MARGIN < others && own < others * 9 / 10
    }

    /// Whether this address is the better one to begin with.
    pub(super) fn is_preferred_to(&self, other: &Candidate) -> bool {
        let key = |c: &Candidate| (!c.addr.ip().is_loopback(), c.cost());
        key(self) < key(other)
    }
}

pub(super) fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

/// Whether `addr` can be an endpoint of anybody at all; the tunnel's own addresses never are.
pub(super) fn is_usable(addr: SocketAddr) -> bool {
    let ip = addr.ip();
    if addr.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
        return false;
    }
    match ip {
        IpAddr::V4(v4) => !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !is_tunnel_address(v6),
    }
}

/// IPv4 in an IPv6 coat is IPv4; a dual-stack socket reports it so.
pub(super) fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
