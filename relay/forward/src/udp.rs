//! One UDP socket: a flow through the tunnel for each client address, which ends after two
//! minutes without a datagram either way. A socket of a range gives each flow a socket of its own,
//! whose answers come from the port that was asked.

use std::cell::RefCell;
use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use relay_engine::burst::{Inbox, Outgoing, merge};
use relay_engine::sessions::Sessions;
use relay_engine::steer::{self, Arrived};
use relay_wire::spec::Proto;
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::board::Entry;
use crate::event::{Event, Reporter};
use crate::listeners::{Leads, Place};
use crate::way::{Flow, Way, reason};

const IDLE: Duration = Duration::from_secs(120);
/// Clients of one socket at a time; the one that was silent for longest makes room.
const CLIENTS: usize = 1024;
/// Datagrams of one client that wait for the tunnel; more are dropped, as UDP does. Where processes
/// take turns on a processor a wait is some milliseconds, of a hundred datagrams each.
const QUEUE: usize = 1024;
/// Bytes that wait for the tunnel, of all clients of a socket.
const WAITING: usize = 8 << 20;
/// Datagrams of one client that go on at a time.
const BATCH: usize = 64;
const LARGEST: usize = 65_535;

thread_local! {
    /// Where this thread receives, from all sockets.
    static INBOX: RefCell<Inbox> = RefCell::default();
}

/// Serves a socket until it breaks or its forward is taken down. Dropping the future ends all its
/// flows.
pub(crate) async fn serve<W: Way>(socket: UdpSocket, place: Place, way: W, report: Reporter) {
    let (proto, local) = (Proto::Udp, place.address);
    let entry = place.entry.clone();
    let door = Door {
        socket: Arc::new(socket),
        place,
    };
    let served = tokio::select! {
        served = run(door, &way, IDLE) => served,
        () = entry.stopped() => Ok(()),
    };
    if let Err(error) = served {
        let reason = reason(&error);
        report.tell(Event::ListenerStopped {
            proto,
            local,
            reason,
        });
    }
}

async fn run<W: Way>(door: Door, way: &W, idle: Duration) -> io::Result<()> {
    let mut clients = Clients::new(idle);
    if !matches!(door.place.leads, Leads::By(_)) {
        merge(&door.socket);
    }
    let (mut scratch, mut arrived) = (Vec::new(), Vec::new());
    loop {
        tokio::select! {
            received = door.receive(&mut scratch, &mut arrived) => {
                match received {
                    Ok(()) => {}
                    Err(error) if is_about_a_client(&error) => continue,
                    Err(error) => return Err(error),
                }
                let now = std::time::Instant::now();
                for (client, payload) in arrived.drain(..) {
                    clients.take(client, payload, (&door, way), now);
                }
            }
            Some(ended) = clients.flows.join_next() => {
                if let Ok(client) = ended {
                    clients.forget(client);
                }
            }
        }
    }
}

/// Who sends, and to which local port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Client {
    from: SocketAddr,
    port: u16,
}

/// A client that has a flow.
struct Known {
    client: Client,
    queue: mpsc::Sender<Waiting>,
    /// Datagrams arrived at the flow's own socket lately.
    busy: Arc<AtomicBool>,
}

/// A datagram that waits for the tunnel, and the room that it takes meanwhile.
struct Waiting {
    payload: Bytes,
    _room: OwnedSemaphorePermit,
}

/// The clients of a socket, and their flows.
struct Clients {
    known: Sessions<Client, Known>,
    flows: JoinSet<Client>,
    /// Bytes that may still wait in their queues.
    room: Arc<Semaphore>,
    idle: Duration,
}

impl Clients {
    fn new(idle: Duration) -> Self {
        Self {
            // Flows end by themselves, so nothing here has to expire.
            known: Sessions::new(CLIENTS, idle),
            flows: JoinSet::new(),
            room: Arc::new(Semaphore::new(WAITING)),
            idle,
        }
    }

