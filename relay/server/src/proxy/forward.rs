//! Sends a request on to its app and the answer back, both as they come (coder_facts §2.12).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::header::{CONTENT_TYPE, EXPECT, HOST, HeaderValue, ORIGIN, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, Method as Verb, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use super::asked::Asked;
use super::page::{self, Page};
use super::pool::{Answered, Key, Lease, Outgoing, Sender, lease};
use super::right::Right;
use super::tls::{self, Want};
use super::{login, own, upgrade};
use crate::api::websocket::has_token;
use crate::apps::access::Method;
use crate::apps::cors::{self, Behavior};
use crate::apps::hostname::{Protocol, change_protocol, port_info};
use crate::apps::token::Grant;
use crate::connection::Peer;
use crate::dialer::DialError;
use crate::state::Shared;

/// Longest head of an answer.
const HEAD: usize = 128 << 10;
/// Most bytes of an answer that are held.
const BUFFER: usize = 256 << 10;
/// Bytes of one stream of HTTP/2 that an app may send before they are taken.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same for all streams of a connection.
const CONNECTION_WINDOW: u32 = 1 << 20;
/// A silent connection is asked after this long, and given up when that brings no answer.
const SILENCE: Duration = Duration::from_secs(10);

/// Why an app gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
}

/// A request with all that is known of it.
pub(super) struct Visit<'a> {
    pub(super) state: &'a Shared,
    pub(super) peer: Peer,
    pub(super) asked: &'a Asked,
    pub(super) right: &'a Right,
}

