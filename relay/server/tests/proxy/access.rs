//! Who gets which answer, and what the app sees.

use std::sync::atomic::Ordering;
use std::time::Duration;

use relay_server::App;
use relay_server::apps::access::{PathPolicy, ShareLevel};
use relay_server::apps::settings::Choices;

use crate::support::{APPS, DASHBOARD, Site, closed_port, echo, port_host, request};

#[tokio::test]
async fn a_port_is_its_owners_until_it_is_shared() {
    let site = Site::start().await;
    let port = echo().await;
    let owner = site.open(port, "/a/b?c=d", &site.alice).await;
    assert_eq!(owner.status, 200, "{}", owner.text());
    assert!(owner.text().starts_with("GET /a/b?c=d HTTP/1.1\r\n"));
    assert_eq!(site.open(port, "/", &site.admin).await.status, 200);
    assert_eq!(site.open(port, "/", &site.bob).await.status, 404);
    let anonymous = site.open(port, "/x?y=1", "").await;
    assert_eq!(anonymous.status, 303);
    let back = format!("https://{}/x?y=1", port_host(port));
    let back: String = url::form_urlencoded::byte_serialize(back.as_bytes()).collect();
    let location =
        format!("https://{DASHBOARD}/api/v2/applications/auth-redirect?redirect_uri={back}");
    assert_eq!(anonymous.header("location"), location);

    site.share(port, ShareLevel::Authenticated).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(site.open(port, "/", &site.bob).await.status, 200);
    assert_eq!(site.open(port, "/", "").await.status, 303);
    site.share(port, ShareLevel::Public).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(site.open(port, "/", "").await.status, 200);
}

#[tokio::test]
async fn what_does_not_exist_answers_as_what_is_not_allowed() {
    let site = Site::start().await;
    let port = echo().await;
    let missing = format!("{port}--main--nothing--alice.{APPS}");
    let bob = [("coder-session-token", site.bob.as_str())];
    let hidden = site.get(&port_host(port), "/", &bob).await;
    let nothing = site.get(&missing, "/", &bob).await;
    assert_eq!(hidden.status, 404);
    assert_eq!(
        (hidden.status, &hidden.body),
        (nothing.status, &nothing.body)
    );
    assert_eq!(site.get(&missing, "/", &[]).await.status, 303);
}

