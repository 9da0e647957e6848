//! Which segments are sent. One call makes one run: segments of one length, of which the last may
//! be shorter, as one send with segmentation offload takes them.

use super::{Connection, State};
use crate::emit::{PacketSink, Template};
use crate::recovery::Phase;
use crate::segment::{Ecn, Flags, Options};
use crate::seq;
use crate::time::Instant;

/// The most segments of one run: what the kernel takes as one send.
const MAX_RUN: usize = 64;
/// The most bytes of one run, headers included: what an IPv4 datagram of segments may hold.
const MAX_RUN_BYTES: usize = 65_000;

/// A run of packets that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// Number of packets.
    pub packets: usize,
    /// All their bytes.
    pub bytes: usize,
}

/// Segments that have one length, of which the last may be shorter.
#[derive(Debug, Default)]
struct Run {
    first: Option<usize>,
    packets: usize,
    bytes: usize,
    ended: bool,
}

impl Run {
    /// Whether a segment of `length` bytes of data may follow.
    fn takes(&self, length: usize) -> bool {
        let fits = self.packets < MAX_RUN && self.bytes + length + 100 <= MAX_RUN_BYTES;
        !self.ended && fits && self.first.is_none_or(|first| length <= first)
    }

    fn push(&mut self, length: usize, bytes: usize) {
        self.ended = self.first.is_some_and(|first| length < first);
        self.first = self.first.or(Some(length));
        self.packets += 1;
        self.bytes += bytes;
    }

    fn finish(self) -> Option<Transmit> {
        (self.packets > 0).then_some(Transmit {
            packets: self.packets,
            bytes: self.bytes,
        })
    }
}

impl Connection {
    /// Writes the next run of packets into `sink`; none: there is nothing to send now.
    pub fn poll_transmit(&mut self, now: Instant, sink: &mut dyn PacketSink) -> Option<Transmit> {
        self.paced_until = None;
        self.recovery.judge(now);
        if let Some(position) = self.reset.take() {
            return self.send_reset(now, position, sink);
        }
        match self.state {
            State::Closed => None,
            State::SynSent => self.send_syn(now, sink),
            State::SynReceived => self
                .send_syn(now, sink)
                .or_else(|| self.send_data(now, sink)),
            _ => self
                .send_data(now, sink)
                .or_else(|| self.send_empty_probe(now, sink))
                .or_else(|| self.send_acks(now, sink)),
        }
    }

    fn send_reset(
        &mut self,
        now: Instant,
        position: u64,
        sink: &mut dyn PacketSink,
    ) -> Option<Transmit> {
        // Before the peer's SYN came there is nothing to acknowledge.
        let flags = match self.receive_start {
            0 => Flags::RST,
            _ => Flags::RST | Flags::ACK,
        };
        let options = self.data_options(now);
        let template = self.template(&options, 0, Ecn::NotCapable);
        let bytes = template.write(sink, seq::number(position), flags, 0, |_| {});
        Some(Transmit { packets: 1, bytes })
    }

    fn send_data(&mut self, now: Instant, sink: &mut dyn PacketSink) -> Option<Transmit> {
        if !self.may_send() {
            return None;
        }
        if self.tail_probe {
            self.tail_probe = false;
            return self.send_tail_probe(now, sink);
        }
        let rate = self.recovery.pacing_rate();
        let may_send_more =
            self.recovery.first_lost().is_some() || self.recovery.next() < self.send_end();
        if !may_send_more {
            if self.is_drained() {
                self.pacer.idle();
                self.recovery.set_app_limited();
            }
            return None;
        }
        let allowance = match self.pacer.allowance(now, rate, self.mss as u64) {
            Ok(bytes) => bytes,
            Err(at) => {
                self.paced_until = Some(at);
                return None;
            }
        };
        let before = self.recovery.next();
        let sent = self
            .send_lost(now, allowance, sink)
            .or_else(|| self.send_new(now, allowance, sink));
        let Some(sent) = sent else {
            // A window keeps it back, and no timer.
            self.pacer.idle();
            return None;
        };
        self.pacer.sent(rate, sent.bytes as u64);
        self.recovery.arm_after_sending(now);
        if self.recovery.next() > before {
            self.persist = None;
            self.tell_writer();
        }
        Some(sent)
    }

