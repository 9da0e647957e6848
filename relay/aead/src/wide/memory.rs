//! Vectors from and to memory.

use std::arch::x86_64::*;

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the array has the vector's size, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn load_words(words: &[u64; 8]) -> __m512i {
    // SAFETY: the array has the vector's size, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// Up to 64 bytes as the first ones of a vector, which has `rest` behind them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn load_front(bytes: &[u8], rest: __m512i) -> __m512i {
    // SAFETY: the mask has no more bits than there are bytes; nothing else is read.
    unsafe { _mm512_mask_loadu_epi8(rest, mask(bytes.len()), bytes.as_ptr().cast()) }
}

/// Up to 64 bytes as the last ones of a vector, with zeros before them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn load_back(bytes: &[u8]) -> __m512i {
    let before = 64 - bytes.len().min(64);
    let from = bytes.as_ptr().wrapping_sub(before);
    // SAFETY: the mask leaves out the `before` bytes in front of the slice, and there are no more
    // than 64 with them; nothing else is read.
    unsafe { _mm512_maskz_loadu_epi8(!mask(before), from.cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn store(bytes: &mut [u8; 64], vector: __m512i) {
    // SAFETY: the array has the vector's size, and the store needs no alignment.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), vector) }
}

/// Stores the first bytes of a vector, as many as there is room for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn store_front(bytes: &mut [u8], vector: __m512i) {
    // SAFETY: the mask has no more bits than there are bytes; nothing else is written.
    unsafe { _mm512_mask_storeu_epi8(bytes.as_mut_ptr().cast(), mask(bytes.len()), vector) }
}

/// The lowest bits, as many as `bytes` but at most 64.
#[inline]
fn mask(bytes: usize) -> u64 {
    u64::MAX.checked_shr(64 - bytes.min(64) as u32).unwrap_or(0)
}
