//! The embedded relay: hands packets from node key to node key. It knows nothing of accounts; what
//! it carries is encrypted end to end.

mod client;
mod connection;
#[cfg(test)]
mod tests;
mod websocket;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::BytesMut;
use http::StatusCode;
use http::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use relay_wire::derp::handshake::{self, ServerInfo};
use relay_wire::derp::{Decoder, Frame, GoneReason, PROTOCOL_VERSION};
use relay_wire::keys::{NodePrivate, NodePublic};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use self::client::Client;
use self::connection::Connection;
use crate::api::Refusal;
use crate::api::websocket::{Handshake, has_token};
use crate::state::Shared;

/// How long a client may take to introduce itself.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The relay's key and everybody who is connected.
pub(crate) struct Relay {
    key: NodePrivate,
    public: NodePublic,
    /// Connections of a key, oldest first; the newest receives.
    clients: RwLock<HashMap<NodePublic, Vec<Arc<Client>>>>,
    packets: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

/// What a relay did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Connections now.
    pub(crate) clients: usize,
    /// Packets that came.
    pub(crate) packets: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Packets without room, or without a receiver.
    pub(crate) dropped: u64,
}

impl Relay {
    pub(crate) fn new(key: NodePrivate) -> Self {
        let public = key.public();
        Self {
            key,
            public,
            clients: RwLock::default(),
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// What it did so far.
    pub(crate) fn figures(&self) -> Figures {
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        Figures {
            clients: clients.values().map(Vec::len).sum(),
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }

    /// Adds what a connection did in one turn.
    fn count(&self, turn: &Figures) {
        self.packets.fetch_add(turn.packets, Ordering::Relaxed);
        self.bytes.fetch_add(turn.bytes, Ordering::Relaxed);
        if turn.dropped > 0 {
            self.dropped.fetch_add(turn.dropped, Ordering::Relaxed);
        }
    }

    /// The connection that receives for a key.
    fn find(&self, key: &NodePublic) -> Option<Arc<Client>> {
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        clients.get(key)?.last().cloned()
    }

    fn register(&self, client: &Arc<Client>) {
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        let connections = clients.entry(client.key).or_default();
        if let Some(older) = connections.last() {
            older.set_receiving(false);
        }
        client.set_receiving(true);
        connections.push(Arc::clone(client));
    }

    fn unregister(&self, client: &Arc<Client>) {
        client.set_receiving(false);
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(connections) = clients.get_mut(&client.key) {
            connections.retain(|other| !Arc::ptr_eq(other, client));
            if let Some(next) = connections.last() {
                next.set_receiving(true);
                return;
            }
            clients.remove(&client.key);
        }
        drop(clients);
        // Whoever sent to it hears that it is gone.
        let gone = Frame::PeerGone {
            peer: client.key,
            reason: GoneReason::Disconnected,
        };
        for source in client.take_sources() {
            if let Some(source) = self.find(&source) {
                source.control(&gone);
                source.wake();
            }
        }
    }

    /// Serves a connection after its upgrade, to its end.
    async fn serve<S>(self: Arc<Self>, mut io: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let opened = tokio::time::timeout(HANDSHAKE, self.open(&mut io)).await;
        let (key, decoder) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a relay client did not introduce itself");
                return;
            }
            Err(_) => {
                tracing::debug!("a relay client took too long to introduce itself");
                return;
            }
        };
        let client = Arc::new(Client::new(key));
        self.register(&client);
        let _registered = Registered(&self, &client);
        tracing::debug!(client = ?key, "relay client connected");
        let connection = Connection::new(io, decoder, Arc::clone(&client), Arc::clone(&self));
        let reason = connection.await;
        let dropped = client.dropped();
        tracing::debug!(client = ?key, %reason, dropped, "relay client gone");
    }

    /// Swaps introductions; gives the client's key and what it sent already.
    async fn open<S>(&self, io: &mut S) -> Result<(NodePublic, Decoder), String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let broken = |error: std::io::Error| error.to_string();
        let hello = Frame::ServerKey(self.public).to_bytes();
        io.write_all(&hello).await.map_err(broken)?;
        io.flush().await.map_err(broken)?;
        let mut decoder = Decoder::new();
        let frame = loop {
            match decoder.next().map_err(|error| error.to_string())? {
                Some(Frame::Unknown(_)) => {}
                Some(frame) => break frame,
                None => {
                    let mut buffer = [0; 1024];
                    let length = io.read(&mut buffer).await.map_err(broken)?;
                    if length == 0 {
                        return Err("it closed the connection".to_owned());
                    }
                    decoder.push(&buffer[..length]);
                }
            }
        };
        let opened = handshake::open_client_info(&frame, &self.key);
        let (client, _) = opened.map_err(|error| error.to_string())?;
        let info = ServerInfo::default();
        let answer = handshake::server_info(&self.key, &client, &info, rand::random());
        io.write_all(&answer.to_bytes()).await.map_err(broken)?;
        io.flush().await.map_err(broken)?;
        Ok((client, decoder))
    }
}

/// Takes a client off the list, however its connection ends.
struct Registered<'a>(&'a Relay, &'a Arc<Client>);

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.0.unregister(self.1);
    }
}

/// `GET /derp`: the connection becomes a relay connection, by upgrade or inside a WebSocket.
pub(crate) async fn upgrade(
    State(state): State<Shared>,
    request: Request,
) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    let upgrade = has_token(&parts.headers, &CONNECTION, "upgrade");
    if upgrade && has_token(&parts.headers, &UPGRADE, "websocket") {
        let protocol = handshake::WEBSOCKET_PROTOCOL;
        if !has_token(&parts.headers, &SEC_WEBSOCKET_PROTOCOL, protocol) {
            return Err(Refusal::bad("The WebSocket subprotocol must be derp."));
        }
        let handshake = Handshake::new(&mut parts)?.protocol(protocol);
        return Ok(handshake.accept(websocket::config(), move |socket| {
            run(state, websocket::ByteStream::new(socket))
        }));
    }
    let derp = upgrade && has_token(&parts.headers, &UPGRADE, "DERP");
    let Some(taken) = parts.extensions.remove::<OnUpgrade>().filter(|_| derp) else {
        let message = "DERP requires connection upgrade.";
        return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, message));
    };
    let answer = switching(&state.relay.public);
    tokio::spawn(async move {
        match taken.await {
            Ok(upgraded) => Box::pin(run(state, TokioIo::new(upgraded))).await,
            Err(error) => tracing::debug!(%error, "a relay connection was not opened"),
        }
    });
    Ok(answer)
}

async fn run(state: Shared, io: impl AsyncRead + AsyncWrite + Unpin + Send) {
    let _alive = state.alive.clone();
    tokio::select! {
        () = Arc::clone(&state.relay).serve(io) => {}
        () = state.stopped() => {}
    }
}

fn switching(key: &NodePublic) -> Response {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("DERP"));
    headers.insert("derp-version", HeaderValue::from(PROTOCOL_VERSION));
    if let Ok(key) = HeaderValue::try_from(key.to_hex()) {
        headers.insert("derp-public-key", key);
    }
    answer
}

/// Frees a buffer that outgrew its need. Called when nothing is in it.
fn shrink(buffer: &mut BytesMut) {
    if buffer.is_empty() && buffer.capacity() > 4096 {
        *buffer = BytesMut::new();
    }
}
