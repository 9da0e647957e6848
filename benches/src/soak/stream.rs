//! One stream up and one down at the same time, every byte checked where it arrives.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use super::pattern::Pattern;
use crate::load::read;

const CHUNK: usize = 256 << 10;
/// A stream that moves nothing for so long has broken.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the watcher looks, and by how much it notices that the machine itself stood still.
const LOOK: Duration = Duration::from_millis(10);

/// When a run is over.
#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    /// So many bytes were sent, half of them each way.
    Bytes(u64),
    /// The time is over.
    Time(Duration),
}

/// What arrived.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Checked {
    /// Bytes that arrived.
    pub(super) bytes: u64,
    /// Bytes of them that were not what was sent there, and bytes that did not arrive.
    pub(super) bad: u64,
    /// The longest time without a byte in the middle of a stream.
    pub(super) stall: Duration,
    /// When that ended, from the start of the stream.
    pub(super) stall_at: Duration,
    /// The longest time that the machine let this process wait for nothing.
    pub(super) pause: Duration,
    /// How long it took.
    pub(super) elapsed: Duration,
}

/// The far end: hands out each connection that comes.
#[derive(Debug)]
pub(super) struct Far {
    port: u16,
    arrivals: Mutex<Receiver<TcpStream>>,
}

impl Far {
    pub(super) fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let (sender, arrivals) = mpsc::channel();
        thread::Builder::new().name("soak".into()).spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if sender.send(stream).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self {
            port,
            arrivals: Mutex::new(arrivals),
        })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// A connection through `local`: its near and its far end.
    fn connect(&self, local: SocketAddr) -> io::Result<(TcpStream, TcpStream)> {
        let mut near = TcpStream::connect_timeout(&local, PATIENCE)?;
        // A tunnel may connect only when there is something to carry.
        near.write_all(b"!")?;
        let arrivals = self.arrivals.lock().map_err(|_| io::ErrorKind::Other)?;
        let arrived = arrivals.recv_timeout(PATIENCE);
        let mut far = arrived.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        for end in [&near, &far] {
            end.set_read_timeout(Some(PATIENCE))?;
            end.set_write_timeout(Some(PATIENCE))?;
        }
        let mut first = [0];
        far.read_exact(&mut first)?;
        Ok((near, far))
    }
}

struct Shared {
    limit: u64,
    stop: AtomicBool,
    received: AtomicU64,
}

/// Moves checked bulk both ways through `local`, which leads to `far`. `watch` is told now and then
/// which share is done and how many bytes have arrived.
pub(super) fn bulk(
    local: SocketAddr,
    far: &Far,
    until: Until,
    watch: &mut dyn FnMut(f64, u64),
) -> io::Result<Checked> {
    let (up_from, up_to) = far.connect(local)?;
    let (down_to, down_from) = far.connect(local)?;
    let shared = Shared {
        limit: match until {
            Until::Bytes(bytes) => (bytes / 2).next_multiple_of(8),
            Until::Time(_) => u64::MAX - 7,
        },
        stop: AtomicBool::new(false),
        received: AtomicU64::new(0),
    };
    let begin = Instant::now();
    let (pause, ways) = thread::scope(|scope| {
        let shared = &shared;
        let ways = [(1, up_from, up_to), (2, down_from, down_to)].map(|(seed, from, to)| {
            let sender = scope.spawn(move || send(from, seed, shared));
            let receiver = scope.spawn(move || receive(to, seed, shared));
            (sender, receiver)
        });
        let running = || ways.iter().any(|(_, receiver)| !receiver.is_finished());
        let pause = look_on(running, shared, until, watch);
        let broken = |_| io::Error::from(io::ErrorKind::Other);
        let ways = ways.map(|(sender, receiver)| {
            let received = receiver.join().map_err(broken).flatten();
            (sender.join().map_err(broken).flatten(), received)
        });
        (pause, ways)
    });
    let mut all = Checked {
        pause,
        elapsed: begin.elapsed(),
        ..Checked::default()
    };
    for ((sent, received), way) in ways.into_iter().zip(["up", "down"]) {
        // What the receiver saw comes first: a sender's broken pipe may only follow from it.
        let received = received.map_err(|error| told(way, "received", all.elapsed, &error))?;
        let sent = sent.map_err(|error| told(way, "sent", all.elapsed, &error))?;
        all.bytes += received.bytes;
        all.bad += received.bad + sent.saturating_sub(received.bytes);
        if received.stall > all.stall {
            (all.stall, all.stall_at) = (received.stall, received.stall_at);
        }
    }
    Ok(all)
}

fn told(way: &str, what: &str, after: Duration, error: &io::Error) -> io::Error {
    let seconds = after.as_secs_f64();
    let words = match error.kind() {
        io::ErrorKind::WouldBlock => format!("nothing {what} for {} s", PATIENCE.as_secs()),
        _ => format!("nothing more {what}: {error}"),
    };
    io::Error::new(
        error.kind(),
        format!("{way}, after {seconds:.1} s: {words}"),
    )
}

