//! Behaviour of two ends over a simulated network.

use std::time::{Duration, Instant};

use relay_wire::keys::{DiscoPrivate, NodePrivate};

use super::simulation::{REGION, World};
use super::*;

const A: &str = "192.0.2.1:41641";
const B: &str = "203.0.113.2:41641";

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Two ends with public addresses and a direct path.
fn direct() -> World {
    let mut world = World::new(true, [A, B], [None, None]);
    world.start_local(false);
    world.introduce(true, 0);
    world.stream(ms(1000));
    assert!(world.is_direct(0) && world.is_direct(1));
    world
}

#[test]
fn endpoints_known_by_both_make_a_direct_path_in_a_round_trip() {
    let mut world = World::new(true, [A, B], [None, None]);
    world.start_local(false);
    world.introduce(true, 0);
    world.send(0);
    world.stream(ms(13));
    assert!(world.is_direct(0), "{:?}", world.state(0));
}

#[test]
fn call_me_maybe_makes_a_direct_path_through_two_nats() {
    let nats = [Some("198.51.100.10:1000"), Some("198.51.100.20:2000")];
    let mut world = World::new(true, ["10.0.0.1:1", "10.0.1.2:2"], nats);
    world.start_local(true);
    world.introduce(false, 0);
    // Both learn their outer address by STUN, tell it over the relay, and open their NAT by pinging.
    world.stream(ms(1200));
    assert_eq!(
        world.state(0),
        Some(PathState::Direct(nats[1].unwrap().parse().unwrap()))
    );
    assert_eq!(
        world.state(1),
        Some(PathState::Direct(nats[0].unwrap().parse().unwrap()))
    );
    assert_eq!(
        world.ends[0].paths.local_endpoints()[1],
        nats[0].unwrap().parse().unwrap()
    );
}

#[test]
fn cut_path_is_left_for_the_relay_within_a_second() {
    let mut world = direct();
    let cut = world.elapsed();
    world.cut = [true, true];
    world.stream(ms(4000));
    for n in [0, 1] {
        let gap = world.longest_gap(n, cut);
        assert!(gap < ms(900), "end {n} waited {gap:?}");
        assert!(matches!(
            world.state(n),
            Some(PathState::Relayed(REGION, Reason::NoStun))
        ));
    }
}

#[test]
fn path_cut_one_way_is_left_too() {
    for way in [0, 1] {
        let mut world = direct();
        let cut = world.elapsed();
        world.cut[way] = true;
        world.stream(ms(10_000));
        for n in [0, 1] {
            let gap = world.longest_gap(n, cut);
            assert!(gap < ms(1000), "way {way}: end {n} waited {gap:?}");
        }
        assert!(!world.is_direct(way));
    }
}

#[test]
fn restored_path_is_taken_again_without_a_gap() {
    let mut world = direct();
    world.cut = [true, true];
    world.stream(ms(20_000));
    assert!(!world.is_direct(0) && !world.is_direct(1));
    world.cut = [false, false];
    let restored = world.elapsed();
    world.stream(ms(6000));
    assert!(world.is_direct(0) && world.is_direct(1));
    assert!(
        world.longest_gap(1, restored) < ms(60),
        "{:?}",
        world.longest_gap(1, restored)
    );
    let relayed = world.ends[1]
        .data
        .iter()
        .rev()
        .take(100)
        .filter(|(_, relayed)| *relayed);
    assert_eq!(relayed.count(), 0);
}

#[test]
fn path_survives_the_loss_of_its_relay() {
    let mut world = direct();
    world.relay_down = true;
    let since = world.elapsed();
    world.stream(ms(15_000));
    assert!(world.longest_gap(1, since) < ms(50));
    assert!(world.is_direct(0));
}

#[test]
fn trusted_path_is_used_alone_and_never_doubted() {
    let mut world = direct();
    world.ends[1].data.clear();
    world.stream(ms(30_000));
    assert!(world.ends[1].data.iter().all(|(_, relayed)| !relayed));
    assert_eq!(world.ends[1].data.len(), 3000);
}

#[test]
fn one_way_stream_keeps_its_path() {
    let mut world = direct();
    world.ends[1].data.clear();
    world.run(ms(20_000), |world| {
        if world.elapsed().as_millis() % 20 == 0 {
            world.send(0);
        }
    });
    assert!(world.ends[1].data.iter().all(|(_, relayed)| !relayed));
    assert!(world.is_direct(0));
}

