//! Datagrams at an offered rate.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use super::App;

/// What was offered and what arrived.
#[derive(Clone, Copy, Debug)]
pub struct Offered {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that the app received.
    pub received: u64,
    /// How long the sending took.
    pub elapsed: Duration,
}

impl Offered {
    /// Share lost, percent.
    pub fn loss(&self) -> f64 {
        100.0 * self.sent.saturating_sub(self.received) as f64 / self.sent.max(1) as f64
    }

    /// Datagrams a second that arrived.
    pub fn rate(&self) -> f64 {
        self.received as f64 / self.elapsed.as_secs_f64()
    }
}

/// Offers `rate` datagrams a second of `size` bytes for `length` to `address`, behind which `app`
/// counts.
///
/// # Errors
/// The socket's.
pub fn datagrams(
    app: &App,
    address: SocketAddr,
    size: usize,
    rate: u64,
    length: Duration,
) -> io::Result<Offered> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(address)?;
    let payload = vec![0x33; size];
    // The flow is set up before it is measured.
    let before = app.datagrams();
    let warm = Instant::now();
    while app.datagrams() == before && warm.elapsed() < Duration::from_secs(5) {
        socket.send(&payload)?;
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(100));
    let before = app.datagrams();
    let begin = Instant::now();
    let mut sent = 0;
    while begin.elapsed() < length {
        let due = (begin.elapsed().as_secs_f64() * rate as f64) as u64;
        while sent < due {
            match socket.send(&payload) {
                Ok(_) => sent += 1,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
        }
        thread::sleep(Duration::from_micros(200));
    }
    let elapsed = begin.elapsed();
    thread::sleep(Duration::from_millis(300));
    Ok(Offered {
        sent,
        received: app.datagrams() - before,
        elapsed,
    })
}
