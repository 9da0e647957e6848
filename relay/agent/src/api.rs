//! The agent's own HTTP API, on a port of the tunnel that is never an app's (coder_facts §2.17):
//! what listens on this machine, and the streams that relay's own clients ask for.

use std::io;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use relay_wire::same_host::{self, Invitation, Secret};
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use crate::listening::{self, Port};
use crate::streams::{PROTOCOL, Streams, Work};

/// The port of the tunnel on which it is served.
pub(crate) const PORT: u16 = 4;
/// A list of ports is told again while it is not older than this.
const FRESH: Duration = Duration::from_secs(1);
/// How long the head of a request may take, and a connection may wait for one.
const HEAD: Duration = Duration::from_secs(30);
/// The longest head of a request.
const LONGEST_HEAD: usize = 16 << 10;

/// The API, shared by its connections.
pub(crate) struct Api {
    streams: Streams,
    /// Held while the list is made, so that it is made once for all who ask.
    ports: Mutex<Option<(Instant, Bytes)>>,
    /// The agent's own ports, which are not told.
    own: Vec<u16>,
}

#[derive(Serialize)]
struct Ports {
    ports: Vec<Port>,
}

#[derive(Serialize)]
struct Message<'a> {
    message: &'a str,
}

/// What a connection is for, once it is no more HTTP's.
type Next = Arc<StdMutex<Option<(OnUpgrade, Work)>>>;

/// Has the peer prove that it runs on this machine; it has sent that challenge.
pub(crate) type Invite = Arc<dyn Fn(Secret) -> io::Result<Invitation> + Send + Sync>;

/// Answers a peer that wants to prove that it runs on this machine.
fn invited<B>(
    request: &Request<B>,
    invite: &dyn Fn(Secret) -> io::Result<Invitation>,
) -> Response<Full<Bytes>> {
    let challenge = request.headers().get(same_host::CHALLENGE);
    let challenge = challenge.and_then(|text| Secret::from_hex(text.to_str().ok()?));
    let Some(challenge) = challenge else {
        return say(StatusCode::BAD_REQUEST, "The challenge is missing.");
    };
    match invite(challenge) {
        Ok(invitation) => Response::new(Full::new(invitation.to_text().into())),
        Err(error) => {
            tracing::debug!(%error, "nobody can be invited");
            let why = "Nobody can be invited now.";
            say(StatusCode::SERVICE_UNAVAILABLE, why)
        }
    }
}

impl Api {
    /// An API with these streams, of an agent that listens on this port itself.
    pub(crate) fn new(streams: Streams, own: Option<u16>) -> Self {
        Self {
            streams,
            own: own.into_iter().collect(),
            ports: Mutex::default(),
        }
    }

    /// The streams that relay's own clients ask for.
    pub(crate) fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Serves a peer's connection to its end.
    pub(crate) async fn serve(self: Arc<Self>, stream: TcpStream, invite: Invite) {
        let next = Next::default();
        let (api, noted) = (Arc::clone(&self), Arc::clone(&next));
        let service = service_fn(move |request: Request<Incoming>| {
            let (api, next, invite) = (Arc::clone(&api), Arc::clone(&noted), Arc::clone(&invite));
            async move {
                let asks = request.method() == Method::POST;
                let answer = match asks && request.uri().path() == same_host::PATH {
                    true => invited(&request, &*invite),
                    false => api.answer(request, &next).await,
                };
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(LONGEST_HEAD)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to the agent's API ended");
        }
        let next = next.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((upgrade, work)) = next else {
            return;
        };
        match upgrade.await.map(hyper::upgrade::Upgraded::downcast) {
            // Peers wait for the answer before they go on, so nothing was read too much.
            Ok(Ok(parts)) if parts.read_buf.is_empty() => {
                let stream: TokioIo<TcpStream> = parts.io;
                self.streams.serve(stream.into_inner(), work).await;
            }
            _ => tracing::debug!("a peer did not wait for the answer of the agent's API"),
        }
    }

    async fn answer<B>(&self, mut request: Request<B>, next: &Next) -> Response<Full<Bytes>> {
        if let Some(target) = request.uri().path().strip_prefix("/api/v0/relay/") {
            let query = request.uri().query().unwrap_or_default();
            let asked = request.headers().get(UPGRADE);
            let asked = asked.is_some_and(|value| value == PROTOCOL);
            if !asked || request.method() != Method::GET {
                let how = "This is a stream of relay's: ask for it by an upgrade.";
                return say(StatusCode::UPGRADE_REQUIRED, how);
            }
            return match self.streams.open(target, query).await {
                Ok(work) => {
                    let upgrade = hyper::upgrade::on(&mut request);
                    *next.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, work));
                    switch()
                }
                Err(refusal) => say(refusal.status, &refusal.message),
            };
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/") => say(StatusCode::OK, "This is the agent of a workspace."),
            (&Method::GET, "/api/v0/listening-ports") => match self.ports().await {
                Ok(list) => json(StatusCode::OK, list),
                Err(error) => {
                    tracing::warn!("cannot tell what listens on this machine: {error}");
                    let why = "The agent cannot read what listens on its machine.";
                    say(StatusCode::INTERNAL_SERVER_ERROR, why)
                }
            },
            _ => say(StatusCode::NOT_FOUND, "The agent has nothing here."),
        }
    }

