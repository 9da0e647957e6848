//! The dashboard: pages for people. They work without JavaScript; with it they are live.

mod assets;
mod guard;
mod list;
mod live;
mod login;
mod markdown;
mod ports;
mod spark;
mod view;
mod visitor;
mod visits;
mod workspace;

use askama::Template;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, LOCATION, REFERRER_POLICY};
use http::header::{
    CONTENT_SECURITY_POLICY, CONTENT_TYPE as KIND, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderName, StatusCode};

pub(crate) use guard::protect;

use crate::apps::pattern::policy_host;
use crate::error::Error;
use crate::state::{Shared, State};
use visitor::Visitor;

/// The pages' routes.
pub(crate) fn routes(state: &Shared) -> Router<Shared> {
    let pages = Router::new()
        .route("/", get(async || see_other("/workspaces")))
        .route("/login", get(login::page).post(login::login))
        .route("/logout", post(login::logout))
        .route("/workspaces", get(list::page))
        .route("/workspaces/live", get(live::list))
        .route("/workspaces/{id}/live", get(live::workspace))
        .route("/workspaces/{id}/ports", post(ports::act))
        .route("/workspaces/{id}/state", post(workspace::set_state))
        .route("/{owner}/{workspace}", get(workspace::page))
        .layer(middleware::from_fn_with_state(state.clone(), secure));
    Router::new()
        .route("/assets/{hash}/{name}", get(assets::serve))
        .merge(pages)
}

/// What a page's frame shows.
struct Frame {
    /// Where the style sheets and scripts are.
    assets: &'static str,
    /// Who is signed in; empty for nobody.
    user: String,
    /// What its forms send back.
    token: String,
}

impl Frame {
    fn of(visitor: &Visitor) -> Self {
        Self {
            assets: &assets::BASE,
            user: visitor.user.username.clone(),
            token: visitor.form_token(),
        }
    }

    fn stranger(token: String) -> Self {
        Self {
            assets: &assets::BASE,
            user: String::new(),
            token,
        }
    }
}

/// A page that says what went wrong and what to do.
#[derive(Template)]
#[template(path = "message.html")]
struct Message {
    frame: Frame,
    title: String,
    text: String,
    back: String,
    label: &'static str,
}

/// A request that gets a message instead of its page.
#[derive(Debug)]
struct Trouble {
    status: StatusCode,
    title: &'static str,
    text: String,
    back: String,
    label: &'static str,
}

impl Trouble {
    fn new(status: StatusCode, title: &'static str, text: impl Into<String>) -> Self {
        Self {
            status,
            title,
            text: text.into(),
            back: "/workspaces".to_owned(),
            label: "Your workspaces",
        }
    }

    fn no_workspace() -> Self {
        let text = "There is no such workspace, or it is not yours. It may have been renamed or \
                    deleted.";
        Self::new(StatusCode::NOT_FOUND, "Workspace not found", text)
    }

    /// Names another way on.
    fn back(mut self, href: impl Into<String>, label: &'static str) -> Self {
        (self.back, self.label) = (href.into(), label);
        self
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        tracing::warn!(%error, "a page failed");
        let text = "The server could not do this; its log says why. Try again in a moment.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Something failed", text)
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        let message = Message {
            frame: Frame::stranger(String::new()),
            title: self.title.to_owned(),
            text: self.text,
            back: self.back,
            label: self.label,
        };
        let mut answer = html(&message);
        *answer.status_mut() = self.status;
        answer.extensions_mut().insert(Whole);
        answer
    }
}

/// Marks an answer that is a page of its own, even where a part of one was asked for.
#[derive(Clone)]
struct Whole;

/// A page, not to be kept by anybody.
fn html(page: &impl Template) -> Response {
    match page.render() {
        Ok(text) => {
            let mut answer = Response::new(Body::from(text));
            let kind = HeaderValue::from_static("text/html; charset=utf-8");
            answer.headers_mut().insert(KIND, kind);
            answer
        }
        Err(error) => {
            tracing::warn!(%error, "a page was not written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn see_other(location: &str) -> Response {
    let mut answer = StatusCode::SEE_OTHER.into_response();
    let location = HeaderValue::from_str(location);
    let location = location.unwrap_or(HeaderValue::from_static("/"));
    answer.headers_mut().insert(LOCATION, location);
    answer
}

/// Adds to every page what [`add_guards`] adds, and puts a whole one in the place of a whole one.
async fn secure(
    axum::extract::State(state): axum::extract::State<Shared>,
    request: Request,
    next: Next,
) -> Response {
    let part = request.headers().contains_key("hx-request");
    let mut answer = next.run(request).await;
    add_guards(&state, &mut answer);
    if part && answer.extensions().get::<Whole>().is_some() {
        let name = HeaderName::from_static("hx-retarget");
        let value = HeaderValue::from_static("body");
        answer.headers_mut().insert(name, value);
    }
    answer
}

/// Adds what keeps a page from being framed, sniffed, stored or fed with scripts.
fn add_guards(state: &State, answer: &mut Response) {
    let policy = policy(state);
    let headers = answer.headers_mut();
    let mut set = |name: HeaderName, value: &'static str| {
        headers.insert(name, HeaderValue::from_static(value));
    };
    set(X_FRAME_OPTIONS, "DENY");
    set(X_CONTENT_TYPE_OPTIONS, "nosniff");
    // `no-referrer` would make the origin of our own forms unknown.
    set(REFERRER_POLICY, "same-origin");
    set(
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    );
    let stream = headers.get(CONTENT_TYPE) == Some(&HeaderValue::from_static(live::KIND));
    if !stream {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
}

/// The content security policy; after a form the browser may be sent on to an app.
fn policy(state: &State) -> String {
    let apps = state.apps.pattern.as_ref().map(|pattern| {
        let host = state.access_url.host_str().unwrap_or_default();
        policy_host(host, &pattern.advertised(&state.access_url))
    });
    let apps = apps.unwrap_or_default();
    format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' https: data:; \
         connect-src 'self' {apps}; frame-src 'self' {apps}; form-action 'self' {apps}; \
         frame-ancestors 'none'; base-uri 'none'"
    )
}

/// The page for an address that is none.
pub(crate) fn not_found(state: &State) -> Response {
    let text = "Nothing is at this address. Check it, or start from your workspaces.";
    let mut answer = Trouble::new(StatusCode::NOT_FOUND, "Page not found", text).into_response();
    add_guards(state, &mut answer);
    answer
}
