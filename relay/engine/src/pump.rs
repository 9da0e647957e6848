//! The pump: both directions between two sockets, until both are done or one breaks; and what an
//! engine is.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Engine;
use crate::end::End;
use crate::epoll::Epoll;
use crate::ring::Uring;

/// How long the bytes that arrived before a break may take to get out.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// One of the two ends, by the order of the arguments of [`pump`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

/// How a pump came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Both sides said that they were done, and got everything.
    Finished,
    /// This side broke, by a reset or a time-out; the other was reset.
    Reset(Side),
}

/// What a pump did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes taken by B.
    pub a_to_b: u64,
    /// Bytes taken by A.
    pub b_to_a: u64,
    /// How it ended.
    pub end: Ending,
}

/// Moves bytes both ways between two sockets until both directions are done. The end of one
/// direction is passed on as the end of that direction alone; a reset is passed on as a reset.
/// Dropping the future closes both.
pub async fn pump(a: impl Into<End>, b: impl Into<End>, engine: Engine) -> Summary {
    pump_counted(a, b, engine, &Moved::default()).await
}

/// The same as [`pump`]; what was moved so far can be read meanwhile.
pub async fn pump_counted(
    a: impl Into<End>,
    b: impl Into<End>,
    engine: Engine,
    moved: &Moved,
) -> Summary {
    let (a, b) = (a.into(), b.into());
    let end = match engine {
        Engine::Auto | Engine::Splice => Epoll { splice: true }.carry(a, b, moved).await,
        Engine::Copy => Epoll { splice: false }.carry(a, b, moved).await,
        Engine::IoUring => Uring.carry(a, b, moved).await,
    };
    Summary {
        a_to_b: moved.a_to_b(),
        b_to_a: moved.b_to_a(),
        end,
    }
}

/// What an engine is: one way to carry bytes both ways between two sockets. The applications at
/// the far ends of the sockets must not be able to tell which one it is:
///
/// * Every byte arrives, once and in order, and is counted when the other side's socket took it.
/// * The end of one direction becomes the end of that direction, after its last byte. When both
///   have ended, both sockets are closed.
/// * A reset of one side resets the other, after what had been sent before it or after [`GRACE`];
///   it is noticed even while nothing is read from that side.
/// * A side that does not read holds the other back. No more than a few hundred kilobytes of each
///   direction are out of the sockets' own buffers, and nothing while it is idle.
/// * Dropping the future closes both sockets.
///
/// `tests/conformance.rs` holds every engine to it.
pub(crate) trait Carrier {
    /// Carries until the end, and has closed both sockets by then or is about to.
    fn carry(self, a: End, b: End, moved: &Moved) -> impl Future<Output = Ending> + Send;
}

/// What a pump moved so far.
#[derive(Clone, Debug, Default)]
pub struct Moved(Arc<[AtomicU64; 2]>);

impl Moved {
    /// Bytes taken by B.
    pub fn a_to_b(&self) -> u64 {
        self.of(Side::A).load(Ordering::Relaxed)
    }

    /// Bytes taken by A.
    pub fn b_to_a(&self) -> u64 {
        self.of(Side::B).load(Ordering::Relaxed)
    }

    /// The bytes from one side.
    pub(crate) fn of(&self, side: Side) -> &AtomicU64 {
        match side {
            Side::A => &self.0[0],
            Side::B => &self.0[1],
        }
    }
}

pub(crate) fn count(moved: &AtomicU64, bytes: usize) {
    moved.fetch_add(bytes as u64, Ordering::Relaxed);
}
