//! The wide implementation alone, at every length. Where the CPU has no AVX-512, these tests pass
//! and tell nothing.

mod vectors;

use std::arch::x86_64::*;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::chacha::Steps;
use super::memory::store;
use super::*;
use crate::{ring_key, ring_open, ring_seal};

/// What the buffers have in them before.
const UNTOUCHED: u8 = 0xa5;

fn there() -> bool {
    Key::new(&[0; 32]).is_some()
}

/// Sixteen blocks of a key stream, and then eight, from this state.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,bmi2")]
fn key_stream(state: [u32; 16]) -> Vec<u8> {
    let mut stream = Stream { state };
    let mut sixteen = [_mm512_setzero_si512(); 16];
    let mut eight = sixteen;
    stream.sixteen(&mut sixteen, &mut ());
    stream.eight(&mut eight, &mut ());
    let mut bytes = vec![0; 24 * 64];
    let blocks = sixteen.into_iter().chain(eight);
    for (bytes, block) in bytes.as_chunks_mut().0.iter_mut().zip(blocks) {
        store(bytes, block);
    }
    bytes
}

/// Poly1305 of a text, filled up with zeros to whole blocks, and of a block behind it.
fn tag(key: &[u8; 32], text: &[u8], last: u128) -> [u8; 16] {
    assert!(there());
    let key = [&key[..16], &key[16..]].map(|half| u128::from_le_bytes(half.try_into().unwrap()));
    let mut powers = Powers::new(key);
    (0..chacha::DOUBLE_ROUNDS).for_each(|step| powers.step(step));
    // SAFETY: the CPU has the features.
    unsafe { Mac::new(&powers).tag_with(text, last) }
}

/// Poly1305 of any message, bit by bit (RFC 8439 §2.5.1).
fn reference(key: &[u8; 32], message: &[u8]) -> [u8; 16] {
    let half = |bytes: &[u8]| u128::from_le_bytes(bytes.try_into().unwrap());
    let r = half(&key[..16]) & 0x0ffffffc0ffffffc0ffffffc0fffffff;
    let mut sum = (0, 0);
    for block in message.chunks(16) {
        let mut bytes = [0; 17];
        bytes[..block.len()].copy_from_slice(block);
        bytes[block.len()] = 1;
        let block = (u64::from(bytes[16]), half(&bytes[..16]));
        let factor = plus(sum, block);
        sum = (0, 0);
        for bit in (0..128).rev() {
            sum = plus(sum, sum);
            if r >> bit & 1 == 1 {
                sum = plus(sum, factor);
            }
        }
    }
    sum.1.wrapping_add(half(&key[16..])).to_le_bytes()
}

/// The sum modulo 2¹³⁰ − 5 of two numbers, each as bits from 128 on and those below, less than it.
fn plus(a: (u64, u128), b: (u64, u128)) -> (u64, u128) {
    let (low, carry) = a.1.overflowing_add(b.1);
    let high = a.0 + b.0 + u64::from(carry);
    let (less, carry) = low.overflowing_add(5);
    match (high + u64::from(carry)).checked_sub(4) {
        Some(high) => (high, less),
        None => (high, low),
    }
}

