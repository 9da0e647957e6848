//! The engine of readiness: epoll, by way of the runtime, says which socket is ready; the bytes are
//! moved by `read` and `write`, or by `splice` once there are many.
//!
//! Readiness of a socket is given up only after the kernel said "would block" *after* the
//! readiness was looked at, so no wake-up can be lost. Bytes that were read and that the other side
//! did not take are kept by the direction which read them, and go on when it is writable again.

mod pool;
mod socket;

use std::pin::pin;
use std::sync::atomic::AtomicU64;

use rustix::io::Errno;
use tokio::io::Interest;

pub(crate) use pool::scratch;

use crate::end::{End, all_sent};
use crate::pump::{Carrier, Ending, GRACE, Moved, Side, count};
use pool::{Buffer, Pipe, SHORT};
use socket::Socket;

/// Bytes moved before other tasks of the thread get their turn.
const TURN: usize = 1 << 20;

/// The engine.
pub(crate) struct Epoll {
    /// Whether many bytes at once go through a pipe.
    pub(crate) splice: bool,
}

impl Carrier for Epoll {
    async fn carry(self, a: End, b: End, moved: &Moved) -> Ending {
        let (a, b) = match (Socket::new(a), Socket::new(b)) {
            (Ok(a), Ok(b)) => (a, b),
            (Err(_), Ok(b)) => {
                b.abort();
                return Ending::Reset(Side::A);
            }
            (a, Err(_)) => {
                if let Ok(a) = a {
                    a.abort();
                }
                return Ending::Reset(Side::B);
            }
        };
        let ending = run(&a, &b, self.splice, moved).await;
        match ending {
            Ending::Finished => {}
            Ending::Reset(Side::A) => b.abort(),
            Ending::Reset(Side::B) => a.abort(),
        }
        ending
    }
}

async fn run(a: &Socket, b: &Socket, may_splice: bool, moved: &Moved) -> Ending {
    let mut up = pin!(transfer(a, b, may_splice, moved.of(Side::A)));
    let mut down = pin!(transfer(b, a, may_splice, moved.of(Side::B)));
    let (mut up_done, mut down_done) = (false, false);
    let broken = loop {
        tokio::select! {
            biased;
            result = &mut up, if !up_done => {
                up_done = true;
                match result {
                    // When both are done, closing says so.
                    Ok(()) if !down_done => b.finish(),
                    Ok(()) => {}
                    Err(Fault::Source) => break Side::A,
                    Err(Fault::Sink) => break Side::B,
                }
            }
            result = &mut down, if !down_done => {
                down_done = true;
                match result {
                    Ok(()) if !up_done => a.finish(),
                    Ok(()) => {}
                    Err(Fault::Source) => break Side::B,
                    Err(Fault::Sink) => break Side::A,
                }
            }
            () = a.broken() => break Side::A,
            () = b.broken() => break Side::B,
        }
        if up_done && down_done {
            return Ending::Finished;
        }
    };
    // What the broken side had sent before is still to be had, and the other side should get it.
    let rest = async {
        let other = match broken {
            Side::A => {
                if !up_done {
                    let _ = up.await;
                }
                b
            }
            Side::B => {
                if !down_done {
                    let _ = down.await;
                }
                a
            }
        };
        all_sent(other).await;
    };
    let _ = tokio::time::timeout(GRACE, rest).await;
    Ending::Reset(broken)
}

/// Which end of a direction broke.
#[derive(Debug)]
enum Fault {
    Source,
    Sink,
}

/// What became of a burst.
enum Burst {
    /// Nothing more to read for now; this much was moved.
    Drained(usize),
    /// The source is at its end.
    End,
    /// These sockets cannot be spliced.
    Unsupported,
}

/// One direction, to its end.
async fn transfer(
    from: &Socket,
    to: &Socket,
    mut may_splice: bool,
    moved: &AtomicU64,
) -> Result<(), Fault> {
    let mut bulk = false;
    loop {
        let burst = if bulk {
            match may_splice.then(Pipe::take).flatten() {
                Some(pipe) => splice_burst(from, to, pipe, moved).await?,
                None => copy_burst(from, to, moved).await?,
            }
        } else {
            short_burst(from, to, moved).await?
        };
        match burst {
            Burst::Drained(bytes) => bulk = bytes >= SHORT,
            Burst::End => return Ok(()),
            Burst::Unsupported => may_splice = false,
        }
    }
}

