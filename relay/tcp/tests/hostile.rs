//! Properties of connections whose peers send anything.

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub)]
mod bodies;

use proptest::collection::vec;
use proptest::prelude::*;

/// A packet that says IPv6 and TCP to this end, and otherwise anything.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    (vec(any::<u8>(), 0..200), any::<bool>()).prop_map(|(bytes, shaped)| {
        let mut packet = bytes;
        if shaped && packet.len() >= 60 {
            let length = (packet.len() - 40) as u16;
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&length.to_be_bytes());
            packet[6] = 6;
            packet[8..40].fill(0);
            packet[39] = 1;
            packet[52] = 0x50 | packet[52] & 0x30;
        }
        packet
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn any_packets_are_borne(packets in vec(packet(), 0..20)) {
        let mut bytes = Vec::new();
        for packet in packets {
            bytes.push(packet.len() as u8);
            bytes.extend(packet);
        }
        bodies::packets(&bytes);
    }

    #[test]
    fn any_segments_are_borne(bytes in vec(any::<u8>(), 0..600)) {
        bodies::segments(&bytes);
    }
}
