//! Datagrams that were sent to any of many ports, and the sockets that answer them.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;

use nix::sys::socket::sockopt::Ipv4OrigDstAddr;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::listen::deepen;

/// A datagram that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Its bytes.
    pub length: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// The port that it was sent to.
    pub port: u16,
}

/// The next datagram at a socket that [`Steering::udp`](super::Steering::udp) opened.
///
/// # Errors
/// As recvmsg(2).
pub async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Arrived> {
    socket
        .async_io(Interest::READABLE, || receive_now(socket, buffer))
        .await
}

/// A datagram that is there.
pub(super) fn receive_now(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Arrived> {
    let mut parts = [IoSliceMut::new(buffer)];
    let mut control = nix::cmsg_space!(nix::libc::sockaddr_in);
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let port = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::Ipv4OrigDstAddr(address) => Some(u16::from_be(address.sin_port)),
        _ => None,
    });
    // Both are always there: the socket is of IPv4 and asked for it.
    let (Some(from), Some(port)) = (message.address, port) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    Ok(Arrived {
        length: message.bytes,
        from: SocketAddrV4::from(from).into(),
        port,
    })
}

/// Binds the socket that datagrams are steered to.
pub(super) fn listen(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(address)?;
    deepen(&socket);
    setsockopt(&socket, Ipv4OrigDstAddr, &true)?;
    UdpSocket::from_std(socket.into())
}

/// Opens the socket of one flow: what it sends comes from the port that the first datagram was sent
/// to, and further datagrams of `peer` to that port arrive at it.
///
/// # Errors
/// As bind(2) and connect(2).
pub fn answering(local: SocketAddrV4, peer: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(local.into())?;
    deepen(&socket);
    socket.connect(&peer.into())?;
    UdpSocket::from_std(socket.into())
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::IPV4, kind, Some(Protocol::UDP))?;
    // The flows of a port have it together, and one may be the port of the first socket.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}
