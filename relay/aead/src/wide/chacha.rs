//! ChaCha20 (RFC 8439 §2.3, §2.4): a vector holds one word of sixteen consecutive blocks, or two
//! words of eight.

use std::arch::x86_64::*;

use super::memory::{load, load_front, store, store_front};

const BLOCK: usize = 64;
pub(super) const DOUBLE_ROUNDS: usize = 10;

/// The four words that every state begins with.
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];
/// Which word of the state counts blocks.
const COUNT: usize = 12;

/// Quarter rounds, of columns or of diagonals (RFC 8439 §2.1), side by side.
macro_rules! quarter_rounds {
    ($v:ident, $([$a:literal $b:literal $c:literal $d:literal])*) => {
        $( $v[$a] = _mm512_add_epi32($v[$a], $v[$b]); )*
        $( $v[$d] = _mm512_rol_epi32::<16>(_mm512_xor_si512($v[$d], $v[$a])); )*
        $( $v[$c] = _mm512_add_epi32($v[$c], $v[$d]); )*
        $( $v[$b] = _mm512_rol_epi32::<12>(_mm512_xor_si512($v[$b], $v[$c])); )*
        $( $v[$a] = _mm512_add_epi32($v[$a], $v[$b]); )*
        $( $v[$d] = _mm512_rol_epi32::<8>(_mm512_xor_si512($v[$d], $v[$a])); )*
        $( $v[$c] = _mm512_add_epi32($v[$c], $v[$d]); )*
        $( $v[$b] = _mm512_rol_epi32::<7>(_mm512_xor_si512($v[$b], $v[$c])); )*
    };
}

/// Something else that is done in as many steps as there are double rounds, one next to each: what
/// needs no vectors costs little there. It has to be inlined, as no vector survives a call.
pub(super) trait Steps {
    fn step(&mut self, step: usize);
}

impl Steps for () {
    #[inline(always)]
    fn step(&mut self, _: usize) {}
}

/// The key stream of a packet.
pub(super) struct Stream {
    /// The state of the next block (RFC 8439 §2.3).
    pub(super) state: [u32; 16],
}

/// Two groups of blocks of a key stream, which were made before they are used.
pub(super) struct Ready {
    first: [__m512i; 16],
    second: [__m512i; 16],
}

/// The longest text for which eight blocks are enough; one is for the key of Poly1305.
const SHORT: usize = 7 * BLOCK;
/// The longest text for which sixteen are enough, and for which eight more are.
const MEDIUM: usize = 15 * BLOCK;
const LONG: usize = 23 * BLOCK;

impl Ready {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn none() -> Self {
        Self {
            first: [_mm512_setzero_si512(); 16],
            second: [_mm512_setzero_si512(); 16],
        }
    }
}

impl Stream {
    pub(super) fn new(key: &[u32; 8], counter: u64) -> Self {
        let mut state = [0; 16];
        state[..4].copy_from_slice(&CONSTANTS);
        state[4..COUNT].copy_from_slice(key);
        state[14] = counter as u32;
        state[15] = (counter >> 32) as u32;
        Self { state }
    }

    /// Makes the first group ready, for a text of `length` bytes. Gives the halves of the key of
    /// Poly1305, which the first block is (RFC 8439 §2.6).
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,bmi2")]
    pub(super) fn start(&mut self, ready: &mut Ready, length: usize) -> [u128; 2] {
        if length <= SHORT {
            self.eight(&mut ready.first, &mut ());
        } else {
            self.sixteen(&mut ready.first, &mut ());
        }
        let key = _mm512_castsi512_si256(ready.first[0]);
        let half = |low: i64, high: i64| u128::from(high as u64) << 64 | u128::from(low as u64);
        [
            half(
                _mm256_extract_epi64::<0>(key),
                _mm256_extract_epi64::<1>(key),
            ),
            half(
                _mm256_extract_epi64::<2>(key),
                _mm256_extract_epi64::<3>(key),
            ),
        ]
    }

