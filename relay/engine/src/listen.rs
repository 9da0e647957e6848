//! Opening the local sockets that forwards listen on.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// Bytes of datagrams that may wait; the kernel cuts it to `net.core.rmem_max`, and uses none of
/// it while nothing waits.
const DATAGRAMS: usize = 4 << 20;

/// Listens for TCP connections. `[::]` takes IPv4 as well, any other IPv6 address does not.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = open(address, Type::STREAM, Protocol::TCP)?;
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connects over TCP. On this machine's loopback that takes no wait: the handshake is over, or
/// refused, by the time the first call comes back, and a second one tells.
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = open(address, Type::STREAM, Protocol::TCP)?;
    socket.set_tcp_nodelay(true)?;
    let remote = address.into();
    let connected = match socket.connect(&remote) {
        Err(error) if is_under_way(&error) => socket.connect(&remote),
        done => done,
    };
    match connected {
        Err(error) if !is_under_way(&error) => return Err(error),
        _ => {}
    }
    let stream = TcpStream::from_std(socket.into())?;
    if connected.is_err() {
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
    Ok(stream)
}

fn is_under_way(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::INPROGRESS | Errno::ALREADY)
    )
}

/// Binds a UDP socket, by the same rules.
pub fn listen_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(address, Type::DGRAM, Protocol::UDP)?;
    deepen(&socket);
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// Lets a UDP socket hold the datagrams of some milliseconds, as far as the machine allows: the
/// default is less than one at a hundred thousand a second, and what does not fit is lost.
pub fn deepen(socket: &impl AsFd) {
    let _ = SockRef::from(socket).set_recv_buffer_size(DATAGRAMS);
}

fn open(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let kind = kind.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if let IpAddr::V6(ip) = address.ip() {
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    Ok(socket)
}
