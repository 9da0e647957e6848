//! One TCP or Unix listener: each connection is dialled in the workspace and pumped.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use relay_engine::accept::Acceptor;
use relay_engine::unix::Bound;
use relay_engine::{Engine, Side, pump_counted};
use relay_tunnel::endpoint::EarlyData;
use relay_tunnel::stack::Stream;
use relay_wire::same_host::To;
use relay_wire::spec::Proto;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use crate::agent_api;
use crate::board::{Counted, Entry};
use crate::event::{Event, Reporter};
use crate::listeners::{Place, Remote};
use crate::same_host::Handed;
use crate::way::{Way, reason};

/// Looks at a socket for its first bytes, where no time is to be lost: a few microseconds in all.
const LOOKS: usize = 4;

/// Serves a listener until it breaks or its forward is taken down, and its connections to their end.
/// Dropping the future closes it and all its connections.
pub(crate) async fn serve<W: Way>(
    mut acceptor: Acceptor,
    place: Place,
    way: W,
    engine: Engine,
    report: Reporter,
) {
    let mut connections = JoinSet::new();
    let entry = place.entry.clone();
    let mut stopped = std::pin::pin!(entry.stopped());
    loop {
        tokio::select! {
            accepted = acceptor.next() => match accepted {
                Ok((stream, from)) => {
                    let remote = match place.remote(&stream) {
                        Ok(remote) => remote,
                        Err(error) => {
                            tracing::debug!(%error, "a connection to no port of ours");
                            relay_engine::abort(stream);
                            continue;
                        }
                    };
                    tracing::debug!(%from, ?remote, "connection");
                    let counted = place.entry.connect(Some(from), &report);
                    let (way, report) = (way.clone(), report.clone());
                    connections.spawn(carry(stream, remote, way, engine, report, counted));
                }
                Err(error) => {
                    report.tell(Event::ListenerStopped {
                        proto: Proto::Tcp,
                        local: place.address,
                        reason: reason(&error),
                    });
                    break;
                }
            },
            Some(_) = connections.join_next() => {}
            () = &mut stopped => break,
        }
    }
    drop(acceptor);
    while connections.join_next().await.is_some() {}
}

/// Serves a Unix socket in the same way.
pub(crate) async fn serve_unix<W: Way>(
    bound: Bound,
    remote: Remote,
    entry: std::sync::Arc<Entry>,
    way: W,
    engine: Engine,
    report: Reporter,
) {
    let mut connections = JoinSet::new();
    let mut stopped = std::pin::pin!(entry.stopped());
    loop {
        tokio::select! {
            stream = bound.next() => {
                let counted = entry.connect(None, &report);
                let (remote, way, report) = (remote.clone(), way.clone(), report.clone());
                connections.spawn(carry_unix(stream, remote, way, engine, report, counted));
            }
            Some(_) = connections.join_next() => {}
            () = &mut stopped => break,
        }
    }
    drop(bound);
    while connections.join_next().await.is_some() {}
}

async fn carry<W: Way>(
    local: TcpStream,
    remote: Remote,
    way: W,
    engine: Engine,
    report: Reporter,
    mut counted: Counted,
) {
    // Boxes, so that what opening takes is given back before the long part begins.
    match Box::pin(hand_over(&way, &remote, local.as_fd(), &counted)).await {
        Some(Ok(handed)) => {
            drop(local);
            return handed.ended().await;
        }
        Some(Err(error)) => {
            fail(&remote, &error, &report, counted);
            return relay_engine::abort(local);
        }
        None => {}
    }
    let opening = Box::pin(async {
        match (&remote, way.early_data()) {
            (Remote::Port(port), Some(early)) => {
                let first = first_bytes(&local, early).await;
                open(&way, *port, &local, first).await
            }
            (Remote::Port(port), _) => way.open(*port, &[]).await,
            (Remote::Socket(path), _) => {
                let dialled = agent_api::dial_socket(&way, path).await;
                dialled.map(|far| (Stream::Kernel(far), 0))
            }
        }
    });
    match opening.await {
        Ok((far, early)) => {
            counted.early(early);
            let summary = far.carry(local, engine, &counted.moved).await;
            tracing::debug!(?summary, "connection ended");
        }
        Err(error) => {
            fail(&remote, &error, &report, counted);
            relay_engine::abort(local);
        }
    }
}

async fn carry_unix<W: Way>(
    local: UnixStream,
    remote: Remote,
    way: W,
    engine: Engine,
    report: Reporter,
    counted: Counted,
) {
    match hand_over(&way, &remote, local.as_fd(), &counted).await {
        Some(Ok(handed)) => {
            drop(local);
            return handed.ended().await;
        }
        Some(Err(error)) => return fail(&remote, &error, &report, counted),
        None => {}
    }
    let connected = match &remote {
        Remote::Port(port) => way.connect(*port, &[]).await.map(|(far, _)| far),
        Remote::Socket(path) => agent_api::dial_socket(&way, path).await,
    };
    match connected {
        Ok(far) => {
            let summary = pump_counted(local, far, engine, &counted.moved).await;
            tracing::debug!(?summary, "connection ended");
        }
        Err(error) => fail(&remote, &error, &report, counted),
    }
}

