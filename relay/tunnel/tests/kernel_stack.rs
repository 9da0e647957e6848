//! Two kernel stacks joined back to back: what one writes, the other reads, without WireGuard or
//! a network between them. A machine that cannot have a kernel stack skips with its reason.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::io::{self, BufRead, BufReader};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use relay_tunnel::stack::{
    Incoming, Injection, KernelStack, NetHelper, Offloads, StackOptions, Step, Tun, Verdict, start,
};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0x1);
const AGENT: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0x2);
const PORT: u16 = 80;
const PATIENCE: Duration = Duration::from_secs(60);

struct Side {
    tun: Tun,
    stack: KernelStack,
    injections: mpsc::UnboundedReceiver<Injection>,
    /// The largest packet that gets through to this side; larger ones vanish.
    path: usize,
    /// Whether packets go to the kernel past the stack.
    blind: bool,
    /// The most packets one read gave.
    most: Arc<AtomicUsize>,
}

impl Side {
    fn new(address: Ipv6Addr, options: StackOptions, place: Place) -> Option<Self> {
        let helper = NetHelper::spawn().unwrap();
        let helper = match place {
            Place::Private => helper,
            Place::Own => helper
                .with_fault(Step::NetworkNamespace, libc::EPERM)
                .with_fault(Step::UserNamespace, libc::EPERM),
        };
        match start(helper, &[address], options) {
            Ok((tun, stack)) => Some(Self {
                tun,
                injections: stack.injections(),
                stack,
                path: usize::MAX,
                blind: false,
                most: Arc::default(),
            }),
            Err(error) => {
                println!("skip: {error}");
                None
            }
        }
    }

    /// Moves everything that waits here to `other`, and answers back.
    fn drain(&mut self, other: &mut Self) {
        loop {
            let mut packets = Vec::new();
            match self
                .tun
                .try_read(&mut |packet| packets.push(packet.to_vec()))
            {
                Ok(count) => {
                    self.most.fetch_max(count, Ordering::Relaxed);
                    other.receive(self, &packets);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        while let Ok(injection) = self.injections.try_recv() {
            self.inject(other, injection);
        }
    }

    fn inject(&mut self, other: &mut Self, injection: Injection) {
        match injection {
            Injection::ToTun(packet) => self.tun.write_batch(&[&packet]).unwrap(),
            Injection::ToPeer(packet) => other.receive(self, &[packet]),
        }
    }

    fn receive(&mut self, from: &mut Self, packets: &[Vec<u8>]) {
        let path = self.path;
        let mut passed: Vec<&[u8]> = Vec::new();
        let mut answers = Vec::new();
        for packet in packets.iter().filter(|packet| packet.len() <= path) {
            if self.blind {
                passed.push(packet);
                continue;
            }
            match self.stack.inspect(packet) {
                Verdict::Pass => passed.push(packet),
                Verdict::Held | Verdict::Drop => {}
                Verdict::Answer(answer) => answers.push(answer),
            }
        }
        self.tun.write_batch(&passed).unwrap();
        if !answers.is_empty() {
            from.receive(self, &answers);
        }
    }
}

/// Where the agent's device is made.
enum Place {
    Private,
    Own,
}

enum Order {
    Path(usize),
    Blind(bool),
}

struct Pair {
    client: KernelStack,
    agent: KernelStack,
    orders: mpsc::UnboundedSender<Order>,
    most: Arc<AtomicUsize>,
}

impl Pair {
    async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let remote = SocketAddrV6::new(AGENT, port, 0, 0);
        timeout(PATIENCE, self.client.connect(CLIENT, remote))
            .await
            .unwrap()
    }
}

/// Joins two stacks and moves packets between them until the test ends.
fn pair_with(options: StackOptions, place: Place) -> Option<Pair> {
    let mut client = Side::new(CLIENT, options, Place::Private)?;
    let mut agent = Side::new(AGENT, options, place)?;
    let (orders, mut ordered) = mpsc::unbounded_channel();
    let pair = Pair {
        client: client.stack.clone(),
        agent: agent.stack.clone(),
        orders,
        most: Arc::clone(&client.most),
    };
    tokio::spawn(async move {
        loop {
            client.drain(&mut agent);
            agent.drain(&mut client);
            // Each lets the other tasks run between two bursts.
            tokio::select! {
                readable = client.tun.readable() => readable.unwrap(),
                readable = agent.tun.readable() => readable.unwrap(),
                Some(injection) = client.injections.recv() => client.inject(&mut agent, injection),
                Some(injection) = agent.injections.recv() => agent.inject(&mut client, injection),
                Some(order) = ordered.recv() => match order {
                    Order::Path(path) => (client.path, agent.path) = (path, path),
                    Order::Blind(blind) => agent.blind = blind,
                },
            }
        }
    });
    Some(pair)
}

fn pair() -> Option<Pair> {
    pair_with(StackOptions::default(), Place::Private)
}

fn large(pair: &Pair, mtu: u16) {
    pair.client.set_peer_mtu(AGENT, mtu);
    pair.agent.set_peer_mtu(CLIENT, mtu);
}

async fn next(incoming: &mut mpsc::Receiver<Incoming>) -> Incoming {
    timeout(PATIENCE, incoming.recv()).await.unwrap().unwrap()
}

/// Sends `size` bytes that depend on `seed` and returns their hash.
async fn send(stream: &mut (impl AsyncWriteExt + Unpin), seed: u64, size: usize) -> Vec<u8> {
    let mut hash = Sha256::new();
    let mut state = seed | 1;
    let mut block = vec![0u8; 128 << 10];
    let mut left = size;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            word.copy_from_slice(&state.to_le_bytes());
        }
        let part = &block[..left.min(block.len())];
        hash.update(part);
        stream.write_all(part).await.unwrap();
        left -= part.len();
    }
    stream.shutdown().await.unwrap();
    hash.finalize().to_vec()
}

