//! relay's own TCP against the kernel's, over a TUN device in a private namespace and a path with
//! faults between them, in both directions. A machine that cannot have a kernel stack skips with
//! its reason.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "user_tcp/fairness.rs"]
mod fairness;
#[path = "../../tcp/tests/sim/path.rs"]
#[allow(dead_code, unreachable_pub)]
mod path;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant as Clock};

use path::{Path, PathOptions, mbit};
use relay_tcp::{Algorithm, CloseReason, Config, ConnectionId, Event, Instant, Stack, StackConfig};
use relay_tunnel::stack::{Injection, KernelStack, NetHelper, StackOptions, Tun, Verdict, start};
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

/// What the application above our TCP does with each connection.
#[derive(Clone, Copy)]
enum Work {
    /// Sends so many bytes, ends, and waits for the peer's end.
    Send(u64),
    /// Reads to the peer's end, then ends.
    Receive,
    /// Sends back what comes.
    Echo,
}

/// A packet on its way: arrival, order, whether it goes to the kernel, bytes.
type Arrival = (Instant, u64, bool, Vec<u8>);

/// Our TCP, the kernel's, and what is between them.
struct Lab {
    tun: Tun,
    kernel: KernelStack,
    stack: Stack,
    started: Clock,
    /// To the kernel, and from it.
    paths: [Path; 2],
    /// Data of both directions goes through the first path, all else through the second.
    is_shared: bool,
    packets: BinaryHeap<Reverse<Arrival>>,
    order: u64,
    work: Work,
    flows: Vec<Flow>,
    buffer: Vec<u8>,
}

struct Flow {
    id: ConnectionId,
    work: Work,
    sent: u64,
    received: u64,
    shut: bool,
    over: Option<CloseReason>,
}

