//! The engine that leaves bytes in the kernel: a program there sends what arrives at one socket out
//! at the other one (sockmap). It is held back by credit, so a far end that does not read holds
//! the sender back. What that is worth is in `docs/engines.md`.
//!
//! Both sockets are relay's own; no socket of an application is ever touched. Only connections of
//! near ends are joined, as the window that this takes is small; the others are left to
//! readiness. It rests on details that the kernel does not promise, so it is tried before it is
//! used ([`trial`]).

mod direction;
mod driver;
mod flow;
mod program;
mod record;
mod sys;
mod trial;

use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::Duration;

use crate::end::{End, descriptors};
use crate::epoll::Epoll;
use crate::pump::{Carrier, Ending, Moved, Side};
use driver::Driver;

/// Ends that are further away than this are not joined.
const NEAR: Duration = Duration::from_millis(3);

/// The thread with the program, or why there is none.
static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();

/// The engine. Where it cannot be, readiness takes its place.
pub(crate) struct Sockmap;

impl Carrier for Sockmap {
    async fn carry(self, a: End, b: End, moved: &Moved) -> Ending {
        let ends = match descriptors(a, b) {
            Ok(ends) => ends,
            Err(broken) => return Ending::Reset(broken),
        };
        let [a, b] = match joined(ends, moved).await {
            Ok(ending) => return ending,
            Err(ends) => ends,
        };
        let engine = Epoll { splice: true };
        engine.carry(a.into(), b.into(), moved).await
    }
}

/// Has the thread join two sockets, and waits for the end. When that cannot be they come back.
async fn joined(ends: [OwnedFd; 2], moved: &Moved) -> Result<Ending, [OwnedFd; 2]> {
    let Ok(driver) = driver() else {
        return Err(ends);
    };
    if !ends.iter().all(may_be_joined) {
        return Err(ends);
    }
    let (order, outcome) = driver.carry(ends, moved.clone())?;
    let outcome = outcome.await;
    order.close();
    // The thread has failed, and the sockets are closed.
    outcome.unwrap_or(Ok(Ending::Reset(Side::A)))
}

/// Whether a socket is a near connection of TCP, open in both directions, of which nothing was read
/// yet: a packet of which a part was read would be sent on as a whole.
fn may_be_joined(socket: &OwnedFd) -> bool {
    let near = NEAR.as_micros();
    sys::is_tcp(socket)
        && sys::info(socket).is_ok_and(|info| {
            info.is_established
                && u128::from(info.round_trip) <= near
                && sys::unread(socket).is_ok_and(|unread| unread >= info.received)
        })
}

fn driver() -> Result<&'static Driver, &'static str> {
    let driver = DRIVER.get_or_init(|| {
        let driver = Driver::start()?;
        trial::run(&driver)?;
        Ok(driver)
    });
    driver.as_ref().map_err(String::as_str)
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