async fn receive(stream: &mut (impl AsyncReadExt + Unpin)) -> (usize, Vec<u8>) {
    let mut hash = Sha256::new();
    let mut block = vec![0u8; 128 << 10];
    let mut size = 0;
    loop {
        let length = stream.read(&mut block).await.unwrap();
        if length == 0 {
            return (size, hash.finalize().to_vec());
        }
        size += length;
        hash.update(&block[..length]);
    }
}

/// Both directions of one stream at once, hashes compared.
async fn exchange(pair: &Pair, size: usize) {
    let mut incoming = pair.agent.incoming();
    let agent = async {
        let offer = next(&mut incoming).await;
        assert_eq!((offer.port(), *offer.source().ip()), (PORT, CLIENT));
        let stream = offer.accept().await.unwrap();
        let (mut read, mut write) = stream.into_split();
        tokio::join!(send(&mut write, 2, size), receive(&mut read))
    };
    let client = async {
        let stream = pair.connect(PORT).await.unwrap();
        let (mut read, mut write) = stream.into_split();
        tokio::join!(send(&mut write, 1, size), receive(&mut read))
    };
    let both = async { tokio::join!(agent, client) };
    let ((a_sent, a_got), (c_sent, c_got)) = timeout(PATIENCE, both).await.unwrap();
    assert_eq!(a_got, (size, c_sent));
    assert_eq!(c_got, (size, a_sent));
}

const MEBIBYTE: usize = 1 << 20;

#[tokio::test]
async fn sixty_four_mebibytes_each_way_arrive_unchanged() {
    let Some(pair) = pair() else { return };
    large(&pair, 1420);
    exchange(&pair, 64 * MEBIBYTE).await;
    assert!(pair.most.load(Ordering::Relaxed) > 16, "no super-packets");
}

