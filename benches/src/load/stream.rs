//! Bulk transfers and the one-byte ping-pong.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use super::{Ask, dial, read};

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards the app.
    Up,
    /// From the app.
    Down,
}

/// What a bulk run moved.
#[derive(Clone, Copy, Debug)]
pub struct Bulk {
    /// Bytes that arrived.
    pub bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl Bulk {
    /// Gigabits a second.
    pub fn gigabits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / 1e9 / self.elapsed.as_secs_f64()
    }

    /// GiB moved.
    pub fn gibibytes(&self) -> f64 {
        self.bytes as f64 / (1_u64 << 30) as f64
    }
}

/// Moves bytes over `streams` connections at once for `length`; up is counted by the app.
///
/// # Errors
/// The first error of any stream.
pub fn bulk(
    address: SocketAddr,
    direction: Direction,
    streams: usize,
    length: Duration,
) -> io::Result<Bulk> {
    let begin = Instant::now();
    let one = || match direction {
        Direction::Up => up(address, length),
        Direction::Down => down(address, length),
    };
    let moved: io::Result<Vec<u64>> = thread::scope(|scope| {
        let running: Vec<_> = (0..streams).map(|_| scope.spawn(one)).collect();
        running
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
            })
            .collect()
    });
    let bytes = moved?.into_iter().sum();
    Ok(Bulk {
        bytes,
        elapsed: begin.elapsed(),
    })
}

fn up(address: SocketAddr, length: Duration) -> io::Result<u64> {
    let mut stream = dial(address, Ask::Sink)?;
    let buffer = vec![0xa5; 256 << 10];
    let begin = Instant::now();
    while begin.elapsed() < length {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total)?;
    Ok(u64::from_be_bytes(total))
}

fn down(address: SocketAddr, length: Duration) -> io::Result<u64> {
    let mut stream = dial(address, Ask::Source)?;
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    let begin = Instant::now();
    while begin.elapsed() < length {
        match read(&mut stream, &mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => total += n as u64,
        }
    }
    Ok(total)
}

/// One byte there and back, again and again for `length`; the times in microseconds, sorted.
///
/// # Errors
/// The socket's.
pub fn ping_pong(address: SocketAddr, length: Duration) -> io::Result<Vec<f64>> {
    let mut stream = dial(address, Ask::Echo)?;
    let mut byte = [7];
    // The first few pay for the connection's set-up.
    for _ in 0..20 {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
    }
    let mut times = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < length {
        let sent = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        times.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}
