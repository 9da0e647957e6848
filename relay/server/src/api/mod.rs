//! The REST API: routes, errors, and what every answer carries.

mod agents;
mod auth;
pub(crate) mod limits;
mod places;
mod shares;
mod templates;
mod usage;
mod users;
mod version;
mod views;
mod watch;
pub(crate) mod websocket;
mod workspaces;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, body::Body};
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue, RETRY_AFTER};
use http::header::{X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS};
use http::request::Parts;
use http::{HeaderName, StatusCode};
use relay_wire::rest::{BuildInfo, ErrorBody, SshConfig, Validation};

pub(crate) use auth::session_tokens;
use limits::Anybody;

use crate::error::Error;
use crate::state::Shared;

/// Contains `v0.0.0` on purpose: for Coder's tools that is a version that fits every other.
pub(crate) const BUILD_VERSION: &str = concat!("v0.0.0+relay.", env!("CARGO_PKG_VERSION"));
/// Longest body of a request.
const BODY: usize = 256 << 10;
/// How long a request may take, hashing a password while others do so included.
const PATIENCE: Duration = Duration::from_secs(30);

/// All routes of the server.
pub(crate) fn router(state: Shared) -> Router {
    let api = Router::new()
        .route("/buildinfo", get(build_info))
        .route("/deployment/ssh", get(ssh_config))
        .merge(users::routes())
        .merge(workspaces::routes())
        .merge(shares::routes())
        .merge(usage::routes())
        .merge(places::routes())
        .merge(templates::routes())
        .merge(agents::routes())
        .merge(crate::proxy::routes())
        .layer(middleware::from_fn_with_state(
            state.clone(),
            crate::web::protect,
        ));
    Router::new()
        .nest("/api/v2", api)
        .route("/derp", any(crate::derp::upgrade))
        .route("/derp/latency-check", any(async || StatusCode::OK))
        .route("/healthz", get(async || "OK"))
        .merge(crate::web::routes(&state))
        .fallback(no_route)
        .method_not_allowed_fallback(async || {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed.")
        })
        .layer(DefaultBodyLimit::max(BODY))
        .layer(middleware::from_fn(limits))
        .with_state(state)
}

/// The answer to an address that is none: a page for people, JSON for programs.
async fn no_route(State(state): State<Shared>, request: Request) -> Response {
    let accepts = request.headers().get(ACCEPT);
    let accepts = accepts.and_then(|accepts| accepts.to_str().ok());
    let api = request.uri().path().starts_with("/api/");
    if !api && accepts.is_some_and(|accepts| accepts.contains("text/html")) {
        return crate::web::not_found(&state);
    }
    Refusal::not_found("Route not found.").into_response()
}

/// What an answer of the API may be used for by a browser: to be read by the page that asked.
const GUARDS: [(HeaderName, &str); 4] = [
    (CACHE_CONTROL, "no-store"),
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'",
    ),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
];

/// Bounds the time of a request; adds to its answer the version, and guards where it has none.
async fn limits(request: Request, next: Next) -> Response {
    let answer = tokio::time::timeout(PATIENCE, next.run(request)).await;
    let mut answer = answer.unwrap_or_else(|_| {
        Refusal::new(StatusCode::REQUEST_TIMEOUT, "The request took too long.").into_response()
    });
    let name = HeaderName::from_static("x-coder-build-version");
    let version = HeaderValue::from_static(BUILD_VERSION);
    answer.headers_mut().insert(name, version);
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        for (name, value) in GUARDS {
            let headers = answer.headers_mut();
            headers
                .entry(name)
                .or_insert(HeaderValue::from_static(value));
        }
    }
    answer
}

async fn build_info(State(state): State<Shared>, _anybody: Anybody) -> Json<BuildInfo> {
    Json(BuildInfo {
        external_url: state.access_url.to_string(),
        version: BUILD_VERSION.to_owned(),
        dashboard_url: state.access_url.to_string(),
        agent_api_version: version::NEWEST.to_owned(),
        provisioner_api_version: "1.0".to_owned(),
        deployment_id: state.deployment_id.clone(),
        ..BuildInfo::default()
    })
}

async fn ssh_config(_anybody: Anybody) -> Json<SshConfig> {
    Json(SshConfig {
        hostname_prefix: "coder.".to_owned(),
        hostname_suffix: HOSTNAME_SUFFIX.to_owned(),
        ..SshConfig::default()
    })
}

/// Last part of workspaces' host names.
pub(crate) const HOSTNAME_SUFFIX: &str = "coder";

/// A request that is not granted, as its answer.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    body: ErrorBody,
    /// Seconds after which it may be granted.
    retry_after: Option<u64>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let body = ErrorBody {
            message: message.into(),
            ..ErrorBody::default()
        };
        Self {
            status,
            body,
            retry_after: None,
        }
    }

    /// More than `most` requests in a minute; the next one is answered when `left` is over.
    pub(crate) fn too_many(most: u32, left: Duration) -> Self {
        let seconds = left.as_secs() + 1;
        let message = format!(
            "Too many requests: {most} are answered in a minute; try again in {seconds} seconds."
        );
        Self {
            retry_after: Some(seconds),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, message)
        }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    /// Adds which field is wrong, and why.
    pub(crate) fn field(mut self, field: &str, detail: impl Into<String>) -> Self {
        self.body.validations.push(Validation {
            field: field.to_owned(),
            detail: detail.into(),
        });
        self
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut answer = (self.status, Json(self.body)).into_response();
        if let Some(seconds) = self.retry_after {
            answer.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        answer
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Exists { .. } | Error::TemplateInUse { .. } => StatusCode::CONFLICT,
            Error::Missing { .. } => StatusCode::NOT_FOUND,
            Error::Name { .. }
            | Error::Email(_)
            | Error::Password(_)
            | Error::WorkspaceName(_)
            | Error::AppWithoutAgent { .. } => StatusCode::BAD_REQUEST,
            _ => {
                tracing::warn!(%error, "a request failed");
                return Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "The server failed; its log says why.",
                );
            }
        };
        Self::new(status, error.to_string())
    }
}

/// The address of whoever sent a request.
pub(crate) fn client_address(parts: &Parts, _state: &Shared) -> IpAddr {
    let peer = parts.extensions.get::<IpAddr>();
    peer.copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// An answer without a body.
fn empty(status: StatusCode) -> Response {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
}

/// Reads a JSON body, whatever its declared type; an empty one is the default.
fn read_body<T: serde::de::DeserializeOwned + Default>(body: &[u8]) -> Result<T, Refusal> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|error| {
        let mut refusal = Refusal::bad("Request body must be valid JSON.");
        refusal.body.detail = error.to_string();
        refusal
    })
}
