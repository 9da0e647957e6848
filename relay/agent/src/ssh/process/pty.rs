//! Pseudo-terminals.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use relay_wire::terminal;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::sys;
use crate::ssh::proto::codec::Reader;

/// What a client says of its terminal (RFC 4254 §6.2).
#[derive(Debug)]
pub(in crate::ssh) struct Asked {
    /// The value of `TERM`.
    pub(in crate::ssh) term: String,
    size: Winsize,
    modes: Vec<u8>,
}

impl Asked {
    /// Reads the particulars of a `pty-req`.
    pub(in crate::ssh) fn parse(data: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(data);
        let term = reader.text().ok()?.to_owned();
        let size = read_size(&mut reader)?;
        let modes = reader.string().ok()?.to_vec();
        Some(Self { term, size, modes })
    }

    /// The window changed before there was a program.
    pub(in crate::ssh) fn resize(&mut self, size: Winsize) {
        self.size = size;
    }
}

/// Reads the particulars of a `window-change`.
pub(in crate::ssh) fn size(data: &[u8]) -> Option<Winsize> {
    read_size(&mut Reader::new(data))
}

fn read_size(reader: &mut Reader<'_>) -> Option<Winsize> {
    let mut next = || Some(u16::try_from(reader.u32().ok()?).unwrap_or(u16::MAX));
    Some(Winsize {
        ws_col: next()?,
        ws_row: next()?,
        ws_xpixel: next()?,
        ws_ypixel: next()?,
    })
}

/// The side of a pseudo-terminal that is not the program's.
#[derive(Clone, Debug)]
pub(in crate::ssh) struct Pty(Arc<AsyncFd<OwnedFd>>);

/// Opens a terminal as the client wants it: this side, the program's side and its path.
pub(in crate::ssh) fn open(asked: &Asked) -> io::Result<(Pty, OwnedFd, String)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let path = ptsname(&ours, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = rustix::fs::open(&path, flags, Mode::empty())?;
    set_modes(theirs.as_fd(), &asked.modes)?;
    tcsetwinsize(&ours, asked.size)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    let ours = sys::watch(ours)?;
    let path = path.to_string_lossy().into_owned();
    Ok((Pty(Arc::new(ours)), theirs, path))
}

/// Makes a terminal behave as the client's does.
fn set_modes(terminal: BorrowedFd<'_>, encoded: &[u8]) -> io::Result<()> {
    let mut modes = tcgetattr(terminal)?;
    terminal::apply(encoded, &mut modes);
    Ok(tcsetattr(terminal, OptionalActions::Now, &modes)?)
}

impl Pty {
    /// Tells the program that its window has another size.
    pub(in crate::ssh) fn resize(&self, size: Winsize) {
        // A terminal without a program has nobody to tell.
        let _ = tcsetwinsize(self.0.get_ref(), size);
    }
}

impl AsyncRead for Pty {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let room = into.initialize_unfilled();
            let read = guard.try_io(|pty| match rustix::io::read(pty.get_ref(), &mut *room) {
                // Nobody has the other side open any more: that is the end.
                Err(Errno::IO) => Ok(0),
                other => other.map_err(io::Error::from),
            });
            if let Ok(read) = read {
                return Poll::Ready(read.map(|count| into.advance(count)));
            }
        }
    }
}

impl AsyncWrite for Pty {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            let write = |pty: &AsyncFd<OwnedFd>| {
                rustix::io::write(pty.get_ref(), bytes).map_err(io::Error::from)
            };
            if let Ok(written) = guard.try_io(write) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A terminal has no half that could be closed.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
