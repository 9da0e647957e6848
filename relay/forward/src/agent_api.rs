//! The agent's own HTTP API, on a port of the tunnel that is never an app's: what listens in the
//! workspace (coder_facts §2.17), and streams that relay's agents alone know: to a Unix socket, from
//! a listener, and for each of its connections.

use std::io;
use std::time::Duration;

use relay_wire::same_host::{self, Invitation, Secret};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::way::Way;

/// The port of the tunnel on which it is served.
const PORT: u16 = 4;
/// How long the agent may take to answer; it may have to dial.
const ANSWER: Duration = Duration::from_secs(20);
/// The longest head of an answer, and the longest list of ports, bytes.
const LONGEST_HEAD: usize = 8 << 10;
const LONGEST_LIST: u64 = 2 << 20;
/// What the streams speak.
const PROTOCOL: &str = "relay-stream";

/// A port that something listens on in the workspace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Port {
    #[serde(default)]
    pub(crate) process_name: String,
    pub(crate) port: u16,
}

#[derive(Deserialize)]
struct Ports {
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize)]
struct Message {
    message: String,
}

/// All that listens in the workspace, as its agent tells it.
pub(crate) async fn listening<W: Way>(way: &W) -> io::Result<Vec<Port>> {
    let mut stream = connect(way).await?;
    // HTTP/1.0, so that the answer ends with the connection.
    let request = "GET /api/v0/listening-ports HTTP/1.0\r\nHost: agent\r\n\r\n";
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        (&mut stream)
            .take(LONGEST_LIST)
            .read_to_end(&mut answer)
            .await?;
        Ok(answer)
    };
    let answer = within(exchange).await?;
    let head = Head::read(&answer)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let body = &answer[head.length..];
    if head.status != 200 {
        return Err(refusal(head.status, body));
    }
    let list: Ports = serde_json::from_slice(body)?;
    Ok(list.ports.unwrap_or_default())
}

/// Asks where an agent that runs on this machine listens, and with what one is let in there.
pub(crate) async fn invite<W: Way>(way: &W, challenge: &Secret) -> io::Result<Invitation> {
    let mut stream = connect(way).await?;
    let request = format!(
        "POST {} HTTP/1.0\r\nHost: agent\r\n{}: {}\r\nContent-Length: 0\r\n\r\n",
        same_host::PATH,
        same_host::CHALLENGE,
        challenge.reveal_hex()
    );
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let mut limited = (&mut stream).take(LONGEST_HEAD as u64);
        limited.read_to_end(&mut answer).await?;
        Ok(answer)
    };
    let answer = within(exchange).await?;
    let head = Head::read(&answer)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let body = &answer[head.length..];
    match head.status {
        200 => {
            let text = std::str::from_utf8(body).ok();
            text.and_then(Invitation::from_text)
                .ok_or_else(|| io::ErrorKind::InvalidData.into())
        }
        503 => Err(refusal(503, body)),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// A stream to a Unix socket of the workspace.
pub(crate) async fn dial_socket<W: Way>(way: &W, path: &str) -> io::Result<TcpStream> {
    upgrade(way, &format!("dial?unix={}", escaped(path))).await
}

/// Asks the agent to listen on a port or a socket. A line comes for each connection.
pub(crate) async fn listen<W: Way>(way: &W, place: Place<'_>) -> io::Result<TcpStream> {
    let target = match place {
        Place::Port(port) => format!("listen?port={port}"),
        Place::Socket(path) => format!("listen?unix={}", escaped(path)),
    };
    upgrade(way, &target).await
}

/// Where the agent listens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    Port(u16),
    Socket(&'a str),
}

/// A connection that such a listener accepted.
pub(crate) async fn take<W: Way>(way: &W, id: u64) -> io::Result<TcpStream> {
    upgrade(way, &format!("connection?id={id}")).await
}

async fn upgrade<W: Way>(way: &W, target: &str) -> io::Result<TcpStream> {
    let mut stream = connect(way).await?;
    let request = format!(
        "GET /api/v0/relay/{target} HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: \
         {PROTOCOL}\r\n\r\n"
    );
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        switched(&mut stream).await
    };
    within(exchange).await?;
    Ok(stream)
}

