//! One connection and the local socket that it is carried to and from, with the behaviour that every
//! engine has (`relay_engine`): ends are passed on as ends, after the last byte; a reset as a reset,
//! after what had been sent before it or after a moment; a side that does not read holds the other
//! back.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use relay_engine::{Ending, Moved, Side};
use relay_tcp::{CloseReason, ConnectionId, Instant, Stack};
use tokio::sync::oneshot;

use super::local::{Local, Outcome};

/// How long the bytes that arrived before a break may take to get out.
const GRACE: Duration = Duration::from_secs(1);
/// How soon a socket that is being emptied is looked at again, at first.
const FIRST_LOOK: Duration = Duration::from_millis(1);
/// Bytes of one direction before others get their turn.
const TURN: usize = 512 << 10;
/// The least and the most that is read at once.
const READ: (usize, usize) = (16 << 10, 256 << 10);

/// The connection and the socket.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) local: Option<Local>,
    /// Hears that the connection came about and how many bytes it took before, or why not.
    pub(super) connected: Option<oneshot::Sender<io::Result<usize>>>,
    /// Bytes that the connection took when it was opened.
    first: usize,
    /// Hears how it ended.
    pub(super) done: Option<oneshot::Sender<Ending>>,
    pub(super) moved: Moved,
    /// Which side the socket is for those who hear of it; the connection is the other.
    pub(super) near: Side,
    phase: Phase,
    /// How much to ask the socket for.
    read_most: usize,
    /// Nothing more comes from the socket.
    read_ended: bool,
    /// Nothing more goes to the socket.
    write_ended: bool,
    /// The connection has no room for what the socket has.
    blocked: bool,
    /// It is on the list of those that go on in the next turn.
    pub(super) listed: bool,
    /// The alarm that is set for it.
    pub(super) alarm: Option<Instant>,
    /// How long until a socket that is being emptied is looked at once more.
    look: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Opening,
    Open,
    /// The socket broke: what it had sent still goes out, until then.
    Breaking(Instant),
    /// The connection broke: what had come still goes to the socket, until then.
    Draining(Instant),
}

/// What a flow waits for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// To be woken, or for an event.
    Wait,
    /// For its next turn.
    Again,
    /// The same, and for this moment at the latest.
    Until(Instant),
    /// Nothing.
    Over(Ending),
}

impl Flow {
    /// A flow whose connection is being opened, and has taken `first` bytes.
    pub(super) fn opening(connected: oneshot::Sender<io::Result<usize>>, first: usize) -> Self {
        Self {
            first,
            ..Self::new(connected, Phase::Opening)
        }
    }

    /// A flow whose connection a peer asked for: what came with that, and what the socket has to
    /// say, waits for nothing.
    pub(super) fn accepted(connected: oneshot::Sender<io::Result<usize>>, local: Local) -> Self {
        Self {
            local: Some(local),
            ..Self::new(connected, Phase::Open)
        }
    }

    fn new(connected: oneshot::Sender<io::Result<usize>>, phase: Phase) -> Self {
        Self {
            local: None,
            connected: Some(connected),
            first: 0,
            done: None,
            moved: Moved::default(),
            near: Side::B,
            phase,
            read_most: READ.0,
            read_ended: false,
            write_ended: false,
            blocked: false,
            listed: false,
            alarm: None,
            look: FIRST_LOOK,
        }
    }

