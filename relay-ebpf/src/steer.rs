//! Maps of the program `relay_steer`, which gives what arrives for any of many ports of an address
//! to one socket (kernel documentation, `bpf/prog_sk_lookup`).

/// Name of the program.
pub const PROGRAM: &str = "relay_steer";

/// Hash map from an IPv4 address, in the byte order of the network, to its row.
pub const ADDRESSES: &str = "RELAY_ADDRS";

/// Array of the [`Ports`] that are steered, by [`index`].
pub const PORTS: &str = "RELAY_PORTS";

/// Map of the sockets that they are steered to, by [`index`].
pub const SOCKETS: &str = "RELAY_SOCKS";

/// Most addresses that one program serves.
pub const MAX_ADDRESSES: u32 = 64;

/// Streams, as a part of an [`index`].
pub const TCP: u32 = 0;

/// Datagrams, as a part of an [`index`].
pub const UDP: u32 = 1;

/// Where the ports and the socket of a row stand, for [`TCP`] or for [`UDP`].
pub const fn index(row: u32, proto: u32) -> u32 {
    2 * row + proto
}

const WORDS: usize = (u16::MAX as usize + 1) / 64;

/// A set of ports: one bit for each.
pub type Ports = [u64; WORDS];

/// No ports.
pub const NONE: Ports = [0; WORDS];

/// The bit of a port: which word, and which bit in it.
#[inline(always)]
pub const fn bit(port: u16) -> (usize, u64) {
    // A word's number is below 1024 whatever the port, as a verifier can see.
    ((port >> 6) as usize, 1 << (port & 63))
}

/// Whether a port is in a set.
#[inline(always)]
pub const fn contains(ports: &Ports, port: u16) -> bool {
    let (word, bit) = bit(port);
    ports[word] & bit != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_has_a_bit_of_its_own() {
        let mut ports = NONE;
        for port in 0..=u16::MAX {
            assert!(!contains(&ports, port), "{port}");
            let (word, bit) = bit(port);
            ports[word] |= bit;
            assert!(contains(&ports, port), "{port}");
        }
        assert_eq!(ports, [u64::MAX; WORDS]);
    }
}
