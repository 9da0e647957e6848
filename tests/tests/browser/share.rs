//! Who gets to see what is shared: the owner, a second user, and somebody without an account.

use relay_lab::site::Site;
use relay_lab::web::WebApp;

use crate::support::{Browser, browse, needs_browser};

/// What becomes of somebody who opens the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sees {
    App,
    Missing,
    Login,
}

async fn opens(browser: &Browser, url: &str) -> Sees {
    browser.goto(url).await;
    if browser.url().await.contains("/login?") {
        return Sees::Login;
    }
    let title = browser.text("h1").await;
    match title.as_str() {
        "alice's first" => Sees::App,
        "Application not found" => Sees::Missing,
        other => panic!("{other}"),
    }
}

#[test]
fn a_port_is_seen_by_whom_it_is_shared_with_and_by_nobody_else() {
    needs_browser!();
    let site = Site::start();
    let _app = WebApp::start(&site.machine, 8001, "alice's first");
    browse("share", &site, &[], async |browsers| {
        let alice = browsers.signed_in(&site, "alice").await;
        let bob = browsers.signed_in(&site, "bob").await;
        let nobody = browsers.open("nobody").await;
        let url = site.app("8001", "alice", "/");
        let page = site.dashboard("/@alice/dev");

        bob.goto(&page).await;
        bob.until_text("h1", "Workspace not found").await;
        bob.picture("workspace-not-found").await;
        alice.goto(&page).await;
        alice.until_text("#port-main-8001", "8001").await;
        alice.picture("workspace").await;
        assert_eq!(opens(&bob, &url).await, Sees::Missing);
        bob.picture("application-not-found").await;
        assert_eq!(opens(&nobody, &url).await, Sees::Login);

        for (level, who, others, anonymous) in [
            (
                "organization",
                "Members of the organization",
                Sees::App,
                Sees::Login,
            ),
            (
                "authenticated",
                "Everybody who signs in",
                Sees::App,
                Sees::Login,
            ),
            ("public", "Anybody with the link", Sees::App, Sees::App),
            ("owner", "", Sees::Missing, Sees::Login),
        ] {
            let button = format!("#port-main-8001 button[value={level}]");
            alice.click(&button).await;
            let pressed = format!("{button}[aria-pressed=true]");
            alice.find(&pressed).await;
            alice.until_text("#port-main-8001", who).await;
            assert_eq!(opens(&bob, &url).await, others, "{level}: the second user");
            assert_eq!(opens(&nobody, &url).await, anonymous, "{level}: nobody");
            if level == "public" {
                alice.picture("workspace-shared").await;
            }
        }

        // The template's maximum holds for what was shared before.
        alice.click("#port-main-8001 button[value=public]").await;
        alice.until_text("#port-main-8001", "Anybody").await;
        assert_eq!(opens(&nobody, &url).await, Sees::App);
        site.administer(&[
            "template",
            "set",
            "web",
            "--max-share-level",
            "authenticated",
        ]);
        nobody
            .until("the limit of the template", async || {
                opens(&nobody, &url).await == Sees::Login
            })
            .await;
        assert_eq!(opens(&bob, &url).await, Sees::App);
        alice
            .until_text("#ports-main", "limits the sharing of ports to")
            .await;

        // Signing out ends what the session had opened.
        assert_eq!(opens(&alice, &url).await, Sees::App);
        alice.goto(&page).await;
        alice.click("nav form button").await;
        alice.until_url("/login").await;
        assert_eq!(opens(&alice, &url).await, Sees::Login);
    });
}