    /// Hands a datagram to its client's flow, which is opened by the first.
    fn take<W: Way>(
        &mut self,
        client: Client,
        payload: Bytes,
        (door, way): (&Door, &W),
        now: std::time::Instant,
    ) {
        // No datagram has more bytes than fit.
        let Ok(room) = (self.room.clone()).try_acquire_many_owned(payload.len() as u32) else {
            return;
        };
        let waiting = Waiting {
            payload,
            _room: room,
        };
        let known = self.known.get(&client, now);
        if let Some(known) = known.filter(|known| !known.queue.is_closed()) {
            let _ = known.queue.try_send(waiting);
            return;
        }
        let (answers, flow) = match door.open(&client, way) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::debug!(reason = reason(&error), "datagram dropped");
                return;
            }
        };
        let (queue, datagrams) = mpsc::channel(QUEUE);
        let _ = queue.try_send(waiting);
        let busy = Arc::new(AtomicBool::new(false));
        self.note_busy(now);
        let known = Known {
            client,
            queue,
            busy: busy.clone(),
        };
        self.known.insert(client, known, now);
        let entry = door.place.entry.clone();
        let ends = Ends {
            answers,
            busy,
            flow,
            entry,
        };
        let idle = self.idle;
        self.flows.spawn(async move {
            carry(ends, datagrams, idle).await;
            client
        });
    }

    /// Before a client has to make room: what arrives at the sockets of flows does not pass the table.
    fn note_busy(&mut self, now: std::time::Instant) {
        if self.known.len() < CLIENTS {
            return;
        }
        let lately = |known: &&Known| known.busy.swap(false, Ordering::Relaxed);
        let busy: Vec<_> = self
            .known
            .values()
            .filter(lately)
            .map(|known| known.client)
            .collect();
        for client in busy {
            self.known.get(&client, now);
        }
    }

    /// A flow ended. The entry may belong to a later one of the same client by now.
    fn forget(&mut self, client: Client) {
        let known = self.known.get(&client, std::time::Instant::now());
        if known.is_some_and(|known| known.queue.is_closed()) {
            self.known.remove(&client);
        }
    }
}

/// Where first datagrams arrive.
struct Door {
    socket: Arc<UdpSocket>,
    place: Place,
}

impl Door {
    /// Waits for datagrams, and appends them with who sent each.
    async fn receive(
        &self,
        scratch: &mut Vec<u8>,
        arrived: &mut Vec<(Client, Bytes)>,
    ) -> io::Result<()> {
        match &self.place.leads {
            Leads::To(_) | Leads::Socket(_) => {
                let port = self.place.address.port();
                receive(&self.socket, |from, payload| {
                    arrived.push((Client { from, port }, payload));
                })
                .await
            }
            Leads::By(_) => {
                scratch.resize(LARGEST, 0);
                let first = steer::receive(&self.socket, scratch).await?;
                let Arrived { length, from, port } = first;
                let payload = Bytes::copy_from_slice(&scratch[..length]);
                arrived.push((Client { from, port }, payload));
                Ok(())
            }
        }
    }

