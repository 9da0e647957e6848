//! The task that drives a session.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use relay_wire::yamux::{Config, Event, Role, Session, StreamId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Sleep;

use super::RpcError;
use super::socket::{Received, Sent, Socket};
use super::stream::{Input, Output, QUEUE, Stream};

/// Bytes of output handed to the socket's library before it has sent some.
const OUTPUT: usize = 64 << 10;
/// How long the last bytes and the close message may take.
const CLOSING: Duration = Duration::from_secs(1);
/// WebSocket close codes (RFC 6455 §7.4.1).
const NORMAL: u16 = 1000;
const GOING_AWAY: u16 = 1001;
const UNSUPPORTED: u16 = 1003;

/// Times of a session.
#[derive(Clone, Debug)]
pub struct Options {
    /// Time between two keepalive pings.
    pub keepalive: Duration,
    /// How long the answer to one may take.
    pub reply_within: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let config = Config::default();
        Self {
            keepalive: config.keepalive,
            reply_within: config.reply_within,
        }
    }
}

/// What users of streams ask of the driver.
#[derive(Debug)]
pub(super) enum Command {
    Open(oneshot::Sender<Result<Stream, RpcError>>),
    Send(StreamId, Bytes, Option<OwnedSemaphorePermit>),
    Consumed(StreamId, usize),
    Close(StreamId),
    Drop(StreamId),
    Shutdown,
}

/// A session. It ends when this and all its streams are dropped, or by [`Mux::shutdown`].
#[derive(Debug)]
pub struct Mux {
    commands: mpsc::UnboundedSender<Command>,
    incoming: mpsc::UnboundedReceiver<Stream>,
    ended: watch::Receiver<Option<Ended>>,
    alive: watch::Receiver<Instant>,
}

impl Mux {
    /// The side that dialled.
    pub fn client(socket: impl Socket) -> Self {
        Self::start(socket, Role::Client, &Options::default())
    }

    /// The side that was dialled.
    pub fn server(socket: impl Socket, options: &Options) -> Self {
        Self::start(socket, Role::Server, options)
    }

    fn start(socket: impl Socket, role: Role, options: &Options) -> Self {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (accept, incoming) = mpsc::unbounded_channel();
        let (end, ended) = watch::channel(None);
        let (heard, alive) = watch::channel(Instant::now());
        let config = Config {
            keepalive: options.keepalive,
            reply_within: options.reply_within,
            ..Config::default()
        };
        let driver = Driver {
            socket,
            end,
            by_other: false,
            role,
            session: Session::new(role, config, Instant::now()),
            commands: receiver,
            sender: commands.downgrade(),
            accept,
            heard,
            streams: HashMap::new(),
            timer: Box::pin(tokio::time::sleep(options.keepalive)),
            closing: None,
        };
        tokio::spawn(async move {
            let reason = driver.await;
            tracing::debug!(reason, "control session ended");
        });
        Self {
            commands,
            incoming,
            ended,
            alive,
        }
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// When the session has ended or takes no new streams.
    pub async fn open(&self) -> Result<Stream, RpcError> {
        let (reply, answer) = oneshot::channel();
        let asked = self.commands.send(Command::Open(reply));
        asked.map_err(|_| self.gone())?;
        answer.await.map_err(|_| self.gone())?
    }

    /// The next stream that the other side opened; `None` when the session has ended.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Waits for the end of the session and says why it ended.
    pub fn closed(&self) -> impl Future<Output = String> + Send + use<> {
        let mut ended = self.ended.clone();
        async move {
            let reason = ended.wait_for(Option::is_some).await;
            reason
                .ok()
                .and_then(|ended| Some(ended.as_ref()?.reason.clone()))
                .unwrap_or_default()
        }
    }

    /// Tells how the session ended, as soon as its calls hear that it did.
    pub fn end(&self) -> End {
        End(self.ended.clone())
    }

    /// Changes each time when something was heard from the other side by a keepalive.
    pub fn alive(&self) -> watch::Receiver<Instant> {
        self.alive.clone()
    }

    /// Ends the session in order; [`Mux::closed`] tells when it is done.
    pub fn shutdown(&self) {
        let _ = self.commands.send(Command::Shutdown);
    }

    fn gone(&self) -> RpcError {
        RpcError::Session(
            self.ended
                .borrow()
                .as_ref()
                .map_or_else(|| "it was closed".to_owned(), |ended| ended.reason.clone()),
        )
    }
}

/// How a session ended.
#[derive(Debug)]
struct Ended {
    reason: String,
    by_other: bool,
}

/// Tells how a session ended.
#[derive(Clone, Debug)]
pub struct End(watch::Receiver<Option<Ended>>);

impl End {
    /// Whether it is over because the other end closed its connection, with a word or without.
    pub fn by_other_side(&self) -> bool {
        self.0.borrow().as_ref().is_some_and(|ended| ended.by_other)
    }
}

struct Driver<S> {
    socket: S,
    end: watch::Sender<Option<Ended>>,
    /// The other side has closed.
    by_other: bool,
    role: Role,
    session: Session,
    commands: mpsc::UnboundedReceiver<Command>,
    sender: mpsc::WeakUnboundedSender<Command>,
    accept: mpsc::UnboundedSender<Stream>,
    heard: watch::Sender<Instant>,
    streams: HashMap<StreamId, State>,
    timer: Pin<Box<Sleep>>,
    /// Why the session is being closed, and whether the close message is on its way.
    closing: Option<Closing>,
}

struct State {
    input: mpsc::UnboundedSender<Input>,
    room: Arc<Semaphore>,
    queue: VecDeque<(Bytes, Option<OwnedSemaphorePermit>)>,
    close: bool,
    remote_fin: bool,
}

struct Closing {
    since: Instant,
    reason: String,
    code: u16,
    sent: bool,
}

impl<S: Socket> Future for Driver<S> {
    type Output = String;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<String> {
        let driver = self.get_mut();
        let done = ready!(driver.poll_session(cx));
        // Before the streams hear of it.
        driver.end.send_replace(Some(Ended {
            reason: done.clone(),
            by_other: driver.by_other,
        }));
        for state in driver.streams.values() {
            state.room.close();
        }
        Poll::Ready(done)
    }
}

impl<S: Socket> Driver<S> {
    fn poll_session(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        self.poll_commands(cx);
        if let Poll::Ready(reason) = self.poll_input(cx) {
            return Poll::Ready(reason);
        }
        if let Poll::Ready(reason) = self.poll_timer(cx) {
            return Poll::Ready(reason);
        }
        if let Poll::Ready(reason) = self.poll_output(cx) {
            return Poll::Ready(reason);
        }
        Poll::Pending
    }