/// Ends the run when it is time; gives the longest pause of the machine meanwhile.
fn look_on(
    running: impl Fn() -> bool,
    shared: &Shared,
    until: Until,
    watch: &mut dyn FnMut(f64, u64),
) -> Duration {
    let (begin, mut pause) = (Instant::now(), Duration::ZERO);
    while running() {
        let before = Instant::now();
        thread::sleep(LOOK);
        pause = pause.max(before.elapsed().saturating_sub(LOOK));
        let received = shared.received.load(Ordering::Relaxed);
        let share = match until {
            Until::Bytes(bytes) => received as f64 / bytes.max(1) as f64,
            Until::Time(length) => begin.elapsed().as_secs_f64() / length.as_secs_f64(),
        };
        if matches!(until, Until::Time(_)) && share >= 1.0 {
            shared.stop.store(true, Ordering::Relaxed);
        }
        watch(share.min(1.0), received);
    }
    pause
}

fn send(mut stream: TcpStream, seed: u64, shared: &Shared) -> io::Result<u64> {
    let (pattern, mut buffer, mut sent) = (Pattern::new(seed), vec![0; CHUNK], 0);
    while sent < shared.limit && !shared.stop.load(Ordering::Relaxed) {
        let left = usize::try_from(shared.limit - sent).unwrap_or(CHUNK);
        let now = &mut buffer[..left.min(CHUNK)];
        pattern.fill(sent, now);
        stream.write_all(now)?;
        sent += now.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(sent)
}

fn receive(mut stream: TcpStream, seed: u64, shared: &Shared) -> io::Result<Checked> {
    let (mut pattern, mut buffer) = (Pattern::new(seed), vec![0; CHUNK]);
    let (mut checked, mut last) = (Checked::default(), None::<Instant>);
    let begin = Instant::now();
    loop {
        let count = read(&mut stream, &mut buffer)?;
        let now = Instant::now();
        if count == 0 {
            return Ok(checked);
        }
        if let Some(last) = last
            && now - last > checked.stall
        {
            (checked.stall, checked.stall_at) = (now - last, now - begin);
        }
        checked.bad += pattern.bad(checked.bytes, &buffer[..count]);
        checked.bytes += count as u64;
        shared.received.fetch_add(count as u64, Ordering::Relaxed);
        // Checking takes time too, which is no stall.
        last = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A forwarder that does something to the first chunk behind `at` bytes of each direction.
    fn forwarder(to: u16, at: u64, mischief: fn(&mut Vec<u8>)) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let local = listener.local_addr().unwrap();
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let far = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).unwrap();
                let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                thread::spawn(move || pump(near, far, at, mischief));
                thread::spawn(move || pump(far_too, near_too, at, mischief));
            }
        });
        local
    }

    fn pump(mut from: TcpStream, mut to: TcpStream, at: u64, mischief: fn(&mut Vec<u8>)) {
        let (mut buffer, mut moved, mut done) = (vec![0; 65_536], 0, false);
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mut chunk = buffer[..count].to_vec();
            moved += count as u64;
            if moved > at && !done {
                mischief(&mut chunk);
                done = true;
            }
            if to.write_all(&chunk).is_err() {
                return;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    fn through(mischief: fn(&mut Vec<u8>)) -> io::Result<Checked> {
        let far = Far::start()?;
        let local = forwarder(far.port(), 1 << 20, mischief);
        bulk(local, &far, Until::Bytes(8 << 20), &mut |_, _| {})
    }

    #[test]
    fn a_forwarder_that_does_its_job_has_no_bad_byte() {
        let checked = through(|_| {}).unwrap();
        assert_eq!((checked.bytes, checked.bad), (8 << 20, 0));
    }

    #[test]
    fn each_changed_byte_is_counted() {
        let checked = through(|chunk| chunk[0] ^= 0x80).unwrap();
        assert_eq!(checked.bad, 2);
    }

    #[test]
    fn bytes_that_are_missing_are_bad_ones() {
        let checked = through(|chunk| chunk.truncate(chunk.len() - 8)).unwrap();
        assert!(checked.bad > 1000, "{checked:?}");
        assert_eq!(checked.bytes, (8 << 20) - 16);
    }

    #[test]
    fn a_stall_in_the_middle_is_measured() {
        let checked = through(|_| thread::sleep(Duration::from_millis(250))).unwrap();
        assert!(checked.stall >= Duration::from_millis(240), "{checked:?}");
        assert_eq!(checked.bad, 0);
    }

    #[test]
    fn a_run_by_time_ends_with_it() {
        let far = Far::start().unwrap();
        let local = (Ipv4Addr::LOCALHOST, far.port()).into();
        let length = Duration::from_millis(200);
        let mut shares = Vec::new();
        let checked = bulk(local, &far, Until::Time(length), &mut |share, _| {
            shares.push(share)
        });
        let checked = checked.unwrap();
        assert!(checked.elapsed >= length && checked.bytes > 0 && checked.bad == 0);
        assert_eq!(shares.last(), Some(&1.0));
    }
}
