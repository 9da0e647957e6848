//! What the applications of a simulation do: send bytes that tell their place, check those that
//! come, and end their direction.

use std::time::Duration;

use relay_tcp::{Connection, Instant, State};

/// The byte at `position` of stream `id`.
pub fn byte_at(id: u64, position: u64) -> u8 {
    let mixed = (position ^ id.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

#[derive(Debug, Clone)]
pub struct App {
    /// Which stream is sent and which is expected.
    pub send_id: u64,
    pub expect_id: u64,
    /// Bytes to send, and sent so far.
    pub total: u64,
    pub sent: u64,
    pub received: u64,
    /// Waits for the peer's end before it ends its own direction.
    pub answers: bool,
    /// Bytes written at a time with `pause` between them; zero: as much as goes.
    pub chunk: u64,
    pub pause: Duration,
    /// Bytes read at a time with `read_pause` between them; zero: all.
    pub read_chunk: usize,
    pub read_pause: Duration,
    pub next_write: Instant,
    pub next_read: Instant,
    pub shut: bool,
    /// When the peer's end was read.
    pub finished_at: Option<Instant>,
    /// Never ends its direction.
    pub stays: bool,
}

impl App {
    /// Sends `total` bytes; side 0 is the client's.
    pub fn new(side: u64, total: u64) -> Self {
        Self {
            send_id: side,
            expect_id: 1 - side,
            total,
            sent: 0,
            received: 0,
            answers: false,
            chunk: 0,
            pause: Duration::ZERO,
            read_chunk: 0,
            read_pause: Duration::ZERO,
            next_write: Instant::ZERO,
            next_read: Instant::ZERO,
            shut: false,
            finished_at: None,
            stays: false,
        }
    }

    /// Both ends of an upload of `total` bytes.
    pub fn upload(total: u64) -> [Self; 2] {
        let server = Self {
            answers: true,
            ..Self::new(1, 0)
        };
        [Self::new(0, total), server]
    }

    /// The first bytes it sends, `most` at most.
    pub fn first(&self, most: u64) -> Vec<u8> {
        let count = self.total.min(most);
        (0..count).map(|at| byte_at(self.send_id, at)).collect()
    }

    /// Reads and writes what goes; returns when it wants to be called again by itself.
    pub fn serve(&mut self, connection: &mut Connection, now: Instant) -> Option<Instant> {
        if connection.state() == State::Closed && connection.peek().is_empty() {
            self.note_end(connection, now);
            return None;
        }
        let read = self.read(connection, now);
        let write = self.write(connection, now);
        read.into_iter().chain(write).min()
    }

    fn read(&mut self, connection: &mut Connection, now: Instant) -> Option<Instant> {
        if self.next_read > now {
            return Some(self.next_read);
        }
        let mut room = if self.read_chunk == 0 {
            usize::MAX
        } else {
            self.read_chunk
        };
        while room > 0 {
            let bytes = connection.peek();
            let count = bytes.len().min(room);
            if count == 0 {
                break;
            }
            for (place, &byte) in bytes[..count].iter().enumerate() {
                let position = self.received + place as u64;
                assert_eq!(
                    byte,
                    byte_at(self.expect_id, position),
                    "byte {position} is wrong"
                );
            }
            self.received += count as u64;
            room -= count;
            connection.consume(now, count);
        }
        self.note_end(connection, now);
        if self.read_chunk > 0 && room == 0 {
            self.next_read = now + self.read_pause;
            return Some(self.next_read);
        }
        None
    }

    fn note_end(&mut self, connection: &Connection, now: Instant) {
        if connection.is_read_to_end() && self.finished_at.is_none() {
            self.finished_at = Some(now);
        }
    }

    fn write(&mut self, connection: &mut Connection, now: Instant) -> Option<Instant> {
        if self.shut {
            return None;
        }
        if self.next_write > now {
            return Some(self.next_write);
        }
        let mut left = self.total - self.sent;
        if self.chunk > 0 {
            left = left.min(self.chunk);
        }
        let mut chunk = [0; 16 * 1024];
        let mut full = false;
        while left > 0 {
            let count = left.min(chunk.len() as u64) as usize;
            for (place, byte) in chunk[..count].iter_mut().enumerate() {
                *byte = byte_at(self.send_id, self.sent + place as u64);
            }
            let Ok(written) = connection.write(&chunk[..count]) else {
                return None;
            };
            self.sent += written as u64;
            left -= written as u64;
            if written < count {
                full = true;
                break;
            }
        }
        let may_end = !self.stays && (!self.answers || self.finished_at.is_some());
        if self.sent == self.total && may_end {
            connection.shutdown();
            self.shut = true;
            return None;
        }
        if self.chunk > 0 && !full && self.sent < self.total {
            self.next_write = now + self.pause;
            return Some(self.next_write);
        }
        None
    }
}
