//! Pipes and buffers, held only while bytes are on their way and shared by all pumps.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::pipe::PipeFlags;

/// Pipes in use at once; more pumps than that copy. Each holds up to a megabyte of kernel memory.
const PIPES: usize = 256;
/// Empty pipes kept for the next pump. They cost two descriptors each and no memory.
const IDLE_PIPES: usize = 8;
/// Buffers kept for the next pump.
const IDLE_BUFFERS: usize = 2;
const BUFFER_SIZE: usize = 256 << 10;
/// Up to here a message is moved by one read and one write.
pub(crate) const SHORT: usize = 16 << 10;

static FREE_PIPES: Mutex<Vec<(OwnedFd, OwnedFd)>> = Mutex::new(Vec::new());
static PIPES_OUT: AtomicUsize = AtomicUsize::new(0);
static FREE_BUFFERS: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SHORT].into_boxed_slice());
}

/// Lends this thread's buffer for one message.
pub(crate) fn scratch<R>(user: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| user(scratch))
}

fn lock<T>(pool: &Mutex<T>) -> MutexGuard<'_, T> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pipe of a megabyte. Goes back to the pool when dropped, unless bytes are left in it.
pub(crate) struct Pipe {
    ends: Option<(OwnedFd, OwnedFd)>,
    /// Bytes inside.
    pub(crate) held: usize,
}

impl Pipe {
    pub(crate) const SIZE: usize = 1 << 20;

    /// A pipe, or nothing where a limit is reached: descriptors, pipe memory of the user, or ours.
    pub(crate) fn take() -> Option<Self> {
        if PIPES_OUT.fetch_add(1, Ordering::Relaxed) >= PIPES {
            PIPES_OUT.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        // From here on dropping it counts it out again.
        let mut pipe = Self {
            ends: None,
            held: 0,
        };
        pipe.ends = lock(&FREE_PIPES).pop().or_else(open);
        pipe.ends.is_some().then_some(pipe)
    }

    pub(crate) fn reader(&self) -> BorrowedFd<'_> {
        self.ends().0.as_fd()
    }

    pub(crate) fn writer(&self) -> BorrowedFd<'_> {
        self.ends().1.as_fd()
    }

    fn ends(&self) -> &(OwnedFd, OwnedFd) {
        self.ends
            .as_ref()
            .expect("a pipe has its ends until it is dropped")
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        PIPES_OUT.fetch_sub(1, Ordering::Relaxed);
        let Some(ends) = self.ends.take() else { return };
        let mut free = lock(&FREE_PIPES);
        if self.held == 0 && free.len() < IDLE_PIPES {
            free.push(ends);
        }
    }
}

fn open() -> Option<(OwnedFd, OwnedFd)> {
    let ends = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
    let size = rustix::pipe::fcntl_setpipe_size(&ends.0, Pipe::SIZE).ok()?;
    (size >= Pipe::SIZE).then_some(ends)
}

/// A buffer of 256 KiB. Goes back to the pool when dropped.
pub(crate) struct Buffer(Box<[u8]>);

impl Buffer {
    pub(crate) fn take() -> Self {
        let free = lock(&FREE_BUFFERS).pop();
        Self(free.unwrap_or_else(|| vec![0; BUFFER_SIZE].into_boxed_slice()))
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = lock(&FREE_BUFFERS);
        if free.len() < IDLE_BUFFERS {
            free.push(std::mem::take(&mut self.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_with_bytes_left_in_it_is_never_handed_out_again() {
        let mut pipe = Pipe::take().unwrap();
        rustix::io::write(pipe.writer(), b"left").unwrap();
        pipe.held = 4;
        drop(pipe);
        let pipes: Vec<_> = (0..IDLE_PIPES + 1).map(|_| Pipe::take().unwrap()).collect();
        for pipe in &pipes {
            let error = rustix::io::read(pipe.reader(), &mut [0; 8]).unwrap_err();
            assert_eq!(error, rustix::io::Errno::AGAIN);
        }
    }
}
