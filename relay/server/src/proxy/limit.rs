//! The rate limit of app traffic, which counts apart from that of the API.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// The time in which requests are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// Counts the requests of visitors to agents.
#[derive(Default)]
pub(super) struct Limit(Mutex<HashMap<(String, Uuid), (Instant, u32)>>);

impl Limit {
    /// Counts a request; true when it is one too many. A limit of 0 is none.
    pub(super) fn exceeded(
        &self,
        most: u32,
        visitor: impl FnOnce() -> String,
        agent: Uuid,
    ) -> bool {
        if most == 0 {
            return false;
        }
        let now = Instant::now();
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, count) = counts.entry((visitor(), agent)).or_insert((now, 0));
        if now.duration_since(*start) >= WINDOW {
            (*start, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count > most
    }

    /// Forgets windows that are over.
    pub(super) fn tidy(&self) {
        let now = Instant::now();
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.retain(|_, (start, _)| now.duration_since(*start) < WINDOW);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visitors_are_counted_one_by_one() {
        let limit = Limit::default();
        let agent = Uuid::nil();
        let ask = |who: &str| limit.exceeded(2, || who.to_owned(), agent);
        assert_eq!(
            [ask("a"), ask("a"), ask("a"), ask("b")],
            [false, false, true, false]
        );
        assert!(!limit.exceeded(0, || "a".to_owned(), agent));
    }
}
