//! Rows of whole requests to apps: each with a server, an app and a workspace of its own.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use relay_server::apps::access::ShareLevel;
use relay_server::apps::hostname::Protocol;
use relay_server::apps::ports::Share;
use relay_server::apps::settings::{Choices, Wildcard};
use relay_server::{
    App, AppHealth, Config, CorsBehavior, Definition, Dial, DialError, HealthCheck, PathState,
    Server, StunAddress,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use url::Url;
use uuid::Uuid;

use super::{Ran, equals, text};

const DASHBOARD: &str = "coder.example.com";
const WILDCARD: &str = "*.apps.example.com";
const PORT_HOST: &str = "8080--main--dev--alice.apps.example.com";
const CODE_HOST: &str = "code--dev--alice.apps.example.com";
const TOKEN: &str = "coder_signed_app_token";

/// A row of `auth_flow.json` that is a step of a login.
pub(super) fn auth_flow(row: &Value) -> Ran {
    run(row, async |site, input| {
        let session = site.app_cookie().await;
        if let Some(url) = input["redirect_uri"].as_str() {
            let url: String = url::form_urlencoded::byte_serialize(url.as_bytes()).collect();
            return site.redirect(&format!("?redirect_uri={url}")).await;
        }
        if input.get("query").is_some() {
            return site.redirect("").await;
        }
        let mut request = text(input, "request").to_owned();
        if request.is_empty() {
            request = format!("GET https://{PORT_HOST}/");
        }
        if request.contains("<valid JWE>") {
            let key = site.one_time_key(&session).await;
            request = request.replace("<valid JWE>", &key);
        }
        let mut headers = Vec::new();
        for (name, value) in input["cookies"].as_object().into_iter().flatten() {
            let value = match value.as_str() {
                Some("<valid>") => session.clone(),
                Some("<valid, other slug>") => site.signed_token(CODE_HOST).await,
                Some("<tampered>") => {
                    let token = site.signed_token(PORT_HOST).await;
                    format!("{}x{}", &token[..50], &token[51..])
                }
                other => panic!("{other:?}"),
            };
            headers.push(("Cookie".to_owned(), format!("{name}={value}")));
        }
        for (name, value) in input["headers"].as_object().into_iter().flatten() {
            headers.push((name.clone(), value.as_str().unwrap_or_default().to_owned()));
        }
        site.request(&request, &headers).await
    })
}

/// A row of `app_access.json` that needs an app, an agent or a port.
pub(super) fn app_access(row: &Value) -> Ran {
    run(row, async |site, input| {
        let store = site.server.store();
        let session = match text(input, "who") {
            "anonymous" | "" => None,
            "owner" | "alice" => Some(site.alice.clone()),
            _ => Some(site.bob.clone()),
        };
        let headers: Vec<_> = session
            .map(|token| ("Coder-Session-Token".to_owned(), token))
            .into_iter()
            .collect();
        let share = |level: &Value| Share {
            agent_name: "main".into(),
            port: 8080,
            level: level
                .as_str()
                .and_then(|level| level.parse().ok())
                .expect("a level"),
            protocol: Protocol::Http,
        };
        let mut url = format!("https://{CODE_HOST}/");
        if input["port"] == 8080 {
            let share = share(&input["share"]);
            let put = store.put_share(site.workspace, &share).await;
            put.expect("a share");
            url = format!("https://{PORT_HOST}/");
        } else if input.get("port_share").is_some() {
            let share = share(&input["port_share"]);
            let put = store.put_share(site.workspace, &share).await;
            put.expect("a share");
        } else if let Some(path) = input["path"].as_str() {
            url = format!("https://{DASHBOARD}{path}");
        } else if let Some(host) = input["host"].as_str() {
            url = match text(input, "wildcard") {
                "" if input.get("wildcard").is_some() => format!("https://{host}/api/v2/buildinfo"),
                _ => format!("https://{}/", host.replace("<wildcard>", &WILDCARD[2..])),
            };
        } else if text(input, "workspace") == "stopped" {
            site.stop().await;
        } else if input["health"] == "unhealthy" {
            let apps = store.apps_of_agent(site.agent).await.expect("the apps");
            let states: Vec<_> = apps
                .iter()
                .map(|(app, _)| (app.id, AppHealth::Unhealthy))
                .collect();
            let set = store.set_app_health(site.agent, &states).await;
            assert!(set.expect("stored health"));
        } else if text(input, "workspace").contains("uuid") {
            let user = text(input, "user");
            url = format!("https://code--{}--{user}.apps.example.com/", site.workspace);
        } else if let Some(prefix) = input["token_prefix"].as_str() {
            let token = site.signed_token(&format!("{prefix}{PORT_HOST}")).await;
            let host = format!("{}{PORT_HOST}", text(input, "request_prefix"));
            let cookie = ("Cookie".to_owned(), format!("{TOKEN}={token}"));
            return site
                .request(&format!("GET https://{host}/"), &[cookie])
                .await;
        }
        site.request(&format!("GET {url}"), &headers).await
    })
}

/// A row of `cors.json` that is a whole request.
pub(super) fn cors(row: &Value) -> Ran {
    run(row, async |site, input| {
        let mut headers = Vec::new();
        if text(input, "client") == "other-user" {
            headers.push(("Coder-Session-Token".to_owned(), site.bob.clone()));
        }
        if let Some(origin) = input["origin"].as_str() {
            let own = format!("https://{CODE_HOST}");
            headers.push((
                "Origin".to_owned(),
                origin.replace("<own app origin>", &own),
            ));
        }
        for (name, value) in input["headers"].as_object().into_iter().flatten() {
            // The table has them on every row; only a preflight has them in a browser.
            headers.push((name.clone(), value.as_str().unwrap_or_default().to_owned()));
        }
        let request = format!("{} https://{CODE_HOST}/", text(input, "method"));
        site.request(&request, &headers).await
    })
}

fn run(row: &Value, ask: impl AsyncFn(&Site, &Value) -> Answer) -> Ran {
    let input = &row["input"];
    let runtime = Runtime::new().expect("a runtime");
    let found = runtime.block_on(async {
        let site = Site::start(input).await;
        let answer = ask(&site, input).await;
        let found = answer.as_expected(&row["expect"], &site);
        site.server.shutdown().await;
        found
    });
    equals(&found, row)
}

/// Leads every port to the one app.
struct ToApp {
    port: u16,
    fails: Option<fn() -> DialError>,
}

type Dialed<'a> = Pin<Box<dyn Future<Output = Result<TcpStream, DialError>> + Send + 'a>>;

impl Dial for ToApp {
    fn dial(&self, _: Uuid, _: u16) -> Dialed<'_> {
        Box::pin(async {
            match self.fails {
                Some(error) => Err(error()),
                None => Ok(TcpStream::connect(("127.0.0.1", self.port)).await?),
            }
        })
    }

    fn path(&self, _: Uuid) -> Option<PathState> {
        None
    }
}

