//! A server with users, a workspace and apps; and a browser that is a few lines of HTTP.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use relay_server::apps::access::ShareLevel;
use relay_server::apps::hostname::Protocol;
use relay_server::apps::ports::Share;
use relay_server::apps::settings::{Choices, Wildcard};
use relay_server::{
    App, Config, CorsBehavior, CreatedWorkspace, Definition, Dial, DialError, Server, StunAddress,
    TlsFiles,
};
use relay_tunnel::path::PathState;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use url::Url;
use uuid::Uuid;

/// Nothing here takes this long unless it never comes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The dashboard's host.
pub(crate) const DASHBOARD: &str = "relay.example.com";
/// The wildcard's part behind the asterisk.
pub(crate) const APPS: &str = "apps.example.com";

/// Leads to this machine's own loopback, and counts.
#[derive(Default)]
pub(crate) struct Loopback {
    pub(crate) dials: AtomicUsize,
    /// Names of the threads that dialled.
    pub(crate) threads: Mutex<Vec<String>>,
}

impl Dial for Loopback {
    fn dial(&self, _: Uuid, port: u16) -> BoxFuture<'_, Result<TcpStream, DialError>> {
        self.dials.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        self.threads.lock().unwrap().push(thread);
        Box::pin(async move {
            match port {
                // A port of an agent that is gone.
                9 => return Err(DialError::NotConnected),
                _ => TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await,
            }
            .map_err(|error| match error.kind() {
                io::ErrorKind::ConnectionRefused => DialError::Refused,
                _ => DialError::Io(error),
            })
        })
    }

    fn path(&self, _: Uuid) -> Option<PathState> {
        None
    }
}

/// A running server with what the tests need.
pub(crate) struct Site {
    pub(crate) server: Server,
    pub(crate) dialer: Arc<Loopback>,
    pub(crate) workspace: CreatedWorkspace,
    /// Sessions of the owner, another user and an administrator.
    pub(crate) alice: String,
    pub(crate) bob: String,
    pub(crate) admin: String,
    pub(crate) data: TempDir,
}

impl Site {
    pub(crate) async fn start() -> Self {
        Self::with(Choices::default(), Vec::new()).await
    }

    /// A server with these choices, and a template with these apps.
    pub(crate) async fn with(choices: Choices, apps: Vec<App>) -> Self {
        Self::made(choices, apps, None).await
    }

    /// A server that speaks TLS with this certificate.
    pub(crate) async fn with_tls(files: TlsFiles) -> Self {
        Self::made(Choices::default(), Vec::new(), Some(files)).await
    }

    async fn made(choices: Choices, apps: Vec<App>, tls: Option<TlsFiles>) -> Self {
        let data = TempDir::new().unwrap();
        let dialer = Arc::new(Loopback::default());
        let wildcard = match choices.wildcard {
            Wildcard::Default => Wildcard::Pattern(format!("*.{APPS}").parse().unwrap()),
            chosen => chosen,
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let is_plain = tls.is_none();
        let config = Config {
            stun: StunAddress::Off,
            access_url: Some(Url::parse(&format!("https://{DASHBOARD}")).unwrap()),
            apps: Choices {
                wildcard,
                ..choices
            },
            dialer: Some(dialer.clone()),
            tls,
            ..Config::new(address, data.path().join("data"))
        };
        let server = Server::start(config).await.unwrap();
        let store = server.store();
        let mut sessions = Vec::new();
        let mut owner = Uuid::nil();
        for (name, admin) in [("alice", false), ("bob", false), ("admin", true)] {
            let email = format!("{name}@example.com");
            let user = store.create_user(name, &email, "correct-horse-7", admin);
            let user = user.await.unwrap();
            if name == "alice" {
                owner = user.id;
            }
            sessions.push(store.create_token(user.id).await.unwrap());
        }
        let definition = Definition {
            agents: vec!["main".into()],
            apps,
        };
        let template = store.add_template("web", &definition).await.unwrap();
        let workspace = store
            .create_workspace_from(owner, "dev", &template, &[])
            .await
            .unwrap();
        let [alice, bob, admin] = sessions.try_into().unwrap();
        let site = Self {
            server,
            dialer,
            workspace,
            alice,
            bob,
            admin,
            data,
        };
        if is_plain {
            site.notice().await;
        }
        site
    }

    /// Has the server notice now what was changed in the store without it, as it does after every
    /// request that may change something; rights that it gives from then on stay good.
    async fn notice(&self) {
        let request = request("POST", DASHBOARD, "/notice", &[]);
        assert_ne!(self.send(request).await.status, 200);
    }

    pub(crate) async fn share(&self, port: u16, level: ShareLevel) {
        let share = Share {
            agent_name: "main".into(),
            port,
            level,
            protocol: Protocol::Http,
        };
        let store = self.server.store();
        store.put_share(self.workspace.id, &share).await.unwrap();
        self.notice().await;
    }

    pub(crate) async fn cors(&self, behavior: CorsBehavior) {
        let store = self.server.store();
        let template = store.template_by_name("web").await.unwrap().unwrap();
        store
            .set_template(template.id, None, Some(behavior))
            .await
            .unwrap();
        self.notice().await;
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.server.local_addr()).await.unwrap()
    }

    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Seen {
        let stream = self.connect().await;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let answer = soon(sender.send_request(request)).await.unwrap();
        let seen = Seen::read(answer).await;
        connection.abort();
        seen
    }

