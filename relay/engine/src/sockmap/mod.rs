//! The engine that leaves bytes in the kernel: a program there sends what arrives at one socket out
//! at the other one (sockmap). It is held back by credit, so a far end that does not read holds
//! the sender back. What that is worth is in `docs/engines.md`.
//!
//! Both sockets are relay's own; no socket of an application is ever touched. Joined are connections
//! that have shown themselves long, as to join one takes time, and whose ends are near, as the
//! window that this takes is small; until then, and else, readiness carries them. It rests on details
//! that the kernel does not promise, so it is tried before it is used ([`trial`]).

mod direction;
mod driver;
mod flow;
mod program;
mod record;
mod sys;
mod trial;

use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::end::{End, descriptors};
use crate::epoll::{Epoll, carry_until_bulk};
use crate::pump::{Carrier, Ending, Moved, Side};
use driver::Driver;

/// Ends that are further away than this are not joined.
const NEAR: Duration = Duration::from_millis(3);

/// A connection that has moved so many bytes one way in a short time is joined. To join costs more
/// than to carry these.
pub(crate) const JOIN_AFTER: u64 = 1 << 20;

/// The same, as tests want it.
static BULK: AtomicU64 = AtomicU64::new(JOIN_AFTER);

/// The thread with the program, or why there is none.
static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();

/// The engine. Where it cannot be, readiness takes its place.
pub(crate) struct Sockmap;

impl Carrier for Sockmap {
    async fn carry(self, a: End, b: End, moved: &Moved) -> Ending {
        let Some(mut read) = read_before([&a, &b]) else {
            return Epoll { splice: true }.carry(a, b, moved).await;
        };
        let counted = [Side::A, Side::B].map(|side| moved.of(side).load(Ordering::Relaxed));
        let bulk = BULK.load(Ordering::Relaxed);
        let ends = if bulk == 0 {
            match descriptors(a, b) {
                Ok(ends) => ends,
                Err(broken) => return Ending::Reset(broken),
            }
        } else {
            match carry_until_bulk(a, b, moved, bulk).await {
                Ok(ending) => return ending,
                Err(ends) => ends,
            }
        };
        for (side, before) in [Side::A, Side::B].into_iter().zip(counted) {
            read[side as usize] += moved.of(side).load(Ordering::Relaxed) - before;
        }
        let [a, b] = match joined(ends, read, moved).await {
            Ok(ending) => return ending,
            Err(ends) => ends,
        };
        let engine = Epoll { splice: true };
        engine.carry(a.into(), b.into(), moved).await
    }
}

/// Has the thread join two sockets, of which so much was read before, and waits for the end. When
/// that cannot be they come back.
async fn joined(ends: [OwnedFd; 2], read: [u64; 2], moved: &Moved) -> Result<Ending, [OwnedFd; 2]> {
    let Ok(driver) = driver() else {
        return Err(ends);
    };
    if !ends.iter().all(is_near) {
        return Err(ends);
    }
    let (order, outcome) = driver.carry(ends, read, moved.clone())?;
    let outcome = outcome.await;
    order.close();
    // The thread has failed, and the sockets are closed.
    outcome.unwrap_or(Ok(Ending::Reset(Side::A)))
}

/// How much was read of two connections so far, if both are TCP's.
fn read_before(ends: [&End; 2]) -> Option<[u64; 2]> {
    let read = |end: &End| {
        let socket = end.as_fd().filter(sys::is_tcp)?;
        let received = sys::info(&socket).ok()?.received;
        Some(received.saturating_sub(sys::unread(&socket).ok()?))
    };
    Some([read(ends[0])?, read(ends[1])?])
}

/// Whether a connection of TCP is open in both directions, and its peer near.
fn is_near(socket: &OwnedFd) -> bool {
    sys::info(socket)
        .is_ok_and(|info| info.is_established && u128::from(info.round_trip) <= NEAR.as_micros())
}

fn driver() -> Result<&'static Driver, &'static str> {
    let driver = DRIVER.get_or_init(|| {
        let driver = Driver::start()?;
        trial::run(&driver)?;
        Ok(driver)
    });
    driver.as_ref().map_err(String::as_str)
}

/// From how many bytes on connections are joined; with none, before the first.
pub(crate) fn join_after(bytes: u64) {
    BULK.store(bytes, Ordering::Relaxed);
}

/// How many connections were joined so far.
pub(crate) fn connections_joined() -> u64 {
    driver().map_or(0, Driver::joined)
}

/// Finds out whether the engine works here, by carrying some bytes with it in every awkward way.
///
/// # Errors
/// Why it does not, in words.
pub(crate) fn probe() -> Result<(), String> {
    driver().map(drop).map_err(str::to_owned)
}
