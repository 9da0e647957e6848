//! What other sites' pages, other users and forged requests achieve against the dashboard and the
//! apps behind it: nothing.

use std::io::{Read, Write};

use relay_lab::cluster::HTTP;
use relay_lab::needs;
use relay_lab::needs::Need;
use relay_lab::site::{Account, Answer, PASSWORD, Request, Site};
use relay_lab::web::WebApp;

/// The dashboard's host.
fn dashboard() -> String {
    format!("127.0.0.1:{HTTP}")
}

fn get(target: &str) -> Request {
    Request::get(&dashboard(), target)
}

/// A value between two texts.
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let rest = text.split_once(before).map(|(_, rest)| rest);
    let found = rest.and_then(|rest| rest.split_once(after));
    found.unwrap_or_else(|| panic!("no {before:?} in {text}")).0
}

/// What forms of the account's session send back.
fn form_token(site: &Site, account: &Account) -> String {
    let page = site.send(&get("/workspaces").session(account));
    between(&page.body, "name=\"token\" value=\"", "\"").to_owned()
}

/// Signs in by the form, with cookies that were there before.
fn sign_in(site: &Site, name: &str, before: &[(&str, &str)]) -> Answer {
    let page = site.send(&get("/login"));
    let secret = page.cookie("relay_login").expect("cookie");
    let secret = between(secret, "=", ";");
    let token = between(&page.body, "name=\"token\" value=\"", "\"");
    let email = format!("{name}@example.com");
    let fields = [
        ("email", email.as_str()),
        ("password", PASSWORD),
        ("token", token),
    ];
    let mut form = Request::form("/login", &fields).cookie("relay_login", secret);
    for (name, value) in before {
        form = form.cookie(name, value);
    }
    site.send(&form)
}

/// The cookie that a `Set-Cookie` sets.
fn value(cookie: &str) -> &str {
    between(cookie, "=", ";")
}

fn signs(site: &Site, session: &str) -> bool {
    let asked = get("/api/v2/users/me").header("Coder-Session-Token", session);
    site.send(&asked).status == 200
}

fn shares(site: &Site) -> String {
    let target = format!("/api/v2/workspaces/{}/port-share", site.alice.workspace);
    let asked = get(&target).header("Coder-Session-Token", &site.alice.session);
    site.send(&asked).body
}

/// Opens an app as its owner does who has a session at the dashboard only; gives the two cookies
/// that the app's host set.
fn open_app(site: &Site, app: &str, account: &Account) -> [String; 2] {
    let host = site.host(app, &account.name);
    let away = site.send(&Request::get(&host, "/"));
    assert_eq!(away.status, 303);
    let redirect = away.header("location").to_owned();
    let target = redirect
        .strip_prefix(&site.dashboard(""))
        .expect("dashboard");
    let back = site.send(&get(target).session(account));
    let app_url = format!("http://{host}");
    let target = back.header("location").strip_prefix(&app_url);
    let brought = site.send(&Request::get(&host, target.expect("the app")));
    assert_eq!(brought.header("location"), "/");
    let start = "coder_subdomain_app_session_token_";
    let cookies = brought.cookies();
    let session = cookies.iter().find(|cookie| cookie.starts_with(start));
    let session = (*session.expect("session cookie")).to_owned();
    let (name, rest) = session.split_once('=').expect("cookie");
    let key = rest.split(';').next().expect("value");
    let opened = site.send(&Request::get(&host, "/").cookie(name, key));
    assert_eq!(opened.status, 200, "{opened:?}");
    let signed = opened.cookie("coder_signed_app_token").expect("token");
    [session.clone(), signed.to_owned()]
}

