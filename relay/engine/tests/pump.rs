//! The pump between real sockets: every byte, every kind of end, and what it costs to be idle.

#![allow(clippy::unwrap_used)]

use std::io;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use relay_engine::{Ending, Engine, Side, Summary, pump};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const ENGINES: [Engine; 3] = [Engine::Auto, Engine::Copy, Engine::Splice];

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// Two applications with a pump between them.
async fn pumped(engine: Engine) -> (TcpStream, TcpStream, JoinHandle<Summary>) {
    let (left, a) = tcp_pair().await;
    let (b, right) = tcp_pair().await;
    (left, right, tokio::spawn(pump(a, b, engine)))
}

async fn ended(pump: JoinHandle<Summary>) -> Summary {
    timeout(Duration::from_secs(10), pump)
        .await
        .expect("the pump ends")
        .unwrap()
}

/// Sends `size` random bytes in random pieces with random pauses, and ends. Returns their hash.
async fn send(to: &mut (impl AsyncWriteExt + Unpin), size: usize, seed: u64) -> [u8; 32] {
    let mut random = StdRng::seed_from_u64(seed);
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    random.fill_bytes(&mut block);
    let mut left = size;
    while left > 0 {
        let most = if random.random_bool(0.3) { 64 } else { 1 << 20 };
        let start = random.random_range(0..block.len() / 2);
        let length = random
            .random_range(1..=most)
            .min(left)
            .min(block.len() - start);
        to.write_all(&block[start..start + length]).await.unwrap();
        hash.update(&block[start..start + length]);
        left -= length;
        if random.random_bool(0.05) {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..3))).await;
        }
    }
    to.shutdown().await.unwrap();
    hash.finalize().into()
}

/// Reads to the end in random pieces with random pauses. Returns the hash of all.
async fn receive(from: &mut (impl AsyncReadExt + Unpin), seed: u64) -> [u8; 32] {
    let mut random = StdRng::seed_from_u64(seed);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let most = if random.random_bool(0.3) {
            100
        } else {
            buffer.len()
        };
        let read = from.read(&mut buffer[..most]).await.unwrap();
        if read == 0 {
            return hash.finalize().into();
        }
        hash.update(&buffer[..read]);
        if random.random_bool(0.02) {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..3))).await;
        }
    }
}

#[tokio::test]
async fn random_pieces_both_ways_arrive_whole_with_every_engine() {
    for (round, engine) in ENGINES.into_iter().cycle().take(9).enumerate() {
        let seed = round as u64;
        let size = StdRng::seed_from_u64(seed).random_range(1..24_usize << 20);
        let (left, right, pump) = pumped(engine).await;
        let (mut left_in, mut left_out) = left.into_split();
        let (mut right_in, mut right_out) = right.into_split();
        let (sent_up, got_up, sent_down, got_down) = tokio::join!(
            send(&mut left_out, size, seed),
            receive(&mut right_in, seed + 100),
            send(&mut right_out, size / 2, seed + 200),
            receive(&mut left_in, seed + 300),
        );
        assert_eq!(sent_up, got_up, "{engine} {size}");
        assert_eq!(sent_down, got_down, "{engine} {size}");
        let summary = ended(pump).await;
        assert_eq!(summary.end, Ending::Finished);
        assert_eq!(
            (summary.a_to_b, summary.b_to_a),
            (size as u64, size as u64 / 2)
        );
    }
}

#[tokio::test]
async fn a_unix_socket_is_an_end_too() {
    for engine in ENGINES {
        let (mut left, a) = UnixStream::pair().unwrap();
        let (b, mut right) = tcp_pair().await;
        let pump = tokio::spawn(pump(a, b, engine));
        let (sent, got) = tokio::join!(send(&mut left, 5 << 20, 1), async {
            receive(&mut right, 2).await
        });
        assert_eq!(sent, got);
        drop(right);
        assert_eq!(ended(pump).await.end, Ending::Finished);
    }
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other_open() {
    for engine in ENGINES {
        for left_first in [true, false] {
            let (mut left, mut right, pump) = pumped(engine).await;
            let (first, second) = if left_first {
                (&mut left, &mut right)
            } else {
                (&mut right, &mut left)
            };
            first.write_all(b"request").await.unwrap();
            first.shutdown().await.unwrap();
            let mut request = Vec::new();
            second.read_to_end(&mut request).await.unwrap();
            assert_eq!(request, b"request");
            tokio::time::sleep(Duration::from_millis(20)).await;
            let response = vec![7; 3 << 20];
            let (sent, mut got) = (response.clone(), Vec::new());
            let (_, read) = tokio::join!(
                async {
                    second.write_all(&sent).await.unwrap();
                    second.shutdown().await.unwrap();
                },
                first.read_to_end(&mut got)
            );
            read.unwrap();
            assert!(got == response, "{engine}: {} bytes", got.len());
            assert_eq!(ended(pump).await.end, Ending::Finished);
        }
    }
}

async fn read_error(stream: &mut TcpStream) -> Option<io::ErrorKind> {
    let mut buffer = [0; 4096];
    loop {
        match timeout(Duration::from_secs(5), stream.read(&mut buffer))
            .await
            .expect("an end")
        {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) => return Some(error.kind()),
        }
    }
}

