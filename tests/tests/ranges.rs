//! Ranges of ports on an address of their own: one socket for all of them, nobody else's ports
//! taken, nothing left behind.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::loaded::loaded;
use relay_lab::needs::Need;
use relay_lab::process::Process;
use relay_lab::{PATIENCE, needs, poll, say, unconfined_only};

const OWN: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);
const AT_ONCE: Duration = Duration::from_millis(60);

/// Ports all over. The first is 2: at port 1 the agent itself answers.
fn sampled(count: u16) -> Vec<u16> {
    let step = 65_533 / (count - 1);
    let mut ports: Vec<u16> = (0..count - 1).map(|number| 2 + number * step).collect();
    ports.push(65_535);
    ports
}

/// Starts a forward, and tells how long opening the sockets took.
fn timed(cluster: &Cluster, words: &[&str]) -> (Process, Duration) {
    let mut command = cluster.client_command();
    command
        .args(["port-forward", "dev"])
        .args(words)
        .env("RELAY_LOG", "relay_forward=debug");
    let forward = Process::start("port-forward", Some(&cluster.client), command);
    forward.wait_line("Ready!", PATIENCE);
    let line = forward.wait_line("listening", PATIENCE);
    let took = line.split("took=").nth(1).expect("a time").trim();
    let digits = took.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: f64 = digits.parse().expect("a number");
    let unit = match &took[digits.len()..] {
        "s" => 1.0,
        "ms" => 1e-3,
        _ => 1e-6,
    };
    (forward, Duration::from_secs_f64(number * unit))
}

/// What listens or is bound, unconnected, at an address of the client.
fn sockets(cluster: &Cluster, protocol: &str, address: Ipv4Addr) -> usize {
    let source = address.to_string();
    let flags = format!("-Hln{protocol}");
    let text = cluster
        .client
        .namespace
        .tool("ss", &[&flags, "src", &source]);
    text.lines().count()
}

#[test]
fn all_ports_take_one_socket_and_are_there_at_once() {
    needs!(Need::Namespaces, Need::Program("ss"));
    unconfined_only!("a range on one socket takes CAP_BPF");
    let cluster = Cluster::start(Options::default());
    let mut best = Duration::MAX;
    let words = ["--tcp", "127.77.0.1:1-65535", "--udp", "127.77.0.1:1-65535"];
    // A busy machine is given more than one go.
    let _forward = (0..5)
        .map(|_| timed(&cluster, &words))
        .find(|(_, took)| {
            best = best.min(*took);
            *took <= AT_ONCE
        })
        .unwrap_or_else(|| panic!("listening took {best:?} at best"))
        .0;
    say(format_args!("131,070 ports: listening took {best:.1?}"));
    assert_eq!(sockets(&cluster, "t", OWN), 1);
    assert_eq!(sockets(&cluster, "u", OWN), 1);

    let ports = sampled(200);
    let start = Instant::now();
    for port in &ports {
        reaches(&cluster, *port, *port);
    }
    say(format_args!(
        "{} connections: {:.1?}",
        ports.len(),
        start.elapsed()
    ));
    for port in sampled(20) {
        datagrams_reach(&cluster, port);
    }
    assert_eq!(sockets(&cluster, "u", OWN), 1);
}

/// A connection to `port` arrives in the workspace at `remote`, and nowhere else.
fn reaches(cluster: &Cluster, port: u16, remote: u16) {
    let app = cluster.workspace.listen((Ipv4Addr::LOCALHOST, remote));
    let mut client = cluster.client.connect((OWN, port)).expect("connect");
    let mut server = accept(&app);
    client.write_all(&port.to_be_bytes()).expect("write");
    let mut got = [0; 2];
    server.read_exact(&mut got).expect("question");
    assert_eq!(u16::from_be_bytes(got), port);
    server.write_all(&remote.to_be_bytes()).expect("answer");
    client.read_exact(&mut got).expect("answer");
    assert_eq!(u16::from_be_bytes(got), remote);
}

