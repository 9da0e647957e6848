//! One pump on the ring: both directions, and what to do next by what has become of what was done.
//!
//! A direction that carries messages has one operation waiting, which receives into the ring's pool
//! again and again; what has come since the last turn is sent in one piece, as far as there is room
//! at once. A direction that carries bulk waits until there is something, then moves a large buffer
//! at a time. What does not fit is copied out of the pool and waits for room by itself, and nothing
//! more is received meanwhile: so no reader that stops holds up anything but its own sender.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::Shutdown;

use tokio::time::Instant;

use super::sys::{Completion, Held, OpId, Piece, Ring, Target};
use crate::pump::{GRACE, Moved, Side, count};

/// From here on a burst is bulk.
const BULK: usize = 16 << 10;
/// Bytes moved at once then.
const BULK_BUFFER: usize = 256 << 10;

const SIDES: [Side; 2] = [Side::A, Side::B];

/// Who asked for an operation: which pump, which of its sides or the direction from that side, and
/// for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tag {
    pub(super) pair: usize,
    side: usize,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Bytes of messages.
    Arrival,
    /// That there is something.
    Ready,
    /// A buffer of bulk.
    Bulk,
    /// Room, and that it was used.
    Sent,
    /// That a side has broken, from which nothing is received at the time.
    Broken,
}

/// What a pump has come to.
pub(super) struct Outcome {
    pub(super) ends: [OwnedFd; 2],
    pub(super) broken: Option<Side>,
    /// So long what the broken side sent may still take to get out.
    pub(super) until: Instant,
}

pub(super) struct Pair {
    number: usize,
    ends: [OwnedFd; 2],
    targets: [Target; 2],
    /// From each side to the other.
    flows: [Flow; 2],
    moved: Moved,
    /// Looks out for a break of each side.
    lookouts: [Lookout; 2],
    in_flight: usize,
    broken: Option<usize>,
    /// When what is left of a broken pump is given up.
    until: Instant,
    closing: bool,
}

#[derive(Clone, Copy)]
enum Lookout {
    Unneeded,
    Out(OpId),
    Impossible,
}

#[derive(Default)]
struct Flow {
    receiving: Option<OpId>,
    /// What is being received are messages, one after the other.
    receives_all: bool,
    /// It has been asked to stop receiving.
    stopping: bool,
    bulk: bool,
    /// There is something, as far as is known.
    ready: bool,
    /// Bytes since the last turn.
    burst: usize,
    /// In the pool, to be sent.
    arrived: Vec<Piece>,
    /// Copied from there, to be sent when what is being sent has gone.
    overflow: Vec<u8>,
    sending: Option<OpId>,
    /// What is being sent waits for room: of the bytes, those from here to there.
    waiting: Option<(usize, usize)>,
    /// The source has no more.
    ended: bool,
    /// And the other side has been told, or is beyond it.
    closed: bool,
}

impl Flow {
    fn is_empty(&self) -> bool {
        self.sending.is_none() && self.arrived.is_empty() && self.overflow.is_empty()
    }
}

impl Pair {
    pub(super) fn new(
        number: usize,
        ends: [OwnedFd; 2],
        moved: Moved,
        ring: &mut Ring<Tag>,
    ) -> Self {
        let targets = ring.register(number, [ends[0].as_fd(), ends[1].as_fd()]);
        Self {
            number,
            ends,
            targets,
            flows: Default::default(),
            moved,
            lookouts: [Lookout::Unneeded; 2],
            in_flight: 0,
            broken: None,
            until: Instant::now(),
            closing: false,
        }
    }

    /// Whether a side has broken: when to [`close`](Self::close) although the rest of what it had
    /// sent may still be on its way.
    pub(super) fn closes_at(&self) -> Option<Instant> {
        self.broken.map(|_| self.until)
    }

    /// Takes news of an operation. [`advance`](Self::advance) is to follow.
    pub(super) fn take(
        &mut self,
        news: Completion<Tag>,
        buffers: &mut Buffers,
        ring: &mut Ring<Tag>,
    ) {
        let Tag { side, what, .. } = news.user;
        if news.last {
            self.in_flight -= 1;
        }
        match what {
            What::Arrival => self.arrival(side, news, ring),
            What::Ready => {
                self.flows[side].receiving = None;
                self.flows[side].ready = true;
            }
            What::Bulk => self.bulk(side, news, buffers, ring),
            What::Sent => self.sent(side, news, buffers, ring),
            What::Broken => {
                if news.last {
                    self.lookouts[side] = match news.result {
                        Ok(_) => Lookout::Unneeded,
                        Err(_) => Lookout::Impossible,
                    };
                }
                let events = news.result.unwrap_or(0);
                if events & usize::from(libc::POLLERR.cast_unsigned()) != 0 {
                    self.breaks(side);
                }
            }
        }
    }

