//! Commands and pages that say how it is: `ping` with the reason, `speedtest`, metrics.

#[path = "diagnostics/nat.rs"]
mod nat;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::time::Instant;

use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::net::Host;
use relay_lab::process::Process;
use relay_lab::{PATIENCE, needs, poll, rootless, say};
use serde_json::Value;

fn json(cluster: &Cluster, words: &[&str]) -> Value {
    let finished = cluster.run_client(words);
    serde_json::from_str(finished.success()).expect("JSON")
}

#[test]
fn ping_says_why_it_is_relayed_and_when_it_is_direct() {
    needs!(Need::Namespaces, Need::Nft);
    let cluster = Cluster::start(Options::default());
    cluster.client.block_udp(&cluster.workspace);
    let mut command = cluster.client_command();
    command.args(["ping", "dev", "--wait", "200ms"]);
    let mut ping = Process::start("ping", Some(&cluster.client), command);
    let relayed = "path: relayed via Coder Embedded Relay: ";
    // STUN works, so it is not that UDP is blocked.
    ping.wait_line(
        &format!("{relayed}its addresses do not answer over UDP"),
        PATIENCE,
    );
    cluster.client.unblock_udp(&cluster.workspace);
    let opened = Instant::now();
    ping.wait_line("path: direct via", PATIENCE);
    say(format_args!("direct after {:.1?}", opened.elapsed()));
    // The next answer comes over the path that was told.
    let direct = poll(PATIENCE, || {
        ping.stdout().contains(" p2p via ").then_some(())
    });
    assert!(direct.is_some(), "{}", ping.output());
    ping.signal(nix::sys::signal::Signal::SIGINT);
    assert!(ping.wait(PATIENCE).success(), "{}", ping.output());
    let said = ping.stderr();
    let stack = format!("stack {}", needs::stack());
    for part in ["p50/p99", "the connection is direct, to ", &stack] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

#[test]
fn ping_knows_blocked_udp_and_tells_programs() {
    needs!(Need::Namespaces, Need::Nft);
    let cluster = Cluster::start(Options::default());
    cluster.client.block_all_udp();
    let words = ["ping", "dev", "-n", "5", "--wait", "600ms", "-o", "json"];
    // Servers count as silent after three requests.
    let told = poll(PATIENCE, || {
        let told = json(&cluster, &words);
        (told["path"]["reason"] != "trying").then_some(told)
    });
    let told = told.expect("a reason");
    assert_eq!(told["path"]["reason"], "udp_blocked", "{told}");
    assert_eq!(told["path"]["direct"], false);
    assert_eq!(told["path"]["via"], "Coder Embedded Relay");
    assert_eq!((&told["sent"], &told["received"]), (&5.into(), &5.into()));
    assert_eq!(told["network"]["stun_answers"], 0);
    assert!(told["rtt_ms"]["p99"].as_f64() > Some(0.0), "{told}");
    assert!(told["handshake_age_seconds"].is_number(), "{told}");
}

#[test]
fn speed_is_measured_both_ways() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    for direction in ["down", "up"] {
        let words = ["speedtest", "dev", "-d", "-t", "1200ms", "-o", "json"];
        let told = json(
            &cluster,
            &[&words[..], &["--direction", direction]].concat(),
        );
        let overall = &told["overall"];
        let megabits = overall["throughput_mbits"].as_f64().expect("a rate");
        say(format_args!("{direction}: {megabits:.0} Mbit/s"));
        assert!(megabits > 1.0, "{told}");
        assert_eq!(told["direct"], true, "{told}");
        let parts = told["intervals"].as_array().expect("intervals");
        assert!(!parts.is_empty(), "{told}");
        assert_eq!(parts[0]["start_time_seconds"], 0.0);
        let (last, end) = (&parts[parts.len() - 1], &overall["end_time_seconds"]);
        assert_eq!(&last["end_time_seconds"], end, "{told}");
    }
    let table = cluster.run_client(&["speedtest", "dev", "-t", "200ms"]);
    let lines: Vec<&str> = table.success().lines().collect();
    assert!(lines[0].starts_with("INTERVAL"), "{lines:?}");
    assert!(lines[1].ends_with("Mbits/sec"), "{lines:?}");
}

