//! The handle to an endpoint: everything above the tunnel goes through it.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use relay_wire::derp_map::DerpMap;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::commands::Command;
use super::early::{Early, EarlyData};
use super::node::{LocalNode, PeerNode};
use crate::Error;
use crate::datagram::{Datagram, Datagrams, Flow};
use crate::path::{PathState, PeerId, Via};
use crate::stack::{Incoming, KernelStack};

/// Commands that may wait for the loop.
pub(super) const COMMANDS: usize = 64;
/// How long a disco ping may take.
const DISCO_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// Short, so that an agent that comes back is noticed at once; a ping costs 100 bytes.
const LAST_RETRY: Duration = Duration::from_millis(250);

/// How each peer is reached, for those who wait for a change.
pub(super) type States = Arc<Mutex<HashMap<PeerId, watch::Sender<PathState>>>>;

/// A handle to a running endpoint. Clones name the same endpoint; it closes with the last of them.
#[derive(Debug, Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    commands: mpsc::Sender<Command>,
    stack: KernelStack,
    datagrams: Datagrams,
    node: watch::Receiver<Option<LocalNode>>,
    source: Ipv6Addr,
    states: States,
    early: Early,
    task: JoinHandle<()>,
}

/// The answer to a disco ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pong {
    /// How long it took.
    pub rtt: Duration,
    /// Which way it went.
    pub via: Via,
}

/// What is known about a peer at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStats {
    /// Bytes of packets sent to it.
    pub sent: u64,
    /// Bytes of packets received from it.
    pub received: u64,
    /// Age of the keys in use, if there are any.
    pub handshake_age: Option<Duration>,
    /// The tunnel's MTU towards it.
    pub mtu: u16,
    /// Packets dropped because they claimed a foreign source address.
    pub rejected: u64,
    /// Datagrams dropped because they were too large for it.
    pub oversize: u64,
}

