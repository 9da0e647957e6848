//! Relay connections, the plain way: one task a region that reconnects for ever.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use relay_wire::derp::handshake::{self, ClientInfo};
use relay_wire::derp::{self, Decoder, Frame};
use relay_wire::derp_map::{Node, Region};
use relay_wire::keys::{NodePrivate, NodePublic};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::dial::{self, BoxedStream, Target, TlsOptions};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(5);
const DIAL: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(120);
const QUEUE: usize = 512;

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
            loop {
                for node in region.nodes.iter().filter(|node| !node.stun_only) {
                    match open(node, &key, &options).await {
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

async fn open(node: &Node, key: &NodePrivate, options: &Options) -> Option<(BoxedStream, Decoder)> {
    let mut target = Target::from_url(&node.relay_url()?).ok()?;
    target.insecure = node.insecure_for_tests;
    let stream = dial::connect_to(&target, &options.tls, DIAL).await.ok()?;
    let host = target.host_header();
    let upgraded = dial::upgrade(stream, &host, handshake::PATH, "DERP", &options.headers);
    let upgraded = tokio::time::timeout(DIAL, upgraded).await.ok()?.ok()?;
    let mut stream = upgraded.stream;
    let mut decoder = Decoder::new();
    decoder.push(&upgraded.rest);
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
