//! Datagrams from peers: one socket towards the app for each flow (a peer's address and port, and
//! the port that it wants), which ends after a time of silence.

use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use relay_engine::burst::{Inbox, Outgoing, merge};
use relay_engine::sessions::Sessions;
use relay_tunnel::datagram::Datagram;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::tcp::LOOPBACKS;
use crate::traffic::{Counted, Counts, Protocol, Traffic};

/// Silence after which a flow ends.
const IDLE: Duration = Duration::from_secs(120);
/// The same for DNS, where a flow is one question.
const IDLE_DNS: Duration = Duration::from_secs(30);
const DNS: u16 = 53;
/// Flows of all peers. When there are more, the one that was silent for longest makes room.
const FLOWS: usize = 4096;
/// Answers that may wait for the tunnel.
const ANSWERS: usize = 256;
/// Datagrams taken from the tunnel at a time.
const BATCH: usize = 128;

/// What a flow is known by: the peer's end, and this agent's.
type Key = (SocketAddrV6, SocketAddrV6);

/// Serves datagrams until the tunnel is closed; `send` takes the answers.
pub(crate) async fn serve<F>(
    mut incoming: mpsc::Receiver<Datagram>,
    traffic: Arc<Traffic>,
    send: impl Fn(Datagram) -> F,
) where
    F: Future<Output = Result<(), relay_tunnel::Error>>,
{
    let (answers, mut outgoing) = mpsc::channel(ANSWERS);
    let mut flows = Flows::new(answers, traffic);
    let (mut datagrams, mut run) = (Vec::new(), Vec::new());
    let mut answers = Vec::new();
    loop {
        let expiry = flows.next_expiry();
        tokio::select! {
            count = incoming.recv_many(&mut datagrams, BATCH) => match count {
                0 => return,
                _ => flows.deliver_all(&mut datagrams, &mut run),
            },
            _ = outgoing.recv_many(&mut answers, BATCH) => for answer in answers.drain(..) {
                if let Err(error) = send(answer).await {
                    tracing::debug!(%error, "an answer is lost");
                }
            },
            () = sleep_until(expiry) => flows.sweep(Instant::now()),
        }
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

/// All flows of an agent.
struct Flows {
    dns: Sessions<Key, Flow>,
    other: Sessions<Key, Flow>,
    answers: mpsc::Sender<Datagram>,
    traffic: Arc<Traffic>,
    /// One for all: it is used only between two awaits.
    inbox: Arc<Mutex<Inbox>>,
}

struct Flow {
    socket: Arc<UdpSocket>,
    outgoing: Outgoing,
    state: Arc<State>,
    counted: Counted,
    reader: AbortHandle,
}

/// What a flow's reader tells the table.
struct State {
    /// When the app answered last, looked at when the flow's time seems over.
    answered: Mutex<Instant>,
    /// The app went away; perhaps another came, on the other family.
    refused: AtomicBool,
}

impl State {
    fn answered(&self) -> Instant {
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_answer(&self, now: Instant) {
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

/// What became of datagrams for an app.
enum Sent {
    /// So many were sent, or lost as UDP may lose them.
    Taken(usize),
    /// None: the app is not there.
    Refused,
}

impl Flow {
    /// Sends the first of `payloads`, and what goes with it.
    fn send(&mut self, payloads: &[Bytes]) -> Sent {
        if self.state.refused.load(Ordering::Relaxed) {
            return Sent::Refused;
        }
        let count = match self.outgoing.send(&self.socket, None, payloads) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Sent::Refused,
            Err(_) => 1,
        };
        for payload in &payloads[..count] {
            self.counted.counts.received(payload.len());
        }
        Sent::Taken(count)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Flows {
    fn new(answers: mpsc::Sender<Datagram>, traffic: Arc<Traffic>) -> Flows {
        Flows {
            dns: Sessions::new(FLOWS, IDLE_DNS),
            other: Sessions::new(FLOWS, IDLE),
            answers,
            traffic,
            inbox: Arc::default(),
        }
    }

    /// Hands datagrams to their apps, those side by side of one flow together. `run` is room to work.
    fn deliver_all(&mut self, datagrams: &mut Vec<Datagram>, run: &mut Vec<Bytes>) {
        let mut datagrams = datagrams.drain(..).peekable();
        while let Some(first) = datagrams.next() {
            let key = (first.source, first.destination);
            run.push(first.payload);
            let same = |next: &Datagram| (next.source, next.destination) == key;
            while let Some(next) = datagrams.next_if(same) {
                run.push(next.payload);
            }
            self.deliver(key, run, Instant::now());
            run.clear();
        }
    }

    /// Hands a flow's datagrams to its app. An app that is not there is nobody's error: UDP may lose
    /// anything.
    fn deliver(&mut self, key: Key, mut payloads: &[Bytes], now: Instant) {
        let port = key.1.port();
        while let Some(first) = payloads.first() {
            let sent = match self.table(port).get(&key, now) {
                Some(flow) => flow.send(payloads),
                None => Sent::Refused,
            };
            let count = match sent {
                Sent::Taken(count) => count,
                Sent::Refused => {
                    self.table(port).remove(&key);
                    match open(port, first) {
                        Ok(socket) => {
                            let flow = self.start(key, socket, now);
                            flow.counted.counts.received(first.len());
                            self.table(port).insert(key, flow, now);
                        }
                        Err(error) => {
                            tracing::debug!(source = %key.0, port, %error, "a datagram is lost");
                        }
                    }
                    1
                }
            };
            payloads = &payloads[count..];
        }
    }

    /// Ends flows that were silent for too long.
    fn sweep(&mut self, now: Instant) {
        for (table, idle) in [(&mut self.dns, IDLE_DNS), (&mut self.other, IDLE)] {
            for (key, flow) in table.expire(now) {
                if flow.state.answered() + idle > now {
                    table.insert(key, flow, now);
                }
            }
        }
    }

    fn next_expiry(&self) -> Option<Instant> {
        let (dns, other) = (self.dns.next_expiry(), self.other.next_expiry());
        dns.into_iter().chain(other).min()
    }

    fn table(&mut self, port: u16) -> &mut Sessions<Key, Flow> {
        if port == DNS {
            &mut self.dns
        } else {
            &mut self.other
        }
    }

    fn start(&self, key: Key, socket: UdpSocket, now: Instant) -> Flow {
        let socket = Arc::new(socket);
        let state = Arc::new(State {
            answered: Mutex::new(now),
            refused: AtomicBool::new(false),
        });
        let counted = self.traffic.open(Protocol::Udp);
        let reader = read_answers(
            key,
            Arc::clone(&socket),
            Arc::clone(&state),
            Arc::clone(&counted.counts),
            self.answers.clone(),
            Arc::clone(&self.inbox),
        );
        Flow {
            socket,
            outgoing: Outgoing::default(),
            state,
            counted,
            reader: tokio::spawn(reader).abort_handle(),
        }
    }
}

async fn read_answers(
    (peer, own): Key,
    socket: Arc<UdpSocket>,
    state: Arc<State>,
    counts: Arc<Counts>,
    answers: mpsc::Sender<Datagram>,
    inbox: Arc<Mutex<Inbox>>,
) {
    let mut batch = Vec::new();
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        let received = {
            let mut inbox = inbox.lock().unwrap_or_else(PoisonError::into_inner);
            inbox.receive(&socket, |_, answer| {
                batch.push(Bytes::copy_from_slice(answer))
            })
        };
        match received {
            Ok(()) => {
                state.note_answer(Instant::now());
                for payload in batch.drain(..) {
                    counts.sent(payload.len());
                    let answer = Datagram {
                        source: own,
                        destination: peer,
                        payload,
                    };
                    if answers.send(answer).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => {
                state.refused.store(true, Ordering::Relaxed);
                return;
            }
        }
    }
}

/// Opens a socket to the app and sends the first datagram. Loopback tells at once when nothing
/// listens.
fn open(port: u16, first: &[u8]) -> io::Result<UdpSocket> {
    let mut last = io::ErrorKind::ConnectionRefused.into();
    for loopback in LOOPBACKS {
        match open_at(SocketAddr::new(loopback, port), first) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn open_at(app: SocketAddr, first: &[u8]) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(SocketAddr::new(app.ip(), 0))?;
    socket.set_nonblocking(true)?;
    relay_engine::deepen(&socket);
    merge(&socket);
    socket.connect(app)?;
    if socket.local_addr()? == app {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    socket.send(first)?;
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    UdpSocket::from_std(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use super::*;

    type Answers = mpsc::Receiver<Datagram>;

    #[tokio::test]
    async fn an_answer_goes_back_to_the_peer_that_asked() {
        for loopback in LOOPBACKS {
            let (app, port) = app(loopback).await;
            let (mut flows, mut answers) = flows();
            deliver(&mut flows, datagram(peer(1), port, b"question"));
            let (data, from) = receive(&app).await;
            assert_eq!(data, b"question");
            app.send_to(b"answer", from).await.unwrap();
            let answer = answers.recv().await.unwrap();
            assert_eq!((answer.source, answer.destination), (own(port), peer(1)));
            assert_eq!(&answer.payload[..], b"answer");
        }
    }

    #[tokio::test]
    async fn each_flow_has_its_own_socket_and_keeps_it() {
        let (app, port) = app(LOOPBACKS[0]).await;
        let (mut flows, _answers) = flows();
        let mut seen = Vec::new();
        for number in [1, 2, 1] {
            deliver(&mut flows, datagram(peer(number), port, b"x"));
            seen.push(receive(&app).await.1);
        }
        assert_ne!(seen[0], seen[1]);
        assert_eq!(seen[0], seen[2]);
    }

    #[tokio::test]
    async fn the_largest_datagram_passes_both_ways() {
        let (app, port) = app(LOOPBACKS[0]).await;
        let (mut flows, mut answers) = flows();
        let data = vec![9; 65_507];
        deliver(&mut flows, datagram(peer(1), port, &data));
        let (received, from) = receive(&app).await;
        assert_eq!(received, data);
        app.send_to(&received, from).await.unwrap();
        assert_eq!(answers.recv().await.unwrap().payload, data);
    }

    #[tokio::test]
    async fn an_app_that_starts_later_is_found_by_the_next_datagram() {
        let (first, port) = app(LOOPBACKS[0]).await;
        drop(first);
        let (mut flows, _answers) = flows();
        deliver(&mut flows, datagram(peer(1), port, b"lost"));
        let late = UdpSocket::bind((LOOPBACKS[1], port)).await.unwrap();
        deliver(&mut flows, datagram(peer(1), port, b"found"));
        assert_eq!(receive(&late).await.0, b"found");
    }

    #[tokio::test]
    async fn an_app_that_moves_to_the_other_family_is_found() {
        let (first, port) = app(LOOPBACKS[0]).await;
        let (mut flows, _answers) = flows();
        deliver(&mut flows, datagram(peer(1), port, b"here"));
        receive(&first).await;
        drop(first);
        let moved = UdpSocket::bind((LOOPBACKS[1], port)).await.unwrap();
        deliver(&mut flows, datagram(peer(1), port, b"lost"));
        tokio::time::sleep(Duration::from_millis(20)).await;
        deliver(&mut flows, datagram(peer(1), port, b"found"));
        assert_eq!(receive(&moved).await.0, b"found");
    }

    #[tokio::test]
    async fn a_silent_flow_ends_and_an_answered_one_stays() {
        let (_app, port) = app(LOOPBACKS[0]).await;
        let (mut flows, _answers) = flows();
        deliver(&mut flows, datagram(peer(1), port, b"x"));
        deliver(&mut flows, datagram(peer(2), port, b"x"));
        let later = Instant::now() + IDLE;
        let answered = flows.other.get(&(peer(2), own(port)), Instant::now());
        answered.unwrap().state.note_answer(later);
        flows.sweep(later + Duration::from_secs(1));
        assert!(flows.other.get(&(peer(1), own(port)), later).is_none());
        assert!(flows.other.get(&(peer(2), own(port)), later).is_some());
    }

    fn deliver(flows: &mut Flows, datagram: Datagram) {
        flows.deliver_all(&mut vec![datagram], &mut Vec::new());
    }

    fn flows() -> (Flows, Answers) {
        let (sender, receiver) = mpsc::channel(ANSWERS);
        (Flows::new(sender, Arc::default()), receiver)
    }

    fn datagram(source: SocketAddrV6, port: u16, payload: &[u8]) -> Datagram {
        let payload = Bytes::copy_from_slice(payload);
        Datagram {
            source,
            destination: own(port),
            payload,
        }
    }

    async fn app(loopback: IpAddr) -> (UdpSocket, u16) {
        let socket = UdpSocket::bind((loopback, 0)).await.unwrap();
        let port = socket.local_addr().unwrap().port();
        (socket, port)
    }

    async fn receive(app: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; 65_536];
        let received = tokio::time::timeout(Duration::from_secs(5), app.recv_from(&mut buffer));
        let (count, from) = received.await.unwrap().unwrap();
        buffer.truncate(count);
        (buffer, from)
    }

    fn peer(number: u16) -> SocketAddrV6 {
        SocketAddrV6::new(Ipv6Addr::new(0xfd7a, 0, 0, 0, 0, 0, 0, 1), number, 0, 0)
    }

    fn own(port: u16) -> SocketAddrV6 {
        SocketAddrV6::new(Ipv6Addr::new(0xfd7a, 0, 0, 0, 0, 0, 0, 2), port, 0, 0)
    }
}
