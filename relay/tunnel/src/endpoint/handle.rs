//! The handle to an endpoint: everything above the tunnel goes through it.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use relay_wire::derp_map::DerpMap;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::StackChoice;
use super::commands::Command;
use super::early::{Early, EarlyData};
use super::exchange::Exchange;
use super::node::{LocalNode, PeerNode};
use crate::Error;
use crate::datagram::{Datagram, Datagrams, Flow};
use crate::path::{PathState, PeerId, Survey, Via};
use crate::stack::{Incoming, Stream, Streams};

/// Commands that may wait for the loop.
pub(super) const COMMANDS: usize = 64;
/// How long a disco ping may take.
const DISCO_TIMEOUT: Duration = Duration::from_secs(5);
/// The loop that speaks for the endpoint.
const FIRST: usize = 0;
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// Short, so that an agent that comes back is noticed at once; a ping costs 100 bytes.
const LAST_RETRY: Duration = Duration::from_millis(250);

/// How each peer is reached, for those who wait for a change.
pub(super) type States = Arc<std::sync::Mutex<HashMap<PeerId, watch::Sender<PathState>>>>;

/// A handle to a running endpoint. Clones name the same endpoint; it closes with the last of them.
#[derive(Debug, Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    parts: Parts,
    /// Held while a peer is installed or removed, where that may concern several loops.
    installing: Mutex<()>,
}

/// What a handle is made of.
#[derive(Debug)]
pub(super) struct Parts {
    /// The first, and on whatever threads the others are.
    pub(super) loops: Vec<Loop>,
    /// Present where there are several.
    pub(super) exchange: Option<Arc<Exchange>>,
    pub(super) datagrams: Datagrams,
    pub(super) node: watch::Receiver<Option<LocalNode>>,
    pub(super) source: Ipv6Addr,
    pub(super) states: States,
    pub(super) early: Early,
    /// Runs the first loop.
    pub(super) task: JoinHandle<()>,
}

/// A loop, as the handle sees it.
#[derive(Debug)]
pub(super) struct Loop {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) stack: Streams,
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
    /// The round trip on its direct path, if it has one.
    pub rtt: Option<Duration>,
}

impl Endpoint {
    pub(super) fn new(parts: Parts) -> Endpoint {
        let installing = Mutex::new(());
        Endpoint {
            inner: Arc::new(Inner { parts, installing }),
        }
    }

    /// Tells the endpoint which relays there are.
    pub async fn set_derp_map(&self, map: DerpMap) -> Result<(), Error> {
        self.tell(FIRST, Command::DerpMap(Box::new(map))).await
    }

    /// Installs or changes a peer; returns when it is installed. A new key for the same id or
    /// address replaces the old peer at once and ends the streams to it.
    pub async fn upsert_peer(&self, id: PeerId, node: PeerNode) -> Result<(), Error> {
        let Some(exchange) = &self.inner.parts.exchange else {
            return self.install(FIRST, id, node).await;
        };
        let _alone = self.inner.installing.lock().await;
        let key = *node.key.as_bytes();
        let placed = exchange.directory.place(id, key, &node.addresses);
        for (home, replaced) in placed.elsewhere {
            self.uninstall(home, replaced).await?;
        }
        tracing::debug!(peer = %id, number = placed.home, "peer of a loop");
        self.install(placed.home, id, node).await
    }

    async fn install(&self, home: usize, id: PeerId, node: PeerNode) -> Result<(), Error> {
        let node = Box::new(node);
        self.ask(home, |done| Command::Upsert { id, node, done })
            .await
    }

    /// Forgets a peer and ends the streams to it.
    pub async fn remove_peer(&self, id: PeerId) -> Result<(), Error> {
        let Some(exchange) = &self.inner.parts.exchange else {
            return self.uninstall(FIRST, id).await;
        };
        let _alone = self.inner.installing.lock().await;
        match exchange.directory.remove(id) {
            Some(home) => self.uninstall(home, id).await,
            None => Ok(()),
        }
    }

    async fn uninstall(&self, home: usize, id: PeerId) -> Result<(), Error> {
        self.ask(home, |done| Command::Remove { id, done }).await
    }

    /// This end as its peers should know it; `None` until its home relay is connected.
    pub fn node(&self) -> watch::Receiver<Option<LocalNode>> {
        self.inner.parts.node.clone()
    }

    /// Opens a TCP stream through the tunnel.
    pub async fn connect(&self, remote: SocketAddrV6) -> io::Result<TcpStream> {
        Ok(self.connect_with(remote, &[]).await?.0)
    }

    /// The same as [`open`](Self::open), as a socket.
    pub async fn connect_with(
        &self,
        remote: SocketAddrV6,
        first: &[u8],
    ) -> io::Result<(TcpStream, usize)> {
        let (stream, taken) = self.open(remote, first).await?;
        Ok((stream.into_socket()?, taken))
    }

    /// Opens a TCP stream through the tunnel whose first bytes travel with its first packet if
    /// both ends can, and says how many of `first` did. The other end may act on them even when
    /// this fails later: never send them again by yourself.
    pub async fn open(&self, remote: SocketAddrV6, first: &[u8]) -> io::Result<(Stream, usize)> {
        let (stack, early) = (self.stack_to(*remote.ip()), &self.inner.parts.early);
        let first = if early.takes(*remote.ip()) {
            first
        } else {
            &[]
        };
        let began = Instant::now();
        let source = self.inner.parts.source;
        let opened = stack.open(source, remote, first).await?;
        let now = Instant::now();
        early.answered(*remote.ip(), now - began);
        early.took(*remote.ip(), now.into_std());
        Ok(opened)
    }

