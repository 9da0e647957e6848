//! The coordinator, shared: every seat has a bounded queue of what it is to be told.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use relay_wire::proto::tailnet::CoordinateRequest;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use uuid::Uuid;

use crate::coordinator::{Coordinator, Output, Role, SeatId};

/// Answers that may wait for a peer. One that falls behind further loses its seat.
const QUEUE: usize = 512;

/// The shared coordinator.
#[derive(Default)]
pub(crate) struct Hub(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    core: Coordinator,
    queues: HashMap<SeatId, mpsc::Sender<Output>>,
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a seat; the queue ends when the seat is lost.
    pub(crate) fn join(&self, id: Uuid, role: Role) -> (SeatId, mpsc::Receiver<Output>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut inner = self.lock();
        let seat = inner.core.join(id, role);
        inner.queues.insert(seat, sender);
        inner.deliver();
        (seat, receiver)
    }

    /// Hands a request in.
    pub(crate) fn handle(&self, seat: SeatId, request: CoordinateRequest) {
        let mut inner = self.lock();
        inner.core.handle(seat, request);
        inner.deliver();
    }

    /// Whether a peer has a seat.
    pub(crate) fn has(&self, id: Uuid) -> bool {
        self.lock().core.has(id)
    }

    /// How many tunnels peers have asked for.
    pub(crate) fn tunnels(&self) -> usize {
        self.lock().core.tunnels()
    }

    /// Gives a seat up, for this reason if that is known.
    pub(crate) fn leave(&self, seat: SeatId, reason: &'static str) {
        let mut inner = self.lock();
        inner.queues.remove(&seat);
        inner.core.leave(seat, reason);
        inner.deliver();
    }
}

impl Inner {
    fn deliver(&mut self) {
        while let Some((seat, output)) = self.core.poll_output() {
            let ended = output == Output::End;
            let Some(queue) = self.queues.get(&seat) else {
                continue;
            };
            match queue.try_send(output) {
                Ok(()) if !ended => {}
                Ok(()) | Err(TrySendError::Closed(_)) => {
                    self.queues.remove(&seat);
                }
                Err(TrySendError::Full(_)) => {
                    tracing::debug!(seat, "a peer does not read what it is told");
                    self.queues.remove(&seat);
                    self.core.leave(seat, "");
                }
            }
        }
    }
}
