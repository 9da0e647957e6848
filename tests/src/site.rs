//! The way into workspaces by a browser, on one machine: a server, two users with a workspace each,
//! and requests written by hand. All of it is on the loopback of a namespace.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::MutexGuard;

use tempfile::TempDir;

use crate::PATIENCE;
use crate::cluster::{HTTP, Options, alone, finish, start_server};
use crate::net::{Host, Namespace};
use crate::process::{Process, clean, relay_binary};

/// Every user's password.
pub const PASSWORD: &str = "correct-horse-7";

/// What workspaces are made of.
const TEMPLATE: &str = r#"
resource "coder_agent" "main" {}

resource "coder_app" "notes" {
  agent_id     = coder_agent.main.id
  slug         = "notes"
  display_name = "Notes"
  url          = "http://localhost:8005/base?from=template"
  subdomain    = true
  tooltip      = "What is written down here:\n\n- nothing that `runs`: <b>x</b>\n- [help](https://example.com/)"
  healthcheck {
    url       = "http://localhost:8005/healthz"
    interval  = 1
    threshold = 1
  }
}

resource "coder_app" "team" {
  agent_id     = coder_agent.main.id
  slug         = "team"
  display_name = "Team"
  url          = "http://localhost:8005"
  subdomain    = true
  share        = "authenticated"
  tooltip      = "For the *whole* team"
}

resource "coder_app" "files" {
  agent_id     = coder_agent.main.id
  slug         = "files"
  display_name = "Files"
  url          = "http://localhost:8005"
}
"#;

/// A user with a workspace `dev`, whose agent is `main`.
pub struct Account {
    /// Name of the user.
    pub name: String,
    /// A session token.
    pub session: String,
    /// Id of the workspace.
    pub workspace: uuid::Uuid,
    /// Id of its agent.
    pub agent_id: uuid::Uuid,
    /// The agent.
    pub agent: Process,
    token: String,
}

/// A running deployment.
pub struct Site {
    /// The machine that all of it runs on.
    pub machine: Host,
    /// `relay server`.
    pub server: Process,
    /// The first user.
    pub alice: Account,
    /// The second user.
    pub bob: Account,
    /// What follows an app's label in its host.
    suffix: String,
    home: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Site {
    /// Starts it as on a fresh machine: apps are at `*.localhost:3000`.
    ///
    /// # Panics
    /// When a part does not start, with its output.
    pub fn start() -> Site {
        Site::with(".localhost", &[])
    }

    /// Starts it with other flags; the suffix is that of the wildcard.
    ///
    /// # Panics
    /// As [`Site::start`].
    pub fn with(suffix: &str, flags: &[&'static str]) -> Site {
        let guard = alone();
        let home = TempDir::new().expect("temporary folder");
        let machine = Host {
            name: "machine".to_owned(),
            namespace: Namespace::new(),
            ipv4: Ipv4Addr::LOCALHOST,
            ipv6: Ipv6Addr::LOCALHOST,
        };
        let options = Options {
            server_flags: flags.to_vec(),
            ..Options::default()
        };
        let server = start_server(&machine, home.path(), &options);
        let file = home.path().join("web.tf");
        std::fs::write(&file, TEMPLATE).expect("template");
        let file = file.to_str().expect("path");
        administer(
            &machine,
            home.path(),
            &["template", "add", file, "--name", "web"],
        );
        let [alice, bob] = ["alice", "bob"].map(|name| Account::make(&machine, home.path(), name));
        for account in [&alice, &bob] {
            account.agent.wait_line("ready", PATIENCE);
        }
        Site {
            machine,
            server,
            alice,
            bob,
            suffix: suffix.to_owned(),
            home,
            _alone: guard,
        }
    }

    /// A folder for the test's files.
    pub fn folder(&self) -> &Path {
        self.home.path()
    }

    /// Runs `relay server WORDS` on the server's data and gives what it printed.
    pub fn administer(&self, words: &[&str]) -> String {
        administer(&self.machine, self.home.path(), words)
    }

    /// The dashboard's URL, with a path.
    pub fn dashboard(&self, path: &str) -> String {
        format!("http://127.0.0.1:{HTTP}{path}")
    }

    /// The host of an application or port (`8001`, `8443s`, `notes`) of a user.
    pub fn host(&self, app: &str, user: &str) -> String {
        let agent = if app.starts_with(|c: char| c.is_ascii_digit()) {
            "--main"
        } else {
            ""
        };
        format!("{app}{agent}--dev--{user}{}:{HTTP}", self.suffix)
    }

    /// Its URL, with a path.
    pub fn app(&self, app: &str, user: &str, path: &str) -> String {
        format!("http://{}{path}", self.host(app, user))
    }

    /// Shares a port of a user's workspace.
    ///
    /// # Panics
    /// When the server refuses to.
    pub fn share(&self, owner: &Account, port: u16, level: &str) {
        let share = serde_json::json!({
            "agent_name": "main", "port": port, "share_level": level, "protocol": "http",
        });
        let target = format!("/api/v2/workspaces/{}/port-share", owner.workspace);
        let request = Request::new("POST", &format!("127.0.0.1:{HTTP}"), &target)
            .header("Coder-Session-Token", &owner.session)
            .body(&share.to_string());
        let answer = self.send(&request);
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    /// Starts the first user's agent again.
    pub fn restart_agent(&mut self) {
        self.alice.agent.kill();
        self.alice.agent = start_agent(&self.machine, self.home.path(), &self.alice.token);
        self.alice.agent.wait_line("ready", PATIENCE);
    }

    /// A connection to the server.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn connect(&self) -> TcpStream {
        self.machine.local(HTTP).expect("connect to the server")
    }

    /// Sends one request and reads the answer to its end.
    pub fn send(&self, request: &Request) -> Answer {
        self.raw(request.text().as_bytes())
    }

    /// Sends bytes and reads what comes until the server closes the connection.
    ///
    /// # Panics
    /// When it does not close it in time.
    pub fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        // The server may have seen enough before all is sent.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        if let Err(error) = stream.read_to_end(&mut answer) {
            let waited = matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            );
            let start = String::from_utf8_lossy(&answer[..answer.len().min(2000)]).into_owned();
            assert!(!waited, "the server holds the connection after:\n{start}");
        }
        Answer::parse(&answer)
    }
}

