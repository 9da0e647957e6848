//! The tunnel's UDP socket: bursts out with `UDP_SEGMENT`, bursts in with `UDP_GRO`. Which bytes go
//! where is decided elsewhere.

mod sys;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};

use relay_engine::burst;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::Error;

/// Most datagrams in one `UDP_SEGMENT` send.
pub const MAX_SEGMENTS: usize = 64;
/// Most bytes in one `UDP_SEGMENT` send: an IPv4 datagram's payload.
pub const MAX_BURST: usize = 65_507;

/// Messages of one receive.
const MESSAGES: usize = 8;
/// The largest message the kernel merges, and so the room for each.
const RECEIVE_ROOM: usize = 65_536;
/// What the receive buffer should hold: bursts of 64 KiB arrive faster than one loop turn.
const RECEIVE_BUFFER: i32 = 8 << 20;

/// Which offloads the socket may use; a switched-off one costs speed and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpOffloads {
    /// `UDP_SEGMENT`: one send for many datagrams.
    pub segmentation: bool,
    /// `UDP_GRO`: one receive for many datagrams.
    pub coalescing: bool,
}

impl Default for UdpOffloads {
    fn default() -> Self {
        UdpOffloads {
            segmentation: true,
            coalescing: true,
        }
    }
}

/// The buffers received bursts land in. They can be given back while nothing arrives.
#[derive(Debug, Default)]
pub struct ReceiveBuffers {
    data: Vec<u8>,
}

impl ReceiveBuffers {
    /// Returns the memory; the next receive takes it again.
    pub fn release(&mut self) {
        self.data = Vec::new();
    }
}

/// One UDP socket for both address families (IPv4 alone where the machine has no IPv6).
#[derive(Debug)]
pub struct UdpSocket {
    fd: AsyncFd<OwnedFd>,
    dual: bool,
    port: u16,
    segmentation: bool,
    coalescing: bool,
    /// Where a burst send failed although its datagrams alone went through.
    plain: HashSet<SocketAddr>,
    warning: Option<String>,
}

