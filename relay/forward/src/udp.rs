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
use relay_engine::sessions::Sessions;
use relay_engine::steer::{self, Arrived};
use relay_wire::spec::Proto;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::board::Entry;
use crate::event::{Event, Reporter};
use crate::listeners::{Leads, Place};
use crate::way::{Flow, Way, reason};

const IDLE: Duration = Duration::from_secs(120);
/// Clients of one socket at a time; the one that was silent for longest makes room.
const CLIENTS: usize = 1024;
/// Datagrams of one client that wait for the tunnel; more are dropped, as UDP does.
const QUEUE: usize = 256;
const LARGEST: usize = 65_535;

thread_local! {
    /// Where the flows of this thread receive: one buffer for all of them.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; LARGEST].into());
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
    // Flows end by themselves, so nothing here has to expire.
    let mut clients = Sessions::<Client, Known>::new(CLIENTS, idle);
    let mut flows = JoinSet::new();
    let mut buffer = vec![0; LARGEST];
    loop {
        tokio::select! {
            received = door.receive(&mut buffer) => {
                let (length, client) = match received {
                    Ok(received) => received,
                    Err(error) if is_about_a_client(&error) => continue,
                    Err(error) => return Err(error),
                };
                let now = std::time::Instant::now();
                let payload = Bytes::copy_from_slice(&buffer[..length]);
                let known = clients.get(&client, now).filter(|known| !known.queue.is_closed());
                let queue = match known {
                    Some(known) => known.queue.clone(),
                    None => {
                        let opened = door.open(&client, way);
                        let (answers, flow) = match opened {
                            Ok(opened) => opened,
                            Err(error) => {
                                tracing::debug!(reason = reason(&error), "datagram dropped");
                                continue;
                            }
                        };
                        let (queue, datagrams) = mpsc::channel(QUEUE);
                        let busy = Arc::new(AtomicBool::new(false));
                        note_busy(&mut clients, now);
                        let known = Known { client, queue: queue.clone(), busy: busy.clone() };
                        clients.insert(client, known, now);
                        let entry = door.place.entry.clone();
                        let ends = Ends { answers, busy, flow, entry };
                        flows.spawn(async move {
                            carry(ends, datagrams, idle).await;
                            client
                        });
                        queue
                    }
                };
                let _ = queue.try_send(payload);
            }
            Some(ended) = flows.join_next() => {
                // The entry may belong to a later flow of the same client by now.
                if let Ok(client) = ended {
                    let now = std::time::Instant::now();
                    if clients.get(&client, now).is_some_and(|known| known.queue.is_closed()) {
                        clients.remove(&client);
                    }
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
    queue: mpsc::Sender<Bytes>,
    /// Datagrams arrived at the flow's own socket lately.
    busy: Arc<AtomicBool>,
}

/// Before a client has to make room: what arrives at the sockets of flows does not pass the table.
fn note_busy(clients: &mut Sessions<Client, Known>, now: std::time::Instant) {
    if clients.len() < CLIENTS {
        return;
    }
    let lately = |known: &&Known| known.busy.swap(false, Ordering::Relaxed);
    let busy: Vec<_> = clients
        .values()
        .filter(lately)
        .map(|known| known.client)
        .collect();
    for client in busy {
        clients.get(&client, now);
    }
}

/// Where first datagrams arrive.
struct Door {
    socket: Arc<UdpSocket>,
    place: Place,
}

impl Door {
    async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Client)> {
        match &self.place.leads {
            Leads::To(_) | Leads::Socket(_) => {
                let (length, from) = self.socket.recv_from(buffer).await?;
                let port = self.place.address.port();
                Ok((length, Client { from, port }))
            }
            Leads::By(_) => {
                let Arrived { length, from, port } = steer::receive(&self.socket, buffer).await?;
                Ok((length, Client { from, port }))
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

/// How a client gets its answers.
enum Answers {
    Shared(Arc<UdpSocket>, SocketAddr),
    /// A socket that is connected to the client.
    Own(UdpSocket),
}

impl Answers {
    /// A client that takes nothing loses datagrams, as on any network.
    fn send(&self, payload: &[u8]) {
        let _ = match self {
            Self::Shared(socket, client) => socket.try_send_to(payload, *client),
            Self::Own(socket) => socket.try_send(payload),
        };
    }

    /// The next datagram that did not come through the door.
    async fn receive(&self) -> io::Result<Bytes> {
        let Self::Own(socket) = self else {
            return pending().await;
        };
        loop {
            socket.readable().await?;
            let received = SCRATCH.with_borrow_mut(|scratch| -> io::Result<Bytes> {
                let length = socket.try_recv(scratch)?;
                Ok(Bytes::copy_from_slice(&scratch[..length]))
            });
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
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
async fn carry<F: Flow>(mut ends: Ends<F>, mut datagrams: mpsc::Receiver<Bytes>, idle: Duration) {
    let mut last = Instant::now();
    let silence = tokio::time::sleep(idle);
    tokio::pin!(silence);
    loop {
        let payload = tokio::select! {
            datagram = datagrams.recv() => {
                let Some(payload) = datagram else { break };
                payload
            }
            datagram = ends.answers.receive() => {
                let Ok(payload) = datagram else { break };
                ends.busy.store(true, Ordering::Relaxed);
                payload
            }
            answer = ends.flow.receive() => {
                let Some(payload) = answer else { break };
                last = Instant::now();
                ends.entry.received(payload.len());
                ends.answers.send(&payload);
                continue;
            }
            () = &mut silence => {
                if last.elapsed() >= idle {
                    break;
                }
                silence.as_mut().reset(last + idle);
                continue;
            }
        };
        last = Instant::now();
        ends.entry.sent(payload.len());
        if let Err(error) = ends.flow.send(&payload).await {
            tracing::debug!(reason = reason(&error), "datagram dropped");
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
