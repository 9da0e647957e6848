//! Properties of connections whose peers send anything.

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub)]
mod bodies;

use std::path::PathBuf;

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

/// What fuzzing found worth keeping: `cargo fuzz` starts from it.
fn stored(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = format!("{}/fuzz/inputs/{target}", env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(&folder).expect("the folder of inputs");
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    assert!(!paths.is_empty(), "{folder} is empty");
    paths.sort();
    let inputs = paths.into_iter().map(|path| {
        let bytes = std::fs::read(&path).expect("an input");
        (path, bytes)
    });
    inputs.collect()
}

/// Runs a target on its stored inputs and names the one that is not borne.
fn replay(target: &str, body: fn(&[u8])) {
    for (path, bytes) in stored(target) {
        let outcome = std::panic::catch_unwind(|| body(&bytes));
        assert!(outcome.is_ok(), "{} is not borne", path.display());
    }
}

#[test]
fn stored_packets_are_borne() {
    replay("packets", bodies::packets);
}

#[test]
fn stored_segments_are_borne() {
    replay("segments", bodies::segments);
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