impl Lab {
    fn new(config: Config, options: PathOptions, work: Work) -> Option<(Self, KernelStack)> {
        let helper = NetHelper::spawn().unwrap();
        let (tun, kernel) = match start(helper, &[KERNEL], StackOptions::default()) {
            Ok(both) => both,
            Err(error) => {
                let required =
                    std::env::var_os("RELAY_REQUIRE_ALL").is_some_and(|value| !value.is_empty());
                assert!(!required, "nothing may be skipped here: {error}");
                println!("skip: {error}");
                return None;
            }
        };
        kernel.set_peer_mtu(USER, config.mtu);
        kernel.set_peer_near(USER, options.delay < Duration::from_millis(2));
        let config = StackConfig {
            connection: config,
            addresses: vec![IpAddr::V6(USER)],
            ..StackConfig::default()
        };
        let lab = Self {
            tun,
            kernel: kernel.clone(),
            stack: Stack::new(config, [0x5eed, 0x5eed]),
            started: Clock::now(),
            // The kernel's side trusts what comes out of a tunnel, and verifies no checksums.
            paths: [
                Path::new(
                    PathOptions {
                        corrupt: 0.0,
                        ..options.clone()
                    },
                    11,
                ),
                Path::new(options, 12),
            ],
            is_shared: false,
            packets: BinaryHeap::new(),
            order: 0,
            work,
            flows: Vec::new(),
            buffer: vec![0; 256 << 10],
        };
        Some((lab, kernel))
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.started.elapsed().as_nanos() as u64)
    }

    fn connect(&mut self, port: u16, work: Work) {
        let (now, remote) = (self.now(), SocketAddr::new(IpAddr::V6(KERNEL), port));
        let id = self.stack.connect(now, IpAddr::V6(USER), remote).unwrap();
        self.flows.push(Flow::new(id, work));
    }

    /// Moves packets and bytes until all of `flows` connections were there and are over.
    async fn run(&mut self, flows: usize) {
        let begun = Clock::now();
        let mut injections = self.kernel.injections();
        while self.flows.len() < flows || self.flows.iter().any(|flow| flow.over.is_none()) {
            assert!(begun.elapsed() < PATIENCE * factor(), "it never ends");
            self.turn(&mut injections).await;
        }
        // What the kernel still has to be told.
        self.transmit();
        tokio::time::sleep(self.paths[0].options.delay * 2 + Duration::from_millis(20)).await;
        self.deliver();
    }

    async fn turn(&mut self, injections: &mut mpsc::UnboundedReceiver<Injection>) {
        self.read_kernel();
        while let Ok(injection) = injections.try_recv() {
            match injection {
                Injection::ToTun(packet) => self.tun.write_batch(&[&packet]).unwrap(),
                Injection::ToPeer(packet) => self.send(false, packet),
            }
        }
        self.deliver();
        let now = self.now();
        self.stack.handle_timeout(now);
        self.serve();
        self.transmit();
        self.wait().await;
    }

    async fn wait(&mut self) {
        let now = self.now();
        let arrival = self.packets.peek().map(|Reverse((at, ..))| *at);
        let timer = self.stack.poll_timeout(now);
        let next = arrival.into_iter().chain(timer).min();
        let pause = next.map_or(Duration::from_millis(50), |next| next.since(now));
        if pause.is_zero() {
            tokio::task::yield_now().await;
            return;
        }
        tokio::select! {
            readable = self.tun.readable() => readable.unwrap(),
            () = tokio::time::sleep(pause.min(Duration::from_millis(50))) => {}
        }
    }

    fn read_kernel(&mut self) {
        let mut all = Vec::new();
        // Few at a time, so that acknowledgements are not kept waiting.
        for _ in 0..16 {
            if self
                .tun
                .try_read(&mut |packet| all.push(packet.to_vec()))
                .is_err()
            {
                break;
            }
        }
        for packet in all {
            self.send(false, packet);
        }
    }

    fn send(&mut self, to_kernel: bool, packet: Vec<u8>) {
        let now = self.now();
        let (packets, order) = (&mut self.packets, &mut self.order);
        let path = match self.is_shared {
            true => usize::from(packet.len() < ACK),
            false => usize::from(!to_kernel),
        };
        let path = &mut self.paths[path];
        path.send(now, packet, &mut |at, packet| {
            *order += 1;
            packets.push(Reverse((at, *order, to_kernel, packet)));
        });
    }

    fn deliver(&mut self) {
        let now = self.now();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        while self
            .packets
            .peek()
            .is_some_and(|Reverse((at, ..))| *at <= now)
        {
            let Some(Reverse((_, _, to_kernel, packet))) = self.packets.pop() else {
                break;
            };
            match to_kernel {
                true => theirs.push(packet),
                false => ours.push(packet),
            }
        }
        self.stack
            .handle_packets(now, ours.iter().map(Vec::as_slice));
        let mut passed: Vec<&[u8]> = Vec::new();
        let mut answers = Vec::new();
        for packet in &theirs {
            match self.kernel.inspect(packet) {
                Verdict::Pass => passed.push(packet),
                Verdict::Held | Verdict::Drop => {}
                Verdict::Answer(answer) => answers.push(answer),
            }
        }
        self.tun.write_batch(&passed).unwrap();
        for answer in answers {
            self.send(false, answer);
        }
    }

    fn transmit(&mut self) {
        let now = self.now();
        let mut packets: Vec<Vec<u8>> = Vec::new();
        while self.stack.poll_transmit(now, &mut packets).is_some() {
            self.serve();
        }
        for packet in packets {
            self.send(true, packet);
        }
    }

    fn serve(&mut self) {
        let now = self.now();
        while let Some(event) = self.stack.poll_event() {
            match event {
                Event::Requested { request, .. } => {
                    let id = self.stack.accept(now, request).unwrap();
                    self.flows.push(Flow::new(id, self.work));
                }
                Event::Withdrawn(_) => {}
                Event::Changed { id, events } => {
                    if let Some(flow) = self.flows.iter_mut().find(|flow| flow.id == id) {
                        flow.over = flow.over.or(events.closed);
                    }
                }
            }
        }
        for flow in &mut self.flows {
            if flow.over.is_none() {
                flow.serve(&mut self.stack, &mut self.buffer, now);
            }
        }
    }
}

impl Flow {
    fn new(id: ConnectionId, work: Work) -> Self {
        Self {
            id,
            work,
            sent: 0,
            received: 0,
            shut: false,
            over: None,
        }
    }

    fn serve(&mut self, stack: &mut Stack, buffer: &mut [u8], now: Instant) {
        if let Work::Echo = self.work {
            while let Ok(bytes) = stack.peek(self.id).map(<[u8]>::to_vec) {
                let Ok(count) = stack.write(self.id, &bytes) else {
                    break;
                };
                self.received += count as u64;
                if count == 0 {
                    break;
                }
                stack.consume(now, self.id, count).unwrap();
            }
        } else {
            while let Ok(count) = stack.read(now, self.id, buffer) {
                if count == 0 {
                    break;
                }
                check(&buffer[..count], self.received);
                self.received += count as u64;
            }
        }
        if let Work::Send(total) = self.work {
            while self.sent < total {
                let count = (total - self.sent).min(64 << 10) as usize;
                fill(&mut buffer[..count], self.sent);
                let written = stack.write(self.id, &buffer[..count]).unwrap_or(0);
                self.sent += written as u64;
                if written < count {
                    return;
                }
            }
        }
        let ended = stack
            .connection(self.id)
            .is_some_and(|connection| connection.is_read_to_end());
        if !self.shut && (ended || matches!(self.work, Work::Send(_))) {
            self.shut = true;
            stack.shutdown(self.id).unwrap();
        }
        // In TIME-WAIT both directions are over.
        if ended
            && stack
                .connection(self.id)
                .is_some_and(|connection| connection.state() == relay_tcp::State::TimeWait)
        {
            self.over = Some(CloseReason::Finished);
        }
    }
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
