//! How many requests are answered a minute (coder_facts §2.14). Traffic of apps is counted apart.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use http::request::Parts;
use uuid::Uuid;

use super::Refusal;
use crate::state::Shared;
use crate::store::User;

/// Requests that a user, or an address without one, may make to a path.
pub(crate) const API: u32 = 512;
/// Attempts to log in that an address may make.
const LOGIN: u32 = 60;
/// The time in which requests are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Most counts that are kept.
const COUNTS: usize = 16_384;
/// With this, an administrator is not counted.
const BYPASS: &str = "x-coder-bypass-ratelimit";

/// Who is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    User(Uuid),
    Address(IpAddr),
}

/// The counts of the running minute.
pub(crate) struct Limits {
    counts: Mutex<Counts>,
    hasher: RandomState,
    /// 0 is none.
    api: u32,
}

struct Counts {
    /// By who asks and the hash of the path: since when, and how many.
    by_path: HashMap<(Who, u64), (Instant, u32)>,
    /// At this many, those that are over are forgotten.
    tidy_at: usize,
}

impl Limits {
    pub(crate) fn new(api: u32) -> Self {
        let counts = Counts {
            by_path: HashMap::new(),
            tidy_at: 1024,
        };
        Self {
            counts: Mutex::new(counts),
            hasher: RandomState::new(),
            api,
        }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// The time until the next one is answered, when this is one too many.
    fn count(&self, who: Who, path: &str, most: u32, now: Instant) -> Result<(), Duration> {
        if most == 0 {
            return Ok(());
        }
        let path = self.hasher.hash_one(path.trim_end_matches('/'));
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.tidy(now);
        let (start, count) = counts.by_path.entry((who, path)).or_insert((now, 0));
        let passed = now.saturating_duration_since(*start);
        if passed >= WINDOW {
            (*start, *count) = (now, 0);
        }
        if *count >= most {
            return Err(WINDOW.saturating_sub(passed));
        }
        *count += 1;
        Ok(())
    }

    fn check(&self, who: Who, parts: &Parts, most: u32) -> Result<(), Refusal> {
        let left = self.count(who, parts.uri.path(), most, Instant::now());
        left.map_err(|left| Refusal::too_many(most, left))
    }

    /// Counts a request of a user.
    pub(super) fn user(&self, user: &User, parts: &Parts) -> Result<(), Refusal> {
        let bypass = parts.headers.get(BYPASS);
        if user.is_admin && bypass.is_some_and(|value| value == "true") {
            return Ok(());
        }
        self.check(Who::User(user.id), parts, self.api)
    }

    /// Counts a request of nobody who is known.
    pub(super) fn stranger(&self, address: IpAddr, parts: &Parts) -> Result<(), Refusal> {
        self.check(Who::Address(place(address)), parts, self.api)
    }

    /// Counts an attempt to log in, wherever on this server.
    pub(crate) fn login(&self, address: IpAddr) -> Result<(), Refusal> {
        let who = Who::Address(place(address));
        let left = self.count(who, "login", LOGIN, Instant::now());
        left.map_err(|left| Refusal::too_many(LOGIN, left))
    }
}

impl Counts {
    fn tidy(&mut self, now: Instant) {
        if self.by_path.len() < self.tidy_at {
            return;
        }
        let runs = |start: Instant| now.saturating_duration_since(start) < WINDOW;
        self.by_path.retain(|_, (start, _)| runs(*start));
        if self.by_path.len() >= COUNTS {
            // So many are at it at once that none of them can be told apart any more.
            self.by_path.clear();
        }
        self.by_path.shrink_to(1024);
        self.tidy_at = (self.by_path.len() * 2).clamp(1024, COUNTS);
    }
}

/// Whom an address stands for: a whole network of IPv6 is one's own.
fn place(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        address => address,
    }
}

/// A request that anybody may make, counted by its address.
pub(super) struct Anybody;

impl FromRequestParts<Shared> for Anybody {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &Shared) -> Result<Self, Refusal> {
        let address = super::client_address(parts, state);
        state.limits.stranger(address, parts)?;
        Ok(Self)
    }
}

/// An attempt to log in, counted by its address.
pub(super) struct LoginAttempt;

impl FromRequestParts<Shared> for LoginAttempt {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &Shared) -> Result<Self, Refusal> {
        state.limits.login(super::client_address(parts, state))?;
        Ok(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Who = Who::User(Uuid::nil());
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn users_and_paths_are_counted_apart_and_anew_each_minute() {
        let (limits, now) = (Limits::new(API), Instant::now());
        let bob = Who::Address(IpAddr::from([10, 0, 0, 1]));
        for _ in 0..2 {
            assert_eq!(limits.count(ALICE, "/a", 2, now), Ok(()));
        }
        let later = now + 20 * SECOND;
        assert_eq!(limits.count(ALICE, "/a/", 2, later), Err(40 * SECOND));
        assert_eq!(limits.count(ALICE, "/b", 2, later), Ok(()));
        assert_eq!(limits.count(bob, "/a", 2, later), Ok(()));
        assert_eq!(limits.count(ALICE, "/a", 0, later), Ok(()));
        assert_eq!(limits.count(ALICE, "/a", 2, now + WINDOW), Ok(()));
    }

    #[test]
    fn memory_stays_flat_however_many_ask() {
        let (limits, now) = (Limits::new(API), Instant::now());
        for number in 0..100_000_u32 {
            let who = Who::Address(IpAddr::from(number.to_be_bytes()));
            assert_eq!(limits.count(who, "/a", 2, now), Ok(()));
        }
        let kept = limits.counts.lock().unwrap().by_path.len();
        assert!(kept <= COUNTS, "{kept}");
        assert_eq!(limits.count(ALICE, "/a", 2, now + WINDOW), Ok(()));
        for number in 0..20_000 {
            let path = format!("/{number}");
            let at = now + WINDOW * (number + 1);
            assert_eq!(limits.count(ALICE, &path, 2, at), Ok(()));
        }
        let kept = limits.counts.lock().unwrap().by_path.len();
        assert!(kept <= 1024, "{kept}");
    }

    #[test]
    fn one_network_of_ipv6_is_one_visitor() {
        let of = |text: &str| place(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
