//! The other direction: the agent listens in the workspace, and its connections are led here. The
//! agent names each connection on the listener's own stream; this side dials where the forward leads
//! and then takes the connection over a stream of its own, so that none holds another up.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use relay_engine::{End, Engine, Side, pump_counted};
use relay_wire::forwards::AnyForward;
use relay_wire::remote_forward::{REMOTE_BIND, RemoteForward};
use relay_wire::same_host::To;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::agent_api::{self, Place};
use crate::board::{Board, Entry, Key};
use crate::event::{Event, Reporter};
use crate::way::{Way, reason};

/// How long a dial on this machine's side may take.
const DIAL: Duration = Duration::from_secs(10);
/// Before the workspace is asked again to listen.
const AGAIN: Duration = Duration::from_secs(1);
/// A silent agent is asked for a sign of life after so long, so often, and so many times.
const SILENCE: Duration = Duration::from_secs(10);
const ASK: Duration = Duration::from_secs(5);
const TIMES: u32 = 3;

/// A reverse forward that was asked for.
pub(crate) struct Reverse<W> {
    forward: RemoteForward,
    way: W,
    engine: Engine,
    report: Reporter,
    entry: Arc<Entry>,
}

impl<W: Way> Reverse<W> {
    /// Puts it on the board; nothing is listened on yet.
    pub(crate) fn new(
        forward: RemoteForward,
        way: W,
        engine: Engine,
        report: Reporter,
        board: &Board,
    ) -> Self {
        let key = Key::Any(AnyForward::Reverse(forward.clone()));
        Self {
            entry: board.put(key),
            forward,
            way,
            engine,
            report,
        }
    }

    /// Serves until the forward is taken down. `first` hears how the first attempt to listen went;
    /// when it failed that was all. Later ones are repeated.
    pub(crate) async fn serve(self, first: oneshot::Sender<io::Result<()>>) {
        let mut connections = JoinSet::new();
        let entry = Arc::clone(&self.entry);
        tokio::select! {
            () = self.listen_for_ever(first, &mut connections) => {}
            () = entry.stopped() => {}
        }
        entry.take_down();
        while connections.join_next().await.is_some() {}
    }

    async fn listen_for_ever(
        &self,
        first: oneshot::Sender<io::Result<()>>,
        connections: &mut JoinSet<()>,
    ) {
        let forward = self.forward.clone();
        self.report.tell(Event::ForwardingBack { forward });
        let mut stream = match self.listen().await {
            Ok(stream) => {
                let _ = first.send(Ok(()));
                stream
            }
            Err(error) => {
                let _ = first.send(Err(error));
                return;
            }
        };
        loop {
            let (address, row) = (self.place_text(), Arc::clone(&self.entry.row));
            self.report.tell(Event::Listening { row, address });
            let lost = self.follow(stream, connections).await;
            tracing::debug!(error = ?lost, "the workspace listens no more");
            stream = self.listen_again(connections).await;
        }
    }

    async fn listen_again(&self, connections: &mut JoinSet<()>) -> TcpStream {
        let mut told = false;
        loop {
            tokio::select! {
                listening = self.listen() => match listening {
                    Ok(stream) => return stream,
                    // An agent that is away is told by others.
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                    Err(error) if told => tracing::debug!(%error, "still not listening"),
                    Err(error) => {
                        told = true;
                        let (forward, reason) = (self.forward.clone(), reason(&error));
                        self.report.tell(Event::BackRefused { forward, reason });
                    }
                },
                Some(_) = connections.join_next() => continue,
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn listen(&self) -> io::Result<TcpStream> {
        let place = match &self.forward {
            RemoteForward::Tcp { remote, .. } => Place::Port(*remote),
            RemoteForward::Unix { remote, .. } => Place::Socket(remote),
        };
        let stream = agent_api::listen(&self.way, place).await?;
        let alive = TcpKeepalive::new()
            .with_time(SILENCE)
            .with_interval(ASK)
            .with_retries(TIMES);
        // Not every stack's streams have this; an agent that is gone is found by others, too.
        let _ = SockRef::from(&stream).set_tcp_keepalive(&alive);
        Ok(stream)
    }

    fn place_text(&self) -> String {
        match &self.forward {
            RemoteForward::Tcp { remote, .. } => format!("{REMOTE_BIND}:{remote}"),
            RemoteForward::Unix { remote, .. } => remote.clone(),
        }
    }

    /// Leads connections here until the listener is gone.
    async fn follow(&self, stream: TcpStream, connections: &mut JoinSet<()>) -> io::Result<()> {
        let (read, write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        // Bounded by the connections that the agent lets wait.
        let (refuse, refused) = mpsc::channel(1);
        let mut refusing = pin!(refuse_all(write, refused));
        loop {
            tokio::select! {
                line = lines.next_line() => {
                    let line = line?.ok_or(io::ErrorKind::UnexpectedEof)?;
                    let id = line.parse().map_err(|_| io::ErrorKind::InvalidData)?;
                    connections.spawn(self.lead(id, refuse.clone()));
                }
                Some(_) = connections.join_next() => {}
                broken = &mut refusing => return broken,
            }
        }
    }

    /// Dials here, takes the connection, and carries it.
    fn lead(&self, id: u64, refuse: mpsc::Sender<u64>) -> impl Future<Output = ()> + use<W> {
        let (forward, way, engine) = (self.forward.clone(), self.way.clone(), self.engine);
        let (report, entry) = (self.report.clone(), Arc::clone(&self.entry));
        async move {
            let counted = entry.connect(None, &report);
            let dialled = tokio::time::timeout(DIAL, dial(&forward)).await;
            let here = match dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(here) => here,
                Err(error) => {
                    let reason = reason(&error);
                    counted.fail(reason.clone());
                    report.tell(Event::LocalDialFailed { forward, reason });
                    let _ = refuse.send(id).await;
                    return;
                }
            };
            // The listener's stream does not wait for what is open.
            drop(refuse);
            if let Some(socket) = here.as_fd() {
                let moved = (&counted.moved, Side::B);
                match way.hand_over(To::Accepted(id), socket, moved).await {
                    Some(Ok(handed)) => {
                        drop(here);
                        return handed.ended().await;
                    }
                    Some(Err(error)) => return counted.fail(reason(&error)),
                    None => {}
                }
            }
            match agent_api::take(&way, id).await {
                Ok(there) => {
                    let summary = pump_counted(there, here, engine, &counted.moved).await;
                    tracing::debug!(?summary, "a connection from the workspace ended");
                }
                Err(error) => counted.fail(reason(&error)),
            }
        }
    }
}

/// Tells the agent which connections found nobody here.
async fn refuse_all(mut write: OwnedWriteHalf, mut refused: mpsc::Receiver<u64>) -> io::Result<()> {
    while let Some(id) = refused.recv().await {
        write.write_all(format!("{id}\n").as_bytes()).await?;
    }
    Ok(())
}

async fn dial(forward: &RemoteForward) -> io::Result<End> {
    match (forward, forward.local_host()) {
        (RemoteForward::Unix { local, .. }, _) => Ok(UnixStream::connect(local).await?.into()),
        (_, Some(address)) => {
            let stream = TcpStream::connect(address).await?;
            let _ = stream.set_nodelay(true);
            Ok(stream.into())
        }
        (_, None) => Err(io::ErrorKind::InvalidInput.into()),
    }
}