#[test]
fn idle_ends_fall_silent() {
    let mut world = direct();
    world.run(ms(60_000), |_| {});
    world.udp_sent.clear();
    world.run(ms(60_000), |_| {});
    assert!(world.udp_sent.is_empty(), "{:?}", world.udp_sent);
    // And the next stream finds the path again, losing nothing meanwhile.
    let since = world.elapsed();
    world.stream(ms(500));
    assert!(world.longest_gap(1, since) < ms(60));
    assert!(world.is_direct(0));
}

#[test]
fn peer_that_moves_is_found_at_its_new_address() {
    let mut world = direct();
    let moved = world.elapsed();
    world.ends[0].addr = "192.0.2.77:5000".parse().unwrap();
    world.ends[0]
        .paths
        .set_local_endpoints(&["192.0.2.77:5000".parse().unwrap()]);
    world.stream(ms(3000));
    assert_eq!(
        world.state(1),
        Some(PathState::Direct("192.0.2.77:5000".parse().unwrap()))
    );
    assert!(world.longest_gap(1, moved) < ms(900));
}

#[test]
fn direct_off_means_no_endpoints_and_no_udp() {
    let mut world = World::new(false, [A, B], [None, None]);
    world.start_local(true);
    world.introduce(true, 0);
    world.stream(ms(10_000));
    assert_eq!(
        world.state(0),
        Some(PathState::Relayed(REGION, Reason::DirectOff))
    );
    assert!(world.udp_sent.is_empty());
    assert!(world.ends[0].paths.local_endpoints().is_empty());
}

#[test]
fn blocked_udp_is_named_as_the_reason() {
    let mut world = World::new(true, [A, B], [None, None]);
    world.stun_down = true;
    world.cut = [true, true];
    world.start_local(true);
    world.introduce(true, 0);
    world.stream(ms(5000));
    assert_eq!(
        world.state(0),
        Some(PathState::Relayed(REGION, Reason::UdpBlocked))
    );
}

#[test]
fn sizes_are_proven_as_far_as_the_path_carries_them() {
    for (limit, mtu) in [(1472, 1420), (1420, 1380), (1400, 1280), (8972, 8920)] {
        let mut world = World::new(true, [A, B], [None, None]);
        world.limit = limit;
        world.start_local(false);
        world.introduce(true, FEATURE_MTU_PROOF);
        world.stream(ms(2000));
        assert_eq!((world.mtu(0), world.mtu(1)), (mtu, mtu), "limit {limit}");
    }
}

#[test]
fn sizes_of_peers_that_do_not_prove_stay_at_the_base() {
    let world = direct();
    assert_eq!((world.mtu(0), world.mtu(1)), (BASE_MTU, BASE_MTU));
}

#[test]
fn path_that_shrinks_loses_its_size_and_not_its_way() {
    let mut world = World::new(true, [A, B], [None, None]);
    world.start_local(false);
    world.introduce(true, FEATURE_MTU_PROOF);
    world.stream(ms(2000));
    assert_eq!(world.mtu(0), 1420);
    world.limit = 1420;
    world.stream(ms(8000));
    assert_eq!((world.mtu(0), world.mtu(1)), (1380, 1380));
    assert!(world.is_direct(0));
}

#[test]
fn loopback_is_tried_only_towards_an_end_of_the_same_machine() {
    let here: Vec<SocketAddr> = ["192.0.2.1:7", "127.0.0.1:7"]
        .map(|text| text.parse().unwrap())
        .to_vec();
    for (own, tried) in [("192.0.2.1:9", true), ("192.0.2.55:9", false)] {
        let mut world = World::new(true, [own, B], [None, None]);
        world.start_local(false);
        let disco = DiscoPrivate::from_bytes([77; 32]).public();
        let node = NodePrivate::from_bytes([78; 32]).public();
        let info = PeerInfo {
            node,
            disco: Some(disco),
            home: None,
            endpoints: here.clone(),
            features: 0,
        };
        let (id, now) = (Uuid::from_u128(5), world.now);
        let paths = &mut world.ends[0].paths;
        paths.upsert_peer(id, info, now);
        paths.route(id, now);
        paths.handle_timeout(now);
        let mut to = std::iter::from_fn(|| paths.poll_transmit());
        let loopback = Destination::Udp("127.0.0.1:7".parse().unwrap());
        assert_eq!(to.any(|transmit| transmit.to == loopback), tried, "{own}");
    }
}

#[test]
fn tunnel_and_link_local_addresses_are_never_offered() {
    let mut world = World::new(true, [A, B], [None, None]);
    let all = [
        "127.0.0.1:1",
        "[fd7a:115c:a1e0::1]:1",
        "[fe80::1]:1",
        "192.0.2.9:1",
        "[::1]:1",
    ];
    let all = all.map(|text| text.parse().unwrap());
    world.ends[0].paths.set_local_endpoints(&all);
    let wanted: Vec<SocketAddr> = ["192.0.2.9:1", "127.0.0.1:1", "[::1]:1"]
        .map(|text| text.parse().unwrap())
        .to_vec();
    assert_eq!(world.ends[0].paths.local_endpoints(), wanted);
}

