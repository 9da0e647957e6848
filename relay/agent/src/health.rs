//! The health of an app, from the results of its probes (coder_facts §2.16); no I/O.

use std::time::{Duration, Instant};

/// What is told of an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has no check.
    Disabled,
    /// Not known yet.
    Initializing,
    /// The last probe succeeded.
    Healthy,
    /// One failure more than the threshold in a row.
    Unhealthy,
}

impl State {
    /// The text in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Initializing => "initializing",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// What a probe met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// An HTTP answer with this status.
    Status(u16),
    /// No answer, or none in time.
    Failed,
}

impl Probe {
    /// Everything below 500 is an app that works: a 404 or 401 comes from it, too.
    fn succeeded(self) -> bool {
        matches!(self, Self::Status(status) if status < 500)
    }
}

/// The checks of one app.
#[derive(Clone, Debug)]
pub struct Health {
    interval: Duration,
    threshold: u32,
    failures: u32,
    state: State,
    next: Option<Instant>,
}

impl Health {
    /// Checks of `url` each `interval`, unhealthy after `threshold` + 1 failures in a row. Without
    /// a URL the app is never checked; without interval or threshold it stays initializing.
    pub fn new(url: &str, interval: Duration, threshold: u32, now: Instant) -> Self {
        let checked = !url.is_empty() && !interval.is_zero() && threshold > 0;
        let state = if url.is_empty() {
            State::Disabled
        } else {
            State::Initializing
        };
        let next = checked.then(|| now + interval);
        Self {
            interval,
            threshold,
            failures: 0,
            state,
            next,
        }
    }

    /// What is known.
    pub fn state(&self) -> State {
        self.state
    }

    /// When the next probe is due.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.next.map(|next| (next, "app health probe"))
    }

    /// How long a probe may take: a millisecond less than the interval.
    pub fn patience(&self) -> Duration {
        self.interval.saturating_sub(Duration::from_millis(1))
    }

    /// Takes the result of a probe.
    pub fn handle_probe(&mut self, probe: Probe, now: Instant) {
        if self.next.is_none() {
            return;
        }
        self.next = Some(now + self.interval);
        match probe.succeeded() {
            true => {
                self.failures = 0;
                self.state = State::Healthy;
            }
            false if self.failures < self.threshold => self.failures += 1,
            false => self.state = State::Unhealthy,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn every_row_of_the_vectors_holds() {
        let text = include_str!("../../../tests/vectors/app_health.json");
        let rows: Vec<Value> = serde_json::from_str(text).unwrap();
        for row in rows {
            let input = &row["input"];
            let number = |key: &str| input[key].as_u64().unwrap();
            let mut now = Instant::now();
            let mut health = Health::new(
                input["url"].as_str().unwrap(),
                Duration::from_secs(number("interval_s")),
                u32::try_from(number("threshold")).unwrap(),
                now,
            );
            let mut states = vec![health.state().as_str()];
            for probe in input["probe_results_in_order"].as_array().unwrap() {
                now += Duration::from_secs(5);
                let probe = probe.as_u64().map_or(Probe::Failed, |status| {
                    Probe::Status(u16::try_from(status).unwrap())
                });
                health.handle_probe(probe, now);
                states.push(health.state().as_str());
            }
            let found = json!({ "state_initially_then_after_each_probe": states });
            assert_eq!(found, row["expect"], "{}", row["name"]);
        }
    }

    #[test]
    fn the_first_probe_comes_after_one_whole_interval() {
        let now = Instant::now();
        let health = Health::new("http://localhost/", Duration::from_secs(5), 3, now);
        assert_eq!(
            health.poll_timeout().unwrap().0,
            now + Duration::from_secs(5)
        );
        assert_eq!(health.patience(), Duration::from_millis(4999));
    }
}
