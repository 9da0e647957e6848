//! The ring and the memory that the kernel reads and writes for it. All unsafe code of this engine
//! is here, and what it offers is safe to use.
//!
//! How long memory lives:
//!
//! * What an operation names (a buffer, a message's parts) is owned by the [`Ring`] from the
//!   submission to the last completion of that operation, which hands it back: [`Held`].
//! * The pool's memory lives as long as the ring. A part of it is the kernel's from
//!   [`Ring::give_back`] until a completion names it, and then the holder's of the [`Piece`].
//! * A ring is dropped only when nothing is in flight: dropping cancels and waits, and where that
//!   cannot be done the memory is given up instead of freed.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use io_uring::types::{BufRingEntry, CancelBuilder, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use slab::Slab;
use tokio::io::unix::AsyncFd;

/// Submissions that one system call takes.
const SUBMISSIONS: u32 = 256;
/// Completions that may wait; more are kept by the kernel.
const COMPLETIONS: u32 = 4096;
/// Buffers of the pool, a power of two.
const BUFFERS: u16 = 1024;
/// Bytes of each: a page, so that small messages of many connections take little.
pub(super) const BUFFER: usize = 4096;
/// Sockets that the kernel keeps at hand for the ring.
const FILES: u32 = 8192;
const GROUP: u16 = 0;
/// Of the completion of a cancellation, which is no news.
const NOBODY: u64 = u64::MAX;

/// A socket as operations name it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    Fixed(u32),
    Plain(i32),
}

/// An operation in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpId(usize);

/// Received bytes, in the pool. Belongs back to it: [`Ring::give_back`].
#[derive(Debug)]
pub(super) struct Piece {
    buffer: u16,
    start: usize,
    length: usize,
}

impl Piece {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Forgets the first bytes.
    pub(super) fn skip(&mut self, bytes: usize) {
        let bytes = bytes.min(self.length);
        self.start += bytes;
        self.length -= bytes;
    }
}

/// What an operation was given, back from the kernel.
#[derive(Debug)]
pub(super) enum Held {
    Nothing,
    Bytes(Vec<u8>),
    Pieces(Vec<Piece>),
}

/// News of an operation.
#[derive(Debug)]
pub(super) struct Completion<U> {
    /// Who asked.
    pub(super) user: U,
    pub(super) result: Result<usize, Errno>,
    /// Where received bytes are, when they are in the pool.
    pub(super) piece: Option<Piece>,
    /// With the last news alone.
    pub(super) held: Held,
    /// Nothing more will come of this operation.
    pub(super) last: bool,
}

struct Op<U> {
    user: U,
    memory: Memory,
}

/// Memory that the kernel has been told the address of.
enum Memory {
    None,
    Bytes(Vec<u8>),
    Message(Box<Message>),
}

struct Message {
    header: libc::msghdr,
    parts: Vec<libc::iovec>,
    pieces: Vec<Piece>,
}

// SAFETY: the pointers inside are to the box's own parts and to the pool, which belong to the same
// ring as the message and go where it goes.
unsafe impl Send for Message {}

/// A ring with its pool, for the thread that made it.
pub(super) struct Ring<U> {
    io: ManuallyDrop<IoUring>,
    ops: ManuallyDrop<Slab<Op<U>>>,
    pool: ManuallyDrop<Pool>,
    files: u32,
    failure: Option<Errno>,
}

impl<U: Copy> Ring<U> {
    /// Makes one, for the calling thread alone.
    ///
    /// # Errors
    /// The kernel's: `EPERM` where it is forbidden, `ENOSYS` or `EINVAL` where it is not known.
    pub(super) fn new() -> io::Result<Self> {
        let io = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let pool = Pool::new()?;
        // SAFETY: the entries are page-aligned, as many as said, and live until the ring is closed.
        unsafe {
            io.submitter()
                .register_buf_ring_with_flags(pool.entries as u64, BUFFERS, GROUP, 0)?;
        }
        // Sockets are passed by descriptor where there is no table, or no room in it.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let files = limit.map_or(FILES, |limit| FILES.min(limit.try_into().unwrap_or(FILES)));
        let registered = io.submitter().register_files_sparse(files);
        Ok(Self {
            io: ManuallyDrop::new(io),
            ops: ManuallyDrop::new(Slab::new()),
            pool: ManuallyDrop::new(pool),
            files: registered.map_or(0, |()| files),
            failure: None,
        })
    }

