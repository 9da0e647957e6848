//! Streams of the agent's API that relay's own clients ask for: to a Unix socket of the workspace;
//! from a listener in the workspace, with a line for each connection; and such a connection itself.
//! Each connection has a stream of its own through the tunnel, so none waits for another.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use relay_engine::unix::Bound;
use relay_engine::{End, Engine, abort, pump_counted};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::Instant;

use crate::ssh;
use crate::ssh::forward::{LOCAL_BLOCKED, REVERSE_BLOCKED, bind};
use crate::traffic::{Protocol, Traffic};

/// What the streams speak.
pub(crate) const PROTOCOL: &str = "relay-stream";
/// A socket is dialled no longer than this.
const DIAL: Duration = Duration::from_secs(10);
/// Connections of a listener that wait to be taken; more wait in the kernel.
const WAITING: usize = 128;
/// How long a connection waits to be taken.
const PATIENCE: Duration = Duration::from_secs(30);
/// Before a listener that failed (for want of descriptors) is asked again.
const RETRY: Duration = Duration::from_millis(100);
/// A silent peer is asked for a sign of life after so long, so often, and so many times: a port must
/// not stay taken for one that is gone.
const SILENCE: Duration = Duration::from_secs(10);
const ASK: Duration = Duration::from_secs(5);
const TIMES: u32 = 3;
/// Most listeners of all peers.
const LISTENERS: usize = 256;

const NAME_SOMETHING: &str = "Name an absolute unix path, a port or an id.";

/// All streams of an agent.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    options: ssh::Options,
    engine: Engine,
    traffic: Arc<Traffic>,
    shared: Mutex<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Connections that wait to be taken.
    waiting: HashMap<u64, App>,
    listeners: usize,
}

/// A program of the workspace that is connected.
#[derive(Debug)]
enum App {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl App {
    /// Whoever connected sees that nobody took it.
    fn refuse(self) {
        match self {
            Self::Tcp(stream) => abort(stream),
            Self::Unix(stream) => drop(stream),
        }
    }
}

impl From<App> for End {
    fn from(app: App) -> Self {
        match app {
            App::Tcp(stream) => stream.into(),
            App::Unix(stream) => stream.into(),
        }
    }
}

/// What is done on a stream, once it is one.
#[derive(Debug)]
pub(crate) struct Work(Kind);

#[derive(Debug)]
enum Kind {
    Join(App),
    Listen(Vec<Listener>),
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(Bound),
}

impl Work {
    fn join(app: App) -> Self {
        Self(Kind::Join(app))
    }
}

/// Why there is no stream.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    /// What the operating system says, without its number.
    fn io(status: StatusCode, error: &io::Error) -> Self {
        let text = error.to_string();
        let end = text.find(" (os error").unwrap_or(text.len());
        Self::new(status, text[..end].to_lowercase())
    }
}

/// What a query names.
#[derive(Debug, PartialEq, Eq)]
enum Named {
    Port(u16),
    Socket(PathBuf),
    Connection(u64),
}

impl Named {
    fn read(query: &str) -> Option<Self> {
        let (name, value) = url::form_urlencoded::parse(query.as_bytes()).next()?;
        match &*name {
            "port" => Some(Self::Port(value.parse().ok().filter(|port| *port != 0)?)),
            "unix" => Path::new(&*value)
                .is_absolute()
                .then(|| Self::Socket(value.into_owned().into())),
            "id" => Some(Self::Connection(value.parse().ok()?)),
            _ => None,
        }
    }
}

impl Streams {
    /// Streams with the limits of the SSH server, which has the same forwards.
    pub(crate) fn new(options: ssh::Options, engine: Engine, traffic: Arc<Traffic>) -> Self {
        Self {
            options,
            engine,
            traffic,
            shared: Mutex::default(),
        }
    }