/// The page of metrics that a process of a host serves.
fn metrics(host: &Host, port: u16) -> String {
    let mut stream = host.local(port).expect("connect for metrics");
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

/// Names and types on a page.
fn served(page: &str) -> BTreeSet<(String, String)> {
    let lines = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let pairs = lines.filter_map(|line| line.split_once(' '));
    pairs
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect()
}

/// Names and types of a section of the document, and of what is about both.
fn documented(section: &str) -> BTreeSet<(String, String)> {
    let text = include_str!("../../docs/metrics.md");
    let mut found = BTreeSet::new();
    for part in text.split("\n## ").skip(1) {
        let (title, rows) = part.split_once('\n').expect("a section");
        if title != section && title != "Both" {
            continue;
        }
        for row in rows.lines().filter(|row| row.starts_with("| `")) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            found.insert((cells[1].trim_matches('`').to_owned(), cells[2].to_owned()));
        }
    }
    found
}

fn value(page: &str, name: &str) -> f64 {
    let mut lines = page.lines();
    let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in {page}"))
}

#[test]
fn metrics_are_the_documented_ones_and_count() {
    needs!(Need::Namespaces, Need::Nft);
    let cluster = Cluster::start(Options {
        server_flags: vec!["--prometheus-enable", "--block-direct-connections"],
        agent_flags: vec!["--prometheus-address", "127.0.0.1:2113"],
        ..Options::default()
    });
    let server = || metrics(&cluster.control, 2112);
    let agent = || metrics(&cluster.workspace, 2113);
    assert_eq!(served(&server()), documented("Server"));
    assert_eq!(served(&agent()), documented("Agent"));
    assert_eq!(value(&server(), "relay_server_agents_connected"), 1.0);

    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let _forward = cluster.forward(&["--tcp", "8080:8000"]);
    const SIZE: u64 = 1 << 20;
    apps::upload(cluster.client.local(8080).expect("connect"), SIZE).expect("upload");
    let received = "relay_agent_received_bytes_total{protocol=\"tcp\"}";
    let counted = poll(PATIENCE, || {
        (value(&agent(), received) >= SIZE as f64).then_some(())
    });
    assert!(counted.is_some(), "{}", agent());
    assert_eq!(value(&agent(), "relay_agent_peers{path=\"relayed\"}"), 1.0);
    assert_eq!(value(&agent(), "relay_agent_control_connected"), 1.0);
    let page = server();
    assert!(
        value(&page, "relay_server_derp_bytes_total") > SIZE as f64,
        "{page}"
    );
    assert_eq!(value(&page, "relay_server_client_sessions"), 1.0);
    assert!(value(&page, "relay_server_http_requests_total{code=\"2xx\"}") > 0.0);
}

#[test]
fn netcheck_tells_what_works_and_what_is_in_the_way() {
    needs!(Need::Namespaces, Need::Nft);
    let cluster = Cluster::start(Options::default());
    let told = json(&cluster, &["netcheck", "-o", "json"]);
    assert_eq!(told["control_plane"]["user"], "alice", "{told}");
    assert_eq!((&told["udp"], &told["ipv4"]), (&true.into(), &true.into()));
    assert_eq!(told["nat"], "none", "{told}");
    let seen = told["stun"][0]["seen_as"].as_str().expect("an address");
    let own = format!("{}:", cluster.client.ipv4);
    assert!(seen.starts_with(&own), "{told}");
    assert!(told["relays"][0]["ms"].as_f64() > Some(0.0), "{told}");
    let stack = match rootless::all_are_confined() {
        true => "user",
        false => "kernel",
    };
    assert_eq!(told["machine"]["stack"], stack, "{told}");

    cluster.client.block_all_udp();
    let blocked = json(&cluster, &["netcheck", "-o", "json"]);
    assert_eq!(blocked["udp"], false, "{blocked}");
    let advice = blocked["advice"].as_array().expect("advice");
    let mut codes = advice.iter().map(|advice| &advice["code"]);
    assert!(codes.any(|code| code == "udp_blocked"), "{blocked}");
    // What cannot work is an error, after all that was found out.
    let words = ["--url", "http://127.0.0.1:9", "netcheck"];
    let away = cluster.run_client(&words);
    assert_eq!(away.code, 1, "{away:?}");
    assert!(
        away.stdout.contains("cannot reach http://127.0.0.1:9"),
        "{away:?}"
    );
    assert!(
        away.stderr.contains("the control plane cannot be used"),
        "{away:?}"
    );
}

