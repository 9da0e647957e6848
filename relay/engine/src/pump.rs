//! The pump: both directions between two sockets, until both are done or one breaks; and what an
//! engine is.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::Engine;
use crate::end::End;
use crate::epoll::Epoll;
use crate::ring::Uring;
use crate::sockmap::Sockmap;

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
        Engine::Sockmap => Sockmap.carry(a, b, moved).await,
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
pub struct Moved(Arc<Counts>);

#[derive(Default)]
struct Counts {
    told: [AtomicU64; 2],
    live: Mutex<Option<Live>>,
}

/// What is counted elsewhere, from A and from B.
type Live = Box<dyn Fn() -> [u64; 2] + Send>;

impl Moved {
    /// Bytes taken by B.
    pub fn a_to_b(&self) -> u64 {
        self.read(Side::A)
    }

    /// Bytes taken by A.
    pub fn b_to_a(&self) -> u64 {
        self.read(Side::B)
    }

    fn read(&self, side: Side) -> u64 {
        let live = self.live();
        let live = live.as_ref().map_or([0; 2], |live| live());
        self.of(side).load(Ordering::Relaxed) + live[side as usize]
    }

    /// The bytes from one side, for who moves them otherwise than by an engine.
    pub fn of(&self, side: Side) -> &AtomicU64 {
        &self.0.told[side as usize]
    }

    /// Has what is counted elsewhere added whenever somebody asks, until [`Moved::counted`].
    pub(crate) fn count_by(&self, live: impl Fn() -> [u64; 2] + Send + 'static) {
        *self.live() = Some(Box::new(live));
    }

    /// This is what was counted elsewhere in the end.
    pub(crate) fn counted(&self, bytes: [u64; 2]) {
        let mut live = self.live();
        *live = None;
        for (told, bytes) in self.0.told.iter().zip(bytes) {
            told.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn live(&self) -> MutexGuard<'_, Option<Live>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Counts").field(&self.told).finish()
    }
}

pub(crate) fn count(moved: &AtomicU64, bytes: usize) {
    moved.fetch_add(bytes as u64, Ordering::Relaxed);
}
