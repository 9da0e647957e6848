//! The Internet checksum (RFC 1071), computed in the machine's own byte order: the sum of swapped
//! words is the swapped sum.

use std::net::IpAddr;

/// The sum of 16-bit words, not folded yet.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds `bytes`; all but the last piece of what is summed must have even length.
    pub(crate) fn add(self, bytes: &[u8]) -> Self {
        Self(sum_of_words(bytes, self.0))
    }

    /// Adds the pseudo header of RFC 9293 §3.1 and RFC 8200 §8.1.
    pub(crate) fn pseudo(self, from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Self {
        let sum = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.add(&from.octets()).add(&to.octets()),
            (IpAddr::V6(from), IpAddr::V6(to)) => self.add(&from.octets()).add(&to.octets()),
            // A packet has addresses of one family; its parser and its builder see to it.
            _ => self,
        };
        let length = length as u32;
        sum.add(&length.to_be_bytes()).add(&[0, 0, 0, protocol])
    }

    /// The checksum as it is written into a header; zero if the sum included a right one.
    pub(crate) fn finish(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_ne_bytes()
    }
}

/// Adds `bytes`, as words in the machine's own order with zeros behind the last, to `initial`: a ones'
/// complement sum that is not folded yet.
pub fn sum_of_words(bytes: &[u8], initial: u64) -> u64 {
    /// Shorter ones take longer to ask for than to add.
    #[cfg(target_arch = "x86_64")]
    const LONG: usize = 256;
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= LONG && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { add_wide(bytes, initial) };
    }
    add_words(bytes, initial)
}

/// The same by vectors of 256 bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_wide(bytes: &[u8], initial: u64) -> u64 {
    add_words(bytes, initial)
}

/// Independent lanes let the compiler use vectors.
#[inline(always)]
fn add_words(bytes: &[u8], initial: u64) -> u64 {
    const LANES: usize = 16;
    let mut lanes = [0_u64; LANES];
    let (blocks, rest) = bytes.as_chunks::<{ 4 * LANES }>();
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let mut total = initial + lanes.iter().sum::<u64>();
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_ne_bytes(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_length_sum_up_as_their_words_do() {
        let bytes: Vec<u8> = (0..2_000_u32).map(|i| (i * i) as u8 | 0x80).collect();
        for length in 0..bytes.len() {
            let pairs = bytes[..length].chunks(2);
            let words = pairs.map(|pair| [pair[0], pair.get(1).copied().unwrap_or(0)]);
            let slow = words.map(|word| u64::from(u16::from_ne_bytes(word)));
            let slow = Sum(slow.sum::<u64>() + 9);
            let fast = Sum(sum_of_words(&bytes[..length], 9));
            assert_eq!(fast.finish(), slow.finish(), "{length}");
        }
    }

    #[test]
    fn the_example_of_rfc_1071_sums_up() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().add(&bytes).finish(), [0x22, 0x0d]);
    }

    #[test]
    fn an_odd_tail_counts_as_if_a_zero_followed() {
        let odd = Sum::default().add(&[1, 2, 3, 4, 5]).finish();
        assert_eq!(odd, Sum::default().add(&[1, 2, 3, 4, 5, 0]).finish());
    }
}
