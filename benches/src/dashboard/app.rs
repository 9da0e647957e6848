//! The small HTTP app behind the dashboard: a page, a large file both ways, and a WebSocket.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::head::{Head, find_end};

/// Bytes of a small page.
const PAGE: usize = 1024;
/// Bytes of the large file.
pub(super) const LARGE: u64 = 64 << 20;
/// Path of the large file.
pub(super) const LARGE_PATH: &str = "/large";
/// Path of the WebSocket.
pub(super) const SOCKET_PATH: &str = "/socket";
/// Bytes that are read or written at once.
pub(super) const CHUNK: usize = 256 << 10;
/// Longest head of a request.
const HEAD: usize = 16 << 10;
/// The answer to the key of RFC 6455 §1.3, which is the one that clients here use.
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A running app; it ends with the process.
#[derive(Clone, Copy, Debug)]
pub(super) struct App {
    port: u16,
}

impl App {
    /// Starts the app on a free port of this machine's loopback.
    pub(super) fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        thread::Builder::new()
            .name("app-http".into())
            .spawn(move || accept(&listener))?;
        Ok(Self { port })
    }

    pub(super) fn port(self) -> u16 {
        self.port
    }
}

fn accept(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        // One small stack a connection: a thousand are open at once.
        let builder = thread::Builder::new().stack_size(64 << 10);
        let _ = builder.spawn(move || drop(serve(stream)));
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let page = page();
    let mut buffer = vec![0; HEAD];
    let mut filled = 0;
    loop {
        let Some(end) = find_end(&buffer[..filled]) else {
            match stream.read(&mut buffer[filled..])? {
                0 => return Ok(()),
                n => filled += n,
            }
            continue;
        };
        let ask = Ask::of(&buffer[..end])?;
        let behind = filled - end;
        match ask {
            Ask::Page => stream.write_all(&page)?,
            Ask::Download => send_large(&mut stream)?,
            Ask::Upload(length) => {
                // Nothing is pipelined behind a body here.
                take(&mut stream, length.saturating_sub(behind as u64))?;
                filled = end;
            }
            Ask::Socket => {
                buffer.truncate(filled);
                return socket(stream, buffer.split_off(end));
            }
        }
        buffer.copy_within(end..filled, 0);
        filled -= end;
    }
}

enum Ask {
    Page,
    Download,
    Upload(u64),
    Socket,
}

impl Ask {
    fn of(head: &[u8]) -> io::Result<Self> {
        let is =
            |method: &str, path: &str| head.starts_with(format!("{method} {path} ").as_bytes());
        if head.starts_with(b"GET / ") {
            Ok(Self::Page)
        } else if is("GET", LARGE_PATH) {
            Ok(Self::Download)
        } else if is("POST", LARGE_PATH) {
            Ok(Self::Upload(Head::parse(head)?.length))
        } else if is("GET", SOCKET_PATH) {
            Ok(Self::Socket)
        } else {
            Ok(Self::Page)
        }
    }
}

fn page() -> Vec<u8> {
    let mut page = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nCache-Control: no-cache\r\n\
         Server: bench\r\nContent-Length: {PAGE}\r\n\r\n"
    )
    .into_bytes();
    page.extend([b'.'; PAGE]);
    page
}

fn send_large(stream: &mut TcpStream) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {LARGE}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    let chunk = vec![0x5a; CHUNK];
    let mut left = LARGE;
    while left > 0 {
        let count = left.min(CHUNK as u64);
        stream.write_all(&chunk[..count as usize])?;
        left -= count;
    }
    Ok(())
}

/// Reads what is left of a body, and says how much it was.
fn take(stream: &mut TcpStream, mut left: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while left > 0 {
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => left = left.saturating_sub(n as u64),
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok")
}

/// Every byte comes back: the frames are not looked into.
fn socket(mut stream: TcpStream, early: Vec<u8>) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&early)?;
    drop(early);
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}
