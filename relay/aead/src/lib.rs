//! The AEAD of WireGuard's transport messages: ChaCha20-Poly1305 (RFC 8439 §2.8) without additional
//! data, with a nonce of four zero bytes and a 64-bit little-endian counter (WireGuard whitepaper
//! §5.4.6).
//!
//! A [`Key`] seals and opens packets from one buffer into another. Behind it are two
//! implementations, of which [`Implementation::best`] chooses: ring's, and one for CPUs with
//! AVX-512 that takes about half the time for packets of a kilobyte and more. Both give the same
//! bytes.

use std::fmt;
use std::sync::OnceLock;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};

#[cfg(target_arch = "x86_64")]
mod wide;

/// Bytes by which a sealed packet is longer.
pub const TAG: usize = 16;

/// Bytes of plaintext from which the wide implementation is faster than ring.
#[cfg(target_arch = "x86_64")]
const WIDE_FROM: usize = 288;

/// Bytes of the longest plaintext: what a 32-bit block counter reaches (RFC 8439 §2.8).
const LONGEST: u64 = (1 << 38) - 64;

/// What seals and opens packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// The one of the crate `ring`; everywhere.
    Ring,
    /// The one of this crate with vectors of 512 bits; on x86-64 with BMI2 and AVX-512F, BW, DQ,
    /// VL and IFMA. Short packets are left to ring, which is faster there.
    Wide,
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ring => "ring",
            Self::Wide => "AVX-512",
        })
    }
}

impl Implementation {
    /// The fastest one that this CPU has and that agrees with ring in a short test. The first call
    /// finds out; it warns if the test fails.
    pub fn best() -> Self {
        static BEST: OnceLock<Implementation> = OnceLock::new();
        *BEST.get_or_init(probe)
    }
}

