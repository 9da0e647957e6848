//! One UDP socket: a flow through the tunnel for each client address, which ends after two
//! minutes without a datagram either way.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use relay_engine::sessions::Sessions;
use relay_wire::spec::{Listen, Proto};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::event::{Event, Reporter};
use crate::way::{Flow, Way, reason};

const IDLE: Duration = Duration::from_secs(120);
/// Clients of one socket at a time; the one that was silent for longest makes room.
const CLIENTS: usize = 1024;
/// Datagrams of one client that wait for the tunnel; more are dropped, as UDP does.
const QUEUE: usize = 256;
const LARGEST: usize = 65_535;

/// Serves a socket until it breaks. Dropping the future ends all its flows.
pub(crate) async fn serve<W: Way>(socket: UdpSocket, listen: Listen, way: W, report: Reporter) {
    if let Err(error) = run(Arc::new(socket), listen.forward.remote, &way, IDLE).await {
        let (proto, local, reason) = (Proto::Udp, listen.address, reason(&error));
        report.tell(Event::ListenerStopped {
            proto,
            local,
            reason,
        });
    }
}

async fn run<W: Way>(
    socket: Arc<UdpSocket>,
    remote: u16,
    way: &W,
    idle: Duration,
) -> io::Result<()> {
    // Flows end by themselves, so nothing here has to expire.
    let mut clients = Sessions::<SocketAddr, mpsc::Sender<Bytes>>::new(CLIENTS, idle);
    let mut flows = JoinSet::new();
    let mut buffer = vec![0; LARGEST];
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                let (length, from) = match received {
                    Ok(received) => received,
                    Err(error) if is_about_a_client(&error) => continue,
                    Err(error) => return Err(error),
                };
                let now = std::time::Instant::now();
                let payload = Bytes::copy_from_slice(&buffer[..length]);
                let queue = clients.get(&from, now).filter(|queue| !queue.is_closed()).cloned();
                let queue = match queue {
                    Some(queue) => queue,
                    None => {
                        let flow = match way.open_flow(remote) {
                            Ok(flow) => flow,
                            Err(error) => {
                                tracing::debug!(remote, reason = reason(&error), "datagram dropped");
                                continue;
                            }
                        };
                        let (queue, datagrams) = mpsc::channel(QUEUE);
                        clients.insert(from, queue.clone(), now);
                        flows.spawn(carry(socket.clone(), from, flow, datagrams, idle));
                        queue
                    }
                };
                let _ = queue.try_send(payload);
            }
            Some(ended) = flows.join_next() => {
                // The entry may belong to a later flow of the same client by now.
                if let Ok(client) = ended {
                    let now = std::time::Instant::now();
                    if clients.get(&client, now).is_some_and(|queue| queue.is_closed()) {
                        clients.remove(&client);
                    }
                }
            }
        }
    }
}

/// One client's flow, until it is silent, evicted, or the tunnel closes.
async fn carry<F: Flow>(
    socket: Arc<UdpSocket>,
    client: SocketAddr,
    mut flow: F,
    mut datagrams: mpsc::Receiver<Bytes>,
    idle: Duration,
) -> SocketAddr {
    let mut last = Instant::now();
    let silence = tokio::time::sleep(idle);
    tokio::pin!(silence);
    loop {
        tokio::select! {
            datagram = datagrams.recv() => {
                let Some(payload) = datagram else { break };
                last = Instant::now();
                if let Err(error) = flow.send(&payload).await {
                    tracing::debug!(reason = reason(&error), "datagram dropped");
                }
            }
            answer = flow.receive() => {
                let Some(payload) = answer else { break };
                last = Instant::now();
                // A client that takes nothing loses datagrams, as on any network.
                let _ = socket.try_send_to(&payload, client);
            }
            () = &mut silence => {
                if last.elapsed() >= idle {
                    break;
                }
                silence.as_mut().reset(last + idle);
            }
        }
    }
    client
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
    use crate::testing::Here;

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
        tokio::spawn(async move { run(Arc::new(socket), remote, &way, idle).await });
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