    fn arrival(&mut self, side: usize, news: Completion<Tag>, ring: &mut Ring<Tag>) {
        let flow = &mut self.flows[side];
        if news.last {
            flow.receiving = None;
            flow.stopping = false;
        }
        if let Some(piece) = news.piece {
            flow.burst += piece.len();
            if self.closing || flow.closed || piece.len() == 0 {
                ring.give_back(piece);
            } else if flow.waiting.is_some() {
                flow.overflow.extend_from_slice(ring.bytes(&piece));
                ring.give_back(piece);
            } else {
                flow.arrived.push(piece);
            }
        }
        match news.result {
            Ok(0) => flow.ended = true,
            // Told to stop, or out of buffers, which come back by the next turn.
            Ok(_) | Err(Errno::CANCELED | Errno::NOBUFS | Errno::INTR) => {}
            Err(_) => self.source_breaks(side),
        }
    }

    fn bulk(
        &mut self,
        side: usize,
        news: Completion<Tag>,
        buffers: &mut Buffers,
        ring: &mut Ring<Tag>,
    ) {
        let flow = &mut self.flows[side];
        flow.receiving = None;
        let Held::Bytes(buffer) = news.held else {
            return;
        };
        match news.result {
            Ok(bytes) if bytes > 0 && !self.closing && !flow.closed => {
                flow.bulk = bytes >= BULK;
                // Less than was asked for: there is no more.
                flow.ready = bytes == buffer.len();
                return self.send(side, buffer, (0, bytes), ring);
            }
            Ok(0) => flow.ended = true,
            Ok(_) | Err(Errno::CANCELED | Errno::INTR) => {}
            Err(Errno::AGAIN) => flow.ready = false,
            Err(_) => self.source_breaks(side),
        }
        buffers.give_back(buffer);
    }

    fn sent(
        &mut self,
        side: usize,
        news: Completion<Tag>,
        buffers: &mut Buffers,
        ring: &mut Ring<Tag>,
    ) {
        let flow = &mut self.flows[side];
        flow.sending = None;
        let waited = flow.waiting.take();
        let sent = match news.result {
            Ok(bytes) => Some(bytes),
            Err(Errno::AGAIN | Errno::INTR | Errno::CANCELED) => Some(0),
            Err(_) => None,
        };
        count(self.moved.of(SIDES[side]), sent.unwrap_or(0));
        let goes_on = sent.is_some() && !self.closing && !flow.closed;
        match news.held {
            Held::Pieces(pieces) => {
                let left = take_sent(pieces, sent.unwrap_or(0), ring);
                let arrived = std::mem::take(&mut flow.arrived);
                if left.is_empty() || !goes_on {
                    flow.arrived = arrived;
                    left.into_iter().for_each(|piece| ring.give_back(piece));
                } else {
                    let mut bytes = Vec::new();
                    for piece in left.into_iter().chain(arrived) {
                        bytes.extend_from_slice(ring.bytes(&piece));
                        ring.give_back(piece);
                    }
                    // The reader is behind: what comes next will be more.
                    flow.bulk = true;
                    let all = (0, bytes.len());
                    self.send(side, bytes, all, ring);
                }
            }
            Held::Bytes(bytes) => {
                let (start, end) = waited.unwrap_or_default();
                let start = start + sent.unwrap_or(0);
                if start < end && goes_on {
                    self.send(side, bytes, (start, end), ring);
                } else {
                    buffers.give_back(bytes);
                }
            }
            Held::Nothing => {}
        }
        if sent.is_none() {
            self.breaks(1 - side);
        }
    }

    fn source_breaks(&mut self, side: usize) {
        self.flows[side].ended = true;
        self.breaks(side);
    }

    /// Notes that a side has broken; the first one counts, and none once all has been carried.
    fn breaks(&mut self, side: usize) {
        if self.broken.is_none() && !self.closing {
            self.broken = Some(side);
            self.until = Instant::now() + GRACE;
        }
    }

    /// Does what is to be done next.
    pub(super) fn advance(&mut self, buffers: &mut Buffers, ring: &mut Ring<Tag>) {
        if self.closing {
            return;
        }
        if let Some(broken) = self.broken {
            // Nobody is left to take these.
            self.give_up(1 - broken, ring);
        }
        for side in 0..2 {
            if !self.flows[side].closed {
                self.go_on(side, buffers, ring);
            }
        }
        let is_over = match self.broken {
            // What the broken side had sent before is still to be had.
            Some(broken) => self.flows[broken].closed,
            None => self.flows.iter().all(|flow| flow.closed),
        };
        if is_over {
            self.close(ring);
        }
    }

