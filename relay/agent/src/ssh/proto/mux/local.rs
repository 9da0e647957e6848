//! What this side's tasks do with their channels.

use std::task::{Context, Poll};

use super::slot::{Slot, State, Word, give_back, wait};
use super::{FIRST_WINDOW, Id, Mux, PACKET, Refusal, Request};
use crate::ssh::proto::codec::{Put, u32_of};
use crate::ssh::proto::number;

impl Mux {
    /// Opens a channel that the peer asked for.
    pub(in crate::ssh) fn accept(&mut self, id: Id) {
        if let Some(slot) = self.channels.get_mut(&id)
            && slot.state == State::Asked
        {
            slot.state = State::Open;
            let peer = slot.peer;
            self.say(|out| {
                out.put_byte(number::CHANNEL_OPEN_CONFIRMATION)
                    .put_u32(peer)
                    .put_u32(id)
                    .put_u32(FIRST_WINDOW)
                    .put_u32(PACKET);
            });
        }
    }

    /// Does not open a channel that the peer asked for.
    pub(in crate::ssh) fn refuse(&mut self, id: Id, reason: Refusal, text: &str) {
        if let Some(slot) = self.channels.get_mut(&id)
            && slot.state == State::Asked
        {
            slot.state = State::Refused;
            let peer = slot.peer;
            self.say_refusal(peer, reason, text);
        }
    }

    /// Asks the peer for a channel; `None` when the connection has too many or is over.
    pub(in crate::ssh) fn open(&mut self, kind: &str, data: &[u8]) -> Option<Id> {
        if self.ended || self.channels.len() >= super::CHANNELS {
            return None;
        }
        let id = self.insert(Slot::new(State::Asking, 0, 0, 0));
        self.say(|out| {
            out.put_byte(number::CHANNEL_OPEN).put_string(kind);
            out.put_u32(id).put_u32(FIRST_WINDOW).put_u32(PACKET);
            out.put(data);
        });
        Some(id)
    }

    /// Waits for the peer's answer; says whether the channel is open.
    pub(in crate::ssh) fn poll_opened(&mut self, id: Id, cx: &Context<'_>) -> Poll<bool> {
        match self.channels.get_mut(&id) {
            Some(slot) if slot.closed || slot.state == State::Refused => Poll::Ready(false),
            Some(slot) if slot.state == State::Open => Poll::Ready(true),
            Some(slot) => wait(&mut slot.keeper, cx),
            None => Poll::Ready(false),
        }
    }

    /// Waits for a request; `None` when the peer has closed the channel.
    pub(in crate::ssh) fn poll_request(
        &mut self,
        id: Id,
        cx: &Context<'_>,
    ) -> Poll<Option<Request>> {
        let Some(slot) = self.channels.get_mut(&id) else {
            return Poll::Ready(None);
        };
        match slot.requests.pop_front() {
            Some(request) => Poll::Ready(Some(request)),
            None if slot.closed => Poll::Ready(None),
            None => wait(&mut slot.keeper, cx),
        }
    }

    /// Answers a request for a channel.
    pub(in crate::ssh) fn reply(&mut self, id: Id, success: bool) {
        if let Some(slot) = self.channels.get(&id)
            && slot.outgoing.close == Word::Unsaid
        {
            let peer = slot.peer;
            let kind = if success {
                number::CHANNEL_SUCCESS
            } else {
                number::CHANNEL_FAILURE
            };
            self.say(|out| {
                out.put_byte(kind).put_u32(peer);
            });
        }
    }

    /// Answers a request that concerned no channel; a success may have data.
    pub(in crate::ssh) fn reply_global(&mut self, answer: Option<&[u8]>) {
        self.say(|out| match answer {
            Some(data) => drop(out.put_byte(number::REQUEST_SUCCESS).put(data)),
            None => drop(out.put_byte(number::REQUEST_FAILURE)),
        });
    }

    /// Asks for a sign of life; what is answered does not matter.
    pub(in crate::ssh) fn ask_alive(&mut self) {
        self.say(|out| {
            out.put_byte(number::GLOBAL_REQUEST);
            out.put_string("keepalive@openssh.com").put_bool(true);
        });
    }

    /// Exchanges the peer's bytes for the empty buffer `spare`; an end of data gives no bytes.
    pub(in crate::ssh) fn poll_take(
        &mut self,
        id: Id,
        spare: &mut Vec<u8>,
        cx: &Context<'_>,
    ) -> Poll<()> {
        give_back(spare);
        let Some(slot) = self.channels.get_mut(&id) else {
            return Poll::Ready(());
        };
        let incoming = &mut slot.incoming;
        if !incoming.bytes.is_empty() {
            std::mem::swap(&mut incoming.bytes, spare);
        } else if !incoming.eof && !slot.closed {
            return wait(&mut incoming.reader, cx);
        }
        Poll::Ready(())
    }

    /// So many bytes that were taken are used.
    pub(in crate::ssh) fn credit(&mut self, id: Id, count: usize) {
        if let Some(slot) = self.channels.get_mut(&id) {
            slot.incoming.used += u32_of(count);
            self.queue(id);
        }
    }

    /// Takes bytes to send; `None` when the peer wants no more.
    pub(in crate::ssh) fn poll_write(
        &mut self,
        id: Id,
        stderr: bool,
        bytes: &[u8],
        cx: &Context<'_>,
    ) -> Poll<Option<usize>> {
        let Some(slot) = self.channels.get_mut(&id) else {
            return Poll::Ready(None);
        };
        let outgoing = &mut slot.outgoing;
        if slot.closed || outgoing.eof != Word::Unsaid || outgoing.close != Word::Unsaid {
            return Poll::Ready(None);
        }
        let pending = if stderr {
            &mut outgoing.stderr
        } else {
            &mut outgoing.data
        };
        let taken = pending.push(bytes);
        if taken == 0 && !bytes.is_empty() {
            return wait(&mut pending.writer, cx);
        }
        self.queue(id);
        Poll::Ready(Some(taken))
    }

    /// Says behind all data that no more comes.
    pub(in crate::ssh) fn shutdown(&mut self, id: Id) {
        if let Some(slot) = self.channels.get_mut(&id)
            && slot.outgoing.eof == Word::Unsaid
        {
            slot.outgoing.eof = Word::Wanted;
            self.queue(id);
        }
    }

    /// Makes a request that goes out behind all data and wants no reply.
    pub(in crate::ssh) fn say_last(&mut self, id: Id, kind: &str, data: &[u8]) {
        if let Some(slot) = self.channels.get_mut(&id)
            && !slot.closed
        {
            let mut message = Vec::new();
            message.put_string(kind).put_bool(false).put(data);
            slot.outgoing.last.push_back(message);
            self.queue(id);
        }
    }

    /// This side has no more to do with a channel: it is closed behind all data.
    pub(in crate::ssh) fn drop_channel(&mut self, id: Id) {
        let Some(slot) = self.channels.get_mut(&id) else {
            return;
        };
        slot.dropped = true;
        slot.incoming.bytes = Vec::new();
        match slot.state {
            State::Asked => self.refuse(id, Refusal::Prohibited, "nobody here takes it"),
            State::Asking | State::Open if slot.outgoing.close == Word::Unsaid => {
                slot.outgoing.close = Word::Wanted;
            }
            _ => {}
        }
        self.queue(id);
        self.forget(id);
        if self.ended {
            self.channels.remove(&id);
        }
    }
}
