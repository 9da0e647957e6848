//! How the findings are shown, and what follows from them.

use std::fmt::Write as _;

use relay_tunnel::netcheck::{Findings, RelayTime};
use relay_tunnel::path::{Nat, Stun};
use serde::Serialize;

use super::Report;
use super::machine::{Interface, Machine};
use crate::duration::milliseconds;

/// An inner packet of 1280 bytes with WireGuard's, UDP's and IPv6's headers (coder_facts §4.6).
const LEAST_MTU: u32 = 1378;

/// All that JSON shows.
#[derive(Serialize)]
pub(super) struct Document<'a> {
    control_plane: Control<'a>,
    /// Whether UDP works; unknown without a STUN server to ask.
    udp: Option<bool>,
    ipv4: Option<bool>,
    ipv6: Option<bool>,
    nat: &'static str,
    endpoints: Vec<String>,
    stun: Vec<StunRow>,
    relays: Vec<RelayRow>,
    interfaces: &'a [Interface],
    machine: MachineRow<'a>,
    advice: Vec<Advice>,
}

#[derive(Serialize)]
struct Control<'a> {
    url: Option<&'a str>,
    ms: Option<f64>,
    user: Option<&'a str>,
    error: Option<String>,
}

#[derive(Serialize)]
struct StunRow {
    address: String,
    answers: bool,
    seen_as: Option<String>,
    ms: Option<f64>,
}

#[derive(Serialize)]
struct RelayRow {
    region: u16,
    name: String,
    ms: Option<f64>,
    error: Option<String>,
}

#[derive(Serialize)]
struct MachineRow<'a> {
    kernel: &'a str,
    /// The stack that a tunnel has by default.
    stack: String,
    tun: bool,
    tun_error: Option<&'a str>,
    io_uring: bool,
    io_uring_error: Option<&'a str>,
    /// What seals and opens packets.
    cipher: String,
    offloads: Offloads,
}

#[derive(Serialize)]
struct Offloads {
    udp_send: bool,
    udp_receive: bool,
    tun_tcp: bool,
    tun_udp: bool,
}

/// Something that could be better.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Advice {
    /// A word for programs; stays as it is.
    code: &'static str,
    text: String,
}

impl Offloads {
    fn of(machine: &Machine) -> Offloads {
        let udp = machine.udp.as_ref().ok();
        let tun = machine.tun.as_ref().ok();
        Offloads {
            udp_send: udp.is_some_and(|udp| udp.segmentation),
            udp_receive: udp.is_some_and(|udp| udp.coalescing),
            tun_tcp: tun.is_some_and(|tun| tun.tun_tcp),
            tun_udp: tun.is_some_and(|tun| tun.tun_udp),
        }
    }
}

fn family(found: &Findings, ipv6: bool) -> Option<bool> {
    found.asked(ipv6).then(|| found.answers(ipv6))
}

fn udp(found: &Findings) -> Option<bool> {
    match found.survey.stun {
        Stun::Answers => Some(true),
        Stun::Asked | Stun::Silent => Some(false),
        Stun::Unknown => None,
    }
}

/// The JSON document.
pub(super) fn document(report: &Report) -> Document<'_> {
    let answer = report.control.answer.as_ref();
    let network = report.network.as_ref();
    let machine = &report.machine;
    Document {
        control_plane: Control {
            url: report.control.url.as_deref(),
            ms: answer.ok().map(|(took, _)| milliseconds(*took)),
            user: answer.ok().map(|(_, user)| user.as_str()),
            error: answer.err().map(|error| format!("{error:#}")),
        },
        udp: network.and_then(udp),
        ipv4: network.and_then(|found| family(found, false)),
        ipv6: network.and_then(|found| family(found, true)),
        nat: network
            .map_or(Nat::Unknown, |found| found.survey.nat)
            .code(),
        endpoints: network.map_or_else(Vec::new, |found| {
            found
                .survey
                .endpoints
                .iter()
                .map(ToString::to_string)
                .collect()
        }),
        stun: network.map_or_else(Vec::new, stun_rows),
        relays: network.map_or_else(Vec::new, |found| {
            found.relays.iter().map(RelayRow::from).collect()
        }),
        interfaces: &report.interfaces,
        machine: MachineRow {
            kernel: &machine.kernel,
            stack: machine.stack().to_string(),
            tun: machine.tun.is_ok(),
            tun_error: machine.tun.as_ref().err().map(String::as_str),
            io_uring: machine.io_uring.is_ok(),
            io_uring_error: machine.io_uring.as_ref().err().map(String::as_str),
            cipher: machine.cipher.to_string(),
            offloads: Offloads::of(machine),
        },
        advice: advice(report),
    }
}

