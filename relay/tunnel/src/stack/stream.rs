//! What the two stacks give to those above them: connections that peers want, and streams that are
//! open. A stream of the kernel's is a socket; one of relay's own lives in the loop, which carries
//! it between the tunnel and a socket of this machine.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use relay_engine::{Engine, Moved, Summary, pump_counted};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::kernel::{self, INCOMING_QUEUE, KernelStack};
use super::user::{self, UserStack};

/// A connection that a peer wants, kept waiting until the application has been dialled. Dropping
/// it refuses the connection.
#[derive(Debug)]
pub enum Incoming {
    /// The kernel's TCP will have it.
    Kernel(kernel::Wanted),
    /// relay's own TCP will have it.
    User(user::Wanted),
}

impl Incoming {
    /// The peer's address and port.
    pub fn source(&self) -> SocketAddrV6 {
        match self {
            Self::Kernel(wanted) => wanted.source(),
            Self::User(wanted) => wanted.source(),
        }
    }

    /// This end's address and port, which the peer wants.
    pub fn destination(&self) -> SocketAddrV6 {
        match self {
            Self::Kernel(wanted) => wanted.destination(),
            Self::User(wanted) => wanted.destination(),
        }
    }

    /// The port the peer wants.
    pub fn port(&self) -> u16 {
        self.destination().port()
    }

    /// Lets the connection happen and returns its stream once the handshake is done. Fails when
    /// the peer has given up meanwhile, at once or after 20 seconds of silence.
    pub async fn accept(self) -> io::Result<TcpStream> {
        match self {
            Self::Kernel(wanted) => wanted.accept().await,
            Self::User(wanted) => wanted.accept().await,
        }
    }

    /// The same, for a stream that lasts although its peer does not answer for so long.
    pub async fn accept_patiently(self, silence: Duration) -> io::Result<TcpStream> {
        match self {
            Self::Kernel(wanted) => {
                let stream = wanted.accept().await?;
                kernel::outlast(&stream, silence)?;
                Ok(stream)
            }
            Self::User(wanted) => wanted.with_patience(silence).accept().await,
        }
    }

    /// Lets the connection happen and carries it to and from `app` until its end. The peer is the
    /// first side of the summary. Fails as [`accept`](Self::accept) does, and has reset `app` then.
    pub async fn carry(self, app: TcpStream, engine: Engine, moved: &Moved) -> io::Result<Summary> {
        match self {
            Self::Kernel(wanted) => match Box::pin(wanted.accept()).await {
                Ok(peer) => Ok(Box::pin(pump_counted(peer, app, engine, moved)).await),
                Err(error) => {
                    relay_engine::abort(app);
                    Err(error)
                }
            },
            Self::User(wanted) => wanted.carry(app, moved).await,
        }
    }

    /// Answers the peer that nothing listens on the port.
    pub fn refuse(self) {
        drop(self);
    }
}

/// A stream to a peer. Dropping it closes it.
#[derive(Debug)]
pub enum Stream {
    /// A socket of the kernel's TCP.
    Kernel(TcpStream),
    /// A connection of relay's own TCP.
    User(user::Opened),
}

impl Stream {
    /// Carries it to and from `local` until its end. That is the first side of the summary.
    pub async fn carry(self, local: TcpStream, engine: Engine, moved: &Moved) -> Summary {
        match self {
            // A box, so that streams of relay's own TCP take no room for an engine.
            Self::Kernel(stream) => Box::pin(pump_counted(local, stream, engine, moved)).await,
            Self::User(opened) => opened.carry(local, moved).await,
        }
    }

    /// Resets it.
    pub fn abort(self) {
        match self {
            Self::Kernel(stream) => relay_engine::abort(stream),
            Self::User(opened) => opened.abort(),
        }
    }

    /// As a socket: that of the kernel's TCP, or one end of a pair whose other end the loop
    /// carries.
    ///
    /// # Errors
    /// When this machine's loopback gives no pair.
    pub fn into_socket(self) -> io::Result<TcpStream> {
        match self {
            Self::Kernel(stream) => Ok(stream),
            Self::User(opened) => opened.into_socket(),
        }
    }
}

/// A handle to the TCP of one loop.
#[derive(Debug, Clone)]
pub(crate) enum Streams {
    Kernel(KernelStack),
    User(UserStack),
}

impl Streams {
    /// Opens a stream whose first bytes travel with its first packet, and says how many of `first`
    /// did: none where the stack cannot.
    pub(crate) async fn open(
        &self,
        source: Ipv6Addr,
        remote: SocketAddrV6,
        first: &[u8],
    ) -> io::Result<(Stream, usize)> {
        match self {
            Self::Kernel(stack) => {
                let (stream, taken) = stack.connect_with(source, remote, first).await?;
                Ok((Stream::Kernel(stream), taken))
            }
            Self::User(stack) => {
                let (opened, taken) = stack.connect(source, remote, first).await?;
                Ok((Stream::User(opened), taken))
            }
        }
    }

    /// How many bytes fit the first packet of a stream to this peer.
    pub(crate) fn early_room(&self, peer: Ipv6Addr) -> usize {
        match self {
            Self::Kernel(stack) => stack.early_room(peer),
            Self::User(stack) => stack.early_room(peer),
        }
    }

    /// The runtime that the loop runs in.
    pub(crate) fn runtime(&self) -> &Handle {
        match self {
            Self::Kernel(stack) => stack.runtime(),
            Self::User(stack) => stack.runtime(),
        }
    }

    /// Turns accept on demand on and returns where wanted connections of all these arrive. Until
    /// it is called, and once the receiver is gone, every connection is refused.
    pub(crate) fn incoming_of<'a>(
        all: impl IntoIterator<Item = &'a Streams>,
    ) -> mpsc::Receiver<Incoming> {
        let (sender, receiver) = mpsc::channel(INCOMING_QUEUE);
        for streams in all {
            match streams {
                Self::Kernel(stack) => stack.send_incoming_to(sender.clone()),
                Self::User(stack) => stack.send_incoming_to(sender.clone()),
            }
        }
        receiver
    }
}