    /// A GET of a host's path with headers.
    pub(crate) async fn get(&self, host: &str, path: &str, headers: &[(&str, &str)]) -> Seen {
        self.send(request("GET", host, path, headers)).await
    }

    /// A GET of a port as the user of a session.
    pub(crate) async fn open(&self, port: u16, path: &str, session: &str) -> Seen {
        let header = [("coder-session-token", session)];
        let header = if session.is_empty() { &[][..] } else { &header };
        self.get(&port_host(port), path, header).await
    }
}

/// The host of a port of the workspace.
pub(crate) fn port_host(port: impl std::fmt::Display) -> String {
    format!("{port}--main--dev--alice.{APPS}")
}

pub(crate) fn request(
    method: &str,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

/// An answer that was read.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) async fn read(answer: Response<hyper::body::Incoming>) -> Self {
        let (parts, body) = answer.into_parts();
        Self {
            status: parts.status,
            headers: parts.headers,
            body: soon(body.collect()).await.unwrap().to_bytes(),
        }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// The value of a cookie that the answer sets.
    pub(crate) fn cookie(&self, name: &str) -> Option<&str> {
        self.headers
            .get_all("set-cookie")
            .iter()
            .filter_map(|line| line.to_str().ok())
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|rest| rest.split(';').next().unwrap())
    }
}

/// Fails a test that waits for what does not come.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("it does not come")
}

/// An app that reads each request to its end and answers it with its head, as the app saw it; gives the port.
pub(crate) async fn echo() -> u16 {
    serve(async |mut stream: TcpStream| {
        use tokio::io::AsyncWriteExt;
        while let Some(head) = read_request(&mut stream).await {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", head.len());
            if stream.write_all(answer.as_bytes()).await.is_err()
                || stream.write_all(&head).await.is_err()
            {
                return;
            }
        }
    })
    .await
}

/// The head of a connection's next request, when its body was read too; `None` when there is none.
async fn read_request(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let head = read_until(stream, b"\r\n\r\n").await?;
    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    if value("transfer-encoding: chunked").is_some() {
        read_until(stream, b"0\r\n\r\n").await?;
    } else if let Some(length) = value("content-length: ") {
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).await.ok()?;
    }
    Some(head)
}

/// What comes up to the first `end`, with it.
async fn read_until(stream: &mut TcpStream, end: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        bytes.push(stream.read_u8().await.ok()?);
    }
    Some(bytes)
}

/// An app that treats each connection so; gives the port.
pub(crate) async fn serve<F>(treat: impl Fn(TcpStream) -> F + Send + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(treat(stream));
        }
    });
    port
}

/// A port that nothing listens on.
pub(crate) async fn closed_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    listener.local_addr().unwrap().port()
}
