//! What a workspace serves in a test, and the clients that check every byte of it.
//!
//! The TCP app reads one command byte:
//! `E` echo until EOF · `U` + length: take bytes, answer their hash · `D` + length: send bytes, then
//! their hash · `H` take bytes until EOF, then answer count and hash · `R` reset the connection ·
//! `L` say "bye", end its own direction, then count what still comes.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use crate::net::Host;

const CHUNK: usize = 256 * 1024;
const HASH: usize = 32;

/// An app on a thread of its own inside a host. It ends when dropped.
pub struct App {
    /// Bytes that came after the app had ended its own direction (command `L`).
    pub after_bye: Arc<AtomicU64>,
    /// Connections that ended by EOF (not by reset) after `L`.
    pub clean_ends: Arc<AtomicU64>,
    /// Connections accepted.
    pub accepted: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl App {
    /// Serves TCP and UDP (echo) on the given address of `host`.
    ///
    /// # Panics
    /// When the address is taken.
    pub fn start(host: &Host, at: impl Into<SocketAddr>) -> App {
        let at = at.into();
        App::on(&[host.listen(at)], host.udp(at))
    }

    /// Serves TCP on many ports, with one UDP socket beside them.
    ///
    /// # Panics
    /// When the sockets cannot be made non-blocking.
    pub fn on(listeners: &[std::net::TcpListener], udp: std::net::UdpSocket) -> App {
        let listeners: Vec<_> = listeners
            .iter()
            .map(|listener| listener.try_clone().expect("listener"))
            .collect();
        let (after_bye, clean_ends, accepted) =
            <(Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let counters = Counters {
            after_bye: Arc::clone(&after_bye),
            clean_ends: Arc::clone(&clean_ends),
            accepted: Arc::clone(&accepted),
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("runtime").block_on(async move {
                for listener in listeners {
                    tokio::spawn(accept_loop(listener, counters.clone()));
                }
                tokio::spawn(echo_datagrams(udp));
                let _ = stopped.await;
            });
        });
        App {
            after_bye,
            clean_ends,
            accepted,
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Clone)]
struct Counters {
    after_bye: Arc<AtomicU64>,
    clean_ends: Arc<AtomicU64>,
    accepted: Arc<AtomicU64>,
}

async fn accept_loop(listener: std::net::TcpListener, counters: Counters) {
    listener.set_nonblocking(true).expect("non-blocking");
    let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        counters.accepted.fetch_add(1, Ordering::Relaxed);
        let counters = counters.clone();
        tokio::spawn(async move {
            let _ = serve(stream, counters).await;
        });
    }
}

async fn serve(mut stream: tokio::net::TcpStream, counters: Counters) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match stream.read_u8().await? {
        b'E' => {
            let mut buffer = vec![0; 16 * 1024];
            loop {
                let count = stream.read(&mut buffer).await?;
                if count == 0 {
                    return Ok(());
                }
                stream.write_all(&buffer[..count]).await?;
            }
        }
        b'U' => {
            let mut left = stream.read_u64().await?;
            let (mut hash, mut buffer) = (Sha256::new(), vec![0; CHUNK]);
            while left > 0 {
                let room = buffer.len().min(usize::try_from(left).unwrap_or(CHUNK));
                let count = stream.read(&mut buffer[..room]).await?;
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                hash.update(&buffer[..count]);
                left -= count as u64;
            }
            stream.write_all(&hash.finalize()).await
        }
        b'D' => {
            let mut left = stream.read_u64().await?;
            let (mut hash, mut pattern) = (Sha256::new(), Pattern::new(left));
            while left > 0 {
                let chunk = pattern.next_chunk();
                let count = chunk.len().min(usize::try_from(left).unwrap_or(CHUNK));
                hash.update(&chunk[..count]);
                stream.write_all(&chunk[..count]).await?;
                left -= count as u64;
            }
            stream.write_all(&hash.finalize()).await
        }
        b'H' => {
            let mut data = Vec::new();
            stream.read_to_end(&mut data).await?;
            let answer = format!("{} {}", data.len(), hex::encode(Sha256::digest(&data)));
            stream.write_all(answer.as_bytes()).await?;
            stream.shutdown().await
        }
        b'L' => {
            stream.write_all(b"bye").await?;
            stream.shutdown().await?;
            let mut buffer = vec![0; CHUNK];
            loop {
                let count = stream.read(&mut buffer).await?;
                if count == 0 {
                    counters.clean_ends.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                counters
                    .after_bye
                    .fetch_add(count as u64, Ordering::Relaxed);
            }
        }
        b'R' => {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            Ok(())
        }
        _ => Ok(()),
    }
}

async fn echo_datagrams(socket: std::net::UdpSocket) {
    socket.set_nonblocking(true).expect("non-blocking");
    let socket = tokio::net::UdpSocket::from_std(socket).expect("UDP socket");
    let mut buffer = vec![0; 65_536];
    loop {
        if let Ok((count, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..count], from).await;
        }
    }
}

