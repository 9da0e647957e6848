//! Two peers in one process, no network.

mod others;
mod timers;

use std::time::{Duration, Instant};

use super::*;

fn packet(source: Ipv6, destination: Ipv6, len: usize, fill: u8) -> Vec<u8> {
    let mut packet = vec![fill; len.max(40)];
    packet[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    let payload = u16::try_from(packet.len() - 40).unwrap();
    packet[4..6].copy_from_slice(&payload.to_be_bytes());
    packet[6] = 59;
    packet[7] = 64;
    packet[8..24].copy_from_slice(&source.octets());
    packet[24..40].copy_from_slice(&destination.octets());
    packet
}

type Ipv6 = std::net::Ipv6Addr;

const A: Ipv6 = Ipv6::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1);
const B: Ipv6 = Ipv6::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 2);

struct End {
    identity: Identity,
    peer: Peer,
    opened: Opened,
}

fn pair(now: Instant) -> (End, End) {
    let (a, b) = (Identity::new([1; 32]), Identity::new([2; 32]));
    let options = |key: &Identity, index, address, keepalive| PeerOptions {
        key: key.public.to_bytes(),
        index,
        addresses: vec![address],
        keepalive,
    };
    let to_b = Peer::new(&a, options(&b, 7, B, true), now);
    let to_a = Peer::new(&b, options(&a, 9, A, false), now);
    (
        End {
            identity: a,
            peer: to_b,
            opened: Opened::default(),
        },
        End {
            identity: b,
            peer: to_a,
            opened: Opened::default(),
        },
    )
}

/// Carries `messages` to `to` and the answers back until nobody has anything to say.
fn converse(from: &mut End, to: &mut End, mut messages: Vec<Vec<u8>>, now: Instant) {
    let mut ends = [from, to];
    let mut turn = 1;
    while !messages.is_empty() {
        let mut replies = Vec::new();
        for message in messages {
            let end = &mut ends[turn];
            end.peer.open_burst(
                &message,
                message.len(),
                None,
                now,
                &mut end.opened,
                &mut replies,
            );
        }
        messages = replies;
        turn = 1 - turn;
    }
}

fn connected() -> (End, End, Instant) {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    let mut hello = Vec::new();
    a.peer.greet(false, now, &mut hello);
    assert_eq!(
        b.identity.sender(&hello[0], None),
        Some(Sender::Key(a.identity.public.to_bytes()))
    );
    converse(&mut a, &mut b, hello, now);
    assert!(a.peer.is_ready() && b.peer.is_ready());
    (a, b, now)
}

#[test]
fn a_burst_arrives_whole_and_in_order() {
    let (mut a, mut b, now) = connected();
    let sizes = [1280; 30]
        .into_iter()
        .chain([900, 1280, 40, 80, 40, 96, 41, 97, 300, 299])
        .enumerate();
    let packets: Vec<_> = sizes.map(|(n, len)| packet(A, B, len, n as u8)).collect();
    let mut burst = Burst::default();
    packets.iter().for_each(|packet| burst.push(packet));
    let mut replies = Vec::new();
    assert!(a.peer.seal_burst(&mut burst, now, &mut replies));

    let runs: Vec<_> = burst.runs().collect();
    let counts: Vec<_> = runs
        .iter()
        .map(|run| run.range.len().div_ceil(run.segment))
        .collect();
    assert_eq!(counts, [31, 2, 4, 1, 2]);
    for run in runs {
        let data = &burst.data()[run.range.clone()];
        assert_eq!(
            b.identity.sender(&data[..run.segment], None),
            Some(Sender::Index(9))
        );
        b.peer
            .open_burst(data, run.segment, None, now, &mut b.opened, &mut replies);
    }
    let got: Vec<_> = b
        .opened
        .packets()
        .map(|(peer, packet)| (peer, packet.to_vec()))
        .collect();
    let want: Vec<_> = packets.into_iter().map(|packet| (9, packet)).collect();
    assert!(got == want);
    assert!(replies.is_empty());
}

