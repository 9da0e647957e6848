//! The handshake (RFC 9293 §3.5) and what its options agree on.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{Connection, Secrets, State, Timestamps, Transmit, Tuple};
use crate::buffer::ReceiveBuffer;
use crate::emit::PacketSink;
use crate::pool::Pool;
use crate::recovery::Recovery;
use crate::segment::{Ecn, Flags, Options, Segment};
use crate::time::Instant;
use crate::{Config, cc, emit, seq};

/// The payload a peer takes that says nothing (RFC 9293 §3.7.1), by the family of its address.
const DEFAULT_MSS: (u16, u16) = (536, 1220);
/// No segment is cut smaller, whatever the peer or the path says.
const LEAST_MSS: usize = 64;
/// Bytes of data that go with a SYN, and that are kept of one, at most.
pub const MOST_EARLY: usize = 4096;
/// Time before a SYN is sent again (RFC 6298 §2.1).
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);

/// What both ends can do.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Agreed {
    pub(super) timestamps: bool,
    pub(super) sack: bool,
    pub(super) ecn: bool,
    pub(super) scaling: bool,
    /// Shift of the windows the peer offers, and of ours.
    pub(super) send_shift: u8,
    pub(super) receive_shift: u8,
}

/// SYNs sent so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Handshake {
    pub(super) started: Instant,
    sent_at: Instant,
    sent: u32,
    pub(super) due: Option<Instant>,
    /// The first bytes go with our first SYN.
    with_data: bool,
    /// One past those that went, if any did.
    data_end: u64,
    /// The window that our SYN offered.
    window: u16,
}

impl Handshake {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            started: now,
            sent_at: now,
            sent: 0,
            due: Some(now),
            with_data: false,
            data_end: 0,
            window: 0,
        }
    }

    /// Whether our SYN, or our answer to the peer's, has gone out.
    pub(super) fn is_sent(&self) -> bool {
        self.sent > 0
    }

    /// A SYN goes out; the next one follows if no answer comes.
    pub(super) fn sent(&mut self, now: Instant, longest: Duration) {
        self.sent_at = now;
        let wait = FIRST_TIMEOUT
            .saturating_mul(1 << self.sent.min(16))
            .min(longest);
        self.sent += 1;
        self.due = Some(now + wait);
    }

    fn round_trip(&self, now: Instant) -> Option<Duration> {
        (self.sent == 1).then(|| now.since(self.sent_at))
    }
}

/// A SYN that asks for a connection, kept until somebody decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its ends, as seen from here.
    pub tuple: Tuple,
    pub(crate) seq: u32,
    window: u16,
    options: Options,
    wants_ecn: bool,
    data: Vec<u8>,
}

impl Request {
    /// The request that `segment` makes, if it is a SYN and nothing else.
    pub fn from_segment(segment: &Segment<'_>) -> Option<Self> {
        let flags = segment.flags;
        let others = Flags::ACK | Flags::RST | Flags::FIN;
        if !flags.has(Flags::SYN) || flags.without(others) != flags {
            return None;
        }
        Some(Self {
            tuple: Tuple {
                local: segment.destination,
                remote: segment.source,
            },
            seq: segment.seq,
            window: segment.window,
            options: segment.options,
            wants_ecn: flags.has(Flags::ECE | Flags::CWR),
            data: segment.payload[..segment.payload.len().min(MOST_EARLY)].to_vec(),
        })
    }

    /// Answers with a reset.
    pub(crate) fn refuse(&self, sink: &mut dyn PacketSink) -> bool {
        let syn = Segment {
            source: self.tuple.remote,
            destination: self.tuple.local,
            seq: self.seq,
            ack: 0,
            flags: Flags::SYN,
            window: 0,
            options: Options::default(),
            ecn: Ecn::NotCapable,
            payload: &self.data,
        };
        emit::reset_for(&syn, sink)
    }

    /// The sender's timestamp, which tells a new SYN from an old one (RFC 6191).
    pub(crate) fn timestamp(&self) -> Option<u32> {
        self.options.timestamps.map(|(value, _)| value)
    }

    /// Whether data came with it.
    pub(crate) fn has_data(&self) -> bool {
        !self.data.is_empty()
    }

    /// Forgets the data that came with it; its sender sends it again once the connection is open.
    pub(crate) fn drop_data(&mut self) {
        self.data = Vec::new();
    }
}

impl Connection {
    /// Opens a connection; its SYN is the first thing to transmit.
    pub fn connect(
        config: Arc<Config>,
        tuple: Tuple,
        secrets: Secrets,
        pool: &Pool,
        now: Instant,
    ) -> Self {
        Self::new(config, tuple, State::SynSent, secrets, pool, now)
    }