    /// Whether the first bytes of a stream to `remote` should go with its first packet: both ends
    /// can do that, and the way is long, or a stream was opened there a moment ago.
    pub fn early_data(&self, remote: Ipv6Addr) -> Option<EarlyData> {
        let early = &self.inner.parts.early;
        let wait = early.wait(remote, std::time::Instant::now())?;
        let room = self.stack_to(remote).early_room(remote);
        Some(EarlyData { wait, room })
    }

    /// Streams that peers want. The first call makes the endpoint accept them.
    pub fn incoming(&self) -> mpsc::Receiver<Incoming> {
        Streams::incoming_of(self.inner.parts.loops.iter().map(|one| &one.stack))
    }

    /// The same loop by loop, with the runtime of each: streams that are served there share a thread
    /// with the loop that moves their packets. Each peer is always one loop's.
    pub fn incoming_by_loop(&self) -> Vec<(Handle, mpsc::Receiver<Incoming>)> {
        let stacks = self.inner.parts.loops.iter().map(|one| &one.stack);
        stacks
            .map(|stack| (stack.runtime().clone(), Streams::incoming_of([stack])))
            .collect()
    }

    /// Opens a UDP flow through the tunnel.
    pub fn open_flow(&self, remote: SocketAddrV6) -> Result<Flow, Error> {
        self.inner.parts.datagrams.open_flow(remote)
    }

    /// Datagrams that peers send to this end and that answer no flow of it.
    pub fn serve_datagrams(&self) -> mpsc::Receiver<Datagram> {
        self.inner.parts.datagrams.serve()
    }

    /// Sends a datagram from one of this end's addresses and any port of it.
    pub async fn send_datagram(&self, datagram: Datagram) -> Result<(), Error> {
        self.inner.parts.datagrams.send(datagram).await
    }

    /// The same from code that cannot wait: dropped while the tunnel is busy.
    pub fn try_send_datagram(&self, datagram: Datagram) -> Result<(), Error> {
        self.inner.parts.datagrams.try_send(datagram)
    }

    /// Asks the other end whether the tunnel works, again and again until it answers. Returns the
    /// time of the round that was answered.
    pub async fn tsmp_ping(&self, remote: Ipv6Addr, timeout: Duration) -> Result<Duration, Error> {
        let (pong, mut answered) = mpsc::channel(1);
        let deadline = Instant::now() + timeout;
        let mut pause = FIRST_RETRY;
        loop {
            let ping = Command::TsmpPing {
                remote,
                data: rand::random(),
                pong: pong.clone(),
            };
            self.tell(self.home_of_address(remote), ping).await?;
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
        let ping = Command::DiscoPing { peer, done };
        self.tell(self.home_of(peer), ping).await?;
        match tokio::time::timeout(DISCO_TIMEOUT, answer).await {
            Ok(Ok(pong)) => pong,
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(Error::NoAnswer(DISCO_TIMEOUT)),
        }
    }

    /// How a peer is reached, now and whenever that changes.
    pub fn path(&self, peer: PeerId) -> watch::Receiver<PathState> {
        let states = &self.inner.parts.states;
        let mut states = states.lock().unwrap_or_else(PoisonError::into_inner);
        let state = states
            .entry(peer)
            .or_insert_with(|| watch::channel(PathState::None).0);
        state.subscribe()
    }

    /// How each peer is reached that has a way, and each that somebody watches.
    pub fn path_states(&self) -> Vec<PathState> {
        let states = &self.inner.parts.states;
        let states = states.lock().unwrap_or_else(PoisonError::into_inner);
        states.values().map(|state| *state.borrow()).collect()
    }

    /// What is known about a peer.
    pub async fn stats(&self, peer: PeerId) -> Result<PeerStats, Error> {
        let home = self.home_of(peer);
        self.ask(home, |done| Command::Stats { peer, done }).await?
    }

    /// The TCP/IP stack in use.
    pub fn stack(&self) -> StackChoice {
        match self.inner.parts.loops[FIRST].stack {
            Streams::Kernel(_) => StackChoice::Kernel,
            Streams::User(_) => StackChoice::User,
        }
    }

    /// What is known about this end's own network; of several loops, what the first knows.
    pub async fn survey(&self) -> Result<Survey, Error> {
        self.ask(FIRST, |done| Command::Survey { done }).await
    }

    /// Tells the endpoint that the machine's network changed: paths are looked for again.
    pub async fn network_changed(&self) -> Result<(), Error> {
        self.tell(FIRST, Command::Interfaces).await
    }

    /// The loop of a peer; the first where there is no other, and for peers that are not installed.
    fn home_of(&self, peer: PeerId) -> usize {
        let exchange = self.inner.parts.exchange.as_ref();
        let home = exchange.and_then(|exchange| exchange.directory.home_of(peer));
        home.unwrap_or(FIRST)
    }

    fn home_of_address(&self, address: Ipv6Addr) -> usize {
        let exchange = self.inner.parts.exchange.as_ref();
        let home = exchange.and_then(|exchange| exchange.directory.home_of_address(address));
        home.unwrap_or(FIRST)
    }

    fn stack_to(&self, address: Ipv6Addr) -> &Streams {
        &self.inner.parts.loops[self.home_of_address(address)].stack
    }

    async fn tell(&self, home: usize, command: Command) -> Result<(), Error> {
        let commands = &self.inner.parts.loops[home].commands;
        commands.send(command).await.map_err(|_| Error::Closed)
    }

    async fn ask<T>(
        &self,
        home: usize,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Error> {
        let (done, answer) = oneshot::channel();
        self.tell(home, command(done)).await?;
        answer.await.map_err(|_| Error::Closed)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.parts.task.abort();
    }
}
