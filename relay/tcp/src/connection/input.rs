//! Which segments count (RFC 9293 §3.10.7.4, with the checks of RFC 5961 and RFC 7323).

use std::time::Duration;

use super::{CloseReason, Connection, Request, State};
use crate::segment::{Ecn, Flags, Segment};
use crate::seq;
use crate::time::Instant;

/// After so much silence a peer's clock may have wrapped (RFC 7323 §5.5).
const TIMESTAMPS_EXPIRE: Duration = Duration::from_secs(24 * 24 * 3600);
/// Ticks of the peer's clock, of a millisecond usually, by which a timestamp may be older than the
/// latest without making its segment old.
const OVERTAKEN: u32 = 64;

impl Connection {
    /// Takes a segment of the peer. What it makes this end send comes from
    /// [`poll_transmit`](Self::poll_transmit), once for all segments taken before.
    pub fn handle_segment(&mut self, now: Instant, segment: &Segment<'_>) {
        match self.state {
            State::Closed => return,
            State::SynSent => return self.handle_in_syn_sent(now, segment),
            _ => {}
        }
        let position = seq::position(self.receive_next(), segment.seq);
        if !self.passes_timestamp(now, segment) {
            return;
        }
        if !self.is_acceptable(segment, position) {
            self.refuse(now, segment, position);
            return;
        }
        if segment.flags.has(Flags::RST) {
            self.handle_reset(now, position);
            return;
        }
        if segment.flags.has(Flags::SYN) {
            self.handle_syn(now, segment, position);
            return;
        }
        if !segment.flags.has(Flags::ACK) {
            return;
        }
        self.note_timestamp(now, segment, position);
        self.last_heard = now;
        self.keepalive_probes = 0;
        if !self.handle_ack(now, segment, position) || self.state == State::Closed {
            return;
        }
        self.note_congestion(segment);
        self.handle_data(now, segment, position);
        self.advance_state(now);
    }

    /// RFC 7323 §5.3, R1: an old timestamp means an old segment. One that is a little older was
    /// overtaken on its way: where packets change places that is every acknowledgement behind a
    /// later one, and all data behind the segment that filled a gap, and without them the sender
    /// would repair what arrived. The rule is there for numbers that came round again, and nobody
    /// sends 4 GiB in so short a time.
    fn passes_timestamp(&mut self, now: Instant, segment: &Segment<'_>) -> bool {
        if !self.agreed.timestamps || segment.flags.has(Flags::RST) {
            return true;
        }
        let Some((value, _)) = segment.options.timestamps else {
            // RFC 7323 §3.2: drop what has none, once agreed. A SYN is judged as one.
            return segment.flags.has(Flags::SYN);
        };
        let is_old = seq::is_older(value.wrapping_add(OVERTAKEN), self.timestamps.recent)
            && now.since(self.timestamps.recent_at) < TIMESTAMPS_EXPIRE;
        if is_old && !segment.flags.has(Flags::SYN) {
            self.challenge(now);
        }
        !is_old || segment.flags.has(Flags::SYN)
    }

    /// RFC 7323 §4.3, rule 2.
    fn note_timestamp(&mut self, now: Instant, segment: &Segment<'_>, position: u64) {
        if let Some((value, _)) = segment.options.timestamps
            && position <= self.ack_due.last_sent
            && !seq::is_older(value, self.timestamps.recent)
        {
            self.timestamps.recent = value;
            self.timestamps.recent_at = now;
        }
    }

    /// RFC 9293 §3.10.7.4, first: does the segment reach into the window? An acknowledgement
    /// right at its edge counts, also when the window is closed.
    fn is_acceptable(&self, segment: &Segment<'_>, position: u64) -> bool {
        let next = self.receive_next();
        let edge = self.receive_edge.max(next);
        let end = position + segment.length();
        if segment.length() == 0 {
            return (next..=edge).contains(&position);
        }
        // Data beyond a closed window is cut off; what else the segment says counts.
        end > next && position < edge || position == next
    }

