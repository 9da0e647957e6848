//! The clock as this crate sees it: a number that its owner passes in.

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A moment, in nanoseconds since a start that the owner chose. It must not go backwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// The start of the owner's clock.
    pub const ZERO: Self = Self(0);

    /// `nanos` nanoseconds after the start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// `micros` microseconds after the start.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros.saturating_mul(1_000))
    }

    /// `millis` milliseconds after the start.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Nanoseconds since the start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Whole milliseconds since the start.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// Time from `earlier` until now; none if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, rest: Duration) -> Self {
        Self(self.0.saturating_add(nanos(rest)))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, rest: Duration) {
        *self = *self + rest;
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, rest: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(rest)))
    }
}

/// A duration as nanoseconds; the longest there is instead of an overflow.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// `bytes` per `interval` as bytes per second.
pub(crate) fn rate(bytes: u64, interval: Duration) -> u64 {
    let interval = u128::from(nanos(interval)).max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / interval).unwrap_or(u64::MAX)
}

/// How long `bytes` take at `rate` bytes per second.
pub(crate) fn time_for(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Bytes that `rate` bytes per second make in `interval`.
pub(crate) fn bytes_in(rate: u64, interval: Duration) -> u64 {
    let bytes = u128::from(rate) * u128::from(nanos(interval)) / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