/// Bytes that look random, are the same for the same seed, and cost little.
pub struct Pattern {
    state: u64,
    chunk: Vec<u8>,
}

impl Pattern {
    /// The pattern of a seed.
    pub fn new(seed: u64) -> Pattern {
        Pattern {
            state: seed ^ 0x9e37_79b9_7f4a_7c15,
            chunk: vec![0; CHUNK],
        }
    }

    /// The next bytes of the pattern.
    pub fn next_chunk(&mut self) -> &[u8] {
        for word in self.chunk.chunks_exact_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            word.copy_from_slice(&self.state.to_le_bytes());
        }
        &self.chunk
    }
}

/// Sends `bytes` to the app, which must answer their hash. Says how long it took.
///
/// # Errors
/// When the connection fails, or as `InvalidData` when the hash differs.
pub fn upload(mut stream: TcpStream, bytes: u64) -> io::Result<Duration> {
    let start = Instant::now();
    stream.write_all(&command(b'U', bytes))?;
    let (mut hash, mut pattern, mut left) = (Sha256::new(), Pattern::new(!bytes), bytes);
    while left > 0 {
        let chunk = pattern.next_chunk();
        let count = chunk.len().min(usize::try_from(left).unwrap_or(CHUNK));
        hash.update(&chunk[..count]);
        stream.write_all(&chunk[..count])?;
        left -= count as u64;
    }
    check_hash(&mut stream, hash, start)
}

/// Takes `bytes` from the app and compares their hash with the one it sends behind them.
///
/// # Errors
/// As [`upload`].
pub fn download(mut stream: TcpStream, bytes: u64) -> io::Result<Duration> {
    let start = Instant::now();
    stream.write_all(&command(b'D', bytes))?;
    let (mut hash, mut buffer, mut left) = (Sha256::new(), vec![0; CHUNK], bytes);
    while left > 0 {
        let room = buffer.len().min(usize::try_from(left).unwrap_or(CHUNK));
        let count = match stream.read(&mut buffer[..room]) {
            // A process that was stopped for a while.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hash.update(&buffer[..count]);
        left -= count as u64;
    }
    check_hash(&mut stream, hash, start)
}

fn command(letter: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![letter];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

fn check_hash(stream: &mut TcpStream, hash: Sha256, start: Instant) -> io::Result<Duration> {
    let mut theirs = [0; HASH];
    stream.read_exact(&mut theirs)?;
    if theirs != hash.finalize().as_slice() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "hashes differ"));
    }
    Ok(start.elapsed())
}

/// Asks the app for one echo and checks it.
///
/// # Errors
/// When the connection fails or other bytes come back.
pub fn echo(mut stream: &TcpStream, data: &[u8]) -> io::Result<()> {
    stream.write_all(b"E")?;
    echo_more(stream, data)
}

/// One more echo on a connection that [`echo`] used.
///
/// # Errors
/// As [`echo`].
pub fn echo_more(mut stream: &TcpStream, data: &[u8]) -> io::Result<()> {
    stream.write_all(data)?;
    let mut back = vec![0; data.len()];
    stream.read_exact(&mut back)?;
    if back != data {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "echo differs"));
    }
    Ok(())
}

/// A stream that is used all the time: an echo each 10 ms, every byte checked.
pub struct Ticker {
    stop: Arc<AtomicBool>,
    shared: Arc<Ticks>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Default)]
struct Ticks {
    count: AtomicU64,
    longest: AtomicU64,
}

impl Ticker {
    /// Starts ticking on a fresh connection to the app.
    pub fn start(stream: TcpStream) -> Ticker {
        let (stop, shared) = <(Arc<AtomicBool>, Arc<Ticks>)>::default();
        let (stopped, ticks) = (Arc::clone(&stop), Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            let mut data = [0; 512];
            echo(&stream, &data)?;
            while !stopped.load(Ordering::Relaxed) {
                let count = ticks.count.load(Ordering::Relaxed);
                data[..8].copy_from_slice(&count.to_le_bytes());
                let start = Instant::now();
                echo_more(&stream, &data)?;
                let took = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                ticks.longest.fetch_max(took, Ordering::Relaxed);
                ticks.count.store(count + 1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        });
        Ticker {
            stop,
            shared,
            thread: Some(thread),
        }
    }

    /// Lets it tick until `more` further echoes came; false when they do not come in time.
    pub fn progress(&self, more: u64, limit: Duration) -> bool {
        let goal = self.shared.count.load(Ordering::Relaxed) + more;
        crate::poll(limit, || {
            (self.shared.count.load(Ordering::Relaxed) >= goal).then_some(())
        })
        .is_some()
    }

    /// The longest that one echo took since the last call.
    pub fn take_longest(&self) -> Duration {
        Duration::from_millis(self.shared.longest.swap(0, Ordering::Relaxed))
    }

    /// Ends it and says whether the stream was whole to the end.
    ///
    /// # Errors
    /// What ended the stream before.
    ///
    /// # Panics
    /// When its thread did.
    pub fn stop(mut self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("runs").join().expect("ticker")
    }
}
