//! Packets that were translated are as a host would have made them.

use std::net::SocketAddrV6;

use proptest::prelude::*;

use super::*;
use crate::datagram;

const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 168, 255, 2);

fn v4_of(packet: &[u8]) -> Vec<u8> {
    let mut out = vec![7];
    assert!(to_v4(packet, &mut out));
    out.split_off(1)
}

fn v6_of(packet: &[u8]) -> Vec<u8> {
    let mut out = vec![7];
    assert!(to_v6(packet, &mut out));
    out.split_off(1)
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let at = |address, port| SocketAddrV6::new(map(address), port, 0, 0);
    let mut packet = Vec::new();
    datagram::build(&mut packet, at(OWN, 5000), at(PEER, 53), payload);
    packet
}

/// The checksum of what a packet carries, which is 0 when it is right.
fn check4(packet: &[u8]) -> (u16, u16) {
    let pseudo = sum(&packet[12..20]) + u32::from(packet[9]) + (packet.len() as u32 - 20);
    (
        !fold(sum(&packet[..20])),
        !fold(pseudo + sum(&packet[20..])),
    )
}

fn check6(packet: &[u8]) -> u16 {
    let pseudo = pseudo_header(packet, packet[6]).unwrap();
    !fold(pseudo + sum(&packet[40..]))
}

#[test]
fn mapped_addresses_add_nothing_to_checksums() {
    assert_eq!(fold(sum(&PREFIX)), 0xffff);
    assert_eq!(unmap(map(PEER)), Some(PEER));
    assert_eq!(unmap("fd00::1".parse().unwrap()), None);
}

#[test]
fn a_datagram_goes_out_and_comes_back_as_it_was() {
    let packet = udp(b"question");
    let out = v4_of(&packet);
    assert_eq!(out.len(), packet.len() - usize::from(GROWTH));
    assert_eq!(check4(&out), (0, 0));
    assert_eq!(
        (v4_address(&out, 12), v4_address(&out, 16)),
        (Some(OWN), Some(PEER))
    );
    assert_eq!(v6_of(&out), packet);
}

#[test]
fn a_datagram_without_a_checksum_gets_one() {
    let mut out = v4_of(&udp(b"question"));
    out[26..28].fill(0);
    let back = v6_of(&out);
    assert_eq!(check6(&back), 0);
    assert_eq!(back, udp(b"question"));
}

#[test]
fn fragments_stay_fragments() {
    let packet = udp(&[9; 3000]);
    let mut parts = Vec::new();
    let mut fragments = datagram::Fragments::new(0x1234_5678);
    fragments.cut(&packet, 1300, &mut |part| parts.push(part.to_vec()));
    assert!(parts.len() > 2);
    let mut reassembler = datagram::Reassembler::default();
    let now = std::time::Instant::now();
    let mut whole = None;
    for part in &parts {
        let out = v4_of(part);
        assert_eq!(!fold(sum(&out[..20])), 0);
        assert_eq!(be16(&out, 4), Some(0x5679));
        whole = whole.or(reassembler.push(&v6_of(&out), now));
    }
    assert_eq!(whole, Some(packet));
}

#[test]
fn pings_pass_both_ways() {
    let message = [8, 0, 0, 0, 0, 1, 0, 2, 3, 4, 5];
    let mut ping = Vec::new();
    let header = V4 {
        class: 0,
        id: 1,
        fragment: 0,
        ttl: 64,
        protocol: ICMP,
        from: PEER,
        to: OWN,
    };
    header.write(message.len(), &mut ping).unwrap();
    ping.extend_from_slice(&message);
    set_icmp_sum(&mut ping[20..], 0).unwrap();
    let mut inside = v6_of(&ping);
    assert_eq!((inside[6], inside[40], check6(&inside)), (ICMPV6, 128, 0));
    inside[40] = 129;
    let pong = v4_of(&inside);
    assert_eq!((pong[9], pong[20], !fold(sum(&pong[20..]))), (ICMP, 0, 0));
}

#[test]
fn a_path_that_is_narrow_is_told_to_the_stack() {
    let quoted = v4_of(&udp(&[1; 20]));
    let mut error = Vec::new();
    let message = [&[3, 4, 0, 0, 0, 0, 5, 120][..], &quoted[..28]].concat();
    let header = V4 {
        class: 0,
        id: 0,
        fragment: 0,
        ttl: 64,
        protocol: ICMP,
        from: PEER,
        to: OWN,
    };
    header.write(message.len(), &mut error).unwrap();
    error.extend_from_slice(&message);
    let inside = v6_of(&error);
    assert_eq!((inside[40], inside[41], check6(&inside)), (2, 0, 0));
    assert_eq!(inside[44..48], (5 * 256 + 120 + 20u32).to_be_bytes());
    assert_eq!(inside[48..], udp(&[1; 20])[..48]);
}

#[test]
fn segments_are_no_larger_than_the_tunnel() {
    for padding in [&[][..], &[1][..]] {
        let options = [
            padding,
            &[2, 4, 0x22, 0x00],
            &[1, 1, 1, 1][..4 - padding.len()],
        ]
        .concat();
        let mut syn = vec![0; 60];
        syn[0] = 0x60;
        syn[5] = 28;
        syn[6] = TCP;
        syn[8..24].copy_from_slice(&map(OWN).octets());
        syn[24..40].copy_from_slice(&map(PEER).octets());
        (syn[52], syn[53]) = (7 << 4, 2);
        syn.extend_from_slice(&options);
        let right = !fold(pseudo_header(&syn, TCP).unwrap() + sum(&syn[40..]));
        syn[56..58].copy_from_slice(&right.to_be_bytes());
        clamp_segments(&mut syn, 1380);
        let at = 62 + padding.len();
        assert_eq!(syn[at..at + 2], 1380u16.to_be_bytes());
        assert_eq!(check6(&syn), 0);
        let before = syn.clone();
        clamp_segments(&mut syn, 1400);
        assert_eq!(syn, before);
    }
}

proptest! {
    #[test]
    fn packets_of_any_bytes_are_borne(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        protocol in prop::sample::select(vec![ICMP, TCP, UDP, 99]),
        whole: bool,
    ) {
        let mut out = Vec::new();
        if bytes.len() >= 20 {
            bytes[0] = 0x45;
            bytes[9] = protocol;
            if whole {
                let length = bytes.len() as u16;
                bytes[2..4].copy_from_slice(&length.to_be_bytes());
            }
        }
        if to_v6(&bytes, &mut out) {
            prop_assert_eq!(usize::from(be16(&out, 4).unwrap()) + 40, out.len());
        } else {
            prop_assert!(out.is_empty());
        }
        if bytes.len() >= 40 {
            bytes[0] = 0x60;
            bytes[6] = protocol;
            bytes[8..20].copy_from_slice(&PREFIX);
            bytes[24..36].copy_from_slice(&PREFIX);
            let length = bytes.len() as u16 - 40;
            bytes[4..6].copy_from_slice(&length.to_be_bytes());
        }
        out.clear();
        if to_v4(&bytes, &mut out) {
            prop_assert_eq!(usize::from(be16(&out, 2).unwrap()), out.len());
        } else {
            prop_assert!(out.is_empty());
        }
        clamp_segments(&mut bytes, 1000);
    }
}