#[tokio::test]
async fn a_reset_is_carried_as_a_reset_from_either_side() {
    for engine in ENGINES {
        for side in [Side::A, Side::B] {
            let (left, right, pump) = pumped(engine).await;
            let (broken, mut other) = if side == Side::A {
                (left, right)
            } else {
                (right, left)
            };
            other.write_all(b"hello").await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
            relay_engine::abort(broken);
            assert_eq!(
                read_error(&mut other).await,
                Some(io::ErrorKind::ConnectionReset)
            );
            assert_eq!(ended(pump).await.end, Ending::Reset(side));
        }
    }
}

#[tokio::test]
async fn a_reset_is_carried_after_the_end_of_a_direction() {
    for engine in ENGINES {
        let (mut left, mut right, pump) = pumped(engine).await;
        left.shutdown().await.unwrap();
        assert_eq!(right.read(&mut [0; 1]).await.unwrap(), 0);
        relay_engine::abort(left);
        // Nobody reads or writes on the broken side: the pump has to notice by itself.
        assert_eq!(ended(pump).await.end, Ending::Reset(Side::A));
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(
            right.take_error().unwrap().is_some(),
            "{engine}: ended without a reset"
        );
    }
}

#[tokio::test]
async fn a_reset_is_carried_while_the_other_side_does_not_read() {
    for engine in ENGINES {
        let (mut left, mut right, pump) = pumped(engine).await;
        let stuck = timeout(
            Duration::from_millis(300),
            left.write_all(&vec![0; 64 << 20]),
        )
        .await;
        assert!(stuck.is_err(), "64 MiB fit into socket buffers");
        relay_engine::abort(left);
        assert_eq!(ended(pump).await.end, Ending::Reset(Side::A));
        assert_eq!(
            read_error(&mut right).await,
            Some(io::ErrorKind::ConnectionReset)
        );
    }
}

#[tokio::test]
async fn what_was_sent_before_a_reset_still_arrives() {
    for engine in ENGINES {
        let (mut left, mut right, pump) = pumped(engine).await;
        // Unread bytes at close make the kernel reset instead of finishing.
        right.write_all(b"never read").await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
        left.write_all(&[1; 100_000]).await.unwrap();
        drop(left);
        let mut got = Vec::new();
        let result = timeout(Duration::from_secs(5), right.read_to_end(&mut got))
            .await
            .unwrap();
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(got.len(), 100_000, "{engine}");
        assert_eq!(ended(pump).await.end, Ending::Reset(Side::A));
    }
}

#[tokio::test]
async fn a_side_that_stopped_reading_holds_the_sender_back_and_loses_nothing() {
    for engine in ENGINES {
        let (mut left, mut right, pump) = pumped(engine).await;
        let size = 32 << 20;
        let sender = tokio::spawn(async move { send(&mut left, size, 5).await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!sender.is_finished(), "{engine} swallowed everything");
        assert_eq!(receive(&mut right, 6).await, sender.await.unwrap());
        drop(right);
        ended(pump).await;
    }
}

#[tokio::test]
async fn five_hundred_pumps_run_at_once() {
    relay_engine::limits::raise_descriptor_limit();
    let mut tasks = Vec::new();
    for seed in 0..500 {
        tasks.push(tokio::spawn(async move {
            let (left, right, pump) = pumped(Engine::Auto).await;
            let ((mut left_in, mut left_out), (mut right_in, mut right_out)) =
                (left.into_split(), right.into_split());
            let (up, got_up, down, got_down) = tokio::join!(
                send(&mut left_out, 100_000, seed),
                receive(&mut right_in, seed),
                send(&mut right_out, 50_000, seed),
                receive(&mut left_in, seed),
            );
            assert!(up == got_up && down == got_down);
            assert_eq!(ended(pump).await.end, Ending::Finished);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn messages_go_to_and_fro_without_waiting() {
    let (mut left, mut right, pump) = pumped(Engine::Auto).await;
    let start = Instant::now();
    let mut message = [0; 64];
    for _ in 0..1000 {
        left.write_all(&message).await.unwrap();
        right.read_exact(&mut message).await.unwrap();
        right.write_all(&message).await.unwrap();
        left.read_exact(&mut message).await.unwrap();
    }
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    drop(left);
    drop(right);
    ended(pump).await;
}

#[tokio::test]
async fn an_idle_pump_is_small() {
    let (_left, a) = tcp_pair().await;
    let (b, _right) = tcp_pair().await;
    let pump = pump(a, b, Engine::Auto);
    let size = std::mem::size_of_val(&pump);
    assert!(size < 4096, "{size}");
}
