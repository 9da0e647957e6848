//! Taking over a connection: the WebSocket handshake of RFC 6455, from the server's side.

use axum::body::Body;
use axum::response::Response;
use http::header::{
    CONNECTION, HOST, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::Refusal;

/// A WebSocket over a connection that was an HTTP one.
pub(crate) type WebSocket = WebSocketStream<TokioIo<Upgraded>>;

/// A request that wants a WebSocket.
pub(crate) struct Handshake {
    upgrade: OnUpgrade,
    accept: HeaderValue,
    protocol: Option<HeaderValue>,
}

impl Handshake {
    /// Reads the request's headers.
    pub(crate) fn new(parts: &mut Parts) -> Result<Self, Refusal> {
        let headers = &parts.headers;
        let wanted =
            has_token(headers, &CONNECTION, "upgrade") && has_token(headers, &UPGRADE, "websocket");
        if !wanted {
            let message = "This address speaks WebSocket only.";
            return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, message));
        }
        let version = headers.get(SEC_WEBSOCKET_VERSION);
        if version.is_none_or(|version| version.as_bytes() != b"13") {
            return Err(Refusal::bad("The WebSocket version must be 13."));
        }
        let key = headers
            .get(SEC_WEBSOCKET_KEY)
            .ok_or_else(|| Refusal::bad("Sec-WebSocket-Key is missing."))?;
        let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()))
            .map_err(|_| Refusal::bad("Sec-WebSocket-Key is not valid."))?;
        let upgrade = parts
            .extensions
            .remove::<OnUpgrade>()
            .ok_or_else(|| Refusal::bad("This connection cannot be upgraded."))?;
        Ok(Self {
            upgrade,
            accept,
            protocol: None,
        })
    }

    /// Names the subprotocol that was agreed on.
    pub(crate) fn protocol(mut self, name: &'static str) -> Self {
        self.protocol = Some(HeaderValue::from_static(name));
        self
    }

    /// Answers 101 and hands the WebSocket to `serve`, in a task of its own.
    pub(crate) fn accept<F>(
        self,
        config: WebSocketConfig,
        serve: impl FnOnce(WebSocket) -> F + Send + 'static,
    ) -> Response
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let upgrade = self.upgrade;
        tokio::spawn(async move {
            match upgrade.await {
                Ok(upgraded) => {
                    let io = TokioIo::new(upgraded);
                    let socket =
                        WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
                    // On the heap, so that this task is as large as its longest part only.
                    Box::pin(serve(socket)).await;
                }
                Err(error) => tracing::debug!(%error, "a WebSocket was not opened"),
            }
        });
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept);
        if let Some(protocol) = self.protocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        answer
    }
}

/// Refuses a browser's request that a page of another site made.
pub(crate) fn check_origin(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(origin) = headers.get(ORIGIN) else {
        return Ok(());
    };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let same = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"))
        .zip(host)
        .is_some_and(|((_, origin), host)| origin.eq_ignore_ascii_case(host));
    if same {
        Ok(())
    } else {
        let message = "Requests of other sites' pages are not allowed.";
        Err(Refusal::new(StatusCode::FORBIDDEN, message))
    }
}

/// Whether a header, a list with commas, has this word.
pub(crate) fn has_token(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case(wanted))
}
