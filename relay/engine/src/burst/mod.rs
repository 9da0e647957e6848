//! Datagrams of applications in bursts: many in one system call, both ways (`recvmmsg` and
//! `UDP_GRO`, `UDP_SEGMENT`).
//!
//! What is sent as a burst arrives as the single datagrams that it is made of.

mod sys;
#[cfg(test)]
mod tests;

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsFd;

use bytes::Bytes;
use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGroSegment;
use tokio::io::Interest;
use tokio::net::UdpSocket;

pub use sys::{Message, receive, send};

/// Datagrams that one send takes. The receive buffer that an application has by default holds about
/// three times as many of 1,500 bytes; what exceeds it at once is lost however fast it reads.
const SEGMENTS: usize = 32;
/// Bytes that one send takes: the payload of the largest IPv4 datagram.
const BYTES: usize = 65_507;
/// Messages that one receive takes.
const MESSAGES: usize = 16;
/// Room for each: the largest datagram, or burst that the kernel has kept together.
const ROOM: usize = 65_536;

/// Lets the kernel hand over bursts as they were sent. Whoever reads the socket has to do it by
/// [`Inbox`]. Where the kernel does not know it nothing is lost but speed.
pub fn merge(socket: &impl AsFd) {
    let _ = setsockopt(socket, UdpGroSegment, &true);
}

/// Where datagrams are received; one does for all sockets of a thread.
#[derive(Debug, Default)]
pub struct Inbox {
    data: Vec<u8>,
}

impl Inbox {
    /// Takes what waits at a socket, 16 messages at most, and hands out each datagram with
    /// its sender.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing, and what the kernel tells of earlier sends.
    pub fn receive(
        &mut self,
        socket: &UdpSocket,
        mut each: impl FnMut(SocketAddr, &[u8]),
    ) -> io::Result<()> {
        if self.data.is_empty() {
            self.data = vec![0; ROOM * MESSAGES];
        }
        let mut messages = [None; MESSAGES];
        let mut count = 0;
        let outcome = socket.try_io(Interest::READABLE, || {
            count = receive(socket.as_fd(), &mut self.data, ROOM, &mut messages)?;
            match count {
                MESSAGES => Ok(()),
                // It is empty, and needs no further look to know that.
                _ => Err(io::ErrorKind::WouldBlock.into()),
            }
        });
        if count == 0 {
            return outcome;
        }
        for (message, data) in messages.iter().take(count).zip(self.data.chunks(ROOM)) {
            let Some(message) = message else { continue };
            match &data[..message.len] {
                [] => each(message.from, &[]),
                data => {
                    for datagram in data.chunks(message.segment) {
                        each(message.from, datagram);
                    }
                }
            }
        }
        Ok(())
    }
}

/// How datagrams are sent from one socket to one application.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// Bursts failed on this way although their datagrams alone went through.
    plain: bool,
}

impl Outgoing {
    /// Sends the first of `payloads`, with as many more as go with it in one call, to `to` or to where
    /// the socket is connected. Returns how many went, one at least; `payloads` must not be empty.
    ///
    /// # Errors
    /// As sendmsg(2), of the first.
    pub fn send(
        &mut self,
        socket: &UdpSocket,
        to: Option<SocketAddr>,
        payloads: &[Bytes],
    ) -> io::Result<usize> {
        let count = if self.plain { 1 } else { run(payloads) };
        let (fd, mut parts) = (socket.as_fd(), [IoSlice::new(&[]); SEGMENTS]);
        for (part, payload) in parts.iter_mut().zip(&payloads[..count]) {
            *part = IoSlice::new(payload);
        }
        if count > 1 {
            // A run is no longer than a datagram, nor are its parts.
            let segment = payloads[0].len() as u16;
            match send(fd, to, &parts[..count], segment) {
                Ok(_) => return Ok(count),
                Err(error) if !may_be_the_offload(&error) => return Err(error),
                Err(_) => {}
            }
        }
        send(fd, to, &parts[..1], 0)?;
        self.plain |= count > 1;
        Ok(1)
    }
}

/// How many of `payloads` can go in one send: of equal size, but for the last that may be shorter.
fn run(payloads: &[Bytes]) -> usize {
    let segment = payloads[0].len();
    // A burst of empty datagrams cannot be told from one of them.
    let most = SEGMENTS.min(BYTES.checked_div(segment).unwrap_or(1));
    let equal = |payload: &&Bytes| payload.len() == segment;
    let count = payloads.iter().take(most).take_while(equal).count().max(1);
    match payloads.get(count) {
        Some(last) if count < most && (1..segment).contains(&last.len()) => count + 1,
        _ => count,
    }
}

/// Whether a failed send of a burst may go through in single datagrams.
pub fn may_be_the_offload(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP)
    )
}
