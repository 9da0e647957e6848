//! Many connections, many ports, and too many.

use std::net::Ipv4Addr;
use std::time::Instant;

use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::process::{Process, raise_own_descriptor_limit};
use relay_lab::{PATIENCE, needs, poll, say};

#[test]
fn nine_thousand_connections_are_open_at_once() {
    const COUNT: usize = 9_000;
    needs!(Need::Namespaces);
    raise_own_descriptor_limit();
    let cluster = Cluster::start(Options::default());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let forward = cluster.forward(&["--tcp", "8080:8000"]);
    let start = Instant::now();
    let streams: Vec<_> = (0..COUNT)
        .map(|number| {
            let stream = cluster.client.local(8080);
            let stream = stream.unwrap_or_else(|error| panic!("connection {number}: {error}"));
            let echoed = apps::echo(&stream, &number.to_le_bytes());
            echoed.unwrap_or_else(|error| panic!("echo {number}: {error}"));
            stream
        })
        .collect();
    let took = start.elapsed();
    say(format_args!(
        "{COUNT} connections in {took:.1?}; client {} KiB, agent {} KiB",
        forward.memory(),
        cluster.agents[0].memory()
    ));
    for (number, stream) in streams.iter().enumerate() {
        let echoed = apps::echo_more(stream, &number.to_be_bytes());
        echoed.unwrap_or_else(|error| panic!("second echo {number}: {error}"));
    }
}

#[test]
fn a_ring_carries_many_connections_and_bulk_both_ways() {
    const COUNT: usize = 300;
    const BULK: u64 = 128 << 20;
    needs!(Need::Namespaces);
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