async fn connect<W: Way>(way: &W) -> io::Result<TcpStream> {
    match way.connect(PORT, &[]).await {
        Ok((stream, _)) => Ok(stream),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(io::Error::other(
            "the agent has no API of its own; it is too old",
        )),
        Err(error) => Err(error),
    }
}

async fn within<T>(exchange: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(ANSWER, exchange).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the agent does not answer",
        )),
    }
}

/// Reads the head of the answer and not a byte more: what follows is the stream's.
async fn switched(stream: &mut TcpStream) -> io::Result<()> {
    let mut taken = Vec::new();
    let mut buffer = vec![0; LONGEST_HEAD];
    let head = loop {
        let count = stream.peek(&mut buffer).await?;
        let before = taken.len();
        taken.extend_from_slice(&buffer[..count]);
        if let Some(head) = Head::read(&taken)? {
            stream
                .read_exact(&mut buffer[..head.length - before])
                .await?;
            break head;
        }
        if count == 0 || taken.len() >= LONGEST_HEAD {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // All of it belongs to the head, whose end is still to come.
        stream.read_exact(&mut buffer[..count]).await?;
    };
    if head.status == 101 {
        return Ok(());
    }
    let mut body = vec![0; head.body.min(LONGEST_HEAD)];
    // Without what it says about itself, its number says enough.
    if stream.read_exact(&mut body).await.is_err() {
        body.clear();
    }
    Err(refusal(head.status, &body))
}

/// The head of an answer.
struct Head {
    status: u16,
    /// Bytes of the head, and of what follows, where that is told.
    length: usize,
    body: usize,
}

impl Head {
    /// Reads a head, as soon as all of it is there.
    fn read(bytes: &[u8]) -> io::Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut answer = httparse::Response::new(&mut headers);
        let length = match answer.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        };
        let status = answer.code.unwrap_or_default();
        let mut named = headers.iter();
        let body = named.find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let body = body.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
        Ok(Some(Self {
            status,
            length,
            body: body.unwrap_or(0),
        }))
    }
}

/// What the agent says about why not.
fn refusal(status: u16, body: &[u8]) -> io::Error {
    if status == 404 {
        return io::Error::new(
            io::ErrorKind::Unsupported,
            "the agent does not know how; it takes one of relay, of this version",
        );
    }
    let kind = match status {
        409 => io::ErrorKind::AddrInUse,
        _ => io::ErrorKind::Other,
    };
    let text = match serde_json::from_slice::<Message>(body) {
        Ok(said) => said.message,
        Err(_) => format!("the agent answers {status}"),
    };
    io::Error::new(kind, text)
}

/// A path as the value of a query.
fn escaped(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                text.push(char::from(byte));
            }
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_path_is_escaped_byte_by_byte() {
        assert_eq!(escaped("/run/a b%&é.sock"), "/run/a%20b%25%26%C3%A9.sock");
    }

    /// What comes of an answer, and what is left on the stream.
    async fn answered(pieces: &'static [&'static str]) -> (io::Result<()>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.unwrap();
            for piece in pieces {
                peer.write_all(piece.as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let mut stream = TcpStream::connect(address).await.unwrap();
        let result = switched(&mut stream).await;
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        (result, rest)
    }

    #[tokio::test]
    async fn what_follows_the_head_is_the_streams() {
        let (result, rest) = answered(&[
            "HTTP/1.1 101 Switch",
            "ing\r\nUpgrade: x\r\n\r\nfirst",
            " and more",
        ])
        .await;
        result.unwrap();
        assert_eq!(rest, "first and more");
    }

    #[tokio::test]
    async fn a_refusal_is_told_in_the_agents_words() {
        let error = answered(&[
            "HTTP/1.1 409 Conflict\r\nContent-Length: 22\r\n\r\n",
            "{\"message\":\"it is so\"}",
        ])
        .await
        .0
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(error.to_string(), "it is so");
        let unknown = answered(&["HTTP/1.1 404 Not Found\r\n\r\n"]).await.0;
        assert_eq!(unknown.unwrap_err().kind(), io::ErrorKind::Unsupported);
        for broken in [&["SSH-2.0-x\r\n\r\n"][..], &["HTTP/1.1 101"], &[""]] {
            assert!(answered(broken).await.0.is_err(), "{broken:?}");
        }
    }
}