    fn refuse(&mut self, now: Instant, segment: &Segment<'_>, position: u64) {
        if segment.flags.has(Flags::RST) {
            return;
        }
        // RFC 5961 §4, and RFC 9293 §3.10.7.4: a SYN of our peer's handshake may come again.
        if segment.flags.has(Flags::SYN) {
            self.handle_syn(now, segment, position);
            return;
        }
        if self.state == State::TimeWait && segment.flags.has(Flags::FIN) {
            self.linger = Some(now + self.config.time_wait);
        }
        if segment.payload.is_empty() && !segment.flags.has(Flags::FIN) {
            // An old acknowledgement, or a question whether we live.
            self.challenge(now);
        } else {
            // Our acknowledgement of it was lost.
            let end = position + segment.payload.len() as u64;
            if !segment.payload.is_empty() && end <= self.receive.next() {
                self.ack_due.duplicate = Some((position, end));
            }
            self.ack_due.now();
        }
        // What it acknowledges is news, however old its data is.
        if segment.flags.has(Flags::ACK)
            && position <= self.receive_next()
            && self.state.is_synchronized()
        {
            self.handle_ack(now, segment, position);
            self.advance_state(now);
        }
    }

    /// RFC 5961 §3: only a reset with the very number expected counts.
    fn handle_reset(&mut self, now: Instant, position: u64) {
        if position != self.receive_next() {
            self.challenge(now);
            return;
        }
        let reason = match self.state {
            State::SynReceived if !self.passive => CloseReason::Refused,
            // RFC 1337 would have it ignored; RFC 9293 §3.10.7.4 ends the wait.
            State::TimeWait => CloseReason::Finished,
            _ => CloseReason::Reset,
        };
        self.finish(reason);
    }

    /// RFC 5961 §4: a SYN in a connection is answered with what we expect, and changes nothing.
    fn handle_syn(&mut self, now: Instant, segment: &Segment<'_>, position: u64) {
        let is_again = position == self.receive_start;
        if self.state == State::SynReceived && is_again && !segment.flags.has(Flags::ACK) {
            self.handshake.due = Some(now);
            return;
        }
        if self.state == State::SynReceived && is_again {
            // Both ends opened at once, and this answers our SYN (RFC 9293 §3.5, figure 7).
            self.note_timestamp(now, segment, position);
            if self.handle_ack(now, segment, position + 1) {
                self.ack_due.now();
            }
            return;
        }
        self.challenge(now);
    }

    /// Answers with an acknowledgement, at most a few times a second.
    pub(super) fn challenge(&mut self, now: Instant) {
        if self.challenge.may_answer(now) {
            self.ack_due.now();
        }
    }

    /// RFC 3168 §6.1.3: tells the sender until it says that it heard.
    fn note_congestion(&mut self, segment: &Segment<'_>) {
        if !self.agreed.ecn {
            return;
        }
        if segment.flags.has(Flags::CWR) {
            self.echo_congestion = false;
        }
        if segment.ecn == Ecn::Congested {
            self.echo_congestion = true;
            self.ack_due.now();
        }
    }

    /// Goes on to the state that what was received and acknowledged leads to.
    pub(super) fn advance_state(&mut self, now: Instant) {
        let acknowledged = self.fin_acknowledged();
        self.state = match (self.state, acknowledged, self.fin_taken) {
            (State::Established, _, true) => State::CloseWait,
            (State::FinWait1 | State::FinWait2 | State::Closing, true, true) => {
                return self.enter_time_wait(now);
            }
            (State::FinWait1, false, true) => State::Closing,
            (State::FinWait1, true, false) => {
                if self.read_closed {
                    self.linger = Some(now + self.config.fin_wait);
                }
                State::FinWait2
            }
            (State::LastAck, true, _) => return self.finish(CloseReason::Finished),
            (state, _, _) => state,
        };
    }

    /// Whether a SYN may open a new connection in place of this one, which is in TIME-WAIT: only
    /// if it is surely newer (RFC 6191, RFC 9293 §3.6.1).
    pub fn may_be_replaced(&self, request: &Request) -> bool {
        if self.state != State::TimeWait {
            return self.state == State::Closed;
        }
        match (self.agreed.timestamps, request.timestamp()) {
            (true, Some(value)) if value != self.timestamps.recent => {
                seq::is_older(self.timestamps.recent, value)
            }
            _ => seq::position(self.receive_next(), request.seq) > self.receive_next(),
        }
    }
}
