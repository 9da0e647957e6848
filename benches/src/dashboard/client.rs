//! A client on one kept connection, as a browser has it, and the loads made of such clients.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::app::{CHUNK, LARGE, LARGE_PATH, SOCKET_PATH};
use super::head::{Head, bad, find_end};
use crate::load::{Bulk, Direction, Held, PATIENCE};

/// Name of the cookie that an app's answers renew.
pub(super) const APP_COOKIE: &str = "coder_signed_app_token";
/// Longest answer that is kept in memory.
const BUFFER: usize = 16 << 10;
/// What a browser sends besides.
const USUAL: &str = "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
     Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
     Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
     Sec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: same-origin\r\n";
/// A masked frame with a short text, which comes back as it went.
const FRAME: &[u8] = b"\x81\x84\x01\x02\x03\x04qkmc";

/// Where an app is, and what its visitor brings.
#[derive(Clone, Debug)]
pub(super) struct Site {
    /// What to connect to.
    pub(super) address: SocketAddr,
    /// The `Host` header.
    pub(super) host: String,
    /// Cookies, each `name=value`.
    pub(super) cookies: Vec<String>,
}

impl Site {
    pub(super) fn head(&self, method: &str, path: &str, more: &str) -> Vec<u8> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{USUAL}", self.host);
        if !self.cookies.is_empty() {
            head += &format!("Cookie: {}\r\n", self.cookies.join("; "));
        }
        head += more;
        head += "\r\n";
        head.into_bytes()
    }

    /// The same visitor without the cookie that an answer renews.
    pub(super) fn without_app_cookie(&self) -> Self {
        let mut site = self.clone();
        site.cookies.retain(|cookie| name_of(cookie) != APP_COOKIE);
        site
    }

    pub(super) fn keep(&mut self, cookie: &str) {
        self.cookies.retain(|kept| name_of(kept) != name_of(cookie));
        self.cookies.push(cookie.to_owned());
    }
}

pub(super) fn name_of(cookie: &str) -> &str {
    cookie.split_once('=').map_or(cookie, |(name, _)| name)
}

/// One connection that asks for the small page again and again.
struct Client {
    site: Site,
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
    filled: usize,
    /// Whether it keeps the cookies that it is given.
    keeps: bool,
}

impl Client {
    fn new(site: &Site) -> io::Result<Self> {
        Ok(Self {
            site: site.clone(),
            stream: connect(site.address)?,
            request: site.head("GET", "/", ""),
            buffer: vec![0; BUFFER],
            filled: 0,
            keeps: true,
        })
    }

