//! One end of a pump: a non-blocking stream socket and the system calls made on it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown};
use rustix::pipe::SpliceFlags;
use socket2::SockRef;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};
use tokio::net::{TcpStream, UnixStream};

use crate::pool::{Pipe, scratch};

/// An owned, connected stream socket in non-blocking mode.
#[derive(Debug)]
pub struct End(Kind);

#[derive(Debug)]
enum Kind {
    /// Watched by the runtime already, and left so: to give it up and take it again costs two
    /// system calls a connection and end.
    Watched(TcpStream),
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
    /// Gives the socket to the runtime that runs the caller.
    pub(crate) fn register(self) -> io::Result<Socket> {
        let fd = match self.0 {
            Kind::Watched(stream) => return Ok(Socket::Tcp(stream)),
            Kind::Other(fd) => fd?,
        };
        // Unix sockets have no such option; nothing is lost there.
        let _ = SockRef::from(&fd).set_tcp_nodelay(true);
        // SAFETY: the socket owns its descriptor, which stays open and the same until it is dropped.
        let fd = unsafe { AsyncFd::register(fd) }.map_err(|error| error.into_parts().1)?;
        Ok(Socket::Other(fd))
    }
}

/// Closes a connection at once with a reset, dropping what has not been sent.
pub fn abort(stream: TcpStream) {
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
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

/// An [`End`] that the runtime watches.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Other(AsyncFd<OwnedFd>),
}

impl Socket {
    /// Waits until there may be something to read, or nothing any more.
    pub(crate) async fn readable(&self) -> io::Result<Ready> {
        self.ready(Interest::READABLE).await
    }

    /// Waits until there may be room.
    pub(crate) async fn writable(&self) -> io::Result<Ready> {
        self.ready(Interest::WRITABLE).await
    }

    /// Ends when the connection has broken: by a reset or by a time-out.
    pub(crate) async fn broken(&self) {
        let _ = self.ready(Interest::ERROR).await;
    }

    async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Self::Tcp(stream) => stream.ready(interest).await,
            Self::Other(fd) => Ok(fd.ready(interest).await?.ready()),
        }
    }

    /// Runs an operation while the socket is believed ready. When the operation says "again", the
    /// belief is given up, unless the socket became ready meanwhile.
    pub(crate) fn attempt<R>(
        &self,
        interest: Interest,
        operation: impl FnOnce(&Self) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        let operation = || operation(self).map_err(io::Error::from);
        let outcome = match self {
            Self::Tcp(stream) => stream.try_io(interest, operation),
            Self::Other(fd) => fd.try_io(interest, |_| operation()),
        };
        // Without a number it is the runtime that has no reason to believe.
        outcome.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| rustix::io::read(self.fd(), &mut *buffer))
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| rustix::io::write(self.fd(), bytes))
    }

    /// Moves what has arrived into an empty pipe.
    pub(crate) fn fill(&self, pipe: &mut Pipe) -> Result<usize, Errno> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = rustix::io::retry_on_intr(|| {
            rustix::pipe::splice(self.fd(), None, pipe.writer(), None, Pipe::SIZE, flags)
        })?;
        pipe.held += moved;
        Ok(moved)
    }

    /// Moves what a pipe holds, or a part of it, to the socket.
    pub(crate) fn drain(&self, pipe: &mut Pipe) -> Result<usize, Errno> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = rustix::io::retry_on_intr(|| {
            rustix::pipe::splice(pipe.reader(), None, self.fd(), None, pipe.held, flags)
        })?;
        pipe.held -= moved;
        Ok(moved)
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish(&self) {
        // A connection that broke meanwhile refuses; `broken` tells.
        let _ = rustix::net::shutdown(self.fd(), Shutdown::Write);
    }

    /// Bytes handed to the kernel that the other side has not confirmed.
    pub(crate) fn unsent(&self) -> usize {
        let mut bytes: libc::c_int = 0;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.fd());
        // SAFETY: the descriptor is open, and the request writes one int.
        let status = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &mut bytes) };
        if status == 0 {
            usize::try_from(bytes).unwrap_or(0)
        } else {
            0
        }
    }

    /// Closes with a reset.
    pub(crate) fn abort(self) {
        let _ = SockRef::from(&self.fd()).set_linger(Some(Duration::ZERO));
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Other(fd) => fd.get_ref().as_fd(),
        }
    }
}
