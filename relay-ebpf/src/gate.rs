//! Maps of the program `relay_gate`, which sends what arrives at one socket of relay out at another
//! one, as long as there is credit for it; the rest it leaves to relay.

/// Name of the program.
pub const PROGRAM: &str = "relay_gate";

/// Array of the [`Record`]s, by the index of a direction. It can be mapped into memory.
pub const RECORDS: &str = "RELAY_RECORDS";

/// Hash map from the cookie of a socket to the index of the direction that begins at it.
pub const INDICES: &str = "RELAY_INDICES";

/// Map of the sockets, by the index of the direction that begins at them.
pub const ENDS: &str = "RELAY_ENDS";

/// Ring of the indices of directions that want to be looked at.
pub const EVENTS: &str = "RELAY_EVENTS";

/// The direction that ends where this one begins.
pub const fn opposite(index: u32) -> u32 {
    index ^ 1
}

/// What program and relay tell each other about a direction. Both halves have a cache line of their
/// own.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    /// Written by the program alone, except for `notified`.
    pub kernel: Kernel,
    /// Written by relay alone.
    pub user: User,
}

/// What the program writes. It runs under the lock of the socket where the direction begins, so
/// there is one writer.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel {
    /// Bytes that it sent on.
    pub redirected: u64,
    /// Bytes that it left to relay.
    pub passed: u64,
    /// Not zero: relay knows that credit runs short. Relay sets it to zero.
    pub notified: u64,
    /// Bytes that came a second time, and were cut off.
    pub trimmed: u64,
    /// Not zero: bytes are missing, and the connection must not go on.
    pub broken: u64,
    /// How much must have been taken for the next epoch of `packets` to begin.
    pub mark: u64,
    /// Packets sent on in the epoch before and in this one.
    pub packets: [u32; 2],
    /// Sequence number of the byte that is to come next. Relay sets it before the socket is in the
    /// map.
    pub next: u32,
}

/// What relay writes.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct User {
    /// Of the bytes that were passed, those that relay has sent on. When it is all of them, the
    /// program may send on by itself.
    pub consumed: u64,
    /// Bytes that the far end has taken, or fewer.
    pub drained: u64,
    /// Most bytes that may be on their way at once.
    pub high: u64,
    /// Most packets that may be on their way at once.
    pub packets: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_writer_has_a_cache_line_of_its_own() {
        assert_eq!(size_of::<Record>(), 128);
        assert_eq!(core::mem::offset_of!(Record, user), 64);
    }
}
