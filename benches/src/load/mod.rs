//! The load: the app at the far end, and the clients that drive it through a local port.

mod app;
mod connections;
mod stream;
mod udp;

pub use app::App;
pub use connections::{Held, connect_times, connections, hold};
pub use stream::{Bulk, Direction, bulk, ping_pong};
pub use udp::{Offered, datagrams};

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What a client asks of the app, as the first byte of a connection.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Every byte comes back.
    Echo = b'e',
    /// The app reads to the end and answers the count, 8 bytes big endian.
    Sink = b's',
    /// The app sends until the client closes.
    Source = b'g',
}

/// Longest wait for anything of one socket.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Reads what has come. A process that was stopped and goes on is told "interrupted" by sockets that
/// have a time-out.
pub(crate) fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    use std::io::Read;
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn dial(address: SocketAddr, ask: Ask) -> io::Result<TcpStream> {
    dial_with(address, &[ask as u8])
}

/// Connects, and sends the first bytes, the [`Ask`] before all, in one piece.
fn dial_with(address: SocketAddr, first: &[u8]) -> io::Result<TcpStream> {
    use std::io::Write;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(first)?;
    Ok(stream)
}
