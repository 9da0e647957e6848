//! Sequence numbers. On the wire they have 32 bits and wrap (RFC 9293 §3.4); here they are
//! *positions* of 64 bits that do not wrap, and whose low half is the number on the wire. All
//! comparisons are then plain comparisons.

/// The position of a SYN with the initial sequence number `number`. It leaves room below, so that
/// segments older than the connection have positions too.
pub(crate) fn first(number: u32) -> u64 {
    (1 << 32) | u64::from(number)
}

/// The number of `position` on the wire.
pub(crate) fn number(position: u64) -> u32 {
    position as u32
}

/// The position with `number` on the wire that is nearest to `near`.
pub(crate) fn position(near: u64, number: u32) -> u64 {
    let ahead = number.wrapping_sub(near as u32) as i32;
    near.wrapping_add_signed(i64::from(ahead))
}

/// Whether timestamp `a` is older than `b` (RFC 7323 §5.2).
pub(crate) fn is_older(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_near_a_wrap_are_in_order() {
        let before = first(0xffff_fff0);
        let after = position(before, 0x10);
        assert_eq!(after - before, 0x20);
        assert_eq!(position(after, 0xffff_fff0), before);
        assert_eq!(number(after), 0x10);
    }

    #[test]
    fn segments_older_than_the_connection_lie_below_its_start() {
        let start = first(0);
        assert!(position(start, 0xffff_ffff) < start);
        assert!(position(start, 0x8000_0000) < start);
    }

    #[test]
    fn timestamps_wrap() {
        assert!(is_older(0xffff_ffff, 0));
        assert!(!is_older(0, 0xffff_ffff));
        assert!(!is_older(7, 7));
    }
}
