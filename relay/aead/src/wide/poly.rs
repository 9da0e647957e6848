//! Poly1305 (RFC 8439 §2.5) over what the AEAD authenticates (§2.8), with numbers of three limbs of
//! 44, 44 and 42 bits.
//!
//! Eight lanes have every eighth block each. A lane is multiplied by r⁸ from one of its blocks to
//! the next, and in the end by the power of r that its last block has.

use std::arch::x86_64::*;

use super::chacha::{DOUBLE_ROUNDS, Steps};
use super::memory::{load_back, load_front, load_words};

const BLOCK: usize = 16;
/// Bytes of one block for every lane.
const GROUP: usize = 8 * BLOCK;
/// Groups between two carries.
const STRIDE: usize = 4;

const LIMB: u64 = (1 << 44) - 1;
const TOP_LIMB: u64 = (1 << 42) - 1;

/// r as the key may have it (RFC 8439 §2.5).
const CLAMP: u128 = 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff;

type Limbs = [u64; 3];
type Lanes = [__m512i; 3];
/// A factor's three limbs, and twenty times its upper two: 2¹³² is 20.
type Factor = [__m512i; 5];

/// Of which two, by their place in [`Powers`], each power from r² on is the product.
const FACTORS: [(usize, usize); DOUBLE_ROUNDS] = [
    (0, 0),
    (1, 0),
    (1, 1),
    (3, 0),
    (3, 1),
    (3, 2),
    (3, 3),
    (7, 7),
    (8, 7),
    (8, 8),
];

/// A key of Poly1305, which is for one packet. What is made of it is made in steps, and without
/// vectors, so that it can be done next to something that has only vectors.
pub(super) struct Powers {
    /// r¹ to r⁸, r¹⁶, r²⁴ and r³².
    powers: [Limbs; FACTORS.len() + 1],
    s: u128,
}

impl Powers {
    pub(super) fn new([r, s]: [u128; 2]) -> Self {
        let r = r & CLAMP;
        let mut powers = [[0; 3]; FACTORS.len() + 1];
        powers[0] = [r as u64 & LIMB, (r >> 44) as u64 & LIMB, (r >> 88) as u64];
        Self { powers, s }
    }
}

impl Steps for Powers {
    #[inline(always)]
    fn step(&mut self, step: usize) {
        let (a, b) = FACTORS[step];
        self.powers[step + 1] = multiply(self.powers[a], self.powers[b]);
    }
}

/// A key of Poly1305 with all that is made of it.
pub(super) struct Mac {
    /// r⁸, r¹⁶, r²⁴ and r³².
    strides: [Factor; STRIDE],
    /// The power of r that each lane needs in the end, limb by limb.
    last: [[u64; 8]; 3],
    s: u128,
}

impl Mac {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,bmi2")]
    pub(super) fn new(key: &Powers) -> Self {
        let [r1, r2, r3, r4, r5, r6, r7, r8, r16, r24, r32] = key.powers;
        // In the order in which `split` leaves the blocks.
        let lanes = [r8, r4, r7, r3, r6, r2, r5, r1];
        let mut last = [[0; 8]; 3];
        for (lane, power) in lanes.into_iter().enumerate() {
            for (limb, last) in power.into_iter().zip(&mut last) {
                last[lane] = limb;
            }
        }
        Self {
            strides: [
                broadcast(r8),
                broadcast(r16),
                broadcast(r24),
                broadcast(r32),
            ],
            last,
            s: key.s,
        }
    }

    /// The tag of a ciphertext.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,bmi2")]
    pub(super) fn tag(&self, text: &[u8]) -> [u8; BLOCK] {
        // No additional data, and so many bytes of ciphertext.
        self.tag_with(text, (text.len() as u128) << 64)
    }

    /// The tag of `text`, filled up with zeros to whole blocks, and of the block `last` behind it.
    ///
    /// Where the blocks do not fill groups, it is the first group that lacks some: zeros in front
    /// change nothing.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,bmi2")]
    pub(super) fn tag_with(&self, text: &[u8], last: u128) -> [u8; BLOCK] {
        let last = _mm512_set_epi64((last >> 64) as i64, last as i64, 0, 0, 0, 0, 0, 0);
        let blocks = text.len().div_ceil(BLOCK) + 1;
        let lacking = blocks.next_multiple_of(8) - blocks;
        let sum = if blocks <= 8 {
            one_group(text, lacking, last)
        } else {
            self.groups(text, lacking, last)
        };
        let mut product = Product::zero();
        let [a, b, c] = &self.last;
        product.add(sum, factor([load_words(a), load_words(b), load_words(c)]));
        finish(product.total(), self.s)
    }

