//! ChaCha20-Poly1305 for CPUs with AVX-512: sixteen blocks of ChaCha20 at once, and Poly1305 with
//! IFMA, eight lanes of one message.
//!
//! Nothing branches on, or indexes with, what is secret.

mod chacha;
mod memory;
mod poly;
#[cfg(test)]
mod tests;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::TAG;
use chacha::{Ready, Stream};
use poly::{Mac, Powers};

/// A key; that there is one proves that the CPU has what this module needs.
pub(crate) struct Key(Zeroizing<[u32; 8]>);

impl Key {
    /// None if the CPU lacks a feature.
    pub(crate) fn new(key: &[u8; 32]) -> Option<Self> {
        let available = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512ifma")
            && is_x86_feature_detected!("bmi2");
        available.then(|| {
            let mut words = Zeroizing::new([0; 8]);
            for (word, bytes) in words.iter_mut().zip(key.as_chunks().0) {
                *word = u32::from_le_bytes(*bytes);
            }
            Self(words)
        })
    }

    /// Writes the ciphertext to `text`, which is as long as `plaintext`, and gives its tag.
    pub(crate) fn seal(&self, counter: u64, plaintext: &[u8], text: &mut [u8]) -> [u8; TAG] {
        // SAFETY: a key is made only where the CPU has the features.
        unsafe { seal(&self.0, counter, plaintext, text) }
    }

    /// Writes the plaintext of `text` to `plaintext`, which is as long, if the tag is right.
    pub(crate) fn open(
        &self,
        counter: u64,
        text: &[u8],
        tag: &[u8; TAG],
        plaintext: &mut [u8],
    ) -> bool {
        // SAFETY: a key is made only where the CPU has the features.
        unsafe { open(&self.0, counter, text, tag, plaintext) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,bmi2")]
fn seal(key: &[u32; 8], counter: u64, plaintext: &[u8], text: &mut [u8]) -> [u8; TAG] {
    let mut stream = Stream::new(key, counter);
    let mut ready = Ready::none();
    let mac = start(&mut stream, &mut ready, plaintext.len());
    stream.apply(&mut ready, plaintext, text);
    mac.tag(text)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,bmi2")]
fn open(key: &[u32; 8], counter: u64, text: &[u8], tag: &[u8; TAG], plaintext: &mut [u8]) -> bool {
    let mut stream = Stream::new(key, counter);
    let mut ready = Ready::none();
    let mac = start(&mut stream, &mut ready, text.len());
    let authentic = bool::from(mac.tag(text).ct_eq(tag));
    if authentic {
        stream.apply(&mut ready, text, plaintext);
    }
    authentic
}

/// Makes blocks ready for a packet of `length` bytes, and the key of its tag.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,bmi2")]
fn start(stream: &mut Stream, ready: &mut Ready, length: usize) -> Mac {
    let mut powers = Powers::new(stream.start(ready, length));
    stream.extend(ready, length, &mut powers);
    Mac::new(&powers)
}
