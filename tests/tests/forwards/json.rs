//! `-o json`: events on stdout, each with the fields that the document says, and commands on stdin.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::ChildStdin;

use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::process::Process;
use relay_lab::{PATIENCE, needs, poll};
use serde_json::Value;

use super::refuses;

const DOCUMENT: &str = include_str!("../../../docs/port-forward-json.md");

/// A running backend.
pub(crate) struct Backend {
    pub(crate) process: Process,
    pub(crate) input: Option<ChildStdin>,
}

impl Backend {
    pub(crate) fn start(cluster: &Cluster, words: &[&str]) -> Backend {
        let mut command = cluster.client_command();
        command
            .args(["port-forward", "dev", "-o", "json"])
            .args(words);
        let (process, input) = Process::with_input("backend", Some(&cluster.client), command);
        Backend {
            process,
            input: Some(input),
        }
    }

    pub(crate) fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("standard input is open");
        writeln!(input, "{line}").expect("command");
    }

    /// Every line so far; each is one JSON object.
    pub(crate) fn events(&self) -> Vec<Value> {
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line:?}"));
        self.process.stdout().lines().map(parse).collect()
    }

    /// The first event that has all of these fields.
    pub(crate) fn wait(&self, fields: &[(&str, &str)]) -> Value {
        let fits = |event: &Value| {
            let has = |(name, text): &(&str, &str)| {
                let found = event[*name].as_str().unwrap_or_default();
                found == *text || (*name != "event" && found.contains(text))
            };
            fields.iter().all(has)
        };
        let found = poll(PATIENCE, || self.events().into_iter().find(fits));
        found.unwrap_or_else(|| panic!("no {fields:?}\n{}", self.process.output()))
    }
}

/// Each event's fields: whether they are always there.
fn documented() -> BTreeMap<String, BTreeMap<String, bool>> {
    let mut events: BTreeMap<String, BTreeMap<String, bool>> = BTreeMap::new();
    for row in DOCUMENT.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = row
            .split('|')
            .map(|cell| cell.trim().trim_matches('`'))
            .collect();
        let fields = events.entry(cells[1].to_owned()).or_default();
        if cells[2] != "-" {
            fields.insert(cells[2].to_owned(), cells[3] == "always");
        }
    }
    events
}

/// Holds every line to the document.
fn check(events: &[Value]) {
    let documented = documented();
    for event in events {
        let name = event["event"].as_str().expect("every line names its event");
        let fields = &documented[name];
        let object = event.as_object().expect("object");
        for field in object.keys().filter(|field| *field != "event") {
            assert!(
                fields.contains_key(field),
                "{field} is not documented: {event}"
            );
        }
        for (field, _) in fields.iter().filter(|(_, always)| **always) {
            assert!(object.contains_key(field), "{field} is missing: {event}");
        }
    }
}