    fn poll_commands(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(command) = self.commands.poll_recv(cx) {
            match command {
                Some(command) => self.handle(command),
                None => {
                    self.close(NORMAL, "nobody uses it any more");
                    return;
                }
            }
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Open(reply) => {
                let stream = match self.session.open() {
                    Ok(id) => self.stream(id),
                    Err(error) => Err(RpcError::Session(error.to_string())),
                };
                // A caller that gave up drops the stream, which ends it.
                let _ = reply.send(stream);
            }
            Command::Send(id, bytes, permit) => {
                if let Some(state) = self.streams.get_mut(&id) {
                    state.queue.push_back((bytes, permit));
                }
            }
            Command::Consumed(id, length) => self.session.consumed(id, length),
            Command::Close(id) => {
                if let Some(state) = self.streams.get_mut(&id) {
                    state.close = true;
                }
            }
            Command::Drop(id) => self.handle_drop(id),
            Command::Shutdown => {
                let code = match self.role {
                    Role::Client => NORMAL,
                    Role::Server => GOING_AWAY,
                };
                self.close(code, "it was shut down");
            }
        }
    }

    fn handle_drop(&mut self, id: StreamId) {
        let Some(state) = self.streams.get_mut(&id) else {
            return;
        };
        if state.remote_fin || state.close {
            // What is queued still goes out; the stream is forgotten after it.
            state.close = true;
        } else {
            self.session.reset(id);
            self.streams.remove(&id);
        }
    }

