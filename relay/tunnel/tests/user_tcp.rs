//! relay's own TCP against the kernel's, over a TUN device in a private namespace and a path with
//! faults between them, in both directions. A machine that cannot have a kernel stack skips with
//! its reason.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "user_tcp/fairness.rs"]
mod fairness;
#[path = "user_tcp/lab.rs"]
mod lab;
#[path = "../../tcp/tests/sim/path.rs"]
#[allow(dead_code, unreachable_pub)]
mod path;

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant as Clock};

use lab::{Lab, Work};
use path::{PathOptions, mbit};
use relay_tcp::{Algorithm, CloseReason, Config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

const KERNEL: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1);
const USER: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 2);
const PATIENCE: Duration = Duration::from_secs(120);
const MEBIBYTE: u64 = 1 << 20;
/// Packets without data are shorter.
const ACK: usize = 200;

/// The byte at `position` of every stream.
fn byte_at(position: u64) -> u8 {
    (position.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn fill(room: &mut [u8], from: u64) {
    for (at, byte) in (from..).zip(room) {
        *byte = byte_at(at);
    }
}

fn check(bytes: &[u8], from: u64) {
    let wrong = (from..)
        .zip(bytes)
        .find(|(at, byte)| **byte != byte_at(*at));
    assert_eq!(wrong, None, "a wrong byte");
}

async fn kernel_sends(stream: &mut TcpStream, total: u64) {
    let mut block = vec![0; 256 << 10];
    let mut sent = 0;
    while sent < total {
        let count = (total - sent).min(block.len() as u64) as usize;
        fill(&mut block[..count], sent);
        timeout(PATIENCE, stream.write_all(&block[..count]))
            .await
            .unwrap()
            .unwrap();
        sent += count as u64;
    }
    stream.shutdown().await.unwrap();
}

async fn kernel_receives(stream: &mut TcpStream) -> u64 {
    let mut block = vec![0; 256 << 10];
    let mut received = 0;
    loop {
        let count = timeout(PATIENCE, stream.read(&mut block))
            .await
            .unwrap()
            .unwrap();
        if count == 0 {
            return received;
        }
        check(&block[..count], received);
        received += count as u64;
    }
}

fn config() -> Config {
    Config {
        mtu: 1420,
        ..Config::default()
    }
}

/// A path that does everything wrong.
fn bad() -> PathOptions {
    PathOptions {
        delay: Duration::from_millis(5),
        jitter: Duration::from_millis(1),
        loss: 0.01,
        duplicate: 0.005,
        corrupt: 0.005,
        reorder: 0.01,
        detour: Duration::from_millis(3),
        ..PathOptions::default()
    }
}

fn near() -> PathOptions {
    PathOptions {
        delay: Duration::ZERO,
        ..PathOptions::default()
    }
}

/// How much more is moved with `RELAY_LONG`: 10.6 GiB in all instead of 34 MiB.
fn factor() -> u32 {
    match is_long() {
        true => 320,
        false => 1,
    }
}

fn is_long() -> bool {
    std::env::var_os("RELAY_LONG").is_some_and(|value| value == "1")
}

/// Bytes that one test moves.
fn amount(mebibytes: u64) -> u64 {
    mebibytes * u64::from(factor()) * MEBIBYTE
}

fn tell(what: &str, bytes: u64, since: Clock) -> f64 {
    let rate = bytes as f64 * 8e-6 / since.elapsed().as_secs_f64();
    println!("{what}: {rate:.0} Mbit/s");
    rate
}

/// Our end opens and sends; the kernel receives.
async fn upload(config: Config, options: PathOptions, total: u64) -> Option<f64> {
    let (mut lab, kernel) = Lab::new(config, options, Work::Receive)?;
    let mut incoming = kernel.incoming();
    let start = Clock::now();
    let receiver = tokio::spawn(async move {
        let mut stream = incoming.recv().await.unwrap().accept().await.unwrap();
        let received = kernel_receives(&mut stream).await;
        let end = Clock::now();
        stream.shutdown().await.unwrap();
        (received, end, stream)
    });
    lab.connect(80, Work::Send(total));
    lab.run(1).await;
    let (received, end, _stream) = receiver.await.unwrap();
    assert_eq!(received, total);
    assert_eq!(lab.flows[0].over, Some(CloseReason::Finished));
    Some(total as f64 * 8e-6 / (end - start).as_secs_f64())
}

/// The kernel opens and sends; our end receives.
async fn download(config: Config, options: PathOptions, total: u64) -> Option<f64> {
    let (mut lab, kernel) = Lab::new(config, options, Work::Receive)?;
    let start = Clock::now();
    let sender = tokio::spawn(async move {
        let mut stream = kernel
            .connect(KERNEL, SocketAddrV6::new(USER, 80, 0, 0))
            .await
            .unwrap();
        kernel_sends(&mut stream, total).await;
        assert_eq!(kernel_receives(&mut stream).await, 0);
    });
    lab.run(1).await;
    let rate = tell("download", total, start);
    sender.await.unwrap();
    assert_eq!(lab.flows[0].received, total);
    Some(rate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kernel_receives_over_a_clean_and_over_a_bad_path() {
    for algorithm in [Algorithm::Bbr, Algorithm::Cubic] {
        for options in [near(), bad()] {
            let config = Config {
                algorithm,
                ..config()
            };
            let total = if options.loss == 0.0 {
                amount(4)
            } else {
                amount(2)
            };
            let Some(rate) = upload(config, options, total).await else {
                return;
            };
            println!("upload with {algorithm:?}: {rate:.0} Mbit/s");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kernel_sends_over_a_clean_and_over_a_bad_path() {
    for options in [near(), bad()] {
        let total = if options.loss == 0.0 {
            amount(4)
        } else {
            amount(2)
        };
        if download(config(), options, total).await.is_none() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_cross_long_paths_with_loss() {
    let options = PathOptions {
        delay: Duration::from_millis(10),
        loss: 0.01,
        ..PathOptions::default()
    };
    let Some(rate) = upload(config(), options.clone(), amount(2)).await else {
        return;
    };
    println!("20 ms, 1 %: user {rate:.0} Mbit/s");
    download(config(), options, amount(2)).await;
    let options = PathOptions {
        rate: mbit(300),
        queue: 1 << 20,
        delay: Duration::from_millis(20),
        loss: 0.005,
        ..PathOptions::default()
    };
    let Some(rate) = upload(config(), options.clone(), amount(2)).await else {
        return;
    };
    println!("40 ms, 0.5 %, 300 Mbit/s: user {rate:.0} Mbit/s");
    download(config(), options, amount(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extensions_may_be_missing() {
    for missing in 0..4 {
        let config = Config {
            timestamps: missing != 0,
            sack: missing != 1,
            window_scaling: missing != 2,
            ecn: missing != 3,
            ..config()
        };
        let Some(_) = upload(config.clone(), bad(), amount(1)).await else {
            return;
        };
        download(config, bad(), amount(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_echo_at_once() {
    const FLOWS: usize = 32;
    let Some((mut lab, kernel)) = Lab::new(config(), bad(), Work::Echo) else {
        return;
    };
    let (done, mut all) = mpsc::unbounded_channel();
    for port in 0..FLOWS as u16 {
        let (kernel, done) = (kernel.clone(), done.clone());
        tokio::spawn(async move {
            let remote = SocketAddrV6::new(USER, 1000 + port, 0, 0);
            let stream = kernel.connect(KERNEL, remote).await.unwrap();
            let (mut reader, mut writer) = stream.into_split();
            let total = 100_000 + 1000 * u64::from(port);
            let sender = tokio::spawn(async move {
                let mut block = vec![0; total as usize];
                fill(&mut block, 0);
                writer.write_all(&block).await.unwrap();
                writer.shutdown().await.unwrap();
                writer
            });
            let mut back = Vec::new();
            reader.read_to_end(&mut back).await.unwrap();
            check(&back, 0);
            assert_eq!(back.len() as u64, total);
            drop(sender.await.unwrap());
            done.send(()).unwrap();
        });
    }
    lab.run(FLOWS).await;
    for _ in 0..FLOWS {
        timeout(PATIENCE, all.recv()).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_a_reset_on_the_other_side() {
    let Some((mut lab, kernel)) = Lab::new(config(), near(), Work::Receive) else {
        return;
    };
    let stream = tokio::spawn(async move {
        let stream = kernel
            .connect(KERNEL, SocketAddrV6::new(USER, 80, 0, 0))
            .await
            .unwrap();
        // Closing at once with this set sends a reset.
        socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    });
    lab.run(1).await;
    stream.await.unwrap();
    assert_eq!(lab.flows[0].over, Some(CloseReason::Reset));
}
