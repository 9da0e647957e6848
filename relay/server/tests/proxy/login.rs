//! From an app to the login and back.

use relay_server::apps::settings::Choices;

use crate::support::{APPS, DASHBOARD, Site, echo, port_host};

/// The value of a parameter of a URL.
fn parameter(url: &str, name: &str) -> Option<String> {
    let (_, query) = url.split_once('?')?;
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(found, _)| found == name)
        .map(|(_, value)| value.into_owned())
}

fn app_cookie() -> String {
    relay_server::apps::cookies::subdomain_session(&format!("*.{APPS}"))
}

#[tokio::test]
async fn a_login_leads_back_to_the_app_with_a_cookie_for_all_apps() {
    let site = Site::start().await;
    let port = echo().await;
    let host = port_host(port);
    let away = site.get(&host, "/some/path?x=1", &[]).await;
    let away = away.header("location").to_owned();
    let path = away.strip_prefix(&format!("https://{DASHBOARD}")).unwrap();

    let login = site.get(DASHBOARD, path, &[]).await;
    assert_eq!(login.status, 303);
    let location = login.header("location");
    assert!(location.starts_with("/login?"), "{location}");
    assert_eq!(parameter(location, "redirect").as_deref(), Some(path));

    let cookie = format!("coder_session_token={}", site.alice);
    let back = site.get(DASHBOARD, path, &[("cookie", &cookie)]).await;
    assert_eq!(back.status, 303);
    let location = back.header("location");
    let target = location.strip_prefix(&format!("https://{host}")).unwrap();
    assert!(!location.contains(&site.alice));

    let arrived = site.get(&host, target, &[]).await;
    assert_eq!(arrived.status, 303);
    assert_eq!(arrived.header("location"), "/some/path?x=1");
    let line = arrived.header("set-cookie");
    for part in [
        &format!("; Domain=.{APPS}; "),
        "; Path=/; ",
        "HttpOnly",
        "SameSite=Lax",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(
        !line.contains("Secure") && !line.contains("Max-Age"),
        "{line}"
    );
    let key = arrived.cookie(&app_cookie()).unwrap();

    let cookie = format!("{}={key}", app_cookie());
    let headers = [("cookie", cookie.as_str())];
    let opened = site.get(&host, "/some/path?x=1", &headers).await;
    assert_eq!(opened.status, 200);
    assert!(opened.cookie("coder_signed_app_token").is_some());
    assert!(!opened.text().contains(key));
    // It opens apps, and nothing else.
    let session = format!("coder_session_token={key}");
    let api = site
        .get(DASHBOARD, "/api/v2/users/me", &[("cookie", &session)])
        .await;
    assert_eq!(api.status, 401);
}

#[tokio::test]
async fn a_key_ends_with_the_session_that_it_came_from() {
    let site = Site::start().await;
    let port = echo().await;
    let store = site.server.store();
    let session = store.session(&site.alice).await.unwrap().unwrap();
    let key = store
        .create_app_key(&session, session.expires_at)
        .await
        .unwrap();
    let cookie = format!("{}={key}", app_cookie());
    let headers = [("cookie", cookie.as_str())];
    let host = port_host(port);
    let opened = site.get(&host, "/", &headers).await;
    assert_eq!(opened.status, 200);
    let token = opened.cookie("coder_signed_app_token").unwrap();
    let with_token = format!("coder_signed_app_token={token}");
    let own = [("coder-session-token", site.alice.as_str())];
    let logout = crate::support::request("POST", DASHBOARD, "/api/v2/users/logout", &own);
    assert_eq!(site.send(logout).await.status, 200);
    assert_eq!(site.get(&host, "/", &headers).await.status, 303);
    let headers = [("cookie", with_token.as_str())];
    assert_eq!(site.get(&host, "/", &headers).await.status, 303);
}

#[tokio::test]
async fn redirects_lead_to_apps_of_this_deployment_only() {
    let site = Site::start().await;
    let session = [("coder-session-token", site.alice.as_str())];
    let path = "/api/v2/applications/auth-redirect";
    for target in [
        "",
        "?redirect_uri=",
        "?redirect_uri=https%3A%2F%2Fevil.example%2F",
        "?redirect_uri=https%3A%2F%2Frelay.example.com%2F",
        "?redirect_uri=%2F%2Fevil.example",
        "?redirect_uri=https%3A%2F%2Fevil.example%5C.apps.example.com%2F",
        "?redirect_uri=javascript%3Aalert(1)",
    ] {
        let answer = site
            .get(DASHBOARD, &format!("{path}{target}"), &session)
            .await;
        assert_eq!(answer.status, 400, "{target}");
        assert_eq!(answer.header("content-type"), "application/json");
    }
}

#[tokio::test]
async fn a_key_goes_to_the_port_of_the_apps_only() {
    let site = Site::start().await;
    let session = [("coder-session-token", site.alice.as_str())];
    let host = port_host(8080);
    let target = format!("http://u:p@{host}:9999/x");
    let target: String = url::form_urlencoded::byte_serialize(target.as_bytes()).collect();
    let path = format!("/api/v2/applications/auth-redirect?redirect_uri={target}");
    let answer = site.get(DASHBOARD, &path, &session).await;
    assert_eq!(answer.status, 303);
    let location = answer.header("location");
    assert!(
        location.starts_with(&format!("https://{host}/x?")),
        "{location}"
    );
}

#[tokio::test]
async fn a_broken_key_is_a_page_that_leads_on_without_it() {
    let site = Site::start().await;
    let host = port_host(8080);
    let path = "/a?b=1&coder_application_connect_api_key_35e783=garbage";
    let answer = site.get(&host, path, &[]).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
    assert!(
        answer.text().contains("href=\"/a?b=1\""),
        "{}",
        answer.text()
    );
    assert!(!answer.headers.contains_key("set-cookie"));
}

#[tokio::test]
async fn cookies_are_as_the_deployment_wants_them() {
    let choices = Choices {
        secure_cookie: true,
        same_site: "none".parse().unwrap(),
        ..Choices::default()
    };
    let site = Site::with(choices, Vec::new()).await;
    let port = echo().await;
    let opened = site.open(port, "/", &site.alice).await;
    let line = opened.header("set-cookie");
    assert!(line.ends_with("HttpOnly; SameSite=None; Secure"), "{line}");
}

#[tokio::test]
async fn a_token_of_another_app_or_a_changed_one_is_replaced() {
    let site = Site::start().await;
    let (one, other) = (echo().await, echo().await);
    let token = site.open(one, "/", &site.alice).await;
    let token = token.cookie("coder_signed_app_token").unwrap().to_owned();
    let changed = format!("{}x{}", &token[..40], &token[41..]);
    for (port, sent) in [(other, &token), (one, &changed)] {
        let cookie = format!("coder_signed_app_token={sent}");
        let alone = [("cookie", cookie.as_str())];
        assert_eq!(site.get(&port_host(port), "/", &alone).await.status, 303);
        let both = [alone[0], ("coder-session-token", site.alice.as_str())];
        let answer = site.get(&port_host(port), "/", &both).await;
        assert_eq!(answer.status, 200);
        assert_ne!(answer.cookie("coder_signed_app_token").unwrap(), sent);
    }
    let prefixed = format!("p---{}", port_host(one));
    let cookie = format!("coder_signed_app_token={token}");
    let alone = [("cookie", cookie.as_str())];
    assert_eq!(site.get(&prefixed, "/", &alone).await.status, 303);
}