#[cfg(target_arch = "x86_64")]
fn probe() -> Implementation {
    let key: [u8; 32] = std::array::from_fn(|i| 0x5a ^ (i as u8).wrapping_mul(0x3b));
    match wide::Key::new(&key) {
        None => Implementation::Ring,
        Some(wide) if agree(&wide, &ring_key(&key)) => Implementation::Wide,
        Some(_) => {
            tracing::warn!(
                "the {} implementation of ChaCha20-Poly1305 gives wrong results on this CPU; \
                 packets are sealed with {}",
                Implementation::Wide,
                Implementation::Ring
            );
            Implementation::Ring
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn probe() -> Implementation {
    Implementation::Ring
}

/// Whether both seal alike, and `wide` opens what is authentic and nothing else. The lengths reach
/// each kind of group of blocks and of tail.
#[cfg(target_arch = "x86_64")]
fn agree(wide: &wide::Key, ring: &LessSafeKey) -> bool {
    [0, 1, 112, 448, 449, 961, 1_420, 1_985, 4_096, 9_001]
        .iter()
        .all(|&length| {
            let counter = 0xffff_fff0_u64.wrapping_mul(length as u64 + 1);
            let plaintext: Vec<u8> = (0..length).map(|i| (i as u8).wrapping_mul(0x6d)).collect();
            let mut expected = vec![0; length];
            let mut sealed = vec![0; length];
            let mut opened = vec![0; length];
            let expected_tag = ring_seal(ring, counter, &plaintext, &mut expected);
            let tag = wide.seal(counter, &plaintext, &mut sealed);
            let mut wrong = tag;
            wrong[length % TAG] ^= 1 << (length % 8);
            sealed == expected
                && tag[..] == *expected_tag.as_ref()
                && !wide.open(counter, &sealed, &wrong, &mut opened)
                && opened.iter().all(|byte| *byte == 0)
                && wide.open(counter, &sealed, &tag, &mut opened)
                && opened == plaintext
        })
}

/// A key for packets in one direction.
pub struct Key {
    ring: LessSafeKey,
    #[cfg(target_arch = "x86_64")]
    wide: Option<wide::Key>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(secret)")
    }
}

impl Key {
    /// The key of these bytes, with the best implementation.
    pub fn new(key: &[u8; 32]) -> Self {
        Self::with(key, Implementation::best())
    }

    /// The key of these bytes with an implementation of choice; ring's where the CPU has not what
    /// the chosen one needs.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(unused_variables, reason = "there is one implementation")
    )]
    pub fn with(key: &[u8; 32], implementation: Implementation) -> Self {
        Self {
            ring: ring_key(key),
            #[cfg(target_arch = "x86_64")]
            wide: match implementation {
                Implementation::Ring => None,
                Implementation::Wide => wide::Key::new(key),
            },
        }
    }

    /// Writes the ciphertext of `plaintext` and then its tag to `sealed`, which is as long as
    /// `plaintext` and [`TAG`]. A counter must never serve twice for one key.
    ///
    /// # Panics
    /// If `sealed` has another length, or `plaintext` more than 256 GiB less 64 bytes.
    pub fn seal(&self, counter: u64, plaintext: &[u8], sealed: &mut [u8]) {
        assert_eq!(
            sealed.len().checked_sub(TAG),
            Some(plaintext.len()),
            "a sealed packet is longer by the tag"
        );
        assert!(plaintext.len() as u64 <= LONGEST, "the packet is too long");
        let (text, tag) = sealed.split_at_mut(plaintext.len());
        #[cfg(target_arch = "x86_64")]
        if let Some(wide) = self.wide_for(plaintext.len()) {
            tag.copy_from_slice(&wide.seal(counter, plaintext, text));
            return;
        }
        tag.copy_from_slice(ring_seal(&self.ring, counter, plaintext, text).as_ref());
    }

    /// Verifies `sealed`, then writes its plaintext to the first bytes of `plaintext`, [`TAG`]
    /// fewer than `sealed` has. False if it is not what the same key and counter sealed; then
    /// nothing of its plaintext is written.
    ///
    /// # Panics
    /// If `plaintext` is shorter than that.
    #[must_use]
    pub fn open(&self, counter: u64, sealed: &[u8], plaintext: &mut [u8]) -> bool {
        let Some((text, tag)) = sealed.split_last_chunk::<TAG>() else {
            return false;
        };
        assert!(
            plaintext.len() >= text.len(),
            "the plaintext has no room in its buffer"
        );
        let plaintext = &mut plaintext[..text.len()];
        if text.len() as u64 > LONGEST {
            return false;
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(wide) = self.wide_for(text.len()) {
            return wide.open(counter, text, tag, plaintext);
        }
        ring_open(&self.ring, counter, text, tag, plaintext)
    }

    #[cfg(target_arch = "x86_64")]
    fn wide_for(&self, length: usize) -> Option<&wide::Key> {
        self.wide.as_ref().filter(|_| length >= WIDE_FROM)
    }
}

fn ring_key(key: &[u8; 32]) -> LessSafeKey {
    #[allow(clippy::expect_used, reason = "the length is fixed")]
    let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("32 bytes");
    LessSafeKey::new(key)
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn ring_seal(key: &LessSafeKey, counter: u64, plaintext: &[u8], text: &mut [u8]) -> Tag {
    text.copy_from_slice(plaintext);
    let sealed = key.seal_in_place_separate_tag(nonce(counter), Aad::empty(), text);
    #[allow(clippy::expect_used, reason = "ring refuses nothing but the length")]
    sealed.expect("the length was checked")
}

fn ring_open(
    key: &LessSafeKey,
    counter: u64,
    text: &[u8],
    tag: &[u8; TAG],
    plaintext: &mut [u8],
) -> bool {
    plaintext.copy_from_slice(text);
    let tag = Tag::from(*tag);
    let opened = key.open_in_place_separate_tag(nonce(counter), Aad::empty(), tag, plaintext, 0..);
    let authentic = opened.is_ok();
    if !authentic {
        plaintext.fill(0);
    }
    authentic
}

#[cfg(test)]
mod tests;
