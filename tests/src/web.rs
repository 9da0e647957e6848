//! Web apps as workspaces serve them, written by hand so that a test sees exactly what reached
//! them.
//!
//! Paths: `/ws` WebSocket echo · `/open` lets every origin in, as far as it may say so · `/headers` the request as JSON · `/length` how long its body was ·
//! `/cookie` sets one · `/silent` never answers and reads no body · `/drip` the start of an answer,
//! never its end · `/endless` an answer without an end · all others a page with the app's name.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::SockRef;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket};

use crate::net::Host;

/// Longest head that an app reads.
const HEAD: usize = 1 << 20;
/// Most bytes of a body that are kept for the test to look at.
const KEPT: usize = 64 << 10;

/// A request as it reached an app.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Method, target and version.
    pub line: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The start of its body.
    pub body: Vec<u8>,
    /// Length of the whole body.
    pub length: u64,
}

impl Seen {
    /// The values of a header, joined.
    pub fn header(&self, name: &str) -> String {
        let values = self.headers.iter().filter(|(found, _)| found == name);
        let values: Vec<&str> = values.map(|(_, value)| value.as_str()).collect();
        values.join(", ")
    }

    fn path(&self) -> &str {
        let target = self.line.split(' ').nth(1).unwrap_or_default();
        target.split('?').next().unwrap_or_default()
    }
}

/// A running app. It ends, with its connections, when dropped.
pub struct WebApp {
    shared: Arc<Shared>,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    name: String,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    ended: bool,
    connections: Vec<TcpStream>,
    seen: Vec<Seen>,
}

impl WebApp {
    /// Serves on a port of the host's loopback.
    ///
    /// # Panics
    /// When the port is taken.
    pub fn start(host: &Host, port: u16, name: &str) -> WebApp {
        WebApp::serve(host, port, name, None)
    }

    /// The same over TLS, with a certificate that nobody signed but itself.
    ///
    /// # Panics
    /// When the port is taken.
    pub fn start_tls(host: &Host, port: u16, name: &str) -> WebApp {
        WebApp::serve(host, port, name, Some(Arc::new(self_signed())))
    }

    fn serve(host: &Host, port: u16, name: &str, tls: Option<Arc<ServerConfig>>) -> WebApp {
        let listener = host.listen((Ipv4Addr::LOCALHOST, port));
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            state: Mutex::default(),
            ended: Condvar::new(),
        });
        let (accepting, state) = (listener.try_clone().expect("listener"), Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            for stream in accepting.incoming() {
                let Ok(stream) = stream else { break };
                state.hold(&stream);
                let (state, tls) = (Arc::clone(&state), tls.clone());
                std::thread::spawn(move || {
                    let _ = match tls {
                        None => state.converse(stream),
                        Some(tls) => match ServerConnection::new(tls) {
                            Ok(session) => state.converse(StreamOwned::new(session, stream)),
                            Err(error) => Err(io::Error::other(error)),
                        },
                    };
                });
            }
        });
        WebApp {
            shared,
            listener,
            thread: Some(thread),
        }
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.clone()
    }

    /// The requests so far, which are forgotten.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.shared.lock().seen)
    }
}

