//! Applications at the two ends of a pump.

use std::io;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use relay_engine::{Engine, Summary, pump};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Nothing in this suite takes so long unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    meet(&listener).await
}

/// A connection through a listener that nobody else uses.
pub(crate) async fn meet(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// Two applications with a pump between them.
pub(crate) async fn pumped(engine: Engine) -> (TcpStream, TcpStream, JoinHandle<Summary>) {
    let (left, a) = tcp_pair().await;
    let (b, right) = tcp_pair().await;
    (left, right, tokio::spawn(pump(a, b, engine)))
}

pub(crate) async fn ended(pump: JoinHandle<Summary>) -> Summary {
    let summary = timeout(PATIENCE, pump).await;
    summary.expect("the pump ends").unwrap()
}

/// What random bytes are sent in: sizes, and pauses between them.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Pieces {
    /// Large ones without a pause.
    Large,
    /// All sizes, with pauses now and then.
    Random,
}

/// Sends `size` random bytes, and ends. Returns their hash.
pub(crate) async fn send(
    to: &mut (impl AsyncWriteExt + Unpin),
    size: usize,
    seed: u64,
    pieces: Pieces,
) -> [u8; 32] {
    let mut random = StdRng::seed_from_u64(seed);
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    random.fill_bytes(&mut block);
    let mut left = size;
    while left > 0 {
        let most = match pieces {
            Pieces::Random if random.random_bool(0.3) => 64,
            _ => block.len() / 2,
        };
        let start = random.random_range(0..block.len() / 2);
        let length = random.random_range(1..=most).min(left);
        let piece = &block[start..start + length];
        to.write_all(piece).await.unwrap();
        hash.update(piece);
        left -= length;
        if pieces == Pieces::Random && random.random_bool(0.05) {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..3))).await;
        }
    }
    to.shutdown().await.unwrap();
    hash.finalize().into()
}

/// Reads to the end. Returns the hash of all.
pub(crate) async fn receive(
    from: &mut (impl AsyncReadExt + Unpin),
    seed: u64,
    pieces: Pieces,
) -> [u8; 32] {
    let mut random = StdRng::seed_from_u64(seed);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let most = match pieces {
            Pieces::Random if random.random_bool(0.3) => 100,
            _ => buffer.len(),
        };
        let read = from.read(&mut buffer[..most]).await.unwrap();
        if read == 0 {
            return hash.finalize().into();
        }
        hash.update(&buffer[..read]);
        if pieces == Pieces::Random && random.random_bool(0.02) {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..3))).await;
        }
    }
}

/// Sends and receives at both ends at once; what arrives must be what was sent.
pub(crate) async fn exchange(
    left: &mut TcpStream,
    right: &mut TcpStream,
    (up, down): (usize, usize),
    seed: u64,
    pieces: Pieces,
) {
    let ((mut left_in, mut left_out), (mut right_in, mut right_out)) =
        (left.split(), right.split());
    let (sent_up, got_up, sent_down, got_down) = tokio::join!(
        send(&mut left_out, up, seed, pieces),
        receive(&mut right_in, seed + 100, pieces),
        send(&mut right_out, down, seed + 200, pieces),
        receive(&mut left_in, seed + 300, pieces),
    );
    assert_eq!(sent_up, got_up, "{up} bytes up, seed {seed}");
    assert_eq!(sent_down, got_down, "{down} bytes down, seed {seed}");
}

/// Reads until the end: nothing when it is orderly, or the error.
pub(crate) async fn end_of(stream: &mut TcpStream) -> Option<io::ErrorKind> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = timeout(PATIENCE, stream.read(&mut buffer)).await;
        match read.expect("an end") {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) => return Some(error.kind()),
        }
    }
}

/// Writes until nothing was taken for a while. Returns how much was.
pub(crate) async fn write_until_stuck(stream: &mut TcpStream, most: usize) -> usize {
    let block = vec![7; 64 << 10];
    let mut taken = 0;
    while taken < most {
        let write = stream.write(&block[..block.len().min(most - taken)]);
        match timeout(Duration::from_millis(150), write).await {
            Ok(written) => taken += written.unwrap(),
            Err(_) => break,
        }
    }
    taken
}

/// How many descriptors this process has open.
pub(crate) fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Bytes of memory that this process has in use.
pub(crate) fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}
