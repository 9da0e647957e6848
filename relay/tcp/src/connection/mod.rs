//! One TCP connection (RFC 9293), without I/O: segments and the time go in, packets and events come
//! out.
//!
//! | file | job |
//! |---|---|
//! | `state` | names of states, events, timers |
//! | `open` | handshake and what it agrees on |
//! | `input` | which segments count |
//! | `ack` | what an acknowledgement does to the sending side |
//! | `receive` | what data and the peer's end do, windows offered, when to acknowledge |
//! | `output` | which segments are sent |
//! | `timers` | what happens when time passes |

mod ack;
mod input;
mod open;
mod output;
mod receive;
mod state;
mod timers;

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use open::{MOST_EARLY, Request};
pub use output::Transmit;
pub use state::{CloseReason, Events, State, Timer};

use crate::buffer::{Lent, ReceiveBuffer, SendBuffer};
use crate::pacer::Pacer;
use crate::pool::Pool;
use crate::recovery::{Recovery, Rtt};
use crate::time::Instant;
use crate::{Config, cc, seq};

use open::{Agreed, Handshake};
use receive::{AckDue, Tuning};
use timers::Persist;

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// This end.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
}

/// Random numbers for one connection: they must not be guessable (RFC 9293 §3.4.1, RFC 7323 §5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Secrets {
    /// The number of our SYN.
    pub initial_sequence: u32,
    /// Where our timestamps start.
    pub timestamp_offset: u32,
    /// For the choices of the congestion control.
    pub seed: u64,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    config: Arc<Config>,
    tuple: Tuple,
    state: State,
    passive: bool,
    secrets: Secrets,
    handshake: Handshake,
    agreed: Agreed,
    events: Events,
    mtu: u16,
    /// A reset to send: its number, and whether it acknowledges.
    reset: Option<u64>,
    /// Challenge acknowledgements (RFC 5961) that may still be sent this second.
    challenge: Challenge,
    last_heard: Instant,
    keepalive_probes: u32,
    /// A probe of an idle peer or of a closed window is to be sent.
    empty_probe: bool,
    linger: Option<Instant>,
    user_timeout: Duration,

    buffer: SendBuffer,
    recovery: Recovery,
    pacer: Pacer,
    /// One past the highest position that the peer takes.
    send_edge: u64,
    /// The largest window the peer offered.
    send_window_max: u64,
    /// Positions of the segment that set the window last (RFC 9293 §3.10.7.4).
    window_from: (u64, u64),
    mss: usize,
    peer_mss: u16,
    fin_queued: bool,
    writer: Writer,
    /// Somebody waits until all is acknowledged.
    flush_awaited: bool,
    tail_probe: bool,
    persist: Option<Persist>,
    paced_until: Option<Instant>,

    receive: ReceiveBuffer,
    /// Position of the peer's SYN.
    receive_start: u64,
    /// One past the highest position offered to the peer; it never moves back.
    receive_edge: u64,
    receive_limit: u64,
    /// To what `receive_limit` may grow.
    receive_max: u64,
    tuning: Tuning,
    fin_at: Option<u64>,
    fin_taken: bool,
    /// Whether nobody reads any more.
    read_closed: bool,
    ack_due: AckDue,
    timestamps: Timestamps,
    /// Congestion was seen and the peer has not said that it heard (RFC 3168 §6.1.3).
    echo_congestion: bool,
}

/// The peer's timestamps (RFC 7323 §4.3).
#[derive(Debug, Clone, Copy, Default)]
struct Timestamps {
    recent: u32,
    recent_at: Instant,
}

/// What the application is about to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Writer {
    /// To write, if it has anything.
    #[default]
    Content,
    /// It had more than there was room for, and waits to be told of room.
    Blocked,
    /// It was told.
    Told,
}

impl Writer {
    fn blocked_if(blocked: bool) -> Self {
        match blocked {
            true => Self::Blocked,
            false => Self::Content,
        }
    }
}

/// Limits answers to segments that may be forged (RFC 5961 §7).
#[derive(Debug, Clone, Copy, Default)]
struct Challenge {
    second: u64,
    count: u32,
}

impl Challenge {
    const PER_SECOND: u32 = 10;

    fn may_answer(&mut self, now: Instant) -> bool {
        let second = now.as_millis() / 1000;
        if second != self.second {
            *self = Self { second, count: 0 };
        }
        self.count += 1;
        self.count <= Self::PER_SECOND
    }
}

