//! How much of what was written to a socket its other side has not confirmed.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes that the kernel holds and the other side has not confirmed; 0 where it does not say.
pub(super) fn unsent(socket: BorrowedFd<'_>) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open while it is borrowed, and the request writes one int.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    match status {
        0 => usize::try_from(bytes).unwrap_or(0),
        _ => 0,
    }
}
