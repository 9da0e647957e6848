//! Who opened what, and how much apps are used, in words.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::apps::hostname::{Protocol, port_info};
use crate::error::Result;
use crate::store::{AppUse, Connection, ConnectionFilter, Store};
use crate::usage::log::Kind;

/// Visits that a page shows.
const SHOWN: usize = 8;
/// How far the sums look back, days.
const DAYS: i64 = 30;

/// Upgraded connections that are open, by slug or port.
pub(super) type Connections = HashMap<String, usize>;

/// What apps and ports were used for, by agent and app.
#[derive(Default)]
pub(super) struct Uses(HashMap<(String, String), Sum>);

#[derive(Default)]
struct Sum {
    requests: i64,
    users: i64,
    last: DateTime<Utc>,
}

/// What an app was used for, in words.
pub(super) struct Used {
    /// In short.
    pub(super) text: String,
    /// In a sentence.
    pub(super) detail: String,
}

impl Uses {
    /// Those of a workspace.
    pub(super) async fn of(store: &Store, workspace: Uuid) -> Result<Self> {
        let since = crate::store::now() - TimeDelta::days(DAYS);
        let mut sums = Self::default();
        for used in store.app_use(workspace, since).await? {
            sums.add(used);
        }
        Ok(sums)
    }

    fn add(&mut self, used: AppUse) {
        let sum = self.0.entry((used.agent_name, used.slug_or_port));
        let sum = sum.or_default();
        sum.requests += used.requests;
        // One person may have come by both ways.
        sum.users = sum.users.max(used.users);
        sum.last = sum.last.max(used.last_used_at);
    }

    /// The use of an app.
    pub(super) fn of_app(&self, agent: &str, slug: &str, open: &Connections) -> Option<Used> {
        self.words(agent, &[slug], open)
    }

    /// The use of a port, by either protocol.
    pub(super) fn of_port(&self, agent: &str, port: u16, open: &Connections) -> Option<Used> {
        self.words(agent, &[&port.to_string(), &format!("{port}s")], open)
    }

    fn words(&self, agent: &str, names: &[&str], open: &Connections) -> Option<Used> {
        let open: usize = names.iter().filter_map(|name| open.get(*name)).sum();
        let sums = names
            .iter()
            .filter_map(|name| self.0.get(&(agent.to_owned(), (*name).to_owned())));
        let mut all = Sum::default();
        for sum in sums {
            all.requests += sum.requests;
            all.users = all.users.max(sum.users);
            all.last = all.last.max(sum.last);
        }
        let mut parts = Vec::new();
        if open > 0 {
            parts.push(counted(open as u64, "connection open", "connections open"));
        }
        let requests = u64::try_from(all.requests).unwrap_or(0);
        if requests > 0 && open == 0 {
            parts.push(format!("used {}", ago(all.last)));
        }
        if requests > 0 {
            parts.push(counted(requests, "request", "requests"));
        }
        if parts.is_empty() {
            return None;
        }
        let people = u64::try_from(all.users).unwrap_or(0);
        let people = counted(people, "user who was signed in", "users who were signed in");
        Some(Used {
            text: parts.join(" · "),
            detail: format!("In the last {DAYS} days, by {people}"),
        })
    }
}

pub(super) fn counted(number: u64, one: &str, many: &str) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    format!("{text} {}", if number == 1 { one } else { many })
}

/// Somebody opened something, in words.
pub(super) struct Visit {
    pub(super) id: Uuid,
    pub(super) who: String,
    pub(super) what: String,
    pub(super) let_in: bool,
    /// The moment, for programs and for people.
    pub(super) time: String,
    pub(super) ago: String,
    /// From where, and with what.
    pub(super) from: String,
}

/// The latest visits of a workspace.
pub(super) async fn latest(store: &Store, workspace: Uuid) -> Result<Vec<Visit>> {
    let filter = ConnectionFilter {
        workspace: Some(workspace),
        decided: true,
        limit: SHOWN,
        ..ConnectionFilter::default()
    };
    let (found, _) = store.connections(&filter).await?;
    Ok(found.iter().map(visit).collect())
}

