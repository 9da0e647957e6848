//! The rules, one by one.

use relay_wire::addr::{agent_address, prefix_text};
use relay_wire::proto::id_bytes;
use relay_wire::proto::tailnet::coordinate_request::{
    Disconnect, ReadyForHandshake, Tunnel, UpdateSelf,
};

use super::*;

const AGENT: Uuid = Uuid::from_u128(0xa);
const CLIENT: Uuid = Uuid::from_u128(0xc);
const OTHER: Uuid = Uuid::from_u128(0xd);

fn node(id: Uuid, home: i32) -> CoordinateRequest {
    let address = prefix_text(agent_address(&id));
    let node = Node {
        preferred_derp: home,
        addresses: vec![address.clone()],
        allowed_ips: vec![address],
        ..Node::default()
    };
    CoordinateRequest {
        update_self: Some(UpdateSelf { node: Some(node) }),
        ..CoordinateRequest::default()
    }
}

fn add(to: Uuid) -> CoordinateRequest {
    CoordinateRequest {
        add_tunnel: Some(Tunnel { id: id_bytes(to) }),
        ..CoordinateRequest::default()
    }
}

fn remove(to: Uuid) -> CoordinateRequest {
    CoordinateRequest {
        remove_tunnel: Some(Tunnel { id: id_bytes(to) }),
        ..CoordinateRequest::default()
    }
}

fn ready(ids: &[Uuid]) -> CoordinateRequest {
    CoordinateRequest {
        ready_for_handshake: ids
            .iter()
            .map(|id| ReadyForHandshake { id: id_bytes(*id) })
            .collect(),
        ..CoordinateRequest::default()
    }
}

fn bye() -> CoordinateRequest {
    CoordinateRequest {
        disconnect: Some(Disconnect {}),
        ..CoordinateRequest::default()
    }
}

/// Outputs as short texts: seat, peer, what.
fn said(core: &mut Coordinator) -> Vec<String> {
    let mut said = Vec::new();
    while let Some((seat, output)) = core.poll_output() {
        said.push(match output {
            Output::Update(id, Change::Node(node)) => {
                format!("{seat}: {:x} node {}", id.as_u128(), node.preferred_derp)
            }
            Output::Update(id, change) => format!("{seat}: {:x} {change:?}", id.as_u128()),
            Output::Error(text) => format!("{seat}: {text}"),
            Output::End => format!("{seat}: end"),
        });
    }
    said
}

fn client(core: &mut Coordinator, id: Uuid) -> SeatId {
    core.join(id, Role::Client { agent: AGENT })
}

/// An agent on seat 1 and a client on seat 2, with a tunnel and both nodes known.
fn pair() -> Coordinator {
    let mut core = Coordinator::default();
    let agent = core.join(AGENT, Role::Agent);
    let client = client(&mut core, CLIENT);
    assert_eq!((agent, client), (1, 2));
    core.handle(agent, node(AGENT, 1));
    core.handle(client, add(AGENT));
    core.handle(client, node(CLIENT, 1));
    assert_eq!(said(&mut core), ["2: a node 1", "1: c node 1"]);
    core
}

#[test]
fn nodes_go_both_ways_over_a_tunnel_and_unchanged_ones_only_once() {
    let mut core = pair();
    core.handle(2, node(CLIENT, 1));
    core.handle(1, node(AGENT, 1));
    assert_eq!(said(&mut core), [""; 0]);
    core.handle(2, node(CLIENT, 2));
    core.handle(1, node(AGENT, 3));
    assert_eq!(said(&mut core), ["1: c node 2", "2: a node 3"]);
}

#[test]
fn ready_for_handshake_reaches_the_peer_of_a_tunnel_only() {
    let mut core = pair();
    core.handle(1, ready(&[CLIENT]));
    assert_eq!(said(&mut core), ["2: a Ready"]);
    core.handle(1, ready(&[OTHER]));
    let heard = said(&mut core);
    assert!(
        heard[0].starts_with("1: ready for handshake error: "),
        "{heard:?}"
    );
    assert_eq!(heard.len(), 1, "it is not fatal: {heard:?}");
}

