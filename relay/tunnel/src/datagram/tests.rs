//! Headers, fragments and flows.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::{Duration, Instant};

use super::*;

fn end(host: u16, port: u16) -> SocketAddrV6 {
    SocketAddrV6::new(
        Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, host),
        port,
        0,
        0,
    )
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

#[test]
fn a_packet_reads_back_for_any_size() {
    let mut packet = Vec::new();
    for len in [0, 1, 2, 3, 4, 5, 1232, 65_507] {
        build(&mut packet, end(1, 4000), end(2, 53), &payload(len));
        assert_eq!(
            parse(&packet),
            Some((end(1, 4000), end(2, 53), &payload(len)[..]))
        );
    }
}

#[test]
fn the_checksum_of_a_known_packet_is_right() {
    // ::1 port 1 to ::1 port 2, payload "a": 1 + 1 + 1 + 2 + 9 + 9 + 17 + 0x6100 summed up.
    let host = |port| SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0);
    let mut packet = Vec::new();
    build(&mut packet, host(1), host(2), b"a");
    let want = !(1u16 + 1 + 1 + 2 + 9 + 9 + 17 + 0x6100);
    assert_eq!(packet[46..48], want.to_be_bytes());
}

#[test]
fn a_damaged_packet_is_not_read() {
    let mut packet = Vec::new();
    build(&mut packet, end(1, 4000), end(2, 53), b"hello");
    for at in 0..packet.len() {
        let mut damaged = packet.clone();
        damaged[at] ^= 0x10;
        let read = parse(&damaged).map(|(from, to, payload)| (from, to, payload.to_vec()));
        // Flow label, length of the IP header and hop limit are under no checksum.
        let ignored = at < 6 || at == 7;
        assert!(read.is_none() || ignored, "byte {at}");
    }
    for len in 0..packet.len() {
        assert!(parse(&packet[..len]).is_none());
    }
}

#[test]
fn fragments_of_any_order_make_the_packet_again() {
    let mut packet = Vec::new();
    build(&mut packet, end(1, 1), end(2, 2), &payload(65_507));
    let mut parts = Vec::new();
    let mut cutter = Fragments::new(u32::MAX);
    cutter.cut(&packet, 1280, &mut |part| parts.push(part.to_vec()));
    assert!(parts.iter().all(|part| part.len() <= 1280));
    for order in [0, 1, 2] {
        match order {
            1 => parts.reverse(),
            2 => parts.sort_by_key(|part| part[50]),
            _ => {}
        }
        let mut reassembler = Reassembler::default();
        let mut whole = None;
        for (n, part) in parts.iter().enumerate() {
            assert!(whole.is_none(), "complete before part {n}");
            whole = reassembler.push(part, Instant::now());
            if n == 3 {
                assert!(
                    reassembler.push(part, Instant::now()).is_none(),
                    "a duplicate is harmless"
                );
            }
        }
        assert!(whole.as_ref() == Some(&packet));
        assert!(reassembler.poll_timeout().is_none());
    }
}

#[test]
fn a_packet_that_fits_is_not_cut() {
    let mut packet = Vec::new();
    build(
        &mut packet,
        end(1, 1),
        end(2, 2),
        &payload(MAX_UNFRAGMENTED),
    );
    let mut count = 0;
    Fragments::new(0).cut(&packet, 1280, &mut |part| {
        count += 1;
        assert_eq!(part, packet);
    });
    assert_eq!(count, 1);
}

#[test]
fn overlapping_fragments_end_the_packet() {
    let mut packet = Vec::new();
    build(&mut packet, end(1, 1), end(2, 2), &payload(5000));
    let mut parts = Vec::new();
    let mut cutter = Fragments::new(0);
    cutter.cut(&packet, 1280, &mut |part| parts.push(part.to_vec()));
    let mut overlapping = parts[1].clone();
    let offset = u16::from_be_bytes([overlapping[42], overlapping[43]]) - 8;
    overlapping[42..44].copy_from_slice(&offset.to_be_bytes());
    let mut reassembler = Reassembler::default();
    for part in [&parts[0], &overlapping] {
        assert!(reassembler.push(part, Instant::now()).is_none());
    }
    assert!(reassembler.poll_timeout().is_none());
}

#[test]
fn unfinished_packets_are_bounded_in_number_and_time() {
    let start = Instant::now();
    let mut packet = Vec::new();
    build(&mut packet, end(1, 1), end(2, 2), &payload(60_000));
    let mut reassembler = Reassembler::default();
    let mut cutter = Fragments::new(0);
    for _ in 0..500 {
        let mut last = Vec::new();
        cutter.cut(&packet, 1280, &mut |part| last = part.to_vec());
        assert!(reassembler.push(&last, start).is_none());
    }
    assert!(reassembler.poll_timeout().is_some());
    reassembler.expire(start + Duration::from_secs(6));
    assert!(reassembler.poll_timeout().is_none());
}

#[tokio::test]
async fn a_flow_gets_what_its_peer_sends_and_nothing_else() {
    let (datagrams, mut outbox, delivery) = Datagrams::new(*end(1, 0).ip());
    let mut flow = datagrams.open_flow(end(2, 53)).unwrap();
    flow.send(Bytes::from_static(b"question")).await.unwrap();
    let sent = outbox.recv().await.unwrap();
    assert_eq!((sent.source, sent.destination), (flow.local(), end(2, 53)));
    assert!(!delivery.deliver(end(3, 53), flow.local(), b"forged"));
    assert!(delivery.deliver(end(2, 53), flow.local(), b"answer"));
    assert_eq!(flow.recv().await.unwrap(), &b"answer"[..]);

    let mut served = datagrams.serve();
    assert!(delivery.deliver(end(2, 9), end(1, 80), b"unasked"));
    assert_eq!(served.recv().await.unwrap().payload, &b"unasked"[..]);
    let local = flow.local();
    drop(flow);
    drop(served);
    assert!(!delivery.deliver(end(2, 53), local, b"late"));
}

#[tokio::test]
async fn flows_have_ports_of_their_own_and_sizes_are_checked() {
    let (datagrams, _outbox, _) = Datagrams::new(*end(1, 0).ip());
    let flows: Vec<_> = (0..100)
        .map(|_| datagrams.open_flow(end(2, 53)).unwrap())
        .collect();
    let mut ports: Vec<_> = flows.iter().map(|flow| flow.local().port()).collect();
    ports.dedup();
    assert_eq!(ports.len(), 100);
    let error = flows[0]
        .send(payload(MAX_PAYLOAD + 1).into())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("65507"));
}