#[test]
fn failed_send_moves_the_peer_to_the_relay_at_once() {
    let mut world = direct();
    let (peer, now) = (world.ends[1].id, world.now);
    let addr = world.ends[0].paths.route(peer, now).direct.unwrap();
    world.ends[0].paths.path_failed(peer, addr, now);
    let route = world.ends[0].paths.route(peer, now);
    assert_eq!(
        (route.direct, route.relay.map(|(region, _)| region)),
        (None, Some(REGION))
    );
}

#[test]
fn ping_on_demand_tells_its_way_and_time() {
    let mut world = direct();
    let (peer, now) = (world.ends[1].id, world.now);
    let tx = world.ends[0].paths.start_ping(peer, now);
    world.run(ms(50), |_| {});
    let answered = world.ends[0].events.iter().any(|(_, event)| {
        matches!(event, Event::Pong { tx: t, rtt, via: Via::Direct(_) } if *t == tx && *rtt < ms(15))
    });
    assert!(answered);

    let mut world = World::new(false, [A, B], [None, None]);
    world.introduce(false, 0);
    let (peer, now) = (world.ends[1].id, world.now);
    let tx = world.ends[0].paths.start_ping(peer, now);
    world.run(ms(100), |_| {});
    let answered = world.ends[0].events.iter().any(
        |(_, event)| matches!(event, Event::Pong { tx: t, via: Via::Relay(REGION), .. } if *t == tx),
    );
    assert!(answered);
}

#[test]
fn any_bytes_are_survived() {
    use rand::{Rng as _, SeedableRng as _};
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    let mut world = direct();
    let from = B.parse().unwrap();
    let now = Instant::now();
    for _ in 0..20_000 {
        let mut bytes: Vec<u8> = (0..rng.random_range(0..200))
            .map(|_| rng.random())
            .collect();
        match rng.random_range(0..4) {
            0 if bytes.len() > 6 => bytes[..6].copy_from_slice(&relay_wire::disco::MAGIC),
            1 if bytes.len() > 8 => bytes[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]),
            2 if bytes.len() > 38 => {
                bytes[..6].copy_from_slice(&relay_wire::disco::MAGIC);
                let key = DiscoPrivate::from_bytes([2; 32]).public();
                bytes[6..38].copy_from_slice(key.as_bytes());
            }
            _ => {}
        }
        let node = NodePrivate::from_bytes([10; 32]).public();
        world.ends[0].paths.handle_udp(from, &bytes, now);
        world.ends[0]
            .paths
            .handle_relayed(REGION, node, &bytes, now);
    }
    assert!(world.ends[0].paths.poll_transmit().is_none());
}

#[test]
fn path_that_loses_a_tenth_is_kept() {
    let mut world = direct();
    world.loss = 10;
    world.ends[1].data.clear();
    world.stream(ms(60_000));
    assert!(world.is_direct(0) && world.is_direct(1));
    let relayed = world.ends[1].data.iter().filter(|(_, relayed)| *relayed);
    assert!(relayed.count() < 60);
}

#[test]
fn large_relayed_packets_move_only_to_a_path_whose_size_is_known() {
    let mut world = World::with_relay_mtu(8920, true, [A, B], [None, None]);
    world.cut = [true, true];
    world.start_local(false);
    world.introduce(true, FEATURE_MTU_PROOF);
    world.stream(ms(1000));
    assert_eq!((world.mtu(0), world.is_direct(0)), (8920, false));
    world.cut = [false, false];
    world.stream(ms(6000));
    assert_eq!((world.mtu(0), world.is_direct(0)), (1420, true));
    let told = world.ends[0]
        .events
        .iter()
        .filter_map(|(_, event)| match event {
            Event::Mtu { mtu, .. } => Some(*mtu),
            _ => None,
        });
    assert_eq!(told.collect::<Vec<_>>(), [8920, 1420]);
}

#[test]
fn node_known_under_two_ids_answers_until_both_are_gone() {
    let mut world = direct();
    let (now, second) = (world.now, Uuid::from_u128(99));
    let disco = DiscoPrivate::from_bytes([2; 32]);
    let node = NodePrivate::from_bytes([10; 32]).public();
    let info = PeerInfo {
        node,
        disco: Some(disco.public()),
        home: None,
        endpoints: Vec::new(),
        features: 0,
    };
    world.ends[0].paths.upsert_peer(second, info, now);
    world.ends[0].paths.remove_peer(second);
    let since = world.elapsed();
    world.stream(ms(10_000));
    assert!(world.is_direct(1) && world.longest_gap(1, since) < ms(50));
}

