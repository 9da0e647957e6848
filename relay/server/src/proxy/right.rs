//! By what right a request reaches its app: a signed token, a session, or sharing with everybody
//! (coder_facts §2.7, §2.8).

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use http::header::{COOKIE, HeaderMap, HeaderValue, USER_AGENT};
use http::request::Parts;
use http::{Response, StatusCode};
use url::Url;
use uuid::Uuid;

use super::asked::Asked;
use super::page::{self, Page};
use super::target::{Target, Trouble};
use super::{login, own};
use crate::api::session_tokens;
use crate::apps::access::{Access, Method, ShareLevel, Visitor, decide};
use crate::apps::cookies;
use crate::apps::cors::{Behavior, is_preflight};
use crate::apps::identity::IdentityError;
use crate::apps::token::{Claims, Grant, LIFETIME};
use crate::connection::Peer;
use crate::state::{Shared, State};
use crate::store::Session;
use crate::traffic::Meter;
use crate::usage::log::{Kind, Opened};
use crate::usage::{Counter, Subject};

/// Tokens of a request that are looked at.
const TOKENS: usize = 4;

/// A request's right to an app, with all that is needed to reach it.
#[derive(Debug)]
pub(super) struct Right {
    pub(super) agent: Uuid,
    pub(super) place: Place,
    pub(super) cors: Behavior,
    pub(super) grant: Grant,
    /// Counts the visitor's requests.
    pub(super) counter: Arc<Counter>,
    /// Counts the app's bytes.
    pub(super) meter: Arc<Meter>,
    /// When it has to be looked up again, seconds since 1970.
    pub(super) until: u64,
    /// The state of the database that it comes from.
    pub(super) epoch: u64,
}

/// Where an app is on its agent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tls: bool,
    pub(super) port: u16,
    /// Goes in front of each path; without a slash at its end.
    pub(super) prefix: String,
    /// For a request of the app's root that brings none.
    pub(super) query: Option<String>,
}

impl Place {
    /// Reads an app's URL; its host does not matter, the agent's own loopback is meant.
    fn parse(url: &str) -> Option<Self> {
        let url = Url::parse(url).ok()?;
        let tls = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        Some(Self {
            tls,
            port: url.port_or_known_default()?,
            prefix: url.path().trim_end_matches('/').to_owned(),
            query: url
                .query()
                .filter(|query| !query.is_empty())
                .map(str::to_owned),
        })
    }

    /// Whether a path stays below the prefix, however a server may read it. Browsers resolve `..`
    /// themselves, so that only a forged request has any.
    pub(super) fn holds(&self, path: &str) -> bool {
        if self.prefix.is_empty() || !path.contains(['.', '%']) {
            return true;
        }
        let mut plain = path.to_ascii_lowercase();
        for (coded, letter) in [("%2e", "."), ("%2f", "/"), ("%5c", "/")] {
            plain = plain.replace(coded, letter);
        }
        let mut parts = plain.split(['/', '\\']);
        // Some servers cut what follows a semicolon off.
        !parts.any(|part| part.split(';').next() == Some(".."))
    }
}

/// A right, and the cookie that saves the look-up next time.
pub(super) struct Granted {
    pub(super) right: Arc<Right>,
    /// The token that was sent, or the one that was made.
    pub(super) token: String,
    /// The cookie to set, when the token is new.
    pub(super) cookie: Option<HeaderValue>,
}

/// Finds the request's right.
///
/// # Errors
/// The answer to a request that has none.
pub(super) async fn authorize(
    state: &Shared,
    peer: Peer,
    asked: &Asked,
    parts: &Parts,
) -> Result<Granted, Response<Body>> {
    let time = now();
    if let Some((token, claims)) = signed(state, asked, &parts.headers, time)
        && let Some(right) = right_of(state, &claims)
    {
        return Ok(Granted {
            right: Arc::new(right),
            token: token.to_owned(),
            cookie: None,
        });
    }
    // The long way is rare; it must not make each connection's memory larger.
    Box::pin(resolve(state, peer, asked, parts, time)).await
}

