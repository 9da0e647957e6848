//! The answers of the proxy itself: its error pages and redirects (coder_facts §2.10).

use askama::Template;
use axum::body::Body;
use axum::response::IntoResponse;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::api::{BUILD_VERSION, Refusal};

/// What a page is allowed to load: its own style, and nothing else.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; \
     form-action 'none'; frame-ancestors *";

/// An error page.
#[derive(Template)]
#[template(path = "error.html")]
pub(super) struct Page {
    status: u16,
    title: String,
    text: String,
    links: Vec<Link>,
}

struct Link {
    label: &'static str,
    href: String,
}

impl Page {
    pub(super) fn new(
        status: StatusCode,
        title: impl Into<String>,
        text: impl Into<String>,
    ) -> Self {
        Self {
            status: status.as_u16(),
            title: title.into(),
            text: text.into(),
            links: Vec::new(),
        }
    }

    /// Adds something to do about it.
    pub(super) fn link(mut self, label: &'static str, href: impl Into<String>) -> Self {
        let href = href.into();
        self.links.push(Link { label, href });
        self
    }

    /// The page as an answer.
    pub(super) fn answer(self) -> Response<Body> {
        let html = self.render().unwrap_or_else(|_| self.text.clone());
        let mut answer = Response::new(Body::from(html));
        *answer.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = answer.headers_mut();
        for (name, value) in [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CACHE_CONTROL, "no-store"),
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (REFERRER_POLICY, "no-referrer"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        answer
    }
}

/// An answer in JSON.
pub(super) fn json(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    Refusal::new(status, message).into_response()
}

/// An answer that leads elsewhere.
pub(super) fn redirect(status: StatusCode, location: &str) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    match HeaderValue::from_str(location) {
        Ok(location) => {
            *answer.status_mut() = status;
            answer.headers_mut().insert(LOCATION, location);
        }
        Err(_) => *answer.status_mut() = StatusCode::BAD_REQUEST,
    }
    let headers = answer.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// Notes the version, as in every answer of the server.
pub(super) fn add_version(answer: &mut Response<Body>) {
    let name = HeaderName::from_static("x-coder-build-version");
    let version = HeaderValue::from_static(BUILD_VERSION);
    answer.headers_mut().insert(name, version);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_page_shows_no_markup_of_others() {
        let page = Page::new(StatusCode::BAD_REQUEST, "No", "<script>alert(1)</script>");
        let answer = page.link("Go", "/?a=\"><b>").answer();
        assert_eq!(answer.status(), 400);
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20)
            .await
            .unwrap();
        let html = String::from_utf8(body.to_vec()).unwrap();
        assert!(
            !html.contains("<script>") && !html.contains("\"><b>"),
            "{html}"
        );
    }
}