/// What an app saw: the heads of its requests.
type Heads = Arc<Mutex<Vec<String>>>;

struct Site {
    server: Server,
    workspace: Uuid,
    agent: Uuid,
    alice: String,
    bob: String,
    heads: Heads,
    _data: TempDir,
}

impl Site {
    async fn start(input: &Value) -> Self {
        let data = TempDir::new().expect("a directory");
        let heads = Heads::default();
        let passthru = text(input, "behavior") == "passthru";
        let port = app(Arc::clone(&heads), passthru).await;
        let fails: Option<fn() -> DialError> = match (text(input, "upstream"), text(input, "agent"))
        {
            ("refused", _) => Some(|| DialError::Refused),
            (_, "disconnected") => Some(|| DialError::NotConnected),
            _ => None,
        };
        let wildcard = match input["wildcard"].as_str() {
            Some("") => Wildcard::None,
            _ => Wildcard::Pattern(WILDCARD.parse().expect("a pattern")),
        };
        let address = "127.0.0.1:0".parse().expect("an address");
        let config = Config {
            stun: StunAddress::Off,
            access_url: Url::parse(&format!("https://{DASHBOARD}")).ok(),
            apps: Choices {
                wildcard,
                ..Choices::default()
            },
            dialer: Some(Arc::new(ToApp { port, fails })),
            ..Config::new(address, data.path().join("data"))
        };
        let server = Server::start(config).await.expect("a server");
        let store = server.store();
        let mut users = Vec::new();
        for name in ["alice", "bob"] {
            let email = format!("{name}@example.com");
            let user = store.create_user(name, &email, "correct-horse-7", false);
            let user = user.await.expect("a user").id;
            users.push((user, store.create_token(user).await.expect("a session")));
        }
        let app = App {
            agent: "main".into(),
            slug: "code".into(),
            url: match input["app_url_query"].as_str() {
                Some(query) => format!("http://localhost:8080/?{query}"),
                None => "http://localhost:8080".to_owned(),
            },
            subdomain: true,
            share: match (text(input, "app_share"), &input["behavior"]) {
                ("", Value::Null) => ShareLevel::Owner,
                ("", _) => text(input, "share").parse().expect("a level"),
                (level, _) => level.parse().expect("a level"),
            },
            healthcheck: input.get("health").map(|_| HealthCheck {
                url: "http://localhost:8080".into(),
                interval: 5,
                threshold: 1,
            }),
            ..App::default()
        };
        let definition = Definition {
            agents: vec!["main".into()],
            apps: vec![app],
        };
        let template = store.add_template("web", &definition);
        let template = template.await.expect("a template");
        if passthru {
            let set = store.set_template(template.id, None, Some(CorsBehavior::Passthru));
            set.await.expect("a stored behavior");
        }
        let template = store.template(template.id).await.expect("a template");
        let template = template.expect("a template");
        let workspace = store.create_workspace_from(users[0].0, "dev", &template, &[]);
        let workspace = workspace.await.expect("a workspace");
        Self {
            workspace: workspace.id,
            agent: workspace.agents[0].id,
            alice: users[0].1.clone(),
            bob: users[1].1.clone(),
            heads,
            server,
            _data: data,
        }
    }