#[test]
fn status_lists_what_runs_and_forgets_what_was_killed() {
    needs!(Need::Namespaces, Need::Nft);
    let cluster = Cluster::start(Options::default());
    let list = || json(&cluster, &["status", "-o", "json"])["running"].clone();
    assert_eq!(list(), Value::Array(Vec::new()));
    cluster.client.block_udp(&cluster.workspace);
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let mut forward = cluster.forward(&["--tcp", "8080:8000", "--engine", "copy"]);
    let mut other = cluster.forward(&["--udp", "9000"]);
    apps::upload(cluster.client.local(8080).expect("connect"), 1 << 20).expect("upload");
    // The reason takes a few rounds of trying.
    let told = poll(PATIENCE, || {
        let told = list();
        (told[0]["tunnel"]["reason"] == "no_answer").then_some(told)
    });
    let told = told.unwrap_or_else(list);
    assert_eq!(told.as_array().map(Vec::len), Some(2), "{told}");
    let (first, tunnel) = (&told[0], &told[0]["tunnel"]);
    assert_eq!(first["pid"], forward.id(), "{told}");
    assert_eq!(
        (&first["command"], &first["engine"]),
        (&"port-forward".into(), &"copy".into())
    );
    assert_eq!(tunnel["reason"], "no_answer", "{told}");
    assert_eq!(
        (&tunnel["workspace"], &tunnel["agent"]),
        (&"alice/dev".into(), &"main".into())
    );
    assert!(tunnel["rtt_ms"].as_f64() > Some(0.0), "{told}");
    assert!(tunnel["sent_bytes"].as_u64() > Some(1 << 20), "{told}");
    let row = &first["forwards"][0];
    assert_eq!(
        (&row["kind"], &row["here"], &row["there"]),
        (&"tcp".into(), &"8080".into(), &"8000".into())
    );
    assert_eq!((&row["connections"], &row["open"]), (&1.into(), &0.into()));
    assert!(row["sent_bytes"].as_u64() >= Some(1 << 20), "{told}");
    let text = cluster.run_client(&["status"]);
    assert!(
        text.success()
            .contains("relayed via Coder Embedded Relay: "),
        "{text:?}"
    );

    forward.kill();
    other.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(other.wait(PATIENCE).success());
    assert_eq!(list(), Value::Array(Vec::new()));
}

/// The packets of a pcap file: each as much as was kept of it.
fn packets(file: &[u8]) -> Vec<&[u8]> {
    assert_eq!(file[..4], 0xa1b2_3c4d_u32.to_le_bytes(), "no pcap file");
    let (mut rest, mut packets) = (&file[24..], Vec::new());
    while let [head @ .., _] = rest
        && head.len() >= 16
    {
        let kept = u32::from_le_bytes(rest[8..12].try_into().expect("four bytes"));
        let (packet, next) = rest[16..].split_at(kept as usize);
        packets.push(packet);
        rest = next;
    }
    packets
}

#[test]
fn a_speed_test_is_recorded_as_it_is_inside_the_tunnel() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let file = cluster.folder().join("test.pcap");
    let name = file.display().to_string();
    let words = ["speedtest", "dev", "-t", "200ms", "-c", "throughput"];
    let finished = cluster.run_client(&[&words[..], &["--pcap-file", &name]].concat());
    assert!(
        finished.success().starts_with("THROUGHPUT\n"),
        "{finished:?}"
    );
    let file = std::fs::read(&file).expect("the file");
    let packets = packets(&file);
    let told = format!("{name} has {} packets", packets.len());
    assert!(finished.stderr.contains(&told), "{finished:?}");
    assert!(packets.iter().all(|packet| packet[0] >> 4 == 6), "not IPv6");
    // TCP behind IPv6's 40 bytes: ports, and SYN and ACK among the flags.
    let syn = |port: usize, flags: u8| {
        let port_is = move |packet: &&&[u8]| packet[40 + port..42 + port] == [0, 3];
        let mut tcp = packets
            .iter()
            .filter(|packet| packet[6] == 6 && packet.len() >= 60);
        tcp.any(|packet| port_is(&packet) && packet[53] & 0x12 == flags)
    };
    assert!(syn(2, 0x02), "no SYN to port 3");
    assert!(syn(0, 0x12), "no answer to it");
}
