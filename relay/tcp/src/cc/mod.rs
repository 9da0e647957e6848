//! Congestion control: how much may be in flight, and how fast it may be sent.

mod bbr;
mod cubic;
mod hystart;

use std::fmt::Debug;
use std::time::Duration;

pub use bbr::Bbr;
pub use cubic::Cubic;

use crate::Algorithm;
use crate::time::Instant;

/// Segments that may be in flight at first (RFC 6928).
pub(crate) const INITIAL_SEGMENTS: u64 = 10;

/// How fast data arrived, as told by one acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateSample {
    /// Bytes per second; zero if the sample cannot be believed.
    pub rate: u64,
    /// Bytes delivered in the time the sample covers.
    pub delivered: u64,
    /// Bytes that were delivered when the newest acknowledged segment was sent.
    pub prior_delivered: u64,
    /// Bytes in flight when that segment was sent, itself included.
    pub in_flight_when_sent: u64,
    /// Bytes lost since that segment was sent.
    pub lost: u64,
    /// Whether the application sent less than it might have.
    pub app_limited: bool,
}

/// An acknowledgement.
#[derive(Debug, Clone, Copy)]
pub struct Ack {
    /// When it came.
    pub now: Instant,
    /// Bytes it tells delivered, in order or beyond gaps.
    pub acked: u64,
    /// Bytes it makes believe lost.
    pub lost: u64,
    /// Bytes in flight before and after it.
    pub in_flight_before: u64,
    /// Bytes in flight after it.
    pub in_flight: u64,
    /// All bytes delivered so far.
    pub delivered: u64,
    /// Its sample of the delivery rate, if it delivered something.
    pub sample: Option<RateSample>,
    /// Its round-trip time, if it acknowledged a segment that was sent once.
    pub rtt: Option<Duration>,
    /// Smoothed round-trip time, if known.
    pub smoothed_rtt: Option<Duration>,
    /// Edge of what is acknowledged, as a position.
    pub edge: u64,
    /// Position of the next byte to be sent for the first time.
    pub next: u64,
    /// Whether the congestion window was what kept data back.
    pub window_limited: bool,
    /// Whether a loss is being repaired.
    pub recovering: bool,
}

/// A segment believed lost.
#[derive(Debug, Clone, Copy)]
pub struct Lost {
    /// When that became known.
    pub now: Instant,
    /// Its bytes.
    pub bytes: u64,
    /// Bytes in flight when it was sent, itself included.
    pub in_flight_when_sent: u64,
    /// Bytes lost since it was sent, itself included.
    pub lost_since: u64,
    /// Bytes that were delivered when it was sent.
    pub prior_delivered: u64,
    /// All bytes delivered so far.
    pub delivered: u64,
    /// Whether the application sent less than it might have when it was sent.
    pub app_limited: bool,
}

/// What a control has to react to at most once a round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// A loss was found and is being repaired.
    Loss,
    /// The peer echoed that a router was congested (RFC 3168).
    Ecn,
}

/// A congestion control. All windows are in bytes, all rates in bytes per second.
pub trait Congestion: Debug + Send {
    /// How much may be in flight.
    fn window(&self) -> u64;

    /// How fast to send; none: as fast as the window allows.
    fn pacing_rate(&self) -> Option<u64>;

    /// What the window comes down to while a loss is repaired, for controls that use proportional
    /// rate reduction; none: the control's own window counts then, too.
    fn reduction_target(&self) -> Option<u64>;

    /// `bytes` are sent on top of `in_flight`; `app_limited` tells whether the application sent
    /// less than it might have before.
    fn on_sent(&mut self, now: Instant, in_flight: u64, bytes: u64, app_limited: bool);

    /// A segment is believed lost. Comes before the [`on_ack`](Self::on_ack) of the
    /// acknowledgement that told it.
    fn on_lost(&mut self, lost: &Lost);

    /// An acknowledgement came.
    fn on_ack(&mut self, ack: &Ack);

    /// The path is congested.
    fn on_congestion(&mut self, now: Instant, signal: Signal, in_flight: u64);

    /// The loss is repaired.
    fn on_recovered(&mut self, now: Instant);

    /// The retransmission timeout passed (RFC 5681 §3.1).
    fn on_timeout(&mut self, now: Instant, in_flight: u64);

    /// The last loss or timeout was none.
    fn undo(&mut self, now: Instant);

    /// The path carries segments of another size now.
    fn set_mss(&mut self, mss: u64);
}

/// A control of the kind `algorithm` for segments of `mss` bytes. `seed` is random.
pub(crate) fn new(algorithm: Algorithm, mss: u64, seed: u64) -> Box<dyn Congestion> {
    match algorithm {
        Algorithm::Bbr => Box::new(Bbr::new(mss, seed)),
        Algorithm::Cubic => Box::new(Cubic::new(mss)),
    }
}