/// The claims of a token that the request brought, when one is good.
fn signed<'a>(
    state: &State,
    asked: &Asked,
    headers: &'a HeaderMap,
    time: u64,
) -> Option<(&'a str, Claims)> {
    let epoch = state.proxy.epoch();
    let lines = headers.get_all(COOKIE).iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| cookies::values(line, cookies::SIGNED_APP_TOKEN))
        .take(TOKENS)
        .find_map(|token| {
            let claims = state.apps.keys.verify(token, &asked.identity, time)?;
            (claims.epoch == epoch).then_some((token, claims))
        })
}

fn right_of(state: &State, claims: &Claims) -> Option<Right> {
    let place = Place::parse(&claims.app_url)?;
    let subject = Subject {
        user: claims.visitor_id,
        workspace: claims.workspace_id,
        agent: claims.agent_id,
        access_method: claims.identity.access_method.clone(),
        slug_or_port: claims.identity.app_slug_or_port.clone(),
    };
    Some(Right {
        agent: claims.agent_id,
        cors: claims.cors_behavior.parse().ok()?,
        grant: claims.grant.clone(),
        counter: state.usage.counter(subject),
        meter: state.traffic.meter(claims.agent_id, place.port),
        place,
        until: claims.exp,
        epoch: claims.epoch,
    })
}

async fn resolve(
    state: &Shared,
    peer: Peer,
    asked: &Asked,
    parts: &Parts,
    time: u64,
) -> Result<Granted, Response<Body>> {
    if let Err(error) = asked.identity.check() {
        return Err(match error {
            IdentityError::Me => {
                let text = "'me' is somebody else for everyone who opens this address; write the \
                     full user name.";
                Page::new(StatusCode::NOT_FOUND, "Application not found", text).answer()
            }
            _ => Page::new(
                StatusCode::BAD_REQUEST,
                "Invalid application URL",
                error.to_string(),
            )
            .answer(),
        });
    }
    // Read before the database is, so that a change in between makes the token worthless.
    let epoch = state.proxy.epoch();
    let failed = |error: crate::error::Error| {
        tracing::warn!(%error, "an app was not looked up");
        let text = "The server failed; its log says why.";
        Page::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Something went wrong",
            text,
        )
        .answer()
    };
    let session = session(state, asked, parts, epoch).await.map_err(failed)?;
    let target = state.proxy.target(&state.store, asked, epoch).await;
    let target = target.map_err(failed)?;
    let visitor = visitor(session.as_deref(), target.as_deref());
    let share = target
        .as_ref()
        .map_or(ShareLevel::Owner, |target| target.share);
    let refused = match decide(asked.method, share, visitor, state.apps.path_policy) {
        Access::Granted => None,
        Access::Hidden => Some(missing(state)),
        Access::Login => Some(login::needed(state, asked, parts)),
    };
    let status = refused.as_ref().map_or(StatusCode::OK, Response::status);
    let visitor_id = session.as_deref().map(|session| session.user.id);
    let opening = Opening {
        asked,
        parts,
        peer,
        user: visitor_id,
        status,
    };
    opening.note(state, target.as_deref());
    if let Some(answer) = refused {
        return Err(answer);
    }
    let Some(target) = target else {
        return Err(missing(state));
    };
    let (agent, app_url) = match &target.place {
        Ok((agent, url)) => (*agent, url.clone()),
        Err(trouble) => return Err(troubled(state, asked, &target, trouble)),
    };
    let (grant, ends) = match &session {
        Some(session) => (
            Grant::Session(session.id.clone()),
            u64::try_from(session.expires_at.timestamp()).unwrap_or(0),
        ),
        None => (Grant::Public, u64::MAX),
    };
    let claims = Claims {
        identity: asked.identity.clone(),
        user_id: target.owner,
        workspace_id: target.workspace,
        agent_id: agent,
        app_url,
        cors_behavior: target.cors.as_str().to_owned(),
        grant,
        visitor_id,
        epoch,
        exp: (time + LIFETIME).min(ends),
    };
    let Some(right) = right_of(state, &claims) else {
        let text = "The template gives this application no http or https address, so there is \
             nothing to show.";
        let page = Page::new(StatusCode::BAD_REQUEST, "Bad application URL", text);
        return Err(page.answer());
    };
    let token = state.apps.keys.sign(&claims).unwrap_or_default();
    let cookie = format!(
        "{}={token}; Path={}; Max-Age={LIFETIME}; {}",
        cookies::SIGNED_APP_TOKEN,
        asked.identity.base_path,
        state.apps.cookie_attributes(),
    );
    Ok(Granted {
        right: Arc::new(right),
        token,
        cookie: HeaderValue::from_str(&cookie).ok(),
    })
}

