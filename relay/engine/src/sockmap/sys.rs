//! What the kernel tells about a TCP socket, and what it is told, that no library has a name for.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::RecvFlags;

/// Number of counters that `SO_MEMINFO` gives, and where those of interest stand (linux/sock_diag.h).
const MEMINFO: usize = 9;
const RMEM_ALLOC: usize = 0;
const RCVBUF: usize = 1;
const DROPS: usize = 8;

/// `TCP_ESTABLISHED` (net/tcp_states.h).
const ESTABLISHED: u8 = 1;

/// What a TCP socket says of itself.
pub(super) struct Info {
    /// Open in both directions.
    pub(super) is_established: bool,
    /// The shortest round-trip time of late, microseconds: a busy machine makes them longer.
    pub(super) round_trip: u32,
    /// Bytes that the peer has confirmed.
    pub(super) acked: u64,
    /// Bytes that have come, in order; the end of the stream counts one.
    pub(super) received: u64,
}

/// The head of `struct tcp_info` (linux/tcp.h), as far as it is used.
#[repr(C)]
struct TcpInfo {
    state: u8,
    _bytes: [u8; 7],
    _words: [u32; 15],
    rtt: u32,
    _more: [u32; 8],
    _rates: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
    _counts: [u32; 3],
    min_rtt: u32,
}

pub(super) fn info(socket: &impl AsRawFd) -> io::Result<Info> {
    // SAFETY: `TcpInfo` is made of integers.
    let info: TcpInfo = unsafe { get(socket, libc::IPPROTO_TCP, libc::TCP_INFO) }?;
    Ok(Info {
        is_established: info.state == ESTABLISHED,
        round_trip: info.rtt.min(info.min_rtt),
        acked: info.bytes_acked,
        received: info.bytes_received,
    })
}

/// What the receive buffer of a socket holds.
pub(super) struct Memory {
    pub(super) used: u32,
    pub(super) limit: u32,
    /// Packets thrown away.
    pub(super) drops: u32,
}

pub(super) fn memory(socket: &OwnedFd) -> io::Result<Memory> {
    // SAFETY: an array of integers.
    let words: [u32; MEMINFO] = unsafe { get(socket, libc::SOL_SOCKET, libc::SO_MEMINFO) }?;
    Ok(Memory {
        used: words[RMEM_ALLOC],
        limit: words[RCVBUF],
        drops: words[DROPS],
    })
}

/// Whether it is a stream socket of TCP.
pub(super) fn is_tcp(socket: &impl AsRawFd) -> bool {
    // SAFETY: an integer.
    let protocol = unsafe { get::<libc::c_int>(socket, libc::SOL_SOCKET, libc::SO_PROTOCOL) };
    protocol.is_ok_and(|protocol| protocol == libc::IPPROTO_TCP)
}

/// The number that no other socket has.
pub(super) fn cookie(socket: &OwnedFd) -> io::Result<u64> {
    // SAFETY: an integer.
    unsafe { get(socket, libc::SOL_SOCKET, libc::SO_COOKIE) }
}

/// Fixes the size of the receive buffer. The kernel doubles the number.
pub(super) fn set_receive_buffer(socket: &OwnedFd, bytes: libc::c_int) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes)
}

/// The same, above the machine's limit.
pub(super) fn force_receive_buffer(socket: &OwnedFd, bytes: libc::c_int) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
}

/// Fixes the size of the send buffer, above the machine's limit. The kernel doubles the number.
pub(super) fn force_send_buffer(socket: &OwnedFd, bytes: libc::c_int) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes)
}

/// Bounds the window that the peer is told.
pub(super) fn clamp_window(socket: &OwnedFd, bytes: libc::c_int) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, bytes)
}

/// Bytes that have come and were not read. Not to be believed of a socket in a map.
pub(super) fn unread(socket: &impl AsFd) -> io::Result<u64> {
    Ok(rustix::io::ioctl_fionread(socket)?)
}

/// Sequence number of the first byte that has come and was not read, when so many were read before.
/// Only of a socket in no map.
///
/// # Errors
/// `InvalidData` when the kernel does not count so: a byte was urgent, or the end has come.
pub(super) fn unread_from(socket: &OwnedFd, read: u64) -> io::Result<u32> {
    const ATTEMPTS: usize = 16;
    for _ in 0..ATTEMPTS {
        let before = info(socket)?.received;
        let next = next_sequence(socket)?;
        let unread = unread(socket)?;
        if info(socket)?.received == before {
            return if read + unread == before {
                Ok(next.wrapping_sub(unread as u32))
            } else {
                Err(io::ErrorKind::InvalidData.into())
            };
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Sequence number of the byte that comes next. The kernel tells it to who repairs a connection
/// (tcp(7), `TCP_REPAIR`), which for a moment this pretends to do.
fn next_sequence(socket: &OwnedFd) -> io::Result<u32> {
    const RECEIVING: libc::c_int = 1;
    const WITHOUT_A_PROBE: libc::c_int = -1;
    // Repairing changes this one.
    // SAFETY: an integer.
    let reuse: libc::c_int = unsafe { get(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR) }?;
    let tcp = libc::IPPROTO_TCP;
    set(socket, tcp, libc::TCP_REPAIR, 1)?;
    let next = set(socket, tcp, libc::TCP_REPAIR_QUEUE, RECEIVING)
        // SAFETY: an integer.
        .and_then(|()| unsafe { get(socket, tcp, libc::TCP_QUEUE_SEQ) });
    set(socket, tcp, libc::TCP_REPAIR, WITHOUT_A_PROBE)?;
    set(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse)?;
    next
}

/// Reads without waiting, or looks at what there is from the first byte on.
pub(super) fn receive(socket: &OwnedFd, into: &mut [u8], peek: bool) -> rustix::io::Result<usize> {
    let mut flags = RecvFlags::DONTWAIT;
    flags.set(RecvFlags::PEEK, peek);
    rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut *into, flags))
        .map(|(length, _)| length)
}

/// Writes without waiting.
pub(super) fn send(socket: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
    rustix::io::retry_on_intr(|| rustix::net::send(socket, bytes, flags))
}

/// # Safety
/// Every pattern of bits must be a `T`.
unsafe fn get<T>(socket: &impl AsRawFd, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
    // SAFETY: the descriptor is open, and the value is as long as said.
    let status = unsafe {
        let value = value.as_mut_ptr().cast();
        libc::getsockopt(socket.as_raw_fd(), level, name, value, &mut length)
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was zero, and any bits will do.
    Ok(unsafe { value.assume_init() })
}

fn set(
    socket: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
    // SAFETY: the descriptor is open, and the value is as long as said.
    let status = unsafe {
        let value = (&raw const value).cast();
        libc::setsockopt(socket.as_raw_fd(), level, name, value, length)
    };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
