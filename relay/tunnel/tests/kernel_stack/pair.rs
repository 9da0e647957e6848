//! Two stacks joined: what one writes, the other reads.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use relay_tunnel::stack::{
    Incoming, Injection, KernelStack, NetHelper, StackOptions, Step, Tun, Verdict, start,
};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

pub(crate) const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0x1);
pub(crate) const AGENT: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0x2);
pub(crate) const PORT: u16 = 80;
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

struct Side {
    tun: Tun,
    stack: KernelStack,
    injections: mpsc::UnboundedReceiver<Injection>,
    /// The largest packet that gets through to this side; larger ones vanish.
    path: usize,
    /// Of so many packets one is lost and one comes late; 0 is none.
    loss: u32,
    random: u32,
    late: Vec<Vec<u8>>,
    /// Whether packets go to the kernel past the stack.
    blind: bool,
    /// The most packets one read gave.
    most: Arc<AtomicUsize>,
    /// How long packets to this side are on their way, and those that are.
    delay: Duration,
    coming: VecDeque<(Instant, Vec<Vec<u8>>)>,
    /// So many of the next packets to this side are lost.
    lose: usize,
    /// SYNs with data that came to this side.
    requests: Vec<Vec<u8>>,
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
                loss: 0,
                random: 1,
                late: Vec::new(),
                blind: false,
                most: Arc::default(),
                delay: Duration::ZERO,
                coming: VecDeque::new(),
                lose: 0,
                requests: Vec::new(),
            }),
            Err(error) => {
                crate::skip(error);
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

    fn fate(&mut self) -> u32 {
        self.random = self
            .random
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        match self.loss {
            0 => 2,
            loss => (self.random >> 8) % loss,
        }
    }

    fn receive(&mut self, from: &mut Self, packets: &[Vec<u8>]) {
        let lost = self.lose.min(packets.len());
        self.lose -= lost;
        let packets = &packets[lost..];
        if self.delay.is_zero() {
            self.take(from, packets);
        } else if !packets.is_empty() {
            self.coming
                .push_back((Instant::now() + self.delay, packets.to_vec()));
        }
    }

    /// Takes what has been on its way long enough.
    fn take_due(&mut self, from: &mut Self) {
        while let Some((_, packets)) = self.coming.pop_front_if(|(at, _)| *at <= Instant::now()) {
            self.take(from, &packets);
        }
    }

    fn take(&mut self, from: &mut Self, packets: &[Vec<u8>]) {
        let requests = packets.iter().filter(|packet| is_request(packet));
        self.requests.extend(requests.cloned());
        let late = std::mem::take(&mut self.late);
        let mut arrived: Vec<&Vec<u8>> = Vec::new();
        for packet in packets {
            match self.fate() {
                0 => {}
                1 => self.late.push(packet.clone()),
                _ => arrived.push(packet),
            }
        }
        arrived.extend(&late);
        let path = self.path;
        let mut passed: Vec<&[u8]> = Vec::new();
        let mut answers = Vec::new();
        for packet in arrived.into_iter().filter(|packet| packet.len() <= path) {
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

/// Whether it is a SYN with data.
fn is_request(packet: &[u8]) -> bool {
    packet[6] == 6
        && packet[53] & 0x12 == 0x02
        && packet.len() > 40 + usize::from(packet[52] >> 4) * 4
}

/// Where the agent's device is made.
pub(crate) enum Place {
    Private,
    Own,
}

pub(crate) enum Order {
    Path(usize),
    Blind(bool),
    Loss(u32),
    /// Packets take so long each way.
    Delay(Duration),
    /// So many of the next packets to the agent (true) or the client are lost.
    Lose(bool, usize),
    /// The agent is given all its SYNs with data once more; answers how many.
    Replay(oneshot::Sender<usize>),
}

pub(crate) struct Pair {
    pub(crate) client: KernelStack,
    pub(crate) agent: KernelStack,
    pub(crate) orders: mpsc::UnboundedSender<Order>,
    pub(crate) most: Arc<AtomicUsize>,
}

impl Pair {
    pub(crate) async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let remote = SocketAddrV6::new(AGENT, port, 0, 0);
        timeout(PATIENCE, self.client.connect(CLIENT, remote))
            .await
            .unwrap()
    }

    pub(crate) async fn connect_with(
        &self,
        port: u16,
        first: &[u8],
    ) -> io::Result<(TcpStream, usize)> {
        let remote = SocketAddrV6::new(AGENT, port, 0, 0);
        timeout(PATIENCE, self.client.connect_with(CLIENT, remote, first))
            .await
            .unwrap()
    }

    pub(crate) async fn replay(&self) -> usize {
        let (done, replayed) = oneshot::channel();
        self.orders.send(Order::Replay(done)).unwrap();
        replayed.await.unwrap()
    }
}

/// Joins two stacks and moves packets between them until the test ends.
pub(crate) fn pair_with(options: StackOptions, place: Place) -> Option<Pair> {
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
            let due = [&client, &agent]
                .into_iter()
                .filter_map(|side| side.coming.front());
            let due = due.map(|(at, _)| *at).min();
            let far = Instant::now() + PATIENCE;
            // Each lets the other tasks run between two bursts.
            tokio::select! {
                readable = client.tun.readable() => readable.unwrap(),
                readable = agent.tun.readable() => readable.unwrap(),
                Some(injection) = client.injections.recv() => client.inject(&mut agent, injection),
                Some(injection) = agent.injections.recv() => agent.inject(&mut client, injection),
                () = tokio::time::sleep_until(due.unwrap_or(far).into()) => {
                    client.take_due(&mut agent);
                    agent.take_due(&mut client);
                }
                Some(order) = ordered.recv() => match order {
                    Order::Path(path) => (client.path, agent.path) = (path, path),
                    Order::Loss(loss) => (client.loss, agent.loss) = (loss, loss),
                    Order::Delay(delay) => (client.delay, agent.delay) = (delay, delay),
                    Order::Lose(true, count) => agent.lose = count,
                    Order::Lose(false, count) => client.lose = count,
                    Order::Replay(done) => {
                        let requests = std::mem::take(&mut agent.requests);
                        agent.receive(&mut client, &requests);
                        let _ = done.send(requests.len());
                    }
                    Order::Blind(blind) => agent.blind = blind,
                },
            }
        }
    });
    Some(pair)
}

pub(crate) fn pair() -> Option<Pair> {
    pair_with(StackOptions::default(), Place::Private)
}

pub(crate) fn large(pair: &Pair, mtu: u16) {
    pair.client.set_peer_mtu(AGENT, mtu);
    pair.agent.set_peer_mtu(CLIENT, mtu);
}

pub(crate) async fn next(incoming: &mut mpsc::Receiver<Incoming>) -> Incoming {
    timeout(PATIENCE, incoming.recv()).await.unwrap().unwrap()
}

/// Sends `size` bytes that depend on `seed` and returns their hash.
pub(crate) async fn send(
    stream: &mut (impl AsyncWriteExt + Unpin),
    seed: u64,
    size: usize,
) -> Vec<u8> {
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

pub(crate) async fn receive(stream: &mut (impl AsyncReadExt + Unpin)) -> (usize, Vec<u8>) {
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
pub(crate) async fn exchange(pair: &Pair, size: usize) {
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

pub(crate) const MEBIBYTE: usize = 1 << 20;
