//! The login flow of apps: to the dashboard and back with a key (coder_facts §2.9).

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::IntoResponse;
use axum::routing::get;
use chrono::TimeDelta;
use http::header::{HeaderValue, SET_COOKIE};
use http::request::Parts;
use http::{Response, StatusCode};
use url::Url;
use url::form_urlencoded::{Serializer, parse};

use super::asked::Asked;
use super::page::{self, Page};
use super::right::now;
use crate::api::{Refusal, session_tokens};
use crate::apps::access::Method;
use crate::apps::cors::is_preflight;
use crate::apps::redirect::{self, Place};
use crate::state::{Shared, State as Server};
use crate::store::Scope;

/// The parameter that brings a key back.
pub(super) const KEY_PARAMETER: &str = "coder_application_connect_api_key_35e783";
/// Longest life of a key for apps.
const KEY_LIFE: TimeDelta = TimeDelta::hours(24);

/// The routes of the flow, below `/api/v2`.
pub(crate) fn routes() -> Router<Shared> {
    Router::new().route("/applications/auth-redirect", get(auth_redirect))
}

/// The answer to a request that only a session could help.
pub(super) fn needed(state: &Server, asked: &Asked, parts: &Parts) -> Response<Body> {
    if is_preflight(&parts.method, &parts.headers) {
        // A browser takes no redirect here and sends no cookie; this says what is wrong.
        let message = "This application is not public, and a preflight carries no cookies.";
        return page::json(StatusCode::UNAUTHORIZED, message);
    }
    let target = parts.uri.path_and_query();
    let target = target.map_or("/", |target| target.as_str());
    match (asked.method, &state.apps.pattern) {
        (Method::Subdomain, Some(pattern)) => {
            let app = pattern.url_of(&asked.host(), &state.access_url);
            let url = format!("{}{target}", app.trim_end_matches('/'));
            let query = Serializer::new(String::new())
                .append_pair("redirect_uri", &url)
                .finish();
            let location =
                on_dashboard(state, &format!("api/v2/applications/auth-redirect?{query}"));
            page::redirect(StatusCode::SEE_OTHER, &location)
        }
        _ => login(target),
    }
}

/// To the login page, and from there to a path of this server.
fn login(target: &str) -> Response<Body> {
    let query = Serializer::new(String::new())
        .append_pair("message", "Log in to open this application.")
        .append_pair("redirect", target)
        .finish();
    page::redirect(StatusCode::SEE_OTHER, &format!("/login?{query}"))
}

fn on_dashboard(state: &Server, path: &str) -> String {
    let base = state.access_url.as_str().trim_end_matches('/');
    format!("{base}/{path}")
}

/// Sends a visitor with a session back to the app, with a key for it.
async fn auth_redirect(
    State(state): State<Shared>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let (parts, _) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default();
    let wanted = parse(query.as_bytes()).find(|(name, _)| name == "redirect_uri");
    let places = [Place {
        url: state.access_url.clone(),
        wildcard: state.apps.pattern.clone(),
        serves_paths: false,
    }];
    let target = redirect::target(wanted.as_ref().map(|(_, url)| &**url), &places);
    let mut target = target.map_err(|error| Refusal::bad(sentence(&error.to_string())))?;
    on_our_port(&state, &mut target);
    let mut session = None;
    for token in session_tokens(&parts) {
        let found = state.store.session(&token).await?;
        session = found.filter(|session| session.scope == Scope::All);
        if session.is_some() {
            break;
        }
    }
    let Some(session) = session else {
        // The router has taken the front of the path away.
        return Ok(login(&format!(
            "/api/v2/applications/auth-redirect?{query}"
        )));
    };
    let expires = crate::store::now() + KEY_LIFE;
    let key = state.store.create_app_key(&session, expires).await?;
    let sealed = state.apps.keys.seal_key(&key, now(), rand::random());
    target.query_pairs_mut().append_pair(KEY_PARAMETER, &sealed);
    Ok(page::redirect(StatusCode::SEE_OTHER, target.as_str()))
}

