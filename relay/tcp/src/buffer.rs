//! Bytes of a stream by position, in pieces of the pool: a buffer takes memory for what it holds,
//! and none when it is empty.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};

use crate::pool::{PIECE, Pool};
use crate::ranges::Ranges;

/// The most pieces that are lent at once: 256 KiB.
pub const MOST_SLICES: usize = 16;

/// What came of lending room to send from: nothing while there is none, or else what the borrower
/// gave back and how many bytes it wrote.
pub type Lent<R, E> = Option<Result<(R, usize), E>>;

/// A window over the positions of a stream.
#[derive(Debug)]
pub(crate) struct Window {
    pool: Pool,
    pieces: VecDeque<Option<Box<[u8]>>>,
    /// Position of the first byte of the first piece.
    base: u64,
}

impl Window {
    pub(crate) fn new(pool: Pool, base: u64) -> Self {
        Self {
            pool,
            pieces: VecDeque::new(),
            base,
        }
    }

    /// Writes `bytes` at `position`, which is not below what was released. Returns how many were
    /// written before memory ran out.
    pub(crate) fn write(&mut self, mut position: u64, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (index, offset) = self.place(position);
            if self.pieces.len() <= index {
                self.pieces.resize_with(index + 1, || None);
            }
            let slot = &mut self.pieces[index];
            if slot.is_none() {
                *slot = self.pool.take();
            }
            let Some(piece) = slot else { break };
            let count = rest.len().min(PIECE - offset);
            piece[offset..offset + count].copy_from_slice(&rest[..count]);
            position += count as u64;
            rest = &rest[count..];
        }
        bytes.len() - rest.len()
    }

    /// Reads what was written at `position`.
    pub(crate) fn read(&self, mut position: u64, mut out: &mut [u8]) {
        while !out.is_empty() {
            let bytes = self.slice(position, position + out.len() as u64);
            if bytes.is_empty() {
                // Only what was written is asked for.
                debug_assert!(false, "a position without bytes was read");
                return;
            }
            let (now, later) = out.split_at_mut(bytes.len());
            now.copy_from_slice(bytes);
            position += bytes.len() as u64;
            out = later;
        }
    }

    /// The bytes from `start` that lie side by side, up to `end`.
    pub(crate) fn slice(&self, start: u64, end: u64) -> &[u8] {
        let (index, offset) = self.place(start);
        let Some(Some(piece)) = self.pieces.get(index) else {
            return &[];
        };
        let count = (end.saturating_sub(start)).min((PIECE - offset) as u64) as usize;
        &piece[offset..offset + count]
    }

    /// Lends the room from `position` on, up to `most` bytes, and returns what `fill` does with it.
    pub(crate) fn lend<R>(
        &mut self,
        position: u64,
        most: usize,
        fill: impl FnOnce(&mut [IoSliceMut<'_>]) -> R,
    ) -> R {
        let (first, offset) = self.place(position);
        let wanted = (offset + most).div_ceil(PIECE).min(MOST_SLICES);
        if self.pieces.len() < first + wanted {
            self.pieces.resize_with(first + wanted, || None);
        }
        let pool = &self.pool;
        let mut rest = most;
        let mut lent = 0;
        let mut slices: [IoSliceMut<'_>; MOST_SLICES] =
            std::array::from_fn(|_| IoSliceMut::new(&mut []));
        for (at, slot) in self.pieces.range_mut(first..first + wanted).enumerate() {
            if slot.is_none() {
                *slot = pool.take();
            }
            let Some(piece) = slot else { break };
            let start = if at == 0 { offset } else { 0 };
            let end = PIECE.min(start + rest);
            rest -= end - start;
            slices[at] = IoSliceMut::new(&mut piece[start..end]);
            lent = at + 1;
        }
        fill(&mut slices[..lent])
    }

    /// The bytes from `start` to `end`, as many as [`MOST_SLICES`] pieces hold.
    pub(crate) fn slices<R>(
        &self,
        mut start: u64,
        end: u64,
        take: impl FnOnce(&[IoSlice<'_>]) -> R,
    ) -> R {
        let mut slices = [IoSlice::new(&[]); MOST_SLICES];
        let mut count = 0;
        while start < end && count < MOST_SLICES {
            let bytes = self.slice(start, end);
            if bytes.is_empty() {
                break;
            }
            slices[count] = IoSlice::new(bytes);
            start += bytes.len() as u64;
            count += 1;
        }
        take(&slices[..count])
    }

    /// Gives back the pieces that lie below `position`.
    pub(crate) fn release(&mut self, position: u64) {
        while position >= self.base + PIECE as u64 && !self.pieces.is_empty() {
            if let Some(Some(piece)) = self.pieces.pop_front() {
                self.pool.give(piece);
            }
            self.base += PIECE as u64;
        }
        if self.pieces.is_empty() {
            self.base = self.base.max(position);
        }
    }

    /// Gives back the pieces that begin at or above `position`.
    fn release_above(&mut self, position: u64) {
        let keep = (position.saturating_sub(self.base)).div_ceil(PIECE as u64) as usize;
        while self.pieces.len() > keep {
            if let Some(Some(piece)) = self.pieces.pop_back() {
                self.pool.give(piece);
            }
        }
    }

    /// Gives everything back; the next byte comes at `position`.
    pub(crate) fn clear(&mut self, position: u64) {
        for piece in self.pieces.drain(..).flatten() {
            self.pool.give(piece);
        }
        if self.pieces.capacity() > 8 {
            self.pieces = VecDeque::new();
        }
        self.base = position;
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    fn place(&self, position: u64) -> (usize, usize) {
        debug_assert!(position >= self.base, "a released position was used");
        let offset = position.saturating_sub(self.base) as usize;
        (offset / PIECE, offset % PIECE)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.clear(0);
    }
}

/// What was written by the application and is not acknowledged.
#[derive(Debug)]
pub(crate) struct SendBuffer {
    window: Window,
    /// Position of the first byte kept.
    start: u64,
    /// One past the last byte written.
    end: u64,
}

impl SendBuffer {
    pub(crate) fn new(pool: Pool, start: u64) -> Self {
        Self {
            window: Window::new(pool, start),
            start,
            end: start,
        }
    }

    /// Takes bytes of `data` as long as no more than `limit` are held, and returns how many.
    pub(crate) fn push(&mut self, data: &[u8], limit: u64) -> usize {
        let room = limit.saturating_sub(self.len()).min(data.len() as u64) as usize;
        let count = self.window.write(self.end, &data[..room]);
        self.end += count as u64;
        count
    }

    /// Lends room for at most `most` bytes as long as no more than `limit` are held; `fill` returns
    /// what it likes and how many it wrote. Nothing is lent, and nothing called, while there is no room.
    pub(crate) fn push_with<R, E>(
        &mut self,
        most: usize,
        limit: u64,
        fill: impl FnOnce(&mut [IoSliceMut<'_>]) -> Result<(R, usize), E>,
    ) -> Lent<R, E> {
        let room = limit.saturating_sub(self.len()).min(most as u64) as usize;
        if room == 0 {
            return None;
        }
        let outcome = self.window.lend(self.end, room, |slices| {
            (!slices.is_empty()).then(|| fill(slices))
        });
        if let Some(Ok((_, count))) = &outcome {
            self.end += (*count).min(room) as u64;
        }
        if self.start == self.end {
            self.window.clear(self.end);
        } else {
            self.window.release_above(self.end);
        }
        outcome
    }

    /// Forgets what lies below `position`.
    pub(crate) fn acknowledge(&mut self, position: u64) {
        self.start = position.clamp(self.start, self.end);
        if self.start == self.end {
            self.window.clear(self.end);
        } else {
            self.window.release(self.start);
        }
    }

    pub(crate) fn read(&self, position: u64, out: &mut [u8]) {
        self.window.read(position, out);
    }

    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    pub(crate) fn len(&self) -> u64 {
        self.end - self.start
    }

    pub(crate) fn pool(&self) -> &Pool {
        self.window.pool()
    }

    pub(crate) fn clear(&mut self) {
        self.acknowledge(self.end);
    }
}

/// What arrived and was not read yet, in order and beyond gaps.
#[derive(Debug)]
pub(crate) struct ReceiveBuffer {
    window: Window,
    /// Position of the next byte the application reads.
    read: u64,
    /// One past the last byte in order.
    next: u64,
    beyond: Ranges,
}

/// What became of a segment's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stored {
    /// Bytes by which the data in order grew.
    pub(crate) in_order: u64,
    /// A part that was there before (RFC 2883).
    pub(crate) duplicate: Option<(u64, u64)>,
    /// Whether something could not be kept.
    pub(crate) refused: bool,
}

impl ReceiveBuffer {
    /// The most gaps that are remembered.
    const MAX_GAPS: usize = 4096;

    pub(crate) fn new(pool: Pool, start: u64) -> Self {
        Self {
            window: Window::new(pool, start),
            read: start,
            next: start,
            beyond: Ranges::default(),
        }
    }

    /// Takes the bytes of a segment at `start`, already cut to the window.
    pub(crate) fn store(&mut self, start: u64, bytes: &[u8]) -> Stored {
        let mut stored = Stored::default();
        let end = start + bytes.len() as u64;
        if start < self.next {
            stored.duplicate = Some((start, end.min(self.next)));
        }
        if end <= self.next {
            return stored;
        }
        let from = start.max(self.next);
        let fresh = &bytes[(from - start) as usize..];
        if from == self.next {
            self.store_next(fresh, &mut stored);
        } else {
            self.store_beyond(from, fresh, &mut stored);
        }
        stored
    }

    fn store_next(&mut self, bytes: &[u8], stored: &mut Stored) {
        let before = self.next;
        let mut count = self.window.write(before, bytes);
        if count < bytes.len() && !self.beyond.is_empty() {
            // What was promised by SACK alone may be taken back (RFC 2018 §8).
            self.beyond.clear();
            self.window.release_above(before + count as u64);
            count += self.window.write(before + count as u64, &bytes[count..]);
        }
        stored.refused = count < bytes.len();
        self.next += count as u64;
        while let Some(end) = self.beyond.take_reaching(self.next) {
            self.next = self.next.max(end);
        }
        stored.in_order = self.next - before;
    }

    fn store_beyond(&mut self, start: u64, bytes: &[u8], stored: &mut Stored) {
        let end = start + bytes.len() as u64;
        if self.beyond.covers(start, end) {
            stored.duplicate = Some((start, end));
            return;
        }
        let joins = self.beyond.around(start).is_some();
        if self.beyond.len() >= Self::MAX_GAPS && !joins {
            stored.refused = true;
            return;
        }
        let count = self.window.write(start, bytes);
        stored.refused = count < bytes.len();
        self.beyond.insert(start, start + count as u64, |_, _| {});
    }

    /// Bytes that can be read, as far as they lie side by side.
    pub(crate) fn peek(&self) -> &[u8] {
        if self.read == self.next {
            return &[];
        }
        self.window.slice(self.read, self.next)
    }

    /// All that can be read, as far as [`MOST_SLICES`] pieces hold it.
    pub(crate) fn peek_with<R>(&self, take: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
        self.window.slices(self.read, self.next, take)
    }

    /// Counts `count` of the bytes of [`peek`](Self::peek) as read.
    pub(crate) fn consume(&mut self, count: usize) {
        self.read = (self.read + count as u64).min(self.next);
        if self.read == self.next && self.beyond.is_empty() {
            self.window.clear(self.next);
        } else {
            self.window.release(self.read);
        }
    }

    /// One past the last byte in order.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Bytes in order that were not read.
    pub(crate) fn unread(&self) -> u64 {
        self.next - self.read
    }

    /// What arrived beyond gaps.
    pub(crate) fn beyond(&self) -> &Ranges {
        &self.beyond
    }

    pub(crate) fn pool(&self) -> &Pool {
        self.window.pool()
    }

    /// No more comes: what waits beyond gaps will never be read.
    pub(crate) fn close(&mut self) {
        self.beyond.clear();
        match self.unread() {
            0 => self.window.clear(self.next),
            _ => self.window.release_above(self.next),
        }
    }

    /// Forgets everything unread.
    pub(crate) fn clear(&mut self) {
        self.read = self.next;
        self.beyond.clear();
        self.window.clear(self.next);
    }
}
