//! Requests that pages of other sites had a browser send: they are refused wherever something
//! would change.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{COOKIE, HOST, ORIGIN};
use http::{HeaderMap, Method, StatusCode};
use sha2::{Digest, Sha256};
use url::Url;

use crate::api::Refusal;
use crate::apps::cookies;
use crate::secrets;
use crate::state::Shared;

/// Whether a request comes from a page of this dashboard, or from no page at all. Apps may be on
/// the same site as the dashboard, but they are never of the same origin.
pub(super) fn is_own(headers: &HeaderMap, access_url: &Url) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let fetched = text("sec-fetch-site").is_none_or(|site| matches!(site, "same-origin" | "none"));
    let origin = match text(ORIGIN.as_str()) {
        None => true,
        Some(origin) => {
            let to_host = origin
                .split_once("://")
                .zip(text(HOST.as_str()))
                .is_some_and(|((_, own), host)| own.eq_ignore_ascii_case(host));
            to_host || origin == access_url.origin().ascii_serialization()
        }
    };
    fetched && origin
}

/// Refuses what another site's page sends to the API with the session cookie.
pub(crate) async fn protect(State(state): State<Shared>, request: Request, next: Next) -> Response {
    let changes = !matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE
    );
    if changes && has_session(request.headers()) && !is_own(request.headers(), &state.access_url) {
        let message = "Requests of other sites' pages are not allowed.";
        return Refusal::new(StatusCode::FORBIDDEN, message).into_response();
    }
    next.run(request).await
}

fn has_session(headers: &HeaderMap) -> bool {
    session_cookie(headers, cookies::SESSION).is_some()
}

/// The first cookie of that name that is not empty.
pub(super) fn session_cookie<'a>(headers: &'a HeaderMap, name: &'a str) -> Option<&'a str> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| cookies::values(line, name))
        .map(|value| value.trim_matches('"'))
        .find(|value| !value.is_empty())
}

/// What a form must send back: it follows from a secret that only its visitor's browser holds.
pub(super) fn form_token(secret: &str) -> String {
    let hash = Sha256::new()
        .chain_update("relay form token\0")
        .chain_update(secret)
        .finalize();
    hex::encode(&hash[..16])
}

/// Whether a form sent back what it was given.
pub(super) fn is_form_token(sent: &str, secret: &str) -> bool {
    secrets::equal(sent, &form_token(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(lines: &[(&'static str, &'static str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.insert(*name, value.parse().unwrap());
        }
        is_own(&headers, &Url::parse("https://relay.example.com/").unwrap())
    }

    #[test]
    fn only_the_dashboards_own_pages_and_no_pages_count() {
        let host = ("host", "localhost:3000");
        assert!(own(&[host]));
        assert!(own(&[host, ("origin", "http://localhost:3000")]));
        assert!(own(&[host, ("origin", "https://relay.example.com")]));
        assert!(own(&[host, ("sec-fetch-site", "same-origin")]));
        assert!(own(&[host, ("sec-fetch-site", "none")]));
        for origin in [
            "null",
            "http://8080--main--dev--eve.localhost:3000",
            "https://8080--main--dev--eve.example.com",
            "https://relay.example.com.evil.test",
            "http://localhost",
            "ü",
        ] {
            assert!(!own(&[host, ("origin", origin)]), "{origin}");
        }
        for site in ["same-site", "cross-site"] {
            assert!(!own(&[host, ("sec-fetch-site", site)]), "{site}");
        }
        assert!(!own(&[("origin", "http://localhost:3000")]));
    }

    #[test]
    fn a_form_token_fits_its_secret_only() {
        let token = form_token("a");
        assert!(is_form_token(&token, "a"));
        assert!(!is_form_token(&token, "b"));
        assert!(!is_form_token("", "a"));
        assert!(!token.contains('a') || token != "a");
    }
}
