//! Relay connections, the plain way: one task a region that reconnects for ever.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use relay_wire::derp::handshake::{self, ClientInfo};
use relay_wire::derp::{self, Decoder, Frame};
use relay_wire::derp_map::{Node, Region};
use relay_wire::keys::{NodePrivate, NodePublic};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};

use crate::dial::{self, BoxedStream, DialError, Target, TlsOptions};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(5);
const DIAL: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(120);
const QUEUE: usize = 512;
const WEBSOCKET_BUFFER: usize = 256 * 1024;

/// How a region is dialled.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Speak WebSocket only.
    pub force_websocket: bool,
    /// TLS settings.
    pub tls: TlsOptions,
    /// Headers to add.
    pub headers: Vec<(String, String)>,
}

/// A packet that came through a relay.
#[derive(Debug)]
pub struct Received {
    /// The region it came through.
    pub region: u16,
    /// Who sent it.
    pub source: NodePublic,
    /// The packet.
    pub packet: Bytes,
}

/// The connection to one region.
pub struct Client {
    out: mpsc::Sender<Bytes>,
    connected: watch::Receiver<bool>,
    task: AbortHandle,
}

impl Client {
    /// Connects, and reconnects for ever.
    pub fn connect(
        region: Region,
        key: NodePrivate,
        options: Options,
        received: mpsc::Sender<Received>,
    ) -> Client {
        let (out, mut frames) = mpsc::channel(QUEUE);
        let (state, connected) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            let mut options = options;
            loop {
                for node in region.nodes.iter().filter(|node| !node.stun_only) {
                    match open(node, &key, &mut options).await {
                        Some((stream, decoder)) => {
                            pause = FIRST_PAUSE;
                            state.send_replace(true);
                            carry(region.id, stream, decoder, &mut frames, &received).await;
                            state.send_replace(false);
                        }
                        None => tracing::debug!(region = region.id, "relay not reached"),
                    }
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        });
        Client {
            out,
            connected,
            task: task.abort_handle(),
        }
    }

    /// Sends a packet; drops it when too many wait.
    pub fn send(&self, node: NodePublic, packet: &[u8]) {
        let mut frame = BytesMut::with_capacity(packet.len() + 64);
        derp::put_send_packet(&mut frame, &node, packet);
        let _ = self.out.try_send(frame.freeze());
    }

