//! A workspace on the client's own machine: connections are handed over to its agent.

use std::io::{ErrorKind, Read};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::process::Process;
use relay_lab::{PATIENCE, needs, poll};
use serde_json::Value;

use super::json::Backend;
use super::{ask, echo_socket};

const SAME_HOST: &str = "path: same host";
const HANDED: &str = "hands its connections over";
const BULK: u64 = 32 << 20;

/// A deployment whose client is on the workspace's machine.
fn beside() -> Cluster {
    let mut cluster = Cluster::start(Options::default());
    cluster.client = cluster.workspace.clone();
    cluster
}

/// What `relay status` says of the one tunnel.
fn tunnel(cluster: &Cluster) -> Value {
    let status = cluster.run_client(&["status", "-o", "json"]);
    let status: Value = serde_json::from_str(status.success()).expect("JSON");
    status["running"][0]["tunnel"].clone()
}

#[test]
fn connections_of_every_kind_go_past_the_tunnel() {
    needs!(Need::Namespaces);
    let cluster = beside();
    let app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let folder = cluster.folder();
    let path = |name: &str| folder.join(name).display().to_string();
    let serving = echo_socket(&folder.join("there"), 2);
    let (unix, nobody) = (
        format!("{}:{}", path("here"), path("there")),
        format!("{}:{}", path("lost"), path("nobody")),
    );
    let back = format!("reverse://{}:{}", path("back"), path("there"));
    let backend = Backend::start(
        &cluster,
        &[
            "--tcp",
            "8080:8000",
            "--tcp",
            "8081:8001",
            "--udp",
            "8080:8000",
        ]
        .iter()
        .copied()
        .chain(["--unix", &unix, "--unix", &nobody, "-R", &back[10..]])
        .collect::<Vec<_>>(),
    );
    backend.wait(&[("event", "ready")]);
    backend.wait(&[("event", "path"), ("path", "same-host")]);

    let up = cluster.client.local(8080).expect("connect");
    apps::upload(up, BULK).expect("upload");
    let down = cluster.client.local(8080).expect("connect");
    apps::download(down, BULK).expect("download");
    assert_eq!(app.accepted.load(Ordering::Relaxed), 2);
    for name in ["here", "back"] {
        let socket = UnixStream::connect(folder.join(name)).expect("socket");
        assert_eq!(ask(&socket, b"question").expect("answer"), b"question");
    }
    serving.join().expect("server");
    cluster.udp_echo(8080, b"datagrams go through the tunnel");

    // What was carried is counted, and told at the end.
    let closed = |forward: &str| {
        let closed = || {
            let events = backend.events().into_iter().filter(|event| {
                event["forward"]
                    .as_str()
                    .is_some_and(|name| name == forward)
                    && event["state"] == "closed"
            });
            let bytes = |event: Value| Some((event["sent"].as_u64()?, event["received"].as_u64()?));
            events
                .map(|event| bytes(event).expect("bytes"))
                .collect::<Vec<_>>()
        };
        let both = poll(PATIENCE, || (!closed().is_empty()).then(closed));
        both.unwrap_or_else(|| panic!("{forward}\n{}", backend.process.output()))
    };
    let far = poll(PATIENCE, || {
        let sums = closed("tcp://8080:8000");
        let sums = sums
            .iter()
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        (sums.0 >= BULK && sums.1 >= BULK).then_some(())
    });
    assert!(far.is_some(), "{}", backend.process.output());
    for forward in [format!("unix://{unix}"), back.clone()] {
        assert_eq!(closed(&forward), [(8, 8)], "{forward}");
    }
    let tunnel = tunnel(&cluster);
    assert_eq!(tunnel["same_host"], true, "{tunnel}");
    for bytes in ["sent_bytes", "received_bytes"] {
        let bytes = tunnel[bytes].as_u64().expect("bytes");
        assert!(bytes < BULK / 8, "{tunnel}");
    }

    // Nobody there looks as it does through the tunnel.
    let connected = cluster.client.local(8081);
    let read = connected.and_then(|mut stream| stream.read(&mut [0; 1]));
    assert_eq!(read.expect_err("nobody").kind(), ErrorKind::ConnectionReset);
    backend.wait(&[("state", "failed"), ("reason", "connection refused")]);
    let lost = UnixStream::connect(folder.join("lost")).expect("socket");
    assert_eq!(ask(&lost, b"").unwrap_or_default(), b"");
    backend.wait(&[("state", "failed"), ("reason", "no such file or directory")]);
    let pinged = cluster.run_client(&["ping", "dev", "-n", "1", "-o", "json"]);
    let pinged: Value = serde_json::from_str(pinged.success()).expect("JSON");
    assert_eq!(pinged["same_host"], true, "{pinged}");
}

#[test]
fn who_goes_takes_its_connections_along_and_who_comes_is_found() {
    needs!(Need::Namespaces);
    let mut cluster = beside();
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let mut forward = cluster.forward(&["--tcp", "8080:8000", "--tcp", "8022:22"]);
    forward.wait_line(SAME_HOST, PATIENCE);
    let stream = cluster.client.local(8080).expect("connect");
    apps::echo(&stream, b"hello").expect("echo");
    cluster.agents[0].wait_line(HANDED, PATIENCE);
    // The agent's own ports are reached through the tunnel, as ever.
    let mut greeting = [0; 4];
    let mut own = cluster.client.local(8022).expect("connect");
    own.set_read_timeout(Some(PATIENCE)).expect("time-out");
    own.read_exact(&mut greeting).expect("greeting");
    assert_eq!(&greeting, b"SSH-");

    cluster.agents[0].kill();
    assert!(apps::echo_more(&stream, b"gone").is_err());
    cluster.agents[0] = cluster.start_agent(0);
    forward.wait_nth_line(SAME_HOST, 2, PATIENCE);
    let stream = cluster.client.local(8080).expect("connect");
    apps::echo(&stream, b"again").expect("echo");
    cluster.agents[0].wait_line(HANDED, PATIENCE);

    assert!(forward.interrupt().success());
    assert!(apps::echo_more(&stream, b"gone").is_err());

    let through = cluster.forward(&["--tcp", "8080:8000", "--always-tunnel"]);
    let stream = cluster.client.local(8080).expect("connect");
    apps::echo(&stream, b"hello").expect("echo");
    apps::upload(cluster.client.local(8080).expect("connect"), BULK).expect("upload");
    let tunnel = tunnel(&cluster);
    assert_eq!(tunnel["same_host"], false, "{tunnel}");
    assert!(
        tunnel["sent_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > BULK),
        "{tunnel}"
    );
    assert_eq!(through.count_lines(SAME_HOST), 0, "{}", through.output());
}

#[test]
fn a_client_in_another_network_namespace_goes_through_the_tunnel() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let mut command = cluster.client_command();
    command
        .args(["port-forward", "dev", "--tcp", "8080:8000"])
        .env("RELAY_LOG", "info,relay_forward=debug");
    let forward = Process::start("port-forward", Some(&cluster.client), command);
    forward.wait_line("the agent is not on this machine", PATIENCE);
    forward.wait_line("Ready!", PATIENCE);
    let stream = cluster.client.local(8080).expect("connect");
    apps::echo(&stream, b"hello").expect("echo");
    assert_eq!(forward.count_lines(SAME_HOST), 0, "{}", forward.output());
    let agent = &cluster.agents[0];
    assert_eq!(agent.count_lines(HANDED), 0, "{}", agent.output());
}
