//! Forwards: from the peer to what the workspace can reach, and from the workspace to the peer.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::channel::{Channel, Link};
use super::proto::codec::{Put, Reader};
use super::proto::mux::{Refusal, Request};
use crate::Error;

/// What a client is told when local forwards are blocked.
pub(crate) const LOCAL_BLOCKED: &str =
    "this workspace's agent runs with --block-local-port-forwarding";
/// What a client is told when reverse forwards are blocked.
pub(crate) const REVERSE_BLOCKED: &str =
    "this workspace's agent runs with --block-reverse-port-forwarding";
/// A target is dialled no longer than this.
const DIAL: Duration = Duration::from_secs(30);
/// Most listeners of a connection.
const LISTENERS: usize = 256;
/// Before a listener that failed (for want of descriptors) is asked again.
const RETRY: Duration = Duration::from_millis(100);

/// The target of a `direct-tcpip` (RFC 4254 §7.2).
pub(super) fn tcp_target(data: &[u8]) -> Result<(String, u16), Error> {
    let mut reader = Reader::new(data);
    let host = reader.text()?.to_owned();
    let port = u16::try_from(reader.u32()?).map_err(|_| Error::Ssh("a port is above 65535"))?;
    Ok((host, port))
}

/// The target of a `direct-streamlocal@openssh.com` (OpenSSH's PROTOCOL §2.4).
pub(super) fn unix_target(data: &[u8]) -> Result<PathBuf, Error> {
    Ok(PathBuf::from(Reader::new(data).text()?))
}

/// Joins a channel with whatever host and port the workspace can dial.
pub(super) async fn to_tcp(channel: Channel, target: (String, u16)) {
    let dial = tokio::time::timeout(DIAL, TcpStream::connect((&*target.0, target.1)));
    match within(dial, &channel).await {
        Ok(app) => {
            let _ = app.set_nodelay(true);
            channel.accept();
            let (reader, writer) = app.into_split();
            channel.join(reader, writer).await;
        }
        Err(error) => channel.refuse(Refusal::ConnectFailed, &error.to_string()),
    }
}

/// Joins a channel with a Unix socket of the workspace.
pub(super) async fn to_unix(channel: Channel, path: PathBuf) {
    let dial = tokio::time::timeout(DIAL, UnixStream::connect(path));
    match within(dial, &channel).await {
        Ok(app) => {
            channel.accept();
            let (reader, writer) = app.into_split();
            channel.join(reader, writer).await;
        }
        Err(error) => channel.refuse(Refusal::ConnectFailed, &error.to_string()),
    }
}

