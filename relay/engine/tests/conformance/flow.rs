//! Bytes on their way: all of them, in order, and no more in memory than has to be.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use relay_engine::{Ending, Engine, Moved, pump, pump_counted};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::support::{
    PATIENCE, Pieces, ended, exchange, pumped, receive, resident, send, tcp_pair, write_until_stuck,
};

/// Megabytes in all, unless `RELAY_CONFORMANCE_MIB` says otherwise.
const BULK_MIB: usize = 256;
/// Readers that stop at once.
const STUCK: usize = 32;
/// Memory that a direction may hold while its reader does not read.
const MEMORY_EACH: usize = 512 << 10;
/// Bytes that sockets' own buffers take in when nobody reads: far less than this on any machine.
const SWALLOWED: usize = 40 << 20;

pub(crate) async fn bulk_arrives_whole_both_ways_at_once(engine: Engine) {
    let megabytes = std::env::var("RELAY_CONFORMANCE_MIB").ok();
    let megabytes = megabytes.map_or(BULK_MIB, |text| text.parse().unwrap());
    let (up, down) = (megabytes << 19, megabytes << 19);
    let (mut left, mut right, pump) = pumped(engine).await;
    exchange(&mut left, &mut right, (up, down), 1, Pieces::Large).await;
    let summary = ended(pump).await;
    assert_eq!(summary.end, Ending::Finished);
    assert_eq!((summary.a_to_b, summary.b_to_a), (up as u64, down as u64));
}

pub(crate) async fn random_pieces_arrive_whole(engine: Engine) {
    for seed in 0..4 {
        let size = StdRng::seed_from_u64(seed).random_range(1..24_usize << 20);
        let (mut left, mut right, pump) = pumped(engine).await;
        let sizes = (size, size / 2);
        exchange(&mut left, &mut right, sizes, seed, Pieces::Random).await;
        let summary = ended(pump).await;
        assert_eq!(summary.end, Ending::Finished);
        assert_eq!(
            (summary.a_to_b, summary.b_to_a),
            (size as u64, size as u64 / 2)
        );
    }
}

pub(crate) async fn a_unix_socket_is_an_end_too(engine: Engine) {
    let (mut left, a) = UnixStream::pair().unwrap();
    let (b, mut right) = tcp_pair().await;
    let pump = tokio::spawn(pump(a, b, engine));
    let (sent, got) = tokio::join!(
        send(&mut left, 5 << 20, 1, Pieces::Random),
        receive(&mut right, 2, Pieces::Random)
    );
    assert_eq!(sent, got);
    right.write_all(b"answer").await.unwrap();
    drop(right);
    let mut answer = Vec::new();
    left.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    assert_eq!(ended(pump).await.end, Ending::Finished);
}

pub(crate) async fn a_reader_that_stops_and_goes_gets_everything(engine: Engine) {
    let (mut left, mut right, pump) = pumped(engine).await;
    let size = 48 << 20;
    let sender = tokio::spawn(async move { send(&mut left, size, 5, Pieces::Large).await });
    let (mut got, mut buffer) = (0, vec![0; 1 << 20]);
    // Long enough to fill every buffer on the way, several times over.
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert!(!sender.is_finished(), "everything was swallowed");
        let stop = got + (4 << 20);
        while got < stop {
            got += right.read(&mut buffer).await.unwrap();
        }
    }
    loop {
        match right.read(&mut buffer).await.unwrap() {
            0 => break,
            read => got += read,
        }
    }
    assert_eq!(got, size);
    sender.await.unwrap();
    drop(right);
    assert_eq!(ended(pump).await.a_to_b, size as u64);
}

pub(crate) async fn slow_readers_hold_senders_back_in_bounded_memory(engine: Engine) {
    let mut pairs = Vec::new();
    for _ in 0..STUCK {
        pairs.push(pumped(engine).await);
    }
    // One that is read first: what an engine sets up once is not a direction's.
    exchange_small(pumped(engine).await).await;
    let before = resident();
    let mut stuck = Vec::new();
    for (mut left, right, pump) in pairs {
        stuck.push(tokio::spawn(async move {
            let taken = write_until_stuck(&mut left, SWALLOWED).await;
            (left, right, pump, taken)
        }));
    }
    let mut pairs = Vec::new();
    for task in stuck {
        pairs.push(task.await.unwrap());
    }
    let grown = resident().saturating_sub(before);
    let allowed = STUCK * MEMORY_EACH + (8 << 20);
    assert!(grown < allowed, "{grown} bytes of memory for {STUCK}");
    // A stuck direction does not hold another pump up.
    exchange_small(pumped(engine).await).await;
    for (mut left, mut right, pump, taken) in pairs {
        assert!(taken < SWALLOWED, "{engine} swallowed {taken} bytes");
        left.shutdown().await.unwrap();
        let mut got = Vec::new();
        right.read_to_end(&mut got).await.unwrap();
        assert!(got.len() == taken && got.iter().all(|byte| *byte == 7));
        drop(right);
        assert_eq!(ended(pump).await.end, Ending::Finished);
    }
}

async fn exchange_small(
    (mut left, mut right, pump): (
        tokio::net::TcpStream,
        tokio::net::TcpStream,
        tokio::task::JoinHandle<relay_engine::Summary>,
    ),
) {
    exchange(&mut left, &mut right, (100_000, 100), 3, Pieces::Large).await;
    ended(pump).await;
}

pub(crate) async fn what_was_moved_is_told_meanwhile(engine: Engine) {
    let (mut left, a) = tcp_pair().await;
    let (b, mut right) = tcp_pair().await;
    let moved = Moved::default();
    let counted = moved.clone();
    let pump = tokio::spawn(async move { pump_counted(a, b, engine, &counted).await });
    left.write_all(&[1; 70_000]).await.unwrap();
    right.read_exact(&mut [0; 70_000]).await.unwrap();
    right.write_all(&[1; 100]).await.unwrap();
    left.read_exact(&mut [0; 100]).await.unwrap();
    let told = async {
        while (moved.a_to_b(), moved.b_to_a()) != (70_000, 100) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, told).await.expect("the counts come");
    drop((left, right));
    ended(pump).await;
}

pub(crate) async fn messages_go_to_and_fro_without_waiting(engine: Engine) {
    let (mut left, mut right, pump) = pumped(engine).await;
    left.set_nodelay(true).unwrap();
    right.set_nodelay(true).unwrap();
    let start = Instant::now();
    let mut message = [0; 64];
    for _ in 0..1000 {
        left.write_all(&message).await.unwrap();
        right.read_exact(&mut message).await.unwrap();
        right.write_all(&message).await.unwrap();
        left.read_exact(&mut message).await.unwrap();
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    drop((left, right));
    let summary = ended(pump).await;
    assert_eq!((summary.a_to_b, summary.b_to_a), (64_000, 64_000));
}
