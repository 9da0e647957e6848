//! One connection: bytes of the tunnel in and out, and who sees to what the peer asks for.

use std::future::{Future, poll_fn};
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ring::rand::SystemRandom;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::channel::{Channel, Link};
use super::forward::{self, Reverse};
use super::proto::mux::{Event, Refusal, Request};
use super::proto::transport::{Received, Transport};
use super::proto::{auth, number};
use super::{Peer, Server, session};
use crate::Error;

/// A login takes no longer.
const LOGIN: Duration = Duration::from_secs(120);
/// After so long without a message the peer is asked for a sign of life: connections are to outlive
/// the sleep of a laptop (coder_facts §3.3).
const SILENCE: Duration = Duration::from_secs(24 * 3600);
/// After so many silences in a row the peer is taken for dead.
const SILENCES: u32 = 3;
/// Messages are made until so much waits to be sent, bytes.
const FULL: usize = 256 << 10;
/// More waits only for a peer that asks and does not read.
const TOO_FULL: usize = 8 << 20;
/// What is read at a time: at first, and at most, bytes.
const READ: (usize, usize) = (16 << 10, 256 << 10);

/// Serves a connection to its end.
pub(super) async fn run<S>(mut stream: S, server: Arc<Server>, peer: Peer) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let random = Box::new(SystemRandom::new());
    let mut connection = Connection {
        transport: Transport::new(Arc::clone(&server.host_key), random)?,
        link: Link::default(),
        reverse: Reverse::default(),
        server,
        peer: Arc::new(peer),
        logged_in: false,
        silences: 0,
    };
    let outcome = connection.serve(&mut stream).await;
    if let Err(error @ Error::Ssh(_)) = &outcome {
        let text = error.to_string();
        connection
            .transport
            .disconnect(number::PROTOCOL_ERROR, &text);
        let goodbye = stream.write_all(&connection.transport.out);
        // Whether it arrives does not matter any more.
        let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
    }
    outcome
}

struct Connection {
    transport: Transport,
    link: Link,
    reverse: Reverse,
    server: Arc<Server>,
    peer: Arc<Peer>,
    logged_in: bool,
    silences: u32,
}

impl Drop for Connection {
    /// All who use a channel hear that it is closed, and end what they do.
    fn drop(&mut self) {
        self.link.lock().end();
    }
}

/// What happened.
enum Turn {
    Read(usize),
    /// There is something to send, and room for it.
    Write,
    Silence,
}

/// The bytes between the stream and the transport.
struct Io<S> {
    stream: S,
    /// What came in; from `start` to `end` it was not looked at.
    inbox: Vec<u8>,
    start: usize,
    end: usize,
    /// How much of the transport's `out` is written.
    sent: usize,
    timer: Pin<Box<Sleep>>,
}

