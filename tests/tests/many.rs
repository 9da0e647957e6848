//! Many connections, many ports, and too many.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::process::{Process, raise_own_descriptor_limit};
use relay_lab::{PATIENCE, kernel_stack_only, needs, poll, say};

/// What ten thousand idle connections of relay's own TCP may cost both ends together, KiB, the two
/// processes included.
const TEN_THOUSAND_IDLE: u64 = 100 << 10;

/// Ten thousand, or less where this process may not have both sockets of each, or relay, which has
/// two with the kernel's TCP.
fn most_connections() -> usize {
    let own = (raise_own_descriptor_limit().saturating_sub(200) / 2) as usize;
    match needs::stack() {
        "user" => own.min(10_000),
        _ => own.min(9_000),
    }
}

#[test]
fn thousands_of_connections_are_open_at_once() {
    needs!(Need::Namespaces);
    let count = most_connections();
    let cluster = Cluster::start(Options::default());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let forward = cluster.forward(&["--tcp", "8080:8000"]);
    let start = Instant::now();
    let streams: Vec<_> = (0..count)
        .map(|number: usize| {
            let stream = cluster.client.local(8080);
            let stream = stream.unwrap_or_else(|error| panic!("connection {number}: {error}"));
            let echoed = apps::echo(&stream, &number.to_le_bytes());
            echoed.unwrap_or_else(|error| panic!("echo {number}: {error}"));
            stream
        })
        .collect();
    let took = start.elapsed();
    let memory = || (forward.memory(), cluster.agents[0].memory());
    say(format_args!(
        "{count} connections in {took:.1?}; KiB of client and agent: {:?}",
        memory()
    ));
    for (number, stream) in streams.iter().enumerate() {
        let echoed = apps::echo_more(stream, &number.to_be_bytes());
        echoed.unwrap_or_else(|error| panic!("second echo {number}: {error}"));
    }
    if needs::stack() == "user" {
        let little = poll(PATIENCE, || {
            let (client, agent) = memory();
            (client + agent < TEN_THOUSAND_IDLE * count as u64 / 10_000).then_some(())
        });
        assert!(little.is_some(), "{:?} KiB", memory());
    }
}

#[test]
fn no_packet_is_dearer_beside_ten_thousand_idle_connections() {
    const BULK: u64 = 512 << 20;
    const ROUNDS: usize = 7;
    needs!(Need::Namespaces);
    if !std::env::var("RELAY_LONG").is_ok_and(|value| value == "1") {
        say("it takes a minute of a quiet machine; RELAY_LONG=1 runs it");
        return;
    }
    let own = raise_own_descriptor_limit().saturating_sub(200) / 2;
    let count = own.min(10_000);
    let cluster = Cluster::start(Options {
        agents: vec!["few", "many"],
        agent_flags: vec!["--stack", "user"],
        ..Options::default()
    });
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let forwards = [("dev.few", "8001:8000"), ("dev.many", "8002:8000")].map(|(agent, ports)| {
        let mut command = cluster.client_command();
        command.args(["port-forward", agent, "--stack", "user", "--tcp", ports]);
        let forward = Process::start("port-forward", Some(&cluster.client), command);
        forward.wait_line("Ready!", PATIENCE);
        forward
    });
    let idle: Vec<_> = (0..count)
        .map(|number| {
            let stream = cluster.client.local(8002).expect("connect");
            apps::echo(&stream, &number.to_le_bytes()).expect("echo");
            stream
        })
        .collect();
    let used = |index: usize| {
        let ends = [&forwards[index], &cluster.agents[index]];
        ends.map(Process::processor_time).iter().sum::<Duration>()
    };
    let cost = |index: usize, port: u16| {
        let before = used(index);
        apps::upload(cluster.client.local(port).expect("connect"), BULK).expect("upload");
        (used(index) - before).as_secs_f64()
    };
    let mut ratios: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let (few, many) = (cost(0, 8001), cost(1, 8002));
            say(format_args!("{few:.3} s alone, {many:.3} s among {count}"));
            many / few
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ROUNDS / 2];
    say(format_args!("{median:.3} times the processor time"));
    assert!(median < 1.1, "{ratios:.3?}");
    drop(idle);
}

#[test]
fn a_ring_carries_many_connections_and_bulk_both_ways() {
    const COUNT: usize = 300;
    const BULK: u64 = 128 << 20;
    needs!(Need::Namespaces);
    kernel_stack_only!("streams of relay's own TCP need no engine");
    let cluster = Cluster::start(Options::default());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let forward = cluster.forward(&["--tcp", "8080:8000", "--engine", "io-uring"]);
    if forward.count_lines("\"io-uring\" does not work here") > 0 {
        relay_lab::skip!("io_uring does not work here\n{}", forward.output());
    }
    let connect = || cluster.client.local(8080).expect("connect");
    let streams: Vec<_> = (0..COUNT).map(|_| connect()).collect();
    for (number, stream) in streams.iter().enumerate() {
        let echoed = apps::echo(stream, &number.to_le_bytes());
        echoed.unwrap_or_else(|error| panic!("echo {number}: {error}"));
    }
    let up = apps::upload(connect(), BULK).expect("upload");
    let down = apps::download(connect(), BULK).expect("download");
    say(format_args!(
        "{BULK} bytes up in {up:.1?}, down in {down:.1?}"
    ));
    for stream in &streams {
        apps::echo_more(stream, b"still there").expect("second echo");
    }
}

#[test]
fn a_range_of_two_hundred_ports_is_forwarded_pair_by_pair() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let ports = 20_000..20_200_u16;
    let listeners: Vec<_> = ports
        .clone()
        .map(|port| cluster.workspace.listen((Ipv4Addr::LOCALHOST, port)))
        .collect();
    let udp = cluster.workspace.udp((Ipv4Addr::LOCALHOST, 20_000));
    let _app = App::on(&listeners, udp);
    let _forward = cluster.forward(&["--tcp", "10000-10199:20000-20199"]);
    for port in 10_000..10_200 {
        let stream = cluster.client.local(port).expect("connect");
        apps::echo(&stream, &port.to_le_bytes()).expect("echo");
    }
}

#[test]
fn out_of_descriptors_it_says_so_once_and_recovers() {
    needs!(Need::Namespaces, Need::Program("prlimit"));
    let cluster = Cluster::start(Options::default());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let mut command = std::process::Command::new("prlimit");
    let plain = cluster.client_command();
    command.arg("--nofile=300:300").arg(plain.get_program());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.args(["port-forward", "dev", "--tcp", "8080:8000"]);
    let mut forward = Process::start("port-forward", Some(&cluster.client), command);
    forward.wait_line("Ready!", PATIENCE);

    let streams: Vec<_> = (0..400)
        .filter_map(|_| cluster.client.local(8080).ok())
        .collect();
    forward.wait_line("too many open files", PATIENCE);
    let served = streams
        .iter()
        .take(50)
        .filter(|stream| apps::echo(stream, b"x").is_ok());
    assert_eq!(served.count(), 50, "connections within the limit must work");
    drop(streams);
    let works = poll(PATIENCE, || {
        let stream = cluster.client.local(8080).ok()?;
        apps::echo(&stream, b"again").ok()
    });
    assert!(works.is_some(), "no recovery\n{}", forward.output());
    assert_eq!(forward.count_lines("too many open files"), 1);
    assert!(forward.runs());
}