impl Drop for WebApp {
    fn drop(&mut self) {
        // Wakes the thread that accepts.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let mut state = self.shared.lock();
        state.ended = true;
        for connection in &state.connections {
            let _ = connection.shutdown(Shutdown::Both);
        }
        self.shared.ended.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a connection, to end it with the app.
    fn hold(&self, stream: &TcpStream) {
        let _ = stream.set_nodelay(true);
        if let Ok(stream) = stream.try_clone() {
            self.lock().connections.push(stream);
        }
    }

    /// Waits until the app ends.
    fn wait_end(&self) {
        let mut state = self.lock();
        while !state.ended {
            let waited = self.ended.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Answers requests until the connection ends.
    fn converse<S: Read + Write>(&self, stream: S) -> io::Result<()> {
        let mut connection = Connection {
            stream,
            buffer: Vec::new(),
        };
        while let Some(mut request) = connection.head()? {
            let path = request.path().to_owned();
            if path == "/silent" {
                self.lock().seen.push(request);
                self.wait_end();
                return Ok(());
            }
            let whole = connection.body(&mut request);
            self.lock().seen.push(request.clone());
            whole?;
            if path == "/ws" && !request.header("sec-websocket-key").is_empty() {
                return echo(connection.stream, &request);
            }
            self.answer(&mut connection.stream, &path, &request)?;
        }
        Ok(())
    }

    fn answer(&self, out: &mut impl Write, path: &str, request: &Seen) -> io::Result<()> {
        let mut more = String::new();
        let (kind, body) = match path {
            "/headers" => {
                let seen = serde_json::json!({ "line": request.line, "headers": request.headers });
                ("application/json", seen.to_string())
            }
            "/length" => ("text/plain", request.length.to_string()),
            "/cookie" => {
                more.push_str("Set-Cookie: theme=dark; Path=/\r\n");
                more.push_str("Set-Cookie: coder_session_token=of-the-app; Path=/\r\n");
                ("text/plain", "set".to_owned())
            }
            "/open" => {
                let origin = request.header("origin");
                for (name, value) in [
                    ("Allow-Origin", origin.as_str()),
                    ("Allow-Credentials", "true"),
                    ("Allow-Methods", "PUT"),
                    ("Allow-Headers", "x-mine"),
                ] {
                    more.push_str(&format!("Access-Control-{name}: {value}\r\n"));
                }
                ("text/plain", format!("open at {}", self.name))
            }
            "/drip" => {
                let start = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nthe first part";
                out.write_all(start.as_bytes())?;
                out.flush()?;
                self.wait_end();
                return Ok(());
            }
            "/endless" => {
                out.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
                loop {
                    out.write_all(&[b'x'; 64 << 10])?;
                }
            }
            _ => ("text/html; charset=utf-8", self.page(path)),
        };
        let length = body.len();
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{more}\r\n"
        );
        if !request.line.starts_with("HEAD ") {
            answer.push_str(&body);
        }
        out.write_all(answer.as_bytes())?;
        out.flush()
    }

    fn page(&self, path: &str) -> String {
        let name = &self.name;
        let path: String = path
            .chars()
            .filter(|letter| letter.is_ascii_alphanumeric() || *letter == '/')
            .collect();
        format!(
            "<!doctype html><html lang=\"en\"><title>{name}</title><link rel=\"icon\" href=\"data:,\">\
             <h1 id=\"name\">{name}</h1><p id=\"path\">{path}</p></html>"
        )
    }
}

fn echo<S: Read + Write>(mut stream: S, request: &Seen) -> io::Result<()> {
    let accept = derive_accept_key(request.header("sec-websocket-key").as_bytes());
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.flush()?;
    let mut socket = WebSocket::from_raw_socket(stream, Role::Server, None);
    while let Ok(message) = socket.read() {
        if (message.is_text() || message.is_binary()) && socket.send(message).is_err() {
            break;
        }
    }
    Ok(())
}

fn self_signed() -> ServerConfig {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("certificate");
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("certificate")
}

/// A connection, read strictly: what two readers could read in two ways is an error.
struct Connection<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: Read> Connection<S> {
    /// The next request's head; `None` at the end.
    fn head(&mut self) -> io::Result<Option<Seen>> {
        let end = loop {
            let found = self.buffer.windows(4).position(|w| w == b"\r\n\r\n");
            if let Some(found) = found {
                break found;
            }
            if !self.more()? {
                return Ok(None);
            }
            if self.buffer.len() > HEAD {
                return Err(bad("the head is too long"));
            }
        };
        let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
        let head = String::from_utf8_lossy(&head[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            (name.to_ascii_lowercase(), value.trim().to_owned())
        });
        Ok(Some(Seen {
            line,
            headers: headers.collect(),
            ..Seen::default()
        }))
    }

    /// Reads the request's body.
    fn body(&mut self, request: &mut Seen) -> io::Result<()> {
        let (coding, length) = (
            request.header("transfer-encoding"),
            request.header("content-length"),
        );
        match (coding.as_str(), length.as_str()) {
            ("", "") => Ok(()),
            ("", length) => {
                let length = length.parse().map_err(|_| bad("no length"))?;
                self.part(request, length)
            }
            ("chunked", "") => loop {
                let line = self.line()?;
                let length = u64::from_str_radix(&line, 16).map_err(|_| bad("no chunk"))?;
                self.part(request, length)?;
                if !self.line()?.is_empty() {
                    return Err(bad("a chunk does not end"));
                }
                if length == 0 {
                    return Ok(());
                }
            },
            _ => Err(bad("an ambiguous length")),
        }
    }

    fn part(&mut self, request: &mut Seen, mut left: u64) -> io::Result<()> {
        while left > 0 {
            if self.buffer.is_empty() && !self.more()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            let count = self.buffer.len().min(most);
            let room = KEPT.saturating_sub(request.body.len()).min(count);
            request.body.extend_from_slice(&self.buffer[..room]);
            self.buffer.drain(..count);
            request.length += count as u64;
            left -= count as u64;
        }
        Ok(())
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.more()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn more(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 64 << 10];
        let count = self.stream.read(&mut buffer)?;
        self.buffer.extend_from_slice(&buffer[..count]);
        Ok(count > 0)
    }
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}