    /// Whether the region is connected.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.connected.clone()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connects to one relay and introduces this end. A relay, or a proxy before it, that refuses the
/// upgrade is spoken to over WebSocket from then on.
async fn open(
    node: &Node,
    key: &NodePrivate,
    options: &mut Options,
) -> Option<(BoxedStream, Decoder)> {
    let mut target = Target::from_url(&node.relay_url()?).ok()?;
    target.insecure = node.insecure_for_tests;
    target.certificate_name = Some(node.cert_name.clone()).filter(|name| !name.is_empty());
    let fixed = [&node.ipv4, &node.ipv6];
    target.addresses = fixed
        .into_iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    let dialled = dial::connect_to(&target, &options.tls, DIAL).await;
    let stream = dialled
        .inspect_err(|error| tracing::debug!(%error, "relay"))
        .ok()?;
    let host = target.host_header();
    let mut decoder = Decoder::new();
    let opening = async {
        if options.force_websocket {
            return open_websocket(stream, &host, &options.headers).await;
        }
        match dial::upgrade(stream, &host, handshake::PATH, "DERP", &options.headers).await {
            Ok(upgraded) => {
                decoder.push(&upgraded.rest);
                Some(upgraded.stream)
            }
            Err(DialError::Refused { status, .. }) if (400..500).contains(&status) => {
                tracing::debug!(status, "relay refuses the upgrade; WebSocket from now on");
                options.force_websocket = true;
                None
            }
            Err(error) => {
                tracing::debug!(%error, "relay");
                None
            }
        }
    };
    let mut stream = tokio::time::timeout(DIAL, opening).await.ok()??;
    let Frame::ServerKey(server) = next(&mut stream, &mut decoder).await? else {
        return None;
    };
    let info = ClientInfo::default();
    let hello = handshake::client_info(key, &server, &info, rand::random()).to_bytes();
    stream.write_all(&hello).await.ok()?;
    stream.flush().await.ok()?;
    let answer = next(&mut stream, &mut decoder).await?;
    handshake::open_server_info(&answer, key, &server).ok()?;
    Some((stream, decoder))
}

/// The relay protocol in binary messages, whose borders mean nothing.
async fn open_websocket(
    stream: BoxedStream,
    host: &str,
    headers: &[(String, String)],
) -> Option<BoxedStream> {
    let url = format!("ws://{host}{}", handshake::PATH);
    let mut request = url.into_client_request().ok()?;
    let protocol = HeaderValue::from_static(handshake::WEBSOCKET_PROTOCOL);
    request
        .headers_mut()
        .insert("Sec-WebSocket-Protocol", protocol);
    for (name, value) in headers {
        let name: HeaderName = name.parse().ok()?;
        request.headers_mut().insert(name, value.parse().ok()?);
    }
    let opened = tokio_tungstenite::client_async(request, stream).await;
    let (socket, _) = opened
        .inspect_err(|error| tracing::debug!(%error, "relay"))
        .ok()?;
    let (near, far) = tokio::io::duplex(WEBSOCKET_BUFFER);
    tokio::spawn(bridge(socket, far));
    Some(Box::new(near))
}

async fn bridge(socket: WebSocketStream<BoxedStream>, far: tokio::io::DuplexStream) -> Option<()> {
    let (mut sink, mut messages) = socket.split();
    let (mut read, mut write) = tokio::io::split(far);
    let inward = async {
        while let Some(Ok(message)) = messages.next().await {
            if let Message::Binary(data) = message {
                write.write_all(&data).await.ok()?;
            }
        }
        None
    };
    let outward = async {
        loop {
            let mut data = BytesMut::with_capacity(16 * 1024);
            if read.read_buf(&mut data).await.ok()? == 0 {
                return sink.close().await.ok();
            }
            sink.send(Message::Binary(data.freeze())).await.ok()?;
        }
    };
    tokio::select! {
        end = inward => end,
        end = outward => end,
    }
}

async fn next(stream: &mut BoxedStream, decoder: &mut Decoder) -> Option<Frame> {
    loop {
        if let Some(frame) = decoder.next().ok()? {
            return Some(frame);
        }
        let read = tokio::time::timeout(DIAL, stream.read_buf(decoder.buffer_mut()));
        if read.await.ok()?.ok()? == 0 {
            return None;
        }
    }
}

async fn carry(
    region: u16,
    stream: BoxedStream,
    mut decoder: Decoder,
    frames: &mut mpsc::Receiver<Bytes>,
    received: &mpsc::Sender<Received>,
) -> Option<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    let (answers, mut answered) = mpsc::channel::<Bytes>(8);
    let reader = async {
        loop {
            while let Some(frame) = decoder.next().ok()? {
                match frame {
                    Frame::RecvPacket { source, packet } => {
                        received
                            .send(Received {
                                region,
                                source,
                                packet,
                            })
                            .await
                            .ok()?;
                    }
                    Frame::Ping(data) => {
                        let _ = answers.try_send(Frame::Pong(data).to_bytes());
                    }
                    _ => {}
                }
            }
            let read = tokio::time::timeout(SILENCE, read.read_buf(decoder.buffer_mut()));
            if read.await.ok()?.ok()? == 0 {
                return None;
            }
        }
    };
    let writer = async {
        let mut out = BytesMut::new();
        loop {
            let frame = tokio::select! {
                frame = frames.recv() => frame?,
                frame = answered.recv() => frame?,
            };
            out.extend_from_slice(&frame);
            while out.len() < 64 * 1024
                && let Ok(frame) = frames.try_recv()
            {
                out.extend_from_slice(&frame);
            }
            write.write_all_buf(&mut out).await.ok()?;
            write.flush().await.ok()?;
        }
    };
    tokio::select! {
        end = reader => end,
        end = writer => end,
    }
}