impl Visit<'_> {
    /// The answer of the app, or a page that says why there is none.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (mut parts, body) = request.into_parts();
        if let Some(answer) = self.refused(&parts) {
            return answer;
        }
        let visit = self.right.counter.begin();
        let cross_origin = self.cross_origin(&parts.headers);
        let head = parts.method == Verb::HEAD;
        let upgrade = upgrade::wanted(&mut parts);
        let want = match () {
            () if upgrade.is_some() => Want::One,
            () if speaks_grpc(&parts.headers) => Want::Two,
            () => Want::Any,
        };
        self.prepare(
            &mut parts,
            upgrade.as_ref().map(|upgrade| &upgrade.protocol),
        );
        let body = match body.is_end_stream() {
            true => Outgoing::Empty,
            false => Outgoing::Stream(body, Arc::clone(&self.right.meter)),
        };
        let sent = self.exchange(want, Request::from_parts(parts, body)).await;
        let mut answer = match sent {
            Ok(mut answer) => match upgrade {
                Some(upgrade) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    upgrade.join(self, &mut answer, visit)
                }
                _ => {
                    own::strip_hop_by_hop(answer.headers_mut());
                    *answer.version_mut() = Version::default();
                    answer.map(|mut body| {
                        body.visit = Some(visit);
                        if (head || body.body.is_end_stream())
                            && let Some(lease) = body.lease.take()
                        {
                            lease.give_back();
                        }
                        Body::new(body)
                    })
                }
            },
            Err(failure) => return Box::pin(self.failed(failure)).await,
        };
        let headers = answer.headers_mut();
        own::strip_set_cookies(headers);
        if self.right.cors == Behavior::Simple {
            cors::strip(headers);
            for (name, value) in &cross_origin {
                headers.append(name, value.clone());
            }
        }
        answer
    }

    /// What the proxy answers itself.
    fn refused(&self, parts: &Parts) -> Option<Response<Body>> {
        let Self { state, right, .. } = self;
        let visitor = || match &right.grant {
            Grant::Session(id) => id.clone(),
            Grant::Public => {
                let client = state.apps.trust.client(self.peer.address, &parts.headers);
                client.to_string()
            }
        };
        let most = state.apps.rate_limit;
        if state.proxy.limit.exceeded(most, visitor, right.agent) {
            let message = "Too many requests to this application; wait a minute.";
            return Some(page::json(StatusCode::TOO_MANY_REQUESTS, message));
        }
        if !self.may_upgrade(parts) {
            let message = "Pages of another user's applications may not open this connection.";
            return Some(page::json(StatusCode::FORBIDDEN, message));
        }
        if !right.place.holds(self.asked.path(parts.uri.path())) {
            let text = "This address leads out of the application's folder.";
            return Some(
                Page::new(StatusCode::BAD_REQUEST, "Invalid application URL", text).answer(),
            );
        }
        let query = right.place.query.as_ref()?;
        let root = self.asked.path(parts.uri.path()) == "/" && parts.uri.query().is_none();
        root.then(|| {
            let location = format!("{}?{query}", parts.uri.path());
            page::redirect(StatusCode::TEMPORARY_REDIRECT, &location)
        })
    }

    /// The same-origin policy does not cover WebSockets: without this check a page of one user's
    /// app could use another user's app with that user's cookies.
    fn may_upgrade(&self, parts: &Parts) -> bool {
        let headers = &parts.headers;
        let Some(origin) = headers
            .get(ORIGIN)
            .filter(|_| headers.contains_key(UPGRADE))
        else {
            return true;
        };
        if self.right.grant == Grant::Public || self.right.cors == Behavior::Passthru {
            return true;
        }
        let text = origin.to_str().unwrap_or_default();
        let Ok(url) = url::Url::parse(text) else {
            return false;
        };
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        if !matches!(url.scheme(), "http" | "https") {
            // An editor's own pages, which no site can pass for.
            return !text.eq_ignore_ascii_case("null");
        }
        host.is_some_and(|host| login::same_host(&url, host))
            || match (self.asked.method, &self.state.apps.pattern) {
                (Method::Subdomain, Some(pattern)) => {
                    let user = &self.asked.identity.username_or_id;
                    cors::allowed_origin(headers, pattern, user).is_some()
                }
                _ => false,
            }
    }

    /// What is added to the answer for the sake of cross-origin requests.
    fn cross_origin(&self, headers: &HeaderMap) -> HeaderMap {
        match (self.asked.method, &self.state.apps.pattern, self.right.cors) {
            (Method::Subdomain, Some(pattern), Behavior::Simple) => {
                cors::actual(headers, pattern, &self.asked.identity.username_or_id)
            }
            _ => HeaderMap::new(),
        }
    }

    /// Makes the app's request of the browser's.
    fn prepare(&self, parts: &mut Parts, upgrade: Option<&HeaderValue>) {
        let headers = &mut parts.headers;
        own::strip_hop_by_hop(headers);
        own::strip_headers(headers, parts.version);
        // It was answered when the body was asked for.
        headers.remove(EXPECT);
        let trust = &self.state.apps.trust;
        trust.towards_app(self.peer.address, self.peer.tls, headers);
        if let Some(protocol) = upgrade {
            headers.insert(
                http::header::CONNECTION,
                HeaderValue::from_static("Upgrade"),
            );
            headers.insert(UPGRADE, protocol.clone());
        }
        parts.version = Version::HTTP_11;
        parts.uri = self.target(&parts.uri);
    }

    /// The path and query as the app gets them.
    fn target(&self, uri: &Uri) -> Uri {
        let path = self.asked.path(uri.path());
        let query = uri.query().and_then(own::strip_query);
        let prefix = &self.right.place.prefix;
        let as_is = prefix.is_empty()
            && self.asked.method == Method::Subdomain
            && query.as_deref() == uri.query();
        let target = if as_is {
            uri.path_and_query().cloned()
        } else {
            let mut target = format!("{prefix}{path}");
            if let Some(query) = query {
                target.push('?');
                target.push_str(&query);
            }
            PathAndQuery::try_from(target).ok()
        };
        target
            .unwrap_or_else(|| PathAndQuery::from_static("/"))
            .into()
    }

    /// Sends a request by a connection that is there, or by a new one.
    async fn exchange(
        &self,
        want: Want,
        mut request: Request<Outgoing>,
    ) -> Result<Response<Answered>, Failure> {
        let key = Key {
            agent: self.right.agent,
            port: self.right.place.port,
            tls: self.right.place.tls,
            runtime: Handle::current().id(),
        };
        let pool = &self.state.proxy.pool;
        let upgrade = request.headers().contains_key(UPGRADE);
        let mut fresh = upgrade;
        loop {
            let kept = match fresh {
                true => None,
                false => pool.take(key, want != Want::One, want == Want::Two),
            };
            let reused = kept.is_some();
            let sender = match kept {
                Some(sender) => sender,
                None => self.connect(key, want).await?,
            };
            // An app may close an idle connection in the moment in which it is used again.
            let again = (reused && may_repeat(&request)).then(|| request_head(&request));
            let error = match sender {
                Sender::One(mut sender) => match sender.try_send_request(request).await {
                    Ok(answer) => {
                        let lease = (!upgrade).then(|| lease(self.state, key, sender));
                        return Ok(answer.map(|body| self.answered(body, lease)));
                    }
                    Err(error) => error,
                },
                Sender::Two(mut sender) => {
                    make_absolute(&mut request, key.tls);
                    match sender.try_send_request(request).await {
                        Ok(answer) => {
                            return Ok(answer.map(|body| self.answered(body, None)));
                        }
                        Err(error) => error,
                    }
                }
            };
            let mut error = error;
            request = match (error.take_message(), again) {
                (Some(unsent), _) if reused => unsent,
                (_, Some(head)) if !error.error().is_parse() => {
                    fresh = true;
                    head
                }
                _ => return Err(error.into_error().into()),
            };
        }
    }

    fn answered(&self, body: Incoming, lease: Option<Lease>) -> Answered {
        Answered {
            body,
            lease,
            meter: Arc::clone(&self.right.meter),
            visit: None,
        }
    }

    async fn connect(&self, key: Key, want: Want) -> Result<Sender, Failure> {
        let stream = self.state.dialer.dial(key.agent, key.port).await?;
        prepare_socket(&stream);
        if !key.tls {
            return match want {
                Want::Two => self.open_two(key, stream).await,
                Want::Any | Want::One => open_one(stream).await,
            };
        }
        let stream = Box::pin(tls::open(stream, want));
        let stream = stream.await.map_err(Failure::Tls)?;
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => self.open_two(key, stream).await,
            _ => open_one(stream).await,
        }
    }

    async fn open_two<S>(&self, key: Key, stream: S) -> Result<Sender, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let opened = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(BUFFER)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = opened.await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an app's connection ended");
            }
        });
        self.state.proxy.pool.share(key, &sender);
        Ok(Sender::Two(sender))
    }

    /// The page for a request that got no answer.
    async fn failed(&self, failure: Failure) -> Response<Body> {
        tracing::debug!(error = %failure, "an app did not answer");
        let again = |page: Page| page.link("Try again", "");
        let (status, title, text) = match &failure {
            Failure::Dial(DialError::NotConnected) => {
                return again(self.not_connected().await).answer();
            }
            Failure::Dial(DialError::Refused) => (
                StatusCode::BAD_GATEWAY,
                "Bad gateway",
                format!(
                    "Nothing listens on port {} of the workspace. Start the application, or check \
                     which port it uses.",
                    self.right.place.port
                ),
            ),
            Failure::Dial(error) => (
                StatusCode::BAD_GATEWAY,
                "Bad gateway",
                format!("The workspace could not be reached: {error}."),
            ),
            Failure::Tls(error) if tls::met_plain_text(error) => {
                let text = "The application speaks plain HTTP, and this address wants HTTPS.";
                return self.other_protocol(text, Protocol::Http).answer();
            }
            Failure::Http(error) if self.may_be_tls(error) => {
                let text = "The application did not answer in plain HTTP. Perhaps it speaks HTTPS.";
                return self.other_protocol(text, Protocol::Https).answer();
            }
            Failure::Tls(_) => (
                StatusCode::BAD_GATEWAY,
                "Bad gateway",
                "No TLS connection with the application came about.".to_owned(),
            ),
            Failure::Http(_) => (
                StatusCode::BAD_GATEWAY,
                "Bad gateway",
                "The application closed the connection without a proper answer. Its log may say \
                 why."
                    .to_owned(),
            ),
        };
        again(Page::new(status, title, text)).answer()
    }

    /// A server that waits for a TLS handshake answers a request with an alert, or not at all.
    fn may_be_tls(&self, error: &hyper::Error) -> bool {
        !self.right.place.tls && (error.is_parse() || error.is_incomplete_message())
    }

    fn other_protocol(&self, text: &str, to: Protocol) -> Page {
        let page = Page::new(StatusCode::BAD_GATEWAY, "Bad gateway", text);
        let slug = &self.asked.identity.app_slug_or_port;
        let (Some(pattern), Some(_)) = (&self.state.apps.pattern, port_info(slug)) else {
            return page.link("Try again", "");
        };
        let mut host = self.asked.host();
        host.slug_or_port = change_protocol(slug, to);
        let label = match to {
            Protocol::Http => "Open with http",
            Protocol::Https => "Open with https",
        };
        page.link(label, pattern.url_of(&host, &self.state.access_url))
            .link("Try again", "")
    }

    async fn not_connected(&self) -> Page {
        let agent = self
            .state
            .store
            .agent(self.right.agent)
            .await
            .ok()
            .flatten();
        let known = agent.map(|found| found.agent);
        let text = match &known {
            Some(agent) if agent.first_connected_at.is_none() => format!(
                "The agent {} has not connected yet. Start it in the workspace; this page works as \
                 soon as it is there.",
                agent.name
            ),
            Some(agent) => format!(
                "The agent {} is disconnected. Check that the workspace runs and reaches this \
                 server.",
                agent.name
            ),
            None => "The agent is gone: the workspace was rebuilt or deleted.".to_owned(),
        };
        Page::new(StatusCode::NOT_FOUND, "Application unavailable", text)
    }
}

