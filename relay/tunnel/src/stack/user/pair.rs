//! Two connected sockets on this machine's loopback, for who needs a stream as a socket. Unlike a
//! pair of Unix sockets they carry a reset.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream as Blocking};
use std::sync::Mutex;
use std::time::Duration;

use tokio::net::TcpStream;

use super::super::kernel::lock;

/// Loopback connects at once, or not at all.
const PATIENCE: Duration = Duration::from_secs(1);

/// Makes pairs, by a listener that is kept.
#[derive(Debug, Default)]
pub(super) struct Pairs(Mutex<Option<TcpListener>>);

impl Pairs {
    /// Two sockets that are connected to each other, and to nobody else.
    ///
    /// # Errors
    /// When loopback is down, or descriptors or ports have run out.
    pub(super) fn make(&self) -> io::Result<(TcpStream, TcpStream)> {
        let (near, far) = self.connect().map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("connecting two sockets on 127.0.0.1: {error}"),
            )
        })?;
        Ok((watched(near)?, watched(far)?))
    }

    fn connect(&self) -> io::Result<(Blocking, Blocking)> {
        let mut kept = lock(&self.0);
        let listener = match kept.take() {
            Some(listener) => listener,
            None => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
                listener.set_nonblocking(true)?;
                listener
            }
        };
        let near = Blocking::connect_timeout(&listener.local_addr()?, PATIENCE)?;
        let far = accept(&listener, near.local_addr()?)?;
        *kept = Some(listener);
        Ok((near, far))
    }
}

/// Takes the connection from `wanted`; others, which no program of ours made, are closed.
fn accept(listener: &TcpListener, wanted: SocketAddr) -> io::Result<Blocking> {
    loop {
        let (socket, from) = listener.accept()?;
        if from == wanted {
            return Ok(socket);
        }
    }
}

fn watched(socket: Blocking) -> io::Result<TcpStream> {
    socket.set_nonblocking(true)?;
    socket.set_nodelay(true)?;
    TcpStream::from_std(socket)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn the_two_are_connected_although_others_connect_as_well() {
        let pairs = Pairs::default();
        drop(pairs.make().unwrap());
        let place = lock(&pairs.0).as_ref().unwrap().local_addr().unwrap();
        let _stranger = Blocking::connect(place).unwrap();
        let (mut near, mut far) = pairs.make().unwrap();
        near.write_all(b"ours").await.unwrap();
        let mut got = [0; 4];
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"ours");
        drop(far);
        assert_eq!(near.read(&mut got).await.unwrap(), 0);
    }
}
