//! What a request asks for: an app by its host or by its path, or none (coder_facts §2.5, §2.6).

use http::header::HOST;
use http::{HeaderValue, Request};
use url::Url;

use crate::apps::access::Method;
use crate::apps::hostname::{AppHost, HostError};
use crate::apps::identity::Identity;
use crate::apps::pattern::{Handler, route};
use crate::apps::settings::Settings;
use crate::connection::Peer;

/// An app that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// The app.
    pub(super) identity: Identity,
    /// How it is reached.
    pub(super) method: Method,
}

impl Asked {
    /// The request's path below the app.
    pub(super) fn path<'a>(&self, path: &'a str) -> &'a str {
        match self.method {
            Method::Subdomain => path,
            // The base ends with the slash that the rest starts with.
            Method::Path => path.get(self.identity.base_path.len() - 1..).unwrap_or("/"),
        }
    }

    /// The app's host label.
    pub(super) fn host(&self) -> AppHost {
        let Identity {
            app_prefix,
            username_or_id,
            workspace_name_or_id,
            agent_name_or_id,
            app_slug_or_port,
            ..
        } = self.identity.clone();
        AppHost {
            prefix: app_prefix,
            slug_or_port: app_slug_or_port,
            agent: agent_name_or_id,
            workspace: workspace_name_or_id,
            user: username_or_id,
        }
    }
}

/// What a request means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The API or the dashboard.
    Dashboard,
    /// An app.
    App(Asked),
    /// A host below the wildcard that names no app.
    NoApp(HostError),
    /// The old log-out address.
    Logout,
    /// A path app without the slash at its end.
    Slash(String),
    /// A path app, and these are off.
    PathsOff,
    /// A request without one clear host.
    NoHost(&'static str),
}

/// Makes one `Host` header of what the request says of its host, and finds out what it means.
pub(super) fn meaning<B>(
    settings: &Settings,
    access: &Url,
    peer: Peer,
    request: &mut Request<B>,
) -> Meaning {
    if request.headers().get_all(HOST).iter().nth(1).is_some() {
        return Meaning::NoHost("The request has more than one Host header.");
    }
    // The target's own authority wins over the header (RFC 9112 §3.2.2).
    if let Some(authority) = request.uri().authority() {
        let host = authority.as_str();
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        if let Ok(host) = HeaderValue::from_str(host) {
            request.headers_mut().insert(HOST, host);
        }
    }
    let host = settings.trust.host(peer.address, request.headers());
    let host = host.unwrap_or_default();
    let path = request.uri().path();
    if host.trim().is_empty() && settings.pattern.is_some() && path != "/derp" {
        return Meaning::NoHost("The request names no host.");
    }
    let meaning = match route(host, access, settings.pattern.as_ref()) {
        Handler::Dashboard => return path_app(settings, path, request.uri().query()),
        Handler::App(app) => Meaning::App(by_host(app)),
        Handler::NoApp(error) => Meaning::NoApp(error),
        Handler::Logout => Meaning::Logout,
    };
    // The app is told the host that the browser asked for, which a proxy in front may have named.
    if let Ok(host) = HeaderValue::from_str(host) {
        request.headers_mut().insert(HOST, host);
    }
    meaning
}

fn by_host(app: AppHost) -> Asked {
    Asked {
        identity: Identity {
            access_method: "subdomain".to_owned(),
            base_path: "/".to_owned(),
            app_prefix: app.prefix,
            username_or_id: app.user,
            workspace_name_or_id: app.workspace,
            agent_name_or_id: app.agent,
            app_slug_or_port: app.slug_or_port,
        },
        method: Method::Subdomain,
    }
}