#[test]
fn packets_that_are_sealed_at_once_lie_as_those_of_a_burst_do() {
    let (mut a, mut b, now) = connected();
    let sizes = [40, 41, 96, 257, 1280, 1280, 900];
    let packets = sizes.map(|len| packet(A, B, len, 3));
    let (mut burst, mut at_once) = (Burst::default(), Burst::default());
    for packet in &packets {
        burst.push(packet);
        assert!(a.peer.seal_packet(packet, &mut at_once));
    }
    let mut replies = Vec::new();
    assert!(a.peer.seal_burst(&mut burst, now, &mut replies));
    assert!(a.peer.seal_burst(&mut at_once, now, &mut replies));
    assert!(burst.runs().eq(at_once.runs()));
    assert_eq!(burst.bytes(), at_once.bytes());
    for datagram in at_once.datagrams() {
        let (opened, len) = (&mut b.opened, datagram.len());
        b.peer
            .open_burst(datagram, len, None, now, opened, &mut replies);
    }
    let got: Vec<_> = b.opened.packets().map(|(_, packet)| packet).collect();
    assert!(got == packets);
    at_once.clear();
    at_once.push(&packets[0]);
    assert_eq!(at_once.packets().next().unwrap(), packets[0]);
}

#[test]
fn runs_stay_below_what_one_send_takes() {
    let (mut a, _, now) = connected();
    let mut burst = Burst::default();
    (0..200).for_each(|_| burst.push(&packet(A, B, 40, 0)));
    (0..60).for_each(|_| burst.push(&packet(A, B, 1420, 0)));
    assert!(a.peer.seal_burst(&mut burst, now, &mut Vec::new()));
    let runs: Vec<_> = burst.runs().collect();
    assert!(
        runs.iter()
            .all(|run| run.range.len() <= crate::udp::MAX_BURST)
    );
    assert_eq!(
        runs.iter().map(|run| run.range.len()).sum::<usize>(),
        burst.bytes()
    );
    assert_eq!(burst.datagrams().count(), 260);
}

#[test]
fn a_packet_from_another_address_is_dropped() {
    let (mut a, mut b, now) = connected();
    let mut burst = Burst::default();
    burst.push(&packet(B, B, 100, 0));
    burst.push(&packet(A, B, 100, 0));
    a.peer.seal_burst(&mut burst, now, &mut Vec::new());
    for datagram in burst.datagrams() {
        b.peer.open_burst(
            datagram,
            datagram.len(),
            None,
            now,
            &mut b.opened,
            &mut Vec::new(),
        );
    }
    assert_eq!(b.opened.packets().count(), 1);
    assert_eq!(b.peer.rejected(), 1);
}

#[test]
fn a_replayed_or_damaged_datagram_gives_nothing() {
    let (mut a, mut b, now) = connected();
    let mut burst = Burst::default();
    burst.push(&packet(A, B, 200, 3));
    a.peer.seal_burst(&mut burst, now, &mut Vec::new());
    let datagram = burst.datagrams().next().unwrap().to_vec();
    let mut damaged = datagram.clone();
    damaged[40] ^= 1;
    for bytes in [&damaged, &datagram, &datagram] {
        b.peer.open_burst(
            bytes,
            bytes.len(),
            None,
            now,
            &mut b.opened,
            &mut Vec::new(),
        );
    }
    assert_eq!(b.opened.packets().count(), 1);
}

#[test]
fn without_keys_a_burst_is_left_as_it_is() {
    let now = Instant::now();
    let (mut a, _) = pair(now);
    let mut burst = Burst::default();
    burst.push(&packet(A, B, 100, 1));
    assert!(!a.peer.seal_burst(&mut burst, now, &mut Vec::new()));
    assert_eq!(burst.packets().next().unwrap(), packet(A, B, 100, 1));
    assert_eq!(burst.runs().count() + burst.datagrams().count(), 0);
}

#[test]
fn a_lost_first_message_is_repeated_soon() {
    let now = Instant::now();
    let (mut a, mut b) = pair(now);
    let mut lost = Vec::new();
    a.peer.greet(false, now, &mut lost);
    let (at, _) = a.peer.poll_timeout().unwrap();
    assert!(at - now <= Duration::from_millis(500));
    let mut again = Vec::new();
    a.peer.handle_timeout(at, &mut again);
    assert_eq!(again.len(), 1);
    converse(&mut a, &mut b, again, at);
    assert!(a.peer.is_ready() && b.peer.is_ready());
}

#[test]
fn the_newest_packets_are_kept() {
    let mut burst = Burst::default();
    (0..10).for_each(|n| burst.push(&packet(A, B, 112, n)));
    burst.keep_newest(144 * 3);
    let kept: Vec<_> = burst.packets().map(|packet| packet[99]).collect();
    assert_eq!(kept, [7, 8, 9]);
}

#[test]
fn junk_has_no_sender() {
    let identity = Identity::new([3; 32]);
    for junk in [
        &[][..],
        &[1, 0, 0, 0],
        &[4, 0, 0, 0, 1],
        &[1; 148],
        &[9; 200],
    ] {
        assert_eq!(identity.sender(junk, None), None);
    }
}
