//! One connection to a relay: opened by upgrade or as a WebSocket, then carried to its end.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use relay_wire::derp::handshake::{self, ClientInfo};
use relay_wire::derp::{Decoder, Frame};
use relay_wire::derp_map::Node;
use relay_wire::keys::NodePrivate;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

use super::queue::Queue;
use super::{Options, Received};
use crate::dial::{self, BoxedStream, DialError, Target};

/// A node that does not answer in this time is left for the next.
const DIAL: Duration = Duration::from_millis(1500);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A relay sends something at least each minute.
const SILENCE: Duration = Duration::from_secs(120);
/// After sending and hearing nothing for so long, the relay is asked whether it lives,
const DOUBT: Duration = Duration::from_secs(1);
/// and so long after that it is given up.
const DEAD: Duration = Duration::from_secs(2);
/// Reads ask for so much room.
const READ: usize = 64 << 10;
const IDLE_READ: usize = 4 << 10;

/// Why a relay could not be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("the relay map names no address for this relay")]
    NoAddress,
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("it did not finish the handshake")]
    Handshake,
    #[error("no WebSocket: {0}")]
    WebSocket(String),
    #[error("it does not keep to the protocol: {0}")]
    Protocol(#[from] relay_wire::Error),
}

impl OpenError {
    pub(super) fn asks_for_websocket(&self) -> bool {
        matches!(self, Self::Dial(DialError::Refused { status, .. }) if (400..500).contains(status))
    }
}

/// An open connection, handshake done.
pub(super) struct Connection {
    reader: Reader,
    writer: Writer,
    decoder: Decoder,
}

enum Reader {
    Plain(ReadHalf<BoxedStream>),
    Web(SplitStream<WebSocketStream<BoxedStream>>),
}

enum Writer {
    Plain(WriteHalf<BoxedStream>),
    Web(SplitSink<WebSocketStream<BoxedStream>, Message>),
}

impl Connection {
    pub(super) async fn open(
        node: &Node,
        key: &NodePrivate,
        options: &Options,
        websocket: bool,
    ) -> Result<Self, OpenError> {
        let target = target(node)?;
        let stream = dial::connect_to(&target, &options.tls, DIAL).await?;
        let open = async {
            let mut connection = match websocket {
                true => Self::web(stream, &target, options).await?,
                false => Self::plain(stream, &target, options).await?,
            };
            connection.shake_hands(key).await?;
            Ok(connection)
        };
        timeout(HANDSHAKE, open)
            .await
            .unwrap_or(Err(OpenError::Handshake))
    }

    async fn plain(
        stream: BoxedStream,
        target: &Target,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let host = target.host_header();
        let upgraded =
            dial::upgrade(stream, &host, handshake::PATH, "DERP", &options.headers).await?;
        let mut decoder = Decoder::new();
        decoder.push(&upgraded.rest);
        let (reader, writer) = tokio::io::split(upgraded.stream);
        Ok(Self {
            reader: Reader::Plain(reader),
            writer: Writer::Plain(writer),
            decoder,
        })
    }

    async fn web(
        stream: BoxedStream,
        target: &Target,
        options: &Options,
    ) -> Result<Self, OpenError> {
        let failed = |error: &dyn std::fmt::Display| OpenError::WebSocket(error.to_string());
        let scheme = if target.tls { "wss" } else { "ws" };
        let url = format!("{scheme}://{}{}", target.host_header(), handshake::PATH);
        let mut request = url.into_client_request().map_err(|error| failed(&error))?;
        let headers = request.headers_mut();
        headers.insert("Sec-WebSocket-Protocol", HeaderValue::from_static("derp"));
        for (name, value) in &options.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| failed(&error))?;
            headers.insert(
                name,
                HeaderValue::from_str(value).map_err(|error| failed(&error))?,
            );
        }
        let config = WebSocketConfig::default()
            .read_buffer_size(READ)
            .write_buffer_size(0);
        let opened =
            tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await;
        let (socket, _) = opened.map_err(|error: tungstenite::Error| failed(&error))?;
        let (writer, reader) = socket.split();
        Ok(Self {
            reader: Reader::Web(reader),
            writer: Writer::Web(writer),
            decoder: Decoder::new(),
        })
    }

    async fn shake_hands(&mut self, key: &NodePrivate) -> Result<(), OpenError> {
        let Frame::ServerKey(server) = self.next().await? else {
            return Err(OpenError::Handshake);
        };
        let info = ClientInfo::default();
        let hello = handshake::client_info(key, &server, &info, rand::random()).to_bytes();
        self.writer.write(hello).await.ok_or(OpenError::Handshake)?;
        handshake::open_server_info(&self.next().await?, key, &server)?;
        let preferred = Frame::NotePreferred(true).to_bytes();
        self.writer
            .write(preferred)
            .await
            .ok_or(OpenError::Handshake)
    }

    async fn next(&mut self) -> Result<Frame, OpenError> {
        loop {
            if let Some(frame) = self.decoder.next()? {
                return Ok(frame);
            }
            self.reader
                .read(&mut self.decoder, READ)
                .await
                .ok_or(OpenError::Handshake)?;
        }
    }

    /// Moves packets both ways until the connection ends, and says how it ended.
    pub(super) async fn carry(
        self,
        region: u16,
        queue: &Queue,
        received: &mpsc::Sender<Received>,
    ) -> &'static str {
        let Self {
            reader,
            writer,
            decoder,
        } = self;
        let watch = Watch::new();
        let (answers, answered) = mpsc::channel(8);
        tokio::select! {
            end = read_all(reader, decoder, region, received, &answers, &watch) => end,
            end = write_all(writer, queue, answered, &watch) => end,
            end = watch.guard(&answers) => end,
        }
    }
}