impl Endpoint {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        stack: KernelStack,
        datagrams: Datagrams,
        node: watch::Receiver<Option<LocalNode>>,
        source: Ipv6Addr,
        states: States,
        early: Early,
        task: JoinHandle<()>,
    ) -> Endpoint {
        let inner = Inner {
            commands,
            stack,
            datagrams,
            node,
            source,
            states,
            early,
            task,
        };
        Endpoint {
            inner: Arc::new(inner),
        }
    }

    /// Tells the endpoint which relays there are.
    pub async fn set_derp_map(&self, map: DerpMap) -> Result<(), Error> {
        self.tell(Command::DerpMap(Box::new(map))).await
    }

    /// Installs or changes a peer; returns when it is installed. A new key for the same id or
    /// address replaces the old peer at once and ends the streams to it.
    pub async fn upsert_peer(&self, id: PeerId, node: PeerNode) -> Result<(), Error> {
        self.ask(|done| Command::Upsert {
            id,
            node: Box::new(node),
            done,
        })
        .await
    }

    /// Forgets a peer and ends the streams to it.
    pub async fn remove_peer(&self, id: PeerId) -> Result<(), Error> {
        self.ask(|done| Command::Remove { id, done }).await
    }

    /// This end as its peers should know it; `None` until its home relay is connected.
    pub fn node(&self) -> watch::Receiver<Option<LocalNode>> {
        self.inner.node.clone()
    }

    /// Opens a TCP stream through the tunnel.
    pub async fn connect(&self, remote: SocketAddrV6) -> io::Result<TcpStream> {
        Ok(self.connect_with(remote, &[]).await?.0)
    }

    /// Opens a TCP stream through the tunnel whose first bytes travel with its first packet if
    /// both ends can, and says how many of `first` did. The other end may act on them even when
    /// this fails later: never send them again by yourself.
    pub async fn connect_with(
        &self,
        remote: SocketAddrV6,
        first: &[u8],
    ) -> io::Result<(TcpStream, usize)> {
        let Inner { stack, early, .. } = &*self.inner;
        let first = if early.takes(*remote.ip()) {
            first
        } else {
            &[]
        };
        let began = Instant::now();
        let connected = stack.connect_with(self.inner.source, remote, first).await?;
        let now = Instant::now();
        early.answered(*remote.ip(), now - began);
        early.took(*remote.ip(), now.into_std());
        Ok(connected)
    }

    /// Whether the first bytes of a stream to `remote` should go with its first packet: both ends
    /// can do that, and the way is long, or a stream was opened there a moment ago.
    pub fn early_data(&self, remote: Ipv6Addr) -> Option<EarlyData> {
        let wait = self.inner.early.wait(remote, std::time::Instant::now())?;
        let room = self.inner.stack.early_room(remote);
        Some(EarlyData { wait, room })
    }

    /// Streams that peers want. The first call makes the endpoint accept them.
    pub fn incoming(&self) -> mpsc::Receiver<Incoming> {
        self.inner.stack.incoming()
    }

    /// Opens a UDP flow through the tunnel.
    pub fn open_flow(&self, remote: SocketAddrV6) -> Result<Flow, Error> {
        self.inner.datagrams.open_flow(remote)
    }

    /// Datagrams that peers send to this end and that answer no flow of it.
    pub fn serve_datagrams(&self) -> mpsc::Receiver<Datagram> {
        self.inner.datagrams.serve()
    }

    /// Sends a datagram from one of this end's addresses and any port of it.
    pub async fn send_datagram(&self, datagram: Datagram) -> Result<(), Error> {
        self.inner.datagrams.send(datagram).await
    }

    /// The same from code that cannot wait: dropped while the tunnel is busy.
    pub fn try_send_datagram(&self, datagram: Datagram) -> Result<(), Error> {
        self.inner.datagrams.try_send(datagram)
    }

    /// Asks the other end whether the tunnel works, again and again until it answers. Returns the
    /// time of the round that was answered.
    pub async fn tsmp_ping(&self, remote: Ipv6Addr, timeout: Duration) -> Result<Duration, Error> {
        let (pong, mut answered) = mpsc::channel(1);
        let deadline = Instant::now() + timeout;
        let mut pause = FIRST_RETRY;
        loop {
            let data = rand::random();
            self.tell(Command::TsmpPing {
                remote,
                data,
                pong: pong.clone(),
            })
            .await?;
            let until = deadline.min(Instant::now() + pause);
            if let Ok(Some(rtt)) = tokio::time::timeout_at(until, answered.recv()).await {
                return Ok(rtt);
            }
            if Instant::now() >= deadline {
                return Err(Error::NoAnswer(timeout));
            }
            pause = (pause * 2).min(LAST_RETRY);
        }
    }

    /// Sends one disco ping the way packets go at the moment.
    pub async fn disco_ping(&self, peer: PeerId) -> Result<Pong, Error> {
        let (done, answer) = oneshot::channel();
        self.tell(Command::DiscoPing { peer, done }).await?;
        match tokio::time::timeout(DISCO_TIMEOUT, answer).await {
            Ok(Ok(pong)) => pong,
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(Error::NoAnswer(DISCO_TIMEOUT)),
        }
    }

    /// How a peer is reached, now and whenever that changes.
    pub fn path(&self, peer: PeerId) -> watch::Receiver<PathState> {
        let mut states = self
            .inner
            .states
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let state = states
            .entry(peer)
            .or_insert_with(|| watch::channel(PathState::None).0);
        state.subscribe()
    }

    /// What is known about a peer.
    pub async fn stats(&self, peer: PeerId) -> Result<PeerStats, Error> {
        self.ask(|done| Command::Stats { peer, done }).await?
    }

    /// Tells the endpoint that the machine's network changed: paths are looked for again.
    pub async fn network_changed(&self) -> Result<(), Error> {
        self.tell(Command::Interfaces).await
    }

    async fn tell(&self, command: Command) -> Result<(), Error> {
        self.inner
            .commands
            .send(command)
            .await
            .map_err(|_| Error::Closed)
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Error> {
        let (done, answer) = oneshot::channel();
        self.tell(command(done)).await?;
        answer.await.map_err(|_| Error::Closed)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.task.abort();
    }
}
