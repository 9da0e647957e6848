//! Who uses which apps, and how much: counted where requests pass, stored in batches. A request
//! costs a look at a lock that only its own visitor's requests to its own app share.

mod keep;
pub mod log;
pub mod sessions;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::store::AppStat;
use log::{Log, Opened};
use sessions::{Report, SessionId, Sessions};

pub(crate) use keep::run;

/// Whose use of what is counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Who; `None` for whoever is not signed in.
    pub user: Option<Uuid>,
    /// The workspace.
    pub workspace: Uuid,
    /// The agent.
    pub agent: Uuid,
    /// `path` or `subdomain`.
    pub access_method: String,
    /// The app's slug, or a port with its `s`.
    pub slug_or_port: String,
}

/// Counts the use of all apps.
#[derive(Debug, Default)]
pub struct Usage {
    counters: Mutex<HashMap<Subject, Arc<Counter>>>,
    log: Mutex<Log>,
    /// Workspaces that are used by other ways than apps.
    used: Mutex<HashSet<Uuid>>,
    /// What could not be stored yet.
    unstored: Mutex<Vec<AppStat>>,
}

/// Counts the use of one app by one visitor.
#[derive(Debug, Default)]
pub struct Counter {
    sessions: Mutex<Sessions>,
    /// Upgraded connections that are open.
    connections: AtomicUsize,
    /// In front of the numbers of sessions, which begin anew with each counter.
    id: Uuid,
}

/// A session; it ends when dropped.
#[derive(Debug)]
pub struct Visit {
    counter: Arc<Counter>,
    /// None once it has ended.
    session: Option<SessionId>,
    is_connection: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> u64 {
    u64::try_from(crate::store::now().timestamp()).unwrap_or(0)
}

impl Usage {
    /// The counter of a visitor and an app.
    pub fn counter(&self, subject: Subject) -> Arc<Counter> {
        let mut counters = lock(&self.counters);
        let counter = counters.entry(subject).or_insert_with(|| {
            Arc::new(Counter {
                id: Uuid::new_v4(),
                ..Counter::default()
            })
        });
        Arc::clone(counter)
    }

    /// Notes that something was opened.
    pub fn opened(&self, opened: Opened) {
        lock(&self.log).note(opened, crate::store::now());
    }

    /// What is to be stored of sessions at `now`, seconds since 1970. Forgets who is gone.
    pub fn collect(&self, now: u64) -> Vec<AppStat> {
        self.take(|sessions| sessions.flush(now))
    }

    /// What is to be stored of sessions when the server stops.
    fn finish(&self) -> Vec<AppStat> {
        self.take(|sessions| sessions.finish(now()))
    }

    fn take(&self, reports: impl Fn(&mut Sessions) -> Vec<Report>) -> Vec<AppStat> {
        let mut stats = Vec::new();
        lock(&self.counters).retain(|subject, counter| {
            let mut sessions = lock(&counter.sessions);
            let told = reports(&mut sessions);
            stats.extend(told.iter().map(|told| counter.stat(subject, told)));
            Arc::strong_count(counter) > 1 || !sessions.is_idle()
        });
        stats
    }

    /// The upgraded connections that are open to an agent, by slug or port.
    pub(crate) fn connections(&self, agent: Uuid) -> HashMap<String, usize> {
        let mut open = HashMap::new();
        for (subject, counter) in lock(&self.counters).iter() {
            let count = counter.connections.load(Ordering::Relaxed);
            if subject.agent == agent && count > 0 {
                *open.entry(subject.slug_or_port.clone()).or_default() += count;
            }
        }
        open
    }

    /// Notes that a workspace is used by another way than an app.
    pub(crate) fn used(&self, workspace: Uuid) {
        lock(&self.used).insert(workspace);
    }

    /// The workspaces that were used since the last call.
    pub(crate) fn take_used(&self) -> HashSet<Uuid> {
        let mut all = std::mem::take(&mut *lock(&self.used));
        let counters = lock(&self.counters);
        let used = counters
            .iter()
            .filter(|(_, counter)| lock(&counter.sessions).take_used());
        all.extend(used.map(|(subject, _)| subject.workspace));
        all
    }
}

impl Counter {
    /// A session begins: a request, or a connection that became something else than HTTP.
    pub fn begin(self: &Arc<Self>) -> Visit {
        self.begin_at(now())
    }

    /// A session begins at `now`, seconds since 1970.
    pub fn begin_at(self: &Arc<Self>, now: u64) -> Visit {
        Visit {
            session: Some(lock(&self.sessions).begin(now)),
            counter: Arc::clone(self),
            is_connection: false,
        }
    }

    fn stat(&self, subject: &Subject, report: &Report) -> AppStat {
        let id = match report.long {
            Some(serial) => format!("{}/{serial}", self.id),
            None => format!("{}/{}-{}", self.id, report.start, report.end),
        };
        AppStat {
            id,
            subject: subject.clone(),
            start: report.start,
            end: report.end,
            requests: report.requests,
        }
    }
}

impl Visit {
    /// The session goes on as an upgraded connection.
    pub(crate) fn into_connection(mut self) -> Self {
        self.counter.connections.fetch_add(1, Ordering::Relaxed);
        self.is_connection = true;
        self
    }

    /// The session ends at `now`, seconds since 1970.
    pub fn end_at(mut self, now: u64) {
        self.end(now);
    }

    fn end(&mut self, now: u64) {
        if let Some(session) = self.session.take() {
            lock(&self.counter.sessions).end(session, now);
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if self.is_connection {
            self.counter.connections.fetch_sub(1, Ordering::Relaxed);
        }
        self.end(now());
    }
}
