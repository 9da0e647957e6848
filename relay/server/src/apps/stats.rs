//! Usage of apps (coder_facts §2.13): short sessions are rolled up, long ones reported one by one,
//! open ones again at each flush. No I/O and no clock of its own.

use std::collections::BTreeMap;

/// Sessions up to this long are rolled up, seconds.
pub const WINDOW: u64 = 60;

/// What a rolled-up report is about: equal ones are added together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// Who.
    pub user: String,
    /// Where: workspace and agent.
    pub agent: String,
    /// `path`, `subdomain` or `terminal`.
    pub access: String,
    /// The app's slug or port.
    pub app: String,
}

/// A number that names an open session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u64);

/// What is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Whose and of what.
    pub subject: Subject,
    /// Start, seconds since the epoch.
    pub start: u64,
    /// End, or the moment of the report while it goes on.
    pub end: u64,
    /// Requests.
    pub requests: u64,
}

#[derive(Clone, Debug)]
struct Session {
    subject: Subject,
    start: u64,
    end: Option<u64>,
}

/// Collects sessions between flushes.
#[derive(Debug, Default)]
pub struct Collector {
    sessions: BTreeMap<SessionId, Session>,
    next: u64,
}

impl Collector {
    /// A session begins at `now`, seconds since the epoch.
    pub fn begin(&mut self, subject: Subject, now: u64) -> SessionId {
        let id = SessionId(self.next);
        self.next += 1;
        self.sessions.insert(
            id,
            Session {
                subject,
                start: now,
                end: None,
            },
        );
        id
    }

    /// It ends.
    pub fn end(&mut self, id: SessionId, now: u64) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.end = Some(now);
        }
    }

    /// What is to be stored at `now`. Ended sessions are told once, those that last longer than the
    /// window also while they are open; short ones when their minutes are over.
    pub fn flush(&mut self, now: u64) -> Vec<Usage> {
        let mut rolled: BTreeMap<(Subject, u64, u64), u64> = BTreeMap::new();
        let mut reports = Vec::new();
        self.sessions.retain(|_, session| {
            let last = session.end.unwrap_or(now);
            if last - session.start > WINDOW {
                reports.push(Usage {
                    subject: session.subject.clone(),
                    start: session.start,
                    end: last,
                    requests: 1,
                });
                return session.end.is_none();
            }
            let Some(end) = session.end else {
                return true;
            };
            let from = session.start / WINDOW * WINDOW;
            let to = (end / WINDOW + 1) * WINDOW;
            if to > now {
                return true;
            }
            *rolled
                .entry((session.subject.clone(), from, to))
                .or_default() += 1;
            false
        });
        let rolled = rolled
            .into_iter()
            .map(|((subject, start, end), requests)| Usage {
                subject,
                start,
                end,
                requests,
            });
        reports.extend(rolled);
        reports
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_short_sessions_become_one_report() {
        let subject = Subject {
            user: "alice".into(),
            agent: "main".into(),
            access: "subdomain".into(),
            app: "8080".into(),
        };
        let mut collector = Collector::default();
        for start in [1, 2, 3] {
            let id = collector.begin(subject.clone(), start);
            collector.end(id, start + 5);
        }
        assert_eq!(collector.flush(30), []);
        let reports = collector.flush(60);
        assert_eq!(reports.len(), 1);
        assert_eq!(
            (reports[0].start, reports[0].end, reports[0].requests),
            (0, 60, 3)
        );
        assert_eq!(collector.flush(120), []);
    }
}