    /// Sends lost segments again, lowest first.
    fn send_lost(
        &mut self,
        now: Instant,
        allowance: u64,
        sink: &mut dyn PacketSink,
    ) -> Option<Transmit> {
        self.recovery.first_lost()?;
        let (mut run, mut total) = (Run::default(), 0);
        let template = self.data_template(now, Ecn::NotCapable);
        while let Some((id, sent)) = self.recovery.first_lost() {
            let length = sent.length();
            let may_go = self.recovery.room() >= length || self.recovery.in_flight() == 0;
            if !may_go || !run.takes(length as usize) || total >= allowance {
                break;
            }
            let bytes = self.write_segment(&template, sent.start, sent.end, Flags::NONE, sink);
            self.recovery.resent(now, id, length);
            run.push(length as usize, bytes);
            total += bytes as u64;
        }
        let sent = run.finish()?;
        self.note_ack_sent();
        Some(sent)
    }

    /// Sends new data, and our end behind it.
    fn send_new(
        &mut self,
        now: Instant,
        allowance: u64,
        sink: &mut dyn PacketSink,
    ) -> Option<Transmit> {
        if self.recovery.first_lost().is_some() {
            self.recovery.set_window_limited();
            return None;
        }
        let ecn = match self.agreed.ecn {
            true => Ecn::Capable0,
            false => Ecn::NotCapable,
        };
        let (mut run, mut total, mut template) = (Run::default(), 0, None);
        while total < allowance {
            let Some(length) = self.next_length() else {
                break;
            };
            let is_first = self.recovery.in_flight() == 0;
            if self.recovery.room() < length && !is_first {
                self.recovery.set_window_limited();
                break;
            }
            if !run.takes(length as usize) {
                break;
            }
            let template = template.get_or_insert_with(|| self.data_template(now, ecn));
            let start = self.recovery.next();
            let flags = match self.agreed.ecn && self.recovery.take_reduced() {
                true => Flags::CWR,
                false => Flags::NONE,
            };
            let bytes = self.write_segment(template, start, start + length, flags, sink);
            self.recovery.sent(now, length);
            run.push(length as usize, bytes);
            total += bytes as u64;
        }
        if self.is_drained() || self.is_kept_back_by_peer() {
            self.recovery.set_app_limited();
        }
        let sent = run.finish()?;
        self.note_ack_sent();
        Some(sent)
    }

    /// Length of the next new segment, our end included; none if the peer's window or the
    /// avoidance of silly windows (RFC 9293 §3.8.6.2.1) keeps it back.
    fn next_length(&mut self) -> Option<u64> {
        let next = self.recovery.next();
        let waiting = self.buffer.end().saturating_sub(next);
        if waiting == 0 {
            // Only our end is left; it needs no window.
            return (self.send_end() > next).then_some(1);
        }
        let usable = self.send_edge.saturating_sub(next);
        let mss = self.mss as u64;
        let length = waiting.min(usable).min(mss);
        let overridden = self
            .persist
            .as_mut()
            .is_some_and(|persist| persist.take_override());
        let worthwhile = length == mss
            || length == waiting
            || length >= (self.send_window_max / 2).max(1)
            || overridden && length > 0;
        if length == 0 || !worthwhile {
            return None;
        }
        let ends = self.fin_queued && length == waiting;
        Some(length + u64::from(ends))
    }

    /// Whether the peer's window is what keeps new data back: the path would take more, so that
    /// what arrives tells nothing of its rate.
    fn is_kept_back_by_peer(&self) -> bool {
        let usable = self.send_edge.saturating_sub(self.recovery.next());
        usable < self.mss as u64 && self.recovery.room() >= self.mss as u64
    }

