//! Datagrams at an offered rate.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg};

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

    /// Datagrams a second that were sent.
    pub fn offered(&self) -> f64 {
        self.sent as f64 / self.elapsed.as_secs_f64()
    }

    /// Datagrams a second that arrived.
    pub fn rate(&self) -> f64 {
        self.received as f64 / self.elapsed.as_secs_f64()
    }
}

/// Most datagrams in one call.
const BATCH: usize = 32;

/// Several datagrams in one call: the sender must not be what is measured.
struct Batch {
    headers: MultiHeaders<SockaddrStorage>,
}

impl Batch {
    fn new() -> Self {
        Self {
            headers: MultiHeaders::preallocate(BATCH, None),
        }
    }

    fn send(&mut self, socket: &UdpSocket, payload: &[u8], count: usize) -> nix::Result<usize> {
        let slices = [[IoSlice::new(payload)]; BATCH];
        let (slices, connected) = (&slices[..count], &[None; BATCH][..count]);
        let flags = MsgFlags::empty();
        let descriptor = socket.as_raw_fd();
        let sent = sendmmsg(descriptor, &mut self.headers, slices, connected, [], flags)?;
        Ok(sent.count())
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
    let mut batch = Batch::new();
    let begin = Instant::now();
    let mut sent = 0;
    while begin.elapsed() < length {
        let due = (begin.elapsed().as_secs_f64() * rate as f64) as u64;
        while sent < due {
            let count = usize::try_from(due - sent).unwrap_or(BATCH).min(BATCH);
            match batch.send(&socket, &payload, count) {
                Ok(count) => sent += count as u64,
                Err(Errno::ECONNREFUSED) => {}
                Err(error) => return Err(error.into()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered_to_the_app_itself_arrives_at_about_the_rate() {
        let app = App::start().unwrap();
        let address = (Ipv4Addr::LOCALHOST, app.port()).into();
        let length = Duration::from_millis(300);
        let offered = datagrams(&app, address, 64, 2_000, length).unwrap();
        assert!(offered.received > 0 && offered.received <= offered.sent);
        assert!(offered.offered() <= 2_100.0, "{offered:?}");
    }
}
