//! HTTP/1.1 to the control plane: requests with JSON bodies, and WebSocket upgrades.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use relay_tunnel::dial::{self, BoxedStream, TlsOptions};
use relay_wire::rest::{ErrorBody, TOKEN_HEADER};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest};
use url::Url;

use crate::Error;
use crate::rpc::websocket_config;

/// Longest answer that is read.
const LONGEST_BODY: usize = 32 << 20;
/// How long a request may take, with its connection.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Where the control plane is and what to show it.
#[derive(Clone, Default)]
pub struct Access {
    /// Session or agent token.
    pub token: String,
    /// Extra headers for each request.
    pub headers: Vec<(String, String)>,
    /// TLS settings.
    pub tls: TlsOptions,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access")
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// A connection to one deployment, opened when it is needed and kept for the next request.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    url: Url,
    access: Access,
    idle: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Http {
    pub(crate) fn new(url: &Url, access: Access) -> Self {
        let mut url = url.clone();
        // A path in the configured URL is dropped: the API is at the host's root.
        url.set_path("/");
        url.set_query(None);
        url.set_fragment(None);
        Self {
            shared: Arc::new(Shared {
                url,
                access,
                idle: Mutex::default(),
            }),
        }
    }

    pub(crate) fn url(&self) -> &Url {
        &self.shared.url
    }

    pub(crate) fn access(&self) -> &Access {
        &self.shared.access
    }

    /// The URL as it is shown to people.
    pub(crate) fn shown(&self) -> String {
        self.shared.url.as_str().trim_end_matches('/').to_owned()
    }

    /// Sends a request and reads the JSON answer; an answer without a body reads as `null`.
    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Error> {
        let answer = self.request(method.clone(), path, body).await?;
        let text = if answer.body.is_empty() {
            b"null".as_slice()
        } else {
            &answer.body
        };
        serde_json::from_slice(text).map_err(|error| Error::Answer {
            url: self.shown(),
            request: format!("{method} {path}"),
            reason: error.to_string(),
        })
    }

    /// Sends a request and gives the successful answer.
    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Answer, Error> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| self.broken(error))?,
            None => Vec::new(),
        };
        let answer = self.exchange(&method, path, body.into()).await?;
        match answer.status.is_success() {
            true => Ok(answer),
            false => Err(self.refused(format!("{method} {path}"), &answer)),
        }
    }

    async fn exchange(&self, method: &Method, path: &str, body: Bytes) -> Result<Answer, Error> {
        let exchange = self.exchange_unbounded(method, path, body);
        match timeout(ANSWER_WITHIN, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(self.broken(format!(
                "no answer to {method} {path} within {} s",
                ANSWER_WITHIN.as_secs()
            ))),
        }
    }

    async fn exchange_unbounded(
        &self,
        method: &Method,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, Error> {
        if let Some(mut kept) = self.take_idle()
            && kept.ready().await.is_ok()
        {
            match self.send(kept, method, path, body.clone()).await {
                Ok(answer) => return Ok(answer),
                // The server may have closed the kept connection just now: a new one helps, unless
                // the request may have been acted on.
                Err(Failed { sent, error }) if sent && *method != Method::GET => return Err(error),
                Err(_) => {}
            }
        }
        let stream = self.dial().await?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        tokio::spawn(connection);
        let answer = self.send(sender, method, path, body).await;
        answer.map_err(|failed| failed.error)
    }

    async fn send(
        &self,
        mut sender: SendRequest<Full<Bytes>>,
        method: &Method,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, Failed> {
        let unsent = |error| Failed { sent: false, error };
        let mut request = Request::builder().method(method).uri(path);
        if let Some(headers) = request.headers_mut() {
            *headers = self.headers().map_err(unsent)?;
            if !body.is_empty() {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            }
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| unsent(self.broken(error)))?;
        let answer = sender.try_send_request(request).await;
        let answer = answer.map_err(|mut error| Failed {
            sent: error.take_message().is_none(),
            error: self.broken(error.into_error()),
        })?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, LONGEST_BODY).collect().await;
        let body = body.map_err(|error| Failed {
            sent: true,
            error: self.broken(error),
        })?;
        self.keep_idle(sender);
        Ok(Answer {
            status: head.status,
            body: body.to_bytes(),
        })
    }

    /// The kept connection; others open their own meanwhile.
    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let idle = self.shared.idle.lock();
        idle.unwrap_or_else(PoisonError::into_inner).take()
    }

    fn keep_idle(&self, sender: SendRequest<Full<Bytes>>) {
        let idle = self.shared.idle.lock();
        *idle.unwrap_or_else(PoisonError::into_inner) = Some(sender);
    }

    /// Opens a WebSocket at `path` with its query.
    pub(crate) async fn websocket(
        &self,
        path: &str,
        cookie: Option<String>,
    ) -> Result<WebSocketStream<BoxedStream>, Error> {
        let mut url = self.shared.url.clone();
        let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
        // Between these schemes the change is always possible.
        let _ = url.set_scheme(scheme);
        let target = format!("{}{}", url.as_str().trim_end_matches('/'), path);
        let mut request = target
            .into_client_request()
            .map_err(|error| self.broken(error))?;
        for (name, value) in self.headers()? {
            if let Some(name) = name {
                request.headers_mut().insert(name, value);
            }
        }
        if let Some(cookie) = cookie.and_then(|cookie| HeaderValue::from_str(&cookie).ok()) {
            request.headers_mut().insert(http::header::COOKIE, cookie);
        }
        let stream = self.dial().await?;
        let opened =
            tokio_tungstenite::client_async_with_config(request, stream, Some(websocket_config()));
        match opened.await {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(answer)) => {
                let (head, body) = answer.into_parts();
                let body = Bytes::from(body.unwrap_or_default());
                let answer = Answer {
                    status: head.status,
                    body,
                };
                let path = path.split('?').next().unwrap_or_default();
                Err(self.refused(format!("GET {path}"), &answer))
            }
            Err(error) => Err(self.broken(error)),
        }
    }

    async fn dial(&self) -> Result<BoxedStream, Error> {
        let dialled = dial::connect(&self.shared.url, &self.shared.access.tls).await;
        dialled.map_err(|source| Error::Unreachable {
            url: self.shown(),
            source,
        })
    }

    fn headers(&self) -> Result<HeaderMap, Error> {
        let mut headers = HeaderMap::new();
        let mut set = |name: &str, value: &str| {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|e| self.broken(e))?;
            let mut value = HeaderValue::from_str(value).map_err(|e| self.broken(e))?;
            value.set_sensitive(name.as_str().eq_ignore_ascii_case(TOKEN_HEADER));
            headers.insert(name, value);
            Ok::<_, Error>(())
        };
        let url = &self.shared.url;
        let host = url.host_str().unwrap_or_default();
        match url.port() {
            Some(port) => set(HOST.as_str(), &format!("{host}:{port}"))?,
            None => set(HOST.as_str(), host)?,
        }
        set(
            USER_AGENT.as_str(),
            concat!("relay/", env!("CARGO_PKG_VERSION")),
        )?;
        let access = &self.shared.access;
        if !access.token.is_empty() {
            set(TOKEN_HEADER, &access.token)?;
        }
        for (name, value) in &access.headers {
            set(name, value)?;
        }
        Ok(headers)
    }

    fn refused(&self, request: String, answer: &Answer) -> Error {
        let body: ErrorBody = serde_json::from_slice(&answer.body).unwrap_or_default();
        let mut message = match body.message.is_empty() {
            true => answer
                .status
                .canonical_reason()
                .unwrap_or("no reason given")
                .to_owned(),
            false => body.message,
        };
        for more in [body.detail]
            .iter()
            .chain(body.validations.iter().map(|v| &v.detail))
        {
            if !more.is_empty() {
                message = format!("{message}: {more}");
            }
        }
        let url = self.shown();
        match answer.status {
            StatusCode::UNAUTHORIZED if !body.validations.iter().any(is_resume_token) => {
                Error::Unauthorized { url, message }
            }
            status => Error::Status {
                url,
                request,
                status: status.as_u16(),
                message,
            },
        }
    }

    fn broken(&self, reason: impl std::fmt::Display) -> Error {
        Error::Broken {
            url: self.shown(),
            reason: reason.to_string(),
        }
    }
}

fn is_resume_token(validation: &relay_wire::rest::Validation) -> bool {
    validation.field == "resume_token"
}

/// A request without an answer.
struct Failed {
    /// Whether the server may have seen it.
    sent: bool,
    error: Error,
}

/// An answer, body and all.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}