    /// Which side the connection is.
    pub(super) fn far(&self) -> Side {
        match self.near {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }

    /// The connection came about. Whether somebody still waits for it.
    pub(super) fn connected(&mut self) -> bool {
        if let Phase::Opening = self.phase {
            self.phase = Phase::Open;
        }
        let first = self.first;
        let heard = self.connected.take().map(|sender| sender.send(Ok(first)));
        heard.is_none_or(|sent| sent.is_ok())
    }

    /// The connection has room again.
    pub(super) fn unblock(&mut self) {
        self.blocked = false;
    }

    /// The connection is over.
    pub(super) fn closed(&mut self, reason: CloseReason, now: Instant) {
        if let Some(connected) = self.connected.take() {
            let kind = match reason {
                CloseReason::Refused => io::ErrorKind::ConnectionRefused,
                CloseReason::TimedOut => io::ErrorKind::TimedOut,
                _ => io::ErrorKind::ConnectionReset,
            };
            let _ = connected.send(Err(kind.into()));
        }
        match reason {
            CloseReason::Finished => self.read_ended = true,
            _ => self.phase = Phase::Draining(now + GRACE),
        }
    }

    /// Does what can be done. `woken` tells that the socket asked for it.
    pub(super) fn run(
        &mut self,
        stack: &mut Stack,
        id: ConnectionId,
        now: Instant,
        woken: bool,
    ) -> Next {
        let Some(local) = &self.local else {
            // Whoever opened it joins it in a moment, or closes it.
            return Next::Wait;
        };
        local.looked();
        if let Phase::Open = self.phase {
            let next = self.exchange(stack, id, now, woken);
            if let Some(next) = next {
                return next;
            }
            self.phase = Phase::Breaking(now + GRACE);
        }
        match self.phase {
            Phase::Breaking(until) => self.break_off(stack, id, now, until),
            Phase::Draining(until) => self.drain(stack, id, now, until),
            // What the socket did meanwhile is found when the connection is open.
            Phase::Opening | Phase::Open => Next::Wait,
        }
    }

    /// Both directions; nothing when the socket broke.
    fn exchange(
        &mut self,
        stack: &mut Stack,
        id: ConnectionId,
        now: Instant,
        woken: bool,
    ) -> Option<Next> {
        if let Some(local) = self.local.as_ref().filter(|_| woken && self.blocked) {
            if local.is_broken() {
                return None;
            }
            local.watch_aside();
        }
        let written = self.write_local(stack, id, now);
        let read = self.read_local(stack, id);
        self.read_ended |= read.is_err();
        let (Ok(written), Ok(read)) = (written, read) else {
            return None;
        };
        Some(
            match (self.read_ended && self.write_ended, written || read) {
                (true, _) => Next::Over(Ending::Finished),
                (false, true) => Next::Again,
                (false, false) => Next::Wait,
            },
        )
    }

    /// The socket is broken, and may hold what it got before.
    fn break_off(
        &mut self,
        stack: &mut Stack,
        id: ConnectionId,
        now: Instant,
        until: Instant,
    ) -> Next {
        self.blocked = false;
        let read = self.read_local(stack, id);
        self.read_ended |= read.is_err();
        let flushed = stack
            .connection(id)
            .is_none_or(|connection| connection.is_flushed());
        if (self.read_ended && flushed) || now >= until {
            return Next::Over(Ending::Reset(self.near));
        }
        if self.read_ended {
            stack.tell_when_flushed(id);
        }
        match read {
            Ok(true) => Next::Again,
            _ => Next::Until(until),
        }
    }

    /// The connection is broken, and may hold what came before.
    fn drain(&mut self, stack: &mut Stack, id: ConnectionId, now: Instant, until: Instant) -> Next {
        let written = self.write_local(stack, id, now);
        let rest = stack.peek_with(id, |slices| slices.len()).unwrap_or(0);
        let sent = rest == 0 && self.local.as_ref().is_none_or(Local::is_sent);
        if written.is_err() || sent || now >= until {
            return Next::Over(Ending::Reset(self.far()));
        }
        if let Ok(true) = written {
            return Next::Again;
        }
        // Nothing tells that the other side of the socket has got everything.
        let look = now + self.look;
        self.look = 2 * self.look;
        Next::Until(look.min(until))
    }

    /// Writes what came to the socket, and its end: where nothing comes from the socket any more, that
    /// is closing it. True when it stopped for others' sake.
    fn write_local(
        &mut self,
        stack: &mut Stack,
        id: ConnectionId,
        now: Instant,
    ) -> io::Result<bool> {
        let Some(local) = self.local.as_ref().filter(|_| !self.write_ended) else {
            return Ok(false);
        };
        let mut total = 0;
        while total < TURN {
            let attempt = |slices: &[io::IoSlice<'_>]| {
                let pieces = slices.len();
                (pieces > 0).then(|| local.write(slices))
            };
            let Ok(Some(outcome)) = stack.peek_with(id, attempt) else {
                let ended =
                    (stack.connection(id)).is_some_and(|connection| connection.is_read_to_end());
                if ended {
                    self.write_ended = true;
                    if !self.read_ended {
                        local.finish();
                    }
                }
                return Ok(false);
            };
            let (count, is_last) = match outcome? {
                Outcome::More(count) => (count, false),
                Outcome::Last(count) => (count, true),
            };
            total += count;
            let _ = stack.consume(now, id, count);
            let moved = self.moved.of(self.far());
            moved.fetch_add(count as u64, Ordering::Relaxed);
            if is_last {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads from the socket what there is room for. True when it stopped for others' sake.
    fn read_local(&mut self, stack: &mut Stack, id: ConnectionId) -> io::Result<bool> {
        if self.read_ended || self.blocked {
            return Ok(false);
        }
        let Some(local) = &self.local else {
            return Ok(false);
        };
        let mut total = 0;
        while total < TURN {
            let most = self.read_most;
            let outcome = stack.write_with(id, most, |slices| {
                local.read(slices).map(|outcome| {
                    let (Outcome::More(count) | Outcome::Last(count)) = outcome;
                    (outcome, count)
                })
            });
            let (outcome, count) = match outcome {
                // The connection is over, which an event tells.
                Err(_) => return Ok(false),
                Ok(None) => {
                    self.blocked = true;
                    local.watch_aside();
                    return Ok(false);
                }
                Ok(Some(outcome)) => outcome?,
            };
            total += count;
            let moved = self.moved.of(self.near);
            moved.fetch_add(count as u64, Ordering::Relaxed);
            match outcome {
                Outcome::More(0) => {
                    self.read_ended = true;
                    // A socket that broke tells that once, and then that it is at its end.
                    if let Phase::Open = self.phase {
                        let _ = stack.shutdown(id);
                    }
                    return Ok(false);
                }
                Outcome::More(_) => {}
                Outcome::Last(_) => {
                    self.read_most = (2 * count).clamp(READ.0, most);
                    return Ok(false);
                }
            }
            if count == most {
                self.read_most = (4 * most).min(READ.1);
            }
        }
        Ok(true)
    }
}