impl Connection {
    async fn serve<S>(&mut self, stream: S) -> Result<(), Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut io = Io {
            stream,
            inbox: vec![0; READ.0],
            start: 0,
            end: 0,
            sent: 0,
            timer: Box::pin(sleep(LOGIN)),
        };
        loop {
            self.fill()?;
            match poll_fn(|cx| self.poll(cx, &mut io)).await? {
                Turn::Read(0) => return Ok(()),
                Turn::Read(count) => {
                    io.end += count;
                    if self.take_in(&mut io)? {
                        return Ok(());
                    }
                }
                Turn::Write => {}
                Turn::Silence => {
                    self.silences += 1;
                    if !self.logged_in || self.silences >= SILENCES {
                        return Err(Error::Ssh("the peer is silent"));
                    }
                    self.link.lock().ask_alive();
                    io.timer.as_mut().reset(Instant::now() + SILENCE);
                }
            }
        }
    }

    /// Makes packets of what waits, as far as there is room.
    fn fill(&mut self) -> Result<(), Error> {
        self.transport.renew()?;
        let mut mux = self.link.lock();
        while self.transport.may_send() && self.transport.out.len() < FULL {
            let Some(message) = mux.next() else {
                break;
            };
            self.transport.send(|out| mux.write(&message, out));
        }
        Ok(())
    }

    fn poll<S>(&mut self, cx: &mut Context<'_>, io: &mut Io<S>) -> Poll<Result<Turn, Error>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        io.poll_send(cx, &mut self.transport.out)?;
        if let Poll::Ready(count) = io.poll_receive(cx)? {
            return Poll::Ready(Ok(Turn::Read(count)));
        }
        if self.transport.may_send()
            && self.transport.out.len() < FULL / 2
            && self.link.lock().poll_ready(cx).is_ready()
        {
            return Poll::Ready(Ok(Turn::Write));
        }
        ready!(io.timer.as_mut().poll(cx));
        Poll::Ready(Ok(Turn::Silence))
    }

    /// Looks at what came in; says whether the peer has said goodbye.
    fn take_in<S>(&mut self, io: &mut Io<S>) -> Result<bool, Error> {
        loop {
            let bytes = &mut io.inbox[io.start..io.end];
            match self.transport.receive(bytes)? {
                Received::Incomplete(whole) => {
                    io.make_room(whole);
                    break;
                }
                Received::Done(count) => io.start += count,
                Received::Payload(count, range) => {
                    let payload = &io.inbox[io.start..][range];
                    self.handle(payload)?;
                    io.start += count;
                }
                Received::Disconnected => return Ok(true),
            }
        }
        if self.transport.out.len() > TOO_FULL {
            return Err(Error::Ssh("the peer asks and does not read the answers"));
        }
        if self.logged_in {
            self.silences = 0;
            io.timer.as_mut().reset(Instant::now() + SILENCE);
        }
        Ok(false)
    }

    fn handle(&mut self, payload: &[u8]) -> Result<(), Error> {
        if !self.logged_in {
            self.logged_in = auth::answer(&mut self.transport, payload)?;
            return Ok(());
        }
        match payload[0] {
            // Once the login is done, more of it is passed over (RFC 4252 §5.1).
            number::USERAUTH_REQUEST..number::GLOBAL_REQUEST => Ok(()),
            number::GLOBAL_REQUEST..=number::CHANNEL_FAILURE => {
                let event = self.link.lock().receive(payload)?;
                match event {
                    Some(Event::Open { id, kind, data }) => {
                        let channel = Channel::new(self.link.clone(), id);
                        self.open(channel, &kind, &data)
                    }
                    Some(Event::Global(request)) => {
                        self.answer(&request);
                        Ok(())
                    }
                    None => Ok(()),
                }
            }
            _ => {
                self.transport.unimplemented();
                Ok(())
            }
        }
    }

    /// The peer wants a channel. Nothing here may take long: what does is a task of its own.
    fn open(&self, channel: Channel, kind: &str, data: &[u8]) -> Result<(), Error> {
        let blocked = self.server.options.block_local_forwarding;
        match kind {
            "session" => {
                channel.accept();
                let (server, peer) = (Arc::clone(&self.server), Arc::clone(&self.peer));
                tokio::spawn(session::serve(channel, server, peer));
            }
            "direct-tcpip" | "direct-streamlocal@openssh.com" if blocked => {
                tracing::debug!(kind, "a forward was refused, as this agent is told to");
                channel.refuse(Refusal::Prohibited, forward::LOCAL_BLOCKED);
            }
            "direct-tcpip" => {
                let target = forward::tcp_target(data)?;
                tokio::spawn(forward::to_tcp(channel, target));
            }
            "direct-streamlocal@openssh.com" => {
                let path = forward::unix_target(data)?;
                tokio::spawn(forward::to_unix(channel, path));
            }
            _ => channel.refuse(
                Refusal::UnknownType,
                "channels of this kind are not known here",
            ),
        }
        Ok(())
    }

    /// Answers a request that concerns no channel.
    fn answer(&mut self, request: &Request) {
        let blocked = self.server.options.block_reverse_forwarding;
        let answer = match request.kind.as_str() {
            "tcpip-forward" | "streamlocal-forward@openssh.com" if blocked => {
                tracing::debug!("a reverse forward was refused, as this agent is told to");
                None
            }
            "no-more-sessions@openssh.com" => Some(Vec::new()),
            _ => self.reverse.answer(request, &self.link),
        };
        if request.want_reply {
            self.link.lock().reply_global(answer.as_deref());
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Io<S> {
    /// Writes as much as goes.
    fn poll_send(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Result<(), Error> {
        while self.sent < out.len() {
            let stream = Pin::new(&mut self.stream);
            match stream.poll_write(cx, &out[self.sent..])? {
                Poll::Ready(0) => return Err(std::io::Error::from(ErrorKind::WriteZero).into()),
                Poll::Ready(count) => self.sent += count,
                Poll::Pending => break,
            }
        }
        if self.sent == out.len() {
            if out.capacity() > 2 * FULL {
                *out = Vec::new();
            }
            out.clear();
        } else {
            out.drain(..self.sent);
        }
        self.sent = 0;
        Ok(())
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let mut into = ReadBuf::new(&mut self.inbox[self.end..]);
        let stream = Pin::new(&mut self.stream);
        ready!(stream.poll_read(cx, &mut into))?;
        Poll::Ready(Ok(into.filled().len()))
    }
}

impl<S> Io<S> {
    /// Makes room behind what was not looked at, for a packet of `whole` bytes and for more, if
    /// much came at once.
    fn make_room(&mut self, whole: usize) {
        let busy = self.end == self.inbox.len() && self.inbox.len() < READ.1;
        self.inbox.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let wanted = if busy { self.inbox.len() * 2 } else { 0 };
        if whole.max(wanted) > self.inbox.len() {
            self.inbox.resize(whole.max(wanted), 0);
        }
    }
}