    fn stream(&mut self, id: StreamId) -> Result<Stream, RpcError> {
        let Some(commands) = self.sender.upgrade() else {
            return Err(RpcError::Session("it was closed".to_owned()));
        };
        let (sender, input) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(QUEUE));
        let state = State {
            input: sender,
            room: room.clone(),
            queue: VecDeque::new(),
            close: false,
            remote_fin: false,
        };
        self.streams.insert(id, state);
        Ok(Stream {
            output: Output { id, commands, room },
            input,
        })
    }

    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        loop {
            let message = match self.socket.poll_receive(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None | Some(Ok(Received::Close))) => {
                    self.by_other = self.closing.is_none();
                    let reason = self.closing.take().map(|closing| closing.reason);
                    return Poll::Ready(
                        reason.unwrap_or_else(|| "the other side closed it".to_owned()),
                    );
                }
                Poll::Ready(Some(Ok(Received::Gone(error)))) => {
                    self.by_other = self.closing.is_none();
                    return Poll::Ready(error);
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(error),
                Poll::Ready(Some(Ok(message))) => message,
            };
            match message {
                Received::Binary(bytes) => {
                    let now = Instant::now();
                    let taken = self.session.handle_input(&bytes, now);
                    self.handle_events(now);
                    if let Err(error) = taken {
                        self.close(NORMAL, &error.to_string());
                    }
                }
                Received::Text => self.close(UNSUPPORTED, "the other side sent a text message"),
                Received::Control | Received::Close | Received::Gone(_) => {}
            }
        }
    }

    fn handle_events(&mut self, now: Instant) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Incoming(id) => match (self.role, self.stream(id)) {
                    // A client takes no streams of the server's.
                    (Role::Server, Ok(stream)) => drop(self.accept.send(stream)),
                    _ => self.session.reset(id),
                },
                Event::Data(id, bytes) => self.hand(id, Input::Data(bytes)),
                Event::Fin(id) => {
                    if let Some(state) = self.streams.get_mut(&id) {
                        state.remote_fin = true;
                    }
                    self.hand(id, Input::Fin);
                }
                Event::Reset(id) => {
                    self.hand(id, Input::Reset);
                    if let Some(state) = self.streams.remove(&id) {
                        state.room.close();
                    }
                }
                Event::Pong(_) => drop(self.heard.send_replace(now)),
                Event::Writable(_) => {}
                Event::GoAway(code) => tracing::debug!(code, "no new control streams are taken"),
            }
        }
    }

    fn hand(&mut self, id: StreamId, input: Input) {
        let length = match &input {
            Input::Data(bytes) => bytes.len(),
            _ => 0,
        };
        let kept = self
            .streams
            .get(&id)
            .is_some_and(|state| state.input.send(input).is_ok());
        if !kept && length > 0 {
            // Nobody reads it, but the window must not stay shut.
            self.session.consumed(id, length);
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        loop {
            let due = match &self.closing {
                Some(closing) => Some(closing.since + CLOSING),
                None => self.session.poll_timeout(),
            };
            let Some(due) = due else {
                return Poll::Pending;
            };
            let deadline = tokio::time::Instant::from_std(due);
            if self.timer.deadline() != deadline {
                self.timer.as_mut().reset(deadline);
            }
            ready!(self.timer.as_mut().poll(cx));
            if let Some(closing) = &self.closing {
                return Poll::Ready(closing.reason.clone());
            }
            if let Err(error) = self.session.handle_timeout(Instant::now().max(due)) {
                self.close(NORMAL, &error.to_string());
            }
        }
    }

    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        loop {
            self.fill();
            if self.session.pending_output() == 0 {
                break;
            }
            match self.socket.poll_ready(cx) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Ready(Ok(())) => {}
            }
            if let Some(bytes) = self.session.poll_output()
                && let Err(error) = self.socket.start_send(Sent::Binary(bytes))
            {
                return Poll::Ready(error);
            }
        }
        self.poll_close(cx)
    }

    /// Moves queued bytes of the streams into the session, not more than the socket takes soon.
    fn fill(&mut self) {
        let mut gone = Vec::new();
        for (&id, state) in &mut self.streams {
            while let Some((bytes, _)) = state.queue.front_mut() {
                if self.session.pending_output() >= OUTPUT {
                    return;
                }
                let Ok(taken) = self.session.send(id, bytes) else {
                    state.queue.clear();
                    break;
                };
                bytes.advance(taken);
                if !bytes.is_empty() {
                    break;
                }
                state.queue.pop_front();
            }
            if state.close && state.queue.is_empty() {
                self.session.close(id);
                if state.remote_fin || state.input.is_closed() {
                    gone.push(id);
                }
            }
        }
        for id in gone {
            self.streams.remove(&id);
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        if let Some(closing) = &mut self.closing
            && !closing.sent
            && self.session.pending_output() == 0
        {
            match self.socket.poll_ready(cx) {
                Poll::Pending => {}
                Poll::Ready(Err(_)) => return Poll::Ready(closing.reason.clone()),
                Poll::Ready(Ok(())) => {
                    closing.sent = true;
                    if self
                        .socket
                        .start_send(Sent::Close(closing.code, ""))
                        .is_err()
                    {
                        return Poll::Ready(closing.reason.clone());
                    }
                }
            }
        }
        let flushed = self.socket.poll_flush(cx);
        match (flushed, &self.closing) {
            (Poll::Ready(Ok(())), Some(closing)) if closing.sent => {
                Poll::Ready(closing.reason.clone())
            }
            (Poll::Ready(Err(error)), _) => Poll::Ready(error),
            _ => Poll::Pending,
        }
    }

    fn close(&mut self, code: u16, reason: &str) {
        if self.closing.is_none() {
            self.session.go_away();
            self.closing = Some(Closing {
                since: Instant::now(),
                reason: reason.to_owned(),
                code,
                sent: false,
            });
        }
    }
}