#[test]
fn a_program_follows_what_happens_and_changes_it() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let mut backend = Backend::start(&cluster, &["--tcp", "8080:8000"]);
    backend.wait(&[("event", "listening"), ("address", "127.0.0.1:8080")]);
    backend.wait(&[("event", "ready")]);
    backend.wait(&[("event", "path")]);
    let stream = cluster.client.local(8080).expect("connect");
    apps::echo(&stream, b"question").expect("echo");
    drop(stream);
    let closed = backend.wait(&[("event", "connection"), ("state", "closed")]);
    assert_eq!(closed["forward"], "tcp://8080:8000");
    assert!(closed["sent"].as_u64() >= Some(8) && closed["received"].as_u64() >= Some(8));

    // Added while it runs: TCP, UDP, and one that leads nowhere.
    backend.tell(r#"{"add": ["tcp://9000:8000", "udp://9001:8000"]}"#);
    backend.wait(&[("event", "listening"), ("forward", "udp://9001:8000")]);
    apps::echo(&cluster.client.local(9000).expect("added"), b"x").expect("echo");
    cluster.udp_echo(9001, b"datagram");
    backend.tell(r#"{"add": "tcp://9002:1999"}"#);
    backend.wait(&[("event", "listening"), ("forward", "tcp://9002:1999")]);
    let refused = cluster.client.local(9002).expect("accepted");
    assert!(apps::echo(&refused, b"x").is_err());
    let failed = backend.wait(&[("event", "connection"), ("state", "failed")]);
    assert_eq!(failed["reason"], "connection refused");

    backend.tell(r#"{"list": true}"#);
    let list = backend.wait(&[("event", "list")]);
    let rows = list["forwards"].as_array().expect("forwards");
    assert_eq!(rows.len(), 4, "{list}");
    let udp = rows.iter().find(|row| row["kind"] == "udp").expect("udp");
    assert!(udp["sent"].as_u64() >= Some(8) && udp["received"].as_u64() >= Some(8));

    // What is open goes on when its forward is removed.
    let open = cluster.client.local(9000).expect("connect");
    apps::echo(&open, b"before").expect("echo");
    backend.tell(r#"{"remove": "tcp://9000:8000"}"#);
    backend.wait(&[("event", "removed"), ("forward", "tcp://9000:8000")]);
    let closed = poll(PATIENCE, || refuses(&cluster.client, 9000).then_some(()));
    assert!(closed.is_some(), "it still listens");
    apps::echo_more(&open, b"after").expect("echo");

    // The end of stdin changes nothing, a signal ends it.
    backend.input = None;
    apps::echo(&cluster.client.local(8080).expect("connect"), b"x").expect("echo");
    assert!(backend.process.interrupt().success());
    check(&backend.events());
}

#[test]
fn wrong_commands_are_told_and_change_nothing() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let _busy = cluster.client.listen((Ipv4Addr::LOCALHOST, 8081));
    // Nothing to forward at first.
    let mut backend = Backend::start(&cluster, &[]);
    for (command, said) in [
        ("frobnicate", "no command"),
        ("{}", "no command"),
        (r#"{"add": 9000}"#, "no command"),
        (r#"{"frob": "tcp://9000"}"#, "no command"),
        (r#"{"add": "9000"}"#, "tcp://"),
        (r#"{"add": "tcp://70000"}"#, "70000"),
        (r#"{"add": ["tcp://8080", "tcp://8081"]}"#, "8081"),
        (r#"{"remove": "tcp://9000"}"#, "not forwarded"),
        (
            r#"{"add": "unix:///nowhere/l.sock:/r.sock"}"#,
            "/nowhere/l.sock",
        ),
    ] {
        backend.tell(command);
        let error = backend.wait(&[("event", "error"), ("command", command)]);
        assert_eq!(error["fatal"], false);
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.contains(said), "{error}");
    }
    assert!(cluster.client.local(8080).is_err(), "all or none");
    backend.tell(r#"{"add": "tcp://8080"}"#);
    backend.wait(&[("event", "listening"), ("forward", "tcp://8080")]);
    check(&backend.events());
}

#[test]
fn when_nobody_reads_its_events_it_ends() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let mut command = std::process::Command::new("sh");
    let binary = relay_lab::process::relay_binary();
    // The reader goes after two lines; the status is relay's.
    let script = format!(
        "{{ {} port-forward dev --tcp 8080 -o json; echo status $? >&2; }} | head -n 2 >/dev/null",
        binary.display()
    );
    command.args(["-c", &script]);
    for (name, value) in cluster.client_command().get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let finished = cluster.run_on(&cluster.client, command);
    assert!(finished.stderr.contains("status 0"), "{finished:?}");
    assert!(cluster.client.local(8080).is_err());
}

#[test]
fn what_ends_it_is_its_last_event() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let _busy = cluster.client.listen((Ipv4Addr::LOCALHOST, 8080));
    let mut backend = Backend::start(&cluster, &["--tcp", "8080"]);
    assert_eq!(backend.process.wait(PATIENCE).code(), Some(1));
    let events = backend.events();
    let last = events.last().expect("events");
    assert_eq!(
        (&last["event"], &last["fatal"]),
        (&"error".into(), &true.into())
    );
    assert!(last["message"].to_string().contains("8080"), "{last}");
    check(&events);
}