    /// A descriptor that becomes readable when there is news, or would be after
    /// [`submit`](Self::submit), while [`set_waiting`](Self::set_waiting) is on. The ring's own
    /// descriptor does not: it is not told of work that waits for its thread.
    pub(super) fn readiness(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        self.io.submitter().register_eventfd(event.as_raw_fd())?;
        // SAFETY: it owns its descriptor, which stays open and the same until it is dropped.
        unsafe { AsyncFd::register(event) }.map_err(|error| error.into_parts().1)
    }

    /// Whether news is to be told by [`readiness`](Self::readiness). Returns whether there is any
    /// already, which is not told.
    pub(super) fn set_waiting(&mut self, waiting: bool) -> bool {
        let news = self.io.completion();
        if !waiting {
            news.disable_eventfd();
            return false;
        }
        news.enable_eventfd();
        // What the kernel does from here on it tells; what it did before is seen below.
        fence(Ordering::SeqCst);
        let has_news = !news.is_empty();
        drop(news);
        has_news || self.io.submission().taskrun()
    }

    /// Makes two sockets known under a number of the caller's. They must stay open until
    /// [`unregister`](Self::unregister), and must be in blocking mode: the kernel does not wait for
    /// others.
    pub(super) fn register(&mut self, number: usize, sockets: [BorrowedFd<'_>; 2]) -> [Target; 2] {
        let fds = sockets.map(|socket| socket.as_raw_fd());
        let first = u32::try_from(number).unwrap_or(u32::MAX).saturating_mul(2);
        let fits = first.saturating_add(1) < self.files;
        if fits
            && self
                .io
                .submitter()
                .register_files_update(first, &fds)
                .is_ok()
        {
            return [Target::Fixed(first), Target::Fixed(first + 1)];
        }
        fds.map(Target::Plain)
    }

    /// Forgets two sockets. Nothing may be in flight on them.
    pub(super) fn unregister(&mut self, targets: [Target; 2]) {
        if let [Target::Fixed(first), _] = targets {
            let _ = self.io.submitter().register_files_update(first, &[-1, -1]);
        }
    }

    /// Receives into the pool, again and again.
    pub(super) fn receive_all(&mut self, from: Target, user: U) -> OpId {
        let entry = match from {
            Target::Fixed(slot) => opcode::RecvMulti::new(Fixed(slot), GROUP).build(),
            Target::Plain(fd) => opcode::RecvMulti::new(Fd(fd), GROUP).build(),
        };
        self.push(entry, user, Memory::None)
    }

    /// Receives once, what is there: `EAGAIN` when there is nothing.
    pub(super) fn receive(&mut self, from: Target, mut buffer: Vec<u8>, user: U) -> OpId {
        let (address, length) = (buffer.as_mut_ptr(), length(buffer.len()));
        let flags = libc::MSG_DONTWAIT;
        let entry = match from {
            Target::Fixed(slot) => opcode::Recv::new(Fixed(slot), address, length)
                .flags(flags)
                .build(),
            Target::Plain(fd) => opcode::Recv::new(Fd(fd), address, length)
                .flags(flags)
                .build(),
        };
        self.push(entry, user, Memory::Bytes(buffer))
    }

    /// Sends bytes from `start` to `end`, waiting for room.
    pub(super) fn send(
        &mut self,
        to: Target,
        bytes: Vec<u8>,
        (start, end): (usize, usize),
        user: U,
    ) -> OpId {
        let part = &bytes[start..end];
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let entry = send(to, part, flags);
        self.push(entry, user, Memory::Bytes(bytes))
    }

    /// Sends pieces, as much as there is room for: `EAGAIN` when there is none.
    pub(super) fn send_pieces(&mut self, to: Target, pieces: Vec<Piece>, user: U) -> OpId {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let mut message = Box::new(Message {
            // SAFETY: a header of zeroes is one of an empty message.
            header: unsafe { std::mem::zeroed() },
            parts: Vec::new(),
            pieces,
        });
        let entry = if let [piece] = &message.pieces[..] {
            send(to, self.pool.bytes(piece), flags)
        } else {
            message.parts.extend(message.pieces.iter().map(|piece| {
                let bytes = self.pool.bytes(piece);
                libc::iovec {
                    iov_base: bytes.as_ptr().cast_mut().cast(),
                    iov_len: bytes.len(),
                }
            }));
            message.header.msg_iov = message.parts.as_mut_ptr();
            message.header.msg_iovlen = message.parts.len();
            let header = &raw const message.header;
            let flags = flags.cast_unsigned();
            match to {
                Target::Fixed(slot) => opcode::SendMsg::new(Fixed(slot), header)
                    .flags(flags)
                    .build(),
                Target::Plain(fd) => opcode::SendMsg::new(Fd(fd), header).flags(flags).build(),
            }
        };
        self.push(entry, user, Memory::Message(message))
    }

    /// Waits until there is something to receive, or nothing any more.
    pub(super) fn ready(&mut self, from: Target, user: U) -> OpId {
        let events = u32::from(libc::POLLIN.cast_unsigned());
        let entry = match from {
            Target::Fixed(slot) => opcode::PollAdd::new(Fixed(slot), events).build(),
            Target::Plain(fd) => opcode::PollAdd::new(Fd(fd), events).build(),
        };
        self.push(entry, user, Memory::None)
    }

    /// Tells events of poll(2) as they come: errors and ends, which no mask can leave out. What is
    /// so already is told as well, once: so a single look would see an end that was known.
    pub(super) fn look_out(&mut self, socket: Target, user: U) -> OpId {
        let events = u32::from(libc::POLLERR.cast_unsigned());
        let entry = match socket {
            Target::Fixed(slot) => opcode::PollAdd::new(Fixed(slot), events)
                .multi(true)
                .build(),
            Target::Plain(fd) => opcode::PollAdd::new(Fd(fd), events).multi(true).build(),
        };
        self.push(entry, user, Memory::None)
    }

    /// Asks an operation to end; its last completion tells that it did.
    pub(super) fn cancel(&mut self, op: OpId) {
        let entry = opcode::AsyncCancel::new(op.0 as u64).build();
        self.push_entry(&entry.user_data(NOBODY));
    }

    fn push(&mut self, entry: squeue::Entry, user: U, memory: Memory) -> OpId {
        let id = self.ops.insert(Op { user, memory });
        self.push_entry(&entry.user_data(id as u64));
        OpId(id)
    }

    fn push_entry(&mut self, entry: &squeue::Entry) {
        // SAFETY: all memory that entries name is in `ops` or in the pool until their completion.
        while unsafe { self.io.submission().push(entry) }.is_err() {
            // Full: the kernel is to take what there is.
            if let Err(error) = self.enter() {
                self.failure = Some(error);
                return;
            }
        }
    }

    /// Hands what was asked for to the kernel and lets it work. Costs nothing when there is nothing.
    ///
    /// # Errors
    /// `EEXIST` on another thread than the one that made the ring. A ring that failed is of no use
    /// any more.
    pub(super) fn submit(&mut self) -> Result<(), Errno> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        let queue = self.io.submission();
        if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
            return Ok(());
        }
        drop(queue);
        self.enter()
    }

    fn enter(&mut self) -> Result<(), Errno> {
        match self.io.submit() {
            Ok(_) => Ok(()),
            Err(error) => match Errno::from_io_error(&error) {
                // To be tried again: what was not taken is still in the queue.
                Some(Errno::INTR | Errno::AGAIN | Errno::BUSY) | None => Ok(()),
                Some(error) => Err(error),
            },
        }
    }

    /// Takes the news that there is.
    pub(super) fn take_completions(&mut self, news: &mut Vec<Completion<U>>) {
        let ops = &mut *self.ops;
        let entries = self.io.completion();
        news.extend(entries.filter_map(|entry| complete(ops, &entry)));
    }

    pub(super) fn bytes(&self, piece: &Piece) -> &[u8] {
        self.pool.bytes(piece)
    }

    pub(super) fn give_back(&mut self, piece: Piece) {
        self.pool.provide(piece.buffer);
    }
}

