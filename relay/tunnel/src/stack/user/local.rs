//! The local socket of a flow: reads and writes without waiting, and the waker that lists the flow
//! when more can be done.
//!
//! A socket that took or gave less than it could is empty or full, and is not tried a second time
//! to be told so (epoll(7)); what happens later wakes.

use std::cell::Cell;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendFlags};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::inbox::SocketWaker;
use super::sys::unsent;

/// The socket.
#[derive(Debug)]
pub(super) struct Local {
    stream: TcpStream,
    list: Arc<SocketWaker>,
    waker: Waker,
    /// The runtime was told that there is nothing to read, whether or not.
    aside: Cell<bool>,
}

/// What came of a read or write.
#[derive(Debug)]
pub(super) enum Outcome {
    /// So many bytes, and perhaps more at once.
    More(usize),
    /// So many bytes, and no more now: the waker tells.
    Last(usize),
}

impl Local {
    pub(super) fn new(stream: TcpStream, list: Arc<SocketWaker>) -> Self {
        let waker = Waker::from(Arc::clone(&list));
        Self {
            stream,
            list,
            waker,
            aside: Cell::new(false),
        }
    }

    /// The flow is looked at now.
    pub(super) fn looked(&self) {
        self.list.looked();
    }

    /// Reads what there is; [`Outcome::More`] of 0 bytes is the end.
    pub(super) fn read(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<Outcome> {
        let room: usize = slices.iter().map(|slice| slice.len()).sum();
        let read = || Ok(rustix::io::readv(&self.stream, slices)?);
        self.once(Interest::READABLE, room, read)
    }

    /// Writes what fits.
    pub(super) fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<Outcome> {
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        let write = || {
            let mut control = SendAncillaryBuffer::default();
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            Ok(rustix::net::sendmsg(
                &self.stream,
                slices,
                &mut control,
                flags,
            )?)
        };
        self.once(Interest::WRITABLE, wanted, write)
    }

    /// Tries once. `Last` when the socket is exhausted, and then it wakes.
    fn once(
        &self,
        interest: Interest,
        full: usize,
        mut attempt: impl FnMut() -> io::Result<usize>,
    ) -> io::Result<Outcome> {
        let mut done = None;
        let mut once = || loop {
            match attempt() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) if count > 0 && count < full => {
                    done = Some(count);
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                outcome => return outcome,
            }
        };
        let outcome = match self.aside.get() && interest == Interest::READABLE {
            true => once(),
            false => self.stream.try_io(interest, once),
        };
        match outcome {
            Ok(count) => Ok(Outcome::More(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if interest == Interest::READABLE {
                    self.aside.set(false);
                }
                let count = done.unwrap_or(0);
                match self.watch(interest)? {
                    true => Ok(Outcome::Last(count)),
                    // It became ready meanwhile, or the other side has ended.
                    false if count > 0 => Ok(Outcome::More(count)),
                    false => self.again(interest, attempt),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// The socket would block, and is ready already.
    fn again(
        &self,
        interest: Interest,
        mut attempt: impl FnMut() -> io::Result<usize>,
    ) -> io::Result<Outcome> {
        match self.stream.try_io(interest, &mut attempt) {
            Ok(count) => Ok(Outcome::More(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !self.watch(interest)? {
                    // Another look in the next turn, instead of a third now.
                    self.waker.wake_by_ref();
                }
                Ok(Outcome::Last(0))
            }
            Err(error) => Err(error),
        }
    }

    /// Has the waker told when the socket is ready. False when it is.
    fn watch(&self, interest: Interest) -> io::Result<bool> {
        let mut context = Context::from_waker(&self.waker);
        let ready = match interest == Interest::READABLE {
            true => self.stream.poll_read_ready(&mut context),
            false => self.stream.poll_write_ready(&mut context),
        };
        match ready {
            Poll::Pending => Ok(true),
            Poll::Ready(outcome) => outcome.map(|()| false),
        }
    }

    /// While nothing may be read: has the waker told when something happens to the socket.
    pub(super) fn watch_aside(&self) {
        self.aside.set(true);
        let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _ = self.stream.try_io(Interest::READABLE, nothing);
        let _ = self.watch(Interest::READABLE);
    }

    /// Whether the other side has reset the connection.
    pub(super) fn is_broken(&self) -> bool {
        !matches!(self.stream.take_error(), Ok(None))
    }

    /// Ends the direction to the other side.
    pub(super) fn finish(&self) {
        let _ = SockRef::from(&self.stream).shutdown(std::net::Shutdown::Write);
    }

    /// Whether the other side has confirmed all that was written.
    pub(super) fn is_sent(&self) -> bool {
        unsent(self.stream.as_fd()) == 0
    }

    /// Closes the socket with a reset.
    pub(super) fn reset(self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}
