//! Signing in and out.

use askama::Template;
use axum::Form;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::header::{HOST, HeaderValue, RETRY_AFTER, SET_COOKIE};
use http::{HeaderMap, HeaderName, StatusCode};
use serde::Deserialize;
use url::Url;

use super::{Frame, Trouble, Visitor, guard, html, see_other, visitor};
use crate::api::client_address;
use crate::secrets;
use crate::state::{Shared, State as Server};

/// Holds what the login form's token follows from.
const FORM: &str = "relay_login";

#[derive(Template)]
#[template(path = "login.html")]
struct Login {
    frame: Frame,
    email: String,
    redirect: String,
    /// The visitor was on the way to something.
    wanted: bool,
    error: String,
    /// Nobody has an account yet.
    empty: bool,
}

/// What the login form sends.
#[derive(Deserialize)]
pub(super) struct Sent {
    #[serde(default)]
    email: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    redirect: String,
    #[serde(default)]
    token: String,
}

pub(super) async fn page(
    State(state): State<Shared>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Trouble> {
    let query = query.unwrap_or_default();
    if let Some(page) = known_as(&state.access_url, &headers, &query) {
        return Ok(see_other(&page));
    }
    let redirect = url::form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "redirect")
        .map(|(_, value)| value.into_owned());
    let redirect = local(&redirect.unwrap_or_default(), &state.access_url);
    if Visitor::find(&state, &headers).await?.is_some() {
        return Ok(see_other(&redirect));
    }
    show(&state, &headers, String::new(), redirect, "").await
}

/// This page under the name that the server goes by, for a browser that calls this machine by
/// another one: cookies belong to a name, and apps send their visitors to the server's own.
fn known_as(access_url: &Url, headers: &HeaderMap, query: &str) -> Option<String> {
    const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let browses = text(HeaderName::from_static("sec-fetch-mode")) == Some("navigate");
    let called = Url::parse(&format!("{}://{}", access_url.scheme(), text(HOST)?)).ok()?;
    let (called_name, name) = (called.host_str()?, access_url.host_str()?);
    let same_server = called.port_or_known_default() == access_url.port_or_known_default();
    let local = NAMES.contains(&called_name) && NAMES.contains(&name);
    (browses && same_server && local && called_name != name).then(|| {
        let mut page = access_url.clone();
        page.set_path("/login");
        page.set_query((!query.is_empty()).then_some(query));
        page.into()
    })
}

/// The form, with the cookie that its token follows from.
async fn show(
    state: &Server,
    headers: &HeaderMap,
    email: String,
    redirect: String,
    error: &str,
) -> Result<Response, Trouble> {
    let known = guard::session_cookie(headers, FORM).map(str::to_owned);
    let secret = known.unwrap_or_else(|| secrets::alphanumeric(22));
    let page = Login {
        frame: Frame::stranger(guard::form_token(&secret)),
        email,
        wanted: redirect != "/workspaces",
        redirect,
        error: error.to_owned(),
        empty: !state.store.has_users().await?,
    };
    let mut answer = html(&page);
    let secure = if state.apps.secure_cookie {
        "; Secure"
    } else {
        ""
    };
    let cookie = format!("{FORM}={secret}; Path=/login; HttpOnly; SameSite=Strict{secure}");
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        answer.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(answer)
}

