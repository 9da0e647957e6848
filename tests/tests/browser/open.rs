//! Signing in, and opening ports and apps.

use relay_lab::site::Site;
use relay_lab::web::WebApp;
use serde_json::json;

use crate::support::{browse, needs_browser};

#[test]
fn a_person_signs_in_opens_a_port_and_talks_over_a_websocket() {
    needs_browser!();
    let site = Site::start();
    let app = WebApp::start(&site.machine, 8001, "alice's first");
    browse("open", &site, &[], async |browsers| {
        let alice = browsers.open("alice").await;

        // The way to the app leads over the login page, and back to where one wanted to go.
        let page = site.app("8001", "alice", "/some/page?x=1");
        alice.goto(&page).await;
        alice.until_url("/login?").await;
        alice.picture("login").await;
        alice.fill("#email", "alice@example.com").await;
        alice.fill("#password", "wrong-horse-7").await;
        alice.click("form button.primary").await;
        alice.until_text("[role=alert]", "wrong").await;
        alice.picture("login-wrong").await;
        assert!(app.seen().is_empty(), "the app saw somebody unknown");
        alice.sign_in("alice").await;
        alice.until_text("#name", "alice's first").await;
        assert_eq!(alice.url().await, page);
        assert_eq!(alice.text("#path").await, "/some/page");

        // The app got nothing of what opens other apps.
        let own = alice.fetch("/headers", json!({})).await;
        let text = own["text"].as_str().expect("text");
        assert!(
            text.contains("8001--main--dev--alice.localhost:3000"),
            "{own}"
        );
        assert!(!text.contains("coder_"), "{own}");

        let socket = site.app("8001", "alice", "/ws").replace("http", "ws");
        let texts = ["hello", "", "ümlaut", &"x".repeat(100_000)];
        assert_eq!(alice.echo(&socket, &texts).await, json!(texts));
    });
}

#[test]
fn one_login_is_enough_whatever_this_machine_is_called() {
    needs_browser!();
    let site = Site::start();
    let _app = WebApp::start(&site.machine, 8001, "alice's first");
    let dark = ["--blink-settings=preferredColorScheme=0"];
    browse("localhost", &site, &dark, async |browsers| {
        let alice = browsers.open("alice").await;
        alice.goto("http://localhost:3000/").await;
        alice.sign_in("alice").await;
        alice.until_url("/workspaces").await;
        alice.goto(&site.app("8001", "alice", "/")).await;
        alice.until_text("#name", "alice's first").await;
        alice.goto("http://localhost:3000/@alice/dev").await;
        alice.until_text("h1", "dev").await;
        alice.until_text("#port-main-8001", "8001").await;
        alice.picture("workspace-dark").await;
    });
}

#[test]
fn https_ports_and_apps_of_a_template_open_from_the_workspace_page() {
    needs_browser!();
    let site = Site::start();
    let _secret = WebApp::start_tls(&site.machine, 8443, "alice's https");
    let notes = WebApp::start(&site.machine, 8005, "alice's notes");
    browse("apps", &site, &[], async |browsers| {
        let alice = browsers.signed_in(&site, "alice").await;
        alice.until_text("#ws-alice-dev", "Connected").await;
        alice.picture("workspaces").await;

        // The wrong protocol says so, and leads to the right one.
        alice.goto(&site.app("8443", "alice", "/")).await;
        alice.until_text("h1", "Bad gateway").await;
        alice.picture("bad-gateway").await;
        alice.click("main li a").await;
        alice.until_text("#name", "alice's https").await;
        assert_eq!(alice.url().await, site.app("8443s", "alice", "/"));
        let socket = site.app("8443s", "alice", "/ws").replace("http", "ws");
        assert_eq!(alice.echo(&socket, &["hello"]).await, json!(["hello"]));

        // By its number, from the form.
        alice.goto(&site.dashboard("/@alice/dev")).await;
        alice.fill("#port-main", "8443").await;
        alice.click("#ports-main form.any input[value=https]").await;
        let tab = alice
            .opens_tab("#ports-main form.any button[value=open]")
            .await;
        alice.until_text("#name", "alice's https").await;
        alice.close_tab(tab).await;

        // An app of the template: its health, its tile, its address and its query.
        alice.until_text("#app-main-Notes", "Healthy").await;
        let wide = alice.client.get_window_size().await.expect("size");
        // What its template says of it; opened, it stays so while the page changes.
        alice.until_text("#app-main-Team .tip em", "whole").await;
        alice.click("#app-main-Notes summary").await;
        alice.until_text("#app-main-Notes .tip li a", "help").await;
        alice
            .until_text("#visits + *", "opened port 8443 of main")
            .await;
        alice.find("#port-main-8443 svg").await;
        alice.until_text("#app-main-Notes .tip li a", "help").await;
        alice.resize((1280, 1500)).await;
        alice.picture("workspace-apps").await;
        alice.resize((390, 844)).await;
        assert!(alice.fits().await, "the page is wider than a phone");
        alice.picture("workspace-narrow").await;
        alice.resize(wide).await;
        let tab = alice.opens_tab("#app-main-Notes a").await;
        alice.until_text("#name", "alice's notes").await;
        assert_eq!(alice.text("#path").await, "/base/");
        assert_eq!(
            alice.url().await,
            site.app("notes", "alice", "/?from=template")
        );
        alice.close_tab(tab).await;
        let lines: Vec<String> = notes
            .take_seen()
            .into_iter()
            .map(|seen| seen.line)
            .collect();
        let opened = "GET /base/?from=template HTTP/1.1";
        assert!(lines.iter().any(|line| line == opened), "{lines:?}");

        // Below the dashboard's own address.
        alice
            .goto(&site.dashboard("/@alice/dev/apps/files/below"))
            .await;
        alice.until_text("#path", "/below").await;

        // The page is live: the app ends, and the tile tells.
        alice.goto(&site.dashboard("/@alice/dev")).await;
        alice.until_text("#app-main-Notes", "Healthy").await;
        drop(notes);
        alice.until_text("#app-main-Notes", "Unhealthy").await;
        alice.goto(&site.app("notes", "alice", "/")).await;
        alice.until_text("h1", "Bad gateway").await;
        alice
            .until_text("main", "Nothing listens on port 8005")
            .await;
    });
}