/// An app that is opened, or that somebody tried to open.
struct Opening<'a> {
    asked: &'a Asked,
    parts: &'a Parts,
    peer: Peer,
    user: Option<Uuid>,
    status: StatusCode,
}

impl Opening<'_> {
    /// Writes it down, if there is such an app. A preflight opens nothing.
    fn note(self, state: &State, target: Option<&Target>) {
        let Self { asked, parts, .. } = self;
        let Some((target, Ok((agent, _)))) = target.map(|target| (target, &target.place)) else {
            return;
        };
        if is_preflight(&parts.method, &parts.headers) {
            return;
        }
        let user_agent = parts.headers.get(USER_AGENT);
        let user_agent = user_agent.and_then(|text| text.to_str().ok());
        state.usage.opened(Opened {
            workspace: target.workspace,
            agent: *agent,
            kind: match target.is_port {
                true => Kind::PortForwarding,
                false => Kind::WorkspaceApp,
            },
            slug_or_port: asked.identity.app_slug_or_port.clone(),
            user: self.user,
            ip: state.apps.trust.client(self.peer.address, &parts.headers),
            user_agent: user_agent.unwrap_or_default().to_owned(),
            status: self.status.as_u16(),
        });
    }
}

/// The first good session among all that a request brings.
async fn session(
    state: &Shared,
    asked: &Asked,
    parts: &Parts,
    epoch: u64,
) -> crate::error::Result<Option<Arc<Session>>> {
    let name = match asked.method {
        Method::Subdomain => state.apps.session_cookie.as_str(),
        Method::Path => cookies::PATH_APP_SESSION,
    };
    let lines = parts.headers.get_all(COOKIE).iter();
    let app_cookies = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| cookies::values(line, name))
        .take(TOKENS)
        .map(str::to_owned);
    for token in app_cookies.chain(session_tokens(parts)) {
        if !own::is_token(&token) {
            continue;
        }
        let found = state.proxy.session(&state.store, &token, epoch).await?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn visitor(session: Option<&Session>, target: Option<&Target>) -> Visitor {
    let Some(session) = session else {
        return Visitor::default();
    };
    Visitor {
        authenticated: true,
        owner: target.is_some_and(|target| target.owner == session.user.id),
        site_admin: session.user.is_admin,
        // There is one organization, and everybody belongs to it.
        member: true,
    }
}

/// Comes back when the right that opened a connection, read in the epoch `seen`, is withdrawn.
pub(super) async fn withdrawn(state: &State, asked: &Asked, grant: &Grant, mut seen: u64) {
    let mut epochs = state.proxy.epochs();
    loop {
        let epoch = state.proxy.epoch();
        if epoch != seen {
            match still_granted(state, asked, grant).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => tracing::warn!(%error, "a right was not looked up again"),
            }
        }
        seen = epoch;
        if epochs.changed().await.is_err() {
            return;
        }
    }
}