    /// Prepares what a peer asks for.
    pub(crate) async fn open(&self, target: &str, query: &str) -> Result<Work, Refusal> {
        let named = Named::read(query);
        match (target, named) {
            ("dial", Some(Named::Socket(path))) => self.dial_app(&path).await.map(Work::join),
            ("listen", Some(named @ (Named::Port(_) | Named::Socket(_)))) => self.listen(&named),
            ("connection", Some(Named::Connection(id))) => self.take_app(id).map(Work::join),
            ("dial" | "listen" | "connection", _) => {
                Err(Refusal::new(StatusCode::BAD_REQUEST, NAME_SOMETHING))
            }
            _ => {
                let what = "The agent has nothing here.";
                Err(Refusal::new(StatusCode::NOT_FOUND, what))
            }
        }
    }

    /// Connects to a Unix socket of the workspace.
    pub(crate) async fn dial(&self, path: &Path) -> Result<End, Refusal> {
        Ok(self.dial_app(path).await?.into())
    }

    async fn dial_app(&self, path: &Path) -> Result<App, Refusal> {
        if !path.is_absolute() {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, NAME_SOMETHING));
        }
        if self.options.block_local_forwarding {
            return Err(Refusal::new(StatusCode::FORBIDDEN, LOCAL_BLOCKED));
        }
        let dialled = tokio::time::timeout(DIAL, UnixStream::connect(path)).await;
        let dialled = dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let app = dialled.map_err(|error| Refusal::io(StatusCode::BAD_GATEWAY, &error))?;
        Ok(App::Unix(app))
    }

    fn listen(&self, place: &Named) -> Result<Work, Refusal> {
        if self.options.block_reverse_forwarding {
            tracing::debug!("a reverse forward was refused, as this agent is told to");
            return Err(Refusal::new(StatusCode::FORBIDDEN, REVERSE_BLOCKED));
        }
        if self.shared().listeners >= LISTENERS {
            let many = format!("an agent listens for {LISTENERS} reverse forwards at most");
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, many));
        }
        let listeners = match place {
            Named::Port(port) => loopback(*port),
            Named::Socket(path) => Bound::listen(path).map(|bound| vec![Listener::Unix(bound)]),
            Named::Connection(_) => Err(io::ErrorKind::InvalidInput.into()),
        };
        let listeners = listeners.map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                Refusal::new(StatusCode::CONFLICT, "address already in use")
            }
            _ => Refusal::io(StatusCode::BAD_GATEWAY, &error),
        })?;
        Ok(Work(Kind::Listen(listeners)))
    }

    /// A connection that waits to be taken.
    pub(crate) fn take(&self, id: u64) -> Result<End, Refusal> {
        Ok(self.take_app(id)?.into())
    }

    fn take_app(&self, id: u64) -> Result<App, Refusal> {
        let app = self.shared().waiting.remove(&id);
        app.ok_or_else(|| Refusal::new(StatusCode::GONE, "the connection has ended"))
    }

    /// Does the work on a stream, to its end.
    pub(crate) async fn serve(&self, peer: TcpStream, work: Work) {
        match work.0 {
            Kind::Join(app) => {
                let counted = self.traffic.open(Protocol::Tcp);
                let moved = &counted.counts.moved;
                let summary = pump_counted(peer, app, self.engine, moved).await;
                tracing::debug!(?summary, "a stream of the agent's API ended");
            }
            Kind::Listen(listeners) => {
                self.shared().listeners += 1;
                let mut own = Own {
                    streams: self,
                    waiting: Vec::new(),
                };
                if let Err(error) = own.accept(peer, &listeners).await {
                    tracing::debug!(%error, "a listener for a peer ended");
                }
            }
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one listener let wait.
struct Own<'a> {
    streams: &'a Streams,
    waiting: Vec<(u64, Instant)>,
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        let mut shared = self.streams.shared();
        shared.listeners -= 1;
        for (id, _) in &self.waiting {
            if let Some(app) = shared.waiting.remove(id) {
                app.refuse();
            }
        }
    }
}