/// The key must not reach another server of the same machine, so the port is that of all apps.
fn on_our_port(state: &Server, target: &mut Url) {
    let pattern = state.apps.pattern.as_ref();
    let advertised = pattern.map(|pattern| pattern.advertised(&state.access_url));
    let port = advertised
        .as_deref()
        .and_then(|host| host.rsplit_once(':'))
        .and_then(|(_, port)| port.parse().ok());
    // These fail for URLs without a host only.
    let _ = target.set_port(port);
    let _ = target.set_username("");
    let _ = target.set_password(None);
}

fn sentence(text: &str) -> String {
    format!("{text}.")
}

/// The answer to a request that brings a key back; `None` when it brings none.
pub(super) fn key_brought(state: &Server, asked: &Asked, parts: &Parts) -> Option<Response<Body>> {
    let query = parts.uri.query().filter(|query| query.contains("coder_"))?;
    let sealed = parse(query.as_bytes()).find(|(name, _)| name == KEY_PARAMETER)?;
    let key = match asked.method {
        Method::Subdomain => state.apps.keys.open_key(&sealed.1, now()).ok(),
        // Apps below the dashboard's own host use its session.
        Method::Path => None,
    };
    let Some(key) = key else {
        let text = "The login key in this address is broken or too old. Remove it from the address \
             and open the page again.";
        let page = Page::new(StatusCode::BAD_REQUEST, "Bad login key", text);
        return Some(page.link("Open again", without_key(parts)).answer());
    };
    let domain = state.apps.session_domain();
    let domain = domain.map_or(String::new(), |domain| format!("; Domain={domain}"));
    let cookie = format!(
        "{}={key}{domain}; Path=/; {}",
        state.apps.session_cookie,
        state.apps.cookie_attributes()
    );
    let mut answer = page::redirect(StatusCode::SEE_OTHER, &without_key(parts));
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        answer.headers_mut().append(SET_COOKIE, cookie);
    }
    Some(answer)
}

/// The same address without the key, as a path that cannot lead to another host.
fn without_key(parts: &Parts) -> String {
    let decoded = percent_decoded(parts.uri.path());
    let mut path = redirect::safe_path(&decoded);
    let query = parts.uri.query().unwrap_or_default();
    let mut others: Vec<_> = parse(query.as_bytes())
        .filter(|(name, _)| name != KEY_PARAMETER)
        .collect();
    if !others.is_empty() {
        others.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut query = Serializer::new(String::new());
        for (name, value) in &others {
            query.append_pair(name, value);
        }
        path.push('?');
        path.push_str(&query.finish());
    }
    path
}

/// Decodes `%41`; what is no UTF-8 then keeps a replacement character, which is encoded again.
fn percent_decoded(path: &str) -> String {
    // A plus sign stands for itself in a path.
    let query = format!("p={}", path.replace('+', "%2B").replace('&', "%26"));
    let mut pairs = parse(query.as_bytes());
    pairs
        .next()
        .map_or_else(String::new, |(_, path)| path.into_owned())
}

impl From<Refusal> for Response<Body> {
    fn from(refusal: Refusal) -> Self {
        refusal.into_response()
    }
}

/// An origin of this deployment: the dashboard's own, for the path of a URL.
pub(super) fn same_host(url: &Url, host: &str) -> bool {
    let bare = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) {
            name
        } else {
            host
        }
    });
    url.host_str()
        .is_some_and(|own| own.eq_ignore_ascii_case(bare.trim_end_matches('.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(uri: &str) -> Parts {
        http::Request::builder()
            .uri(uri)
            .body(())
            .unwrap()
            .into_parts()
            .0
    }

    #[test]
    fn the_way_back_loses_the_key_and_stays_on_this_host() {
        for (uri, location) in [
            (
                format!("/some/path?x=1&{KEY_PARAMETER}=k"),
                "/some/path?x=1",
            ),
            (format!("/?b=2&{KEY_PARAMETER}=k&a=1"), "/?a=1&b=2"),
            (
                format!("/%2F%5Cevil.example/?{KEY_PARAMETER}=k"),
                "/evil.example/",
            ),
            (format!("/a+b%26c?{KEY_PARAMETER}=k"), "/a+b&c"),
        ] {
            assert_eq!(without_key(&parts(&uri)), location);
        }
    }
}
