//! The proxy: apps and ports of workspaces, in a browser, through the server's own tunnels.
//!
//! A request is found to mean an app ([`asked`]), to have a right to it ([`right`]), and is sent on
//! ([`forward`]) over a pooled connection ([`pool`]). With a signed token none of this asks the
//! database.

mod asked;
mod forward;
mod limit;
mod login;
mod memory;
mod own;
mod page;
mod pool;
mod right;
mod target;
mod tls;
mod upgrade;

use std::time::Duration;

use axum::body::Body;
use http::header::SET_COOKIE;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

pub(crate) use login::routes;
pub(crate) use memory::{Memory, Proxy};

use crate::apps::access::Method;
use crate::apps::cors::{self, Behavior};
use crate::connection::Peer;
use crate::state::{Shared, State};
use asked::{Asked, Meaning};
use forward::Visit;
use page::Page;

/// How often what nobody uses any more is let go.
const TIDY: Duration = Duration::from_secs(10);

/// What became of a request.
pub(crate) enum Answer {
    /// It was answered.
    Given(Response<Body>),
    /// It is for the API or the dashboard.
    NotAnApp(Request<Incoming>),
}

/// Answers a request if it is for an app.
pub(crate) async fn answer(
    state: &Shared,
    peer: Peer,
    memory: &Memory,
    mut request: Request<Incoming>,
) -> Answer {
    let mut answer = match asked::meaning(&state.apps, &state.access_url, peer, &mut request) {
        Meaning::Dashboard => return Answer::NotAnApp(request),
        Meaning::App(asked) => app(state, peer, memory, asked, request).await,
        Meaning::NoApp(error) => {
            let title = "Invalid application URL";
            Page::new(StatusCode::BAD_REQUEST, title, error.to_string())
                .link("Your workspaces", state.access_url.as_str())
                .answer()
        }
        Meaning::Logout => page::redirect(StatusCode::SEE_OTHER, state.access_url.as_str()),
        Meaning::Slash(location) => page::redirect(StatusCode::TEMPORARY_REDIRECT, &location),
        Meaning::PathsOff => {
            let text = "This server opens no applications below its own address. Ask its \
                 administrator for an application with a host name of its own.";
            Page::new(StatusCode::FORBIDDEN, "Path applications are off", text).answer()
        }
        Meaning::NoHost(why) => page::json(StatusCode::BAD_REQUEST, why),
    };
    page::add_version(&mut answer);
    Answer::Given(answer)
}

/// Whether a request is for an app, by what is known before it is read.
pub(crate) fn is_for_app(state: &State, peer: Peer, request: &mut Request<()>) -> bool {
    let meaning = asked::meaning(&state.apps, &state.access_url, peer, request);
    matches!(meaning, Meaning::App(_))
}

/// Lets go of idle connections, until the server stops.
pub(crate) async fn tidy(state: Shared) {
    loop {
        tokio::time::sleep(TIDY).await;
        state.proxy.pool.tidy();
        state.proxy.limit.tidy();
    }
}

async fn app(
    state: &Shared,
    peer: Peer,
    memory: &Memory,
    asked: Asked,
    request: Request<Incoming>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let preflight =
        asked.method == Method::Subdomain && cors::is_preflight(&parts.method, &parts.headers);
    if preflight && let Some(answer) = Box::pin(preflight_answer(state, &asked, &parts)).await {
        return answer;
    }
    if let Some(answer) = login::key_brought(state, &asked, &parts) {
        return answer;
    }
    let (right, cookie) = match memory.recall(&asked, &parts.headers, state.proxy.epoch()) {
        Some(right) => (right, None),
        None => match right::authorize(state, peer, &asked, &parts).await {
            Ok(granted) => {
                memory.note(&asked, granted.token, &granted.right);
                (granted.right, granted.cookie)
            }
            Err(answer) => return answer,
        },
    };
    let visit = Visit {
        state,
        peer,
        asked: &asked,
        right: &right,
    };
    let mut answer = visit.answer(Request::from_parts(parts, body)).await;
    if let Some(cookie) = cookie {
        answer.headers_mut().append(SET_COOKIE, cookie);
    }
    answer
}

/// The answer to a preflight where the proxy decides: the same whether the app exists or not.
async fn preflight_answer(
    state: &Shared,
    asked: &Asked,
    parts: &http::request::Parts,
) -> Option<Response<Body>> {
    let pattern = state.apps.pattern.as_ref()?;
    let epoch = state.proxy.epoch();
    let target = state.proxy.target(&state.store, asked, epoch).await;
    let behavior = target.ok().flatten().map(|target| target.cors);
    if behavior.unwrap_or_default() == Behavior::Passthru {
        return None;
    }
    let mut answer = Response::new(Body::empty());
    let user = &asked.identity.username_or_id;
    *answer.headers_mut() = cors::preflight(&parts.headers, pattern, user);
    Some(answer)
}
