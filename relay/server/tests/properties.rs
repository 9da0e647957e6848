//! What strangers can put into a request's host, cookies, paths and tokens, whatever it is.

use std::net::IpAddr;

use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;
use relay_server::apps::cookies;
use relay_server::apps::forwarded::Trust;
use relay_server::apps::hostname::AppHost;
use relay_server::apps::pattern::Pattern;
use relay_server::apps::redirect::{self, Place};
use relay_server::apps::token::Keys;
use url::Url;

const OWN: [&str; 3] = [
    cookies::SESSION,
    cookies::PATH_APP_SESSION,
    cookies::SIGNED_APP_TOKEN,
];

fn pattern() -> Pattern {
    "*--apps.example.com".parse().expect("a good pattern")
}

fn host() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[a-zA-Z0-9.:@/\\\\-]{0,80}",
        "[a-z0-9-]{0,40}--apps\\.example\\.com\\.?(:[0-9]{0,6})?",
        "[a-z0-9]{1,6}--[a-z0-9]{1,6}--[a-z0-9]{1,6}--[a-z0-9]{1,6}",
    ]
}

proptest! {
    #[test]
    fn an_app_host_that_is_understood_is_written_the_same_way(text in host()) {
        if let Ok(app) = text.parse::<AppHost>() {
            let again: AppHost = app.to_string().parse().unwrap();
            prop_assert_eq!(again, app);
        }
    }

    #[test]
    fn what_a_wildcard_captures_is_one_label(text in host()) {
        if let Some(captured) = pattern().capture(&text) {
            prop_assert!(!captured.is_empty() && !captured.contains('.'));
            prop_assert!(text.contains(captured));
        }
    }

    #[test]
    fn a_path_never_becomes_another_origin(text in any::<String>()) {
        let path = redirect::safe_path(&text);
        prop_assert!(path.starts_with('/') && !path.starts_with("//") && !path.contains('\\'));
        let base = Url::parse("https://relay.example.com/somewhere").unwrap();
        let led = base.join(&path).unwrap();
        prop_assert_eq!(led.origin(), base.origin());
    }

    #[test]
    fn a_login_leads_to_hosts_of_apps_alone(scheme in "(https?|javascript|data|ftp):?/{0,3}", rest in host()) {
        let dashboard = Place {
            url: Url::parse("https://relay.example.com").unwrap(),
            wildcard: Some(pattern()),
            serves_paths: false,
        };
        if let Ok(url) = redirect::target(Some(&format!("{scheme}{rest}")), &[dashboard]) {
            prop_assert_eq!(url.scheme(), "https");
            let host = url.host_str().unwrap_or_default();
            prop_assert!(host.trim_end_matches('.').ends_with("--apps.example.com"));
        }
    }

    #[test]
    fn no_app_gets_a_cookie_of_the_server(
        name in prop_oneof![any::<String>(), proptest::sample::select(&OWN[..]).prop_map(str::to_owned)],
        before in "[a-z=; ]{0,20}",
        value in any::<String>(),
    ) {
        let left = cookies::without_own(&format!("{before};{name}={value}"));
        for own in OWN {
            prop_assert_eq!(cookies::values(&left, own).count(), 0);
        }
        prop_assert_eq!(cookies::without_own(&left), left);
    }

    #[test]
    fn nothing_made_up_opens_an_app(text in any::<String>(), other in any::<[u8; 32]>()) {
        let keys = Keys::new(&[7; 32]);
        prop_assert!(keys.open_key(&text, 1000).is_err());
        let foreign = Keys::new(&other).seal_key("key", 1000, [3; 12]);
        prop_assert!(keys.open_key(&foreign, 1000).is_err());
    }

    #[test]
    fn a_client_is_an_address_whatever_proxies_say(lines in proptest::collection::vec("[0-9a-f.:, x]{0,60}", 0..4)) {
        let mut headers = HeaderMap::new();
        for line in &lines {
            headers.append("x-forwarded-for", HeaderValue::from_str(line).unwrap());
        }
        let peer: IpAddr = "10.0.0.1".parse().unwrap();
        let stranger = Trust::default();
        prop_assert_eq!(stranger.client(peer, &headers), peer);
        let trust = Trust {
            origins: vec!["10.0.0.0/8".parse().unwrap()],
            headers: vec!["x-forwarded-for".parse().unwrap()],
        };
        let _ = trust.client(peer, &headers);
    }
}
