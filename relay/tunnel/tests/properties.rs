//! Properties of what reads packets of the network and of the tunnel.

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub)]
mod bodies;

use std::net::{Ipv6Addr, SocketAddrV6};

use proptest::collection::vec;
use proptest::prelude::*;

/// Bytes behind a header that says IPv6 and one of the protocols that are read.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    (
        prop::sample::select(vec![0u8, 6, 17, 44, 58, 99]),
        vec(any::<u8>(), 0..120),
    )
        .prop_map(|(protocol, bytes)| {
            let mut packet = bytes;
            if packet.len() >= 48 {
                let length = (packet.len() - 40) as u16;
                packet[..4].copy_from_slice(&[0x60, 0, 0, 0]);
                packet[4..6].copy_from_slice(&length.to_be_bytes());
                packet[6] = protocol;
                // Few senders, offsets and identities, so that fragments meet.
                packet[8..40].fill(1);
                packet[42] = 0;
                packet[43] &= 0x19;
                packet[44..48].fill(0);
            }
            packet
        })
}

proptest! {
    #[test]
    fn inner_packets_of_any_bytes_are_borne(packet in packet(), bytes in vec(any::<u8>(), 0..120)) {
        bodies::inner_packet(&packet);
        bodies::inner_packet(&bytes);
    }

    #[test]
    fn fragments_of_any_bytes_are_borne(packets in vec(packet(), 0..12)) {
        let packets: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
        bodies::fragments(&packets);
    }

    #[test]
    fn cut_packets_are_whole_again(
        payload in vec(any::<u8>(), 0..9000), mtu in 1280usize..2000, reversed in any::<bool>(), port in 1u16..,
    ) {
        let end = SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0);
        let mut packet = Vec::new();
        relay_tunnel::datagram::build(&mut packet, end, end, &payload);
        bodies::inner_packet(&packet);
        bodies::cut_and_joined(&packet, mtu, reversed);
    }

    #[test]
    fn datagrams_of_strangers_open_nothing(kind in 0u8..6, bytes in vec(any::<u8>(), 0..200)) {
        bodies::wireguard(&bytes);
        bodies::wireguard(&[&[kind, 0, 0, 0], &bytes[..]].concat());
    }
}