#[tokio::test]
async fn it_works_without_any_offload() {
    let options = StackOptions {
        offloads: Offloads::NONE,
        ..StackOptions::default()
    };
    let Some(pair) = pair_with(options, Place::Private) else {
        return;
    };
    exchange(&pair, 4 * MEBIBYTE).await;
    assert_eq!(pair.most.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_half_closed_stream_goes_on_the_other_way() {
    let Some(pair) = pair() else { return };
    let mut incoming = pair.agent.incoming();
    let agent = async {
        let mut stream = next(&mut incoming).await.accept().await.unwrap();
        let mut request = String::new();
        stream.read_to_string(&mut request).await.unwrap();
        stream
            .write_all(request.to_uppercase().as_bytes())
            .await
            .unwrap();
    };
    let client = async {
        let mut stream = pair.connect(PORT).await.unwrap();
        stream.write_all(b"half").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "HALF");
    };
    timeout(PATIENCE, async { tokio::join!(agent, client) })
        .await
        .unwrap();
}

#[tokio::test]
async fn refusal_reaches_the_caller_with_and_without_someone_to_ask() {
    let Some(pair) = pair() else { return };
    let error = pair.connect(PORT).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    let mut incoming = pair.agent.incoming();
    let refuse = async { next(&mut incoming).await.refuse() };
    let (outcome, ()) = tokio::join!(pair.connect(PORT), refuse);
    assert_eq!(
        outcome.unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused
    );
    let forget = async { drop(next(&mut incoming).await) };
    let (outcome, ()) = tokio::join!(pair.connect(PORT), forget);
    assert_eq!(
        outcome.unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused
    );
    drop(incoming);
    let error = pair.connect(PORT).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_reset_reaches_the_other_end() {
    let Some(pair) = pair() else { return };
    let mut incoming = pair.agent.incoming();
    let accept = async { next(&mut incoming).await.accept().await.unwrap() };
    let (client, mut agent) = tokio::join!(pair.connect(PORT), accept);
    let client = client.unwrap();
    socket2::SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(client);
    let read = timeout(PATIENCE, agent.read_u8()).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_caller_that_gives_up_while_held_ends_the_wait() {
    let Some(pair) = pair() else { return };
    let mut incoming = pair.agent.incoming();
    let remote = SocketAddrV6::new(AGENT, PORT, 0, 0);
    let connect = pair.client.connect(CLIENT, remote);
    let offer = tokio::select! {
        _ = connect => panic!("nobody accepted"),
        offer = next(&mut incoming) => offer,
    };
    // The future is gone and its socket with it; an unanswered SYN leaves no trace on the wire, so
    // the handshake is what fails.
    let outcome = timeout(PATIENCE, offer.accept()).await.unwrap();
    assert!(outcome.is_err());
}

#[tokio::test]
async fn two_hundred_connections_over_two_hundred_ports_keep_apart() {
    let Some(pair) = pair() else { return };
    let mut incoming = pair.agent.incoming();
    tokio::spawn(async move {
        while let Some(offer) = incoming.recv().await {
            tokio::spawn(async move {
                let port = offer.port();
                let mut stream = offer.accept().await.unwrap();
                let mut given = [0; 4];
                stream.read_exact(&mut given).await.unwrap();
                stream.write_all(&given).await.unwrap();
                stream.write_all(&port.to_be_bytes()).await.unwrap();
            });
        }
    });
    let mut calls = JoinSet::new();
    for number in 0..200u16 {
        let client = pair.client.clone();
        calls.spawn(async move {
            let port = 1 + number;
            let remote = SocketAddrV6::new(AGENT, port, 0, 0);
            let mut stream = client.connect(CLIENT, remote).await.unwrap();
            stream
                .write_all(&u32::from(number).to_be_bytes())
                .await
                .unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            let expected = [&u32::from(number).to_be_bytes()[..], &port.to_be_bytes()].concat();
            assert_eq!(answer, expected);
        });
    }
    timeout(PATIENCE, calls.join_all()).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_slipped_past_is_dialled_when_it_is_accepted() {
    let Some(pair) = pair() else { return };
    let mut incoming = pair.agent.incoming();
    let accept = async { next(&mut incoming).await.accept().await.unwrap() };
    let (_first, _stream) = tokio::join!(pair.connect(PORT), accept);
    pair.orders.send(Order::Blind(true)).unwrap();
    tokio::task::yield_now().await;
    let mut client = pair.connect(PORT).await.unwrap();
    let offer = next(&mut incoming).await;
    assert_eq!(offer.source().port(), client.local_addr().unwrap().port());
    let mut agent = offer.accept().await.unwrap();
    agent.write_u8(7).await.unwrap();
    assert_eq!(
        timeout(PATIENCE, client.read_u8()).await.unwrap().unwrap(),
        7
    );
    let mut client = pair.connect(PORT).await.unwrap();
    next(&mut incoming).await.refuse();
    let end = timeout(PATIENCE, client.read_u8()).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_thousand_connections_to_one_port_at_once_are_all_served() {
    let Some(pair) = pair() else { return };
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        ..limit
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let mut incoming = pair.agent.incoming();
    let serving = tokio::spawn(async move {
        let mut streams = Vec::new();
        let mut accepting = JoinSet::new();
        for _ in 0..1000 {
            accepting.spawn(next(&mut incoming).await.accept());
        }
        while let Some(stream) = accepting.join_next().await {
            streams.push(stream.unwrap().unwrap());
        }
        streams
    });
    let mut calls = JoinSet::new();
    for _ in 0..1000 {
        let client = pair.client.clone();
        let remote = SocketAddrV6::new(AGENT, PORT, 0, 0);
        calls.spawn(async move { client.connect(CLIENT, remote).await.unwrap() });
    }
    let streams = timeout(PATIENCE, calls.join_all()).await.unwrap();
    assert_eq!(streams.len(), 1000);
    assert_eq!(
        timeout(PATIENCE, serving).await.unwrap().unwrap().len(),
        1000
    );
}

#[tokio::test]
async fn a_path_that_shrinks_and_grows_does_not_stall_a_stream() {
    let Some(pair) = pair() else { return };
    large(&pair, 8920);
    let mut incoming = pair.agent.incoming();
    let accept = async { next(&mut incoming).await.accept().await.unwrap() };
    let (client, mut agent) = tokio::join!(pair.connect(PORT), accept);
    let mut client = client.unwrap();
    let sending = tokio::spawn(async move { send(&mut client, 3, 24 * MEBIBYTE).await });
    let mut start = vec![0; 4 * MEBIBYTE];
    agent.read_exact(&mut start).await.unwrap();
    for (path, mtu) in [(1300, 1280), (1420, 1420), (8920, 8920), (1280, 1280)] {
        pair.orders.send(Order::Path(path)).unwrap();
        tokio::task::yield_now().await;
        large(&pair, mtu);
        let mut part = vec![0; 2 * MEBIBYTE];
        timeout(Duration::from_secs(4), agent.read_exact(&mut part))
            .await
            .unwrap_or_else(|_| panic!("stalled at {mtu}"))
            .unwrap();
        start.extend_from_slice(&part);
    }
    let mut rest = Vec::new();
    timeout(PATIENCE, agent.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    start.extend_from_slice(&rest);
    assert_eq!(sending.await.unwrap(), Sha256::digest(&start).to_vec());
}

#[tokio::test]
async fn what_is_missing_is_said_in_one_line() {
    for (step, errno, expected) in [
        (Step::OpenDevice, libc::ENOENT, "modprobe tun"),
        (Step::OpenDevice, libc::EACCES, "chmod 0666"),
        (Step::MakeInterface, libc::EPERM, "network interface"),
        (Step::Configure, libc::EACCES, "disable_ipv6=0"),
    ] {
        let helper = NetHelper::spawn().unwrap().with_fault(step, errno);
        let error = start(helper, &[CLIENT], StackOptions::default()).unwrap_err();
        let line = error.to_string();
        if !line.contains(expected) {
            println!("skip: {line}");
        }
        assert!(
            line.starts_with("no kernel stack: ") && !line.contains('\n'),
            "{line}"
        );
    }
}

#[tokio::test]
async fn kernels_without_some_offloads_do_with_less() {
    for (step, tcp, udp) in [
        (Step::UdpOffload, true, false),
        (Step::Offload, false, false),
    ] {
        let helper = NetHelper::spawn().unwrap().with_fault(step, libc::EINVAL);
        let started = start(helper, &[CLIENT], StackOptions::default());
        let (tun, _stack) = match started {
            Ok(started) => started,
            Err(error) => return println!("skip: {error}"),
        };
        let offloads = tun.offloads(Offloads::default());
        assert_eq!((offloads.tun_tcp, offloads.tun_udp), (tcp, udp));
    }
}

/// Runs until it is killed, for `the_helper_ends_with_relay_and_not_before`.
#[tokio::test]
#[ignore = "the_helper_ends_with_relay_and_not_before runs it"]
async fn a_stack_that_waits() {
    let helper = NetHelper::spawn().unwrap();
    let _helper = start(helper, &[CLIENT], StackOptions::default());
    println!("waiting");
    tokio::time::sleep(PATIENCE).await;
}

#[test]
fn the_helper_ends_with_relay_and_not_before() {
    let mut relay = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "a_stack_that_waits", "--nocapture"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(relay.stdout.take().unwrap());
    assert!(
        output
            .lines()
            .map_while(Result::ok)
            .any(|line| line.contains("waiting"))
    );
    let helper = helper_of(relay.id()).expect("a helper");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        kill(helper, signal).unwrap();
    }
    std::thread::sleep(Duration::from_millis(50));
    assert!(kill(helper, None).is_ok(), "it ended by a signal for relay");
    assert!(
        anonymous_kibibytes(helper) < 2048,
        "it holds too much memory"
    );
    relay.kill().unwrap();
    relay.wait().unwrap();
    let end = Instant::now() + PATIENCE;
    while kill(helper, None).is_ok() {
        assert!(Instant::now() < end, "it outlived relay");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn helper_of(process: u32) -> Option<Pid> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).ok()?;
    threads.flatten().find_map(|thread| {
        let children = std::fs::read_to_string(thread.path().join("children")).ok()?;
        children
            .split_whitespace()
            .next()?
            .parse()
            .ok()
            .map(Pid::from_raw)
    })
}

fn anonymous_kibibytes(process: Pid) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Runs in a namespace that `own_namespace_mode` made for it: as a container does that may have the
/// device and no namespaces.
#[tokio::test]
#[ignore = "own_namespace_mode runs it"]
async fn inside_its_own_namespace() {
    let Some(pair) = pair_with(StackOptions::default(), Place::Own) else {
        return;
    };
    large(&pair, 1420);
    exchange(&pair, 8 * MEBIBYTE).await;
    // An application of the same port neither clashes nor is reached past relay.
    let application = tokio::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8080)).await;
    let application = application.unwrap();
    let error = pair.connect(8080).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    let mut incoming = pair.agent.incoming();
    let agent = async {
        let mut streams = Vec::new();
        for _ in 0..2 {
            let offer = next(&mut incoming).await;
            let port = offer.port();
            let mut stream = offer.accept().await.unwrap();
            stream.write_u16(port).await.unwrap();
            streams.push(stream);
        }
        streams
    };
    let clients = async { tokio::join!(pair.connect(8080), pair.connect(8081)) };
    let (_streams, (first, second)) = tokio::join!(agent, clients);
    assert_eq!(first.unwrap().read_u16().await.unwrap(), 8080);
    assert_eq!(second.unwrap().read_u16().await.unwrap(), 8081);
    let untouched = timeout(Duration::from_millis(1), application.accept()).await;
    assert!(untouched.is_err());
    // The other direction needs no rewriting.
    let mut back = pair.client.incoming();
    let accept = async { next(&mut back).await.accept().await.unwrap() };
    let remote = SocketAddrV6::new(CLIENT, 7000, 0, 0);
    let (called, mut taken) = tokio::join!(pair.agent.connect(AGENT, remote), accept);
    called.unwrap().write_all(b"hello").await.unwrap();
    let mut text = String::new();
    taken.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
}

#[test]
fn own_namespace_mode() {
    let script = "exec \"$0\" --ignored --exact inside_its_own_namespace --nocapture";
    run_under("unshare", &["--net", "sh", "-c", script]);
}

/// Runs in what `containers_work_or_say_what_they_lack` made for it.
#[tokio::test]
#[ignore = "containers_work_or_say_what_they_lack runs it"]
async fn inside_a_container() {
    let started = start(
        NetHelper::spawn().unwrap(),
        &[CLIENT],
        StackOptions::default(),
    );
    match started {
        Ok(_) => println!("started"),
        Err(error) => println!("{error}"),
    }
}

#[test]
fn containers_work_or_say_what_they_lack() {
    for (capabilities, expected) in [
        ("-sys_admin", "started"),
        (
            "-sys_admin,-net_admin",
            "no kernel stack: the limit of namespaces",
        ),
    ] {
        let script = format!(
            "set -e; echo 0 > /proc/sys/user/max_user_namespaces; \
             exec setpriv --bounding-set={capabilities} --inh-caps={capabilities} \
             \"$0\" --ignored --exact inside_a_container --nocapture"
        );
        let arguments = ["--user", "--map-root-user", "--net", "sh", "-c", &script];
        if let Some(text) = run_under("unshare", &arguments) {
            assert!(text.contains(expected), "{text}");
        }
    }
}

/// Runs this program once more below another command.
fn run_under(command: &str, arguments: &[&str]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        println!("skip: only root may make namespaces for a test");
        return None;
    }
    let output = std::process::Command::new(command)
        .args(arguments)
        .arg(std::env::current_exe().unwrap())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            println!("skip: {command}: {error}");
            return None;
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if let Some(line) = text.lines().find(|line| line.contains("skip: ")) {
        println!("{line}");
        return None;
    }
    assert!(output.status.success(), "{text}{errors}");
    Some(text.into_owned())
}

/// The same as an unprivileged user whose device may be opened: the exchange is run once more, by
/// this program under another user, where only its mount namespace has such a device.
#[test]
fn nobody_needs_root() {
    let script = "set -e; d=$(mktemp -d); mount -t tmpfs none $d; mknod -m 666 $d/tun c 10 200; \
                  mount --bind $d/tun /dev/net/tun; \
                  exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$0\" --exact \
                  sixty_four_mebibytes_each_way_arrive_unchanged --nocapture";
    run_under(
        "unshare",
        &["--mount", "--propagation", "private", "sh", "-c", script],
    );
}