/// Where a relay is dialled, and under which name.
pub(super) fn target(node: &Node) -> Result<Target, OpenError> {
    let url = node.relay_url().ok_or(OpenError::NoAddress)?;
    let mut target = Target::from_url(&url)?;
    target.certificate_name = Some(node.cert_name.clone()).filter(|name| !name.is_empty());
    target.insecure = node.insecure_for_tests;
    target.addresses = [&node.ipv4, &node.ipv6]
        .into_iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    Ok(target)
}

async fn read_all(
    mut reader: Reader,
    mut decoder: Decoder,
    region: u16,
    received: &mpsc::Sender<Received>,
    answers: &mpsc::Sender<Bytes>,
    watch: &Watch,
) -> &'static str {
    let mut room = IDLE_READ;
    loop {
        loop {
            match decoder.next() {
                Ok(Some(Frame::RecvPacket { source, packet })) => {
                    if received
                        .send(Received {
                            region,
                            source,
                            packet,
                        })
                        .await
                        .is_err()
                    {
                        return "nobody receives any more";
                    }
                }
                Ok(Some(Frame::Ping(data))) => {
                    // A relay that pings faster than it reads gets fewer answers.
                    let _ = answers.try_send(Frame::Pong(data).to_bytes());
                }
                Ok(Some(Frame::Health(problem))) if !problem.is_empty() => {
                    tracing::debug!(region, problem, "the relay reports a problem");
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return "the relay broke the protocol",
            }
        }
        match timeout(SILENCE, reader.read(&mut decoder, room)).await {
            Ok(Some(bytes)) => {
                // Idle connections hold little memory, busy ones read much at once.
                room = if bytes >= room / 2 { READ } else { IDLE_READ };
                watch.heard();
            }
            Ok(None) => return "the relay closed it",
            Err(_) => return "the relay fell silent",
        }
    }
}

async fn write_all(
    mut writer: Writer,
    queue: &Queue,
    mut answered: mpsc::Receiver<Bytes>,
    watch: &Watch,
) -> &'static str {
    loop {
        let bytes = tokio::select! {
            biased;
            Some(answer) = answered.recv() => answer,
            bytes = queue.pop() => bytes,
        };
        watch.sent();
        if writer.write(bytes).await.is_none() {
            return "writing failed";
        }
    }
}

impl Reader {
    /// Reads what is there into the decoder; `None` at the end.
    async fn read(&mut self, decoder: &mut Decoder, room: usize) -> Option<usize> {
        match self {
            Self::Plain(stream) => {
                let buffer: &mut BytesMut = decoder.buffer_mut();
                buffer.reserve(room);
                stream.read_buf(buffer).await.ok().filter(|read| *read > 0)
            }
            Self::Web(stream) => loop {
                match stream.next().await?.ok()? {
                    Message::Binary(bytes) => {
                        decoder.push(&bytes);
                        return Some(bytes.len());
                    }
                    Message::Close(_) => return None,
                    _ => {}
                }
            },
        }
    }
}

impl Writer {
    async fn write(&mut self, mut bytes: Bytes) -> Option<()> {
        match self {
            Self::Plain(stream) => {
                stream.write_all_buf(&mut bytes).await.ok()?;
                stream.flush().await.ok()
            }
            Self::Web(sink) => sink.send(Message::Binary(bytes)).await.ok(),
        }
    }
}

/// Notices a relay that takes packets and says nothing: a machine that went away without a word.
struct Watch {
    /// Since when something was sent and nothing heard.
    waiting: Mutex<Option<Instant>>,
    begun: Notify,
}

impl Watch {
    fn new() -> Self {
        Self {
            waiting: Mutex::new(None),
            begun: Notify::new(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Instant>> {
        // Nobody panics while holding it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self) {
        let mut waiting = self.waiting();
        if waiting.is_none() {
            *waiting = Some(Instant::now());
            self.begun.notify_one();
        }
    }

    fn heard(&self) {
        *self.waiting() = None;
    }

    /// Ends when the relay is dead.
    async fn guard(&self, ask: &mpsc::Sender<Bytes>) -> &'static str {
        loop {
            let since = *self.waiting();
            let Some(since) = since else {
                self.begun.notified().await;
                continue;
            };
            tokio::time::sleep_until(since + DOUBT).await;
            if *self.waiting() != Some(since) {
                continue;
            }
            // A full queue of answers means that nothing is written, and asking would not help.
            let _ = ask.try_send(Frame::Ping(rand::random()).to_bytes());
            tokio::time::sleep_until(since + DEAD).await;
            if *self.waiting() == Some(since) {
                return "the relay does not answer";
            }
        }
    }
}
