//! New connections: how many a second, how long to the first byte, and many held open.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::{Ask, dial, dial_with};

/// Connect, one byte each way, close: how many a second `clients` at once can do.
///
/// # Errors
/// The first client's error.
pub fn connections(address: SocketAddr, clients: usize, length: Duration) -> io::Result<f64> {
    let begin = Instant::now();
    let done: io::Result<Vec<u64>> = thread::scope(|scope| {
        let running: Vec<_> = (0..clients)
            .map(|_| {
                scope.spawn(move || {
                    let mut done = 0;
                    while begin.elapsed() < length {
                        once(address)?;
                        done += 1;
                    }
                    Ok(done)
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
            })
            .collect()
    });
    Ok(done?.into_iter().sum::<u64>() as f64 / begin.elapsed().as_secs_f64())
}

/// From connect to the first byte of the answer, `count` times; microseconds, sorted.
///
/// # Errors
/// The socket's.
pub fn connect_times(address: SocketAddr, count: usize) -> io::Result<Vec<f64>> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        once(address)?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn once(address: SocketAddr) -> io::Result<()> {
    // As clients send a request: in one write.
    let mut stream = dial_with(address, &[Ask::Echo as u8, 1])?;
    stream.read_exact(&mut [0])
}

/// Connections that stay open until dropped.
#[derive(Debug)]
pub struct Held(Vec<TcpStream>);

impl Held {
    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl From<Vec<TcpStream>> for Held {
    fn from(open: Vec<TcpStream>) -> Self {
        Self(open)
    }
}

/// Opens `count` connections, each having moved a byte.
///
/// # Errors
/// The socket's.
pub fn hold(address: SocketAddr, count: usize) -> io::Result<Held> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = dial(address, Ask::Echo)?;
        let mut byte = [1];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        held.push(stream);
    }
    Ok(Held(held))
}
