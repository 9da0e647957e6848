//! What an endpoint knows about its own network: its addresses, what STUN servers say, and its NAT.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// What STUN servers say; of several the first in this order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stun {
    /// One answers.
    Answers,
    /// The answer may still come.
    Asked,
    /// None answers.
    Silent,
    /// There is no server to ask.
    Unknown,
}

/// A NAT, by how it maps one socket of this machine (RFC 4787 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// No STUN server has answered.
    Unknown,
    /// The socket is seen by the address that it has.
    None,
    /// There is one, and one server alone to tell about it.
    Present,
    /// One outer address whoever is spoken to: peers can use what a STUN server saw.
    EndpointIndependent,
    /// Another outer address for each destination: what a STUN server saw is of no use to peers.
    EndpointDependent,
}

impl Nat {
    /// A word for programs; stays as it is.
    pub fn code(self) -> &'static str {
        match self {
            Nat::Unknown => "unknown",
            Nat::None => "none",
            Nat::Present => "present",
            Nat::EndpointIndependent => "endpoint_independent",
            Nat::EndpointDependent => "endpoint_dependent",
        }
    }
}

impl fmt::Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Nat::Unknown => "unknown: no STUN server answered",
            Nat::None => "none",
            Nat::Present => "yes; of what kind, one STUN server alone cannot tell",
            Nat::EndpointIndependent => "yes, endpoint-independent mapping: direct paths work",
            Nat::EndpointDependent => {
                "yes, endpoint-dependent mapping: direct paths only to peers without such a NAT"
            }
        })
    }
}

/// A STUN server, and what it said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StunServer {
    /// Where it is asked.
    pub address: SocketAddr,
    /// Whether it answers.
    pub state: Stun,
    /// The address by which it sees this end.
    pub mapped: Option<SocketAddr>,
    /// How long its last answer took.
    pub rtt: Option<Duration>,
}

/// What an endpoint knows about its own network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// The addresses that it offers to peers.
    pub endpoints: Vec<SocketAddr>,
    /// What STUN servers say, all in all.
    pub stun: Stun,
    /// Each of them.
    pub servers: Vec<StunServer>,
    /// What they tell about the NAT.
    pub nat: Nat,
}
