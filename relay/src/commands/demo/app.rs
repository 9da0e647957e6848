//! The sample app: a page, and a gibibyte to move.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use sha2::{Digest, Sha256};

/// What `/` serves.
pub(super) const PAGE: &str = "<!doctype html>
<title>relay</title>
<h1>It works.</h1>
<p>This page came through a WireGuard tunnel from the port of a workspace.</p>
";

const BLOCK: usize = 256 * 1024;
const LONGEST_HEAD: usize = 64 * 1024;

/// Serves on a free port of loopback, for as long as the process lives.
pub(super) fn start() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::Builder::new()
        .name("sample-app".to_owned())
        .spawn(move || accept_loop(&listener))?;
    Ok(address)
}

fn accept_loop(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        let serve = move || {
            if let Err(error) = serve(stream) {
                tracing::debug!(%error, "a request to the sample app failed");
            }
        };
        if let Err(error) = std::thread::Builder::new().spawn(serve) {
            tracing::warn!(%error, "the sample app cannot start a thread");
        }
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    loop {
        line.clear();
        if request.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or("/").to_owned();
        while request.read_line(&mut line)? > 0 && !line.ends_with("\r\n\r\n") {
            if line.len() > LONGEST_HEAD {
                return Ok(());
            }
        }
        match path.strip_prefix("/bytes/").map(str::parse) {
            Some(Ok(count)) => {
                head(&mut stream, "200 OK", "application/octet-stream", count)?;
                send_bytes(&mut stream, count)?;
            }
            None if path == "/" => text(&mut stream, "200 OK", PAGE)?,
            _ => text(
                &mut stream,
                "404 Not Found",
                "<p>Only <a href=\"/\">/</a> is here.</p>\n",
            )?,
        }
    }
}

fn text(stream: &mut TcpStream, status: &str, body: &str) -> io::Result<()> {
    head(
        stream,
        status,
        "text/html; charset=utf-8",
        body.len() as u64,
    )?;
    stream.write_all(body.as_bytes())
}

fn head(stream: &mut TcpStream, status: &str, kind: &str, length: u64) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\n\r\n"
    );
    stream.write_all(head.as_bytes())
}

fn send_bytes(stream: &mut TcpStream, count: u64) -> io::Result<()> {
    for_each_block(count, |block| stream.write_all(block))
}

/// The hash of what `/bytes/COUNT` serves.
pub(super) fn expected_hash(count: u64) -> [u8; 32] {
    let mut hash = Sha256::new();
    // The closure never fails.
    let _ = for_each_block(count, |block| {
        hash.update(block);
        Ok(())
    });
    hash.finalize().into()
}

/// Noise that no layer below can compress, numbered so that a block in a wrong place shows.
fn for_each_block(count: u64, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for word in block.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    let (mut left, mut number) = (count, 0_u64);
    while left > 0 {
        block[..8].copy_from_slice(&number.to_le_bytes());
        number += 1;
        let length = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        each(&block[..length])?;
        left -= length as u64;
    }
    Ok(())
}
