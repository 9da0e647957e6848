//! The dashboard's pages, as a browser without JavaScript gets them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use relay_server::{Dial, DialError};
use relay_tunnel::path::PathState;
use relay_wire::proto::agent::{self, Stats, UpdateStatsRequest, UpdateStatsResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::rest::{exchange, get};
use crate::support::Plane;

/// A value between two texts.
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let found = text.split_once(before).map(|(_, rest)| rest);
    let found = found.and_then(|rest| rest.split_once(after));
    found
        .map(|(found, _)| found)
        .unwrap_or_else(|| panic!("no {before:?} in {text}"))
}

async fn post(plane: &Plane, path: &str, headers: &str, form: &str) -> String {
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n{headers}\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    );
    exchange(plane, &request).await
}

/// The session's cookie header, and the token of its forms.
async fn session(plane: &Plane) -> (String, String) {
    let cookie = format!("Cookie: coder_session_token={}\r\n", plane.session);
    let page = get(plane, "/workspaces", &cookie).await;
    let token = between(&page, "name=\"token\" value=\"", "\"").to_owned();
    (cookie, token)
}

#[tokio::test]
async fn signing_in_leads_to_where_one_wanted_and_out_again() {
    let plane = Plane::start().await;
    let asked = get(&plane, "/@alice/dev", "").await;
    assert!(
        asked.contains("Location: /login?redirect=%2F%40alice%2Fdev"),
        "{asked}"
    );
    let page = get(&plane, "/login?redirect=%2F%40alice%2Fdev", "").await;
    let secret = between(&page, "relay_login=", ";");
    let token = between(&page, "name=\"token\" value=\"", "\"");
    let cookie = format!("Cookie: relay_login={secret}\r\n");
    let form = |password: &str, token: &str| {
        format!(
            "email=alice%40example.com&password={password}&redirect=%2F%40alice%2Fdev&token={token}"
        )
    };
    let wrong = post(&plane, "/login", &cookie, &form("wrong", token)).await;
    assert!(wrong.starts_with("HTTP/1.1 401 "), "{wrong}");
    assert!(wrong.contains("password is wrong") && !wrong.contains("coder_session_token="));
    let good = form("correct-horse-7", token);
    for (headers, form) in [
        (String::new(), good.clone()),
        (cookie.clone(), form("correct-horse-7", "")),
        (
            format!("{cookie}Origin: https://evil.test\r\n"),
            good.clone(),
        ),
        (
            format!("{cookie}Sec-Fetch-Site: same-site\r\n"),
            good.clone(),
        ),
    ] {
        let refused = post(&plane, "/login", &headers, &form).await;
        assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
        assert!(!refused.contains("coder_session_token="), "{refused}");
    }
    let done = post(&plane, "/login", &cookie, &good).await;
    assert!(done.starts_with("HTTP/1.1 303 "), "{done}");
    assert!(done.contains("Location: /@alice/dev\r\n"), "{done}");
    let set = between(&done, "coder_session_token=", "\r\n");
    assert!(
        set.contains("HttpOnly") && set.contains("SameSite=Lax"),
        "{set}"
    );
    let session = set.split(';').next().unwrap();
    let cookie = format!("Cookie: coder_session_token={session}\r\n");
    let page = get(&plane, "/@alice/dev", &cookie).await;
    assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
    let token = between(&page, "name=\"token\" value=\"", "\"");
    let refused = post(&plane, "/logout", &cookie, "token=").await;
    assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    let left = post(&plane, "/logout", &cookie, &format!("token={token}")).await;
    assert!(
        left.contains("coder_session_token=; Path=/; Max-Age=0"),
        "{left}"
    );
    let after = get(&plane, "/@alice/dev", &cookie).await;
    assert!(after.starts_with("HTTP/1.1 303 "), "{after}");
}

