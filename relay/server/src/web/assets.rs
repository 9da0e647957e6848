//! The files that pages refer to. Their URLs hold a hash of all of them, so that browsers keep
//! them for good and still get new ones after an upgrade.

use std::sync::LazyLock;

use axum::body::Body;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use sha2::{Digest, Sha256};

struct File {
    name: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

macro_rules! file {
    ($name:literal, $kind:literal) => {
        File {
            name: $name,
            kind: $kind,
            bytes: include_bytes!(concat!("../../assets/", $name)),
        }
    };
}

static FILES: [File; 5] = [
    file!("relay.css", "text/css; charset=utf-8"),
    file!("relay.js", "text/javascript; charset=utf-8"),
    file!("htmx.min.js", "text/javascript; charset=utf-8"),
    file!("hx-sse.min.js", "text/javascript; charset=utf-8"),
    file!("relay.svg", "image/svg+xml"),
];

/// Where the files are.
pub(super) static BASE: LazyLock<String> = LazyLock::new(|| {
    let mut hash = Sha256::new();
    for file in &FILES {
        hash.update(file.name);
        hash.update(file.bytes);
    }
    format!("/assets/{}", hex::encode(&hash.finalize()[..8]))
});

/// A file, to be kept for good under its own hash.
pub(super) async fn serve(Path((hash, name)): Path<(String, String)>) -> Response {
    let Some(file) = FILES.iter().find(|file| file.name == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let current = BASE.ends_with(&hash);
    let keep = if current {
        "public, max-age=31536000, immutable"
    } else {
        "no-cache"
    };
    let mut answer = Response::new(Body::from(file.bytes));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(file.kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(keep));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}
