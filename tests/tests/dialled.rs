//! The server's own way into workspaces: listening ports are asked of the agent through a tunnel
//! whose one end is the server, and the agent tells the health of its apps.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use relay_lab::apps::App;
use relay_lab::cluster::{Cluster, HTTP, Options};
use relay_lab::needs::Need;
use relay_lab::net::Host;
use relay_lab::{PATIENCE, needs, poll, say};
use serde_json::Value;

/// Asks the server's API from the client's machine, as often as it answers a user in a minute.
fn get(cluster: &Cluster, path: &str) -> (u16, Value) {
    std::thread::sleep(Duration::from_millis(150));
    let mut stream = cluster
        .client
        .connect((cluster.control.ipv4, HTTP))
        .expect("connect");
    let session = &cluster.session;
    let request = format!(
        "GET /api/v2/{path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\
         Coder-Session-Token: {session}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("status");
    let body = serde_json::from_str(body).unwrap_or_default();
    (status.parse().expect("status"), body)
}

fn listening(cluster: &Cluster) -> (u16, Value) {
    let agent = cluster.agent_ids[0];
    get(cluster, &format!("workspaceagents/{agent}/listening-ports"))
}

/// The ports of the list, once it has this one.
fn ports_with(cluster: &Cluster, port: u16) -> Vec<u64> {
    let found = poll(PATIENCE, || {
        let (status, body) = listening(cluster);
        let list = body["ports"].as_array()?;
        let ports = list.iter().filter_map(|found| found["port"].as_u64());
        let ports: Vec<u64> = ports.collect();
        (status == 200 && ports.contains(&u64::from(port))).then_some(ports)
    });
    found.unwrap_or_else(|| panic!("{port} is not listed: {:?}", listening(cluster)))
}

#[test]
fn the_server_lists_what_listens_in_a_workspace() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let four = cluster.workspace.listen((Ipv4Addr::LOCALHOST, 8000));
    let _six = cluster.workspace.listen((Ipv6Addr::LOCALHOST, 8001));
    let _hidden = cluster.workspace.listen((Ipv4Addr::LOCALHOST, 5432));
    let start = Instant::now();
    let (status, body) = listening(&cluster);
    say(format_args!("the first list after {:.1?}", start.elapsed()));
    assert_eq!(status, 200, "{body}\n{}", cluster.server.output());
    let ports = body["ports"].as_array().expect("ports");
    let numbers: Vec<u64> = ports.iter().filter_map(|p| p["port"].as_u64()).collect();
    assert!(numbers.contains(&8000) && numbers.contains(&8001), "{body}");
    assert!(!numbers.contains(&5432), "{body}");
    assert!(ports.iter().all(|port| port["network"] == "tcp"));

    let start = Instant::now();
    assert_eq!(listening(&cluster).0, 200);
    say(format_args!("the next one after {:.1?}", start.elapsed()));

    drop(four);
    let gone = poll(PATIENCE, || {
        let (_, body) = listening(&cluster);
        let ports = body["ports"].as_array()?;
        ports.iter().all(|p| p["port"] != 8000).then_some(())
    });
    assert!(
        gone.is_some(),
        "a port that nothing listens on stays listed"
    );
}

#[test]
fn port_four_of_the_workspace_itself_is_never_dialled() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let trap = cluster.workspace.listen((Ipv4Addr::LOCALHOST, 4));
    trap.set_nonblocking(true).expect("non-blocking");
    assert_eq!(listening(&cluster).0, 200);
    assert!(trap.accept().is_err(), "the app on port 4 was dialled");
}

#[test]
fn a_lost_agent_is_named_at_once_and_the_next_one_is_used() {
    needs!(Need::Namespaces);
    let mut cluster = Cluster::start(Options::default());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    ports_with(&cluster, 8000);

    // Killed: no goodbye, only a connection that ends.
    cluster.agents[0].kill();
    let away = poll(PATIENCE, || {
        let (status, body) = listening(&cluster);
        (status == 400).then_some(body)
    });
    let text = away.expect("no answer about the lost agent")["message"].to_string();
    assert!(text.contains("disconnected"), "{text}");
    let start = Instant::now();
    assert_eq!(listening(&cluster).0, 400);
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );

    let agent = cluster.start_agent(0);
    agent.wait_line("ready", PATIENCE);
    let start = Instant::now();
    ports_with(&cluster, 8000);
    say(format_args!(
        "the next agent is used after {:.1?}",
        start.elapsed()
    ));

    // With goodbye, this time.
    cluster.agents[0] = agent;
    cluster.agents[0].interrupt();
    let away = poll(PATIENCE, || (listening(&cluster).0 == 400).then_some(()));
    assert!(away.is_some());
    let agent = cluster.start_agent(0);
    agent.wait_line("ready", PATIENCE);
    ports_with(&cluster, 8000);
}

