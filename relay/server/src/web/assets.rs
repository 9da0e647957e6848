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

#[cfg(test)]
mod tests {
    /// The value of a colour in a part of the style sheet.
    fn colour(part: &str, name: &str) -> [f64; 3] {
        let (_, rest) = part.split_once(&format!("--{name}: #")).unwrap();
        let digits: Vec<u32> = rest
            .chars()
            .map_while(|letter| letter.to_digit(16))
            .collect();
        let byte = |index: usize| match digits.len() {
            3 => digits[index] * 17,
            _ => digits[2 * index] * 16 + digits[2 * index + 1],
        };
        [0, 1, 2].map(|index| f64::from(byte(index)) / 255.0)
    }

    /// WCAG 2.2, relative luminance.
    fn luminance(colour: [f64; 3]) -> f64 {
        let [red, green, blue] = colour.map(|part| match part {
            ..=0.04045 => part / 12.92,
            part => ((part + 0.055) / 1.055).powf(2.4),
        });
        0.2126 * red + 0.7152 * green + 0.0722 * blue
    }

    #[test]
    fn texts_can_be_read_on_what_is_behind_them() {
        let css = include_str!("../../assets/relay.css");
        let (light, rest) = css
            .split_once("@media (prefers-color-scheme: dark)")
            .unwrap();
        let (dark, _) = rest.split_once("* {").unwrap();
        let texts = [
            ("ink", "paper"),
            ("ink", "card"),
            ("ink", "accent-soft"),
            ("dim", "paper"),
            ("dim", "card"),
            ("dim", "soft"),
            ("accent", "paper"),
            ("accent", "card"),
            ("accent", "accent-soft"),
            ("on-accent", "accent"),
            ("good", "good-soft"),
            ("wait", "wait-soft"),
            ("bad", "bad-soft"),
        ];
        let edges = [("edge", "card"), ("edge", "soft"), ("accent", "card")];
        let all = texts.map(|pair| (pair, 4.5)).into_iter();
        for ((front, back), least) in all.chain(edges.map(|pair| (pair, 3.0))) {
            for (mode, part) in [("light", light), ("dark", dark)] {
                let [a, b] = [front, back].map(|name| luminance(colour(part, name)) + 0.05);
                let ratio = a.max(b) / a.min(b);
                assert!(ratio >= least, "{mode}: {front} on {back} has {ratio:.2}");
            }
        }
    }
}