    fn send_tail_probe(&mut self, now: Instant, sink: &mut dyn PacketSink) -> Option<Transmit> {
        let (template, start, end, id) = match self.next_length() {
            Some(length) => {
                let start = self.recovery.next();
                let template = self.data_template(now, Ecn::NotCapable);
                (template, start, start + length, None)
            }
            None => {
                let (id, sent) = self.recovery.tail()?;
                let template = self.data_template(now, Ecn::NotCapable);
                (template, sent.start, sent.end, Some(id))
            }
        };
        let bytes = self.write_segment(&template, start, end, Flags::NONE, sink);
        match id {
            Some(id) => self.recovery.resent(now, id, end - start),
            None => self.recovery.sent(now, end - start),
        }
        self.recovery.probed(now, id.is_some());
        self.note_ack_sent();
        Some(Transmit { packets: 1, bytes })
    }

    /// Writes the segment from `start` to `end`, our end included if that lies in it.
    fn write_segment(
        &self,
        template: &Template,
        start: u64,
        end: u64,
        mut flags: Flags,
        sink: &mut dyn PacketSink,
    ) -> usize {
        let data_end = end.min(self.buffer.end());
        if end > data_end {
            flags = flags | Flags::FIN;
        }
        if data_end == self.buffer.end() {
            flags = flags | Flags::PSH;
        }
        let length = data_end.saturating_sub(start) as usize;
        template.write(
            sink,
            seq::number(start),
            flags | self.ack_flags(),
            length,
            |room| {
                self.buffer.read(start, room);
            },
        )
    }

    /// A segment without data that the peer has to answer: a question to an idle peer
    /// (RFC 9293 §3.8.4), or whether its window is still closed (§3.8.6.1). Its number is one
    /// below what the peer expects.
    fn send_empty_probe(&mut self, now: Instant, sink: &mut dyn PacketSink) -> Option<Transmit> {
        if !std::mem::take(&mut self.empty_probe) {
            return None;
        }
        let position = self.recovery.edge() - 1;
        let template = self.data_template(now, Ecn::NotCapable);
        let bytes = template.write(sink, seq::number(position), self.ack_flags(), 0, |_| {});
        self.note_ack_sent();
        Some(Transmit { packets: 1, bytes })
    }

    fn send_acks(&mut self, now: Instant, sink: &mut dyn PacketSink) -> Option<Transmit> {
        let delayed = self.ack_due.delayed_until.is_some_and(|at| at <= now);
        if !self.ack_due.immediate && !delayed {
            return None;
        }
        let all = self.ack_options(now);
        let window = self.offer_window();
        let number = seq::number(self.recovery.next());
        let mut bytes = 0;
        for options in &all {
            let template = self.template(options, window, Ecn::NotCapable);
            bytes += template.write(sink, number, self.ack_flags(), 0, |_| {});
        }
        self.ack_due.sent(self.receive_next());
        Some(Transmit {
            packets: all.len(),
            bytes,
        })
    }

    /// A segment with data was sent, which acknowledges too; gaps need an acknowledgement of their
    /// own, since its options would make the segment longer than others.
    fn note_ack_sent(&mut self) {
        if self.has_gaps_to_tell() || self.ack_due.out_of_order > 0 {
            return;
        }
        self.ack_due.sent(self.receive_next());
    }

    fn ack_flags(&self) -> Flags {
        match self.echo_congestion {
            true => Flags::ACK | Flags::ECE,
            false => Flags::ACK,
        }
    }

    fn data_template(&mut self, now: Instant, ecn: Ecn) -> Template {
        let options = self.data_options(now);
        let window = self.offer_window();
        self.template(&options, window, ecn)
    }

    pub(super) fn template(&self, options: &Options, window: u16, ecn: Ecn) -> Template {
        let ack = match self.receive_start {
            0 => 0,
            _ => seq::number(self.receive_next()),
        };
        let (from, to) = (self.tuple.local, self.tuple.remote);
        Template::new(from, to, ack, window, options, ecn, self.config.checksums)
    }

    /// Whether something is being repaired.
    pub fn is_recovering(&self) -> bool {
        self.recovery.phase() != Phase::Open
    }
}
