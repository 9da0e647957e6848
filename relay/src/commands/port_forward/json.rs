//! Events as lines of JSON, for a program that runs `relay port-forward -o json`. The document is
//! `docs/port-forward-json.md`.

use relay_forward::event::{Connection, Event, Path, Phase};
use relay_forward::{Row, Traffic};
use serde_json::{Value, json};

/// The line for an event; some are for people alone.
pub(super) fn line(event: &Event, workspace: &str) -> Option<Value> {
    let value = match event {
        Event::Plan(rows) => {
            let forwards: Vec<_> = rows.iter().map(row).collect();
            json!({"event": "plan", "workspace": workspace, "forwards": forwards})
        }
        Event::Listening { row, address } => json!({
            "event": "listening", "forward": row.name, "kind": row.kind.as_str(), "address": address,
        }),
        Event::Removed { row } => json!({"event": "removed", "forward": row.name}),
        Event::Ready => json!({"event": "ready"}),
        Event::Path(Path::Direct(address)) => {
            json!({"event": "path", "path": "direct", "via": address.to_string()})
        }
        Event::Path(Path::Relayed(name)) => {
            json!({"event": "path", "path": "relayed", "via": name})
        }
        Event::SameHost => json!({"event": "path", "path": "same-host", "via": null}),
        Event::Connection(connection) => of_connection(connection),
        Event::BackRefused { forward, .. } => {
            let name = format!("reverse://{forward}");
            json!({
                "event": "error", "fatal": false, "message": event.to_string(), "forward": name,
            })
        }
        Event::ListenerStopped { .. } | Event::PortsUnknown { .. } | Event::SshRefused { .. } => {
            json!({"event": "error", "fatal": false, "message": event.to_string()})
        }
        Event::Appeared { port, program } | Event::Skipped { port, program, .. } => json!({
            "event": "state", "state": state(event)?, "message": event.to_string(),
            "port": port, "program": program,
        }),
        Event::Vanished { port } => json!({
            "event": "state", "state": state(event)?, "message": event.to_string(), "port": port,
        }),
        other => json!({
            "event": "state", "state": state(other)?, "message": other.to_string(),
        }),
    };
    Some(value)
}

fn state(event: &Event) -> Option<&'static str> {
    Some(match event {
        Event::RelaysOnly => "relays-only",
        Event::StartingWorkspace { .. } => "starting-workspace",
        Event::WaitingForBuild { .. } => "waiting-for-build",
        Event::WaitingForAgent { .. } => "waiting-for-agent",
        Event::WaitingForTunnel { .. } => "waiting-for-tunnel",
        Event::PortByPort { .. } => "port-by-port",
        Event::LeftToOthers { .. } => "left-to-others",
        Event::Appeared { .. } => "appeared",
        Event::Vanished { .. } => "vanished",
        Event::Skipped { .. } => "skipped",
        Event::AgentLost => "agent-lost",
        Event::AgentBack => "agent-back",
        _ => return None,
    })
}

fn row(row: &Row) -> Value {
    json!({
        "forward": row.name, "kind": row.kind.as_str(), "here": row.here, "there": row.there,
    })
}

fn of_connection(connection: &Connection) -> Value {
    let Connection {
        row,
        id,
        from,
        phase,
    } = connection;
    let mut value = json!({"event": "connection", "forward": row.name, "id": id});
    let fields = match phase {
        Phase::Opened => json!({"state": "opened", "from": from.map(|from| from.to_string())}),
        Phase::Closed { sent, received } => {
            json!({"state": "closed", "sent": sent, "received": received})
        }
        Phase::Failed { reason } => json!({"state": "failed", "reason": reason}),
    };
    if let (Value::Object(all), Value::Object(more)) = (&mut value, fields) {
        all.extend(more);
    }
    value
}

/// The answer to `{"list": true}`.
pub(super) fn list(traffic: &[Traffic]) -> Value {
    let forwards = traffic.iter().map(|known| {
        json!({
            "forward": known.row.name, "kind": known.row.kind.as_str(), "here": known.row.here,
            "there": known.row.there, "open": known.open, "connections": known.connections,
            "sent": known.sent, "received": known.received,
        })
    });
    json!({"event": "list", "forwards": forwards.collect::<Vec<_>>()})
}