/// Hands a connection over to an agent on this machine, if there is one.
async fn hand_over<W: Way>(
    way: &W,
    remote: &Remote,
    local: BorrowedFd<'_>,
    counted: &Counted,
) -> Option<io::Result<Handed>> {
    let to = match remote {
        Remote::Port(port) => To::Port(*port),
        Remote::Socket(path) => To::Socket(path.to_string()),
    };
    way.hand_over(to, local, (&counted.moved, Side::A)).await
}

fn fail(remote: &Remote, error: &io::Error, report: &Reporter, counted: Counted) {
    let reason = reason(error);
    counted.fail(reason.clone());
    report.tell(match remote {
        Remote::Port(port) => Event::DialFailed {
            remote: *port,
            reason,
        },
        Remote::Socket(path) => Event::SocketDialFailed {
            path: path.to_string(),
            reason,
        },
    });
}

/// What the app sends at once, left where it is.
async fn first_bytes(local: &TcpStream, early: EarlyData) -> Vec<u8> {
    if early.wait.is_zero() {
        return look(local, early.room).await;
    }
    let mut first = vec![0; early.room];
    let peeked = tokio::time::timeout(early.wait, local.peek(&mut first)).await;
    // An app that sends nothing, or that has gone, is the pump's business.
    first.truncate(peeked.map_or(0, |length| length.unwrap_or(0)));
    first
}

/// Looks for bytes without waiting, a few times: the app may be writing them right now.
async fn look(local: &TcpStream, room: usize) -> Vec<u8> {
    for _ in 0..LOOKS {
        match relay_engine::peek(local, room) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::task::yield_now().await;
            }
            peeked => return peeked.unwrap_or_default(),
        }
    }
    Vec::new()
}

/// Connects, and takes from the app what went with the request; says how many bytes that is.
async fn open<W: Way>(
    way: &W,
    remote: u16,
    local: &TcpStream,
    mut first: Vec<u8>,
) -> io::Result<(Stream, usize)> {
    let (far, taken) = way.open(remote, &first).await?;
    let mut left = &mut first[..taken];
    while !left.is_empty() {
        match local.try_read(left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => left = &mut left[length..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => local.readable().await?,
            // The app has reset its connection meanwhile.
            Err(error) => {
                far.abort();
                return Err(error);
            }
        }
    }
    Ok((far, taken))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::SocketAddr;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::listeners::Leads;
    use crate::testing::{Here, entry};

    fn forwarded(remote: u16) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
        forwarded_with(remote, None)
    }

    fn forwarded_with(
        remote: u16,
        early: Option<EarlyData>,
    ) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
        let acceptor = Acceptor::new(relay_engine::listen("127.0.0.1:0".parse().unwrap()).unwrap());
        let local = acceptor.local_addr().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let copy = lines.clone();
        let report = Reporter::new(move |event| {
            if event.is_for_people() {
                copy.lock().unwrap().push(event.to_string());
            }
        });
        let place = Place {
            address: local,
            leads: Leads::To(remote),
            entry: entry("tcp://1"),
        };
        tokio::spawn(serve(
            acceptor,
            place,
            Here::with_early(early),
            Engine::Auto,
            report,
        ));
        (local, lines)
    }

    #[tokio::test]
    async fn connections_reach_the_port_and_carry_the_end_of_one_direction() {
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (local, _) = forwarded(app.local_addr().unwrap().port());
        let mut client = TcpStream::connect(local).await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let (mut server, _) = app.accept().await.unwrap();
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(
            (&question[..], &answer[..]),
            (&b"question"[..], &b"answer"[..])
        );
    }

    #[tokio::test]
    async fn first_bytes_go_with_the_request_once_and_the_rest_follows() {
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let early = EarlyData {
            wait: Duration::from_secs(5),
            room: 1000,
        };
        let (local, _) = forwarded_with(app.local_addr().unwrap().port(), Some(early));
        let mut client = TcpStream::connect(local).await.unwrap();
        let question: Vec<u8> = (0..5000u32).map(|n| n as u8).collect();
        client.write_all(&question).await.unwrap();
        client.shutdown().await.unwrap();
        let (mut server, _) = app.accept().await.unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, question);
    }

    #[tokio::test]
    async fn a_server_that_speaks_first_is_reached_after_the_wait() {
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let early = EarlyData {
            wait: Duration::from_millis(5),
            room: 1000,
        };
        let (local, _) = forwarded_with(app.local_addr().unwrap().port(), Some(early));
        let mut client = TcpStream::connect(local).await.unwrap();
        let (mut server, _) = app.accept().await.unwrap();
        server.write_all(b"hello").await.unwrap();
        let mut greeting = [0; 5];
        client.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"hello");
    }

    #[tokio::test]
    async fn a_refused_connection_is_told_and_reset() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let (local, lines) = forwarded(port);
        let mut client = TcpStream::connect(local).await.unwrap();
        let error = client.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(
            lines.lock().unwrap()[..],
            [format!(
                "Failed to dial 'tcp://127.0.0.1:{port}' in workspace: connection refused"
            )]
        );
    }
}