    fn go_on(&mut self, side: usize, buffers: &mut Buffers, ring: &mut Ring<Tag>) {
        let burst = std::mem::take(&mut self.flows[side].burst);
        self.send_what_came(side, ring);
        let flow = &mut self.flows[side];
        flow.bulk |= burst >= BULK;
        if let Some(op) = flow.receiving
            && flow.receives_all
            && (flow.bulk || flow.waiting.is_some())
            && !flow.stopping
        {
            flow.stopping = true;
            ring.cancel(op);
        }
        if flow.receiving.is_none() && !flow.ended && flow.waiting.is_none() {
            self.receive(side, buffers, ring);
        }
        let flow = &mut self.flows[side];
        if flow.ended && flow.is_empty() {
            flow.closed = true;
            // When both are done, closing says so.
            if self.broken.is_none() && !self.flows[1 - side].closed {
                // A connection that broke meanwhile refuses; the lookout tells.
                let _ = rustix::net::shutdown(&self.ends[1 - side], Shutdown::Write);
            }
        }
        let is_deaf = self.flows[side].receiving.is_none() && self.broken.is_none();
        if is_deaf && matches!(self.lookouts[side], Lookout::Unneeded) {
            let op = ring.look_out(self.targets[side], self.tag(side, What::Broken));
            self.lookouts[side] = Lookout::Out(op);
            self.in_flight += 1;
        }
    }

    fn send_what_came(&mut self, side: usize, ring: &mut Ring<Tag>) {
        let flow = &mut self.flows[side];
        if flow.sending.is_some() {
            return;
        }
        if !flow.overflow.is_empty() {
            let bytes = std::mem::take(&mut flow.overflow);
            let all = (0, bytes.len());
            self.send(side, bytes, all, ring);
        } else if !flow.arrived.is_empty() {
            let pieces = std::mem::take(&mut flow.arrived);
            let tag = self.tag(side, What::Sent);
            let op = ring.send_pieces(self.targets[1 - side], pieces, tag);
            self.flows[side].sending = Some(op);
            self.in_flight += 1;
        }
    }

    fn send(&mut self, side: usize, bytes: Vec<u8>, part: (usize, usize), ring: &mut Ring<Tag>) {
        let tag = self.tag(side, What::Sent);
        let op = ring.send(self.targets[1 - side], bytes, part, tag);
        let flow = &mut self.flows[side];
        flow.sending = Some(op);
        flow.waiting = Some(part);
        self.in_flight += 1;
    }

    fn receive(&mut self, side: usize, buffers: &mut Buffers, ring: &mut Ring<Tag>) {
        let target = self.targets[side];
        let flow = &self.flows[side];
        let op = if !flow.bulk {
            ring.receive_all(target, self.tag(side, What::Arrival))
        } else if !flow.is_empty() {
            return;
        } else if flow.ready {
            ring.receive(target, buffers.take(), self.tag(side, What::Bulk))
        } else {
            ring.ready(target, self.tag(side, What::Ready))
        };
        let flow = &mut self.flows[side];
        flow.receiving = Some(op);
        flow.receives_all = !flow.bulk;
        self.in_flight += 1;
    }

    /// Gives up a direction, wherever it is.
    fn give_up(&mut self, side: usize, ring: &mut Ring<Tag>) {
        let flow = &mut self.flows[side];
        flow.closed = true;
        flow.overflow = Vec::new();
        flow.arrived
            .drain(..)
            .for_each(|piece| ring.give_back(piece));
    }

    /// Ends all that is in flight. [`is_done`](Self::is_done) tells when nothing is any more.
    pub(super) fn close(&mut self, ring: &mut Ring<Tag>) {
        if std::mem::replace(&mut self.closing, true) {
            return;
        }
        for side in 0..2 {
            self.give_up(side, ring);
            let flow = &self.flows[side];
            let lookout = match self.lookouts[side] {
                Lookout::Out(op) => Some(op),
                Lookout::Unneeded | Lookout::Impossible => None,
            };
            let ops = [flow.receiving, flow.sending, lookout];
            ops.into_iter().flatten().for_each(|op| ring.cancel(op));
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.closing && self.in_flight == 0
    }

    /// The end: the sockets are the caller's again.
    pub(super) fn into_outcome(self, ring: &mut Ring<Tag>) -> Outcome {
        ring.unregister(self.targets);
        let broken = self.broken.map(|side| SIDES[side]);
        Outcome {
            ends: self.ends,
            broken,
            until: self.until,
        }
    }

    fn tag(&self, side: usize, what: What) -> Tag {
        Tag {
            pair: self.number,
            side,
            what,
        }
    }
}

/// Gives back what was sent; the rest is left.
fn take_sent(pieces: Vec<Piece>, mut sent: usize, ring: &mut Ring<Tag>) -> Vec<Piece> {
    let mut left = Vec::new();
    for mut piece in pieces {
        let taken = sent.min(piece.len());
        sent -= taken;
        piece.skip(taken);
        if piece.len() == 0 {
            ring.give_back(piece);
        } else {
            left.push(piece);
        }
    }
    left
}

/// Large buffers, kept for the next direction that needs one.
#[derive(Default)]
pub(super) struct Buffers(Vec<Vec<u8>>);

impl Buffers {
    /// How many are kept.
    const IDLE: usize = 2;

    fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_else(|| vec![0; BULK_BUFFER])
    }

    fn give_back(&mut self, buffer: Vec<u8>) {
        if buffer.len() == BULK_BUFFER && self.0.len() < Self::IDLE {
            self.0.push(buffer);
        }
    }
}
