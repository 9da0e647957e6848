//! One end of a pump: a stream socket that is given to an engine.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::RecvFlags;
use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};

use crate::epoll::scratch;
use crate::pump::Side;

/// An owned, connected stream socket in non-blocking mode.
#[derive(Debug)]
pub struct End(Kind);

/// What an end is made of.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Watched by the runtime already, and left so: to give it up and take it again costs two
    /// system calls a connection and end.
    Watched(TcpStream),
    /// In non-blocking mode.
    Other(io::Result<OwnedFd>),
}

/// The caller has decided about `TCP_NODELAY`.
impl From<TcpStream> for End {
    fn from(stream: TcpStream) -> Self {
        Self(Kind::Watched(stream))
    }
}

impl From<UnixStream> for End {
    fn from(stream: UnixStream) -> Self {
        Self(Kind::Other(stream.into_std().map(OwnedFd::from)))
    }
}

/// The descriptor must be a stream socket.
impl From<OwnedFd> for End {
    fn from(fd: OwnedFd) -> Self {
        Self(Kind::Other(
            rustix::io::ioctl_fionbio(&fd, true)
                .map(|()| fd)
                .map_err(io::Error::from),
        ))
    }
}

impl End {
    /// Its descriptor, unless there is none.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            Kind::Watched(stream) => Some(stream.as_fd()),
            Kind::Other(fd) => Some(fd.as_ref().ok()?.as_fd()),
        }
    }

    fn descriptor(self) -> io::Result<OwnedFd> {
        match self.0 {
            Kind::Watched(stream) => Ok(stream.into_std()?.into()),
            Kind::Other(fd) => {
                let fd = fd?;
                // Unix sockets have no such option; nothing is lost there.
                let _ = SockRef::from(&fd).set_tcp_nodelay(true);
                Ok(fd)
            }
        }
    }

    pub(crate) fn into_kind(self) -> Kind {
        self.0
    }
}

/// Both as descriptors, in non-blocking mode. When one of them is none the other is reset.
///
/// # Errors
/// Which one that is.
pub(crate) fn descriptors(a: End, b: End) -> Result<[OwnedFd; 2], Side> {
    match (a.descriptor(), b.descriptor()) {
        (Ok(a), Ok(b)) => Ok([a, b]),
        (Err(_), b) => {
            b.into_iter().for_each(reset);
            Err(Side::A)
        }
        (Ok(a), Err(_)) => {
            reset(a);
            Err(Side::B)
        }
    }
}

/// Closes a connection at once with a reset, dropping what has not been sent.
pub fn abort(stream: TcpStream) {
    reset(stream);
}

/// Closes a socket with a reset.
pub(crate) fn reset(socket: impl AsFd) {
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}

/// Waits until the other side has confirmed all that was handed to the kernel.
pub(crate) async fn all_sent(socket: &impl AsFd) {
    while unsent(socket) > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Bytes handed to the kernel that the other side has not confirmed.
pub(crate) fn unsent(socket: &impl AsFd) -> usize {
    let mut bytes: libc::c_int = 0;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open, and the request writes one int.
    let status = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &mut bytes) };
    if status == 0 {
        usize::try_from(bytes).unwrap_or(0)
    } else {
        0
    }
}

/// The first of the bytes that have arrived, left where they are; `WouldBlock` when there are none.
pub fn peek(stream: &TcpStream, most: usize) -> io::Result<Vec<u8>> {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    scratch(|scratch| {
        let room = most.min(scratch.len());
        let buffer = &mut scratch[..room];
        let (length, _) =
            rustix::io::retry_on_intr(|| rustix::net::recv(stream, &mut *buffer, flags))?;
        Ok(buffer[..length].to_vec())
    })
}