/// `/@user/workspace[.agent]/apps/slug/…`
fn path_app(settings: &Settings, path: &str, query: Option<&str>) -> Meaning {
    let user = path.strip_prefix("/@");
    let Some(rest) = user.or_else(|| path.strip_prefix("/%40")) else {
        return Meaning::Dashboard;
    };
    let mut parts = rest.splitn(5, '/');
    let (Some(user), Some(workspace), Some("apps"), Some(slug)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Meaning::Dashboard;
    };
    if slug.is_empty() {
        return Meaning::Dashboard;
    }
    if !settings.path_apps {
        return Meaning::PathsOff;
    }
    let Some(below) = parts.next() else {
        let query = query.map(|query| format!("?{query}"));
        return Meaning::Slash(format!("{path}/{}", query.unwrap_or_default()));
    };
    let identity = Identity {
        access_method: "path".to_owned(),
        base_path: path[..path.len() - below.len()].to_owned(),
        username_or_id: user.to_owned(),
        app_slug_or_port: slug.to_owned(),
        ..Identity::default()
    };
    Meaning::App(Asked {
        identity: identity.with_workspace_and_agent(workspace),
        method: Method::Path,
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::apps::settings::{Choices, Wildcard};

    const PEER: Peer = Peer {
        address: std::net::IpAddr::V4(Ipv4Addr::LOCALHOST),
        tls: false,
    };

    fn found(uri: &str, hosts: &[&str]) -> Result<(Meaning, Request<()>), &'static str> {
        let choices = Choices {
            wildcard: Wildcard::Pattern("*.apps.example.com".parse().unwrap()),
            ..Choices::default()
        };
        let access = Url::parse("https://relay.example.com").unwrap();
        let settings = Settings::new(&choices, &access, &[1; 32]);
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let mut request = request.body(()).unwrap();
        match meaning(&settings, &access, PEER, &mut request) {
            Meaning::NoHost(why) => Err(why),
            meaning => Ok((meaning, request)),
        }
    }

    #[test]
    fn the_targets_own_authority_wins_over_the_host_header() {
        let target = "http://8080--main--dev--alice.apps.example.com/x";
        let (meaning, request) = found(target, &["relay.example.com"]).unwrap();
        let Meaning::App(asked) = meaning else {
            panic!("{meaning:?}");
        };
        assert_eq!(asked.identity.app_slug_or_port, "8080");
        assert_eq!(
            request.headers()[HOST],
            "8080--main--dev--alice.apps.example.com"
        );
    }

    #[test]
    fn a_request_with_two_hosts_or_none_is_refused() {
        let host = "relay.example.com";
        assert!(found("/", &[host, host]).unwrap_err().contains("more than"));
        assert!(found("/", &[]).unwrap_err().contains("no host"));
        assert_eq!(found("/derp", &[]).unwrap().0, Meaning::Dashboard);
    }

    #[test]
    fn a_path_app_keeps_its_path_as_the_browser_wrote_it() {
        for at in ["@", "%40"] {
            let uri = format!("/{at}alice/dev.main/apps/code/a/b?c");
            let (meaning, _) = found(&uri, &["relay.example.com"]).unwrap();
            let Meaning::App(asked) = meaning else {
                panic!("{meaning:?}");
            };
            let base = format!("/{at}alice/dev.main/apps/code/");
            assert_eq!(asked.identity.base_path, base);
            assert_eq!(asked.identity.workspace_name_or_id, "dev");
            assert_eq!(asked.identity.agent_name_or_id, "main");
            assert_eq!(
                asked.path(&format!("/{at}alice/dev.main/apps/code/a/b")),
                "/a/b"
            );
        }
        let (meaning, _) = found("/@alice/dev/apps/code?x=1", &["relay.example.com"]).unwrap();
        assert_eq!(meaning, Meaning::Slash("/@alice/dev/apps/code/?x=1".into()));
        for page in ["/@alice", "/@alice/dev", "/@alice/dev/apps/", "/workspaces"] {
            let (meaning, _) = found(page, &["relay.example.com"]).unwrap();
            assert_eq!(meaning, Meaning::Dashboard, "{page}");
        }
    }
}