fn accept(app: &TcpListener) -> TcpStream {
    app.set_nonblocking(true).expect("non-blocking");
    let accepted = poll(PATIENCE, || app.accept().ok()).expect("a connection");
    let stream = accepted.0;
    stream.set_nonblocking(false).expect("blocking");
    stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
    stream
}

/// Datagrams to a port arrive in the workspace, from one sender, and answers come from that port.
fn datagrams_reach(cluster: &Cluster, port: u16) {
    let app = cluster.workspace.udp((Ipv4Addr::LOCALHOST, port));
    let client = cluster.client.udp((Ipv4Addr::LOCALHOST, 0));
    let short = Some(Duration::from_millis(500));
    client.set_read_timeout(short).expect("time-out");
    app.set_read_timeout(short).expect("time-out");
    // From now on nothing is received but what comes from this port.
    client.connect((OWN, port)).expect("connect");
    let (mut buffer, mut sender) = ([0; 16], None);
    for round in 0..3_u8 {
        let answered = poll(PATIENCE, || {
            client.send(&[round]).ok()?;
            let (_, from) = app.recv_from(&mut buffer).ok()?;
            assert_eq!(*sender.get_or_insert(from), from, "another flow");
            app.send_to(&[round, 7], from).ok()?;
            let length = client.recv(&mut buffer).ok()?;
            (buffer[..length] == [round, 7]).then_some(())
        });
        assert!(answered.is_some(), "no answer from port {port}");
    }
}

#[test]
fn a_range_leads_to_other_ports_and_no_further() {
    needs!(Need::Namespaces);
    unconfined_only!("a range on one socket takes CAP_BPF");
    let cluster = Cluster::start(Options::default());
    let specs = "127.77.0.1:8000-8009:9000-9009,127.77.0.1:80";
    let _forward = cluster.forward(&["--tcp", specs]);
    reaches(&cluster, 8000, 9000);
    reaches(&cluster, 8009, 9009);
    reaches(&cluster, 80, 80);
    for (address, port) in [(OWN, 7999), (OWN, 8010), (Ipv4Addr::LOCALHOST, 8000)] {
        let error = cluster
            .client
            .connect((address, port))
            .expect_err("refused");
        assert_eq!(
            error.kind(),
            ErrorKind::ConnectionRefused,
            "{address}:{port}"
        );
    }
}

/// Who answers at a port of the client: nobody relay knows of, or its own listener.
fn is_local(cluster: &Cluster, own: &TcpListener, to: SocketAddr) -> bool {
    own.set_nonblocking(true).expect("non-blocking");
    while own.accept().is_ok() {}
    match cluster.client.connect(to) {
        Ok(_client) => own.accept().is_ok(),
        // relay's refusal can be there before the caller knows that it was connected.
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{to}");
            false
        }
    }
}

#[test]
fn listeners_of_others_keep_their_ports() {
    needs!(Need::Namespaces);
    unconfined_only!("a range on one socket takes CAP_BPF");
    let cluster = Cluster::start(Options::default());
    let before = cluster.client.listen((OWN, 8001));
    let everywhere = cluster.client.listen((Ipv4Addr::UNSPECIFIED, 8002));
    let mut forward = cluster.forward(&["--tcp", "127.77.0.1:8000-8009"]);
    forward.wait_line("tcp 8001, 8002 on 127.77.0.1", PATIENCE);
    assert!(is_local(&cluster, &before, (OWN, 8001).into()));
    assert!(is_local(&cluster, &everywhere, (OWN, 8002).into()));
    reaches(&cluster, 8003, 8003);

    let later = cluster.client.listen((OWN, 8003));
    let theirs = poll(PATIENCE, || {
        is_local(&cluster, &later, (OWN, 8003).into()).then_some(())
    });
    assert!(theirs.is_some(), "a listener that came later gets nothing");
    drop((before, later));
    for port in [8001, 8003] {
        let app = cluster.workspace.listen((Ipv4Addr::LOCALHOST, port));
        app.set_nonblocking(true).expect("non-blocking");
        let back = poll(PATIENCE, || {
            let _client = cluster.client.connect((OWN, port)).ok()?;
            poll(Duration::from_secs(1), || app.accept().ok())
        });
        assert!(back.is_some(), "port {port} stays lost");
    }
    assert!(is_local(&cluster, &everywhere, (OWN, 8002).into()));

    let second = cluster.run_client(&["port-forward", "dev", "--tcp", "127.77.0.1:8005-8006"]);
    assert_eq!(second.code, 1, "{}", second.stderr);
    assert!(
        second.stderr.contains("another address"),
        "{}",
        second.stderr
    );
    assert!(forward.runs());
}

