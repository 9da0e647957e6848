//! The client of the sample app: fetches a page, and a gibibyte whose hash it takes on the way.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

const PATIENCE: Duration = Duration::from_secs(30);
const BUFFER: usize = 256 * 1024;

/// A page, and how long it took.
pub(super) struct Page {
    pub(super) body: String,
    pub(super) took: Duration,
}

/// A transfer that was done.
pub(super) struct Moved {
    pub(super) bytes: u64,
    pub(super) took: Duration,
    pub(super) hash: [u8; 32],
}

impl Moved {
    /// Throughput in Gbit/s.
    pub(super) fn gigabits(&self) -> f64 {
        let bits = self.bytes as f64 * 8.0;
        bits / 1e9 / self.took.as_secs_f64().max(1e-9)
    }
}

/// Whether something listens there.
pub(super) fn is_up(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// Fetches `/`.
pub(super) fn page(from: SocketAddr) -> Result<Page> {
    let start = Instant::now();
    let (length, mut body) = get(from, "/")?;
    let mut text = String::new();
    body.by_ref().take(length).read_to_string(&mut text)?;
    Ok(Page {
        body: text,
        took: start.elapsed(),
    })
}

/// Fetches `bytes` bytes, with a progress bar where someone looks.
pub(super) fn gibibyte(from: SocketAddr, bytes: u64, name: &'static str) -> Result<Moved> {
    let bar = progress_bar(bytes, name);
    let start = Instant::now();
    let (length, mut body) = get(from, &format!("/bytes/{bytes}"))?;
    ensure!(
        length == bytes,
        "the app offers {length} bytes instead of {bytes}"
    );
    let (mut hash, mut buffer, mut left) = (Sha256::new(), vec![0; BUFFER], bytes);
    while left > 0 {
        let room = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
        let count = body
            .read(&mut buffer[..room])
            .with_context(|| format!("{name}: the transfer broke {left} bytes before its end"))?;
        ensure!(
            count > 0,
            "{name}: the transfer ended {left} bytes too early"
        );
        hash.update(&buffer[..count]);
        left -= count as u64;
        bar.inc(count as u64);
    }
    let took = start.elapsed();
    bar.finish_and_clear();
    Ok(Moved {
        bytes,
        took,
        hash: hash.finalize().into(),
    })
}

fn progress_bar(bytes: u64, name: &'static str) -> ProgressBar {
    // Draws on stderr, and nothing where that is not a terminal.
    let bar = ProgressBar::new(bytes).with_message(name);
    let template = "{msg:<20} [{bar:30}] {bytes:>10}/{total_bytes} {binary_bytes_per_sec}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// Sends a request; gives the length of the answer's body, and the reader that stands before it.
fn get(from: SocketAddr, path: &str) -> Result<(u64, BufReader<TcpStream>)> {
    let mut stream = TcpStream::connect_timeout(&from, PATIENCE)
        .with_context(|| format!("cannot connect to {from}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {from}\r\n\r\n").as_bytes())?;
    let mut answer = BufReader::with_capacity(BUFFER, stream);
    let mut line = String::new();
    answer.read_line(&mut line)?;
    ensure!(
        line.starts_with("HTTP/1.1 200"),
        "the app answered {line:?}"
    );
    let mut length = 0;
    loop {
        line.clear();
        ensure!(
            answer.read_line(&mut line)? > 0,
            "the app's answer ends too early"
        );
        match line.trim_end().split_once(": ") {
            Some(("Content-Length", value)) => length = value.parse()?,
            Some(_) => {}
            None => return Ok((length, answer)),
        }
    }
}