    /// Opens a flow for a client, and what its answers are sent by.
    fn open<W: Way>(&self, client: &Client, way: &W) -> io::Result<(Answers, W::Flow)> {
        match (&self.place.leads, self.place.address.ip()) {
            (Leads::By(range), IpAddr::V4(address)) => {
                let remote = range.remote(client.port);
                let remote = remote.ok_or(io::ErrorKind::AddrNotAvailable)?;
                let local = SocketAddrV4::new(address, client.port);
                let own = steer::answering(local, client.from)?;
                merge(&own);
                Ok((Answers::Own(own), way.open_flow(remote)?))
            }
            (Leads::To(remote), _) => {
                let answers = Answers::Shared(self.socket.clone(), client.from);
                Ok((answers, way.open_flow(*remote)?))
            }
            (Leads::By(_) | Leads::Socket(_), _) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// Waits for datagrams at a socket and hands out those that are there.
async fn receive(socket: &UdpSocket, mut each: impl FnMut(SocketAddr, Bytes)) -> io::Result<()> {
    loop {
        socket.readable().await?;
        let received = INBOX.with_borrow_mut(|inbox| {
            inbox.receive(socket, |from, payload| {
                each(from, Bytes::copy_from_slice(payload))
            })
        });
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
}

/// How a client gets its answers.
enum Answers {
    Shared(Arc<UdpSocket>, SocketAddr),
    /// A socket that is connected to the client.
    Own(UdpSocket),
}

impl Answers {
    /// A client that takes nothing loses datagrams, as on any network.
    fn send(&self, outgoing: &mut Outgoing, mut payloads: &[Bytes]) {
        while !payloads.is_empty() {
            let sent = match self {
                Self::Shared(socket, client) => outgoing.send(socket, Some(*client), payloads),
                Self::Own(socket) => outgoing.send(socket, None, payloads),
            };
            payloads = &payloads[sent.unwrap_or(1)..];
        }
    }

    /// Appends datagrams that did not come through the door.
    async fn receive(&self, datagrams: &mut Vec<Bytes>) -> io::Result<()> {
        let Self::Own(socket) = self else {
            return pending().await;
        };
        loop {
            match receive(socket, |_, payload| datagrams.push(payload)).await {
                Err(error) if is_about_a_client(&error) => {}
                received => return received,
            }
        }
    }
}

/// The two ends of a flow.
struct Ends<F> {
    answers: Answers,
    busy: Arc<AtomicBool>,
    flow: F,
    /// Counts.
    entry: Arc<Entry>,
}

/// One client's flow, until it is silent, evicted, or the tunnel closes.
async fn carry<F: Flow>(mut ends: Ends<F>, mut datagrams: mpsc::Receiver<Waiting>, idle: Duration) {
    let mut last = Instant::now();
    let silence = tokio::time::sleep(idle);
    tokio::pin!(silence);
    let mut outgoing = Outgoing::default();
    // What came through the door, and what did not.
    let (mut asked, mut direct) = (Vec::new(), Vec::new());
    let mut answered = Vec::new();
    loop {
        tokio::select! {
            count = datagrams.recv_many(&mut asked, BATCH) => {
                if count == 0 {
                    break;
                }
            }
            received = ends.answers.receive(&mut direct) => {
                if received.is_err() {
                    break;
                }
                ends.busy.store(true, Ordering::Relaxed);
            }
            count = ends.flow.receive(&mut answered, BATCH) => {
                if count == 0 {
                    break;
                }
                last = Instant::now();
                for payload in &answered {
                    ends.entry.received(payload.len());
                }
                ends.answers.send(&mut outgoing, &answered);
                answered.clear();
                continue;
            }
            () = &mut silence => {
                if last.elapsed() >= idle {
                    break;
                }
                silence.as_mut().reset(last + idle);
                continue;
            }
        }
        last = Instant::now();
        let asked = asked.drain(..).map(|waiting| waiting.payload);
        for payload in asked.chain(direct.drain(..)) {
            ends.entry.sent(payload.len());
            if let Err(error) = ends.flow.send(payload).await {
                tracing::debug!(reason = reason(&error), "datagram dropped");
            }
        }
    }
}

/// The kernel reports an ICMP error of an earlier datagram at the next call.
fn is_about_a_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable};
    let kind = error.kind();
    matches!(
        kind,
        ConnectionRefused | HostUnreachable | Interrupted | NetworkUnreachable
    )
}

#[cfg(test)]
mod tests {
    use relay_tunnel::endpoint::EarlyData;
    use tokio::net::TcpStream;

    use super::*;
    use crate::testing::{Here, entry};

    async fn echo() -> u16 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut buffer = vec![0; LARGEST];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let _ = socket.send_to(&buffer[..length], from).await;
            }
        });
        port
    }

    async fn forwarded(way: &Here, idle: Duration) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (way, remote) = (way.clone(), echo().await);
        let leads = Leads::To(remote);
        let door = Door {
            socket: Arc::new(socket),
            place: Place {
                address,
                leads,
                entry: entry("udp://1"),
            },
        };
        tokio::spawn(async move { run(door, &way, idle).await });
        address
    }

    async fn ask(client: &UdpSocket, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
        client.send_to(payload, to).await.unwrap();
        let mut buffer = vec![0; LARGEST];
        let answer = tokio::time::timeout(Duration::from_secs(5), client.recv_from(&mut buffer));
        let (length, from) = answer.await.expect("an answer").unwrap();
        assert_eq!(from, to);
        buffer.truncate(length);
        buffer
    }

    #[tokio::test]
    async fn each_client_has_a_flow_and_gets_its_own_answers() {
        let way = Here::default();
        let forward = forwarded(&way, IDLE).await;
        let (one, two) = tokio::join!(
            UdpSocket::bind("127.0.0.1:0"),
            UdpSocket::bind("127.0.0.1:0")
        );
        let (one, two) = (one.unwrap(), two.unwrap());
        for round in 0..3_u8 {
            assert_eq!(ask(&one, forward, &[1, round]).await, [1, round]);
            assert_eq!(ask(&two, forward, &[2, round]).await, [2, round]);
        }
        assert_eq!(way.flows(), 2);
    }

    #[tokio::test]
    async fn datagrams_of_every_size_pass() {
        let forward = forwarded(&Here::default(), IDLE).await;
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for size in [0, 1, 1232, 1233, 9000, 65_507] {
            assert_eq!(ask(&client, forward, &vec![7; size]).await.len(), size);
        }
    }

    #[tokio::test]
    async fn a_crowd_of_datagrams_passes_in_order() {
        let forward = forwarded(&Here::default(), IDLE).await;
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let datagram = |n: u8| vec![n; 100 + usize::from(n) / 40];
        for n in 0..=200 {
            client.send_to(&datagram(n), forward).await.unwrap();
        }
        let mut buffer = vec![0; LARGEST];
        for n in 0..=200 {
            let answer = tokio::time::timeout(Duration::from_secs(5), client.recv(&mut buffer));
            let length = answer.await.expect("an answer").unwrap();
            assert_eq!(buffer[..length], datagram(n));
        }
    }

    /// A tunnel that takes nothing.
    #[derive(Clone)]
    struct Stuck;

    impl Way for Stuck {
        type Flow = Stuck;

        async fn connect(&self, _: u16, _: &[u8]) -> io::Result<(TcpStream, usize)> {
            pending().await
        }

        fn early_data(&self) -> Option<EarlyData> {
            None
        }

        fn open_flow(&self, _: u16) -> io::Result<Stuck> {
            Ok(Stuck)
        }
    }

    impl Flow for Stuck {
        async fn send(&self, _: Bytes) -> io::Result<()> {
            pending().await
        }

        async fn receive(&mut self, _: &mut Vec<Bytes>, _: usize) -> usize {
            pending().await
        }
    }

    #[tokio::test]
    async fn what_waits_for_the_tunnel_is_bounded_over_all_clients() {
        let door = Door {
            socket: Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap()),
            place: Place {
                address: "127.0.0.1:1".parse().unwrap(),
                leads: Leads::To(1),
                entry: entry("udp://1"),
            },
        };
        let mut clients = Clients::new(IDLE);
        let room = clients.room.clone();
        let large = Bytes::from(vec![0; 60_000]);
        for n in 0..400 {
            let from = SocketAddr::from(([127, 0, 0, 1], 5000 + n % 4));
            let client = Client { from, port: 1 };
            clients.take(
                client,
                large.clone(),
                (&door, &Stuck),
                std::time::Instant::now(),
            );
        }
        assert!(room.available_permits() < large.len());
        drop(clients);
        while room.available_permits() < WAITING {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_silent_client_starts_a_new_flow_when_it_comes_back() {
        let way = Here::default();
        let forward = forwarded(&way, Duration::from_millis(50)).await;
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        ask(&client, forward, b"before").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        ask(&client, forward, b"after").await;
        assert_eq!(way.flows(), 2);
    }
}