fn visit(found: &Connection) -> Visit {
    let agent = &found.agent_name;
    let name = &found.slug_or_port;
    Visit {
        id: found.id,
        who: match &found.user {
            Some(user) => user.username.clone(),
            None => "Somebody not signed in".to_owned(),
        },
        what: match (found.kind, port_info(name)) {
            (Kind::Tunnel, _) => format!("a tunnel to {agent}"),
            (Kind::PortForwarding, Some((port, Protocol::Http))) => {
                format!("port {port} of {agent}")
            }
            (Kind::PortForwarding, Some((port, Protocol::Https))) => {
                format!("port {port} of {agent} by https")
            }
            (Kind::PortForwarding | Kind::WorkspaceApp, _) => name.clone(),
        },
        let_in: found.let_in(),
        time: found
            .time
            .to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        ago: ago(found.time),
        from: match (found.ip, program(&found.user_agent)) {
            (Some(ip), program) if program.is_empty() => ip.to_string(),
            (Some(ip), program) => format!("{program}, {ip}"),
            (None, program) => program,
        },
    }
}

/// The program that a user agent stands for, as far as one can tell.
fn program(user_agent: &str) -> String {
    // Each one claims to be those that follow it here as well.
    let browsers = [
        ("Edg/", "Edge"),
        ("OPR/", "Opera"),
        ("Firefox/", "Firefox"),
        ("Chrome/", "Chrome"),
        ("Safari/", "Safari"),
    ];
    let systems = [
        ("Android", "Android"),
        ("iPhone", "iOS"),
        ("iPad", "iOS"),
        ("Windows", "Windows"),
        ("Mac OS X", "macOS"),
        ("Linux", "Linux"),
    ];
    let known = |list: &[(&str, &'static str)]| {
        let found = list.iter().find(|(mark, _)| user_agent.contains(mark));
        found.map(|(_, name)| *name)
    };
    match (known(&browsers), known(&systems)) {
        (Some(browser), Some(system)) => format!("{browser} on {system}"),
        (Some(browser), None) => browser.to_owned(),
        _ => {
            let word = user_agent.split([' ', '(']).next().unwrap_or_default();
            word.replace('/', " ").chars().take(40).collect()
        }
    }
}

/// How long ago something was.
pub(super) fn ago(then: chrono::DateTime<chrono::Utc>) -> String {
    let minutes = (crate::store::now() - then).num_minutes();
    match minutes {
        ..1 => "just now".to_owned(),
        1..60 => format!("{minutes} min ago"),
        60..2880 => format!("{} h ago", minutes / 60),
        _ => format!("{} days ago", minutes / 1440),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_what_they_say() {
        let chrome = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
                      Chrome/140.0.0.0 Safari/537.36";
        assert_eq!(program(chrome), "Chrome on Linux");
        assert_eq!(program(&format!("{chrome} Edg/140.0")), "Edge on Linux");
        let phone =
            "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) Version/18.0 Safari/604.1";
        assert_eq!(program(phone), "Safari on iOS");
        assert_eq!(program("curl/8.5.0"), "curl 8.5.0");
        assert_eq!(program(""), "");
        assert_eq!(program(&"x".repeat(300)).len(), 40);
    }

    #[test]
    fn both_protocols_of_a_port_are_one_use() {
        let used = |name: &str, requests| AppUse {
            agent_name: "main".into(),
            access_method: "subdomain".into(),
            slug_or_port: name.into(),
            requests,
            seconds: 60,
            users: 2,
            last_used_at: crate::store::now(),
        };
        let mut uses = Uses::default();
        uses.add(used("8443", 1000));
        uses.add(used("8443s", 234));
        let none = Connections::new();
        let words = uses.of_port("main", 8443, &none).unwrap();
        assert_eq!(words.text, "used just now · 1,234 requests");
        assert!(words.detail.contains("2 users"), "{}", words.detail);
        let open = Connections::from([("8443s".to_owned(), 1)]);
        let words = uses.of_port("main", 8443, &open).unwrap();
        assert_eq!(words.text, "1 connection open · 1,234 requests");
        assert!(uses.of_port("gpu", 8443, &none).is_none());
        assert!(uses.of_app("main", "notes", &none).is_none());
    }
}