fn stun_rows(found: &Findings) -> Vec<StunRow> {
    let servers = found.survey.servers.iter();
    servers
        .map(|server| StunRow {
            address: server.address.to_string(),
            answers: server.state == Stun::Answers,
            seen_as: server.mapped.map(|mapped| mapped.to_string()),
            ms: server.rtt.map(milliseconds),
        })
        .collect()
}

impl From<&RelayTime> for RelayRow {
    fn from(relay: &RelayTime) -> Self {
        Self {
            region: relay.region,
            name: relay.name.clone(),
            ms: relay.time.as_ref().ok().copied().map(milliseconds),
            error: relay.time.as_ref().err().cloned(),
        }
    }
}

/// What follows from the findings, what matters most first.
fn advice(report: &Report) -> Vec<Advice> {
    let mut all = Vec::new();
    let mut say = |code, text: String| all.push(Advice { code, text });
    if let Err(error) = &report.control.answer {
        say("control_plane", format!("{error:#}"));
    }
    if let Err(error) = &report.machine.tun {
        say(
            "tun",
            format!("relay's own TCP takes the place of the kernel's, which is faster: {error}"),
        );
    }
    if let Some(found) = &report.network {
        for relay in &found.relays {
            if let Err(error) = &relay.time {
                say("relay", format!("relay {}: {error}", relay.name));
            }
        }
        match (found.survey.stun, found.survey.nat) {
            (Stun::Silent | Stun::Asked, _) => say(
                "udp_blocked",
                "no STUN server answers, so connections are relayed: let UDP leave this network, and its \
                 answers come back"
                    .to_owned(),
            ),
            (Stun::Unknown, _) => say(
                "no_stun",
                "the deployment names no STUN server, so direct paths are found within one network only: \
                 see relay server --stun-address"
                    .to_owned(),
            ),
            (Stun::Answers, Nat::EndpointDependent) => say(
                "nat",
                "the NAT here gives each destination another address: connections to workspaces \
                 behind a NAT are relayed; set it to endpoint-independent mapping"
                    .to_owned(),
            ),
            (Stun::Answers, _) => {}
        }
    }
    for interface in &report.interfaces {
        if let Some(mtu) = interface.mtu.filter(|mtu| *mtu < LEAST_MTU) {
            let name = &interface.name;
            say(
                "mtu",
                format!(
                    "{name} carries packets of {mtu} bytes only, a direct path needs {LEAST_MTU}: raise \
                     its MTU, or connections through it are relayed"
                ),
            );
        }
    }
    if let Err(error) = &report.machine.io_uring {
        say("io_uring", format!("{error}; the other engines do"));
    }
    all
}

/// The text for people.
pub(super) fn text(report: &Report) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<14} {value}");
    };
    let url = report.control.url.as_deref().unwrap_or("none");
    row(
        "control plane",
        match &report.control.answer {
            Ok((took, user)) => {
                let ms = milliseconds(*took);
                format!("{url} answers in {ms} ms; signed in as {user}")
            }
            Err(_) => format!("{url}: cannot be used"),
        },
    );
    match &report.network {
        Some(found) => network(found, &mut row),
        None => row(
            "network",
            "not checked: which relays and STUN servers there are, the control plane says"
                .to_owned(),
        ),
    }
    for interface in &report.interfaces {
        let mtu = interface
            .mtu
            .map_or_else(String::new, |mtu| format!(", MTU {mtu}"));
        row(
            "interface",
            format!(
                "{}: {}{mtu}",
                interface.name,
                interface.addresses.join(", ")
            ),
        );
    }
    machine(&report.machine, &mut row);
    let advice = advice(report);
    if advice.is_empty() {
        text += "\nNothing is in the way of direct connections on this side.";
    } else {
        text += "\nWhat could be better:";
        for one in advice {
            let _ = write!(text, "\n- {}", one.text);
        }
    }
    text
}

fn network(found: &Findings, row: &mut impl FnMut(&str, String)) {
    let answers = |server: &&relay_tunnel::path::StunServer| server.state == Stun::Answers;
    let (count, servers) = (
        found.survey.servers.iter().filter(answers).count(),
        found.survey.servers.len(),
    );
    row(
        "UDP",
        match udp(found) {
            Some(true) => format!("works; {count} of {servers} STUN servers answer"),
            Some(false) => format!("blocked; none of {servers} STUN servers answers"),
            None => "unknown; there is no STUN server to ask".to_owned(),
        },
    );
    for (name, ipv6) in [("  IPv4", false), ("  IPv6", true)] {
        let of_family = found
            .survey
            .servers
            .iter()
            .filter(|one| one.address.is_ipv6() == ipv6);
        let seen = of_family.filter_map(|server| server.mapped).next();
        row(
            name,
            match (found.asked(ipv6), found.answers(ipv6), seen) {
                (false, ..) => "unknown; no STUN server has such an address".to_owned(),
                (true, false, _) => "no answer".to_owned(),
                (true, true, None) => "works".to_owned(),
                (true, true, Some(seen)) => format!("works; seen from outside as {seen}"),
            },
        );
    }
    row("NAT", found.survey.nat.to_string());
    for relay in &found.relays {
        let time = match &relay.time {
            Ok(time) => format!("{} ms", milliseconds(*time)),
            Err(_) => "no answer".to_owned(),
        };
        row("relay", format!("{}: {time}", relay.name));
    }
}

