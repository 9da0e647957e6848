//! Both ends behind routers with a NAT, which is the kernel's own: which way is taken, what is said of
//! it, and what changes when the router lets UDP pass.

use nix::sys::signal::Signal;
use relay_lab::cluster::{Cluster, Options};
use relay_lab::nat::Mapping;
use relay_lab::needs::Need;
use relay_lab::process::Process;
use relay_lab::{PATIENCE, needs, poll, say};
use serde_json::Value;

use super::json;

const RELAYED: &str = "path: relayed via Coder Embedded Relay: ";

fn behind(mapping: Mapping) -> Cluster {
    Cluster::start(Options {
        nat: Some(mapping),
        ..Options::default()
    })
}

fn start_ping(cluster: &Cluster, words: &[&str]) -> Process {
    let mut command = cluster.client_command();
    command.args(["ping", "dev", "--wait", "200ms"]).args(words);
    Process::start("ping", Some(&cluster.client), command)
}

/// Interrupts a ping that prints JSON and reads that.
fn told(mut ping: Process) -> Value {
    ping.signal(Signal::SIGINT);
    assert!(ping.wait(PATIENCE).success(), "{}", ping.output());
    serde_json::from_str(&ping.stdout()).expect("JSON")
}

#[test]
fn a_router_that_opens_for_udp_makes_the_path_direct_and_ping_says_so() {
    needs!(Need::Namespaces, Need::Nat);
    let cluster = behind(Mapping::EndpointIndependent);
    cluster.routers[0].block_udp();
    let mut text = start_ping(&cluster, &[]);
    let program = start_ping(&cluster, &["-o", "json"]);
    let blocked = format!("{RELAYED}UDP is blocked: no STUN server answers from here");
    for ping in [&text, &program] {
        ping.wait_line(&blocked, PATIENCE);
    }

    cluster.routers[0].open_udp();
    let opened = std::time::Instant::now();
    // The workspace's own router is where it is found.
    let direct = format!("path: direct via {}:", cluster.routers[1].outer());
    for ping in [&text, &program] {
        ping.wait_line(&direct, PATIENCE);
    }
    say(format_args!("direct after {:.1?}", opened.elapsed()));
    let pong = format!(" p2p via {}:", cluster.routers[1].outer());
    let came = poll(PATIENCE, || text.stdout().contains(&pong).then_some(()));
    assert!(came.is_some(), "{}", text.output());
    text.signal(Signal::SIGINT);
    assert!(text.wait(PATIENCE).success(), "{}", text.output());
    let said = text.stderr();
    for part in [
        "the connection is direct, to ",
        "2 of 2 STUN servers answer; NAT: yes, endpoint-independent mapping",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }

    let told = told(program);
    let paths = told["paths"].as_array().expect("paths");
    let reasons: Vec<&Value> = paths.iter().map(|path| &path["reason"]).collect();
    assert!(reasons.contains(&&"udp_blocked".into()), "{told}");
    let last = &paths[paths.len() - 1];
    assert_eq!(
        (&last["direct"], &last["reason"]),
        (&true.into(), &Value::Null),
        "{told}"
    );
    assert_eq!(told["path"]["direct"], true, "{told}");
    assert_eq!(told["network"]["nat"], "endpoint_independent", "{told}");
    let first = &told["pings"][0];
    assert_eq!(first["via"], "Coder Embedded Relay", "{told}");
}

#[test]
fn nats_that_map_each_destination_elsewhere_leave_the_relay_and_are_named() {
    needs!(Need::Namespaces, Need::Nat);
    let cluster = behind(Mapping::EndpointDependent);
    let mut text = start_ping(&cluster, &[]);
    let program = start_ping(&cluster, &["-o", "json"]);
    let both = format!("{RELAYED}the NATs of both ends map each destination to another address");
    for ping in [&text, &program] {
        ping.wait_line(&both, PATIENCE);
    }
    text.signal(Signal::SIGINT);
    assert!(text.wait(PATIENCE).success(), "{}", text.output());
    let said = text.stderr();
    for part in [
        "the connection is relayed through Coder Embedded Relay",
        "what helps: set that NAT to endpoint-independent mapping",
        "NAT: yes, endpoint-dependent mapping",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let told = told(program);
    assert_eq!(told["path"]["reason"], "nat_both", "{told}");
    assert_eq!(told["network"]["nat"], "endpoint_dependent", "{told}");
    assert!(told["pings"][0]["ms"].as_f64() > Some(0.0), "{told}");
    let netcheck = json(&cluster, &["netcheck", "-o", "json"]);
    assert_eq!(netcheck["nat"], "endpoint_dependent", "{netcheck}");
    let advice = netcheck["advice"].as_array().expect("advice");
    let mut codes = advice.iter().map(|advice| &advice["code"]);
    assert!(codes.any(|code| code == "nat"), "{netcheck}");
}

#[test]
fn a_friendly_nat_on_both_sides_lets_a_direct_path_through_unless_it_drops_large_packets() {
    needs!(Need::Namespaces, Need::Nat);
    let cluster = behind(Mapping::EndpointIndependent);
    let ping = start_ping(&cluster, &["-o", "json"]);
    let direct = format!("path: direct via {}:", cluster.routers[1].outer());
    ping.wait_line(&direct, PATIENCE);
    say(format_args!(
        "direct after {:.1?}",
        ping.started().elapsed()
    ));
    let told = told(ping);
    assert_eq!(told["path"]["direct"], true, "{told}");
    assert_eq!(told["path"]["reason"], Value::Null, "{told}");

    cluster.routers[0].block_udp_from(1300);
    let ping = start_ping(&cluster, &["-o", "json"]);
    ping.wait_line(
        &format!("{RELAYED}the direct path carries small packets only"),
        PATIENCE,
    );
    let told = self::told(ping);
    assert_eq!(told["path"]["reason"], "mtu", "{told}");
}