#[test]
fn a_kill_leaves_no_program_no_map_and_no_link() {
    needs!(Need::Namespaces, Need::Program("bpftool"));
    unconfined_only!("a range on one socket takes CAP_BPF");
    let cluster = Cluster::start(Options::default());
    let others = loaded(&cluster.client.namespace);
    let mut forward = cluster.forward(&["--tcp", "127.77.0.1:1-65535"]);
    reaches(&cluster, 4711, 4711);
    let mut ours = loaded(&cluster.client.namespace);
    ours.retain(|id| !others.contains(id));
    for (kind, count) in [("prog", 1), ("link", 1), ("map", 3)] {
        let found = ours.iter().filter(|(what, _)| *what == kind).count();
        assert_eq!(found, count, "{kind}: {ours:?}");
    }
    forward.kill();
    let gone = poll(PATIENCE, || {
        let left = loaded(&cluster.client.namespace);
        ours.iter().all(|id| !left.contains(id)).then_some(())
    });
    assert!(
        gone.is_some(),
        "left behind: {:?}",
        loaded(&cluster.client.namespace)
    );
    let error = cluster.client.connect((OWN, 4711)).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn without_the_capability_a_range_has_a_listener_for_each_port() {
    needs!(Need::Namespaces, Need::Rootless, Need::Program("ss"));
    unconfined_only!("this user may open the TUN device");
    let cluster = Cluster::start(Options {
        rootless: true,
        ..Options::default()
    });
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8009));
    let specs = [
        "--tcp",
        "127.77.0.1:8000-8009",
        "--udp",
        "127.77.0.1:8000-8009",
    ];
    let forward = cluster.forward(&specs);
    assert_eq!(forward.count_lines("Listening port by port: "), 1);
    assert_eq!(sockets(&cluster, "t", OWN), 10);
    assert_eq!(sockets(&cluster, "u", OWN), 10);
    let stream = cluster.client.connect((OWN, 8009)).expect("connect");
    apps::echo(&stream, b"each").expect("echo");

    let many = cluster.run_client(&["port-forward", "dev", "--tcp", "127.77.0.1:1-65535"]);
    assert_eq!(many.code, 1, "{}", many.stderr);
    assert!(many.stderr.contains("CAP_BPF"), "{}", many.stderr);
    assert!(
        many.stderr.contains("65535 local sockets are too many"),
        "{}",
        many.stderr
    );
}

#[test]
fn more_default_ports_than_descriptors_are_refused_at_once() {
    needs!(Need::Namespaces, Need::Program("prlimit"));
    let cluster = Cluster::start(Options::default());
    let plain = cluster.client_command();
    let mut command = std::process::Command::new("prlimit");
    command.arg("--nofile=5000:5000").arg(plain.get_program());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.args(["port-forward", "dev", "--tcp", "10001-14000:1-4000"]);
    let mut forward = Process::start("port-forward", Some(&cluster.client), command);
    let status = forward.wait(PATIENCE);
    assert_eq!(status.code(), Some(1), "{}", forward.output());
    let line = forward.wait_line("8000 local sockets are too many", PATIENCE);
    assert!(
        line.contains("--tcp 127.77.0.1:10001-14000:1-4000"),
        "{line}"
    );
    assert_eq!(forward.count_lines("Forwarding"), 0);
}
