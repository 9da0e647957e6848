//! A connection of two sockets: its two directions, and how it comes to its end.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::Shutdown;
use tokio::sync::oneshot;

use super::direction::{Direction, Fault, TICK, Wire};
use super::record::Records;
use crate::end::reset;
use crate::pump::{Ending, GRACE, Moved, Side};

/// Most that is copied at once, where a source is not in the map.
const COPIED: usize = 256 << 10;
/// How often is looked whether an end has been reached, when it takes long.
const SLOW: Duration = Duration::from_millis(8);

/// Either the end, or the sockets, when they cannot be joined.
pub(super) type Outcome = Result<Ending, [OwnedFd; 2]>;

/// A connection.
pub(super) struct Flow {
    pub(super) id: u64,
    pub(super) ends: [OwnedFd; 2],
    pub(super) cookies: [u64; 2],
    /// The one that begins at each of the ends.
    pub(super) directions: [Direction; 2],
    pub(super) moved: Moved,
    pub(super) done: oneshot::Sender<Outcome>,
    /// Which side broke, and until when its last bytes may take.
    pub(super) broken: Option<(usize, Instant)>,
    /// When to look for an end, and how long after that.
    pub(super) look: Option<(Instant, Duration)>,
    /// The thread has it among those that have to be looked at.
    pub(super) is_listed: bool,
}

impl Flow {
    /// When something has to be done by itself.
    pub(super) fn next(&self) -> Option<Instant> {
        let directions = self
            .directions
            .iter()
            .filter(|direction| direction.is_active);
        let look = self.look.map(|(at, _)| at);
        directions.map(|direction| direction.next).chain(look).min()
    }

    /// Does something with the direction that begins at one of the ends.
    pub(super) fn with<R>(
        &mut self,
        records: &Records,
        from: usize,
        what: impl FnOnce(&mut Direction, Wire<'_>) -> R,
    ) -> R {
        let direction = &mut self.directions[from];
        let record = records.get(direction.index);
        let wire = Wire {
            from: &self.ends[from],
            to: &self.ends[1 - from],
            record: &record,
        };
        what(direction, wire)
    }

    /// What lay at the sockets before they were joined waits for this.
    pub(super) fn kick(&mut self, records: &Records, now: Instant) {
        for from in [0, 1] {
            let kicked = self.with(records, from, |direction, wire| {
                if direction.is_joined {
                    direction.kick(wire)
                } else {
                    Ok(())
                }
            });
            if kicked.is_err() {
                self.break_off(from, now);
            }
        }
    }

    pub(super) fn break_off(&mut self, end: usize, now: Instant) {
        match self.broken {
            None => self.broken = Some((end, now + GRACE)),
            // The other one as well: nobody is left to deliver to.
            Some((first, _)) if first != end => self.broken = Some((first, now)),
            Some(_) => {}
        }
    }

    /// Does what is due. Returns how the connection has ended, once it has.
    pub(super) fn look_after(
        &mut self,
        records: &Records,
        buffer: &mut [u8],
        now: Instant,
    ) -> Option<Ending> {
        for from in [0, 1] {
            if self.broken.is_some_and(|(end, _)| end != from) {
                continue;
            }
            if let Err(fault) = self.advance(records, buffer, from, now) {
                let end = match fault {
                    Fault::Source => from,
                    Fault::Sink => 1 - from,
                };
                if self.broken.is_some() {
                    self.break_off(end, now);
                    return self.broken.map(|(end, _)| Ending::Reset(side(end)));
                }
                self.break_off(end, now);
            }
        }
        if let Some((end, until)) = self.broken {
            let delivered = self.with(records, end, |direction, wire| {
                direction.is_delivered(wire).unwrap_or(true)
            });
            if delivered || now >= until {
                return Some(Ending::Reset(side(end)));
            }
            self.look = Some((now + 2 * TICK, TICK));
            return None;
        }
        let is_over = self.directions.iter().all(|direction| direction.is_shut);
        is_over.then_some(Ending::Finished)
    }

    /// One direction.
    fn advance(
        &mut self,
        records: &Records,
        buffer: &mut [u8],
        from: usize,
        now: Instant,
    ) -> Result<(), Fault> {
        let is_broken = self.broken.is_some();
        let look = self.look.is_some_and(|(at, _)| at <= now);
        let mut copied = 0;
        let complete = self.with(records, from, |direction, wire| {
            if direction.is_shut {
                return Ok(false);
            }
            if !direction.is_joined {
                copied = direction.copy(wire, &mut buffer[..COPIED])?;
            } else if direction.is_active && direction.next <= now {
                direction.tend(wire, buffer, now)?;
            }
            if is_broken || !look {
                return Ok(false);
            }
            let complete = direction.is_complete(wire)?;
            // What holds the end up may be what nobody has told of.
            if !complete && direction.is_joined && direction.is_ended && !direction.is_active {
                direction.wake(wire, now);
            }
            Ok(complete)
        });
        if copied > 0 {
            crate::pump::count(self.moved.of(side(from)), copied);
        }
        if complete? {
            self.directions[from].is_shut = true;
            // When both are done, closing says so.
            if !self.directions[1 - from].is_shut {
                let _ = rustix::net::shutdown(&self.ends[1 - from], Shutdown::Write);
            }
        }
        if from == 1 && look {
            self.look_again(now);
        }
        Ok(())
    }

    /// While an end is waited for, it is looked for, less and less often.
    fn look_again(&mut self, now: Instant) {
        let waits = self
            .directions
            .iter()
            .any(|direction| direction.is_ended && !direction.is_shut);
        let pause = self.look.map_or(TICK, |(_, pause)| pause);
        self.look = waits.then(|| (now + pause, (pause * 3 / 2).min(SLOW)));
    }

    /// Closes both sockets as the ending says.
    pub(super) fn end(self, ending: Ending) {
        let [a, b] = self.ends;
        match ending {
            Ending::Finished => {}
            Ending::Reset(Side::A) => reset(&b),
            Ending::Reset(Side::B) => reset(&a),
        }
        drop((a, b));
        let _ = self.done.send(Ok(ending));
    }
}

fn side(end: usize) -> Side {
    if end == 0 { Side::A } else { Side::B }
}
