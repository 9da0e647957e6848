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
        "no offload is called \"{0}\"; there are tun-tcp, tun-udp, udp-send and udp-receive, and all"
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
