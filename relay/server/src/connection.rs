//! A browser's connection: which version of HTTP it speaks, and who answers its requests.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
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
use tokio_rustls::TlsAcceptor;

use crate::first::First;
use crate::lanes::Lanes;
use crate::proxy;
use crate::state::{Shared, State};

/// How long the head of a request may take, and a connection may wait for one.
const HEAD: Duration = Duration::from_secs(30);
/// How long a TLS handshake may take.
const TLS_HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a request gets to be answered when the server stops.
const FAREWELL: Duration = Duration::from_secs(1);
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
    tls: Option<TlsAcceptor>,
    lanes: Lanes,
}

impl Front {
    pub(crate) fn new(
        state: Shared,
        router: Router,
        tls: Option<TlsAcceptor>,
        lanes: Lanes,
    ) -> Self {
        let router = TowerToHyperService::new(router);
        Self {
            state,
            router,
            tls,
            lanes,
        }
    }

    /// Finds out what a new connection is for, and has it served where that belongs.
    pub(crate) async fn meet(self, stream: TcpStream, address: IpAddr) {
        let tls = self.tls.is_some();
        let peer = Peer { address, tls };
        let patience = if tls { TLS_HANDSHAKE } else { HEAD };
        let first = match tokio::time::timeout(patience, First::look(&stream)).await {
            Ok(Ok(first)) => first,
            Ok(Err(error)) => {
                return tracing::debug!(%error, "a connection ended before a request");
            }
            Err(_) => return tracing::debug!("a connection brought no request"),
        };
        if first.is_for_app(&self.state, peer) {
            // A stream is watched by the runtime that it was made in.
            let stream = match stream.into_std() {
                Ok(stream) => stream,
                Err(error) => return tracing::debug!(%error, "a connection was not handed over"),
            };
            self.lanes.next().spawn(async move {
                match TcpStream::from_std(stream) {
                    Ok(stream) => self.greet(stream, peer, false).await,
                    Err(error) => tracing::debug!(%error, "a connection was not taken over"),
                }
            });
        } else {
            let http2 = first.is_http2();
            drop(first);
            tokio::spawn(self.greet(stream, peer, http2));
        }
    }

    /// Agrees on TLS where that is spoken, and serves the connection to its end.
    async fn greet(self, stream: TcpStream, peer: Peer, http2: bool) {
        let Some(tls) = self.tls.clone() else {
            return match http2 {
                true => self.http2(stream, peer).await,
                false => self.http1(stream, peer).await,
            };
        };
        // Together with its future this is large, and needed for a moment only.
        let opened = Box::pin(tokio::time::timeout(TLS_HANDSHAKE, tls.accept(stream))).await;
        match opened {
            Ok(Ok(stream)) => match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => self.http2(stream, peer).await,
                _ => self.http1(stream, peer).await,
            },
            Ok(Err(error)) => tracing::debug!(%error, "no TLS handshake"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
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
        until_stopped(&state, connection, |it| it.graceful_shutdown()).await;
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
        until_stopped(&state, connection, |it| it.graceful_shutdown()).await;
    }

    /// Answers a request: an app's by the proxy, all others by the API and the dashboard.
    async fn answer(
        self,
        peer: Peer,
        memory: Arc<proxy::Memory>,
        request: http::Request<Incoming>,
    ) -> Result<http::Response<Body>, Infallible> {
        let Self { state, router, .. } = self;
        let mut request = match proxy::answer(&state, peer, &memory, request).await {
            proxy::Answer::Given(answer) => {
                state.counts.app(answer.status());
                return Ok(answer);
            }
            proxy::Answer::NotAnApp(request) => request,
        };
        let client = state.apps.trust.client(peer.address, request.headers());
        request.extensions_mut().insert(client);
        let changes = !request.method().is_safe();
        let answer = router.call(request).await?;
        state.counts.request(answer.status());
        if changes {
            // Before the answer is given, so that what it withdrew is refused from then on.
            state.proxy.look_for_changes(&state.store).await;
        }
        Ok(answer)
    }
}

/// Serves a connection to its end; what is under way when the server stops may still be answered.
async fn until_stopped<C>(state: &State, connection: C, stop: impl FnOnce(Pin<&mut C>))
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = std::pin::pin!(connection);
    let done = tokio::select! {
        done = connection.as_mut() => done,
        () = state.stopped() => {
            stop(connection.as_mut());
            let rest = tokio::time::timeout(FAREWELL, connection);
            rest.await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = done {
        tracing::debug!(%error, "an HTTP connection ended");
    }
}