    /// Makes the second group ready, if the text needs one, and does the ten steps of something
    /// else meanwhile.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,bmi2")]
    pub(super) fn extend(&mut self, ready: &mut Ready, length: usize, meanwhile: &mut impl Steps) {
        if length <= MEDIUM {
            (0..DOUBLE_ROUNDS).for_each(|step| meanwhile.step(step));
        } else if length <= LONG {
            self.eight(&mut ready.second, meanwhile);
        } else {
            self.sixteen(&mut ready.second, meanwhile);
        }
    }

    /// Encrypts or decrypts `from` into `to`, which is as long.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,bmi2")]
    pub(super) fn apply(&mut self, ready: &mut Ready, from: &[u8], to: &mut [u8]) {
        let (from_part, from) = from.split_at(from.len().min(MEDIUM));
        let (to_part, to) = to.split_at_mut(from_part.len());
        xor(&ready.first[1..], from_part, to_part);
        let (from_part, from) = from.split_at(from.len().min(16 * BLOCK));
        let (to_part, to) = to.split_at_mut(from_part.len());
        xor(&ready.second, from_part, to_part);

        let blocks = &mut ready.first;
        let (from_groups, from) = from.as_chunks::<{ 16 * BLOCK }>();
        let (to_groups, to) = to.as_chunks_mut::<{ 16 * BLOCK }>();
        for (from, to) in from_groups.iter().zip(to_groups) {
            self.sixteen(blocks, &mut ());
            xor(blocks, from, to);
        }
        if from.len() > 8 * BLOCK {
            self.sixteen(blocks, &mut ());
            xor(blocks, from, to);
        } else if !from.is_empty() {
            self.eight(blocks, &mut ());
            xor(blocks, from, to);
        }
    }

    /// The next sixteen blocks.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,bmi2")]
    pub(super) fn sixteen(&mut self, blocks: &mut [__m512i; 16], meanwhile: &mut impl Steps) {
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let count = _mm512_add_epi32(_mm512_set1_epi32(self.state[COUNT] as i32), lanes);
        let mut v = [count; 16];
        for i in (0..16).filter(|i| *i != COUNT) {
            v[i] = _mm512_set1_epi32(self.state[i] as i32);
        }
        for step in 0..DOUBLE_ROUNDS {
            meanwhile.step(step);
            quarter_rounds!(v, [0 4 8 12] [1 5 9 13] [2 6 10 14] [3 7 11 15]);
            quarter_rounds!(v, [0 5 10 15] [1 6 11 12] [2 7 8 13] [3 4 9 14]);
        }
        for (i, word) in v.iter_mut().enumerate() {
            let initial = if i == COUNT {
                count
            } else {
                _mm512_set1_epi32(self.state[i] as i32)
            };
            *word = _mm512_add_epi32(*word, initial);
        }
        self.state[COUNT] = self.state[COUNT].wrapping_add(16);
        transpose(v, blocks);
    }

    /// The next eight blocks, in less than the time of sixteen, as the first ones of `blocks`.
    ///
    /// A vector has word 2i in its lower half and word 2i + 1 in its upper half.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,bmi2")]
    pub(super) fn eight(&mut self, blocks: &mut [__m512i; 16], meanwhile: &mut impl Steps) {
        let mut initial = [_mm512_setzero_si512(); 8];
        for (pair, words) in initial.iter_mut().zip(self.state.as_chunks::<2>().0) {
            let [low, high] = words.map(|word| word as i32);
            *pair = _mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xff00, high);
        }
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0, 0, 0, 0);
        initial[COUNT / 2] = _mm512_add_epi32(initial[COUNT / 2], lanes);
        let mut v = initial;
        for step in 0..DOUBLE_ROUNDS {
            meanwhile.step(step);
            quarter_rounds!(v, [0 2 4 6] [1 3 5 7]);
            // From columns to diagonals, and back.
            (v[2], v[3]) = (halves(v[2], v[3]), halves(v[3], v[2]));
            (v[4], v[5]) = (v[5], v[4]);
            (v[6], v[7]) = (halves(v[7], v[6]), halves(v[6], v[7]));
            quarter_rounds!(v, [0 2 4 6] [1 3 5 7]);
            (v[2], v[3]) = (halves(v[3], v[2]), halves(v[2], v[3]));
            (v[4], v[5]) = (v[5], v[4]);
            (v[6], v[7]) = (halves(v[6], v[7]), halves(v[7], v[6]));
        }
        for (word, initial) in v.iter_mut().zip(initial) {
            *word = _mm512_add_epi32(*word, initial);
        }
        self.state[COUNT] = self.state[COUNT].wrapping_add(8);
        transpose_half(v, blocks);
    }
}

