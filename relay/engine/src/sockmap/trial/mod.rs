//! The trial of the engine: that bytes arrive whole, that a far end which does not read holds the
//! sender back, and that bytes which come twice are sent on once ([`overlap`]).

mod overlap;
mod tun;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::driver::Driver;
use super::flow::Outcome;
use crate::pump::{Ending, Moved};

/// Much longer than anything in the trial takes.
const PATIENCE: Duration = Duration::from_secs(5);
/// A sender that gets nothing rid of for so long is held back.
const HELD_BACK: Duration = Duration::from_millis(20);
/// What a far end that does not read must not have taken in.
const SWALLOWED: usize = 40 << 20;
/// What is sent once it reads.
const MORE: usize = 24 << 20;
const BLOCK: usize = 256 << 10;

/// Tries the engine; takes some tens of milliseconds.
///
/// # Errors
/// What did not work, in words.
pub(super) fn run(driver: &Driver) -> Result<(), String> {
    // Not in the caller's thread: it may belong to a runtime, and one part changes the namespace.
    let on_its_own = |part: fn(&Driver) -> Result<(), String>| {
        thread::scope(|scope| {
            let tried = scope.spawn(|| part(driver)).join();
            tried.unwrap_or_else(|_| Err("the trial broke off".to_owned()))
        })
    };
    on_its_own(hold_back)?;
    on_its_own(overlap::run)
}

/// Sends against a reader that sleeps, then to its end, and an answer back.
fn hold_back(driver: &Driver) -> Result<(), String> {
    let failed = |error: io::Error| format!("bytes do not get through ({error})");
    let (mut near, a) = pair().map_err(failed)?;
    let (b, mut far) = pair().map_err(failed)?;
    let (order, outcome) = carry(driver, a, b)?;
    let swallowed = write_until_held_back(&mut near).map_err(failed)?;
    if swallowed >= SWALLOWED {
        return Err("a reader that sleeps does not hold its sender back".to_owned());
    }
    let total = swallowed + MORE;
    let (sent, got) = thread::scope(|scope| {
        let sender = scope.spawn(|| send(&mut near, swallowed, total));
        let got = check(&mut far, total);
        (sender.join(), got)
    });
    sent.unwrap_or_else(|_| Err(ErrorKind::Other.into()))
        .map_err(failed)?;
    if !got.map_err(failed)? {
        return Err("bytes do not arrive as they were sent".to_owned());
    }
    far.write_all(b"answer").map_err(failed)?;
    drop(far);
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).map_err(failed)?;
    drop(near);
    let outcome = outcome.blocking_recv();
    order.close();
    match outcome {
        Ok(Ok(Ending::Finished)) if answer == b"answer" => Ok(()),
        _ => Err("the end of a connection is not carried".to_owned()),
    }
}

/// Hands two sockets to the driver.
fn carry(
    driver: &Driver,
    a: TcpStream,
    b: TcpStream,
) -> Result<
    (
        super::driver::Order<'_>,
        tokio::sync::oneshot::Receiver<Outcome>,
    ),
    String,
> {
    for end in [&a, &b] {
        let set = end.set_nonblocking(true);
        set.map_err(|error| format!("a socket cannot be prepared ({error})"))?;
    }
    let carried = driver.carry([a.into(), b.into()], [0; 2], Moved::default());
    carried.map_err(|_| "its thread has ended".to_owned())
}

/// The byte at a place of the stream.
fn pattern(place: usize) -> u8 {
    (place ^ place >> 8 ^ place >> 16) as u8
}

fn fill(block: &mut [u8], place: usize) {
    for (offset, byte) in block.iter_mut().enumerate() {
        *byte = pattern(place + offset);
    }
}

fn write_until_held_back(to: &mut TcpStream) -> io::Result<usize> {
    to.set_write_timeout(Some(HELD_BACK))?;
    let mut block = vec![0; BLOCK];
    let mut written = 0;
    while written < SWALLOWED {
        fill(&mut block, written);
        match to.write(&block) {
            Ok(length) => written += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    to.set_write_timeout(Some(PATIENCE))?;
    Ok(written)
}

/// Sends the stream from a place to its end.
fn send(to: &mut TcpStream, mut place: usize, total: usize) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    while place < total {
        let length = block.len().min(total - place);
        fill(&mut block[..length], place);
        to.write_all(&block[..length])?;
        place += length;
    }
    to.shutdown(Shutdown::Write)
}

/// Whether exactly the stream arrives.
fn check(from: &mut TcpStream, total: usize) -> io::Result<bool> {
    let mut block = vec![0; BLOCK];
    let mut place = 0;
    loop {
        let read = from.read(&mut block)?;
        if read == 0 {
            return Ok(place == total);
        }
        let is_right = (0..read).all(|offset| block[offset] == pattern(place + offset));
        place += read;
        if !is_right || place > total {
            return Ok(false);
        }
    }
}

/// A connection within this machine.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let ours = TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE)?;
    let from = ours.local_addr()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (accepted, peer) = listener.accept()?;
        if peer == from {
            for stream in [&ours, &accepted] {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
            }
            return Ok((ours, accepted));
        }
        if Instant::now() > deadline {
            return Err(ErrorKind::TimedOut.into());
        }
    }
}
