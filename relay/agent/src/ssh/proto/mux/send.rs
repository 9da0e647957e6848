//! What goes out, and in which order: answers first, then channels in turn.

use std::task::{Context, Poll};

use super::slot::{Slot, Word, wait};
use super::{BUDGET, FULL_WINDOW, Id, Mux};
use crate::ssh::proto::codec::{Put, u32_of};
use crate::ssh::proto::number;

/// The longest packet of data, bytes, if the peer takes such ones.
const LONGEST: usize = 64 << 10;

impl Mux {
    /// Waits until there is something to send.
    pub(in crate::ssh) fn poll_ready(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.control.is_empty() && self.ready.is_empty() {
            return wait(&mut self.sender, cx);
        }
        Poll::Ready(())
    }

    /// What is to be sent next, if there is anything.
    pub(in crate::ssh) fn next(&mut self) -> Option<Message> {
        if let Some(message) = self.control.pop_front() {
            return Some(Message::Control(message));
        }
        loop {
            let id = self.ready.pop_front()?;
            if let Some(slot) = self.channels.get_mut(&id) {
                slot.queued = false;
                if slot.can_send() {
                    return Some(Message::Of(id));
                }
            }
        }
    }

    /// Appends the message that [`Self::next`] found.
    pub(in crate::ssh) fn write(&mut self, message: &Message, out: &mut Vec<u8>) {
        let id = match message {
            Message::Control(message) => {
                out.put(message);
                return;
            }
            Message::Of(id) => *id,
        };
        if let Some(slot) = self.channels.get_mut(&id) {
            if slot.wants_adjust() {
                let more = (FULL_WINDOW - slot.incoming.allowance).min(BUDGET - self.granted);
                self.granted += more;
                slot.adjust(more, out);
            } else {
                slot.write(out);
            }
        }
        self.queue(id);
        self.forget(id);
    }
}

/// Something to send.
pub(in crate::ssh) enum Message {
    Control(Vec<u8>),
    Of(Id),
}

impl Slot {
    /// Gives the peer back what was used of its window, and `more`.
    fn adjust(&mut self, more: u32, out: &mut Vec<u8>) {
        let incoming = &mut self.incoming;
        let grant = std::mem::take(&mut incoming.used) + more;
        incoming.allowance += more;
        incoming.window += grant;
        out.put_byte(number::CHANNEL_WINDOW_ADJUST)
            .put_u32(self.peer)
            .put_u32(grant);
    }

    fn write(&mut self, out: &mut Vec<u8>) {
        let (peer, outgoing) = (self.peer, &mut self.outgoing);
        let most = LONGEST.min(outgoing.window.min(outgoing.packet) as usize);
        for (pending, kind) in [
            (&mut outgoing.data, None),
            (&mut outgoing.stderr, Some(number::STDERR)),
        ] {
            let left = pending.left();
            if left.is_empty() || most == 0 {
                continue;
            }
            let data = &left[..left.len().min(most)];
            match kind {
                None => out.put_byte(number::CHANNEL_DATA).put_u32(peer),
                Some(kind) => out
                    .put_byte(number::CHANNEL_EXTENDED_DATA)
                    .put_u32(peer)
                    .put_u32(kind),
            };
            out.put_string(data);
            let count = data.len();
            outgoing.window -= u32_of(count);
            pending.advance(count);
            return;
        }
        if outgoing.eof == Word::Wanted && !self.closed {
            outgoing.eof = Word::Said;
            out.put_byte(number::CHANNEL_EOF).put_u32(peer);
        } else if let Some(message) = outgoing.last.pop_front() {
            out.put_byte(number::CHANNEL_REQUEST).put_u32(peer);
            out.put(&message);
        } else {
            outgoing.close = Word::Said;
            out.put_byte(number::CHANNEL_CLOSE).put_u32(peer);
        }
    }
}