impl Connection {
    fn new(
        config: Arc<Config>,
        tuple: Tuple,
        state: State,
        secrets: Secrets,
        pool: &Pool,
        now: Instant,
    ) -> Self {
        let start = seq::first(secrets.initial_sequence);
        let mtu = config.mtu;
        let mss = open::payload_limit(mtu, tuple.remote.ip());
        let rtt = Rtt::new(config.rto_min, config.rto_max);
        let control = cc::new(config.algorithm, mss as u64, secrets.seed);
        Self {
            tuple,
            state,
            passive: false,
            secrets,
            handshake: Handshake::new(now),
            agreed: Agreed::default(),
            events: Events::default(),
            mtu,
            reset: None,
            challenge: Challenge::default(),
            last_heard: now,
            keepalive_probes: 0,
            empty_probe: false,
            linger: None,
            buffer: SendBuffer::new(pool.clone(), start + 1),
            recovery: Recovery::new(rtt, control, start + 1, mss as u64, config.sack),
            pacer: Pacer::default(),
            send_edge: start + 1,
            send_window_max: 0,
            window_from: (0, 0),
            mss,
            peer_mss: 0,
            fin_queued: false,
            writer: Writer::default(),
            flush_awaited: false,
            tail_probe: false,
            persist: None,
            paced_until: None,
            receive: ReceiveBuffer::new(pool.clone(), 0),
            receive_start: 0,
            receive_edge: 0,
            receive_limit: config.receive_buffer.min(config.receive_buffer_max),
            receive_max: config.receive_buffer_max,
            user_timeout: config.user_timeout,
            tuning: Tuning::new(now),
            fin_at: None,
            fin_taken: false,
            read_closed: false,
            ack_due: AckDue::default(),
            timestamps: Timestamps::default(),
            echo_congestion: false,
            config,
        }
    }

