//! One test for each line of SECURITY.md that a test can show from outside.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;

use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, HTTP, Options};
use relay_lab::needs::Need;
use relay_lab::{PATIENCE, needs};

const SECRET: &[u8] = b"correct horse battery staple, in the clear";

#[test]
fn another_user_cannot_reach_a_workspace() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let create = [
        "user",
        "create",
        "bob",
        "--email",
        "bob@example.com",
        "--password",
        "bob-horse-7",
    ];
    cluster.administer(&create);
    let bob = cluster.administer(&["token", "create", "bob"]);
    let words = [
        "--token",
        &bob,
        "port-forward",
        "alice/dev",
        "--tcp",
        "8080",
    ];
    let finished = cluster.run_client(&words);
    assert_eq!(finished.code, 1, "{finished:?}");
    assert!(!finished.stderr.contains("Ready!"), "{finished:?}");
    let list = cluster.run_client(&["--token", &bob, "list", "-o", "json"]);
    assert!(!list.success().contains("dev"), "{list:?}");
}

#[test]
fn wires_and_relays_carry_no_plain_text() {
    needs!(Need::Namespaces, Need::Nft);
    let cluster = Cluster::start(Options::default());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let mut tap = cluster.lab.tap();
    for direct in [true, false] {
        if !direct {
            cluster.client.block_udp(&cluster.workspace);
        }
        let mut forward = cluster.forward(&["--tcp", "8080:8000", "--udp", "8080:8000"]);
        let stream = cluster.client.local(8080).expect("connect");
        apps::echo(&stream, &SECRET.repeat(100)).expect("echo");
        cluster.udp_echo(8080, SECRET);
        let (bytes, found) = tap.saw(SECRET);
        assert!(bytes > SECRET.len() * 200, "the tap saw {bytes} bytes only");
        assert!(!found, "plain text on the wire (direct: {direct})");
        forward.interrupt();
    }
}

#[test]
fn an_agent_opens_no_tcp_port_to_its_network() {
    needs!(Need::Namespaces, Need::Program("ss"));
    let cluster = Cluster::start(Options::default());
    let listening = cluster.workspace.namespace.tool("ss", &["-Hlnt"]);
    assert_eq!(listening, "");
}

#[test]
fn the_database_holds_no_password_and_no_token() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let data = cluster.folder().join("data");
    let mode = std::fs::metadata(&data).expect("data").permissions().mode();
    assert_eq!(
        mode & 0o077,
        0,
        "other users can read the data directory: {mode:o}"
    );
    let secret_part = cluster
        .session
        .rsplit('-')
        .next()
        .expect("token")
        .to_owned();
    let secrets = [
        secret_part,
        cluster.agent_tokens[0].clone(),
        "correct-horse-7".to_owned(),
    ];
    let mut files = 0;
    for entry in std::fs::read_dir(&data).expect("data").flatten() {
        let Ok(content) = std::fs::read(entry.path()) else {
            continue;
        };
        files += 1;
        for secret in &secrets {
            let found = content
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(
                !found,
                "{} holds a secret in the clear",
                entry.path().display()
            );
        }
    }
    assert!(files > 0);
}

#[test]
fn nonsense_from_the_network_does_not_end_the_server() {
    needs!(Need::Namespaces);
    let mut cluster = Cluster::start(Options::default());
    let mut noise = apps::Pattern::new(1);
    let long_head = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; 1 << 20]].concat();
    let upgrade = b"GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n";
    let derp = [upgrade.to_vec(), noise.next_chunk().to_vec()].concat();
    for attack in [noise.next_chunk(), &long_head[..], &derp[..]] {
        let address = (cluster.control.ipv4, HTTP);
        let mut stream = cluster.client.connect(address).expect("connect");
        let _ = stream.write_all(attack);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read(&mut [0; 1024]);
    }
    let stun = cluster.client.udp((Ipv4Addr::UNSPECIFIED, 0));
    stun.send_to(&noise.next_chunk()[..1200], (cluster.control.ipv4, 3478))
        .expect("send");
    assert!(cluster.server.runs());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let _forward = cluster.forward(&["--tcp", "8080:8000"]);
    let stream = cluster.client.local(8080).expect("connect");
    apps::echo(&stream, b"alive").expect("echo");
}

#[test]
fn nonsense_at_the_agents_udp_port_is_not_answered() {
    needs!(Need::Namespaces, Need::Program("ss"));
    let mut cluster = Cluster::start(Options::default());
    let sockets = cluster.workspace.namespace.tool("ss", &["-Hlnu"]);
    let ports: Vec<u16> = sockets
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .nth(3)?
                .rsplit(':')
                .next()?
                .parse()
                .ok()
        })
        .collect();
    assert!(!ports.is_empty(), "no UDP port in {sockets:?}");
    let stranger = cluster.client.udp((Ipv4Addr::UNSPECIFIED, 0));
    let mut noise = apps::Pattern::new(2);
    for port in ports {
        for size in [0, 1, 32, 148, 1200] {
            let data = &noise.next_chunk()[..size];
            stranger
                .send_to(data, (cluster.workspace.ipv4, port))
                .expect("send");
        }
    }
    let short = std::time::Duration::from_secs(1);
    stranger.set_read_timeout(Some(short)).expect("time-out");
    assert!(
        stranger.recv(&mut [0; 64]).is_err(),
        "an answer to nonsense"
    );
    assert!(cluster.agents[0].runs());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let forward = cluster.start_forward(&["--tcp", "8080:8000"]);
    forward.wait_line("Ready!", PATIENCE);
}