#[tokio::test]
async fn a_session_that_was_put_there_before_ends_with_the_login() {
    let plane = Plane::start().await;
    let page = get(&plane, "/login", "").await;
    let secret = between(&page, "relay_login=", ";");
    let token = between(&page, "name=\"token\" value=\"", "\"");
    let fixed = &plane.session;
    let cookie = format!("Cookie: relay_login={secret}; coder_session_token={fixed}\r\n");
    let form = format!("email=alice%40example.com&password=correct-horse-7&token={token}");
    let done = post(&plane, "/login", &cookie, &form).await;
    let new = between(&done, "coder_session_token=", ";");
    assert_ne!(new, fixed);
    assert!(plane.client(fixed).me().await.is_err());
    assert!(plane.client(new).me().await.is_ok());
}

#[tokio::test]
async fn pages_are_not_framed_stored_or_fed_with_scripts() {
    let plane = Plane::start().await;
    let (cookie, _) = session(&plane).await;
    for (path, headers) in [
        ("/login", ""),
        ("/workspaces", cookie.as_str()),
        ("/@alice/dev", &cookie),
    ] {
        let page = get(&plane, path, headers).await;
        for wanted in [
            "X-Frame-Options: DENY",
            "X-Content-Type-Options: nosniff",
            "Referrer-Policy: same-origin",
            "Cache-Control: no-store",
            "frame-ancestors 'none'",
            "script-src 'self';",
            "form-action 'self' *.localhost:",
        ] {
            assert!(page.contains(wanted), "{path} {wanted}: {page}");
        }
        assert!(
            !page.contains("<script>") && !page.contains(" style="),
            "{page}"
        );
    }
}

#[tokio::test]
async fn a_port_is_shared_and_taken_back_by_forms_of_the_page_only() {
    let plane = Plane::start().await;
    let (cookie, token) = session(&plane).await;
    let path = format!("/workspaces/{}/ports", plane.workspace.id);
    let form = |token: &str, action: &str, port: &str| {
        format!("token={token}&agent=main&port={port}&protocol=https&action={action}")
    };
    let store = plane.server.store();
    let shares = async || store.shares(plane.workspace.id).await.unwrap();
    for (headers, token) in [
        (cookie.clone(), ""),
        (
            format!("{cookie}Origin: http://x--dev--eve.relay\r\n"),
            token.as_str(),
        ),
    ] {
        let refused = post(&plane, &path, &headers, &form(token, "public", "8080")).await;
        assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    }
    assert!(shares().await.is_empty());
    let done = post(&plane, &path, &cookie, &form(&token, "public", "8080")).await;
    assert!(done.contains("Location: /@alice/dev"), "{done}");
    assert_eq!(shares().await.len(), 1);
    let page = get(&plane, "/@alice/dev", &cookie).await;
    assert!(page.contains("Anybody with the link"), "{page}");
    assert!(page.contains("8080s--main--dev--alice.localhost"), "{page}");
    let live = format!("{cookie}HX-Request: true\r\n");
    let part = post(&plane, &path, &live, &form(&token, "owner", "8080")).await;
    assert!(
        part.contains("Port 8080 is private now.") && !part.contains("<html"),
        "{part}"
    );
    assert!(shares().await.is_empty());
    for port in ["8", "65536", "x", ""] {
        let bad = post(&plane, &path, &cookie, &form(&token, "public", port)).await;
        assert!(
            bad.starts_with("HTTP/1.1 400 ") && bad.contains("65535"),
            "{port}: {bad}"
        );
    }
    let opened = post(&plane, &path, &cookie, &form(&token, "open", "65535")).await;
    assert!(
        opened.contains("Location: http://65535s--main--dev--alice.localhost:"),
        "{opened}"
    );
}

#[tokio::test]
async fn other_users_pages_are_not_found() {
    let plane = Plane::start().await;
    let store = plane.server.store();
    let bob = store
        .create_user("bob", "bob@example.com", "bob-horse-7", false)
        .await
        .unwrap();
    let bobs = store.create_token(bob.id).await.unwrap();
    let cookie = format!("Cookie: coder_session_token={bobs}\r\n");
    let id = plane.workspace.id;
    for path in [
        "/@alice/dev".to_owned(),
        format!("/workspaces/{id}/live"),
        "/@nobody/x".into(),
    ] {
        let page = get(&plane, &path, &cookie).await;
        assert!(page.starts_with("HTTP/1.1 404 "), "{page}");
    }
    let list = get(&plane, "/workspaces", &cookie).await;
    assert!(
        list.contains("No workspace yet") && !list.contains("@alice"),
        "{list}"
    );
}