fn complete<U: Copy>(ops: &mut Slab<Op<U>>, entry: &cqueue::Entry) -> Option<Completion<U>> {
    let id = usize::try_from(entry.user_data()).ok()?;
    let op = ops.get(id)?;
    let user = op.user;
    let last = !cqueue::more(entry.flags());
    let result = match entry.result() {
        error if error < 0 => Err(Errno::from_raw_os_error(-error)),
        value => Ok(value.cast_unsigned() as usize),
    };
    let piece = cqueue::buffer_select(entry.flags()).map(|buffer| Piece {
        buffer,
        start: 0,
        length: result.unwrap_or(0).min(BUFFER),
    });
    debug_assert!(piece.as_ref().is_none_or(|piece| piece.buffer < BUFFERS));
    let held = if last {
        match ops.remove(id).memory {
            Memory::None => Held::Nothing,
            Memory::Bytes(bytes) => Held::Bytes(bytes),
            Memory::Message(message) => Held::Pieces(message.pieces),
        }
    } else {
        Held::Nothing
    };
    Some(Completion {
        user,
        result,
        piece,
        held,
        last,
    })
}

fn send(to: Target, bytes: &[u8], flags: i32) -> squeue::Entry {
    let (address, length) = (bytes.as_ptr(), length(bytes.len()));
    match to {
        Target::Fixed(slot) => opcode::Send::new(Fixed(slot), address, length)
            .flags(flags)
            .build(),
        Target::Plain(fd) => opcode::Send::new(Fd(fd), address, length)
            .flags(flags)
            .build(),
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

impl<U> Ring<U> {
    /// Ends all that is in flight. What does not end in time stays in `ops`.
    fn cancel_all(&mut self) {
        let all = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
        // SAFETY: it names no memory.
        let pushed = unsafe { self.io.submission().push(&all.user_data(NOBODY)) };
        let patience = Timespec::new().sec(1);
        let patience = SubmitArgs::new().timespec(&patience);
        let mut goes_on = pushed.is_ok();
        while goes_on && !self.ops.is_empty() {
            goes_on = self.io.submitter().submit_with_args(1, &patience).is_ok();
            for entry in self.io.completion() {
                let id = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
                if !cqueue::more(entry.flags()) {
                    let _ = self.ops.try_remove(id);
                }
            }
        }
    }
}

impl<U> Drop for Ring<U> {
    fn drop(&mut self) {
        if !self.ops.is_empty() {
            self.cancel_all();
        }
        // SAFETY: nothing of this is used again.
        unsafe {
            let is_idle = self.ops.is_empty();
            ManuallyDrop::drop(&mut self.io);
            if is_idle {
                ManuallyDrop::drop(&mut self.ops);
                ManuallyDrop::drop(&mut self.pool);
            }
        }
    }
}

/// Memory for what is received, in buffers of one size, and the queue by which the kernel is given
/// them.
struct Pool {
    entries: *mut BufRingEntry,
    memory: *mut u8,
    tail: u16,
}

// SAFETY: nothing else has these pointers but the ring that owns the pool.
unsafe impl Send for Pool {}

const ENTRIES_SIZE: usize = BUFFERS as usize * size_of::<BufRingEntry>();
const MEMORY_SIZE: usize = BUFFERS as usize * BUFFER;

impl Pool {
    fn new() -> io::Result<Self> {
        let mut pool = Self {
            entries: map(ENTRIES_SIZE)?.cast(),
            memory: ptr::null_mut(),
            tail: 0,
        };
        pool.memory = map(MEMORY_SIZE)?;
        for buffer in 0..BUFFERS {
            pool.provide(buffer);
        }
        Ok(pool)
    }

    /// Gives a buffer to the kernel. Whoever calls has the right to it and loses it.
    fn provide(&mut self, buffer: u16) {
        let slot = usize::from(self.tail % BUFFERS);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the slot is inside the mapping, and free: there are as many as buffers. The tail
        // is the reserved field of the first entry, aligned and only stored to here.
        unsafe {
            let entry = &mut *self.entries.add(slot);
            entry.set_addr(self.memory.add(usize::from(buffer) * BUFFER) as u64);
            entry.set_len(BUFFER as u32);
            entry.set_bid(buffer);
            let tail = BufRingEntry::tail(self.entries).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    fn bytes(&self, piece: &Piece) -> &[u8] {
        let start = usize::from(piece.buffer) * BUFFER + piece.start;
        // SAFETY: a piece is inside its buffer, which is inside the mapping; the kernel has written
        // it and does not write again before it is given back, which takes the piece.
        unsafe { std::slice::from_raw_parts(self.memory.add(start), piece.length) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: both mappings are this pool's own, and the ring that knew of them is closed.
        unsafe {
            let _ = rustix::mm::munmap(self.entries.cast(), ENTRIES_SIZE);
            if !self.memory.is_null() {
                let _ = rustix::mm::munmap(self.memory.cast(), MEMORY_SIZE);
            }
        }
    }
}

fn map(size: usize) -> io::Result<*mut u8> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, of memory that nothing else has.
    let address =
        unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), size, access, MapFlags::PRIVATE)? };
    Ok(address.cast())
}
