//! Pages of one app that ask another, with cookies. Browsers take the hosts below `.localhost` for
//! sites of their own; with one more label they are one site, as below a real domain.

use relay_lab::site::Site;
use relay_lab::web::WebApp;
use serde_json::{Value, json};

use crate::support::{Browser, browse, needs_browser};

const WILDCARD: &[&str] = &["--wildcard-access-url", "*.apps.localhost:3000"];

/// What makes a browser ask before it asks.
fn with_preflight() -> Value {
    json!({ "credentials": "include", "method": "PUT", "headers": { "x-mine": "1" } })
}

async fn ask(browser: &Browser, url: &str) -> Value {
    browser
        .fetch(url, json!({ "credentials": "include" }))
        .await
}

fn websocket(url: &str) -> String {
    url.replacen("http", "ws", 1)
}

#[test]
fn apps_of_one_user_may_ask_each_other_and_nobody_elses() {
    needs_browser!();
    let site = Site::with(".apps.localhost", WILDCARD);
    let _first = WebApp::start(&site.machine, 8001, "alice's first");
    let second = WebApp::start(&site.machine, 8002, "alice's second");
    let bobs = WebApp::start(&site.machine, 9001, "bob's");
    site.share(&site.bob, 9001, "authenticated");
    browse("cross-origin", &site, &[], async |browsers| {
        let alice = browsers.signed_in(&site, "alice").await;
        let other = |path: &str| site.app("8002", "alice", path);

        // From one of her apps to the other, which she has not opened yet.
        alice.goto(&site.app("8001", "alice", "/")).await;
        let own = ask(&alice, &other("/headers")).await;
        assert_eq!(
            (&own["status"], &own["type"]),
            (&json!(200), &json!("cors"))
        );
        let own = alice.fetch(&other("/open"), with_preflight()).await;
        assert_eq!(own["text"], "open at alice's second", "{own}");
        let lines: Vec<String> = second.take_seen().into_iter().map(|s| s.line).collect();
        let expected = ["GET /headers HTTP/1.1", "PUT /open HTTP/1.1"];
        assert_eq!(lines, expected, "the proxy answers preflights itself");
        let socket = websocket(&other("/ws"));
        assert_eq!(alice.echo(&socket, &["hello"]).await, json!(["hello"]));

        // Without credentials she is nobody, which ends at another origin: the dashboard.
        let nobody = alice
            .fetch(&other("/headers"), json!({ "credentials": "omit" }))
            .await;
        assert!(nobody["error"].is_string(), "{nobody}");

        // From hers to Bob's, which she may open: whatever his app says about origins.
        for path in ["/headers", "/open"] {
            let foreign = ask(&alice, &site.app("9001", "bob", path)).await;
            assert!(foreign["error"].is_string(), "{foreign}");
        }

        // From Bob's, opened by her, to hers: nothing is read, changed or kept open.
        alice.goto(&site.app("9001", "bob", "/")).await;
        alice.until_text("#name", "bob's").await;
        bobs.take_seen();
        second.take_seen();
        for path in ["/headers", "/open"] {
            let foreign = ask(&alice, &other(path)).await;
            assert!(foreign["error"].is_string(), "{foreign}");
        }
        let foreign = alice.fetch(&other("/open"), with_preflight()).await;
        assert!(foreign["error"].is_string(), "{foreign}");
        assert_eq!(alice.echo(&socket, &["hello"]).await, "refused");
        let seen = second.take_seen();
        let reached = seen.iter().map(|seen| seen.line.as_str());
        let changes: Vec<&str> = reached
            .filter(|line| !line.starts_with("GET /headers ") && !line.starts_with("GET /open "))
            .collect();
        assert!(changes.is_empty(), "{changes:?}");

        // The dashboard is another site, and its API answers no page of an app.
        let api = site.dashboard("/api/v2/users/me");
        let foreign = ask(&alice, &api).await;
        assert!(foreign["error"].is_string(), "{foreign}");
    });
}

#[test]
fn a_template_may_leave_origins_to_its_apps() {
    needs_browser!();
    let site = Site::with(".apps.localhost", WILDCARD);
    let _first = WebApp::start(&site.machine, 8001, "alice's first");
    let _second = WebApp::start(&site.machine, 8002, "alice's second");
    let _bobs = WebApp::start(&site.machine, 9001, "bob's");
    site.share(&site.bob, 9001, "authenticated");
    site.administer(&["template", "set", "web", "--cors-behavior", "passthru"]);
    browse("passthru", &site, &[], async |browsers| {
        let alice = browsers.signed_in(&site, "alice").await;
        alice.goto(&site.app("8001", "alice", "/")).await;
        alice.until_text("#name", "first").await;
        let (open, closed) = (
            site.app("9001", "bob", "/open"),
            site.app("9001", "bob", "/x"),
        );
        // The server sees what another process changed within a second.
        alice
            .until("an answer that Bob's app allows", async || {
                ask(&alice, &open).await["text"] == "open at bob's"
            })
            .await;
        let own = ask(&alice, &site.app("8002", "alice", "/x")).await;
        assert!(own["error"].is_string(), "{own}");
        let foreign = ask(&alice, &closed).await;
        assert!(foreign["error"].is_string(), "{foreign}");
    });
}
