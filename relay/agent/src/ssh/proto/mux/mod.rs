//! The connection protocol (RFC 4254): channels, and how much each may hold.
//!
//! A peer may send as much as a channel's window says, and the window opens again only as the bytes
//! are used. So a channel whose reader stands still holds a bounded number of bytes, and no other
//! channel waits for it. What a channel is to send waits in a short buffer of its own; channels
//! take turns.

mod local;
mod send;
mod slot;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::task::Waker;

use super::codec::{Put, Reader};
use super::number;
use crate::Error;
use slot::{Slot, State, Word, wake};

/// The largest packet of data that a peer may send, bytes.
const PACKET: u32 = 64 << 10;
/// What a new channel may hold of a peer's data, bytes.
const FIRST_WINDOW: u32 = 512 << 10;
/// What a busy channel may hold.
const FULL_WINDOW: u32 = 4 << 20;
/// What a connection's channels may hold beyond their first windows.
const BUDGET: u32 = 64 << 20;
/// Most channels of a connection.
const CHANNELS: usize = 1024;
/// Most requests that wait for one channel, and most messages that wait to be sent.
const WAITING: usize = 4096;

/// A channel's number on this side.
pub(in crate::ssh) type Id = u32;

/// Why a channel is not opened (RFC 4254 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ssh) enum Refusal {
    Prohibited = 1,
    ConnectFailed = 2,
    UnknownType = 3,
    Shortage = 4,
}

/// A request, with what is particular to its kind.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::ssh) struct Request {
    pub(in crate::ssh) kind: String,
    pub(in crate::ssh) want_reply: bool,
    pub(in crate::ssh) data: Vec<u8>,
}

/// What somebody must see to.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::ssh) enum Event {
    /// The peer wants a channel; it waits for [`Mux::accept`] or [`Mux::refuse`].
    Open { id: Id, kind: String, data: Vec<u8> },
    /// A request that concerns no channel. Answers must go out in the order of requests.
    Global(Request),
}

/// The channels of a connection.
#[derive(Default)]
pub(in crate::ssh) struct Mux {
    channels: HashMap<Id, Slot>,
    next: Id,
    /// Whole messages that go before any data.
    control: VecDeque<Vec<u8>>,
    /// Channels that have something to send, each once.
    ready: VecDeque<Id>,
    /// Of whoever sends.
    sender: Option<Waker>,
    /// Of the budget, bytes.
    granted: u32,
    ended: bool,
}

const NOT_OPEN: Error = Error::Ssh("a message is about a channel that is not open");

impl Mux {
    /// Takes a message in.
    pub(in crate::ssh) fn receive(&mut self, payload: &[u8]) -> Result<Option<Event>, Error> {
        if self.control.len() >= WAITING {
            return Err(Error::Ssh("the peer asks and does not read the answers"));
        }
        let mut reader = Reader::new(payload);
        match reader.byte()? {
            number::GLOBAL_REQUEST => return Ok(Some(Event::Global(request(reader)?))),
            number::CHANNEL_OPEN => return self.asked(reader),
            number::CHANNEL_OPEN_CONFIRMATION => self.confirmed(reader)?,
            number::CHANNEL_OPEN_FAILURE => self.refused(reader.u32()?)?,
            number::CHANNEL_WINDOW_ADJUST => {
                let (id, more) = (reader.u32()?, reader.u32()?);
                let window = &mut self.slot(id)?.outgoing.window;
                *window = window.saturating_add(more);
                self.queue(id);
            }
            number::CHANNEL_DATA => {
                let (id, data) = (reader.u32()?, reader.string()?);
                self.slot(id)?.incoming(data)?;
            }
            number::CHANNEL_EXTENDED_DATA => self.extended(reader)?,
            number::CHANNEL_EOF => {
                let incoming = &mut self.slot(reader.u32()?)?.incoming;
                incoming.eof = true;
                wake(&mut incoming.reader);
            }
            number::CHANNEL_CLOSE => self.closed(reader.u32()?)?,
            number::CHANNEL_REQUEST => self.requested(reader)?,
            // Answers to this side's own requests, which only ask for a sign of life.
            number::REQUEST_SUCCESS
            | number::REQUEST_FAILURE
            | number::CHANNEL_SUCCESS
            | number::CHANNEL_FAILURE => {}
            _ => return Err(Error::Ssh("a message of an unknown kind came")),
        }
        Ok(None)
    }

    /// The connection is over: whoever waits for a channel hears that it is closed.
    pub(in crate::ssh) fn end(&mut self) {
        self.ended = true;
        for slot in self.channels.values_mut() {
            slot.close();
        }
    }