    /// Sends `METHOD https://host/path`.
    async fn request(&self, request: &str, headers: &[(String, String)]) -> Answer {
        let (method, url) = request.split_once(' ').expect("a method and a URL");
        let rest = url.strip_prefix("https://").expect("an https URL");
        let (host, path) = rest.split_at(rest.find('/').expect("a path"));
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("Content-Length: 0\r\n\r\n");
        let stream = TcpStream::connect(self.server.local_addr()).await;
        let mut stream = stream.expect("a connection");
        let sent = stream.write_all(head.as_bytes()).await;
        sent.expect("the request leaves");
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer).await;
        read.expect("an answer");
        Answer::parse(&answer, headers)
    }

    /// The auth-redirect, as the owner.
    async fn redirect(&self, query: &str) -> Answer {
        let url = format!("GET https://{DASHBOARD}/api/v2/applications/auth-redirect{query}");
        self.request(&url, &[self.session()]).await
    }

    fn session(&self) -> (String, String) {
        ("Coder-Session-Token".to_owned(), self.alice.clone())
    }

    /// A key as it is in the cookie for all apps.
    async fn app_cookie(&self) -> String {
        let store = self.server.store();
        let session = store.session(&self.alice).await.expect("a session");
        let session = session.expect("a session");
        let key = store.create_app_key(&session, session.expires_at).await;
        key.expect("a key")
    }

    /// A key as it comes back from a login.
    async fn one_time_key(&self, not_in_it: &str) -> String {
        let query = format!("?redirect_uri=https%3A%2F%2F{PORT_HOST}%2F");
        let answer = self.redirect(&query).await;
        let location = answer.header("location");
        assert!(!location.contains(not_in_it) && !location.contains(&self.alice));
        let (_, key) = location.rsplit_once('=').expect("a key");
        key.to_owned()
    }

    async fn signed_token(&self, host: &str) -> String {
        let request = format!("GET https://{host}/");
        let answer = self.request(&request, &[self.session()]).await;
        let cookie = answer.cookie(TOKEN).expect("a signed token");
        let value = cookie.split(';').next().unwrap_or_default();
        value.to_owned()
    }

    async fn stop(&self) {
        let path = format!("/api/v2/workspaces/{}/builds", self.workspace);
        let body = r#"{"transition":"stop"}"#;
        let (alice, length) = (&self.alice, body.len());
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {DASHBOARD}\r\nConnection: close\r\n\
             Coder-Session-Token: {alice}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let stream = TcpStream::connect(self.server.local_addr()).await;
        let mut stream = stream.expect("a connection");
        let sent = stream.write_all(request.as_bytes()).await;
        sent.expect("the request leaves");
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer).await;
        read.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }
}

/// An app that notes each request's head; with `passthru` it decides about origins itself.
async fn app(heads: Heads, passthru: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("a port").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let heads = Arc::clone(&heads);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let mut answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n".to_owned();
                let origin = header_of(&head, "origin");
                if let Some(origin) = origin.filter(|_| passthru) {
                    answer.push_str(&format!(
                        "Access-Control-Allow-Origin: {origin}\r\n\
                         Access-Control-Allow-Credentials: true\r\n\
                         Access-Control-Allow-Methods: GET\r\n"
                    ));
                }
                answer.push_str("\r\n");
                heads
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(head);
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    port
}

fn header_of(head: &str, wanted: &str) -> Option<String> {
    let lines = head.lines().skip(1);
    let mut pairs = lines.filter_map(|line| line.split_once(": "));
    let found = pairs.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
    found.map(|(_, value)| value.to_owned())
}

