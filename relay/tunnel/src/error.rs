//! The one error type of the crate: each message says what failed and what to do about it.

use std::io;

/// What can go wrong while a tunnel is opened, used or closed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The UDP socket of the tunnel could not be opened.
    #[error(
        "opening the tunnel's UDP socket on port {port}: {source}; choose another port or leave it to relay"
    )]
    UdpSocket {
        /// The port that was asked for, 0 for any.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// The runtime refused to watch a descriptor, or a thread or process could not be started.
    #[error("{what}: {source}")]
    System {
        /// What relay was doing.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The machine does not let relay use the kernel's TCP.
    #[error("no kernel stack: {reason}")]
    KernelStack {
        /// What is missing and what to do about it.
        reason: String,
    },
    /// A stack that is not known.
    #[error("no stack is called \"{0}\"; use auto, kernel or user")]
    UnknownStack(String),
    /// An offload that is not known.
    #[error(
        "no offload is called \"{0}\"; there are tun-tcp, tun-udp, udp-send, udp-receive and avx512, and all"
    )]
    UnknownOffload(String),
    /// The endpoint's loop has ended, so nothing can be asked of it any more.
    #[error("the tunnel is closed")]
    Closed,
    /// A request that names a peer which is not installed.
    #[error("no such peer in the tunnel; it may have gone or not joined yet")]
    UnknownPeer,
    /// The other end did not answer in time.
    #[error("no answer through the tunnel within {0:?}; is the agent running?")]
    NoAnswer(std::time::Duration),
    /// A host of a plain WireGuard tunnel that no peer is the way to.
    #[error(
        "no [Peer] has {0} in its AllowedIPs, so there is no way there; add it to those of the peer \
         that leads to it"
    )]
    NoWay(std::net::IpAddr),
    /// A plain WireGuard tunnel in which this end has no address of the host's kind.
    #[error(
        "this end has no {family} address in the tunnel, and {0} is one; add one to Address in [Interface]",
        family = family(.0)
    )]
    NoAddress(std::net::IpAddr),
    /// Every source port of this end is in use by a UDP flow.
    #[error("no free UDP source port in the tunnel: 16,384 flows are open; close some")]
    TooManyFlows,
    /// A datagram that does not fit through the tunnel to this peer.
    #[error("a datagram of {size} bytes is too large for this peer, which takes at most {limit}")]
    DatagramTooLarge {
        /// Bytes of payload that were given.
        size: usize,
        /// The most this peer can take.
        limit: usize,
    },
}

fn family(address: &std::net::IpAddr) -> &'static str {
    match address.is_ipv4() {
        true => "IPv4",
        false => "IPv6",
    }
}
