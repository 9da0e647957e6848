use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What the buffers have in them before.
const UNTOUCHED: u8 = 0xa5;

const BOTH: [Implementation; 2] = [Implementation::Ring, Implementation::Wide];

fn sealed(key: &Key, counter: u64, plaintext: &[u8]) -> Vec<u8> {
    let mut sealed = vec![UNTOUCHED; plaintext.len() + TAG];
    key.seal(counter, plaintext, &mut sealed);
    sealed
}

fn opened(key: &Key, counter: u64, sealed: &[u8]) -> Option<Vec<u8>> {
    let mut plaintext = vec![UNTOUCHED; sealed.len().saturating_sub(TAG)];
    if key.open(counter, sealed, &mut plaintext) {
        return Some(plaintext);
    }
    let nothing = |byte: &u8| *byte == UNTOUCHED || *byte == 0;
    assert!(plaintext.iter().all(nothing), "something is written");
    None
}

#[test]
fn what_one_implementation_seals_the_other_opens() {
    let [ring, wide] = BOTH.map(|implementation| Key::with(&[7; 32], implementation));
    for length in [0, 1, 200, 287, 288, 289, 448, 1_420, 8_920] {
        let plaintext = vec![3; length];
        let packet = sealed(&ring, 1 << 40, &plaintext);
        assert_eq!(packet, sealed(&wide, 1 << 40, &plaintext), "{length}");
        assert_eq!(opened(&wide, 1 << 40, &packet), Some(plaintext.clone()));
        assert_eq!(opened(&ring, 1 << 40, &packet), Some(plaintext));
    }
}

#[test]
fn a_packet_with_any_byte_changed_is_refused() {
    for implementation in BOTH {
        let key = Key::with(&[9; 32], implementation);
        for length in [0, 33, 300, 1_420, 2_000] {
            let mut packet = sealed(&key, 5, &vec![1; length]);
            for i in 0..packet.len() {
                packet[i] ^= 1 << (i % 8);
                assert_eq!(opened(&key, 5, &packet), None, "{implementation} {i}");
                packet[i] ^= 1 << (i % 8);
            }
            assert!(opened(&key, 5, &packet).is_some());
        }
    }
}

#[test]
fn another_counter_or_key_or_length_is_refused() {
    for implementation in BOTH {
        let key = Key::with(&[9; 32], implementation);
        let packet = sealed(&key, 5, &[1; 1_420]);
        assert_eq!(opened(&key, 6, &packet), None);
        assert_eq!(opened(&key, 5 | 1 << 32, &packet), None);
        let other = Key::with(&[8; 32], implementation);
        assert_eq!(opened(&other, 5, &packet), None);
        assert_eq!(opened(&key, 5, &packet[..1_435]), None);
        assert_eq!(opened(&key, 5, &packet[..15]), None);
        assert_eq!(opened(&key, 5, &[]), None);
    }
}

#[test]
fn a_longer_buffer_keeps_what_is_behind_the_plaintext() {
    for implementation in BOTH {
        let key = Key::with(&[9; 32], implementation);
        let packet = sealed(&key, 5, &[1; 1_421]);
        let mut plaintext = [UNTOUCHED; 1_500];
        assert!(key.open(5, &packet, &mut plaintext));
        assert!(plaintext[..1_421].iter().all(|byte| *byte == 1));
        assert!(plaintext[1_421..].iter().all(|byte| *byte == UNTOUCHED));
    }
}

#[test]
#[should_panic(expected = "longer by the tag")]
fn a_sealed_packet_without_room_for_the_tag_panics() {
    Key::new(&[1; 32]).seal(0, &[0; 100], &mut [0; 100]);
}

#[test]
#[should_panic(expected = "longer by the tag")]
fn a_sealed_packet_with_too_much_room_panics() {
    Key::new(&[1; 32]).seal(0, &[0; 100], &mut [0; 117]);
}

#[test]
#[should_panic(expected = "no room")]
fn a_plaintext_without_room_panics() {
    let key = Key::new(&[1; 32]);
    let packet = sealed(&key, 0, &[0; 100]);
    let _ = key.open(0, &packet, &mut [0; 99]);
}

#[test]
fn a_key_does_not_print_its_bytes() {
    assert_eq!(format!("{:?}", Key::new(&[1; 32])), "Key(secret)");
}

#[test]
fn implementations_have_names() {
    assert_eq!(Implementation::Ring.to_string(), "ring");
    assert_eq!(Implementation::Wide.to_string(), "AVX-512");
}

/// Passes where the CPU has no AVX-512, for which ring is best.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_wide_one_is_best_where_the_cpu_has_it() {
    let expected = match wide::Key::new(&[0; 32]) {
        Some(_) => Implementation::Wide,
        None => Implementation::Ring,
    };
    assert_eq!(Implementation::best(), expected);
}

proptest! {
    #[test]
    fn what_is_sealed_is_opened(
        key: [u8; 32],
        counter: u64,
        plaintext in vec(any::<u8>(), 0..3_000),
    ) {
        for implementation in BOTH {
            let key = Key::with(&key, implementation);
            let packet = sealed(&key, counter, &plaintext);
            prop_assert_eq!(opened(&key, counter, &packet), Some(plaintext.clone()));
        }
    }

    #[test]
    fn what_is_not_sealed_is_refused(
        counter: u64,
        packet in vec(any::<u8>(), 0..3_000),
    ) {
        for implementation in BOTH {
            prop_assert_eq!(opened(&Key::with(&[1; 32], implementation), counter, &packet), None);
        }
    }
}