    fn slot(&mut self, id: Id) -> Result<&mut Slot, Error> {
        let slot = self.channels.get_mut(&id);
        slot.filter(|slot| slot.state == State::Open && !slot.closed)
            .ok_or(NOT_OPEN)
    }

    fn asked(&mut self, mut reader: Reader<'_>) -> Result<Option<Event>, Error> {
        let kind = reader.text()?.to_owned();
        let (peer, window, packet) = (reader.u32()?, reader.u32()?, reader.u32()?);
        if self.channels.len() >= CHANNELS {
            self.say_refusal(peer, Refusal::Shortage, "too many channels are open");
            return Ok(None);
        }
        let mut slot = Slot::new(State::Asked, peer, window, packet);
        slot.is_session = kind == "session";
        let id = self.insert(slot);
        let data = reader.rest().to_vec();
        Ok(Some(Event::Open { id, kind, data }))
    }

    fn insert(&mut self, slot: Slot) -> Id {
        while self.channels.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let id = self.next;
        self.next = id.wrapping_add(1);
        self.channels.insert(id, slot);
        id
    }

    fn confirmed(&mut self, mut reader: Reader<'_>) -> Result<(), Error> {
        let id = reader.u32()?;
        let slot = self.asking(id)?;
        slot.peer = reader.u32()?;
        (slot.outgoing.window, slot.outgoing.packet) = (reader.u32()?, reader.u32()?);
        slot.state = State::Open;
        slot.wake_all();
        self.queue(id);
        Ok(())
    }

    fn refused(&mut self, id: Id) -> Result<(), Error> {
        let slot = self.asking(id)?;
        slot.state = State::Refused;
        slot.wake_all();
        self.forget(id);
        Ok(())
    }

    fn asking(&mut self, id: Id) -> Result<&mut Slot, Error> {
        let slot = self.channels.get_mut(&id);
        slot.filter(|slot| slot.state == State::Asking)
            .ok_or(NOT_OPEN)
    }

    /// A client has no use for it, but may send it; it counts against the window.
    fn extended(&mut self, mut reader: Reader<'_>) -> Result<(), Error> {
        let (id, _kind) = (reader.u32()?, reader.u32()?);
        let data = reader.string()?;
        self.slot(id)?.charge(data)?;
        self.credit(id, data.len());
        Ok(())
    }

    fn closed(&mut self, id: Id) -> Result<(), Error> {
        let slot = self.slot(id)?;
        slot.close();
        if slot.outgoing.close == Word::Unsaid {
            slot.outgoing.close = Word::Wanted;
        }
        self.queue(id);
        self.forget(id);
        Ok(())
    }

    fn requested(&mut self, mut reader: Reader<'_>) -> Result<(), Error> {
        let id = reader.u32()?;
        let request = request(reader)?;
        let slot = self.slot(id)?;
        if slot.is_session && !slot.dropped {
            if slot.requests.len() >= WAITING {
                return Err(Error::Ssh("the peer asks too much of one channel"));
            }
            slot.requests.push_back(request);
            wake(&mut slot.keeper);
        } else if request.want_reply {
            self.reply(id, false);
        }
        Ok(())
    }

    fn say(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        let mut message = Vec::new();
        fill(&mut message);
        self.control.push_back(message);
        wake(&mut self.sender);
    }

    fn say_refusal(&mut self, peer: u32, reason: Refusal, text: &str) {
        self.say(|out| {
            out.put_byte(number::CHANNEL_OPEN_FAILURE).put_u32(peer);
            out.put_u32(reason as u32).put_string(text).put_string("");
        });
    }

    /// Puts a channel in line, if it has something to send.
    fn queue(&mut self, id: Id) {
        if let Some(slot) = self.channels.get_mut(&id)
            && !slot.queued
            && slot.can_send()
        {
            slot.queued = true;
            self.ready.push_back(id);
            wake(&mut self.sender);
        }
    }

    /// Removes a channel, if it is over for both sides.
    fn forget(&mut self, id: Id) {
        if let Some(slot) = self.channels.get(&id)
            && slot.is_over()
        {
            self.granted -= slot.incoming.allowance - FIRST_WINDOW;
            self.channels.remove(&id);
        }
    }
}

fn request(mut reader: Reader<'_>) -> Result<Request, Error> {
    Ok(Request {
        kind: reader.text()?.to_owned(),
        want_reply: reader.bool()?,
        data: reader.rest().to_vec(),
    })
}