#[tokio::test]
async fn another_sites_page_cannot_use_the_session_on_the_api() {
    let plane = Plane::start().await;
    let (cookie, _) = session(&plane).await;
    let path = format!("/api/v2/workspaces/{}/builds", plane.workspace.id);
    let body = r#"{"transition":"stop"}"#;
    let send = async |headers: String| post(&plane, &path, &headers, body).await;
    let foreign = send(format!("{cookie}Origin: http://x--dev--eve.relay\r\n")).await;
    assert!(foreign.starts_with("HTTP/1.1 403 "), "{foreign}");
    let foreign = send(format!("{cookie}Sec-Fetch-Site: same-site\r\n")).await;
    assert!(foreign.starts_with("HTTP/1.1 403 "), "{foreign}");
    let own = send(format!("{cookie}Origin: http://relay\r\n")).await;
    assert!(own.starts_with("HTTP/1.1 201 "), "{own}");
    let header = format!(
        "Coder-Session-Token: {}\r\nOrigin: http://x\r\n",
        plane.session
    );
    assert!(send(header).await.starts_with("HTTP/1.1 201 "));
}

#[tokio::test]
async fn assets_are_kept_for_good_under_their_hash() {
    let plane = Plane::start().await;
    let page = get(&plane, "/login", "").await;
    let path = between(&page, "stylesheet\" href=\"", "\"");
    let file = get(&plane, path, "").await;
    assert!(
        file.contains("Cache-Control: public, max-age=31536000, immutable"),
        "{file}"
    );
    let old = get(&plane, "/assets/0000000000000000/relay.css", "").await;
    assert!(old.contains("Cache-Control: no-cache"), "{old}");
    for path in ["/assets/x/none.css", "/assets/x/..%2f..%2fCargo.toml"] {
        let none = get(&plane, path, "").await;
        assert!(none.starts_with("HTTP/1.1 404 "), "{none}");
    }
}

#[tokio::test]
async fn scripts_begin_with_the_document_when_all_of_them_are_there() {
    let plane = Plane::start().await;
    let (cookie, _) = session(&plane).await;
    let page = get(&plane, "/workspaces", &cookie).await;
    // A script that begins when it has come could begin before its extension has.
    let begins = between(&page, "/htmx.min.js\"", "</script>");
    assert_eq!(begins, ">", "{page}");
    assert_eq!(between(&page, "/hx-sse.min.js\"", "</script>"), " defer>");
    assert!(!page.contains("async"), "{page}");
}

/// The events of a live page.
struct Events {
    stream: TcpStream,
    seen: String,
}

impl Events {
    async fn open(plane: &Plane, cookie: &str) -> Self {
        let mut stream = TcpStream::connect(plane.address()).await.unwrap();
        let id = plane.workspace.id;
        let request = format!("GET /workspaces/{id}/live HTTP/1.1\r\nHost: relay\r\n{cookie}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let seen = String::new();
        Self { stream, seen }
    }

    async fn until(&mut self, wanted: &str) {
        let mut buffer = [0; 65_536];
        while !self.seen.contains(wanted) {
            let read = crate::support::soon(self.stream.read(&mut buffer));
            let length = read.await.unwrap();
            assert!(length > 0, "{}", self.seen);
            let text = String::from_utf8_lossy(&buffer[..length]);
            self.seen.push_str(&text);
        }
    }
}

#[tokio::test]
async fn a_page_is_live_and_ends_with_its_session() {
    let plane = Plane::start().await;
    let (cookie, token) = session(&plane).await;
    let id = plane.workspace.id;
    let mut page = Events::open(&plane, &cookie).await;
    page.until("data: ").await;
    let form = format!("token={token}&agent=main&port=8080&protocol=http&action=authenticated");
    post(&plane, &format!("/workspaces/{id}/ports"), &cookie, &form).await;
    page.until("Everybody who signs in").await;
    post(&plane, "/logout", &cookie, &format!("token={token}")).await;
    // The chunk that ends the body.
    page.until("\r\n0\r\n\r\n").await;
}

/// A way to agents that never says anything.
struct Silent;

impl Dial for Silent {
    fn dial(&self, _: Uuid, _: u16) -> BoxFuture<'_, Result<TcpStream, DialError>> {
        Box::pin(std::future::pending())
    }

