//! Connections from peers: the app on this machine's loopback is dialled first, and only when it
//! answers does the peer's connection come about.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use relay_engine::Engine;
use relay_tunnel::stack::Incoming;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::api::{self, Api};
use crate::same_host::Neighbours;
use crate::speedtest::{self, SpeedTests};
use crate::ssh;
use crate::traffic::{Protocol, Traffic};

/// What one peer may have open. Two descriptors each; the limit of descriptors is for all peers.
const PER_PEER: usize = 16_384;
/// A peer's SYN is held no longer than this while its app is dialled.
const DIAL: Duration = Duration::from_secs(10);

/// What connections are served with.
#[derive(Clone)]
pub(crate) struct Service {
    /// Moves the bytes of apps.
    pub(crate) engine: Engine,
    pub(crate) api: Arc<Api>,
    pub(crate) ssh: Arc<ssh::Server>,
    pub(crate) speed_tests: SpeedTests,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) neighbours: Neighbours,
    /// What peers have open, by whatever way.
    pub(crate) open: Open,
}

/// Serves the connections of the peers of one loop, in the runtime of that loop, until the tunnel is
/// closed.
pub(crate) async fn serve(mut incoming: mpsc::Receiver<Incoming>, service: Service) {
    while let Some(wanted) = incoming.recv().await {
        let source = wanted.source();
        let Some(place) = service.open.take(*source.ip()) else {
            tracing::debug!(%source, "a peer has too many connections open; one more is refused");
            wanted.refuse();
            continue;
        };
        let service = service.clone();
        tokio::spawn(async move {
            // Boxes, so that connections to apps, which may be many, take no room for the others.
            match wanted.port() {
                api::PORT => Box::pin(answer(wanted, service)).await,
                speedtest::PORT => Box::pin(measure(wanted, service.speed_tests)).await,
                port if ssh::PORTS.contains(&port) => {
                    Box::pin(log_in(wanted, service.ssh, &service.traffic)).await;
                }
                _ => connect(wanted, service.engine, &service.traffic).await,
            }
            drop(place);
        });
    }
}

/// Whether the agent itself answers at a port.
pub(crate) fn is_own(port: u16) -> bool {
    port == api::PORT || port == speedtest::PORT || ssh::PORTS.contains(&port)
}

/// Serves what the agent itself answers.
async fn answer(wanted: Incoming, service: Service) {
    let source = *wanted.source().ip();
    match wanted.accept().await {
        Ok(peer) => {
            let api = Arc::clone(&service.api);
            let invite = move |challenge| {
                let neighbours = service.neighbours.clone();
                neighbours.invite(source, challenge, service.clone())
            };
            api.serve(peer, Arc::new(invite)).await;
        }
        Err(error) => tracing::debug!(%error, "the peer went away before it was connected"),
    }
}

/// Serves a speed test.
async fn measure(wanted: Incoming, tests: SpeedTests) {
    match wanted.accept().await {
        Ok(peer) => tests.serve(peer).await,
        Err(error) => tracing::debug!(%error, "the peer went away before it was connected"),
    }
}

/// Serves SSH, which the agent itself speaks.
async fn log_in(wanted: Incoming, ssh: Arc<ssh::Server>, traffic: &Arc<Traffic>) {
    let _counted = traffic.open(Protocol::Ssh);
    let (remote, local) = (wanted.source().into(), wanted.destination().into());
    match wanted.accept_patiently(ssh::SLEEP).await {
        Ok(peer) => ssh.serve(peer, ssh::Peer { remote, local }).await,
        Err(error) => tracing::debug!(%error, "the peer went away before it was connected"),
    }
}

async fn connect(wanted: Incoming, engine: Engine, traffic: &Arc<Traffic>) {
    let (source, port) = (wanted.source(), wanted.port());
    let app = match Box::pin(dial(port)).await {
        Ok(app) => app,
        Err(error) => {
            tracing::debug!(%source, port, %error, "no app answers");
            return wanted.refuse();
        }
    };
    let counted = traffic.open(Protocol::Tcp);
    let carried = wanted.carry(app, engine, &counted.counts.moved).await;
    let summary = match carried {
        Ok(summary) => summary,
        Err(error) => {
            tracing::debug!(%source, port, %error, "the peer went away before it was connected");
            return;
        }
    };
    tracing::debug!(
        %source,
        port,
        received = summary.a_to_b,
        sent = summary.b_to_a,
        end = ?summary.end,
        "connection closed"
    );
}

/// Dials a port of this machine's loopback: IPv4 first, as most apps listen there.
pub(crate) async fn dial(port: u16) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::ConnectionRefused.into();
    for loopback in LOOPBACKS {
        let address = SocketAddr::new(loopback, port);
        match tokio::time::timeout(DIAL / 2, relay_engine::connect(address)).await {
            Ok(Ok(stream)) if !is_itself(&stream, address) => return Ok(stream),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// The addresses under which an app is looked for, in this order.
pub(crate) const LOOPBACKS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// A dial to a free port in the ephemeral range can meet itself (simultaneous open).
fn is_itself(stream: &TcpStream, remote: SocketAddr) -> bool {
    stream.local_addr().is_ok_and(|local| local == remote)
}

/// Connections that are open, by peer.
#[derive(Clone, Default)]
pub(crate) struct Open(Arc<Mutex<HashMap<Ipv6Addr, usize>>>);

/// One connection's place; given back when dropped.
pub(crate) struct Place {
    open: Open,
    peer: Ipv6Addr,
}

impl Open {
    pub(crate) fn take(&self, peer: Ipv6Addr) -> Option<Place> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(peer).or_default();
        if *count >= PER_PEER {
            return None;
        }
        *count += 1;
        Some(Place {
            open: self.clone(),
            peer,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_app_on_ipv6_alone_is_found() {
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = dial(port).await.unwrap();
        assert!(stream.peer_addr().unwrap().is_ipv6());
    }

    #[tokio::test]
    async fn a_port_without_an_app_is_refused() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = dial(port).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_peer_has_a_bounded_number_of_places_and_gets_them_back() {
        let open = Open::default();
        let peer = Ipv6Addr::LOCALHOST;
        let mut places: Vec<_> = (0..PER_PEER).map_while(|_| open.take(peer)).collect();
        assert_eq!(places.len(), PER_PEER);
        assert!(open.take(peer).is_none());
        assert!(open.take(Ipv6Addr::UNSPECIFIED).is_some());
        places.pop();
        assert!(open.take(peer).is_some());
        drop(places);
        assert!(open.0.lock().unwrap().is_empty());
    }
}
