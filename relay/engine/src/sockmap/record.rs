//! The records of directions, in memory that the program in the kernel and this process share.

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use relay_ebpf::gate;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The order that the meeting of program and relay rests on: each stores its own word before it
/// reads the other's.
const ORDER: Ordering = Ordering::SeqCst;

/// All records.
pub(super) struct Records {
    first: NonNull<gate::Record>,
    count: u32,
}

// SAFETY: the memory belongs to the map, not to a thread, and every access is atomic.
unsafe impl Send for Records {}
// SAFETY: as above.
unsafe impl Sync for Records {}

impl Records {
    /// Maps the array of a kernel's map into memory.
    pub(super) fn map(fd: impl AsFd, count: u32) -> io::Result<Self> {
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping, at no address in particular, disturbs none that is there.
        let first = unsafe { mmap(std::ptr::null_mut(), size(count), access, flags, fd, 0) }?;
        let first = NonNull::new(first.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { first, count })
    }

    /// The record of a direction. Panics for one that is not in the array.
    pub(super) fn get(&self, index: u32) -> Record<'_> {
        assert!(index < self.count, "the slots are as many as the records");
        // SAFETY: the array has `count` records.
        let record = unsafe { self.first.add(index as usize) }.as_ptr();
        // SAFETY: the words are aligned, live as long as `self`, and both sides access them as
        // whole words.
        unsafe {
            let kernel = &raw mut (*record).kernel;
            let user = &raw mut (*record).user;
            Record {
                redirected: AtomicU64::from_ptr(&raw mut (*kernel).redirected),
                passed: AtomicU64::from_ptr(&raw mut (*kernel).passed),
                notified: AtomicU64::from_ptr(&raw mut (*kernel).notified),
                trimmed: AtomicU64::from_ptr(&raw mut (*kernel).trimmed),
                broken: AtomicU64::from_ptr(&raw mut (*kernel).broken),
                mark: AtomicU64::from_ptr(&raw mut (*kernel).mark),
                older: AtomicU32::from_ptr(&raw mut (*kernel).packets[0]),
                newer: AtomicU32::from_ptr(&raw mut (*kernel).packets[1]),
                next: AtomicU32::from_ptr(&raw mut (*kernel).next),
                consumed: AtomicU64::from_ptr(&raw mut (*user).consumed),
                drained: AtomicU64::from_ptr(&raw mut (*user).drained),
                high: AtomicU64::from_ptr(&raw mut (*user).high),
                packets: AtomicU64::from_ptr(&raw mut (*user).packets),
            }
        }
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        // SAFETY: the mapping is of this size, and no reference outlives `self`.
        let _ = unsafe { munmap(self.first.as_ptr().cast(), size(self.count)) };
    }
}

const fn size(count: u32) -> usize {
    count as usize * size_of::<gate::Record>()
}

/// The record of one direction; [`gate::Record`] says what the words mean.
pub(super) struct Record<'a> {
    redirected: &'a AtomicU64,
    passed: &'a AtomicU64,
    notified: &'a AtomicU64,
    trimmed: &'a AtomicU64,
    broken: &'a AtomicU64,
    mark: &'a AtomicU64,
    older: &'a AtomicU32,
    newer: &'a AtomicU32,
    next: &'a AtomicU32,
    consumed: &'a AtomicU64,
    drained: &'a AtomicU64,
    high: &'a AtomicU64,
    packets: &'a AtomicU64,
}

impl Record<'_> {
    /// Begins anew, with the byte of a sequence number. Nobody may use the record yet.
    pub(super) fn reset(&self, high: u64, packets: u64, next: u32) {
        let zero = [
            self.redirected,
            self.passed,
            self.notified,
            self.trimmed,
            self.broken,
            self.mark,
            self.consumed,
            self.drained,
        ];
        zero.iter().for_each(|word| word.store(0, ORDER));
        let zero = [self.older, self.newer];
        zero.iter().for_each(|word| word.store(0, ORDER));
        self.next.store(next, ORDER);
        self.packets.store(packets, ORDER);
        self.high.store(high, ORDER);
    }

    /// From now on everything is passed.
    pub(super) fn close(&self) {
        self.high.store(0, ORDER);
    }

    pub(super) fn redirected(&self) -> u64 {
        self.redirected.load(ORDER)
    }

    pub(super) fn passed(&self) -> u64 {
        self.passed.load(ORDER)
    }

    /// Bytes that went from end to end, or fewer.
    pub(super) fn carried(&self) -> u64 {
        self.redirected() + self.consumed.load(ORDER)
    }

    pub(super) fn trimmed(&self) -> u64 {
        self.trimmed.load(ORDER)
    }

    /// Whether bytes are missing.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(ORDER) != 0
    }

    /// Of the passed bytes these have been sent on.
    pub(super) fn consume(&self, bytes: u64) {
        self.consumed.store(bytes, ORDER);
    }

    /// The far end has taken these.
    pub(super) fn drain(&self, bytes: u64) {
        self.drained.store(bytes, ORDER);
    }

    /// Asks to be told anew when credit runs short.
    pub(super) fn listen(&self) {
        self.notified.store(0, ORDER);
    }
}