    /// The sum of each lane over two groups or more.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,bmi2")]
    fn groups(&self, text: &[u8], lacking: usize, last: __m512i) -> Lanes {
        let (first, text) = text.split_at(GROUP - BLOCK * lacking);
        let (low, high) = first.split_at(first.len().saturating_sub(64));
        let mut sum = split(load_back(low), load_back(high), lacking);

        let (groups, rest) = text.as_chunks::<GROUP>();
        let (low, high) = rest.split_at(64);
        let rest = split(load_back(low), load_front(high, last), 0);
        let (strides, groups) = groups.as_chunks::<STRIDE>();
        for [a, b, c, d] in strides {
            sum = self.stride(sum, [whole(a), whole(b), whole(c), whole(d)]);
        }
        match groups {
            [a, b, c] => self.stride(sum, [whole(a), whole(b), whole(c), rest]),
            [a, b] => self.stride(sum, [whole(a), whole(b), rest]),
            [a] => self.stride(sum, [whole(a), rest]),
            _ => self.stride(sum, [rest]),
        }
    }

    /// Moves on by `N` groups.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512ifma,bmi2")]
    fn stride<const N: usize>(&self, sum: Lanes, groups: [Lanes; N]) -> Lanes {
        let mut product = Product::zero();
        product.low = groups[N - 1];
        for (i, group) in groups[..N - 1].iter().enumerate() {
            product.add(*group, self.strides[N - 2 - i]);
        }
        product.add(sum, self.strides[N - 1]);
        product.carried()
    }
}

/// A sum of products in each lane: of their lower 52 bits, and of those above. An upper half
/// belongs 52 bits above its lower one, which is 8 bits above the next limb.
struct Product {
    low: Lanes,
    high: Lanes,
}

impl Product {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn zero() -> Self {
        Self {
            low: [_mm512_setzero_si512(); 3],
            high: [_mm512_setzero_si512(); 3],
        }
    }

    /// Adds a product; up to four may be added, of numbers with limbs that are carried.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn add(&mut self, a: Lanes, [r0, r1, r2, s1, s2]: Factor) {
        let rows = [[r0, s2, s1], [r1, r0, s2], [r2, r1, r0]];
        for (limb, row) in rows.into_iter().enumerate() {
            for (a, b) in a.into_iter().zip(row) {
                self.low[limb] = _mm512_madd52lo_epu64(self.low[limb], a, b);
                self.high[limb] = _mm512_madd52hi_epu64(self.high[limb], a, b);
            }
        }
    }

    /// The limbs without their upper halves, of up to 56 bits.
    ///
    /// Four products leave less than 2³⁹ in the topmost upper half and less than 2⁴² in the others,
    /// so that what is multiplied here stays below 2⁵².
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn joined(&self) -> Lanes {
        // 2¹⁴⁰ is 5 · 2¹⁰.
        let top = _mm512_set1_epi64(5 << 10);
        let next = _mm512_set1_epi64(1 << 8);
        [
            _mm512_madd52lo_epu64(self.low[0], self.high[2], top),
            _mm512_madd52lo_epu64(self.low[1], self.high[0], next),
            _mm512_madd52lo_epu64(self.low[2], self.high[1], next),
        ]
    }

    /// Limbs of 44, 44 and 42 bits; the lowest may be greater by 2¹⁷.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn carried(&self) -> Lanes {
        let limb = _mm512_set1_epi64(LIMB as i64);
        let [a, b, c] = self.joined();
        let b = _mm512_add_epi64(b, _mm512_srli_epi64::<44>(a));
        let c = _mm512_add_epi64(c, _mm512_srli_epi64::<44>(b));
        let a = _mm512_and_si512(a, limb);
        let carry = _mm512_srli_epi64::<42>(c);
        [
            _mm512_madd52lo_epu64(a, carry, _mm512_set1_epi64(5)),
            _mm512_and_si512(b, limb),
            _mm512_and_si512(c, _mm512_set1_epi64(TOP_LIMB as i64)),
        ]
    }

    /// The sum of the lanes, not carried.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn total(&self) -> Limbs {
        let [a, b, c] = self.joined();
        [
            _mm512_reduce_add_epi64(a) as u64,
            _mm512_reduce_add_epi64(b) as u64,
            _mm512_reduce_add_epi64(c) as u64,
        ]
    }
}