/// A dial that ends when the connection does.
async fn within<T>(
    dial: impl Future<Output = Result<io::Result<T>, tokio::time::error::Elapsed>>,
    channel: &Channel,
) -> io::Result<T> {
    tokio::select! {
        dialled = dial => dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
        () = channel.closed() => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

/// What listens in the workspace for the peer.
#[derive(Default)]
pub(super) struct Reverse(HashMap<Place, Vec<Listening>>);

/// Where the peer wants a listener, in its own words.
#[derive(PartialEq, Eq, Hash)]
enum Place {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl Reverse {
    /// Answers a request; `None` when it fails or is not known.
    pub(super) fn answer(&mut self, request: &Request, link: &Link) -> Option<Vec<u8>> {
        let mut reader = Reader::new(&request.data);
        let place = reader.text().ok()?.to_owned();
        let outcome = match request.kind.as_str() {
            "tcpip-forward" => {
                let port = u16::try_from(reader.u32().ok()?).ok()?;
                self.listen_tcp(place, port, link)
            }
            "streamlocal-forward@openssh.com" => self.listen_unix(PathBuf::from(place), link),
            "cancel-tcpip-forward" => {
                let port = u16::try_from(reader.u32().ok()?).ok()?;
                return self.cancel(&Place::Tcp(place, port));
            }
            "cancel-streamlocal-forward@openssh.com" => {
                return self.cancel(&Place::Unix(PathBuf::from(place)));
            }
            _ => return None,
        };
        outcome
            .inspect_err(|error| tracing::debug!(%error, "cannot listen for a reverse forward"))
            .ok()
    }

    fn cancel(&mut self, place: &Place) -> Option<Vec<u8>> {
        self.0.remove(place).map(|_| Vec::new())
    }

    /// Listens where RFC 4254 §7.1 says; gives the port, if the peer left it open.
    fn listen_tcp(&mut self, address: String, port: u16, link: &Link) -> io::Result<Vec<u8>> {
        if self.0.len() >= LISTENERS {
            return Err(io::Error::other(
                "a connection has too many reverse forwards",
            ));
        }
        let listeners = bind(&address, port)?;
        let bound = listeners[0].local_addr()?.port();
        let tasks = listeners.into_iter().map(|listener| {
            let accepting = accept_tcp(listener, address.clone(), bound, link.clone());
            Listening {
                task: tokio::spawn(accepting),
                socket: None,
            }
        });
        let tasks = tasks.collect();
        self.0.insert(Place::Tcp(address, bound), tasks);
        let mut answer = Vec::new();
        if port == 0 {
            answer.put_u32(bound.into());
        }
        Ok(answer)
    }

    fn listen_unix(&mut self, path: PathBuf, link: &Link) -> io::Result<Vec<u8>> {
        let place = Place::Unix(path);
        if self.0.contains_key(&place) {
            return Ok(Vec::new());
        }
        if self.0.len() >= LISTENERS {
            return Err(io::Error::other(
                "a connection has too many reverse forwards",
            ));
        }
        let Place::Unix(path) = &place else {
            return Ok(Vec::new());
        };
        let listening = Listening::on_unix(path, "forwarded-streamlocal@openssh.com", link)?;
        self.0.insert(place, vec![listening]);
        Ok(Vec::new())
    }
}

/// Binds where the peer says: everywhere, on both loopbacks, or on one address.
pub(crate) fn bind(address: &str, port: u16) -> io::Result<Vec<TcpListener>> {
    let everywhere = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let one = [address.parse::<IpAddr>(); 1];
    let addresses: &[IpAddr] = match (address, &one) {
        ("" | "*", _) => &everywhere,
        ("localhost", _) => &loopback,
        (_, [Ok(one)]) => std::slice::from_ref(one),
        (_, [Err(_)]) => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let mut listeners: Vec<TcpListener> = Vec::new();
    let mut failed = None;
    for address in addresses {
        let port = match listeners.first() {
            Some(first) => first.local_addr()?.port(),
            None => port,
        };
        // A machine may have no IPv6; and a listener on all of IPv6 has IPv4, too.
        match listen(SocketAddr::new(*address, port)) {
            Ok(listener) => listeners.push(listener),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) if listeners.is_empty() => Err(error),
        _ => Ok(listeners),
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn accept_tcp(listener: TcpListener, address: String, port: u16, link: Link) {
    loop {
        let Ok((app, from)) = listener.accept().await else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        let mut data = Vec::new();
        data.put_string(&address).put_u32(port.into());
        data.put_string(from.ip().to_string());
        data.put_u32(from.port().into());
        let link = link.clone();
        tokio::spawn(async move {
            let _ = app.set_nodelay(true);
            if let Some(channel) = link.open("forwarded-tcpip", &data).await {
                let (reader, writer) = app.into_split();
                channel.join(reader, writer).await;
            }
        });
    }
}

/// A listener in the workspace; it ends when this is dropped.
pub(super) struct Listening {
    task: JoinHandle<()>,
    socket: Option<Socket>,
}

/// A socket in the file system, by its inode.
struct Socket {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(socket) = &self.socket {
            socket.remove();
        }
    }
}

impl Socket {
    /// Unless somebody else has put another one in its place.
    fn remove(&self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = path.symlink_metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Listening {
    /// Listens on a socket for this user alone; each connection is a channel of `kind`.
    pub(super) fn on_unix(path: &Path, kind: &'static str, link: &Link) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            let mut builder = std::fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(directory)?;
        }
        // One that a connection left behind when it was cut.
        if path
            .symlink_metadata()
            .is_ok_and(|metadata| metadata.file_type().is_socket())
        {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let socket = Socket {
            inode: inode(path)?,
            path: path.to_owned(),
        };
        let mut data = Vec::new();
        if kind != AGENT {
            data.put_string(path.as_os_str().as_encoded_bytes());
            data.put_string("");
        }
        let task = tokio::spawn(accept_unix(listener, kind, data, link.clone()));
        Ok(Self {
            task,
            socket: Some(socket),
        })
    }
}

/// A channel to the agent that keeps the peer's keys.
pub(super) const AGENT: &str = "auth-agent@openssh.com";

async fn accept_unix(listener: UnixListener, kind: &'static str, data: Vec<u8>, link: Link) {
    loop {
        let Ok((app, _)) = listener.accept().await else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        let (link, data) = (link.clone(), data.clone());
        tokio::spawn(async move {
            if let Some(channel) = link.open(kind, &data).await {
                let (reader, writer) = app.into_split();
                channel.join(reader, writer).await;
            }
        });
    }
}