    /// The two ends.
    pub fn tuple(&self) -> Tuple {
        self.tuple
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// What happened since the last call.
    pub fn take_events(&mut self) -> Events {
        std::mem::take(&mut self.events)
    }

    /// Whether something happened since [`take_events`](Self::take_events).
    pub fn has_events(&self) -> bool {
        self.events != Events::default()
    }

    /// There is memory again: a writer that found none may go on.
    pub(crate) fn wake_writer(&mut self) {
        if self.writer == Writer::Blocked {
            self.writer = Writer::Told;
            self.events.writable = true;
        }
    }

    /// Smoothed round-trip time, once one was measured.
    pub fn round_trip(&self) -> Option<std::time::Duration> {
        self.recovery.rtt.smoothed()
    }

    /// The congestion window, in bytes.
    pub fn congestion_window(&self) -> u64 {
        self.recovery.window()
    }

    /// How fast is sent, in bytes per second; none: as fast as the window allows.
    pub fn pacing_rate(&self) -> Option<u64> {
        self.recovery.pacing_rate()
    }

    /// Bytes of data in a full segment.
    pub fn max_segment(&self) -> usize {
        self.mss
    }

    /// Takes bytes of `data` to send, and returns how many; zero when the buffer is full, and
    /// [`Events::writable`] tells when to try again.
    ///
    /// # Errors
    /// [`Error::NotOpen`](crate::Error::NotOpen) after the sending side was shut down or the
    /// connection ended.
    pub fn write(&mut self, data: &[u8]) -> Result<usize, crate::Error> {
        if !self.is_writable() {
            return Err(crate::Error::NotOpen);
        }
        let count = self.buffer.push(data, self.send_limit());
        self.writer = Writer::blocked_if(count < data.len());
        Ok(count)
    }

    /// Lends room for at most `most` bytes to send to `fill`, which returns what it likes and how
    /// many it wrote, so that they are read from elsewhere right to where they are sent from. Nothing when there is no
    /// room, and [`Events::writable`] tells when to try again.
    ///
    /// # Errors
    /// [`Error::NotOpen`](crate::Error::NotOpen) as for [`write`](Self::write).
    pub fn write_with<R, E>(
        &mut self,
        most: usize,
        fill: impl FnOnce(&mut [IoSliceMut<'_>]) -> Result<(R, usize), E>,
    ) -> Result<Lent<R, E>, crate::Error> {
        if !self.is_writable() {
            return Err(crate::Error::NotOpen);
        }
        let outcome = self.buffer.push_with(most, self.send_limit(), fill);
        self.writer = Writer::blocked_if(outcome.is_none());
        Ok(outcome)
    }

    fn is_writable(&self) -> bool {
        let is_open = matches!(
            self.state,
            State::SynSent | State::SynReceived | State::Established | State::CloseWait
        );
        is_open && !self.fin_queued
    }

    /// Bytes the send buffer may hold: what was sent and is not acknowledged, and the reserve; where
    /// memory is scarce, as much as the reserve in all.
    fn send_limit(&self) -> u64 {
        let config = &self.config;
        let kept = match self.buffer.pool().is_scarce() {
            true => 0,
            false => self.recovery.next() - self.recovery.edge(),
        };
        (kept + config.send_reserve).min(config.send_buffer_max)
    }

    /// Whether all that was written was sent, and nobody is about to write more.
    fn is_drained(&self) -> bool {
        self.recovery.next() == self.send_end() && self.writer == Writer::Content
    }

    /// Has [`Events::writable`] told once everything written was acknowledged.
    pub fn tell_when_flushed(&mut self) {
        self.flush_awaited = !self.is_flushed();
    }

    /// Whether everything written was acknowledged.
    pub fn is_flushed(&self) -> bool {
        self.buffer.len() == 0
    }

    /// Bytes that can be read now, as far as they lie side by side; none: all is read.
    pub fn peek(&self) -> &[u8] {
        self.receive.peek()
    }

    /// Lends what can be read to `take`, in as many pieces as it lies in, at most
    /// [`MOST_SLICES`](crate::MOST_SLICES). Nothing is read by that.
    pub fn peek_with<R>(&self, take: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
        self.receive.peek_with(take)
    }

    /// Counts `count` of the bytes of [`peek`](Self::peek) as read.
    pub fn consume(&mut self, now: Instant, count: usize) {
        self.receive.consume(count);
        self.tune_receive_limit(now, count as u64);
        self.offer_window_after_read();
    }

    /// Reads into `out` and returns the number of bytes; zero: nothing more now.
    pub fn read(&mut self, now: Instant, out: &mut [u8]) -> usize {
        let mut total = 0;
        while total < out.len() {
            let bytes = self.receive.peek();
            let count = bytes.len().min(out.len() - total);
            if count == 0 {
                break;
            }
            out[total..total + count].copy_from_slice(&bytes[..count]);
            total += count;
            self.receive.consume(count);
        }
        if total > 0 {
            self.tune_receive_limit(now, total as u64);
            self.offer_window_after_read();
        }
        total
    }

    /// Whether the peer's end was received and all before it read.
    pub fn is_read_to_end(&self) -> bool {
        self.fin_taken && self.receive.unread() == 0
    }

    /// Ends our direction after what was written: the peer sees the end, and may go on sending.
    pub fn shutdown(&mut self) {
        if self.fin_queued || self.state == State::Closed {
            return;
        }
        self.fin_queued = true;
        self.writer = Writer::Content;
        match self.state {
            State::Established => self.state = State::FinWait1,
            State::CloseWait => self.state = State::LastAck,
            // Sent once the handshake is over.
            _ => {}
        }
    }

    /// Ends both directions: what was written is still sent, nothing is read any more. Unread data
    /// resets the connection, so that the peer knows it was lost (RFC 9293 §3.6.1).
    pub fn close(&mut self, now: Instant) {
        if self.state == State::SynSent || self.receive.unread() > 0 {
            self.abort();
            return;
        }
        self.read_closed = true;
        self.shutdown();
        if self.state == State::FinWait2 {
            self.linger = Some(now + self.config.fin_wait);
        }
    }

    /// Resets the connection.
    pub fn abort(&mut self) {
        let tells_peer = !matches!(self.state, State::SynSent | State::TimeWait | State::Closed);
        if tells_peer {
            self.reset = Some(self.recovery.next());
        }
        self.finish(CloseReason::Aborted);
    }

    /// Lets data stay without acknowledgement for so long from now on, instead of
    /// [`Config::user_timeout`].
    pub fn set_user_timeout(&mut self, longest: Duration) {
        self.user_timeout = longest;
    }

    /// Bounds to what the receive buffer may grow from now on. What was offered to the peer stays
    /// offered.
    pub fn set_receive_max(&mut self, bytes: u64) {
        self.receive_max = bytes.min(self.config.receive_buffer_max);
        self.receive_limit = self.receive_limit.min(self.receive_max);
    }

    /// Lets the connection carry packets of up to `mtu` bytes from now on. Segments in flight that
    /// are longer are sent again.
    pub fn set_mtu(&mut self, now: Instant, mtu: u16) {
        self.mtu = mtu;
        if !matches!(self.state, State::SynSent | State::Closed) {
            self.apply_mss();
            self.recovery.arm_after_sending(now);
        }
    }

    fn finish(&mut self, reason: CloseReason) {
        if self.state == State::Closed {
            return;
        }
        self.state = State::Closed;
        self.events.closed = Some(reason);
        self.linger = None;
        self.persist = None;
        self.buffer.clear();
        self.recovery.forget();
        match reason {
            CloseReason::Aborted => self.receive.clear(),
            // What came before the end can still be read, whatever the end.
            _ => self.receive.close(),
        }
    }

    fn enter_time_wait(&mut self, now: Instant) {
        self.state = State::TimeWait;
        self.linger = Some(now + self.config.time_wait);
        self.persist = None;
    }

    /// Whether data and an end may be sent. The end that was called may send as soon as it has
    /// answered (RFC 7413 §4.2.2).
    fn may_send(&self) -> bool {
        let answered = self.state == State::SynReceived
            && self.passive
            && self.config.early_data
            && self.handshake.is_sent();
        answered || self.state.may_send()
    }

    /// The next number expected from the peer.
    fn receive_next(&self) -> u64 {
        self.receive.next() + u64::from(self.fin_taken)
    }

    /// One past our end, if everything was written.
    fn send_end(&self) -> u64 {
        self.buffer.end() + u64::from(self.fin_queued)
    }

    fn fin_acknowledged(&self) -> bool {
        self.fin_queued && self.recovery.edge() == self.send_end()
    }
}