#[test]
fn chacha20_gives_the_block_of_rfc_8439_2_3_2() {
    if !there() {
        return;
    }
    let mut state = [0; 16];
    state[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    for i in 0..8 {
        state[4 + i as usize] = 0x0302_0100 + 0x0404_0404 * i;
    }
    state[12..].copy_from_slice(&[1, 0x0900_0000, 0x4a00_0000, 0]);
    // SAFETY: the CPU has the features.
    let blocks = |state| unsafe { key_stream(state) };
    assert_eq!(blocks(state)[..64], vectors::BLOCK);
    // The same block in every other lane.
    for lane in 0..24 {
        state[12] = 1_u32.wrapping_sub(lane as u32);
        assert_eq!(blocks(state)[64 * lane..][..64], vectors::BLOCK, "{lane}");
    }
}

#[test]
fn chacha20_gives_the_ciphertext_of_rfc_8439_2_4_2() {
    let key = std::array::from_fn(|i| i as u8);
    let Some(key) = Key::new(&key) else {
        return;
    };
    // The eight bytes of the nonce that are not always zero.
    let counter = u64::from_le_bytes([0, 0, 0, 0x4a, 0, 0, 0, 0]);
    let mut text = [0; vectors::SUNSCREEN.len()];
    key.seal(counter, vectors::SUNSCREEN, &mut text);
    assert_eq!(text, vectors::SUNSCREEN_SEALED);
}

#[test]
fn poly1305_gives_the_tags_of_rfc_8439() {
    for (i, (r, s, message, expected)) in vectors::tags().into_iter().enumerate() {
        let mut key = [0; 32];
        key[..16].copy_from_slice(&r);
        key[16..].copy_from_slice(&s);
        assert_eq!(reference(&key, &message), expected, "{i}");
        // The AEAD has whole blocks only.
        let (text, last) = message.split_at((message.len() - 1) / 16 * 16);
        if let (Ok(last), true) = (last.try_into(), there()) {
            assert_eq!(tag(&key, text, u128::from_le_bytes(last)), expected, "{i}");
        }
    }
}

#[test]
fn poly1305_is_right_with_the_greatest_numbers() {
    if !there() {
        return;
    }
    for byte in [0xff, 0xfe, 0xfb, 0x00] {
        for r in [0xff, 0x01, 0x02, 0x00] {
            for blocks in 0..=80 {
                let (key, text) = ([r; 32], vec![byte; 16 * blocks]);
                let message = [&text[..], &[byte; 16]].concat();
                let last = u128::from_le_bytes([byte; 16]);
                let expected = reference(&key, &message);
                assert_eq!(tag(&key, &text, last), expected, "{byte} {r} {blocks}");
            }
        }
    }
}

/// Seals with both and compares; opens, and refuses a wrong tag. The buffers lie between guards.
fn compare(key: &[u8; 32], counter: u64, plaintext: &[u8]) {
    let Some(wide) = Key::new(key) else {
        return;
    };
    let ring = ring_key(key);
    let length = plaintext.len();
    let mut expected = vec![0; length];
    let expected_tag = ring_seal(&ring, counter, plaintext, &mut expected);

    let guarded = |text: &[u8]| [&[UNTOUCHED; 64], text, &[UNTOUCHED; 64]].concat();
    let mut buffer = guarded(&vec![UNTOUCHED; length]);
    let tag = wide.seal(counter, plaintext, &mut buffer[64..][..length]);
    assert!(buffer == guarded(&expected), "sealing {length} bytes");
    assert_eq!(tag[..], *expected_tag.as_ref(), "{length}");

    let mut buffer = guarded(&vec![UNTOUCHED; length]);
    for i in 0..TAG {
        let mut wrong = tag;
        wrong[i] ^= 1 << (length % 8);
        let refused = !wide.open(counter, &expected, &wrong, &mut buffer[64..][..length]);
        assert!(refused && buffer.iter().all(|byte| *byte == UNTOUCHED));
    }
    assert!(wide.open(counter, &expected, &tag, &mut buffer[64..][..length]));
    assert!(buffer == guarded(plaintext), "opening {length} bytes");
    assert!(ring_open(
        &ring,
        counter,
        &expected,
        &tag,
        &mut buffer[..length]
    ));
}

#[test]
fn both_implementations_agree_on_every_length_up_to_some_groups() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for length in 0..=3_200 {
        let key = std::array::from_fn(|_| random() as u8);
        let plaintext: Vec<u8> = (0..length).map(|_| random() as u8).collect();
        compare(&key, random(), &plaintext);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn both_implementations_agree_on_long_texts(
        key: [u8; 32],
        counter in prop_oneof![any::<u64>(), 0..3_u64, u64::MAX - 3..=u64::MAX],
        length in 0..=70_000_usize,
        pattern in prop_oneof![vec(any::<u8>(), 1..300), Just(vec![0xff]), Just(vec![0])],
    ) {
        let plaintext: Vec<u8> = pattern.iter().copied().cycle().take(length).collect();
        compare(&key, counter, &plaintext);
    }

    #[test]
    fn both_implementations_agree_on_what_is_not_authentic(
        key: [u8; 32],
        counter: u64,
        tag: [u8; TAG],
        text in vec(any::<u8>(), 0..3_000),
    ) {
        if let Some(key) = Key::new(&key) {
            let mut plaintext = vec![UNTOUCHED; text.len()];
            prop_assert!(!key.open(counter, &text, &tag, &mut plaintext));
            prop_assert!(plaintext.iter().all(|byte| *byte == UNTOUCHED));
        }
    }
}

/// Halves of a key and blocks whose sums and products carry far.
fn extreme() -> impl Strategy<Value = u128> {
    prop_oneof![
        select(vec![
            0,
            1,
            2,
            4,
            5,
            6,
            u128::MAX,
            u128::MAX - 1,
            u128::MAX - 4,
            u128::MAX - 5
        ]),
        (0..128).prop_map(|bit| 1_u128 << bit),
        (0..128).prop_map(|bit| u128::MAX << bit),
        (0..128).prop_map(|bit| u128::MAX >> bit),
        any::<u128>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn poly1305_is_right_with_any_numbers(
        r in extreme(),
        s in extreme(),
        blocks in prop_oneof![
            vec(extreme(), 1..100),
            (extreme(), 1..100_usize).prop_map(|(block, count)| vec![block; count]),
        ],
    ) {
        if there() {
            let key = [r.to_le_bytes(), s.to_le_bytes()].concat().try_into().unwrap();
            let message: Vec<u8> = blocks.iter().flat_map(|block| block.to_le_bytes()).collect();
            let text = &message[..message.len() - 16];
            let expected = reference(&key, &message);
            prop_assert_eq!(tag(&key, text, blocks[blocks.len() - 1]), expected);
        }
    }
}
