//! What is known of one channel.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use super::{FIRST_WINDOW, PACKET, Request};
use crate::Error;

/// What a channel keeps of data to send, bytes, before its writer waits.
pub(super) const TO_SEND: usize = 256 << 10;
/// An empty buffer that is larger than this is given back.
const KEPT: usize = 64 << 10;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The peer asks for it.
    Asked,
    /// This side asks for it.
    Asking,
    Open,
    /// What was asked for was refused.
    Refused,
}

/// Something that is said once, behind all data.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Word {
    #[default]
    Unsaid,
    Wanted,
    Said,
}

pub(super) struct Slot {
    pub(super) state: State,
    /// The channel's number on the peer's side.
    pub(super) peer: u32,
    pub(super) is_session: bool,
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
    pub(super) requests: VecDeque<Request>,
    /// The peer has closed it.
    pub(super) closed: bool,
    /// Nobody on this side has to do with it any more.
    pub(super) dropped: bool,
    /// It stands in line to send.
    pub(super) queued: bool,
    /// Of whoever waits for requests, or for the channel to be opened or closed.
    pub(super) keeper: Option<Waker>,
}

pub(super) struct Incoming {
    pub(super) bytes: Vec<u8>,
    pub(super) eof: bool,
    /// What the peer may still send.
    pub(super) window: u32,
    /// What may be here that was not used.
    pub(super) allowance: u32,
    /// What was used and is not in the window again.
    pub(super) used: u32,
    pub(super) reader: Option<Waker>,
}

#[derive(Default)]
pub(super) struct Outgoing {
    pub(super) window: u32,
    pub(super) packet: u32,
    pub(super) data: Pending,
    pub(super) stderr: Pending,
    pub(super) eof: Word,
    /// Whole messages for the end, without the peer's number of the channel.
    pub(super) last: VecDeque<Vec<u8>>,
    pub(super) close: Word,
}

/// Data to send.
#[derive(Default)]
pub(super) struct Pending {
    bytes: Vec<u8>,
    at: usize,
    pub(super) writer: Option<Waker>,
}

impl Pending {
    pub(super) fn left(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    /// Takes as much as there is room for.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        let room = TO_SEND.saturating_sub(self.left().len());
        let taken = &bytes[..bytes.len().min(room)];
        if self.at > TO_SEND / 2 {
            self.bytes.drain(..std::mem::take(&mut self.at));
        }
        self.bytes.extend_from_slice(taken);
        taken.len()
    }

    pub(super) fn advance(&mut self, count: usize) {
        self.at += count;
        if self.left().is_empty() {
            self.clear();
        } else if self.left().len() <= TO_SEND / 2 {
            wake(&mut self.writer);
        }
    }

    fn clear(&mut self) {
        self.at = 0;
        give_back(&mut self.bytes);
        wake(&mut self.writer);
    }
}

impl Slot {
    pub(super) fn new(state: State, peer: u32, window: u32, packet: u32) -> Self {
        Self {
            state,
            peer,
            is_session: false,
            incoming: Incoming {
                bytes: Vec::new(),
                eof: false,
                window: FIRST_WINDOW,
                allowance: FIRST_WINDOW,
                used: 0,
                reader: None,
            },
            outgoing: Outgoing {
                window,
                packet,
                ..Outgoing::default()
            },
            requests: VecDeque::new(),
            closed: false,
            dropped: false,
            queued: false,
            keeper: None,
        }
    }

    /// Data from the peer.
    pub(super) fn incoming(&mut self, data: &[u8]) -> Result<(), Error> {
        self.charge(data)?;
        // After this side's goodbye nobody reads it, and the window stays closed.
        if !self.dropped && !self.incoming.eof {
            self.incoming.bytes.extend_from_slice(data);
            wake(&mut self.incoming.reader);
        }
        Ok(())
    }

    /// Takes data off the peer's window.
    pub(super) fn charge(&mut self, data: &[u8]) -> Result<(), Error> {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let left = self.incoming.window.checked_sub(length);
        match left {
            Some(left) if length <= PACKET => self.incoming.window = left,
            _ => return Err(Error::Ssh("the peer sends more than a channel's window")),
        }
        Ok(())
    }

    /// The peer wants no more; what it sent can still be read.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.outgoing.data.clear();
        self.outgoing.stderr.clear();
        self.outgoing.last.clear();
        self.wake_all();
    }

    pub(super) fn wake_all(&mut self) {
        wake(&mut self.incoming.reader);
        wake(&mut self.outgoing.data.writer);
        wake(&mut self.outgoing.stderr.writer);
        wake(&mut self.keeper);
    }

    /// Whether the peer should hear that its window is wider: not for every few bytes.
    pub(super) fn wants_adjust(&self) -> bool {
        let incoming = &self.incoming;
        !self.closed && !incoming.eof && incoming.used >= incoming.allowance / 4
    }

    pub(super) fn can_send(&self) -> bool {
        let out = &self.outgoing;
        if self.state != State::Open || out.close == Word::Said {
            return false;
        }
        if self.wants_adjust() {
            return true;
        }
        if out.data.left().is_empty() && out.stderr.left().is_empty() {
            return out.close == Word::Wanted
                || !self.closed && (out.eof == Word::Wanted || !out.last.is_empty());
        }
        out.window > 0 && out.packet > 0
    }

    /// Whether neither side has to do with it any more.
    pub(super) fn is_over(&self) -> bool {
        self.dropped
            && (self.state == State::Refused || self.closed && self.outgoing.close == Word::Said)
    }
}

pub(super) fn give_back(bytes: &mut Vec<u8>) {
    if bytes.capacity() > KEPT {
        *bytes = Vec::new();
    } else {
        bytes.clear();
    }
}

pub(super) fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

pub(super) fn wait<T>(waker: &mut Option<Waker>, cx: &Context<'_>) -> Poll<T> {
    match waker {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *waker = Some(cx.waker().clone()),
    }
    Poll::Pending
}
