//! The Internet checksum (RFC 1071), computed in the machine's own byte order: the sum of swapped
//! words is the swapped sum.

use std::net::IpAddr;

/// The sum of 16-bit words, not folded yet.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds `bytes`; all but the last piece of what is summed must have even length.
    pub(crate) fn add(self, bytes: &[u8]) -> Self {
        let mut total = self.0;
        let (words, rest) = bytes.as_chunks::<4>();
        for word in words {
            total += u64::from(u32::from_ne_bytes(*word));
        }
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        Self(total + u64::from(u32::from_ne_bytes(last)))
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

#[cfg(test)]
mod tests {
    use super::*;

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
