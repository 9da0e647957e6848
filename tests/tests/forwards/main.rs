//! Forwards beyond plain ports: those that come and go while it runs, the other direction, Unix
//! sockets, files; and what programs and people see of it.

mod auto;
mod embed;
mod json;
mod reverse;
mod same_host;
mod terminal;
mod unix;
mod wrong;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;

/// Whether nobody listens there. A connection that is accepted and reset at once is none of those.
fn refuses(host: &relay_lab::net::Host, port: u16) -> bool {
    let refused = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
    host.local(port).is_err_and(refused)
}

/// A Unix socket that echoes `count` connections to their ends.
fn echo_socket(path: &Path, count: usize) -> JoinHandle<()> {
    let listener = UnixListener::bind(path).expect("socket");
    std::thread::spawn(move || {
        for _ in 0..count {
            let (stream, _) = listener.accept().expect("accept");
            let mut lent = &stream;
            std::io::copy(&mut lent, &mut &stream).expect("echo");
        }
    })
}

/// Sends, ends its own direction, and reads to the end.
fn ask(mut stream: &UnixStream, question: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(relay_lab::PATIENCE))?;
    stream.write_all(question)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}