#[test]
fn a_lost_agent_is_told_on_both_pages_and_comes_back() {
    needs_browser!();
    let mut site = Site::start();
    let _app = WebApp::start(&site.machine, 8001, "alice's first");
    browse("lost", &site, &[], async |browsers| {
        let alice = browsers.signed_in(&site, "alice").await;
        alice.goto(&site.app("8001", "alice", "/")).await;
        alice.until_text("#name", "alice's first").await;
        alice.goto(&site.dashboard("/@alice/dev")).await;
        alice.until_text("#agent-main", "Connected").await;
        // The page is live once it shows the traffic that the app has just had.
        alice.find("#port-main-8001 svg").await;
        site.alice.agent.signal(nix::sys::signal::Signal::SIGKILL);
        alice.until_text("#agent-main", "Disconnected").await;
        alice.picture("workspace-disconnected").await;
        alice.goto(&site.app("8001", "alice", "/")).await;
        alice.until_text("h1", "Application unavailable").await;
        alice.until_text("main", "disconnected").await;
        alice.picture("application-unavailable").await;
    });
    site.restart_agent();
    browse("back", &site, &[], async |browsers| {
        let alice = browsers.signed_in(&site, "alice").await;
        alice.goto(&site.app("8001", "alice", "/")).await;
        alice.until_text("#name", "alice's first").await;
    });
}

#[test]
fn a_page_that_comes_to_the_front_again_shows_what_is() {
    needs_browser!();
    let site = Site::start();
    let _app = WebApp::start(&site.machine, 8001, "alice's first");
    browse("front", &site, &[], async |browsers| {
        let alice = browsers.signed_in(&site, "alice").await;
        alice.goto(&site.dashboard("/@alice/dev")).await;
        alice.until_text("#port-main-8001", "8001").await;
        const WATCH: &str = "window.states = []; document.addEventListener('visibilitychange', \
             () => window.states.push(document.visibilityState))";
        alice.client.execute(WATCH, vec![]).await.expect("script");
        // An app in another tab, in front of the page.
        let page = alice.opens_tab("#port-main-8001 a").await;
        alice.until_text("#name", "alice's first").await;
        site.alice.agent.signal(nix::sys::signal::Signal::SIGKILL);
        let gone = async || {
            alice.goto(&site.app("8001", "alice", "/")).await;
            alice.text("h1").await == "Application unavailable"
        };
        alice.until("the agent is gone", gone).await;
        alice.close_tab(page).await;
        let start = std::time::Instant::now();
        alice.until_text("#agent-main", "Disconnected").await;
        let states = alice.client.execute("return window.states", vec![]).await;
        assert_eq!(states.expect("states"), json!(["hidden", "visible"]));
        let took = start.elapsed();
        assert!(took < std::time::Duration::from_secs(5), "it took {took:?}");

        // Away in the same tab, and back.
        alice.goto(&site.dashboard("/workspaces")).await;
        alice.until_text("#ws-alice-dev", "Disconnected").await;
        alice.client.back().await.expect("back");
        alice.until_text("#agent-main", "Disconnected").await;
        alice.until_text("h1", "dev").await;
    });
}

#[test]
fn a_page_is_live_again_after_its_stream_was_lost() {
    needs_browser!();
    let site = Site::start();
    browse("stream", &site, &[], async |browsers| {
        let alice = browsers.signed_in(&site, "alice").await;
        alice.goto(&site.dashboard("/@alice/dev")).await;
        alice.until_text("#agent-main", "Connected").await;
        const OPEN: &str = "return !!document.querySelector('#live')._htmx?.sse?.reader";
        alice
            .until("the page is live", async || {
                let open = alice.client.execute(OPEN, vec![]).await.expect("script");
                open == json!(true)
            })
            .await;
        // The stream is closed for good, as when its first request failed.
        // The banner is there until the next one is open, which may be a moment.
        const END: &str = "const banner = document.querySelector('#lost'); window.told = false; \
             new MutationObserver(() => { window.told ||= !banner.hidden; }) \
             .observe(banner, { attributes: true }); \
             document.addEventListener('htmx:sse:before:connection', \
             (event) => event.preventDefault(), { once: true }); \
             document.querySelector('#live')._htmx.sse.reader.cancel()";
        alice.client.execute(END, vec![]).await.expect("script");
        alice
            .until("the banner was there", async || {
                let told = alice.client.execute("return window.told", vec![]).await;
                told.expect("script") == json!(true)
            })
            .await;
        site.alice.agent.signal(nix::sys::signal::Signal::SIGKILL);
        alice.until_text("#agent-main", "Disconnected").await;
        alice
            .until("the banner is gone", async || {
                alice.text("#lost").await.is_empty()
            })
            .await;
    });
}
