//! The stream side of the stack: connections out of and into the namespace.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};

use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::{Injection, NetHelper, StackOptions, Tun, Verdict};
use crate::Error;

/// A handle to the kernel's TCP in the namespace.
#[derive(Debug, Clone)]
pub struct KernelStack {}

pub(super) fn start(
    _helper: NetHelper,
    _addresses: &[Ipv6Addr],
    _options: StackOptions,
) -> Result<(Tun, KernelStack), Error> {
    Ok((Tun {}, KernelStack {}))
}

impl KernelStack {
    /// Opens a stream through the tunnel from one of the stack's own addresses.
    pub async fn connect(&self, _source: Ipv6Addr, _remote: SocketAddrV6) -> io::Result<TcpStream> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Decides about a packet from a peer before it is written to the TUN device. The caller has
    /// checked that the source address belongs to the peer.
    pub fn inspect(&self, _packet: &[u8]) -> Verdict {
        Verdict::Pass
    }

    /// Turns accept on demand on and returns where wanted connections arrive. Until it is called,
    /// and once the receiver is gone, every connection is refused.
    pub fn incoming(&self) -> mpsc::Receiver<Incoming> {
        mpsc::channel(1).1
    }

    /// Where packets appear that the stack wants written later. The latest receiver gets them.
    pub fn injections(&self) -> mpsc::UnboundedReceiver<Injection> {
        mpsc::unbounded_channel().1
    }

    /// Sets the largest packet that reaches this peer; streams that are open follow at once.
    pub fn set_peer_mtu(&self, _peer: Ipv6Addr, _mtu: u16) {}

    /// Forgets what is known about this peer.
    pub fn remove_peer(&self, _peer: Ipv6Addr) {}
}

/// A connection that a peer wants, kept waiting until the application has been dialled. Dropping
/// it refuses the connection.
#[derive(Debug)]
pub struct Incoming {}

impl Incoming {
    /// The peer's address and port.
    pub fn source(&self) -> SocketAddrV6 {
        SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0)
    }

    /// The port the peer wants.
    pub fn port(&self) -> u16 {
        0
    }

    /// Lets the connection happen and returns its stream once the handshake is done.
    pub async fn accept(self) -> io::Result<TcpStream> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Answers the peer that nothing listens on the port.
    pub fn refuse(self) {}
}