/// The limbs of eight blocks, in the order 0, 4, 1, 5, 2, 6, 3, 7. The first `lacking` of them are
/// none, and are zero.
#[inline]
#[target_feature(enable = "avx512f")]
fn split(first: __m512i, second: __m512i, lacking: usize) -> Lanes {
    let limb = _mm512_set1_epi64(LIMB as i64);
    let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    let there = _mm512_cmpge_epi64_mask(order, _mm512_set1_epi64(lacking as i64));
    // Bit 128 of a block.
    let end = _mm512_maskz_set1_epi64(there, 1 << 40);
    let low = _mm512_unpacklo_epi64(first, second);
    let high = _mm512_unpackhi_epi64(first, second);
    let middle = _mm512_or_si512(_mm512_srli_epi64::<44>(low), _mm512_slli_epi64::<20>(high));
    [
        _mm512_and_si512(low, limb),
        _mm512_and_si512(middle, limb),
        _mm512_or_si512(_mm512_srli_epi64::<24>(high), end),
    ]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn whole(group: &[u8; GROUP]) -> Lanes {
    let (first, second) = group.split_at(64);
    split(load_back(first), load_back(second), 0)
}

/// A text of at most seven blocks, and the last block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn one_group(text: &[u8], lacking: usize, last: __m512i) -> Lanes {
    let mut group = [0; GROUP];
    group[BLOCK * lacking..][..text.len()].copy_from_slice(text);
    let (first, second) = group.split_at(64);
    let second = _mm512_or_si512(load_back(second), last);
    split(load_back(first), second, lacking)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn factor([a, b, c]: Lanes) -> Factor {
    [a, b, c, twenty_times(b), twenty_times(c)]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn twenty_times(lanes: __m512i) -> __m512i {
    let five_times = _mm512_add_epi64(lanes, _mm512_slli_epi64::<2>(lanes));
    _mm512_slli_epi64::<2>(five_times)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast([a, b, c]: Limbs) -> Factor {
    factor([
        _mm512_set1_epi64(a as i64),
        _mm512_set1_epi64(b as i64),
        _mm512_set1_epi64(c as i64),
    ])
}

/// The product; its middle limb may be greater than 44 bits by 2⁶.
#[inline(always)]
fn multiply(a: Limbs, b: Limbs) -> Limbs {
    let (s1, s2) = (20 * b[1], 20 * b[2]);
    let low = product(a[0], b[0]) + product(a[1], s2) + product(a[2], s1);
    let middle = product(a[0], b[1]) + product(a[1], b[0]) + product(a[2], s2);
    let high = product(a[0], b[2]) + product(a[1], b[1]) + product(a[2], b[0]);

    let middle = middle + (low >> 44);
    let high = high + (middle >> 44);
    let low = (low as u64 & LIMB) + 5 * (high >> 42) as u64;
    [
        low & LIMB,
        (middle as u64 & LIMB) + (low >> 44),
        high as u64 & TOP_LIMB,
    ]
}

#[inline(always)]
fn product(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}

/// The sum modulo 2¹³⁰ − 5, and `s` added to it modulo 2¹²⁸.
fn finish(sum: Limbs, s: u128) -> [u8; BLOCK] {
    let [a, b, c] = carry(carry(sum));
    // The sum less the prime, if that is not negative.
    let low = a + 5;
    let middle = b + (low >> 44);
    let high = (c + (middle >> 44)).wrapping_sub(1 << 42);
    let keep = (high >> 63).wrapping_neg();
    let select = |kept: u64, reduced: u64| u128::from((kept & keep) | (reduced & !keep));
    let sum =
        select(a, low & LIMB) | select(b, middle & LIMB) << 44 | select(c, high & TOP_LIMB) << 88;
    sum.wrapping_add(s).to_le_bytes()
}

/// After the second time, the limbs have no more than their bits.
fn carry([a, b, c]: Limbs) -> Limbs {
    let b = b + (a >> 44);
    let c = c + (b >> 44);
    let a = (a & LIMB) + 5 * (c >> 42);
    [a & LIMB, (b & LIMB) + (a >> 44), c & TOP_LIMB]
}