impl Own<'_> {
    /// Names each connection to the peer, until the peer is gone. What the peer names is refused.
    async fn accept(&mut self, peer: TcpStream, listeners: &[Listener]) -> io::Result<()> {
        let alive = TcpKeepalive::new()
            .with_time(SILENCE)
            .with_interval(ASK)
            .with_retries(TIMES);
        let socket = SockRef::from(&peer);
        let set = socket
            .set_tcp_keepalive(&alive)
            .and_then(|()| socket.set_tcp_user_timeout(Some(SILENCE + ASK * TIMES)));
        if let Err(error) = set {
            // Not every stack's streams have these; peers that are gone are found by others, too.
            tracing::debug!(%error, "a peer is not asked for signs of life");
        }
        let (read, mut write) = peer.into_split();
        let mut lines = BufReader::new(read).lines();
        let mut ticks = tokio::time::interval(ASK);
        loop {
            tokio::select! {
                app = next(listeners), if self.waiting.len() < WAITING => {
                    let id = self.hold(app);
                    write.write_all(format!("{id}\n").as_bytes()).await?;
                }
                line = lines.next_line() => {
                    let Some(line) = line? else { return Ok(()) };
                    let refused = line.parse().ok().and_then(|id| self.withdraw(id));
                    if let Some(app) = refused {
                        app.refuse();
                    }
                }
                _ = ticks.tick() => self.expire(),
            }
        }
    }

    fn hold(&mut self, app: App) -> u64 {
        let mut shared = self.streams.shared();
        // Not to be guessed, so that a peer takes its own.
        let id = loop {
            let id = rand::random();
            if !shared.waiting.contains_key(&id) {
                break id;
            }
        };
        shared.waiting.insert(id, app);
        // What was taken meanwhile makes room.
        self.waiting
            .retain(|(id, _)| shared.waiting.contains_key(id));
        self.waiting.push((id, Instant::now()));
        id
    }

    /// A connection of this listener that still waits.
    fn withdraw(&mut self, id: u64) -> Option<App> {
        let at = self.waiting.iter().position(|(own, _)| *own == id)?;
        self.waiting.swap_remove(at);
        self.streams.shared().waiting.remove(&id)
    }

    fn expire(&mut self) {
        let mut shared = self.streams.shared();
        self.waiting.retain(|(id, since)| {
            if since.elapsed() < PATIENCE {
                return shared.waiting.contains_key(id);
            }
            if let Some(app) = shared.waiting.remove(id) {
                app.refuse();
            }
            false
        });
    }
}

/// Listens on 127.0.0.1, and on ::1 where it can.
fn loopback(port: u16) -> io::Result<Vec<Listener>> {
    let mut listeners = bind("127.0.0.1", port)?;
    listeners.extend(bind("::1", port).unwrap_or_default());
    Ok(listeners.into_iter().map(Listener::Tcp).collect())
}

/// The next connection of any of the listeners.
async fn next(listeners: &[Listener]) -> App {
    match listeners {
        [Listener::Unix(bound), ..] => App::Unix(bound.next().await),
        [Listener::Tcp(one), Listener::Tcp(other), ..] => tokio::select! {
            app = accept(one) => app,
            app = accept(other) => app,
        },
        [Listener::Tcp(one), ..] => accept(one).await,
        [] => std::future::pending().await,
    }
}