    /// The same with `first` as the first bytes, and how many of them were taken. They go with the
    /// SYN as far as one packet holds them (RFC 7413, without a cookie), and the peer may act on
    /// them at once. A peer that does not take them gets them again when the connection is open.
    pub fn connect_with(
        config: Arc<Config>,
        tuple: Tuple,
        secrets: Secrets,
        pool: &Pool,
        now: Instant,
        first: &[u8],
    ) -> (Self, usize) {
        let mut this = Self::connect(config, tuple, secrets, pool, now);
        let taken = this.buffer.push(first, this.send_limit());
        this.handshake.with_data = taken > 0;
        (this, taken)
    }

    /// Takes the connection that `request` asks for; the SYN's answer is the first thing to
    /// transmit.
    pub fn accept(
        config: Arc<Config>,
        request: &Request,
        secrets: Secrets,
        pool: &Pool,
        now: Instant,
    ) -> Self {
        let mut this = Self::new(
            config,
            request.tuple,
            State::SynReceived,
            secrets,
            pool,
            now,
        );
        this.passive = true;
        this.take_syn(request, now);
        this.agreed.ecn = this.config.ecn && request.wants_ecn;
        this.take_early_data(request);
        this
    }

    /// Takes what came with the peer's SYN (RFC 7413 §4.2.2), as far as it is allowed and fits.
    fn take_early_data(&mut self, syn: &Request) {
        if !self.config.early_data || !syn.has_data() {
            return;
        }
        let room = usize::try_from(self.free()).unwrap_or(usize::MAX);
        let data = &syn.data[..syn.data.len().min(room)];
        let stored = self.receive.store(self.receive_start + 1, data);
        // Nothing is waited for: the peer is there, and said something.
        self.events.connected = stored.in_order > 0;
        self.events.readable = stored.in_order > 0;
    }

    /// Notes what the peer's SYN says.
    fn take_syn(&mut self, syn: &Request, now: Instant) {
        let start = seq::first(syn.seq);
        let pool = self.receive.pool().clone();
        self.receive = ReceiveBuffer::new(pool, start + 1);
        self.receive_start = start;
        self.receive_edge = start + 1 + u64::from(self.handshake.window);
        self.agree(&syn.options, now);
        // The window of a SYN is not shifted (RFC 7323 §2.2).
        self.send_edge = self.recovery.edge() + u64::from(syn.window);
        self.send_window_max = u64::from(syn.window);
        self.window_from = (start, self.recovery.edge());
    }

    fn agree(&mut self, theirs: &Options, now: Instant) {
        let config = &self.config;
        let (v4, v6) = DEFAULT_MSS;
        let default = if self.tuple.remote.is_ipv4() { v4 } else { v6 };
        self.peer_mss = theirs.mss.unwrap_or(default);
        self.agreed.timestamps = config.timestamps && theirs.timestamps.is_some();
        self.agreed.sack = config.sack && theirs.sack_permitted;
        if let Some(shift) = theirs.window_scale
            && config.window_scaling
        {
            self.agreed.scaling = true;
            self.agreed.send_shift = shift;
            self.agreed.receive_shift = config.window_shift();
        }
        if let Some((value, _)) = theirs.timestamps {
            self.timestamps = Timestamps {
                recent: value,
                recent_at: now,
            };
        }
        self.mss = self.effective_mss();
        let mss = self.mss as u64;
        let control = cc::new(config.algorithm, mss, self.secrets.seed);
        let rtt = self.recovery.rtt.clone();
        let start = self.recovery.edge();
        self.recovery = Recovery::new(rtt, control, start, mss, self.agreed.sack);
    }

    /// The peer answers our SYN, or sends its own at the same time (RFC 9293 §3.10.7.3).
    pub(super) fn handle_in_syn_sent(&mut self, now: Instant, segment: &Segment<'_>) {
        let flags = segment.flags;
        let start = seq::first(self.secrets.initial_sequence);
        let has_ack = flags.has(Flags::ACK);
        let acked = seq::position(start, segment.ack);
        let sent = start + 1..=self.handshake.data_end.max(start + 1);
        if has_ack && !sent.contains(&acked) {
            if !flags.has(Flags::RST) {
                self.reset = Some(acked);
            }
            return;
        }
        if flags.has(Flags::RST) {
            if has_ack {
                self.finish(super::CloseReason::Refused);
            }
            return;
        }
        if !flags.has(Flags::SYN) {
            return;
        }
        let syn = Request {
            tuple: self.tuple,
            seq: segment.seq,
            window: segment.window,
            options: segment.options,
            wants_ecn: false,
            data: Vec::new(),
        };
        if has_ack {
            // What went with the SYN and is not acknowledged counts as not sent.
            self.recovery.skip_to(acked);
            self.buffer.acknowledge(acked);
        }
        self.take_syn(&syn, now);
        if has_ack {
            // RFC 3168 §6.1.1: the answer has ECE and not CWR.
            let ecn = flags.has(Flags::ECE) && !flags.has(Flags::CWR);
            self.agreed.ecn = self.config.ecn && ecn;
            self.establish(now);
            self.take_answer(now, segment, start, acked);
        } else {
            self.state = State::SynReceived;
            self.handshake.due = Some(now);
        }
    }

