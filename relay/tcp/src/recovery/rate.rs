//! Delivery rate samples (draft-ietf-ccwg-bbr §4.1): how fast data arrived between the sending of a
//! segment and its acknowledgement.

use std::time::Duration;

use super::scoreboard::Sent;
use crate::cc::RateSample;
use crate::time::Instant;

/// What was known when a segment was sent.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stamp {
    pub(crate) delivered: u64,
    pub(crate) delivered_at: Instant,
    pub(crate) first_sent_at: Instant,
    /// Bytes in flight, this segment included.
    pub(crate) in_flight: u64,
    /// Bytes lost so far.
    pub(crate) lost: u64,
    pub(crate) app_limited: bool,
}

/// Counts deliveries.
#[derive(Debug, Clone, Default)]
pub(crate) struct RateSampler {
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    lost: u64,
    /// Up to this much delivered, the application did not fill the window; zero: it did.
    app_limited_until: u64,
    newest: Option<Newest>,
}

/// The most recently sent of the segments that an acknowledgement delivered.
#[derive(Debug, Clone, Copy)]
struct Newest {
    stamp: Stamp,
    sent_at: Instant,
    end: u64,
}

impl RateSampler {
    /// The stamp for a segment of `length` bytes that is sent now, on top of `in_flight` bytes.
    pub(crate) fn stamp(&mut self, now: Instant, in_flight: u64, length: u64) -> Stamp {
        if in_flight == 0 {
            self.first_sent_at = now;
            self.delivered_at = now;
        }
        Stamp {
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent_at: self.first_sent_at,
            in_flight: in_flight + length,
            lost: self.lost,
            app_limited: self.app_limited_until != 0,
        }
    }

    /// `length` bytes of a segment arrived.
    pub(crate) fn delivered(&mut self, sent: &Sent, now: Instant) {
        self.delivered += sent.length();
        self.delivered_at = now;
        let is_newer = self
            .newest
            .is_none_or(|newest| (newest.sent_at, newest.end) < (sent.time, sent.end));
        if is_newer {
            self.newest = Some(Newest {
                stamp: sent.stamp,
                sent_at: sent.time,
                end: sent.end,
            });
            self.first_sent_at = sent.time;
        }
    }

    pub(crate) fn lost(&mut self, bytes: u64) {
        self.lost += bytes;
    }

    /// Bytes lost since a segment with this stamp was sent.
    pub(crate) fn lost_since(&self, stamp: &Stamp) -> u64 {
        self.lost.saturating_sub(stamp.lost)
    }

    /// The sample of the deliveries since the last call.
    pub(crate) fn finish(&mut self, min_rtt: Option<Duration>) -> Option<RateSample> {
        if self.app_limited_until != 0 && self.delivered > self.app_limited_until {
            self.app_limited_until = 0;
        }
        let Newest { stamp, sent_at, .. } = self.newest.take()?;
        let send_elapsed = sent_at.since(stamp.first_sent_at);
        let ack_elapsed = self.delivered_at.since(stamp.delivered_at);
        let interval = send_elapsed.max(ack_elapsed);
        let delivered = self.delivered - stamp.delivered;
        // A shorter time than any round trip comes from segments that were sent twice.
        let believable = !interval.is_zero() && min_rtt.is_none_or(|min| interval >= min);
        Some(RateSample {
            rate: if believable {
                crate::time::rate(delivered, interval)
            } else {
                0
            },
            delivered,
            prior_delivered: stamp.delivered,
            in_flight_when_sent: stamp.in_flight,
            lost: self.lost.saturating_sub(stamp.lost),
            app_limited: stamp.app_limited,
        })
    }

    /// The application has no more to send, and the window would take more.
    pub(crate) fn set_app_limited(&mut self, in_flight: u64) {
        self.app_limited_until = (self.delivered + in_flight).max(1);
    }

    pub(crate) fn is_app_limited(&self) -> bool {
        self.app_limited_until != 0
    }

    /// Bytes delivered so far.
    pub(crate) fn total(&self) -> u64 {
        self.delivered
    }
}