/// One message. A full scratch buffer means that more is likely, and ends the burst as well.
async fn short_burst(from: &Socket, to: &Socket, moved: &AtomicU64) -> Result<Burst, Fault> {
    let ready = from.readable().await.map_err(|_| Fault::Source)?;
    let may_empty = !ready.is_read_closed();
    let attempt = scratch(|scratch| {
        let read = match read_short(from, scratch, may_empty) {
            Ok(0) => return Ok(None),
            Ok(read) => read,
            Err(error) => return Err((error, Fault::Source)),
        };
        match to.write(&scratch[..read]) {
            Ok(written) if written == read => Ok(Some((read, Vec::new()))),
            Ok(written) => Ok(Some((read, scratch[written..read].to_vec()))),
            Err(Errno::AGAIN) => Ok(Some((read, scratch[..read].to_vec()))),
            Err(error) => Err((error, Fault::Sink)),
        }
    });
    match attempt {
        Ok(None) => Ok(Burst::End),
        Ok(Some((read, left))) => {
            if !left.is_empty() {
                write_all(to, &left).await?;
            }
            count(moved, read);
            Ok(Burst::Drained(read))
        }
        Err((Errno::AGAIN, Fault::Source)) => Ok(Burst::Drained(0)),
        Err((_, fault)) => Err(fault),
    }
}

/// Reads once. A stream that gives less than was asked for is empty, so the next look at it would
/// be for nothing (epoll(7)); what comes meanwhile makes it ready anew. Not so at the stream's end,
/// which is not told a second time.
fn read_short(from: &Socket, scratch: &mut [u8], may_empty: bool) -> Result<usize, Errno> {
    let mut got = None;
    let outcome = from.attempt(Interest::READABLE, |from| {
        let read = from.read(scratch)?;
        got = Some(read);
        if may_empty && read > 0 && read < SHORT {
            return Err(Errno::AGAIN);
        }
        Ok(read)
    });
    match got {
        Some(read) => Ok(read),
        None => outcome,
    }
}

/// Moves all that is there through a pipe.
async fn splice_burst(
    from: &Socket,
    to: &Socket,
    mut pipe: Pipe,
    moved: &AtomicU64,
) -> Result<Burst, Fault> {
    let mut total = 0;
    let mut turn = 0;
    loop {
        from.readable().await.map_err(|_| Fault::Source)?;
        match from.attempt(Interest::READABLE, |from| from.fill(&mut pipe)) {
            Ok(0) => return Ok(Burst::End),
            Ok(bytes) => {
                drain(to, &mut pipe).await?;
                count(moved, bytes);
                total += bytes;
                turn += bytes;
            }
            Err(Errno::AGAIN) => return Ok(Burst::Drained(total)),
            Err(Errno::INVAL) => return Ok(Burst::Unsupported),
            Err(_) => return Err(Fault::Source),
        }
        take_turns(&mut turn).await;
    }
}

/// Moves all that is there through a buffer.
async fn copy_burst(from: &Socket, to: &Socket, moved: &AtomicU64) -> Result<Burst, Fault> {
    let mut buffer = Buffer::take();
    let mut total = 0;
    let mut turn = 0;
    loop {
        from.readable().await.map_err(|_| Fault::Source)?;
        match from.attempt(Interest::READABLE, |from| from.read(&mut buffer)) {
            Ok(0) => return Ok(Burst::End),
            Ok(bytes) => {
                write_all(to, &buffer[..bytes]).await?;
                count(moved, bytes);
                total += bytes;
                turn += bytes;
            }
            Err(Errno::AGAIN) => return Ok(Burst::Drained(total)),
            Err(_) => return Err(Fault::Source),
        }
        take_turns(&mut turn).await;
    }
}

async fn drain(to: &Socket, pipe: &mut Pipe) -> Result<(), Fault> {
    while pipe.held > 0 {
        match to.drain(pipe) {
            Ok(_) => {}
            Err(Errno::AGAIN) => {
                to.writable().await.map_err(|_| Fault::Sink)?;
                match to.attempt(Interest::WRITABLE, |to| to.drain(pipe)) {
                    Ok(_) | Err(Errno::AGAIN) => {}
                    Err(_) => return Err(Fault::Sink),
                }
            }
            Err(_) => return Err(Fault::Sink),
        }
    }
    Ok(())
}

async fn write_all(to: &Socket, mut bytes: &[u8]) -> Result<(), Fault> {
    while !bytes.is_empty() {
        to.writable().await.map_err(|_| Fault::Sink)?;
        match to.attempt(Interest::WRITABLE, |to| to.write(bytes)) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::AGAIN) => {}
            Err(_) => return Err(Fault::Sink),
        }
    }
    Ok(())
}

async fn take_turns(turn: &mut usize) {
    if *turn >= TURN {
        *turn = 0;
        tokio::task::yield_now().await;
    }
}
