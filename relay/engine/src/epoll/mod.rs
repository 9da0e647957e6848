//! The engine of readiness: epoll, by way of the runtime, says which socket is ready; the bytes are
//! moved by `read` and `write`, or by `splice` once there are many.
//!
//! Readiness of a socket is given up only after the kernel said "would block" *after* the
//! readiness was looked at, so no wake-up can be lost. Bytes that were read and that the other side
//! did not take are kept by the direction which read them, and go on when it is writable again.

mod pace;
mod pool;
mod socket;

use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::atomic::AtomicU64;

use rustix::io::Errno;
use tokio::io::Interest;

pub(crate) use pool::scratch;

use crate::end::{End, all_sent, reset};
use crate::pump::{Carrier, Ending, GRACE, Moved, Side, count};
use pace::{Course, Pace};
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
        let (a, b) = match sockets(a, b) {
            Ok(ends) => ends,
            Err(broken) => return Ending::Reset(broken),
        };
        match run(&a, &b, self.splice, moved, None).await {
            Some(ending) => end(ending, a, b),
            // Nobody asked for it.
            None => Ending::Finished,
        }
    }
}

/// Carries by `splice` until so many bytes have gone one way in a short time, and gives the sockets
/// back then, with nothing on its way between them.
pub(crate) async fn carry_until_bulk(
    a: End,
    b: End,
    moved: &Moved,
    bulk: u64,
) -> Result<Ending, [OwnedFd; 2]> {
    let (a, b) = match sockets(a, b) {
        Ok(ends) => ends,
        Err(broken) => return Ok(Ending::Reset(broken)),
    };
    match run(&a, &b, true, moved, Some(bulk)).await {
        Some(ending) => Ok(end(ending, a, b)),
        None => match (a.into_descriptor(), b.into_descriptor()) {
            (Ok(a), Ok(b)) => Err([a, b]),
            (Err(_), b) => {
                b.into_iter().for_each(reset);
                Ok(Ending::Reset(Side::A))
            }
            (Ok(a), Err(_)) => {
                reset(a);
                Ok(Ending::Reset(Side::B))
            }
        },
    }
}

/// Both ends, watched by the runtime. When one of them cannot be the other is reset.
fn sockets(a: End, b: End) -> Result<(Socket, Socket), Side> {
    match (Socket::new(a), Socket::new(b)) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(_), Ok(b)) => {
            b.abort();
            Err(Side::A)
        }
        (a, Err(_)) => {
            if let Ok(a) = a {
                a.abort();
            }
            Err(Side::B)
        }
    }
}

/// Closes both sockets as the ending says.
fn end(ending: Ending, a: Socket, b: Socket) -> Ending {
    match ending {
        Ending::Finished => {}
        Ending::Reset(Side::A) => b.abort(),
        Ending::Reset(Side::B) => a.abort(),
    }
    ending
}

/// Carries to the end; or, with `bulk`, until so much has gone one way that it is to be carried
/// otherwise.
async fn run(
    a: &Socket,
    b: &Socket,
    may_splice: bool,
    moved: &Moved,
    bulk: Option<u64>,
) -> Option<Ending> {
    let [there, back] = [(); 2].map(|()| Course::default());
    let mut up = pin!(transfer(
        a,
        b,
        may_splice,
        moved.of(Side::A),
        Pace::new(bulk, &there, &back)
    ));
    let mut down = pin!(transfer(
        b,
        a,
        may_splice,
        moved.of(Side::B),
        Pace::new(bulk, &back, &there)
    ));
    let (mut up_done, mut down_done) = (false, false);
    let broken = loop {
        tokio::select! {
            biased;
            result = &mut up, if !up_done => {
                up_done = true;
                match result {
                    Ok(Stop::Bulk) => return None,
                    // When both are done, closing says so.
                    Ok(Stop::End) if !down_done => b.finish(),
                    Ok(Stop::End) => {}
                    Err(Fault::Source) => break Side::A,
                    Err(Fault::Sink) => break Side::B,
                }
            }
            result = &mut down, if !down_done => {
                down_done = true;
                match result {
                    Ok(Stop::Bulk) => return None,
                    Ok(Stop::End) if !up_done => a.finish(),
                    Ok(Stop::End) => {}
                    Err(Fault::Source) => break Side::B,
                    Err(Fault::Sink) => break Side::A,
                }
            }
            () = a.broken() => break Side::A,
            () = b.broken() => break Side::B,
        }
        if up_done && down_done {
            return Some(Ending::Finished);
        }
    };
    // What the broken side had sent before is still to be had, and the other side should get it.
    there.is_over();
    back.is_over();
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
    Some(Ending::Reset(broken))
}

