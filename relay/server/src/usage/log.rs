//! Who opened which app when (coder_facts §2.13): the same again within an hour is no news. No I/O
//! and no clock of its own.

use std::collections::HashMap;
use std::net::IpAddr;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

/// How long the same is no news.
const HOUR: TimeDelta = TimeDelta::hours(1);
/// Visits of the last hour that are remembered; with more, some may be told twice.
const KNOWN: usize = 16_384;
/// Entries that wait to be stored; what comes on top is counted only.
const WAITING: usize = 4096;
/// Longest text of a browser about itself that is kept, bytes.
const USER_AGENT: usize = 256;
/// Longest name of an app that is kept, bytes.
const NAME: usize = 128;

/// What was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A port in the browser.
    PortForwarding,
    /// An app of the template in the browser.
    WorkspaceApp,
    /// A tunnel, by a client such as `relay port-forward`.
    Tunnel,
}

impl Kind {
    const ALL: [Self; 3] = [Self::PortForwarding, Self::WorkspaceApp, Self::Tunnel];

    /// The text in the database and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PortForwarding => "port_forwarding",
            Self::WorkspaceApp => "workspace_app",
            Self::Tunnel => "tunnel",
        }
    }

    /// The kind of a text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// What counts as the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Opened {
    /// Where.
    pub workspace: Uuid,
    /// The agent.
    pub agent: Uuid,
    /// What.
    pub kind: Kind,
    /// The app's slug or the port; empty for a tunnel.
    pub slug_or_port: String,
    /// Who, if that is known.
    pub user: Option<Uuid>,
    /// From where.
    pub ip: IpAddr,
    /// What the browser says of itself.
    pub user_agent: String,
    /// The status of the answer: 200 or 101 for whoever was let in.
    pub status: u16,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: Uuid,
    /// When.
    pub time: DateTime<Utc>,
    /// What.
    pub opened: Opened,
}

/// Collects entries between flushes.
#[derive(Debug, Default)]
pub struct Log {
    known: HashMap<Opened, DateTime<Utc>>,
    waiting: Vec<Entry>,
    dropped: usize,
}

impl Log {
    /// Something was opened at `now`; true when that is news.
    pub fn note(&mut self, mut opened: Opened, now: DateTime<Utc>) -> bool {
        shorten(&mut opened.user_agent, USER_AGENT);
        shorten(&mut opened.slug_or_port, NAME);
        let fresh = |time: &DateTime<Utc>| now.signed_duration_since(*time) < HOUR;
        if self.known.get(&opened).is_some_and(fresh) {
            return false;
        }
        if self.known.len() >= KNOWN {
            self.known.retain(|_, time| fresh(time));
        }
        if self.known.len() >= KNOWN {
            self.known.clear();
        }
        self.known.insert(opened.clone(), now);
        if self.waiting.len() >= WAITING {
            self.dropped += 1;
            return false;
        }
        self.waiting.push(Entry {
            id: Uuid::new_v4(),
            time: now,
            opened,
        });
        true
    }

    /// What is to be stored, oldest first. It stays until it is said to be stored.
    pub fn waiting(&mut self) -> Vec<Entry> {
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            tracing::warn!(
                "{dropped} entries of the connection log were not kept: too many at once"
            );
        }
        self.waiting.clone()
    }

    /// The first so many of what waits are stored.
    pub fn stored(&mut self, count: usize) {
        self.waiting.drain(..count.min(self.waiting.len()));
    }
}

fn shorten(text: &mut String, most: usize) {
    if text.len() > most {
        let end = (0..=most).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn opened(slug: &str) -> Opened {
        Opened {
            workspace: Uuid::nil(),
            agent: Uuid::nil(),
            kind: Kind::WorkspaceApp,
            slug_or_port: slug.into(),
            user: None,
            ip: Ipv4Addr::LOCALHOST.into(),
            user_agent: "curl".into(),
            status: 200,
        }
    }

    fn at(minutes: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::minutes(minutes)
    }

    #[test]
    fn the_same_is_news_once_an_hour_and_anything_else_at_once() {
        let mut log = Log::default();
        assert!(log.note(opened("a"), at(0)));
        assert!(!log.note(opened("a"), at(59)));
        assert!(log.note(opened("a"), at(60)));
        let others = [
            opened("b"),
            Opened {
                status: 404,
                ..opened("a")
            },
            Opened {
                user: Some(Uuid::nil()),
                ..opened("a")
            },
            Opened {
                user_agent: "Firefox".into(),
                ..opened("a")
            },
            Opened {
                ip: Ipv4Addr::BROADCAST.into(),
                ..opened("a")
            },
        ];
        for other in others {
            assert!(log.note(other.clone(), at(60)), "{other:?}");
        }
        assert_eq!(log.waiting().len(), 7);
        log.stored(6);
        assert_eq!(log.waiting().len(), 1);
        log.stored(1);
        assert!(log.waiting().is_empty());
    }

    #[test]
    fn however_much_comes_what_is_held_is_bounded() {
        let mut log = Log::default();
        for number in 0..2 * KNOWN {
            log.note(opened(&number.to_string()), at(0));
        }
        assert!(log.known.len() <= KNOWN);
        assert_eq!(log.waiting().len(), WAITING);
        log.stored(WAITING);
        let long = Opened {
            user_agent: "ü".repeat(USER_AGENT),
            ..opened(&"x".repeat(1000))
        };
        log.note(long, at(200));
        let kept = log.waiting().remove(0).opened;
        assert_eq!(
            (kept.user_agent.len(), kept.slug_or_port.len()),
            (USER_AGENT, NAME)
        );
    }
}