#[test]
fn a_removed_tunnel_disconnects_both_sides() {
    let mut core = pair();
    core.handle(2, remove(AGENT));
    let expected = [
        r#"2: a Disconnected("remove tunnel")"#,
        r#"1: c Disconnected("remove tunnel")"#,
    ];
    assert_eq!(said(&mut core), expected);
    core.handle(1, node(AGENT, 9));
    assert_eq!(said(&mut core), [""; 0]);
}

#[test]
fn a_graceful_end_disconnects_and_closes() {
    let mut core = pair();
    core.handle(2, bye());
    let expected = [r#"1: c Disconnected("graceful disconnect")"#, "2: end"];
    assert_eq!(said(&mut core), expected);
    core.leave(2, "");
    core.handle(2, node(CLIENT, 5));
    assert_eq!(said(&mut core), [""; 0]);
}

#[test]
fn an_agent_that_comes_back_gets_and_gives_nodes_without_being_asked() {
    let mut core = pair();
    core.leave(1, "");
    assert_eq!(said(&mut core), [r#"2: a Lost("")"#]);
    let again = core.join(AGENT, Role::Agent);
    assert_eq!(said(&mut core), ["3: c node 1"], "before its own node");
    core.handle(again, node(AGENT, 1));
    assert_eq!(said(&mut core), ["2: a node 1"]);
}

#[test]
fn a_lost_client_takes_its_tunnels_along() {
    let mut core = pair();
    core.leave(2, "");
    assert_eq!(said(&mut core), [r#"1: c Lost("")"#]);
    let again = client(&mut core, CLIENT);
    core.handle(again, node(CLIENT, 2));
    assert_eq!(said(&mut core), [""; 0], "no tunnel any more");
    assert!(core.opened.is_empty() && core.accepted.is_empty());
}

#[test]
fn a_newer_connection_of_the_same_peer_replaces_the_older_one() {
    let mut core = pair();
    let again = client(&mut core, CLIENT);
    let expected = [
        "2: peer ID overwritten by new connection",
        "2: end",
        "3: a node 1",
    ];
    assert_eq!(said(&mut core), expected);
    core.leave(2, "");
    assert_eq!(said(&mut core), [""; 0], "the agent hears of no loss");
    core.handle(again, node(CLIENT, 1));
    assert_eq!(said(&mut core), [""; 0], "the agent knows this node");
    core.handle(again, node(CLIENT, 4));
    assert_eq!(said(&mut core), ["1: c node 4"]);
}

#[test]
fn a_peer_that_was_never_announced_is_not_taken_back() {
    let mut core = Coordinator::default();
    core.join(AGENT, Role::Agent);
    let client = client(&mut core, CLIENT);
    core.handle(client, add(AGENT));
    core.leave(client, "");
    assert_eq!(said(&mut core), [""; 0]);
}

#[test]
fn what_is_not_allowed_ends_the_stream_with_its_reason() {
    let wrong_bits = {
        let mut request = node(CLIENT, 1);
        let node = request.update_self.as_mut().and_then(|u| u.node.as_mut());
        node.expect("node").addresses = vec!["fd7a:115c:a1e0::1/64".to_owned()];
        request
    };
    let no_node = CoordinateRequest {
        update_self: Some(UpdateSelf { node: None }),
        ..CoordinateRequest::default()
    };
    let short = CoordinateRequest {
        add_tunnel: Some(Tunnel {
            id: vec![1, 2, 3].into(),
        }),
        ..CoordinateRequest::default()
    };
    let huge = {
        let mut request = node(CLIENT, 1);
        let node = request.update_self.as_mut().and_then(|u| u.node.as_mut());
        node.expect("node").endpoints = vec!["x".repeat(70 << 10)];
        request
    };
    for (seat, request, text) in [
        (2, add(OTHER), "authorization: invalid agent id, expected"),
        (
            2,
            ready(&[AGENT]),
            "authorization: clients may not send ready_for_handshake",
        ),
        (1, add(CLIENT), "authorization: agents cannot open tunnels"),
        (
            2,
            short,
            "authorization: parse add tunnel id: invalid UUID (got 3 bytes)",
        ),
        (
            2,
            wrong_bits,
            "authorization: invalid address bits, expected 128, got 64",
        ),
        (2, no_node, "authorization: update_self without a node"),
        (2, huge, "authorization: node of more than"),
        (
            1,
            node(OTHER, 1),
            "authorization: invalid node address, got",
        ),
    ] {
        let mut core = pair();
        core.handle(seat, request);
        let heard = said(&mut core);
        assert!(
            heard[0].starts_with(&format!("{seat}: {text}")),
            "{heard:?}"
        );
        assert_eq!(heard[1], format!("{seat}: end"));
        assert!(heard[2].ends_with(r#"Lost("")"#), "{heard:?}");
    }
}

#[test]
fn whatever_peers_do_nobody_is_told_what_makes_no_sense() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    let mut rng = StdRng::seed_from_u64(3);
    let mut core = Coordinator::default();
    let agents = [AGENT, Uuid::from_u128(0xb)];
    let clients = [1, 2, 3, 4].map(Uuid::from_u128);
    let mut seats: Vec<(SeatId, Uuid)> = Vec::new();
    let mut ended = HashSet::new();
    let mut known: HashMap<SeatId, HashSet<Uuid>> = HashMap::new();
    for _ in 0..50_000 {
        let agent = agents[rng.random_range(0..2)];
        let client = clients[rng.random_range(0..4)];
        let seat = seats.get(rng.random_range(0..seats.len().max(1))).copied();
        match (rng.random_range(0..12), seat) {
            (0, _) => seats.push((core.join(agent, Role::Agent), agent)),
            (1, _) => seats.push((core.join(client, Role::Client { agent }), client)),
            (2, Some((seat, _))) => core.leave(seat, ""),
            (3, Some((seat, _))) => core.handle(seat, bye()),
            (4..=6, Some((seat, id))) => core.handle(seat, node(id, rng.random_range(1..4))),
            (7 | 8, Some((seat, _))) => core.handle(seat, add(agent)),
            (9, Some((seat, _))) => core.handle(seat, remove(agent)),
            (_, Some((seat, _))) => core.handle(seat, ready(&[client, agent])),
            _ => {}
        }
        while let Some((seat, output)) = core.poll_output() {
            assert!(!ended.contains(&seat), "told after the end: {output:?}");
            let known = known.entry(seat).or_default();
            match output {
                Output::Update(id, Change::Node(_)) => drop(known.insert(id)),
                Output::Update(id, Change::Lost(_) | Change::Disconnected(_)) => {
                    assert!(known.remove(&id), "took back what was never said");
                }
                Output::End => drop(ended.insert(seat)),
                Output::Update(_, Change::Ready) | Output::Error(_) => {}
            }
        }
        seats.retain(|(seat, _)| !ended.contains(seat) || seat % 5 == 0);
        if seats.len() > 40 {
            seats.drain(..20);
        }
    }
    let pairs =
        |sets: &HashMap<Uuid, HashSet<Uuid>>| -> usize { sets.values().map(HashSet::len).sum() };
    assert_eq!(pairs(&core.opened), pairs(&core.accepted));
    assert!(core.peers.len() <= 6 && core.seats.len() == core.peers.len());
}

#[test]
fn the_server_may_open_tunnels_to_every_agent_and_is_no_agent() {
    let mut core = Coordinator::default();
    core.join(AGENT, Role::Agent);
    core.join(OTHER, Role::Agent);
    core.handle(1, node(AGENT, 1));
    core.handle(2, node(OTHER, 2));
    let server = core.join(CLIENT, Role::Server);
    core.handle(server, add(AGENT));
    core.handle(server, add(OTHER));
    assert_eq!(said(&mut core), ["3: a node 1", "3: d node 2"]);
    assert!(core.has(CLIENT));
    core.handle(server, ready(&[AGENT]));
    let heard = said(&mut core);
    assert!(heard[0].contains("may not send ready"), "{heard:?}");
    assert!(!core.has(CLIENT));
}