#[test]
fn forms_and_calls_of_other_sites_change_nothing() {
    needs!(Need::Namespaces);
    let site = Site::start();
    let (alice, own) = (&site.alice, form_token(&site, &site.alice));
    let bobs = form_token(&site, &site.bob);
    let ports = format!("/workspaces/{}/ports", alice.workspace);
    let state = format!("/workspaces/{}/state", alice.workspace);
    let share = [
        ("agent", "main"),
        ("port", "8001"),
        ("protocol", "http"),
        ("action", "public"),
    ];
    let forms = [
        (ports.as_str(), &share[..]),
        (&state, &[("to", "stop")]),
        ("/logout", &[]),
    ];
    let foreign = [
        ("Origin", "https://evil.test".to_owned()),
        ("Origin", "null".to_owned()),
        // Her own app's page is not the dashboard.
        ("Origin", format!("http://{}", site.host("8001", "alice"))),
        ("Sec-Fetch-Site", "cross-site".to_owned()),
        ("Sec-Fetch-Site", "same-site".to_owned()),
    ];
    for (target, fields) in forms {
        let with = |token: &str| {
            let fields = [fields, &[("token", token)]].concat();
            Request::form(target, &fields).session(alice)
        };
        for token in ["", "0", &bobs] {
            let answer = site.send(&with(token));
            assert_eq!(answer.status, 403, "{target} with {token:?}");
        }
        for (name, origin) in &foreign {
            let answer = site.send(&with(&own).header(name, origin));
            assert_eq!(answer.status, 403, "{target} from {origin}");
        }
        // What a link or an image can ask for.
        let answer = site.send(&get(target).session(alice));
        assert!(
            answer.status == 405 || answer.status == 404,
            "{target}: {answer:?}"
        );
    }
    let call = format!("/api/v2/workspaces/{}/port-share", alice.workspace);
    let body = r#"{"agent_name":"main","port":8001,"share_level":"public","protocol":"http"}"#;
    for (name, origin) in &foreign {
        let call = Request::new("POST", &dashboard(), &call).session(alice);
        let call = call
            .header("Content-Type", "text/plain")
            .header(name, origin);
        assert_eq!(site.send(&call.body(body)).status, 403, "{origin}");
    }
    assert_eq!(shares(&site), r#"{"shares":[]}"#);
    assert!(signs(&site, &alice.session), "somebody else signed her out");
    let page = site.send(&get("/@alice/dev").session(alice));
    assert!(!page.body.contains("The workspace is stopped"));

    // Her own page may: the test would not see a form that is refused for another reason.
    let fields = [&share[..], &[("token", &own)]].concat();
    let origin = site.dashboard("");
    let form = Request::form(&ports, &fields)
        .session(alice)
        .header("Origin", &origin);
    assert_eq!(site.send(&form).status, 303);
    assert!(shares(&site).contains("\"public\""));
}

#[test]
fn no_page_of_the_dashboard_can_be_framed_sniffed_or_stored() {
    needs!(Need::Namespaces);
    let site = Site::start();
    for target in [
        "/login",
        "/workspaces",
        "/@alice/dev",
        "/@alice/none",
        "/@bob/dev",
        "/no/such/page",
        "/api/v2/none",
        "/api/v2/users/me",
    ] {
        let request = get(target)
            .header("Accept", "text/html")
            .session(&site.alice);
        let answer = site.send(&request);
        assert_eq!(
            answer.header("x-content-type-options"),
            "nosniff",
            "{target}"
        );
        assert_eq!(answer.header("x-frame-options"), "DENY", "{target}");
        let policy = answer.header("content-security-policy");
        assert!(
            policy.contains("frame-ancestors 'none'"),
            "{target}: {policy}"
        );
        assert!(!policy.contains("unsafe"), "{target}: {policy}");
        assert_eq!(answer.header("cache-control"), "no-store", "{target}");
    }
}

#[test]
fn nobody_is_led_off_this_server() {
    needs!(Need::Namespaces);
    let site = Site::start();
    let encode =
        |text: &str| -> String { url::form_urlencoded::byte_serialize(text.as_bytes()).collect() };
    for url in [
        "https://evil.test/",
        "//evil.test/",
        "http://localhost.evil.test:3000/",
        "http://8001--main--dev--alice.localhost.evil.test/",
        "http://evil.test/@8001--main--dev--alice.localhost:3000/",
        "http://8001--main--dev--alice.localhost:3000@evil.test/",
        "http://evil.test\\.8001--main--dev--alice.localhost/",
        "javascript:alert(1)//8001--main--dev--alice.localhost:3000",
        "http://127.0.0.1:3000/",
        "",
    ] {
        let target = format!(
            "/api/v2/applications/auth-redirect?redirect_uri={}",
            encode(url)
        );
        let answer = site.send(&get(&target).session(&site.alice));
        assert_eq!(answer.status, 400, "{url}: {answer:?}");
        assert!(answer.header("location").is_empty(), "{url}");
    }
    for wanted in [
        "https://evil.test",
        "//evil.test",
        "/\\evil.test",
        "/%0d%0aSet-Cookie:%20x=1",
    ] {
        let target = format!("/login?redirect={}", encode(wanted));
        let answer = site.send(&get(&target).session(&site.alice));
        let location = answer.header("location");
        assert!(
            location.starts_with('/') && !location.starts_with("//"),
            "{location}"
        );
        assert!(
            !location.contains("evil") && !location.contains('\\'),
            "{location}"
        );
        assert!(answer.cookie("x").is_none(), "{answer:?}");
    }
    // The way back to an app keeps its host, whatever its path.
    let host = site.host("8001", "alice");
    for path in [
        "//evil.test/x",
        "/\\evil.test",
        "/%2f%2fevil.test",
        "/%0d%0aX:%20y",
        "/@evil.test",
    ] {
        let away = site.send(&Request::get(&host, path));
        assert_eq!(away.status, 303, "{path}");
        let location = url::Url::parse(away.header("location")).expect("URL");
        assert_eq!(location.host_str(), Some("127.0.0.1"), "{path}");
        let target = format!(
            "{}?{}",
            location.path(),
            location.query().unwrap_or_default()
        );
        let back = site.send(&get(&target).session(&site.alice));
        let location = url::Url::parse(back.header("location")).expect("URL");
        assert_eq!(location.host_str(), host.split(':').next(), "{path}");
        let target = format!(
            "{}?{}",
            location.path(),
            location.query().unwrap_or_default()
        );
        let brought = site.send(&Request::get(&host, &target));
        let location = brought.header("location");
        assert!(
            brought.status == 303 && location.starts_with('/'),
            "{path}: {brought:?}"
        );
        assert!(
            !location.starts_with("//") && !location.contains('\\'),
            "{location}"
        );
        assert!(brought.header("x").is_empty(), "{brought:?}");
    }
}

#[test]
fn sessions_begin_with_a_login_and_stay_where_they_belong() {
    needs!(Need::Namespaces);
    let site = Site::start();
    let _app = WebApp::start(&site.machine, 8001, "alice's first");
    let _other = WebApp::start(&site.machine, 8002, "alice's second");
    // A session that was put there before, made up or real, is not what one has afterwards.
    for before in ["made-up-by-somebody", &site.bob.session] {
        let answer = sign_in(&site, "alice", &[("coder_session_token", before)]);
        let session = answer
            .cookie("coder_session_token")
            .expect("cookie")
            .to_owned();
        assert_ne!(value(&session), before);
        assert!(signs(&site, value(&session)));
        assert!(!signs(&site, before), "{before} is still good");
        for attribute in ["HttpOnly", "SameSite=Lax", "Path=/"] {
            assert!(session.contains(attribute), "{session}");
        }
        assert!(
            !session.contains("Domain") && !session.contains("Secure"),
            "{session}"
        );
    }

    // An app cannot set the dashboard's cookies, nor read those that opened it.
    let [session, signed] = open_app(&site, "8001", &site.alice);
    for cookie in [&session, &signed] {
        assert!(
            cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"),
            "{cookie}"
        );
        assert!(
            cookie.contains("Path=/") && !cookie.contains("Domain"),
            "{cookie}"
        );
    }
    let host = site.host("8001", "alice");
    let owner = |target: &str| {
        Request::get(&host, target)
            .cookie("coder_signed_app_token", value(&signed))
            .cookie("theirs", "1")
    };
    let answer = site.send(&owner("/cookie"));
    assert_eq!(answer.cookies(), ["theme=dark; Path=/"]);
    let seen = site.send(&owner("/headers")).body;
    assert!(
        seen.contains("theirs=1") && !seen.contains("coder_"),
        "{seen}"
    );

    // What opens one app opens neither another one nor the dashboard.
    let elsewhere = Request::get(&site.host("8002", "alice"), "/");
    let elsewhere = elsewhere.cookie("coder_signed_app_token", value(&signed));
    assert_eq!(site.send(&elsewhere).status, 303);
    assert!(!signs(&site, value(&session)), "an app's key opens the API");
    let page = get("/workspaces").cookie("coder_session_token", value(&session));
    assert_eq!(site.send(&page).status, 303);

    // A connection is nobody's: its second request is judged by itself.
    let mut stream = site.connect();
    let request = |more: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n{more}\r\n");
    let cookie = format!("Cookie: coder_signed_app_token={}\r\n", value(&signed));
    let both = request(&cookie) + &request("Connection: close\r\n");
    stream.write_all(both.as_bytes()).expect("requests");
    let mut answers = String::new();
    stream.read_to_string(&mut answers).expect("answers");
    let lines: Vec<&str> = answers
        .lines()
        .filter(|line| line.starts_with("HTTP/1.1 "))
        .collect();
    assert_eq!(lines, ["HTTP/1.1 200 OK"], "{answers}");
    assert!(answers.contains("HTTP/1.1 303 See Other"), "{answers}");

    // Signing out ends all of it.
    let form = Request::form("/logout", &[("token", &form_token(&site, &site.alice))]);
    assert_eq!(site.send(&form.session(&site.alice)).status, 303);
    assert_eq!(site.send(&owner("/")).status, 303);
}

#[test]
fn cookies_are_for_https_only_where_that_is_wanted() {
    needs!(Need::Namespaces);
    let site = Site::with(
        ".apps.localhost",
        &[
            "--wildcard-access-url",
            "*.apps.localhost:3000",
            "--secure-auth-cookie",
            "--samesite-auth-cookie",
            "none",
        ],
    );
    let _app = WebApp::start(&site.machine, 8001, "alice's first");
    let form = site.send(&get("/login"));
    let login = sign_in(&site, "alice", &[]);
    let [session, signed] = open_app(&site, "8001", &site.alice);
    let own = login.cookie("coder_session_token").expect("cookie");
    for cookie in [form.cookies()[0], own, &session, &signed] {
        assert!(
            cookie.contains("; Secure") && cookie.contains("HttpOnly"),
            "{cookie}"
        );
    }
    for cookie in [own, &session, &signed] {
        assert!(cookie.contains("SameSite=None"), "{cookie}");
    }
    // One login for all apps, and for nothing else.
    assert!(session.contains("Domain=.apps.localhost;"), "{session}");
    assert!(!own.contains("Domain") && !signed.contains("Domain"));
}

#[test]
fn a_forged_host_or_forwarding_header_leads_nowhere() {
    needs!(Need::Namespaces);
    let site = Site::start();
    let app = WebApp::start(&site.machine, 8001, "alice's first");
    let token = |request: Request| request.header("Coder-Session-Token", &site.alice.session);
    let host = site.host("8001", "alice");
    for forged in [
        "evil.test",
        "evil.test:3000",
        "8001--main--dev--alice.localhost.evil.test",
        "x.8001--main--dev--alice.localhost",
        "127.0.0.1:3000, evil.test",
    ] {
        for target in [
            "/workspaces",
            "/@alice/dev/apps/files",
            "/login",
            "/api/v2/buildinfo",
        ] {
            let answer = site.send(&Request::get(forged, target));
            let all = format!("{:?} {}", answer.headers, answer.body);
            assert!(!all.contains("evil"), "{forged}{target}: {all}");
        }
        let answer = site.send(&token(Request::get(forged, "/")));
        assert!(
            !answer.body.contains("alice's first"),
            "{forged}: {answer:?}"
        );
    }
    // A peer that is no trusted proxy names neither another host nor another client.
    let forged = token(get("/")).header("X-Forwarded-Host", &host);
    assert_eq!(site.send(&forged).header("location"), "/workspaces");
    assert!(app.take_seen().is_empty());
    let away = Request::get(&host, "/").header("X-Forwarded-Host", "evil.test");
    assert!(!site.send(&away).header("location").contains("evil"));
    let forged = token(Request::get(&host, "/headers"))
        .header("X-Forwarded-For", "203.0.113.7")
        .header("X-Forwarded-Proto", "https")
        .header("X-Forwarded-Host", "evil.test");
    assert_eq!(site.send(&forged).status, 200);
    let seen = app.take_seen().remove(0);
    assert_eq!(seen.header("x-forwarded-for"), "127.0.0.1");
    assert_eq!(seen.header("x-forwarded-proto"), "http");
    assert_eq!(seen.header("host"), host);
    assert!(!format!("{seen:?}").contains("evil"), "{seen:?}");
    // Two hosts, or none.
    let two = token(Request::get(&host, "/")).header("Host", &dashboard());
    assert_eq!(site.send(&two).status, 400);
    let none = site.raw(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_eq!(none.status, 400);
    assert!(app.take_seen().is_empty());
}

#[test]
fn paths_lead_out_of_nothing() {
    needs!(Need::Namespaces);
    let site = Site::start();
    let app = WebApp::start(&site.machine, 8005, "alice's notes");
    let token = |request: Request| request.header("Coder-Session-Token", &site.alice.session);
    for target in [
        "/assets/../../../../etc/passwd",
        "/assets/x/..%2f..%2f..%2fetc%2fpasswd",
        "/assets/x/%2e%2e%2frelay.css",
        "/assets//etc/passwd",
        "/assets/x/relay.css%00.js",
        "/@alice/dev/../../etc/passwd",
        "/@alice/..%2f..%2fbob",
        "/%2e%2e/%2e%2e/etc/passwd",
    ] {
        let answer = site.send(&token(get(target)));
        assert!(
            matches!(answer.status, 303 | 400 | 404),
            "{target}: {answer:?}"
        );
        assert!(!answer.body.contains("root:"), "{target}");
    }
    // An app that is one folder of a server is not all of it.
    let notes = site.host("notes", "alice");
    for target in [
        "/../secret",
        "/a/../../secret",
        "/..%2fsecret",
        "/%2e%2e/secret",
        "/.%2E/secret",
        "/..\\secret",
        "/a/..",
        "/..;/secret",
    ] {
        let answer = site.send(&token(Request::get(&notes, target)));
        assert_eq!(answer.status, 400, "{target}: {answer:?}");
    }
    let lines = |app: &WebApp| -> Vec<String> {
        let seen = app.take_seen().into_iter().map(|seen| seen.line);
        seen.filter(|line| !line.contains("/healthz")).collect()
    };
    assert_eq!(lines(&app), [""; 0]);
    let fine = Request::get(&notes, "/a/..b/c...d?e=../f");
    assert_eq!(site.send(&token(fine)).status, 200);
    assert_eq!(lines(&app), ["GET /base/a/..b/c...d?e=../f HTTP/1.1"]);
    // What is left of a path app's own address stays with the app.
    let out = get("/@alice/dev/apps/files/../../../../workspaces").session(&site.alice);
    let answer = site.send(&out);
    assert!(!answer.body.contains("Sign out"), "{answer:?}");

    // What is shown of a path or a host is text.
    for request in [
        Request::get("<script>alert(1)</script>--dev--alice.localhost:3000", "/"),
        Request::get(
            "a_b--dev--alice.localhost:3000",
            "/<script>alert(1)</script>",
        ),
        get("/@<script>alert(1)</script>/dev").session(&site.alice),
        get("/login?redirect=%22%3E%3Cscript%3Ealert(1)%3C/script%3E"),
    ] {
        let answer = site.send(&request);
        assert!(!answer.body.contains("<script>alert"), "{answer:?}");
    }
}