    fn send(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.request)
    }

    /// Reads once; true when the answer is all there.
    fn receive(&mut self) -> io::Result<bool> {
        match crate::load::read(&mut self.stream, &mut self.buffer[self.filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => self.filled += n,
        }
        let Some(end) = find_end(&self.buffer[..self.filled]) else {
            return Ok(false);
        };
        let head = Head::parse(&self.buffer[..end])?;
        if head.status != 200 {
            return Err(bad(format!("the app answered {}", head.status)));
        }
        if (self.filled as u64) < end as u64 + head.length {
            return Ok(false);
        }
        let renewed = head.cookies.iter().filter(|_| self.keeps);
        let mut renewed = renewed.filter(|cookie| name_of(cookie) == APP_COOKIE);
        if let Some(cookie) = renewed.next_back() {
            self.site.keep(cookie);
            self.request = self.site.head("GET", "/", "");
        }
        self.filled = 0;
        Ok(true)
    }

    fn once(&mut self) -> io::Result<()> {
        self.send()?;
        while !self.receive()? {}
        Ok(())
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// What some clients at once got.
#[derive(Debug)]
pub(super) struct Requests {
    /// Answers a second.
    pub(super) rate: f64,
    /// What each request took, microseconds, sorted.
    pub(super) times: Vec<f64>,
}

/// Small requests one after the other on each of `clients` kept connections, for `length`.
///
/// # Errors
/// The first client's error, or an answer that is not 200.
pub(super) fn requests(site: &Site, clients: usize, length: Duration) -> io::Result<Requests> {
    let clients: io::Result<Vec<Client>> = (0..clients).map(|_| Client::new(site)).collect();
    let mut clients = clients?;
    // The first few pay for connections and caches.
    for client in &mut clients {
        for _ in 0..10 {
            client.once()?;
        }
    }
    let begin = Instant::now();
    let mut times = Vec::new();
    match &mut clients[..] {
        [client] => {
            while begin.elapsed() < length {
                let sent = Instant::now();
                client.once()?;
                times.push(micros(sent));
            }
        }
        clients => together(clients, length, &mut times)?,
    }
    let rate = times.len() as f64 / begin.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    Ok(Requests { rate, times })
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

/// All from one thread, which costs less than one each.
fn together(clients: &mut [Client], length: Duration, times: &mut Vec<f64>) -> io::Result<()> {
    let begin = Instant::now();
    let mut sent = vec![Some(begin); clients.len()];
    for client in clients.iter_mut() {
        client.send()?;
    }
    let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    let mut ready = Vec::with_capacity(clients.len());
    while sent.iter().any(Option::is_some) {
        let waiting = |index: &usize| sent[*index].is_some();
        let waiting: Vec<usize> = (0..clients.len()).filter(waiting).collect();
        let mut descriptors: Vec<PollFd<'_>> = waiting
            .iter()
            .map(|index| PollFd::new(clients[*index].stream.as_fd(), PollFlags::POLLIN))
            .collect();
        if poll(&mut descriptors, patience)? == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let came = waiting.iter().zip(&descriptors);
        let came = came.filter(|(_, descriptor)| descriptor.any() == Some(true));
        ready.clear();
        ready.extend(came.map(|(index, _)| *index));
        for &index in &ready {
            let client = &mut clients[index];
            if !client.receive()? {
                continue;
            }
            times.extend(sent[index].map(micros));
            sent[index] = None;
            if begin.elapsed() < length {
                sent[index] = Some(Instant::now());
                client.send()?;
            }
        }
    }
    Ok(())
}

/// What a request takes with the app's cookie and without it, in turn; medians, microseconds.
///
/// # Errors
/// As for [`requests`].
pub(super) fn cookie_times(site: &Site, length: Duration) -> io::Result<(f64, f64)> {
    let mut with = Client::new(site)?;
    let mut without = Client::new(&site.without_app_cookie())?;
    without.keeps = false;
    let begin = Instant::now();
    let (mut short, mut long) = (Vec::new(), Vec::new());
    while begin.elapsed() < length || short.len() < 3 {
        for (client, times) in [(&mut with, &mut short), (&mut without, &mut long)] {
            let sent = Instant::now();
            client.once()?;
            times.push(micros(sent));
        }
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    Ok((median(short), median(long)))
}

/// Moves the large file over one kept connection for `length`, whole files only.
///
/// # Errors
/// The socket's, or an answer that is not 200.
pub(super) fn bulk(site: &Site, direction: Direction, length: Duration) -> io::Result<Bulk> {
    let mut stream = connect(site.address)?;
    let mut chunk = vec![0xa5; CHUNK];
    let begin = Instant::now();
    let mut bytes = 0;
    while begin.elapsed() < length {
        match direction {
            Direction::Down => {
                stream.write_all(&site.head("GET", LARGE_PATH, ""))?;
                let (mut left, behind) = answer(&mut stream, &mut chunk)?;
                left = left.saturating_sub(behind as u64);
                while left > 0 {
                    match crate::load::read(&mut stream, &mut chunk)? {
                        0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                        n => left = left.saturating_sub(n as u64),
                    }
                }
            }
            Direction::Up => {
                let more = format!(
                    "Content-Type: application/octet-stream\r\nContent-Length: {LARGE}\r\n"
                );
                stream.write_all(&site.head("POST", LARGE_PATH, &more))?;
                let mut left = LARGE;
                while left > 0 {
                    let count = left.min(CHUNK as u64);
                    stream.write_all(&chunk[..count as usize])?;
                    left -= count;
                }
                let (length, mut behind) = answer(&mut stream, &mut chunk)?;
                while (behind as u64) < length {
                    behind += stream.read(&mut chunk[behind..])?;
                }
            }
        }
        bytes += LARGE;
    }
    Ok(Bulk {
        bytes,
        elapsed: begin.elapsed(),
    })
}

/// Reads the head of an answer: the length of its body, and how much of that came already.
fn answer(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<(u64, usize)> {
    let mut filled = 0;
    loop {
        match crate::load::read(stream, &mut buffer[filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => filled += n,
        }
        let Some(end) = find_end(&buffer[..filled]) else {
            continue;
        };
        let head = Head::parse(&buffer[..end])?;
        return match head.status {
            200 => Ok((head.length, filled - end)),
            status => Err(bad(format!("the app answered {status}"))),
        };
    }
}

/// Opens `count` WebSockets, each having moved a frame there and back.
///
/// # Errors
/// The socket's, or an answer that is not 101.
pub(super) fn hold(site: &Site, count: usize) -> io::Result<Held> {
    let one = || {
        let mut stream = connect(site.address)?;
        let more = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        stream.write_all(&site.head("GET", SOCKET_PATH, more))?;
        let mut buffer = [0; 4096];
        let mut filled = 0;
        while find_end(&buffer[..filled]).is_none() {
            match crate::load::read(&mut stream, &mut buffer[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => filled += n,
            }
        }
        let status = Head::parse(&buffer[..filled])?.status;
        if status != 101 {
            return Err(bad(format!("a WebSocket was answered {status}")));
        }
        stream.write_all(FRAME)?;
        let mut echo = [0; FRAME.len()];
        stream.read_exact(&mut echo)?;
        match echo == FRAME {
            true => Ok(stream),
            false => Err(bad("a frame came back changed")),
        }
    };
    let held: io::Result<Vec<TcpStream>> = (0..count).map(|_| one()).collect();
    held.map(Held::from)
}
