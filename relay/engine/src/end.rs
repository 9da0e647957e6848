//! One end of a pump: a non-blocking stream socket and the system calls made on it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::pipe::SpliceFlags;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::net::{TcpStream, UnixStream};

use crate::pool::Pipe;

/// An owned, connected stream socket in non-blocking mode.
#[derive(Debug)]
pub struct End(io::Result<OwnedFd>);

impl From<TcpStream> for End {
    fn from(stream: TcpStream) -> Self {
        Self(stream.into_std().map(OwnedFd::from))
    }
}

impl From<UnixStream> for End {
    fn from(stream: UnixStream) -> Self {
        Self(stream.into_std().map(OwnedFd::from))
    }
}

/// The descriptor must be a stream socket.
impl From<OwnedFd> for End {
    fn from(fd: OwnedFd) -> Self {
        Self(
            rustix::io::ioctl_fionbio(&fd, true)
                .map(|()| fd)
                .map_err(io::Error::from),
        )
    }
}

impl End {
    /// Gives the socket to the runtime that runs the caller.
    pub(crate) fn register(self) -> io::Result<Socket> {
        let fd = self.0?;
        // Unix sockets have no such option; nothing is lost there.
        let _ = SockRef::from(&fd).set_tcp_nodelay(true);
        // SAFETY: the socket owns its descriptor, which stays open and the same until it is dropped.
        let fd = unsafe { AsyncFd::register(fd) }.map_err(|error| error.into_parts().1)?;
        Ok(Socket(fd))
    }
}

/// Closes a connection at once with a reset, dropping what has not been sent.
pub fn abort(stream: TcpStream) {
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

/// An [`End`] that the runtime watches.
pub(crate) struct Socket(AsyncFd<OwnedFd>);

pub(crate) type Ready<'a> = AsyncFdReadyGuard<'a, OwnedFd>;

impl Socket {
    pub(crate) async fn readable(&self) -> io::Result<Ready<'_>> {
        self.0.readable().await
    }

    pub(crate) async fn writable(&self) -> io::Result<Ready<'_>> {
        self.0.writable().await
    }

    /// Ends when the connection has broken: by a reset or by a time-out.
    pub(crate) async fn broken(&self) {
        let _ = self.0.ready(Interest::ERROR).await;
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
        let _ = SockRef::from(self.0.get_ref()).set_linger(Some(Duration::ZERO));
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
