//! Bytes that are known at every place of a stream, so that each one that arrives can be checked.

/// Words in a row. It is no multiple or divisor of any packet, segment or buffer size: data that
/// arrives at another place than it was sent from never looks right.
const ROW: usize = 8209;

/// The content of one stream.
#[derive(Debug)]
pub(super) struct Pattern {
    row: Vec<u64>,
    scratch: Vec<u8>,
}

impl Pattern {
    /// The content that belongs to `seed`.
    pub(super) fn new(seed: u64) -> Self {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        };
        Self {
            row: (0..ROW).map(|_| next()).collect(),
            scratch: Vec::new(),
        }
    }

    /// Writes what belongs at `offset`, a multiple of eight, into `buffer`, whose length is one too.
    pub(super) fn fill(&self, offset: u64, buffer: &mut [u8]) {
        let mut word = offset / 8;
        let mut rest = buffer;
        while !rest.is_empty() {
            let column = (word % ROW as u64) as usize;
            // Each row is another one: a stream that lost whole rows is noticed.
            let key = (word / ROW as u64 + 1).wrapping_mul(0xd6e8_feb8_6659_fd93);
            let count = (ROW - column).min(rest.len() / 8);
            let (now, later) = rest.split_at_mut(count * 8);
            for (out, word) in now.chunks_exact_mut(8).zip(&self.row[column..]) {
                out.copy_from_slice(&(word ^ key).to_le_bytes());
            }
            word += count as u64;
            rest = later;
        }
    }

    /// How many of `bytes` are not what belongs at `offset`.
    pub(super) fn bad(&mut self, offset: u64, bytes: &[u8]) -> u64 {
        let skip = (offset % 8) as usize;
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize((skip + bytes.len()).next_multiple_of(8), 0);
        self.fill(offset - skip as u64, &mut scratch);
        let expected = &scratch[skip..skip + bytes.len()];
        let bad = match expected == bytes {
            true => 0,
            false => expected.iter().zip(bytes).filter(|(a, b)| a != b).count() as u64,
        };
        self.scratch = scratch;
        bad
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_of_the_stream_is_right_where_it_belongs_and_wrong_elsewhere() {
        let mut pattern = Pattern::new(5);
        let mut all = vec![0; 200_000];
        pattern.fill(0, &mut all);
        for (from, to) in [(0, 200_000), (1, 9), (65_535, 65_537), (65_671, 131_345)] {
            assert_eq!(pattern.bad(from as u64, &all[from..to]), 0, "{from}..{to}");
        }
        for shift in [1, 8, 1420, 65_536, ROW as u64 * 8] {
            let bad = pattern.bad(shift, &all[..4096]);
            assert!(bad > 3500, "a shift of {shift} shows in {bad} bytes only");
        }
        all[70_000] ^= 1;
        assert_eq!(pattern.bad(0, &all), 1);
    }
}