    fn path(&self, _: Uuid) -> Option<PathState> {
        None
    }
}

#[tokio::test]
async fn a_page_tells_news_while_an_agent_does_not_answer() {
    let plane = Plane::start_with(|config| config.dialer = Some(Arc::new(Silent))).await;
    let (cookie, _) = session(&plane).await;
    let token = format!("coder_session_token={}", plane.workspace.agents[0].token);
    let path = "workspaceagents/me/rpc?version=2.0&role=agent";
    let agent = plane.control(path, &[("Cookie", &token)]).await.unwrap();
    let mut page = Events::open(&plane, &cookie).await;
    let opened = Instant::now();
    page.until("Asking the workspace").await;
    assert!(page.seen.contains("\">Connected<"), "{}", page.seen);
    drop(agent);
    page.until("\">Disconnected<").await;
    let took = opened.elapsed();
    assert!(took < Duration::from_secs(5), "told after {took:?}");
}

#[tokio::test]
async fn a_part_of_a_page_is_never_replaced_by_the_login_page() {
    let plane = Plane::start().await;
    let (cookie, _) = session(&plane).await;
    let id = plane.workspace.id;
    let live = get(&plane, &format!("/workspaces/{id}/live"), "").await;
    assert!(live.starts_with("HTTP/1.1 401 "), "{live}");
    let path = format!("/workspaces/{id}/ports");
    let stranger = post(&plane, &path, "HX-Request: true\r\n", "action=public").await;
    assert!(stranger.starts_with("HTTP/1.1 401 "), "{stranger}");
    assert!(
        stranger.contains("Hx-Redirect: /login?redirect="),
        "{stranger}"
    );
    let headers = format!("{cookie}HX-Request: true\r\n");
    let refused = post(&plane, &path, &headers, "token=x&action=public").await;
    assert!(
        refused.contains("Hx-Retarget: body") && refused.contains("Form refused"),
        "{refused}"
    );
}

#[tokio::test]
async fn the_page_shows_what_an_agents_tunnels_carry() {
    let plane = Plane::start().await;
    let (cookie, _) = session(&plane).await;
    let token = format!("coder_session_token={}", plane.workspace.agents[0].token);
    let path = "workspaceagents/me/rpc?version=2.0&role=agent";
    let agent = plane.control(path, &[("Cookie", &token)]).await.unwrap();
    let tell = async |stats: Option<Stats>| {
        let request = UpdateStatsRequest { stats };
        let answer = agent.unary(agent::UPDATE_STATS, &request);
        let answer: UpdateStatsResponse = crate::support::soon(answer).await.unwrap();
        answer.report_interval.unwrap().seconds
    };
    assert_eq!(tell(None).await, 30);
    let page = get(&plane, "/@alice/dev", &cookie).await;
    assert!(!page.contains("Tunnels, "), "{page}");
    let stats = Stats {
        connection_count: 3,
        rx_bytes: 600,
        tx_bytes: 900,
        ..Stats::default()
    };
    tell(Some(stats)).await;
    // Numbers that make no sense count for nothing.
    let odd = Stats {
        connection_count: 3,
        rx_bytes: -5,
        ..Stats::default()
    };
    tell(Some(odd)).await;
    let mut live = Events::open(&plane, &cookie).await;
    live.until("Tunnels, 3 connections").await;
    assert!(
        live.seen.contains("50 B/s now, 1.5 kB in 30 minutes"),
        "{}",
        live.seen
    );
}
