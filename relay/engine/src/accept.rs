//! Accepting connections in a way that survives running out of descriptors: stop, say so once,
//! go on when there is room.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};

use crate::limits;

const PAUSE: Duration = Duration::from_millis(20);
/// So long without a shortage, and the next one is worth saying again.
const QUIET: Duration = Duration::from_secs(10);

/// When this process last ran short. One for all listeners, so that it is said once.
static SHORTAGE: Mutex<Option<Instant>> = Mutex::new(None);

/// A listener whose `next` comes back only with a connection or a broken listener.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    wait_for_room: bool,
}

impl Acceptor {
    /// Takes over a listener.
    pub fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            wait_for_room: false,
        }
    }

    /// The address that it listens on.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next connection. Errors are final.
    pub async fn next(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            while self.wait_for_room {
                note_shortage();
                tokio::time::sleep(PAUSE).await;
                self.wait_for_room = !limits::has_room(&self.listener);
            }
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    // The last few are for the other ends of what was accepted.
                    self.wait_for_room = limits::is_nearly_out(stream.as_raw_fd());
                    return Ok((stream, from));
                }
                Err(error) if is_shortage(&error) => self.wait_for_room = true,
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn note_shortage() {
    let now = Instant::now();
    let mut last = SHORTAGE.lock().unwrap_or_else(PoisonError::into_inner);
    if last.is_none_or(|last| now.duration_since(last) > QUIET) {
        tracing::warn!(
            limit = limits::descriptor_limit(),
            "too many open files: new connections wait until others close; raise the limit \
             (ulimit -n) to serve more at once"
        );
    }
    *last = Some(now);
}

fn errno(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}

fn is_shortage(error: &io::Error) -> bool {
    matches!(
        errno(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
    )
}

/// accept(2) also reports what went wrong with the connection at the head of the queue.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        errno(error),
        Some(
            Errno::CONNABORTED
                | Errno::INTR
                | Errno::AGAIN
                | Errno::NETDOWN
                | Errno::PROTO
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::NONET
                | Errno::HOSTUNREACH
                | Errno::OPNOTSUPP
                | Errno::NETUNREACH
                | Errno::PERM
        )
    )
}