async fn still_granted(state: &State, asked: &Asked, grant: &Grant) -> crate::error::Result<bool> {
    let (proxy, store, epoch) = (&state.proxy, &state.store, state.proxy.epoch());
    let session = match grant {
        Grant::Session(id) => proxy.session_by_id(store, id, epoch).await?,
        Grant::Public => None,
    };
    let Some(target) = proxy.target(store, asked, epoch).await? else {
        return Ok(false);
    };
    let visitor = visitor(session.as_deref(), Some(&target));
    let access = decide(asked.method, target.share, visitor, state.apps.path_policy);
    Ok(access == Access::Granted)
}

fn missing(state: &State) -> Response<Body> {
    let text = "There is no such application or port, or it is not shared with you. Check the \
         address, or ask the owner of the workspace to share it.";
    Page::new(StatusCode::NOT_FOUND, "Application not found", text)
        .link("Your workspaces", state.access_url.as_str())
        .answer()
}

fn troubled(state: &State, asked: &Asked, target: &Target, trouble: &Trouble) -> Response<Body> {
    let Target {
        owner_name,
        workspace_name,
        ..
    } = target;
    let workspace = format!(
        "{}/@{owner_name}/{workspace_name}",
        state.access_url.as_str().trim_end_matches('/')
    );
    match trouble {
        Trouble::Missing => missing(state),
        Trouble::Stopped => {
            let text = format!(
                "The workspace {owner_name}/{workspace_name} is stopped. Start it and open this \
                 page again."
            );
            Page::new(StatusCode::BAD_REQUEST, "Workspace offline", text)
                .link("Open the workspace", workspace)
                .answer()
        }
        Trouble::SeveralAgents => {
            let port = &asked.identity.app_slug_or_port;
            let text = format!(
                "The workspace has several agents. Write which one has the port, as in \
                 {port}--agent--{workspace_name}--{owner_name}."
            );
            Page::new(StatusCode::BAD_REQUEST, "Which agent?", text)
                .link("Open the workspace", workspace)
                .answer()
        }
        Trouble::PortOnPath => {
            let text = "A port has no path below this address; it is opened by a host name of its \
                 own. The workspace's page makes the link.";
            Page::new(StatusCode::BAD_REQUEST, "Ports have no path", text)
                .link("Open the workspace", workspace)
                .answer()
        }
        Trouble::ReservedPort(port) => page::json(
            StatusCode::BAD_REQUEST,
            format!(
                "Port {port} cannot be opened: ports below {} are reserved for the agent.",
                crate::apps::ports::FIRST_PORT
            ),
        ),
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_apps_url_tells_port_path_and_query_but_no_host() {
        let place = Place::parse("https://elsewhere.example/a/b/?q=1").unwrap();
        let expected = Place {
            tls: true,
            port: 443,
            prefix: "/a/b".into(),
            query: Some("q=1".into()),
        };
        assert_eq!(place, expected);
        let bare = Place::parse("http://localhost:3000").unwrap();
        assert_eq!((bare.port, bare.prefix.as_str()), (3000, ""));
        for bad in ["", "vscode://x", "localhost:3000", "/path"] {
            assert_eq!(Place::parse(bad), None, "{bad}");
        }
    }
    #[test]
    fn nothing_leads_out_of_an_apps_folder() {
        let folder = Place::parse("http://localhost/base").unwrap();
        let all = Place::parse("http://localhost").unwrap();
        for out in [
            "/..",
            "/../x",
            "/a/%2E%2e/x",
            "/a/..%2fx",
            "/a\\..\\x",
            "/..;p/x",
            "/.%2e",
        ] {
            assert!(!folder.holds(out), "{out}");
            assert!(all.holds(out), "{out}");
        }
        for within in ["/", "/a..b/...", "/a/.well-known/x", "/100%25/.", "/%2E"] {
            assert!(folder.holds(within), "{within}");
        }
    }
}
