//! A socket that the runtime watches, and the system calls made on it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::pipe::SpliceFlags;
use socket2::SockRef;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

use super::pool::Pipe;
use crate::end::{End, Kind, reset};

/// An [`End`] that the runtime watches.
pub(super) enum Socket {
    Tcp(TcpStream),
    Other(AsyncFd<OwnedFd>),
}

impl Socket {
    /// Gives an end to the runtime that runs the caller.
    pub(super) fn new(end: End) -> io::Result<Self> {
        let fd = match end.into_kind() {
            Kind::Watched(stream) => return Ok(Self::Tcp(stream)),
            Kind::Other(fd) => fd?,
        };
        // Unix sockets have no such option; nothing is lost there.
        let _ = SockRef::from(&fd).set_tcp_nodelay(true);
        // SAFETY: the socket owns its descriptor, which stays open and the same until it is dropped.
        let fd = unsafe { AsyncFd::register(fd) }.map_err(|error| error.into_parts().1)?;
        Ok(Self::Other(fd))
    }

    /// Its descriptor, which the runtime no longer watches.
    pub(super) fn into_descriptor(self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(stream) => Ok(stream.into_std()?.into()),
            Self::Other(fd) => Ok(fd.into_inner()),
        }
    }

    /// Waits until there may be something to read, or nothing any more.
    pub(super) async fn readable(&self) -> io::Result<Ready> {
        self.ready(Interest::READABLE).await
    }

    /// Waits until there may be room.
    pub(super) async fn writable(&self) -> io::Result<Ready> {
        self.ready(Interest::WRITABLE).await
    }

    /// Ends when the connection has broken: by a reset or by a time-out.
    pub(super) async fn broken(&self) {
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
    pub(super) fn attempt<R>(
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

    pub(super) fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| rustix::io::read(self.fd(), &mut *buffer))
    }

    pub(super) fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| rustix::io::write(self.fd(), bytes))
    }

    /// Moves what has arrived into an empty pipe.
    pub(super) fn fill(&self, pipe: &mut Pipe) -> Result<usize, Errno> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = rustix::io::retry_on_intr(|| {
            rustix::pipe::splice(self.fd(), None, pipe.writer(), None, Pipe::SIZE, flags)
        })?;
        pipe.held += moved;
        Ok(moved)
    }

    /// Moves what a pipe holds, or a part of it, to the socket.
    pub(super) fn drain(&self, pipe: &mut Pipe) -> Result<usize, Errno> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = rustix::io::retry_on_intr(|| {
            rustix::pipe::splice(pipe.reader(), None, self.fd(), None, pipe.held, flags)
        })?;
        pipe.held -= moved;
        Ok(moved)
    }

    /// Says that nothing more will be sent.
    pub(super) fn finish(&self) {
        // A connection that broke meanwhile refuses; `broken` tells.
        let _ = rustix::net::shutdown(self.fd(), Shutdown::Write);
    }

    /// Closes with a reset.
    pub(super) fn abort(self) {
        reset(&self);
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Other(fd) => fd.get_ref().as_fd(),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}
