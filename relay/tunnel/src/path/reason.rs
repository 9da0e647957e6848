//! Why a peer is not reached directly, as far as this end can tell.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::candidate::{is_private, plain};
use super::core::Core;
use super::peer::Peer;
use super::survey::{Nat, Stun};

/// How long what was seen of an address counts: three rounds of trying.
const RECENT: Duration = Duration::from_secs(15);

/// An end of a path, as this end calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// This end.
    Here,
    /// The peer.
    There,
    /// Either end.
    Both,
}

/// Why a peer is not reached directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Direct paths are switched off, here or by the deployment.
    DirectOff,
    /// The peer told no address, or has no disco key.
    NoEndpoints,
    /// The addresses are still being tried.
    Trying,
    /// Small packets pass, those of the tunnel do not.
    Mtu,
    /// The peer's packets come here directly, ours are not answered.
    OneWay,
    /// No STUN server answers, nor does the peer: UDP does not leave this network.
    UdpBlocked,
    /// There is no STUN server that could tell the outer addresses.
    NoStun,
    /// A NAT gives each destination another address, so that no end can tell the other where it is.
    Nat(Side),
    /// UDP works here, and the peer's addresses do not answer: a firewall between the two, or NATs on
    /// both sides of which one moves ports. That of Linux does where it takes packets for itself that
    /// nobody behind it asked for: they occupy the port that its own end's packets would have had.
    NoAnswer,
}

impl Reason {
    /// A word for programs; stays as it is.
    pub fn code(self) -> &'static str {
        match self {
            Reason::DirectOff => "direct_off",
            Reason::NoEndpoints => "no_endpoints",
            Reason::Trying => "trying",
            Reason::Mtu => "mtu",
            Reason::OneWay => "one_way",
            Reason::UdpBlocked => "udp_blocked",
            Reason::NoStun => "no_stun",
            Reason::Nat(Side::Here) => "nat_here",
            Reason::Nat(Side::There) => "nat_there",
            Reason::Nat(Side::Both) => "nat_both",
            Reason::NoAnswer => "no_answer",
        }
    }

    /// What can be done about it.
    pub fn advice(self) -> &'static str {
        match self {
            Reason::DirectOff => {
                "leave out --disable-direct-connections here, on the agent, and \
                 --block-direct-connections on the server"
            }
            Reason::NoEndpoints => {
                "see whether the agent runs with direct connections switched off, or its machine \
                 has no address but its own loopback"
            }
            Reason::Trying => "wait a few seconds",
            Reason::Mtu => "let UDP packets of 1340 bytes pass (IPv6: 1360), as every VPN needs",
            Reason::OneWay => "let UDP from here pass the firewall of the other end",
            Reason::UdpBlocked => "let UDP leave this network, and its answers come back",
            Reason::NoStun => {
                "give the deployment a STUN server (relay server --stun-address), or let both ends \
                 be in one network"
            }
            Reason::Nat(_) => {
                "set that NAT to endpoint-independent mapping, or open a UDP port on one of the ends"
            }
            Reason::NoAnswer => {
                "let UDP pass between the two machines; where a Linux machine is the NAT, have its \
                 firewall drop what comes from outside unasked"
            }
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::DirectOff => "direct connections are off",
            Reason::NoEndpoints => "the other end offers no address",
            Reason::Trying => "its addresses are still being tried",
            Reason::Mtu => "the direct path carries small packets only",
            Reason::OneWay => {
                "its packets come here directly, but ours are not answered: a firewall"
            }
            Reason::UdpBlocked => "UDP is blocked: no STUN server answers from here",
            Reason::NoStun => "no STUN server is known, so no address outside of each network is",
            Reason::Nat(Side::Here) => "the NAT here maps each destination to another address",
            Reason::Nat(Side::There) => {
                "the other end's NAT maps each destination to another address"
            }
            Reason::Nat(Side::Both) => {
                "the NATs of both ends map each destination to another address"
            }
            Reason::NoAnswer => {
                "its addresses do not answer over UDP: a firewall or a NAT between here and there"
            }
        })
    }
}

impl Peer {
    /// Why there is no direct path at the moment. What explains more comes first.
    pub(super) fn reason(&self, core: &Core, now: Instant) -> Reason {
        let recent =
            |at: Option<Instant>| at.is_some_and(|at| now.saturating_duration_since(at) < RECENT);
        let stun = core.local.stun();
        if !core.config.direct {
            Reason::DirectOff
        } else if self.shared.is_none() || self.candidates.is_empty() {
            Reason::NoEndpoints
        } else if !self.tried || stun == Stun::Asked {
            Reason::Trying
        } else if self.candidates.iter().any(|c| recent(c.last_small)) {
            Reason::Mtu
        } else if self.candidates.iter().any(|c| recent(c.last_asked)) {
            Reason::OneWay
        } else if stun == Stun::Silent {
            Reason::UdpBlocked
        } else {
            let here = core.local.nat() == Nat::EndpointDependent;
            match (here, self.varies, stun) {
                (true, true, _) => Reason::Nat(Side::Both),
                (true, false, _) => Reason::Nat(Side::Here),
                (false, true, _) => Reason::Nat(Side::There),
                (false, false, Stun::Unknown) => Reason::NoStun,
                (false, false, _) => Reason::NoAnswer,
            }
        }
    }
}

/// Whether the addresses that a peer offers show a NAT that maps each destination to another one: an
/// outer address with more ports than its own network's addresses have, which is one for each socket.
pub(super) fn varies(endpoints: &[SocketAddr]) -> bool {
    let mut ports: HashMap<IpAddr, usize> = HashMap::new();
    for addr in endpoints.iter().copied().map(plain) {
        *ports.entry(addr.ip()).or_default() += 1;
    }
    let most = |inner: bool| {
        let of_kind = ports
            .iter()
            .filter(|(ip, _)| !ip.is_loopback() && is_private(**ip) == inner);
        of_kind.map(|(_, count)| *count).max()
    };
    most(true).is_some_and(|sockets| most(false).is_some_and(|outer| outer > sockets))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shows(endpoints: &[&str]) -> bool {
        let endpoints: Vec<SocketAddr> = endpoints.iter().map(|e| e.parse().unwrap()).collect();
        varies(&endpoints)
    }

    #[test]
    fn several_outer_ports_of_one_socket_show_a_nat_that_varies() {
        assert!(!shows(&[]));
        assert!(!shows(&["10.0.0.1:1", "203.0.113.1:7"]));
        assert!(shows(&["10.0.0.1:1", "203.0.113.1:7", "203.0.113.1:8"]));
        // Two sockets, each with its outer port, or no NAT at all.
        let two = ["10.0.0.1:1", "10.0.0.1:2", "203.0.113.1:7", "203.0.113.1:8"];
        assert!(!shows(&two));
        assert!(!shows(&["203.0.113.1:7", "203.0.113.1:8"]));
    }
}
