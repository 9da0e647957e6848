//! How many descriptors this process may have, and whether they are running out.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors kept for what belongs to connections already accepted: the other end, pipes.
const RESERVE: u64 = 64;

static LIMIT: AtomicU64 = AtomicU64::new(0);

/// Raises the soft limit to the hard one and returns what holds from now on.
pub fn raise_descriptor_limit() -> u64 {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    if before.current != before.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
    let limit = current_limit();
    LIMIT.store(limit, Ordering::Relaxed);
    limit
}

/// How many sockets there may be that stay open as long as the process runs.
pub fn room() -> u64 {
    let limit = descriptor_limit();
    limit - RESERVE.min(limit / 4)
}

fn current_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The limit as of the last look.
pub(crate) fn descriptor_limit() -> u64 {
    match LIMIT.load(Ordering::Relaxed) {
        0 => look(),
        limit => limit,
    }
}

fn look() -> u64 {
    let limit = current_limit();
    LIMIT.store(limit, Ordering::Relaxed);
    limit
}

/// Whether a descriptor just opened is so high that the rest should be kept in reserve. The kernel
/// gives out the lowest free number, so the number tells how many are taken.
pub(crate) fn is_nearly_out(fd: RawFd) -> bool {
    let limit = descriptor_limit();
    let reserve = RESERVE.min(limit / 4);
    u64::try_from(fd).unwrap_or(0) >= limit - reserve
}

/// Whether there is room again, found out by opening one and looking at its number.
pub(crate) fn has_room(any: impl AsFd) -> bool {
    match rustix::io::fcntl_dupfd_cloexec(any, 0) {
        Ok(fd) => !is_nearly_out(fd.as_raw_fd()),
        Err(_) => false,
    }
}