async fn open_one<S>(stream: S) -> Result<Sender, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let opened = http1::Builder::new()
        .title_case_headers(true)
        .preserve_header_case(true)
        .max_buf_size(BUFFER)
        .max_header_size(HEAD)
        .handshake(TokioIo::new(stream));
    let (sender, connection) = opened.await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "an app's connection ended");
        }
    });
    Ok(Sender::One(sender))
}

/// Sends at once, and notices an agent that went away without a word.
fn prepare_socket(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(SILENCE)
        .with_interval(SILENCE / 2);
    let set = stream
        .set_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&keepalive))
        .and_then(|()| socket.set_tcp_user_timeout(Some(SILENCE * 2)));
    if let Err(error) = set {
        tracing::debug!(%error, "an app's connection cannot be set up");
    }
}

/// gRPC needs HTTP/2 from end to end.
fn speaks_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
        && has_token(headers, &http::header::TE, "trailers")
}

/// Whether doing it twice is the same as once (RFC 9110 §9.2.2), and there is no body to repeat.
fn may_repeat(request: &Request<Outgoing>) -> bool {
    let verb = request.method();
    let idempotent = verb.is_safe() || *verb == Verb::PUT || *verb == Verb::DELETE;
    idempotent && matches!(request.body(), Outgoing::Empty)
}

fn request_head(request: &Request<Outgoing>) -> Request<Outgoing> {
    let mut copy = Request::new(Outgoing::Empty);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    copy.extensions_mut().clone_from(request.extensions());
    copy
}

/// HTTP/2 carries the host in the target.
fn make_absolute(request: &mut Request<Outgoing>, tls: bool) {
    *request.version_mut() = Version::HTTP_2;
    let host = request.headers_mut().remove(HOST);
    let host = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut target = std::mem::take(request.uri_mut()).into_parts();
    target.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    target.authority = Some(host.unwrap_or_else(|| Authority::from_static("localhost")));
    *request.uri_mut() = Uri::from_parts(target).unwrap_or_default();
}