/// Which end of a direction broke.
#[derive(Debug)]
enum Fault {
    Source,
    Sink,
}

/// How a direction stops.
enum Stop {
    End,
    /// The connection is to be carried otherwise.
    Bulk,
}

/// What became of a burst.
enum Burst {
    /// Nothing more to read for now; this much was moved.
    Drained(usize),
    /// The source is at its end.
    End,
    /// The connection is to be carried otherwise.
    Bulk,
    /// These sockets cannot be spliced.
    Unsupported,
}

/// One direction, to its end.
async fn transfer(
    from: &Socket,
    to: &Socket,
    mut may_splice: bool,
    moved: &AtomicU64,
    mut pace: Pace<'_>,
) -> Result<Stop, Fault> {
    let mut bulk = false;
    loop {
        let burst = if bulk {
            match may_splice.then(Pipe::take).flatten() {
                Some(pipe) => splice_burst(from, to, pipe, moved, &mut pace).await?,
                None => copy_burst(from, to, moved, &mut pace).await?,
            }
        } else {
            short_burst(from, to, moved, &pace).await?
        };
        match burst {
            Burst::Drained(bytes) => bulk = bytes >= SHORT,
            Burst::End => {
                pace.ends();
                return Ok(Stop::End);
            }
            Burst::Bulk => return Ok(Stop::Bulk),
            Burst::Unsupported => may_splice = false,
        }
    }
}

/// One message. A full scratch buffer means that more is likely, and ends the burst as well.
async fn short_burst(
    from: &Socket,
    to: &Socket,
    moved: &AtomicU64,
    pace: &Pace<'_>,
) -> Result<Burst, Fault> {
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
                pace.holds(true);
                write_all(to, &left).await?;
                pace.holds(false);
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
    pace: &mut Pace<'_>,
) -> Result<Burst, Fault> {
    let mut total = 0;
    let mut turn = 0;
    loop {
        from.readable().await.map_err(|_| Fault::Source)?;
        match from.attempt(Interest::READABLE, |from| from.fill(&mut pipe)) {
            Ok(0) => return Ok(Burst::End),
            Ok(bytes) => {
                pace.holds(true);
                drain(to, &mut pipe).await?;
                pace.holds(false);
                count(moved, bytes);
                total += bytes;
                turn += bytes;
                if pace.is_bulk(bytes) {
                    return Ok(Burst::Bulk);
                }
            }
            Err(Errno::AGAIN) => return Ok(Burst::Drained(total)),
            Err(Errno::INVAL) => return Ok(Burst::Unsupported),
            Err(_) => return Err(Fault::Source),
        }
        take_turns(&mut turn).await;
    }
}

/// Moves all that is there through a buffer.
async fn copy_burst(
    from: &Socket,
    to: &Socket,
    moved: &AtomicU64,
    pace: &mut Pace<'_>,
) -> Result<Burst, Fault> {
    let mut buffer = Buffer::take();
    let mut total = 0;
    let mut turn = 0;
    loop {
        from.readable().await.map_err(|_| Fault::Source)?;
        match from.attempt(Interest::READABLE, |from| from.read(&mut buffer)) {
            Ok(0) => return Ok(Burst::End),
            Ok(bytes) => {
                pace.holds(true);
                write_all(to, &buffer[..bytes]).await?;
                pace.holds(false);
                count(moved, bytes);
                total += bytes;
                turn += bytes;
                if pace.is_bulk(bytes) {
                    return Ok(Burst::Bulk);
                }
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