    async fn ports(&self) -> io::Result<Bytes> {
        let mut kept = self.ports.lock().await;
        if let Some((made, list)) = &*kept
            && made.elapsed() < FRESH
        {
            return Ok(list.clone());
        }
        let own = self.own.clone();
        let ports = tokio::task::spawn_blocking(move || listening::ports(&own)).await??;
        let list = Bytes::from(serde_json::to_vec(&Ports { ports })?);
        *kept = Some((Instant::now(), list.clone()));
        Ok(list)
    }
}

fn switch() -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    answer
}

fn say(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    // A struct with one text always serialises.
    let body = serde_json::to_vec(&Message { message }).unwrap_or_default();
    json(status, body.into())
}

fn json(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("application/json; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use http_body_util::BodyExt;
    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn get(api: &Api, path: &str) -> (StatusCode, Value) {
        let request = Request::get(path).body(()).unwrap();
        let answer = api.answer(request, &Next::default()).await;
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    fn has(list: &Value, port: u16) -> bool {
        let ports = list["ports"].as_array().unwrap();
        ports
            .iter()
            .any(|found| found["port"] == port && found["network"] == "tcp")
    }

    #[tokio::test]
    async fn the_list_of_ports_is_a_second_old_at_most() {
        let api = Api::new(Streams::default(), None);
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (status, list) = get(&api, "/api/v0/listening-ports").await;
        assert_eq!(status, StatusCode::OK);
        assert!(has(&list, first.local_addr().unwrap().port()), "{list}");
        let made = api.ports.lock().await.as_ref().unwrap().0;
        let second = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = second.local_addr().unwrap().port();
        let (_, again) = get(&api, "/api/v0/listening-ports").await;
        // Unless this machine was asleep in between.
        assert!(!has(&again, port) || made.elapsed() >= FRESH);
        tokio::time::sleep_until((made + FRESH).into()).await;
        let (_, fresh) = get(&api, "/api/v0/listening-ports").await;
        assert!(has(&fresh, port), "{fresh}");
    }

    #[tokio::test]
    async fn other_paths_and_methods_are_not_found() {
        let api = Api::new(Streams::default(), None);
        assert_eq!(get(&api, "/").await.0, StatusCode::OK);
        for path in ["/api/v0/netcheck", "/api/v0/listening-ports/x", "/../"] {
            let (status, body) = get(&api, path).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
            assert!(body["message"].is_string());
        }
        let post = Request::post("/").body(()).unwrap();
        let answer = api.answer(post, &Next::default()).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn a_stream_takes_an_upgrade() {
        let api = Api::new(Streams::default(), None);
        let (status, body) = get(&api, "/api/v0/relay/listen?port=8080").await;
        assert_eq!(status, StatusCode::UPGRADE_REQUIRED);
        assert!(body["message"].is_string());
    }

    #[tokio::test]
    async fn a_connection_that_is_no_http_ends() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut peer = TcpStream::connect(address).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let serving = tokio::spawn(
            Arc::new(Api::new(Streams::default(), None))
                .serve(stream, Arc::new(|_| Err(io::ErrorKind::Other.into()))),
        );
        peer.write_all(b"\x16\x03\x01\x00\x00nonsense\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        let _ = peer.read_to_end(&mut answer).await;
        serving.await.unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert!(
            text.is_empty() || text.starts_with("HTTP/1.1 400"),
            "{text}"
        );
    }
}