impl UdpSocket {
    /// Opens the socket on `port` (0: any) and probes what the kernel can do for it.
    pub fn bind(port: u16, offloads: UdpOffloads) -> Result<UdpSocket, Error> {
        let failed = |source| Error::UdpSocket { port, source };
        let (socket, dual) = match open(Domain::IPV6, port) {
            Ok(socket) => (socket, true),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(failed(error)),
            Err(_) => (open(Domain::IPV4, port).map_err(failed)?, false),
        };
        let port = socket
            .local_addr()
            .ok()
            .and_then(|address| address.as_socket())
            .map_or(port, |address| address.port());

        let mut warnings = Vec::new();
        let segmentation = offloads.segmentation
            && match sys::set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 0) {
                Ok(()) => true,
                Err(error) => {
                    warnings.push(format!("UDP_SEGMENT is not available ({error})"));
                    false
                }
            };
        let coalescing = offloads.coalescing
            && match sys::set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1) {
                Ok(()) => true,
                Err(error) => {
                    warnings.push(format!("UDP_GRO is not available ({error})"));
                    false
                }
            };
        let warning = (!warnings.is_empty())
            .then(|| format!("{}; the tunnel will be slower", warnings.join(", ")));

        let fd = sys::watch(OwnedFd::from(socket), Interest::READABLE).map_err(|source| {
            Error::System {
                what: "watching the tunnel's UDP socket",
                source,
            }
        })?;
        Ok(UdpSocket {
            fd,
            dual,
            port,
            segmentation,
            coalescing,
            plain: HashSet::new(),
            warning,
        })
    }

    /// The port the socket listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The offloads in use.
    pub fn offloads(&self) -> UdpOffloads {
        UdpOffloads {
            segmentation: self.segmentation,
            coalescing: self.coalescing,
        }
    }

    /// Whether IPv6 addresses can be reached too.
    pub fn is_dual_stack(&self) -> bool {
        self.dual
    }

    /// Lets routers and the kernel cut datagrams that are too large for a way, as WireGuard does: for
    /// peers whose path's size nobody probes.
    pub fn allow_fragments(&self) {
        let fd = self.fd.get_ref().as_fd();
        let never = libc::IP_PMTUDISC_DONT;
        let _ = sys::set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, never);
        if self.dual {
            let never = libc::IPV6_PMTUDISC_DONT;
            let _ = sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, never);
        }
    }

    /// Bytes that the kernel queues for this socket before it drops.
    pub fn receive_buffer(&self) -> usize {
        // The kernel tells twice what it was asked for, to account for its own overhead.
        let room = socket2::SockRef::from(self.fd.get_ref()).recv_buffer_size();
        room.map_or(0, |bytes| bytes / 2)
    }

    /// Something a person should know about the socket, once.
    pub fn take_warning(&mut self) -> Option<String> {
        self.warning.take()
    }

    /// Waits until something may have arrived.
    pub async fn readable(&self) -> io::Result<()> {
        self.fd
            .readable()
            .await
            .map(|mut guard| guard.retain_ready())
    }

    /// Waits until a send that would have blocked may succeed. Rare: the socket is not watched for
    /// writability otherwise.
    pub async fn writable(&self) -> io::Result<()> {
        let twin = self.fd.get_ref().try_clone()?;
        let watch = sys::watch(twin, Interest::WRITABLE)?;
        watch.writable().await.map(|_| ())
    }

    /// Receives one batch of messages and hands out each: where from, its bytes, and the size of
    /// the datagrams that lie side by side in them (the last may be shorter). Returns how many
    /// messages there were; `WouldBlock` when there is nothing.
    pub fn try_receive(
        &self,
        buffers: &mut ReceiveBuffers,
        each: &mut dyn FnMut(SocketAddr, &[u8], usize),
    ) -> io::Result<usize> {
        if buffers.data.is_empty() {
            buffers.data = vec![0; RECEIVE_ROOM * MESSAGES];
        }
        let mut messages = [None; MESSAGES];
        let mut got = 0;
        let outcome = self.fd.try_io(Interest::READABLE, |fd| {
            got = burst::receive(fd.as_fd(), &mut buffers.data, RECEIVE_ROOM, &mut messages)?;
            // Less than asked for: it is empty, and needs no further look to know that.
            if got < MESSAGES {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        if got == 0 {
            outcome?;
        }
        for (message, data) in messages
            .iter()
            .take(got)
            .zip(buffers.data.chunks(RECEIVE_ROOM))
        {
            if let Some(message) = message.filter(|message| message.len > 0) {
                each(message.from, &data[..message.len], message.segment);
            }
        }
        Ok(got)
    }

    /// Sends one datagram.
    pub fn try_send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.send(to, datagram, 0)
    }

    /// Sends `data` as datagrams of `segment` bytes, the last may be shorter; at most
    /// [`MAX_SEGMENTS`] and [`MAX_BURST`] bytes. On `WouldBlock` nothing of it, or only a first part
    /// of it where bursts are off, was sent: sending all of it again is safe for sealed packets.
    pub fn try_send_burst(
        &mut self,
        to: SocketAddr,
        data: &[u8],
        segment: usize,
    ) -> io::Result<()> {
        let one = data.len() <= segment;
        if one {
            return self.try_send(to, data);
        }
        let size = u16::try_from(segment).unwrap_or(u16::MAX);
        if self.segmentation && !self.plain.contains(&to) {
            match self.send(to, data, size) {
                Ok(()) => return Ok(()),
                Err(error) if !burst::may_be_the_offload(&error) => return Err(error),
                Err(error) => {
                    self.send_each(to, data, segment)?;
                    // Only the burst failed, so it is the offload and not the path.
                    if self.plain.is_empty() {
                        self.warning = Some(format!(
                            "sending bursts with UDP_SEGMENT failed ({error}); relay sends single \
                             datagrams there and will be slower"
                        ));
                    }
                    self.plain.insert(to);
                    return Ok(());
                }
            }
        }
        self.send_each(to, data, segment)
    }

    /// Whether bursts go out as one send where they can.
    pub fn sends_bursts(&self) -> bool {
        self.segmentation
    }

    /// Whether bursts arrive as one receive.
    pub fn receives_bursts(&self) -> bool {
        self.coalescing
    }

    /// On a socket for both families an IPv4 address is written as an IPv6 one.
    fn send(&self, to: SocketAddr, data: &[u8], segment: u16) -> io::Result<()> {
        let to = match to {
            SocketAddr::V4(v4) if self.dual => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            other => other,
        };
        burst::send(self.fd.as_fd(), Some(to), &[IoSlice::new(data)], segment).map(|_| ())
    }

    fn send_each(&self, to: SocketAddr, data: &[u8], segment: usize) -> io::Result<()> {
        data.chunks(segment)
            .try_for_each(|datagram| self.try_send(to, datagram))
    }
}

fn open(domain: Domain, port: u16) -> io::Result<Socket> {
    let socket = Socket::new(
        domain,
        Type::DGRAM.nonblocking().cloexec(),
        Some(Protocol::UDP),
    )?;
    let address: SocketAddr = if domain == Domain::IPV6 {
        socket.set_only_v6(false)?;
        SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0).into()
    } else {
        SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into()
    };
    socket.bind(&address.into())?;

    // A tunnel packet must never be fragmented, and path MTU is proven by relay itself, so what the
    // kernel learnt about a route does not limit a send. Absence of either is not fatal.
    let fd = socket.as_fd();
    let _ = sys::set_option(
        fd,
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::IP_PMTUDISC_PROBE,
    );
    if domain == Domain::IPV6 {
        let probe = libc::IPV6_PMTUDISC_PROBE;
        let _ = sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, probe);
    }
    let forced =
        sys::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER).is_ok();
    if !forced {
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER as usize);
    }
    Ok(socket)
}
