//! The engine of completions: io_uring. The kernel is told what to do for all sockets of a thread
//! in one system call, and moves the bytes itself; what it has done is read from memory that both
//! share. What that is worth is in `docs/engines.md`.
//!
//! A ring belongs to one thread. Where the runtime has one, a task on it ([`driver`]) turns the ring
//! whenever its descriptor becomes ready, so that no other thread has to be woken for a byte. Where
//! the runtime has several, one thread of its own does that for all of them.

mod driver;
mod pair;
mod sys;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use tokio::runtime::{Handle, Id, RuntimeFlavor};
use tokio::sync::mpsc::error::SendError;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::end::{End, all_sent, descriptors, reset};
use crate::epoll::Epoll;
use crate::pump::{Carrier, Ending, Moved, Side};
use driver::{Command, Driver, Start, Ticket};
use pair::Outcome;

/// Much longer than the trial takes.
const PROBE: Duration = Duration::from_secs(1);

/// Drivers by the runtime they live in; that of no runtime is of all that have several threads.
static DRIVERS: Mutex<Option<HashMap<Option<Id>, UnboundedSender<Command>>>> = Mutex::new(None);

/// The engine. Where there is no ring to be had, readiness takes its place.
pub(crate) struct Uring;

impl Carrier for Uring {
    async fn carry(self, a: End, b: End, moved: &Moved) -> Ending {
        let ends = match descriptors(a, b) {
            Ok(ends) => ends,
            Err(broken) => return Ending::Reset(broken),
        };
        // It is the ring that waits. The kernel has no reason to refuse that.
        for end in &ends {
            let _ = rustix::io::ioctl_fionbio(end, false);
        }
        match carried(ends, moved.clone()).await {
            Ok(outcome) => finish(outcome).await,
            Err(Some([a, b])) => {
                let engine = Epoll { splice: true };
                engine.carry(a.into(), b.into(), moved).await
            }
            // The ring has failed, and the sockets are closed.
            Err(None) => Ending::Reset(Side::A),
        }
    }
}

/// Has a driver carry two sockets to the end. Where there is no ring they come back.
async fn carried(ends: [OwnedFd; 2], moved: Moved) -> Result<Outcome, Option<[OwnedFd; 2]>> {
    let (done, outcome) = oneshot::channel();
    let mut order = Order {
        driver: driver(),
        ticket: Arc::default(),
        is_open: true,
    };
    let ticket = Arc::clone(&order.ticket);
    let start = Command::Start(Start {
        ends,
        moved,
        ticket,
        done,
    });
    if let Err(SendError(Command::Start(start))) = order.driver.send(start) {
        return Err(Some(start.ends));
    }
    let outcome = outcome.await;
    order.is_open = false;
    match outcome {
        Ok(outcome) => outcome.map_err(Some),
        Err(_) => Err(None),
    }
}

/// What a driver was told to carry. Dropping it while it is open ends that.
struct Order {
    driver: UnboundedSender<Command>,
    ticket: Arc<Ticket>,
    is_open: bool,
}

impl Drop for Order {
    fn drop(&mut self) {
        if self.is_open {
            let _ = self.driver.send(Command::Stop(Arc::clone(&self.ticket)));
        }
    }
}

/// Closes the sockets as the ring's work says.
async fn finish(outcome: Outcome) -> Ending {
    let Some(broken) = outcome.broken else {
        return Ending::Finished;
    };
    let [a, b] = outcome.ends;
    let other = match broken {
        Side::A => b,
        Side::B => a,
    };
    let _ = tokio::time::timeout_at(outcome.until, all_sent(&other)).await;
    reset(other);
    Ending::Reset(broken)
}

/// The driver for this runtime, started when there is none.
fn driver() -> UnboundedSender<Command> {
    let runtime = Handle::current();
    let home = match runtime.runtime_flavor() {
        RuntimeFlavor::CurrentThread => Some(runtime.id()),
        _ => None,
    };
    let mut drivers = DRIVERS.lock().unwrap_or_else(PoisonError::into_inner);
    let drivers = drivers.get_or_insert_default();
    if let Some(driver) = drivers.get(&home).filter(|driver| !driver.is_closed()) {
        return driver.clone();
    }
    drivers.retain(|_, driver| !driver.is_closed());
    let (driver, commands) = unbounded_channel();
    match home {
        Some(_) => drop(runtime.spawn(Driver::new(commands))),
        None => on_its_own_thread(Driver::new(commands)),
    }
    drivers.insert(home, driver.clone());
    driver
}

/// When that fails the driver is dropped, which its pumps notice.
fn on_its_own_thread(driver: Driver) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let started = runtime.and_then(|runtime| {
        let thread = thread::Builder::new().name("relay-ring".to_owned());
        thread.spawn(move || runtime.block_on(driver))
    });
    if let Err(error) = started {
        tracing::warn!(%error, "no thread for io_uring; connections do without");
    }
}

/// Finds out whether rings work here, by moving a byte with one.
///
/// # Errors
/// Why they do not, in words.
pub(crate) fn probe() -> Result<(), String> {
    let moved = || -> io::Result<()> {
        let (mut near, a) = UnixStream::pair()?;
        let (b, mut far) = UnixStream::pair()?;
        far.set_read_timeout(Some(PROBE))?;
        near.write_all(b"x")?;
        driver::carry_once([a.into(), b.into()], || far.read_exact(&mut [0]))
    };
    moved().map_err(|error| {
        let why = match Errno::from_io_error(&error) {
            Some(Errno::PERM | Errno::ACCESS) => {
                "a seccomp filter or the sysctl kernel.io_uring_disabled forbids it"
            }
            Some(Errno::NOSYS | Errno::INVAL) => "it needs Linux 6.1 or newer",
            Some(Errno::NOMEM) => "the limit of locked memory is too low",
            _ => "the trial did not succeed",
        };
        format!("{why} ({error})")
    })
}