fn machine(machine: &Machine, row: &mut impl FnMut(&str, String)) {
    row("kernel", machine.kernel.clone());
    row(
        "tunnel",
        match &machine.tun {
            Ok(_) => "stack kernel; TUN device and namespace can be made".to_owned(),
            Err(_) => "stack user; there is no TUN device or no namespace for it".to_owned(),
        },
    );
    let yes = |has: bool| if has { "yes" } else { "no" };
    let offloads = Offloads::of(machine);
    row(
        "offloads",
        format!(
            "udp-send {}, udp-receive {}, tun-tcp {}, tun-udp {}",
            yes(offloads.udp_send),
            yes(offloads.udp_receive),
            yes(offloads.tun_tcp),
            yes(offloads.tun_udp)
        ),
    );
    row("io_uring", yes(machine.io_uring.is_ok()).to_owned());
    row("cipher", format!("ChaCha20-Poly1305 by {}", machine.cipher));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use relay_tunnel::path::{StunServer, Survey};
    use relay_tunnel::wireguard::Cipher;

    use super::*;

    fn report(stun: Stun, nat: Nat) -> Report {
        let server = StunServer {
            address: "10.0.0.9:3478".parse().unwrap(),
            state: stun,
            mapped: (stun == Stun::Answers).then(|| "192.0.2.1:7".parse().unwrap()),
            rtt: None,
        };
        Report {
            control: super::super::Control {
                url: Some("http://relay.example.com/".to_owned()),
                answer: Ok((Duration::from_millis(3), "alice".to_owned())),
            },
            network: Some(Findings {
                survey: Survey {
                    endpoints: Vec::new(),
                    stun,
                    servers: vec![server],
                    nat,
                },
                relays: vec![RelayTime {
                    region: 999,
                    name: "Here".to_owned(),
                    time: Ok(Duration::from_millis(2)),
                }],
            }),
            machine: Machine {
                kernel: "6.18".to_owned(),
                tun: Ok(Default::default()),
                udp: Ok(Default::default()),
                io_uring: Ok(()),
                cipher: Cipher::Ring,
            },
            interfaces: Vec::new(),
        }
    }

    fn codes(report: &Report) -> Vec<&'static str> {
        advice(report).iter().map(|one| one.code).collect()
    }

    #[test]
    fn a_machine_on_which_all_works_gets_no_advice() {
        let report = report(Stun::Answers, Nat::None);
        assert_eq!(codes(&report), Vec::<&str>::new());
        assert!(report.faults().is_empty());
        let text = text(&report);
        for part in [
            "signed in as alice",
            "works; 1 of 1 STUN servers answer",
            "seen from outside as 192.0.2.1:7",
            "Here: 2 ms",
            "Nothing is in the way",
        ] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }

    #[test]
    fn what_is_in_the_way_is_named_with_what_helps() {
        assert_eq!(codes(&report(Stun::Silent, Nat::Unknown)), ["udp_blocked"]);
        assert_eq!(codes(&report(Stun::Unknown, Nat::Unknown)), ["no_stun"]);
        assert_eq!(
            codes(&report(Stun::Answers, Nat::EndpointDependent)),
            ["nat"]
        );
        let mut bad = report(Stun::Answers, Nat::None);
        bad.control.answer = Err(anyhow::anyhow!("sign in with `relay login`"));
        bad.network = None;
        bad.machine.tun = Err("/dev/net/tun is missing".to_owned());
        bad.interfaces.push(Interface {
            name: "wwan0".to_owned(),
            addresses: vec!["10.0.0.1".to_owned()],
            mtu: Some(1280),
        });
        assert_eq!(codes(&bad), ["control_plane", "tun", "mtu"]);
        assert_eq!(bad.faults().len(), 1);
        let text = text(&bad);
        assert!(
            text.contains("\n- sign in with") && text.contains("1280"),
            "{text}"
        );
        let document = serde_json::to_value(document(&bad)).unwrap();
        assert_eq!(document["udp"], serde_json::Value::Null);
        assert_eq!(document["machine"]["stack"], "user");
        assert_eq!(document["advice"][2]["code"], "mtu");
    }
}