/// An answer, and what was sent.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    sent: Vec<(String, String)>,
}

impl Answer {
    fn parse(answer: &str, sent: &[(String, String)]) -> Self {
        let (head, _) = answer.split_once("\r\n\r\n").expect("an answer");
        let status = head.split(' ').nth(1);
        let headers = head.lines().skip(1);
        Self {
            status: status.and_then(|s| s.parse().ok()).expect("a status"),
            headers: headers
                .filter_map(|line| line.split_once(": "))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect(),
            sent: sent.to_vec(),
        }
    }

    fn find(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    }

    fn header(&self, name: &str) -> &str {
        self.find(name).unwrap_or_default()
    }

    /// What the answer sets a cookie to, with its attributes.
    fn cookie(&self, name: &str) -> Option<&str> {
        let cookies = self.headers.iter().filter(|(name, _)| name == "set-cookie");
        let mut values = cookies.filter_map(|(_, line)| line.split_once('='));
        values
            .find(|(found, _)| *found == name)
            .map(|(_, rest)| rest)
    }

    fn location(&self) -> Url {
        let base = Url::parse(&format!("https://{DASHBOARD}")).expect("a URL");
        base.join(self.header("location")).expect("a location")
    }

    /// The facts that a row expects, as they are.
    fn as_expected(&self, expect: &Value, site: &Site) -> Value {
        let heads = site.heads.lock().unwrap_or_else(PoisonError::into_inner);
        let app_saw = |name: &str| heads.last().and_then(|head| header_of(head, name));
        let allow = |name: &str| {
            let value = self.find(&format!("access-control-allow-{name}"));
            let own = format!("https://{CODE_HOST}");
            json!(value.map(|value| value.replace(&own, "<own app origin>")))
        };
        let fact = |key: &str, expected: &Value| match key {
            "status" => json!(self.status),
            "status_not" if self.status == expected.as_u64().unwrap_or(0) as u16 => Value::Null,
            "status_not" => expected.clone(),
            "content_type" => json!(self.header("content-type")),
            "location" => json!(self.header("location")),
            "location_path" => json!(self.location().path()),
            "location_query" => json!(self.location().query()),
            "location_query_keys" => {
                let url = self.location();
                let keys = url.query_pairs().map(|(key, _)| key.into_owned());
                json!(keys.collect::<Vec<_>>())
            }
            "has_location" => json!(self.find("location").is_some()),
            "authorization_forwarded_to_app" => {
                let sent = self.sent.iter().find(|(name, _)| name == "Authorization");
                json!(sent.is_some() && app_saw("authorization") == sent.map(|(_, v)| v.clone()))
            }
            "reaches_app" => json!(!heads.is_empty()),
            "app_sees" => {
                let names = expected.as_array().into_iter().flatten();
                json!(
                    names
                        .filter(|name| app_saw(name.as_str().unwrap_or_default()).is_some())
                        .collect::<Vec<_>>()
                )
            }
            "allow_origin" => allow("origin"),
            "allow_methods" => allow("methods"),
            "allow_headers" => allow("headers"),
            "allow_credentials" => allow("credentials"),
            "handled_by" if self.status == 200 && heads.is_empty() => expected.clone(),
            "set_cookie" => self.cookie_facts(expected),
            _ => Value::Null,
        };
        let facts = expect.as_object().into_iter().flatten();
        let facts: BTreeMap<_, _> = facts.map(|(key, value)| (key, fact(key, value))).collect();
        json!(facts)
    }

    fn cookie_facts(&self, expect: &Value) -> Value {
        let name = text(expect, "name");
        let Some(line) = self.cookie(name) else {
            return Value::Null;
        };
        let (value, attributes) = line.split_once("; ").expect("attributes");
        let attribute = |wanted: &str| {
            attributes
                .split("; ")
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
                .map(|(_, value)| value)
        };
        let fact = |key: &str, expected: &Value| match key {
            "name" => json!(name),
            "value" if self.sent.iter().all(|(_, sent)| !sent.contains(value)) => json!("new"),
            "domain" | "path" => json!(attribute(key)),
            "http_only" => json!(attribute("httponly").is_some()),
            "expires" => json!(attribute("expires").or_else(|| attribute("max-age"))),
            // The server of the row has the default settings.
            "same_site" if attribute("samesite") == Some("Lax") => expected.clone(),
            "secure" if attribute("secure").is_none() => expected.clone(),
            _ => Value::Null,
        };
        let facts = expect.as_object().into_iter().flatten();
        let facts: BTreeMap<_, _> = facts.map(|(key, value)| (key, fact(key, value))).collect();
        json!(facts)
    }
}