pub(super) async fn login(
    State(state): State<Shared>,
    request: axum::extract::Request,
) -> Result<Response, Trouble> {
    let (parts, body) = request.into_parts();
    if let Err(refusal) = state.limits.login(client_address(&parts, &state)) {
        let wait = refusal.into_response().headers().get(RETRY_AFTER).cloned();
        let text = "There were too many attempts to sign in. Wait a minute, then try again.";
        let trouble = Trouble::new(StatusCode::TOO_MANY_REQUESTS, "Too many attempts", text);
        let mut answer = trouble.back("/login", "Sign in").into_response();
        if let Some(wait) = wait {
            answer.headers_mut().insert(RETRY_AFTER, wait);
        }
        return Ok(answer);
    }
    let headers = parts.headers.clone();
    let request = axum::extract::Request::from_parts(parts, body);
    let form = <Form<Sent> as axum::extract::FromRequest<()>>::from_request(request, &()).await;
    let Ok(Form(sent)) = form else {
        let text = "The form could not be read. Open the page again.";
        return Err(
            Trouble::new(StatusCode::BAD_REQUEST, "Bad form", text).back("/login", "Sign in")
        );
    };
    let redirect = local(&sent.redirect, &state.access_url);
    let secret = guard::session_cookie(&headers, FORM);
    let own = guard::is_own(&headers, &state.access_url)
        && secret.is_some_and(|secret| guard::is_form_token(&sent.token, secret));
    if !own {
        let error = "The form was open for too long, or your browser keeps no cookies. Try again.";
        let mut answer = show(&state, &headers, sent.email, redirect, error).await?;
        *answer.status_mut() = StatusCode::FORBIDDEN;
        return Ok(answer);
    }
    let email = sent.email.trim();
    let Some(user) = state.store.check_password(email, sent.password).await? else {
        let error = "E-mail address or password is wrong. Check both and try again.";
        let mut answer = show(&state, &headers, sent.email, redirect, error).await?;
        *answer.status_mut() = StatusCode::UNAUTHORIZED;
        return Ok(answer);
    };
    // A session that was there before, perhaps put there by somebody else, is not taken over.
    if let Some(before) = Visitor::find(&state, &headers).await? {
        state.store.delete_token(&before.token).await?;
    }
    let life = chrono::TimeDelta::seconds(visitor::KEEP);
    let token = state.store.create_session(user.id, life).await?;
    let mut answer = see_other(&redirect);
    if let Some(cookie) = visitor::begin(&token, &state.apps) {
        answer.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(answer)
}

/// What the sign-out form sends.
#[derive(Deserialize)]
pub(super) struct Leave {
    #[serde(default)]
    token: String,
}

pub(super) async fn logout(
    State(state): State<Shared>,
    visitor: Visitor,
    headers: HeaderMap,
    Form(sent): Form<Leave>,
) -> Result<Response, Trouble> {
    visitor.check(&state, &headers, &sent.token)?;
    state.store.delete_token(&visitor.token).await?;
    state.changed();
    let mut answer = see_other("/login");
    if let Some(cookie) = visitor::end(&state.apps) {
        answer.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(answer)
}

/// A target on this server, whatever was asked for: a path as the browser will read it.
fn local(target: &str, access_url: &Url) -> String {
    let fallback = "/workspaces".to_owned();
    let starts = target.starts_with('/') && !target.starts_with("//");
    if !starts || target.contains(['\\', '\t', '\r', '\n']) {
        return fallback;
    }
    match access_url.join(target) {
        Ok(url) if url.origin() == access_url.origin() && !url.path().starts_with("//") => {
            let path = url.path();
            let query = url.query().map(|query| format!("?{query}"));
            if path == "/login" || path == "/" {
                return fallback;
            }
            format!("{path}{}", query.unwrap_or_default())
        }
        _ => fallback,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_signs_in_under_the_name_that_the_server_goes_by() {
        let access = Url::parse("http://127.0.0.1:3000/").unwrap();
        let led = |host: &'static str, mode: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static(host));
            headers.insert("sec-fetch-mode", HeaderValue::from_static(mode));
            known_as(&access, &headers, "redirect=%2Fx")
        };
        let own = "http://127.0.0.1:3000/login?redirect=%2Fx";
        assert_eq!(led("localhost:3000", "navigate").as_deref(), Some(own));
        for host in [
            "127.0.0.1:3000",
            // Through a tunnel of its own, or another machine.
            "localhost:8080",
            "relay.example.com:3000",
            "evil.localhost:3000",
            "",
        ] {
            assert_eq!(led(host, "navigate"), None, "{host}");
        }
        assert_eq!(led("localhost:3000", "cors"), None);
    }

    #[test]
    fn after_signing_in_nobody_is_led_off_this_server() {
        let access = Url::parse("https://relay.example.com/").unwrap();
        for (wanted, led) in [
            ("/@alice/dev", "/@alice/dev"),
            ("/@alice/dev?x=1&y=/", "/@alice/dev?x=1&y=/"),
            (
                "/api/v2/applications/auth-redirect?redirect_uri=https%3A%2F%2Fa.example.com",
                "/api/v2/applications/auth-redirect?redirect_uri=https%3A%2F%2Fa.example.com",
            ),
            ("", "/workspaces"),
            ("/", "/workspaces"),
            ("/login?redirect=/login", "/workspaces"),
            ("https://evil.test/", "/workspaces"),
            ("//evil.test/", "/workspaces"),
            ("/\\evil.test/", "/workspaces"),
            ("\\/evil.test/", "/workspaces"),
            ("/\t/evil.test/", "/workspaces"),
            ("/.//evil.test/", "/workspaces"),
            ("/x/..//evil.test/", "/workspaces"),
            ("javascript:alert(1)", "/workspaces"),
        ] {
            assert_eq!(local(wanted, &access), led, "{wanted:?}");
        }
    }
}