/// Makes blocks of words: first quarters of blocks, each in 128 bits, then blocks of those.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,bmi2")]
fn transpose(v: [__m512i; 16], blocks: &mut [__m512i; 16]) {
    let a = interleave([v[0], v[1], v[2], v[3]]);
    let b = interleave([v[4], v[5], v[6], v[7]]);
    let c = interleave([v[8], v[9], v[10], v[11]]);
    let d = interleave([v[12], v[13], v[14], v[15]]);
    for i in 0..4 {
        let even_ab = _mm512_shuffle_i32x4::<0x88>(a[i], b[i]);
        let even_cd = _mm512_shuffle_i32x4::<0x88>(c[i], d[i]);
        let odd_ab = _mm512_shuffle_i32x4::<0xdd>(a[i], b[i]);
        let odd_cd = _mm512_shuffle_i32x4::<0xdd>(c[i], d[i]);
        blocks[i] = _mm512_shuffle_i32x4::<0x88>(even_ab, even_cd);
        blocks[i + 4] = _mm512_shuffle_i32x4::<0x88>(odd_ab, odd_cd);
        blocks[i + 8] = _mm512_shuffle_i32x4::<0xdd>(even_ab, even_cd);
        blocks[i + 12] = _mm512_shuffle_i32x4::<0xdd>(odd_ab, odd_cd);
    }
}

/// The same for eight blocks, from two words a vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,bmi2")]
fn transpose_half(v: [__m512i; 8], blocks: &mut [__m512i; 16]) {
    let mut quarters = [[_mm512_setzero_si512(); 4]; 2];
    for (quarter, v) in quarters.iter_mut().zip(v.as_chunks::<4>().0) {
        *quarter = interleave([
            _mm512_shuffle_i32x4::<0x44>(v[0], v[2]),
            _mm512_shuffle_i32x4::<0xee>(v[0], v[2]),
            _mm512_shuffle_i32x4::<0x44>(v[1], v[3]),
            _mm512_shuffle_i32x4::<0xee>(v[1], v[3]),
        ]);
    }
    let [a, b] = quarters;
    for i in 0..4 {
        blocks[i] = _mm512_shuffle_i32x4::<0x88>(a[i], b[i]);
        blocks[i + 4] = _mm512_shuffle_i32x4::<0xdd>(a[i], b[i]);
    }
}

/// The upper half of `a`, and behind it the lower half of `b`.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(a: __m512i, b: __m512i) -> __m512i {
    _mm512_alignr_epi64::<4>(b, a)
}

/// Transposes four words of four lanes in each 128 bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn interleave(v: [__m512i; 4]) -> [__m512i; 4] {
    let low_01 = _mm512_unpacklo_epi32(v[0], v[1]);
    let high_01 = _mm512_unpackhi_epi32(v[0], v[1]);
    let low_23 = _mm512_unpacklo_epi32(v[2], v[3]);
    let high_23 = _mm512_unpackhi_epi32(v[2], v[3]);
    [
        _mm512_unpacklo_epi64(low_01, low_23),
        _mm512_unpackhi_epi64(low_01, low_23),
        _mm512_unpacklo_epi64(high_01, high_23),
        _mm512_unpackhi_epi64(high_01, high_23),
    ]
}

/// Writes the exclusive or of `from` and the blocks to `to`, which is as long; the blocks are not
/// shorter.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn xor(blocks: &[__m512i], from: &[u8], to: &mut [u8]) {
    let (from, from_rest) = from.as_chunks::<BLOCK>();
    let (to, to_rest) = to.as_chunks_mut::<BLOCK>();
    for ((from, to), block) in from.iter().zip(to).zip(blocks) {
        store(to, _mm512_xor_si512(load(from), *block));
    }
    let next = blocks.get(from.len());
    if let Some(block) = next.filter(|_| !from_rest.is_empty()) {
        let text = load_front(from_rest, _mm512_setzero_si512());
        store_front(to_rest, _mm512_xor_si512(text, *block));
    }
}
