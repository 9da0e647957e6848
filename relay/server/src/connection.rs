//! A browser's connection: which version of HTTP it speaks, and who answers its requests.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::proxy;
use crate::state::Shared;

/// How long the head of a request may take, and a connection may wait for one.
const HEAD: Duration = Duration::from_secs(30);
/// Longest head of a request, and most bytes of a body that are held.
const BUFFER: usize = 64 << 10;
/// Requests at once on a connection of HTTP/2.
const STREAMS: u32 = 250;
/// Bytes that a browser may send on one stream of HTTP/2 before they are taken.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same for all streams of a connection.
const CONNECTION_WINDOW: u32 = 1 << 20;
/// A silent HTTP/2 connection is asked after this long.
const PING: Duration = Duration::from_secs(30);

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// Its address.
    pub(crate) address: IpAddr,
    /// Whether it speaks TLS with this server.
    pub(crate) tls: bool,
}

/// What answers requests.
#[derive(Clone)]
pub(crate) struct Front {
    state: Shared,
    router: TowerToHyperService<Router>,
}

impl Front {
    pub(crate) fn new(state: Shared, router: Router) -> Self {
        let router = TowerToHyperService::new(router);
        Self { state, router }
    }

    /// Serves a connection without TLS until it ends or becomes something else than HTTP.
    pub(crate) async fn plain(self, stream: TcpStream, address: IpAddr) {
        let peer = Peer {
            address,
            tls: false,
        };
        match tokio::time::timeout(HEAD, starts_http2(&stream)).await {
            Ok(Ok(true)) => self.http2(stream, peer).await,
            Ok(Ok(false)) => self.http1(stream, peer).await,
            Ok(Err(error)) => tracing::debug!(%error, "a connection ended before a request"),
            Err(_) => tracing::debug!("a connection brought no request"),
        }
    }

    /// Serves a connection with TLS.
    pub(crate) async fn encrypted(self, stream: TlsStream<TcpStream>, address: IpAddr) {
        let peer = Peer { address, tls: true };
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => self.http2(stream, peer).await,
            _ => self.http1(stream, peer).await,
        }
    }

    async fn http1<S>(self, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let state = Arc::clone(&self.state);
        let visitor = Arc::new(proxy::Memory::default());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(BUFFER)
            .title_case_headers(true)
            .preserve_header_case(true)
            .serve_connection(
                TokioIo::new(stream),
                service_fn(move |request| self.clone().answer(peer, visitor.clone(), request)),
            )
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let done = tokio::select! {
            done = connection.as_mut() => done,
            () = state.stopped() => {
                connection.as_mut().graceful_shutdown();
                let rest = tokio::time::timeout(Duration::from_secs(1), connection);
                rest.await.unwrap_or(Ok(()))
            }
        };
        log(done);
    }

    async fn http2<S>(self, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let state = Arc::clone(&self.state);
        let visitor = Arc::new(proxy::Memory::default());
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(BUFFER as u32)
            .max_send_buf_size(BUFFER)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .serve_connection(
                TokioIo::new(stream),
                service_fn(move |request| self.clone().answer(peer, visitor.clone(), request)),
            );
        let mut connection = std::pin::pin!(connection);
        let done = tokio::select! {
            done = connection.as_mut() => done,
            () = state.stopped() => {
                connection.as_mut().graceful_shutdown();
                let rest = tokio::time::timeout(Duration::from_secs(1), connection);
                rest.await.unwrap_or(Ok(()))
            }
        };
        log(done);
    }

    /// Answers a request: an app's by the proxy, all others by the API and the dashboard.
    async fn answer(
        self,
        peer: Peer,
        memory: Arc<proxy::Memory>,
        request: http::Request<Incoming>,
    ) -> Result<http::Response<Body>, Infallible> {
        let Self { state, router } = self;
        let mut request = match proxy::answer(&state, peer, &memory, request).await {
            proxy::Answer::Given(answer) => return Ok(answer),
            proxy::Answer::NotAnApp(request) => request,
        };
        let client = state.apps.trust.client(peer.address, request.headers());
        request.extensions_mut().insert(client);
        let changes = !request.method().is_safe();
        let answer = router.call(request).await?;
        if changes {
            // Before the answer is given, so that what it withdrew is refused from then on.
            state.proxy.look_for_changes(&state.store).await;
        }
        Ok(answer)
    }
}

fn log(done: hyper::Result<()>) {
    if let Err(error) = done {
        tracing::debug!(%error, "an HTTP connection ended");
    }
}

/// Whether the first bytes of a connection are those of HTTP/2 (RFC 9113 §3.4).
async fn starts_http2(stream: &TcpStream) -> io::Result<bool> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0";
    let mut seen = [0; PREFACE.len()];
    loop {
        let length = stream.peek(&mut seen).await?;
        if length == 0 || seen[..length] != PREFACE[..length] {
            return Ok(false);
        }
        if length == PREFACE.len() {
            return Ok(true);
        }
        // The rest is on its way; a peek does not wait for it.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
