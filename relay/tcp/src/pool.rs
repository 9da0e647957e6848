//! The memory of all buffers: pieces of one size, lent from a budget that connections share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a piece.
pub(crate) const PIECE: usize = 16 * 1024;
/// Pieces kept for the next who asks, instead of given back to the allocator.
const KEPT: usize = 1024;

/// Pieces of memory up to a limit. Clones share the limit.
#[derive(Debug, Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: usize,
    lent: AtomicUsize,
    kept: Mutex<Vec<Box<[u8]>>>,
}

impl Pool {
    /// A pool that lends at most `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                limit: bytes / PIECE,
                lent: AtomicUsize::new(0),
                kept: Mutex::new(Vec::new()),
            }),
        }
    }

    /// Bytes that are lent now.
    pub fn used(&self) -> usize {
        self.shared.lent.load(Ordering::Relaxed) * PIECE
    }

    /// Whether most of the memory is lent, so that buffers should not grow.
    pub(crate) fn is_scarce(&self) -> bool {
        self.shared.lent.load(Ordering::Relaxed) > self.shared.limit / 2
    }

    /// Whether nearly all of the memory is lent.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.shared.lent.load(Ordering::Relaxed) + 4 > self.shared.limit
    }

    /// A piece, with whatever it held before; none if the limit is reached.
    pub(crate) fn take(&self) -> Option<Box<[u8]>> {
        let shared = &self.shared;
        if shared.lent.fetch_add(1, Ordering::Relaxed) >= shared.limit {
            shared.lent.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let kept = shared
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        Some(kept.unwrap_or_else(|| vec![0; PIECE].into_boxed_slice()))
    }

    /// Gives the pieces that nobody has back to the allocator.
    pub(crate) fn trim(&self) {
        let mut kept = (self.shared.kept.lock()).unwrap_or_else(PoisonError::into_inner);
        *kept = Vec::new();
    }

    pub(crate) fn give(&self, piece: Box<[u8]>) {
        self.shared.lent.fetch_sub(1, Ordering::Relaxed);
        let mut kept = self
            .shared
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_lent_than_the_limit() {
        let pool = Pool::new(2 * PIECE);
        let (first, second) = (pool.take(), pool.take());
        assert!(first.is_some() && second.is_some() && pool.take().is_none());
        assert_eq!(pool.used(), 2 * PIECE);
        pool.give(first.unwrap());
        assert!(pool.take().is_some());
    }
}
