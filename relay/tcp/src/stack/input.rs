//! Packets that come in. A burst of one connection is looked up once, and acknowledged once.

use super::{ConnectionId, Event, Stack, echo};
use crate::connection::{Request, State, Tuple};
use crate::emit::{Checksums, PacketSink, reset_for};
use crate::segment::{Flags, Ip, PROTOCOL_TCP, Segment};
use crate::time::Instant;

/// Packets without a connection that wait to be sent; more are not answered.
const MOST_REPLIES: usize = 256;

impl Stack {
    /// Takes packets of peers. What they make this end send comes from
    /// [`poll_transmit`](Self::poll_transmit), what the owner has to know from
    /// [`poll_event`](Self::poll_event).
    pub fn handle_packets<'a>(
        &mut self,
        now: Instant,
        packets: impl IntoIterator<Item = &'a [u8]>,
    ) {
        let verify = self.connection.checksums == Checksums::Full;
        let mut last: Option<(Tuple, ConnectionId)> = None;
        for packet in packets {
            let segment = match Segment::parse(packet, verify) {
                Ok(segment) => segment,
                Err(_) => {
                    self.handle_other(packet);
                    continue;
                }
            };
            let tuple = Tuple {
                local: segment.destination,
                remote: segment.source,
            };
            let known = last.filter(|(other, _)| *other == tuple).map(|(_, id)| id);
            let found = known.or_else(|| self.table.find(&tuple));
            match found {
                Some(id) if !self.makes_room(id, &segment) => {
                    self.handle_of(now, id, &segment);
                    last = Some((tuple, id));
                }
                _ => {
                    last = None;
                    self.handle_stranger(now, &tuple, &segment);
                }
            }
        }
    }

    fn handle_of(&mut self, now: Instant, id: ConnectionId, segment: &Segment<'_>) {
        if let Some(entry) = self.table.get(id) {
            entry.connection.handle_segment(now, segment);
            self.announce(id);
            self.make_ready(id);
        }
    }

    /// Whether `segment` is a SYN that may take the place of a connection that is over.
    fn makes_room(&mut self, id: ConnectionId, segment: &Segment<'_>) -> bool {
        if !segment.flags.has(Flags::SYN) {
            return false;
        }
        let Some(request) = Request::from_segment(segment) else {
            return false;
        };
        let Some(entry) = self.table.get(id) else {
            return true;
        };
        let is_over = entry.released || entry.connection.state() == State::TimeWait;
        if !is_over || !entry.connection.may_be_replaced(&request) {
            return false;
        }
        if entry.released {
            self.remove(id);
            return true;
        }
        false
    }

    /// A segment of no connection.
    fn handle_stranger(&mut self, now: Instant, tuple: &Tuple, segment: &Segment<'_>) {
        if !self.config.addresses.contains(&tuple.local.ip()) {
            return;
        }
        let held = self.requests.find(tuple);
        if segment.flags.has(Flags::RST) {
            if let Some(id) = held {
                self.requests.take(id);
                self.notes.push_back(Event::Withdrawn(id));
            }
            return;
        }
        let Some(mut request) = Request::from_segment(segment) else {
            if held.is_none() {
                self.reply_with(|sink| reset_for(segment, sink));
            }
            return;
        };
        if held.is_some() || tuple.remote.port() == 0 {
            return;
        }
        if !self.config.connection.early_data {
            request.drop_data();
        } else if request.has_data() && self.replays.contains(tuple, request.seq, now) {
            return;
        }
        let peer = tuple.remote.ip();
        let is_full = self.requests.len() >= self.config.max_requests
            || self.requests.len_of(peer) >= self.config.max_requests_of_peer;
        if is_full {
            // The peer asks again.
            return;
        }
        let patience = self.config.request_patience;
        let id = self.requests.add(request, now, patience);
        self.notes.push_back(Event::Requested {
            request: id,
            local: tuple.local,
            remote: tuple.remote,
        });
    }

    fn handle_other(&mut self, packet: &[u8]) {
        let Ok(ip) = Ip::parse(packet, true) else {
            return;
        };
        let is_ours = self.config.addresses.contains(&ip.destination);
        if ip.protocol != PROTOCOL_TCP && is_ours {
            self.reply_with(|sink| echo::answer(&ip, sink));
        }
    }

    /// Queues a packet that belongs to no connection, unless too many wait.
    pub(super) fn reply_with(&mut self, write: impl FnOnce(&mut dyn PacketSink) -> bool) {
        if self.replies.len() < MOST_REPLIES {
            let mut packets: Vec<Vec<u8>> = Vec::new();
            write(&mut packets);
            self.replies.extend(packets);
        }
    }
}