fn reason(world: &World, n: usize) -> Option<Reason> {
    match world.state(n) {
        Some(PathState::Relayed(_, reason)) => Some(reason),
        _ => None,
    }
}

/// Two ends behind NATs that know each other's addresses.
fn behind_nats(change: impl FnOnce(&mut World)) -> World {
    let nats = [Some("198.51.100.10:1000"), Some("198.51.100.20:2000")];
    let mut world = World::new(true, ["10.0.0.1:1", "10.0.1.2:2"], nats);
    change(&mut world);
    world.start_local(true);
    // The servers' answers come first.
    world.run(ms(100), |_| {});
    world.introduce(true, 0);
    world.stream(ms(8000));
    world
}

#[test]
fn addresses_are_being_tried_until_they_had_their_time() {
    let mut world = World::new(true, [A, B], [None, None]);
    world.cut = [true, true];
    world.start_local(false);
    world.introduce(true, 0);
    world.stream(ms(1000));
    assert_eq!(reason(&world, 0), Some(Reason::Trying));
    world.stream(ms(7000));
    assert_eq!(reason(&world, 0), Some(Reason::NoStun));
}

#[test]
fn blocked_udp_is_told_from_a_firewall_between_the_two() {
    let world = behind_nats(|world| world.cut = [true, true]);
    assert_eq!(reason(&world, 0), Some(Reason::NoAnswer));
    let mut world = behind_nats(|world| {
        world.cut = [true, true];
        world.stun_down = true;
    });
    assert_eq!(reason(&world, 0), Some(Reason::UdpBlocked));
    assert_eq!(world.ends[0].paths.survey().stun, Stun::Silent);
    world.stun_down = false;
    world.stream(ms(30_000));
    assert_eq!(reason(&world, 0), Some(Reason::NoAnswer));
    world.cut = [false, false];
    world.stream(ms(6000));
    assert!(world.is_direct(0) && world.is_direct(1));
    assert_eq!(reason(&world, 0), None);
}

#[test]
fn udp_that_passes_again_is_used_within_seconds() {
    let mut world = behind_nats(|world| {
        world.cut = [true, true];
        world.stun_down = true;
    });
    assert_eq!(reason(&world, 0), Some(Reason::UdpBlocked));
    world.stun_down = false;
    world.cut = [false, false];
    world.stream(ms(8000));
    assert!(world.is_direct(0) && world.is_direct(1));
}

#[test]
fn a_nat_that_varies_is_named_with_its_side() {
    let world = behind_nats(|world| world.ends[0].varies = true);
    assert_eq!(reason(&world, 0), Some(Reason::Nat(Side::Here)));
    assert_eq!(reason(&world, 1), Some(Reason::Nat(Side::There)));
    assert_eq!(world.ends[0].paths.survey().nat, Nat::EndpointDependent);
    assert_eq!(world.ends[1].paths.survey().nat, Nat::EndpointIndependent);
    let world = behind_nats(|world| world.ends.iter_mut().for_each(|end| end.varies = true));
    assert_eq!(reason(&world, 0), Some(Reason::Nat(Side::Both)));
}

#[test]
fn an_end_without_a_nat_is_seen_as_it_is() {
    let mut world = World::new(true, [A, B], [None, None]);
    world.start_local(true);
    assert_eq!(world.ends[0].paths.survey().stun, Stun::Asked);
    world.run(ms(100), |_| {});
    let survey = world.ends[0].paths.survey();
    assert_eq!((survey.nat, survey.stun), (Nat::None, Stun::Answers));
    assert_eq!(survey.servers.len(), 2);
    assert!(survey.servers.iter().all(|server| server.rtt.is_some()));
}

#[test]
fn a_stun_server_on_this_machine_shows_no_nat() {
    let mut world = World::new(true, ["127.0.0.1:7", B], [None, None]);
    world.start_local(true);
    world.run(ms(100), |_| {});
    let survey = world.ends[0].paths.survey();
    assert_eq!((survey.nat, survey.stun), (Nat::None, Stun::Answers));
}

#[test]
fn a_path_for_small_packets_alone_is_no_path_and_is_named() {
    let world = behind_nats(|world| world.limit = 1300);
    assert_eq!(reason(&world, 0), Some(Reason::Mtu));
    assert_eq!(reason(&world, 1), Some(Reason::Mtu));
}

#[test]
fn packets_that_come_in_but_are_not_answered_are_named() {
    let world = behind_nats(|world| world.cut = [true, false]);
    assert_eq!(reason(&world, 0), Some(Reason::OneWay));
}