/// What ended the command.
pub(super) fn fatal(message: &str) -> Value {
    json!({"event": "error", "fatal": true, "message": message})
}

/// A command that was not done.
pub(super) fn refused(command: &str, message: &str) -> Value {
    json!({"event": "error", "fatal": false, "message": message, "command": command})
}

/// Lines that were left out, because nobody read them in time.
pub(super) fn missed(count: u64) -> Value {
    json!({"event": "missed", "count": count})
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use relay_forward::Kind;
    use relay_wire::spec::Proto;

    use super::*;

    const DOCUMENT: &str = include_str!("../../../../docs/port-forward-json.md");

    /// The fields of each event that the document has: those that are always there, and all.
    fn documented() -> BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> {
        let mut events = BTreeMap::new();
        for row in DOCUMENT.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let [_, event, field, when, ..] = cells[..] else {
                panic!("{row}")
            };
            let bare = |text: &str| text.trim_matches('`').to_owned();
            let (always, all): &mut (BTreeSet<_>, BTreeSet<_>) =
                events.entry(bare(event)).or_default();
            if field.is_empty() || field == "-" {
                continue;
            }
            all.insert(bare(field));
            if when == "always" {
                always.insert(bare(field));
            }
        }
        events
    }

    fn check(value: &Value) {
        let (always, all) = &documented()[value["event"].as_str().unwrap()];
        let fields = value.as_object().unwrap().keys().cloned();
        let fields: BTreeSet<_> = fields.filter(|name| name != "event").collect();
        assert!(fields.is_superset(always), "{value}");
        assert!(fields.is_subset(all), "{value}");
    }

    fn a_row() -> Row {
        Row {
            name: "tcp://8080:8000".to_owned(),
            kind: Kind::Tcp,
            here: "8080".to_owned(),
            there: "8000".to_owned(),
        }
    }

    #[test]
    fn every_event_has_the_fields_of_the_document() {
        let row = Arc::new(a_row());
        let connection = |phase| {
            let (row, from) = (row.clone(), Some("127.0.0.1:9".parse().unwrap()));
            Event::Connection(Connection {
                row,
                id: 1,
                from,
                phase,
            })
        };
        let (reason, program) = (String::new(), String::new());
        let events = [
            Event::Plan(vec![a_row()]),
            Event::Listening {
                row: row.clone(),
                address: "127.0.0.1:8080".to_owned(),
            },
            Event::Removed { row: row.clone() },
            Event::Ready,
            Event::Path(Path::Direct("127.0.0.1:9".parse().unwrap())),
            Event::Path(Path::Relayed("here".to_owned())),
            Event::SameHost,
            connection(Phase::Opened),
            connection(Phase::Closed {
                sent: 1,
                received: 2,
            }),
            connection(Phase::Failed {
                reason: reason.clone(),
            }),
            Event::BackRefused {
                forward: "1:a:2".parse().unwrap(),
                reason: reason.clone(),
            },
            Event::ListenerStopped {
                proto: Proto::Tcp,
                local: "127.0.0.1:1".parse().unwrap(),
                reason: reason.clone(),
            },
            Event::PortsUnknown {
                reason: reason.clone(),
            },
            Event::Appeared {
                port: 1,
                program: program.clone(),
            },
            Event::Skipped {
                port: 1,
                program,
                reason,
            },
            Event::Vanished { port: 1 },
            Event::AgentLost,
            Event::AgentBack,
            Event::RelaysOnly,
        ];
        let mut seen = BTreeSet::new();
        let lines = events.iter().map(|event| line(event, "dev").unwrap());
        let traffic = Traffic {
            row: a_row(),
            open: 0,
            connections: 0,
            sent: 0,
            received: 0,
        };
        let others = [list(&[traffic]), fatal("x"), refused("x", "y"), missed(1)];
        for value in lines.chain(others) {
            check(&value);
            seen.insert(value["event"].as_str().unwrap().to_owned());
        }
        let all: BTreeSet<_> = documented().into_keys().collect();
        assert_eq!(seen, all);
    }

    #[test]
    fn every_state_is_in_the_document() {
        for event in [
            Event::RelaysOnly,
            Event::AgentLost,
            Event::AgentBack,
            Event::Vanished { port: 1 },
        ] {
            let name = state(&event).unwrap();
            assert!(DOCUMENT.contains(&format!("`{name}`")), "{name}");
        }
    }
}