    /// The peer answered our SYN, and acknowledges up to `acked`.
    fn take_answer(&mut self, now: Instant, segment: &Segment<'_>, start: u64, acked: u64) {
        if acked > start + 1 && self.buffer.len() == 0 {
            // The peer is served since our data came. What acknowledges its answer waits for
            // something to travel with, or to acknowledge.
            self.ack_due.delayed_until = Some(now + self.config.delayed_ack);
        } else {
            self.ack_due.now();
        }
        if segment.payload.is_empty() {
            return;
        }
        let data = Segment {
            seq: segment.seq.wrapping_add(1),
            flags: segment.flags.without(Flags::SYN),
            ..*segment
        };
        self.handle_data(now, &data, self.receive_start + 1);
        self.advance_state(now);
    }

    /// Bytes of data that go with our SYN, whose options are these.
    fn early_length(&self, options: &Options) -> usize {
        if !self.handshake.with_data || self.handshake.is_sent() || self.state != State::SynSent {
            return 0;
        }
        let limit = payload_limit(self.mtu, self.tuple.remote.ip());
        let room = limit.saturating_sub(emit::options_length(options));
        room.min(MOST_EARLY).min(self.buffer.len() as usize)
    }

    /// Sends our SYN, or our answer to the peer's. What goes with the first SYN is not sent with
    /// later ones, as it may be what keeps them from arriving (RFC 7413 §4.1.3).
    pub(super) fn send_syn(&mut self, now: Instant, sink: &mut dyn PacketSink) -> Option<Transmit> {
        if self.handshake.due.is_none_or(|due| due > now) {
            return None;
        }
        let ecn_offered = self.config.ecn;
        let flags = match (self.state, self.agreed.ecn) {
            (State::SynReceived, true) => Flags::SYN | Flags::ACK | Flags::ECE,
            (State::SynReceived, false) => Flags::SYN | Flags::ACK,
            _ if ecn_offered => Flags::SYN | Flags::ECE | Flags::CWR,
            _ => Flags::SYN,
        };
        let options = self.syn_options(now);
        let window = self.offer_first_window();
        let template = self.template(&options, window, Ecn::NotCapable);
        let (first, length) = (self.recovery.edge(), self.early_length(&options));
        let number = self.secrets.initial_sequence;
        let bytes = template.write(sink, number, flags, length, |room| {
            self.buffer.read(first, room);
        });
        if length > 0 {
            self.handshake.data_end = first + length as u64;
        }
        self.handshake.window = window;
        self.handshake.sent(now, self.config.rto_max);
        if self.state == State::SynReceived {
            self.ack_due.sent(self.receive_next());
        }
        Some(Transmit { packets: 1, bytes })
    }

    /// The handshake is over.
    pub(super) fn establish(&mut self, now: Instant) {
        if let Some(rtt) = self.handshake.round_trip(now) {
            self.recovery.rtt.sample(rtt, now);
        }
        self.handshake.due = None;
        self.state = if self.fin_queued {
            State::FinWait1
        } else {
            State::Established
        };
        self.events.connected = true;
        self.recovery.progress = now;
    }

    /// The options of our SYN, or of our answer to the peer's.
    pub(super) fn syn_options(&self, now: Instant) -> Options {
        let answers = self.state == State::SynReceived;
        let config = &self.config;
        let wants = |offered: bool, agreed: bool| offered && (agreed || !answers);
        let scaled = self.agreed.scaling;
        let timestamps = wants(config.timestamps, self.agreed.timestamps);
        let echo = if answers { self.timestamps.recent } else { 0 };
        Options {
            mss: Some(payload_limit(self.mtu, self.tuple.remote.ip()) as u16),
            window_scale: wants(config.window_scaling, scaled).then(|| config.window_shift()),
            sack_permitted: wants(config.sack, self.agreed.sack),
            timestamps: timestamps.then(|| (self.timestamp(now), echo)),
            ..Options::default()
        }
    }

    /// Our clock as the peer sees it, in milliseconds.
    pub(super) fn timestamp(&self, now: Instant) -> u32 {
        (now.as_millis() as u32).wrapping_add(self.secrets.timestamp_offset)
    }

    /// Bytes of data in a full segment, beside the options each segment has.
    fn effective_mss(&self) -> usize {
        let ours = payload_limit(self.mtu, self.tuple.remote.ip());
        let options = emit::options_length(&Options {
            timestamps: self.agreed.timestamps.then_some((0, 0)),
            ..Options::default()
        });
        let mss = ours.min(usize::from(self.peer_mss));
        mss.saturating_sub(options).max(LEAST_MSS)
    }

    pub(super) fn apply_mss(&mut self) {
        let mss = self.effective_mss();
        if mss != self.mss {
            self.mss = mss;
            self.recovery.set_mss(mss as u64);
        }
    }
}

/// Bytes of data and options that packets of `mtu` bytes have room for.
pub(super) fn payload_limit(mtu: u16, address: IpAddr) -> usize {
    usize::from(mtu)
        .saturating_sub(emit::headers_length(address))
        .max(LEAST_MSS)
}