impl Account {
    fn make(machine: &Host, home: &Path, name: &str) -> Account {
        let email = format!("{name}@example.com");
        let words = [
            "user",
            "create",
            name,
            "--email",
            &email,
            "--password",
            PASSWORD,
        ];
        administer(machine, home, &words);
        let session = administer(machine, home, &["token", "create", name]);
        let workspace = format!("{name}/dev");
        let words = [
            "workspace",
            "create",
            &workspace,
            "--template",
            "web",
            "-o",
            "json",
        ];
        let made = administer(machine, home, &words);
        let made: serde_json::Value = serde_json::from_str(&made).expect("JSON");
        let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
        let token = text(&made["agents"][0]["token"]);
        Account {
            name: name.to_owned(),
            session,
            workspace: text(&made["id"]).parse().expect("id"),
            agent_id: text(&made["agents"][0]["id"]).parse().expect("id"),
            agent: start_agent(machine, home, &token),
            token,
        }
    }
}

fn start_agent(machine: &Host, home: &Path, token: &str) -> Process {
    let mut command = clean(Command::new(relay_binary()), home);
    command
        .args(["agent", "--url", &format!("http://127.0.0.1:{HTTP}")])
        .env("CODER_AGENT_TOKEN", token);
    Process::start("agent", Some(machine), command)
}

fn administer(machine: &Host, home: &Path, words: &[&str]) -> String {
    let mut command = clean(Command::new(relay_binary()), home);
    command
        .arg("server")
        .args(words)
        .arg("--data-dir")
        .arg(home.join("data"));
    finish("relay server", machine, command)
        .success()
        .to_owned()
}

/// A request, as it will be written.
#[derive(Clone, Debug)]
pub struct Request {
    line: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Request {
    /// A request without headers but `Host` and `Connection: close`.
    pub fn new(method: &str, host: &str, target: &str) -> Request {
        Request {
            line: format!("{method} {target} HTTP/1.1"),
            headers: Vec::new(),
            body: String::new(),
        }
        .header("Host", host)
        .header("Connection", "close")
    }

    /// `GET`.
    pub fn get(host: &str, target: &str) -> Request {
        Request::new("GET", host, target)
    }

    /// `POST` of a form to the dashboard.
    pub fn form(target: &str, fields: &[(&str, &str)]) -> Request {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields)
            .finish();
        Request::new("POST", &format!("127.0.0.1:{HTTP}"), target)
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(&form)
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Request {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a cookie; more than one become one line.
    #[must_use]
    pub fn cookie(mut self, name: &str, value: &str) -> Request {
        let cookie = format!("{name}={value}");
        match self.headers.iter_mut().find(|(name, _)| name == "Cookie") {
            Some((_, line)) => *line = format!("{line}; {cookie}"),
            None => self.headers.push(("Cookie".to_owned(), cookie)),
        }
        self
    }

    /// Adds the session cookie of the dashboard.
    #[must_use]
    pub fn session(self, account: &Account) -> Request {
        self.cookie("coder_session_token", &account.session)
    }

    /// Sets the body and its length.
    #[must_use]
    pub fn body(mut self, body: &str) -> Request {
        body.clone_into(&mut self.body);
        self.header("Content-Length", &body.len().to_string())
    }

    /// As it is sent.
    pub fn text(&self) -> String {
        let mut text = format!("{}\r\n", self.line);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        format!("{text}\r\n{}", self.body)
    }
}

/// An answer, with all that came after its head as its body.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The status; 0 when the connection was closed without an answer.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// What came after the head.
    pub body: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Answer {
        let text = String::from_utf8_lossy(bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            return Answer::default();
        };
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let headers = lines.filter_map(|line| line.split_once(':'));
        Answer {
            status: status.and_then(|status| status.parse().ok()).unwrap_or(0),
            headers: headers
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect(),
            body: body.to_owned(),
        }
    }

    /// The first value of a header; empty without one.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(found, _)| found == name);
        found.map_or("", |(_, value)| value)
    }

    /// All cookies that it sets, with their attributes.
    pub fn cookies(&self) -> Vec<&str> {
        let found = self.headers.iter().filter(|(name, _)| name == "set-cookie");
        found.map(|(_, value)| value.as_str()).collect()
    }

    /// The cookie of that name, with its attributes.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        let start = format!("{name}=");
        let found = self.cookies().into_iter();
        found.into_iter().find(|cookie| cookie.starts_with(&start))
    }
}
