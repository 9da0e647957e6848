//! Requests and connections are counted, and who opened what is written down.

use std::time::Duration;

use chrono::DateTime;
use hyper_util::rt::TokioIo;
use relay_server::apps::access::ShareLevel;
use relay_server::{App, Store};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{APPS, DASHBOARD, PATIENCE, Site, echo, port_host, request, serve, soon};

impl Site {
    async fn api(&self, path: &str, session: &str) -> (u16, Value) {
        let header = [("coder-session-token", session)];
        let seen = self
            .get(DASHBOARD, &format!("/api/v2/{path}"), &header)
            .await;
        let body = serde_json::from_slice(&seen.body).unwrap_or_default();
        (seen.status.as_u16(), body)
    }

    /// The log, once it has so many entries.
    async fn log(&self, count: i64, session: &str) -> Vec<Value> {
        let full = async {
            loop {
                let (status, body) = self.api("connectionlog?limit=100", session).await;
                assert_eq!(status, 200, "{body}");
                if body["count"] == count {
                    return body["connection_logs"].as_array().unwrap().clone();
                }
                assert!(body["count"].as_i64() < Some(count), "{body}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        soon(full).await
    }
}

#[tokio::test]
async fn requests_and_connections_are_stored_when_the_server_stops() {
    let app = App {
        agent: "main".into(),
        slug: "notes".into(),
        url: "http://localhost:1/".into(),
        share: ShareLevel::Public,
        subdomain: true,
        ..App::default()
    };
    let site = Site::with(Default::default(), vec![app]).await;
    let port = echo().await;
    site.share(port, ShareLevel::Public).await;
    for session in [&site.alice, &site.alice, &site.bob, ""] {
        assert_eq!(site.open(port, "/", session).await.status, 200);
    }
    // What does not answer was used, too.
    let notes = format!("notes--dev--alice.{APPS}");
    assert_eq!(site.get(&notes, "/", &[]).await.status, 502);
    let socket = serve(async |mut stream| {
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n";
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.read(&mut [0; 4096]).await;
    });
    let socket = socket.await;
    let mut open = site.connect().await;
    let head = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: x\r\n\
         Coder-Session-Token: {}\r\n\r\n",
        port_host(socket),
        site.alice
    );
    open.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    soon(open.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");

    let (workspace, data) = (site.workspace.id, site.data.path().join("data"));
    let Site {
        server, data: held, ..
    } = site;
    soon(server.shutdown()).await;
    let store = Store::open(&data).await.unwrap();
    let mut found = store
        .app_use(workspace, DateTime::UNIX_EPOCH)
        .await
        .unwrap();
    found.sort_by_key(|used| used.slug_or_port.clone());
    let mut told: Vec<_> = found
        .iter()
        .map(|used| (used.slug_or_port.clone(), used.requests, used.users))
        .collect();
    let mut expected = vec![
        (port.to_string(), 4, 2),
        (socket.to_string(), 1, 1),
        ("notes".to_owned(), 1, 0),
    ];
    told.sort();
    expected.sort();
    assert_eq!(told, expected);
    assert!(found.iter().all(|used| used.access_method == "subdomain"));
    store.close().await;
    drop(held);
}

#[tokio::test]
async fn who_opened_what_is_told_to_the_owner_once_an_hour() {
    let site = Site::start().await;
    let port = echo().await;
    let host = port_host(port);
    let get = async |session: &str, agent: &str| {
        let headers = [("coder-session-token", session), ("user-agent", agent)];
        let headers = &headers[usize::from(session.is_empty())..];
        site.send(request("GET", &host, "/", headers)).await.status
    };
    for _ in 0..3 {
        assert_eq!(get(&site.alice, "curl/8").await, 200);
        assert_eq!(get(&site.bob, "curl/8").await, 404);
        assert_eq!(get("", "curl/8").await, 303);
    }
    assert_eq!(get(&site.alice, "Firefox/1").await, 200);
    // Nothing that there is: neither the app nor the workspace.
    let unknown = format!("none--dev--alice.{APPS}");
    let nowhere = format!("8080--main--none--alice.{APPS}");
    for host in [unknown, nowhere] {
        let header = [("coder-session-token", site.alice.as_str())];
        assert_eq!(site.get(&host, "/", &header).await.status, 404);
    }
    let log = site.log(4, &site.alice).await;
    let newest = &log[0];
    assert_eq!(newest["workspace_name"], "dev");
    assert_eq!(newest["workspace_owner_username"], "alice");
    assert_eq!(newest["agent_name"], "main");
    assert_eq!(newest["type"], "port_forwarding");
    assert_eq!(newest["ip"], "127.0.0.1");
    assert!(newest["connect_time"].as_str().unwrap().ends_with('Z'));
    assert_eq!(newest["web_info"]["user_agent"], "Firefox/1");
    assert_eq!(newest["web_info"]["user"]["username"], "alice");
    assert_eq!(newest["web_info"]["slug_or_port"], port.to_string());
    let mut told: Vec<_> = log
        .iter()
        .map(|entry| {
            let info = &entry["web_info"];
            (
                info["status_code"].as_i64().unwrap(),
                info["user"]["username"].clone(),
            )
        })
        .collect();
    told.sort_by_key(|(status, _)| *status);
    let expected = [
        (200, json!("alice")),
        (200, json!("alice")),
        (303, Value::Null),
        (404, json!("bob")),
    ];
    assert_eq!(told, expected);

    // Of others one sees nothing, an administrator everything.
    assert_eq!(site.api("connectionlog", &site.bob).await.1["count"], 0);
    let other = site
        .api("connectionlog?q=workspace_owner:alice", &site.bob)
        .await;
    assert_eq!((other.0, &other.1["count"]), (200, &json!(0)));
    assert_eq!(site.api("connectionlog", "").await.0, 401);
    let count = async |search: &str| {
        let path = format!("connectionlog?limit=1&q={search}");
        let (status, body) = site.api(&path, &site.admin).await;
        assert_eq!(status, 200, "{search}: {body}");
        body["count"].as_i64().unwrap()
    };
    let id = site.workspace.id;
    for (search, expected) in [
        ("", 4),
        ("username:bob", 1),
        ("type:port_forwarding+username:alice", 2),
        ("type:tunnel", 0),
        ("workspace_owner:bob", 0),
        (&format!("workspace_id:{id}"), 4),
    ] {
        assert_eq!(count(search).await, expected, "{search}");
    }
    for wrong in ["type:none", "x:y", "workspace_id:7"] {
        let path = format!("connectionlog?q={wrong}");
        assert_eq!(site.api(&path, &site.admin).await.0, 400, "{wrong}");
    }

    // The page says the same in words, and leaves out who was sent to sign in.
    let cookie = format!("coder_session_token={}", site.alice);
    let page = site
        .get(DASHBOARD, "/@alice/dev", &[("cookie", &cookie)])
        .await;
    let text = page.text();
    assert!(
        text.contains(&format!("opened port {port} of main")),
        "{text}"
    );
    assert!(
        text.contains(&format!("tried port {port} of main")),
        "{text}"
    );
    assert!(text.contains("Firefox, 127.0.0.1"), "{text}");
    assert!(!text.contains("Somebody not signed in"), "{text}");
    let (status, stats) = site
        .api(&format!("workspaces/{id}/app-stats"), &site.alice)
        .await;
    assert_eq!(
        (status, &stats["apps"]),
        (200, &json!([])),
        "not a minute has passed"
    );
    let (status, _) = site
        .api(&format!("workspaces/{id}/app-stats"), &site.bob)
        .await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn the_page_tells_open_connections_and_what_they_carry_while_they_do() {
    let site = Site::start().await;
    let port = serve(async |mut stream| {
        let answer =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n";
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(answer.as_bytes()).await;
        while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {}
    })
    .await;
    site.share(port, ShareLevel::Public).await;
    let cookie = format!("coder_session_token={}", site.alice);
    let page = async |text: &str, wanted: bool| {
        let start = std::time::Instant::now();
        loop {
            let page = site
                .get(DASHBOARD, "/@alice/dev", &[("cookie", &cookie)])
                .await;
            if page.text().contains(text) == wanted {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{}", page.text());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    page("1 connection open", false).await;
    let headers = [("connection", "upgrade"), ("upgrade", "x")];
    let io = TokioIo::new(site.connect().await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let connection = tokio::spawn(connection.with_upgrades());
    let answer = sender.send_request(request("GET", &port_host(port), "/", &headers));
    let answer = soon(answer).await.unwrap();
    assert_eq!(answer.status(), 101);
    let mut upgraded = TokioIo::new(soon(hyper::upgrade::on(answer)).await.unwrap());
    page("1 connection open", true).await;
    page("Traffic: ", false).await;
    soon(upgraded.write_all(&[7; 300_000])).await.unwrap();
    // Live, and not when it ends.
    page("300 kB in 2 minutes", true).await;
    drop(upgraded);
    page("1 connection open", false).await;
    page("300 kB in 2 minutes", true).await;
    connection.abort();
}
