//! Messages between two processes of this machine, each of which may bring a socket: abstract Unix
//! sockets, which exist within a network namespace and have no file (unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 8;

/// Waits for connections at a name.
#[derive(Debug)]
pub struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    /// Listens at a name of this network namespace.
    ///
    /// # Errors
    /// As bind(2), and outside a runtime.
    pub fn bind(name: &str) -> io::Result<Self> {
        let socket = socket()?;
        rustix::net::bind(&socket, &address(name)?)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(Self(watch(socket)?))
    }

    /// The next connection, whoever made it.
    ///
    /// # Errors
    /// As accept(2).
    pub async fn accept(&self) -> io::Result<Channel> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = |socket: &OwnedFd| Ok(rustix::net::accept_with(socket, flags)?);
        let socket = self.0.async_io(Interest::READABLE, accept).await?;
        Ok(Channel(watch(socket)?))
    }
}

/// A connection that keeps messages apart.
#[derive(Debug)]
pub struct Channel(AsyncFd<OwnedFd>);

impl Channel {
    /// Connects to a name of this network namespace.
    ///
    /// # Errors
    /// `ConnectionRefused` when nobody listens there; `WouldBlock` when too many wait.
    pub fn connect(name: &str) -> io::Result<Self> {
        let socket = socket()?;
        rustix::net::connect(&socket, &address(name)?)?;
        Ok(Self(watch(socket)?))
    }

    /// Sends a message, with a socket of which the other side gets its own descriptor.
    ///
    /// # Errors
    /// As sendmsg(2).
    pub async fn send(&self, message: &[u8], socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let send = |channel: &OwnedFd| {
            let sockets = socket.as_slice();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !sockets.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(sockets));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let parts = [IoSlice::new(message)];
            rustix::net::sendmsg(channel, &parts, &mut control, flags)?;
            Ok(())
        };
        self.0.async_io(Interest::WRITABLE, send).await
    }

    /// The next message and its stream socket, of TCP or Unix, if it brought one; other descriptors
    /// are closed. A length of zero means that the other side has gone.
    ///
    /// # Errors
    /// As recvmsg(2).
    pub async fn receive(&self, into: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
        let receive = |channel: &OwnedFd| {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let mut parts = [IoSliceMut::new(into)];
            let message = rustix::net::recvmsg(channel, &mut parts, &mut control, flags)?;
            let mut sockets = Vec::new();
            for part in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                    sockets.extend(descriptors.filter(is_stream));
                }
            }
            Ok((message.bytes, sockets.pop()))
        };
        self.0.async_io(Interest::READABLE, receive).await
    }
}

/// The runtime that watches it is left; another one can watch it by [`TryFrom`].
impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.0.into_inner()
    }
}

/// Of a descriptor that was a channel's.
impl TryFrom<OwnedFd> for Channel {
    type Error = io::Error;

    fn try_from(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self(watch(socket)?))
    }
}

/// Whether it is a stream socket of TCP or Unix.
fn is_stream(socket: &OwnedFd) -> bool {
    let family = sockopt::socket_domain(socket);
    let family = family.is_ok_and(|family| {
        matches!(
            family,
            AddressFamily::INET | AddressFamily::INET6 | AddressFamily::UNIX
        )
    });
    family && sockopt::socket_type(socket) == Ok(SocketType::STREAM)
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(rustix::net::socket_with(family, kind, flags, None)?)
}

fn address(name: &str) -> Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new_abstract_name(name.as_bytes())
}

fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open and the same until it is dropped.
    unsafe { AsyncFd::register(socket) }.map_err(|error| error.into_parts().1)
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair(name: &str) -> (Channel, Channel) {
        let name = format!("relay-test-{name}-{}", std::process::id());
        let listener = Listener::bind(&name).unwrap();
        let near = Channel::connect(&name).unwrap();
        (near, listener.accept().await.unwrap())
    }

    #[tokio::test]
    async fn a_message_brings_a_socket_and_the_first_owner_may_close_it() {
        let (near, far) = pair("brings").await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut app = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        near.send(b"this one", Some(accepted.as_fd()))
            .await
            .unwrap();
        near.send(b"no more", None).await.unwrap();
        drop(accepted);
        let mut message = [0; 32];
        let (length, socket) = far.receive(&mut message).await.unwrap();
        assert_eq!(&message[..length], b"this one");
        let socket = std::net::TcpStream::from(socket.unwrap());
        let mut socket = TcpStream::from_std(socket).unwrap();
        socket.write_all(b"hello").await.unwrap();
        let mut hello = [0; 5];
        app.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello");
        let (length, socket) = far.receive(&mut message).await.unwrap();
        assert_eq!(
            (&message[..length], socket.is_none()),
            (&b"no more"[..], true)
        );
        drop(near);
        assert_eq!(far.receive(&mut message).await.unwrap().0, 0);
    }

    #[tokio::test]
    async fn what_is_no_stream_is_not_taken() {
        let (near, far) = pair("takes").await;
        let file = std::fs::File::open("/dev/null").unwrap();
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for other in [file.as_fd(), datagrams.as_fd(), near.as_fd()] {
            near.send(b"no stream", Some(other)).await.unwrap();
            let (length, socket) = far.receive(&mut [0; 32]).await.unwrap();
            assert_eq!((length, socket.is_none()), (9, true));
        }
        let (stream, _other) = tokio::net::UnixStream::pair().unwrap();
        near.send(b"a stream", Some(stream.as_fd())).await.unwrap();
        assert!(far.receive(&mut [0; 32]).await.unwrap().1.is_some());
    }

    #[test]
    fn a_channel_goes_from_one_runtime_to_another() {
        let runtime = || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_all().build().unwrap()
        };
        let (one, other) = (runtime(), runtime());
        let (near, far) = one.block_on(pair("goes"));
        let far = OwnedFd::from(far);
        one.block_on(near.send(b"hello", None)).unwrap();
        let length = other.block_on(async {
            let far = Channel::try_from(far).unwrap();
            far.receive(&mut [0; 32]).await.unwrap().0
        });
        assert_eq!(length, 5);
    }

    #[tokio::test]
    async fn a_name_that_nobody_has_is_refused() {
        let error = Channel::connect("relay-test-nobody").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}