async fn accept(listener: &TcpListener) -> App {
    loop {
        match listener.accept().await {
            Ok((app, _)) => {
                let _ = app.set_nodelay(true);
                return App::Tcp(app);
            }
            Err(error) => {
                tracing::debug!(%error, "a listener for a peer waits before it accepts more");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::AsyncReadExt;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (one, other) = tokio::join!(TcpStream::connect(address), listener.accept());
        (one.unwrap(), other.unwrap().0)
    }

    /// Serves work on a stream, whose other end this gives.
    async fn served(streams: &Arc<Streams>, work: Work) -> TcpStream {
        let (client, server) = pair().await;
        let streams = Arc::clone(streams);
        tokio::spawn(async move { streams.serve(server, work).await });
        client
    }

    async fn listening(streams: &Arc<Streams>) -> (u16, BufReader<TcpStream>) {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let work = streams.open("listen", &format!("port={port}")).await;
        let control = served(streams, work.unwrap()).await;
        (port, BufReader::new(control))
    }

    async fn named(control: &mut BufReader<TcpStream>) -> u64 {
        let mut line = String::new();
        control.read_line(&mut line).await.unwrap();
        line.trim().parse().unwrap()
    }

    #[tokio::test]
    async fn a_connection_is_named_and_taken_once() {
        let streams = Arc::new(Streams::default());
        let (port, mut control) = listening(&streams).await;
        let mut app = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let id = named(&mut control).await;
        let work = streams.open("connection", &format!("id={id}")).await;
        let mut taken = served(&streams, work.unwrap()).await;
        app.write_all(b"question").await.unwrap();
        app.shutdown().await.unwrap();
        let mut question = String::new();
        taken.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        let again = streams.open("connection", &format!("id={id}")).await;
        assert_eq!(again.unwrap_err().status, StatusCode::GONE);
    }

    #[tokio::test]
    async fn what_the_peer_refuses_is_reset_and_its_end_frees_the_port() {
        let streams = Arc::new(Streams::default());
        let (port, mut control) = listening(&streams).await;
        let mut app = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let id = named(&mut control).await;
        control
            .write_all(format!("{id}\n").as_bytes())
            .await
            .unwrap();
        let error = app.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let taken = streams.open("listen", &format!("port={port}")).await;
        assert_eq!(taken.unwrap_err().status, StatusCode::CONFLICT);
        let mut waiting = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        named(&mut control).await;
        drop(control);
        assert!(waiting.read(&mut [0; 1]).await.is_err());
        while streams
            .open("listen", &format!("port={port}"))
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(streams.shared().waiting.is_empty());
    }

    #[tokio::test]
    async fn sockets_are_dialled_and_what_is_not_there_is_said() {
        let streams = Arc::new(Streams::default());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b");
        let query = format!("unix={}", path.display()).replace(' ', "%20");
        let missing = streams.open("dial", &query).await.unwrap_err();
        assert_eq!(missing.message, "no such file or directory");
        let app = Bound::listen(&path).unwrap();
        let work = streams.open("dial", &query).await.unwrap();
        let mut client = served(&streams, work).await;
        let mut server = app.next().await;
        server.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn what_is_blocked_or_nonsense_is_refused() {
        let streams = Streams {
            options: ssh::Options {
                block_local_forwarding: true,
                block_reverse_forwarding: true,
                ..ssh::Options::default()
            },
            ..Streams::default()
        };
        for (target, query, status) in [
            ("dial", "unix=/x", StatusCode::FORBIDDEN),
            ("listen", "port=8080", StatusCode::FORBIDDEN),
            ("listen", "unix=/x", StatusCode::FORBIDDEN),
            ("listen", "port=0", StatusCode::BAD_REQUEST),
            ("listen", "port=70000", StatusCode::BAD_REQUEST),
            ("dial", "unix=relative", StatusCode::BAD_REQUEST),
            ("dial", "port=80", StatusCode::BAD_REQUEST),
            ("connection", "id=-1", StatusCode::BAD_REQUEST),
            ("connection", "id=7", StatusCode::GONE),
            ("other", "port=1", StatusCode::NOT_FOUND),
            ("listen", "", StatusCode::BAD_REQUEST),
        ] {
            let refusal = streams.open(target, query).await.unwrap_err();
            assert_eq!(refusal.status, status, "{target}?{query}");
        }
    }
}
