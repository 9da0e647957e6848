//! What only the system tells or does: how much of what was written to a socket its other side has
//! not confirmed, and memory that goes back.

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

/// Gives memory that is not in use back to the system. Buffers are made of many small pieces, which
/// the allocator keeps otherwise.
pub(super) fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no conditions (malloc_trim(3)); it may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