#[tokio::test]
async fn the_app_sees_the_request_without_the_servers_secrets() {
    let site = Site::start().await;
    let port = echo().await;
    let cookie = format!("mine=1; coder_session_token={}", site.alice);
    let headers = [
        ("Cookie", cookie.as_str()),
        ("Authorization", "Bearer for-the-app"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("Connection", "close, x-hop"),
        ("X-Hop", "1"),
    ];
    let seen = site.get(&port_host(port), "/", &headers).await;
    let head = seen.text().to_lowercase();
    assert!(!head.contains(&site.alice.to_lowercase()), "{head}");
    for line in [
        "cookie: mine=1\r\n",
        "authorization: bearer for-the-app\r\n",
        "x-forwarded-proto: http\r\n",
        "x-forwarded-for: 127.0.0.1\r\n",
        &format!("host: {}\r\n", port_host(port)),
    ] {
        assert!(head.contains(line), "{line:?} in {head}");
    }
    assert!(!head.contains("x-hop"), "{head}");
}

#[tokio::test]
async fn a_signed_token_needs_no_database_and_connections_are_kept() {
    let site = Site::start().await;
    let port = echo().await;
    let first = site.open(port, "/", &site.alice).await;
    let token = first.cookie("coder_signed_app_token").unwrap().to_owned();
    let store = site.server.store().clone();
    // Without a database, everything that has to ask it fails.
    store.close().await;
    let cookie = format!("coder_signed_app_token={token}");
    for _ in 0..3 {
        let headers = [("cookie", cookie.as_str())];
        let seen = site.get(&port_host(port), "/", &headers).await;
        assert_eq!(seen.status, 200, "{}", seen.text());
        assert_eq!(seen.cookie("coder_signed_app_token"), None);
        assert!(!seen.text().contains("coder_"), "{}", seen.text());
    }
    assert_eq!(site.dialer.dials.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_is_withdrawn_ends_with_the_answer_that_says_so() {
    let site = Site::start().await;
    let port = echo().await;
    let first = site.open(port, "/", &site.alice).await;
    let token = first.cookie("coder_signed_app_token").unwrap();
    let cookie = format!("coder_signed_app_token={token}");
    let headers = [("cookie", cookie.as_str())];
    assert_eq!(site.get(&port_host(port), "/", &headers).await.status, 200);
    let session = [("coder-session-token", site.alice.as_str())];
    let logout = request("POST", DASHBOARD, "/api/v2/users/logout", &session);
    assert_eq!(site.send(logout).await.status, 200);
    assert_eq!(site.get(&port_host(port), "/", &headers).await.status, 303);
    assert_eq!(site.open(port, "/", &site.alice).await.status, 303);
}

#[tokio::test]
async fn troubles_have_their_pages() {
    let site = Site::start().await;
    let closed = closed_port().await;
    let refused = site.open(closed, "/", &site.alice).await;
    assert_eq!(refused.status, 502);
    assert_eq!(refused.header("content-type"), "text/html; charset=utf-8");
    assert!(refused.text().contains(&format!("port {closed}")));
    assert!(refused.headers.contains_key("x-coder-build-version"));

    let session = [("coder-session-token", site.alice.as_str())];
    let gone = site.open(9, "/", &site.alice).await;
    assert_eq!(gone.status, 404);
    assert!(
        gone.text().contains("has not connected yet"),
        "{}",
        gone.text()
    );
    let reserved = site.get(&port_host(8), "/", &session).await;
    assert_eq!(reserved.status, 400);
    assert_eq!(reserved.header("content-type"), "application/json");

    let host = format!("not-an-app.{APPS}");
    let invalid = site.get(&host, "/", &[]).await;
    assert_eq!(invalid.status, 400);
    assert!(invalid.text().contains("not-an-app"));
}

#[tokio::test]
async fn apps_of_a_template_are_opened_by_host_and_by_path() {
    let port = echo().await;
    let app = |slug: &str, share| App {
        agent: "main".into(),
        slug: slug.into(),
        url: format!("http://localhost:{port}/base?q=1"),
        subdomain: true,
        share,
        ..App::default()
    };
    let apps = vec![
        app("code", ShareLevel::Owner),
        app("open", ShareLevel::Public),
        App {
            url: "vscode://x".into(),
            external: true,
            ..app("outside", ShareLevel::Owner)
        },
    ];
    let site = Site::with(Choices::default(), apps).await;
    let session = [("coder-session-token", site.alice.as_str())];
    let host = format!("code--dev--alice.{APPS}");
    let root = site.get(&host, "/", &session).await;
    assert_eq!(
        (root.status.as_u16(), root.header("location")),
        (307, "/?q=1")
    );
    let below = site.get(&host, "/x?y=2", &session).await;
    assert!(below.text().starts_with("GET /base/x?y=2 HTTP/1.1\r\n"));
    let outside = format!("outside--dev--alice.{APPS}");
    assert_eq!(site.get(&outside, "/", &session).await.status, 400);

    let bare = site.get(DASHBOARD, "/@alice/dev/apps/code", &session).await;
    let slashed = "/@alice/dev/apps/code/";
    assert_eq!(
        (bare.status.as_u16(), bare.header("location")),
        (307, slashed)
    );
    let below = site
        .get(DASHBOARD, "/@alice/dev/apps/code/x?y=2", &session)
        .await;
    assert!(below.text().starts_with("GET /base/x?y=2 HTTP/1.1\r\n"));
    let cookie = below.header("set-cookie");
    assert!(
        cookie.contains("; Path=/@alice/dev/apps/code/; "),
        "{cookie}"
    );
    let anonymous = site.get(DASHBOARD, "/@alice/dev/apps/open/x", &[]).await;
    assert_eq!(anonymous.status, 303, "sharing does not count on paths");
    assert!(anonymous.header("location").starts_with("/login?message="));
    let port = format!("/@alice/dev.main/apps/{port}/");
    assert_eq!(site.get(DASHBOARD, &port, &session).await.status, 400);
    let me = site.get(DASHBOARD, "/@me/dev/apps/code/", &session).await;
    assert_eq!(me.status, 404);
}

#[tokio::test]
async fn path_apps_obey_their_settings() {
    let port = echo().await;
    let app = App {
        agent: "main".into(),
        slug: "open".into(),
        url: format!("http://localhost:{port}"),
        share: ShareLevel::Public,
        ..App::default()
    };
    let off = Choices {
        disable_path_apps: true,
        ..Choices::default()
    };
    let site = Site::with(off, vec![app.clone()]).await;
    let path = "/@alice/dev/apps/open/";
    assert_eq!(site.get(DASHBOARD, path, &[]).await.status, 403);
    let shared = Choices {
        path_policy: PathPolicy {
            allow_sharing: true,
            ..PathPolicy::default()
        },
        ..Choices::default()
    };
    let site = Site::with(shared, vec![app]).await;
    assert_eq!(site.get(DASHBOARD, path, &[]).await.status, 200);
}

#[tokio::test]
async fn app_traffic_has_a_limit_of_its_own() {
    let limited = Choices {
        rate_limit: 2,
        ..Choices::default()
    };
    let site = Site::with(limited, Vec::new()).await;
    let port = echo().await;
    for status in [200, 200, 429, 429] {
        assert_eq!(site.open(port, "/", &site.alice).await.status, status);
    }
    let session = [("coder-session-token", site.alice.as_str())];
    let api = site.get(DASHBOARD, "/api/v2/users/me", &session).await;
    assert_eq!(api.status, 200);
}