#[test]
fn without_udp_the_list_comes_through_the_relay() {
    needs!(Need::Namespaces, Need::Nft);
    let cluster = Cluster::start(Options::default());
    cluster.control.block_udp(&cluster.workspace);
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    ports_with(&cluster, 8000);
}

#[test]
fn a_server_that_starts_again_reaches_the_agents_again() {
    needs!(Need::Namespaces);
    let mut cluster = Cluster::start(Options::default());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    ports_with(&cluster, 8000);
    cluster.server.interrupt();
    cluster.start_server_again();
    ports_with(&cluster, 8000);
}

#[test]
fn a_stream_through_the_server_ends_soon_after_its_agent_died() {
    needs!(Need::Namespaces);
    let mut cluster = Cluster::start(Options {
        server_flags: vec!["--wildcard-access-url", "*.apps.test"],
        ..Options::default()
    });
    let listener = cluster.workspace.listen((Ipv4Addr::LOCALHOST, 8000));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 4096]);
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nthe first part";
            let _ = stream.write_all(head.as_bytes());
            // The rest never comes.
            std::thread::spawn(move || stream.read(&mut [0; 1]));
        }
    });
    let mut stream = cluster
        .client
        .connect((cluster.control.ipv4, HTTP))
        .expect("connect");
    let session = &cluster.session;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: 8000--main--dev--alice.apps.test\r\n\
         Coder-Session-Token: {session}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("request");
    stream.set_read_timeout(Some(PATIENCE)).expect("time-out");
    let mut answer = String::new();
    while !answer.contains("the first part") {
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).expect("read");
        assert!(length > 0, "{answer}\n{}", cluster.server.output());
        answer.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    cluster.agents[0].kill();
    let start = Instant::now();
    let ended = loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => break true,
            Ok(_) => {}
            Err(error) => break error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    };
    assert!(ended, "the stream hangs");
    // The proxy's own patience with a silent connection is 20 s.
    let took = start.elapsed();
    say(format_args!("ended after {took:.1?}"));
    assert!(took < Duration::from_secs(15), "ended after {took:?}");
}

const CHECKED: &str = r#"
resource "coder_agent" "main" {}
resource "coder_app" "site" {
  agent_id = coder_agent.main.id
  slug     = "site"
  url      = "http://localhost:9000"
  healthcheck {
    url       = "http://localhost:9000/healthz"
    interval  = 1
    threshold = 1
  }
}
"#;

#[test]
fn the_health_of_an_app_is_told_as_it_changes() {
    needs!(Need::Namespaces);
    let mut cluster = Cluster::start(Options::default());
    let file = cluster.folder().join("web.tf");
    std::fs::write(&file, CHECKED).expect("file");
    let file = file.to_str().expect("path");
    cluster.administer(&["template", "add", file, "--name", "web"]);
    let words = ["workspace", "create", "alice/web", "--template", "web"];
    let made = cluster.administer(&[&words[..], &["-o", "json"]].concat());
    let made: Value = serde_json::from_str(&made).expect("JSON");
    let token = made["agents"][0]["token"].as_str().expect("token");
    cluster.agent_tokens.push(token.to_owned());
    let workspace = made["id"].as_str().expect("id").to_owned();
    let agent = cluster.start_agent(1);
    agent.wait_line("ready", PATIENCE);

    let is = |wanted: &str| {
        let seen = poll(PATIENCE, || {
            let (_, body) = get(&cluster, &format!("workspaces/{workspace}"));
            let apps = &body["latest_build"]["resources"][0]["agents"][0]["apps"];
            (apps[0]["health"] == wanted).then_some(())
        });
        assert!(seen.is_some(), "never {wanted}\n{}", agent.output());
    };
    is("unhealthy");
    let site = Site::start(&cluster.workspace);
    is("healthy");
    site.broken.store(true, Ordering::Relaxed);
    is("unhealthy");
    site.broken.store(false, Ordering::Relaxed);
    is("healthy");
}

/// A web app on port 9000 that answers 404, or 500 when it is broken.
struct Site {
    broken: Arc<AtomicBool>,
}

impl Site {
    fn start(host: &Host) -> Site {
        let broken = Arc::new(AtomicBool::new(false));
        let state = Arc::clone(&broken);
        let listener = host.listen((Ipv4Addr::LOCALHOST, 9000));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let _ = stream.read(&mut [0; 4096]);
                let status = match state.load(Ordering::Relaxed) {
                    true => "500 Broken",
                    false => "404 Not Found",
                };
                let answer =
                    format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Site { broken }
    }
}
