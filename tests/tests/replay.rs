//! The server's half of recorded sessions, played to our client: it must take every byte and end as
//! the real client did.
#![allow(
    clippy::unwrap_used,
    reason = "a test panics on what it does not expect"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use relay_control::rpc::{Mux, Receiver, Sender, websocket_config};
use relay_lab::vectors::own_copy;
use relay_tunnel::derp::{Client, Options};
use relay_wire::derp::{Decoder as FrameDecoder, Frame};
use relay_wire::derp_map::{Node, Region};
use relay_wire::drpc;
use relay_wire::keys::NodePrivate;
use relay_wire::proto::tailnet::CoordinateRequest;
use relay_wire::yamux::{Header, Kind};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

const PATIENCE: Duration = Duration::from_secs(30);

fn session(name: &str) -> Value {
    let path = own_copy().join("live").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn pieces(session: &Value, direction: &str) -> Vec<Vec<u8>> {
    let stream = session["stream"].as_array().unwrap();
    let pieces = stream.iter().filter(|piece| piece["dir"] == direction);
    pieces
        .map(|piece| hex::decode(piece["hex"].as_str().unwrap()).unwrap())
        .collect()
}

/// The data of each stream of one direction of a yamux session.
fn streams(bytes: &[u8]) -> BTreeMap<u32, Vec<u8>> {
    let mut streams: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let mut rest = bytes;
    while let Some((head, body)) = rest.split_first_chunk() {
        let header = Header::decode(head).unwrap();
        let length = if header.kind == Kind::Data {
            header.length as usize
        } else {
            0
        };
        let stream = streams.entry(header.stream).or_default();
        stream.extend_from_slice(&body[..length]);
        rest = &body[length..];
    }
    streams.remove(&0);
    streams
}

fn packets(bytes: &[u8]) -> Vec<drpc::Packet> {
    let mut decoder = drpc::Decoder::new();
    decoder.push(bytes);
    std::iter::from_fn(|| decoder.next_packet().unwrap()).collect()
}

/// Plays a control session's server half to a client that makes the recorded calls in their order.
async fn play(name: &str) {
    let session = session(name);
    let (up, down) = (pieces(&session, "c2s").concat(), pieces(&session, "s2c"));
    let (near, far) = tokio::io::duplex(1 << 20);
    let config = Some(websocket_config());
    let near = WebSocketStream::from_raw_socket(near, Role::Client, config).await;
    let mut far = WebSocketStream::from_raw_socket(far, Role::Server, config).await;
    let mux = Mux::client(near);
    let mut calls: BTreeMap<u32, (Sender, Receiver)> = BTreeMap::new();
    for (id, bytes) in streams(&up) {
        let path = String::from_utf8(packets(&bytes)[0].body.to_vec()).unwrap();
        let (mut sender, receiver) = mux.bidirectional(&path).await.unwrap();
        // What is asked does not matter: the answers are recorded.
        sender.send(&CoordinateRequest::default()).await.unwrap();
        calls.insert(id, (sender, receiver));
    }
    // The server's acknowledgements make sense only for streams that it has seen.
    let mut opened = 0;
    while opened < calls.len() {
        let message = timeout(PATIENCE, far.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let data = message.into_data();
        let mut rest = &data[..];
        while let Some((head, body)) = rest.split_first_chunk() {
            let header = Header::decode(head).unwrap();
            opened += usize::from(header.kind == Kind::Window && header.flags & 1 != 0);
            let length = if header.kind == Kind::Data {
                header.length as usize
            } else {
                0
            };
            rest = &body[length..];
        }
    }
    for piece in &down {
        far.send(Message::Binary(Bytes::copy_from_slice(piece)))
            .await
            .unwrap();
    }
    let answers = streams(&down.concat());
    for (id, (_sender, mut receiver)) in calls {
        let recorded = answers
            .get(&id)
            .map(|bytes| packets(bytes))
            .unwrap_or_default();
        let messages = recorded
            .iter()
            .filter(|packet| packet.kind == drpc::Kind::Message);
        for number in 0..messages.count() {
            let got = timeout(
                PATIENCE,
                receiver.message::<relay_wire::proto::tailnet::Empty>(),
            );
            let got = got.await.unwrap();
            assert!(
                matches!(got, Ok(Some(_))),
                "{name}: stream {id}, message {number}: {got:?}"
            );
        }
        let ended = recorded.iter().any(|packet| {
            matches!(
                packet.kind,
                drpc::Kind::Close | drpc::Kind::CloseSend | drpc::Kind::Error
            )
        });
        if ended {
            let end = timeout(
                PATIENCE,
                receiver.message::<relay_wire::proto::tailnet::Empty>(),
            );
            assert!(
                !matches!(end.await.unwrap(), Ok(Some(_))),
                "{name}: stream {id} goes on"
            );
        }
    }
    // The session outlives all of it, and ends when the server closes it.
    far.close(None).await.unwrap();
    timeout(PATIENCE, mux.closed()).await.unwrap();
}

#[tokio::test]
async fn the_servers_half_of_control_sessions_is_taken() {
    for who in ["cli", "cli_short", "agent", "agent_short"] {
        play(&format!("control_session_{who}.json")).await;
    }
}

#[tokio::test]
async fn the_relays_half_of_a_session_is_taken_with_the_recorded_keys() {
    let content = session("derp_session.json");
    for session in content["sessions"].as_array().unwrap() {
        let who = session["who"].as_str().unwrap().split(' ').next().unwrap();
        let key = hex::decode(content["private_keys"][who].as_str().unwrap()).unwrap();
        let key = NodePrivate::from_bytes(key.try_into().unwrap());
        let down = pieces(session, "s2c").concat();
        let mut decoder = FrameDecoder::new();
        decoder.push(&down);
        let mut recorded = Vec::new();
        while let Some(frame) = decoder.next().unwrap() {
            if let Frame::RecvPacket { source, packet } = frame {
                recorded.push((source, packet));
            }
        }
        let mut received = relay(down, key).await;
        for (source, packet) in recorded {
            let got = timeout(PATIENCE, received.1.recv()).await.unwrap().unwrap();
            assert_eq!((got.source, got.packet), (source, packet));
        }
    }
}

/// A relay that says what was recorded, to the first client, and our client of it.
async fn relay(
    down: Vec<u8>,
    key: NodePrivate,
) -> (Client, mpsc::Receiver<relay_tunnel::derp::Received>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let read = stream.read(&mut request).await.unwrap();
        assert!(request[..read].starts_with(b"GET /derp HTTP/1.1\r\n"));
        let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\n\
                    Connection: Upgrade\r\nDerp-Version: 2\r\n\r\n";
        // The first frame comes with the answer, as it did for real.
        stream
            .write_all(&[head.as_bytes(), &down].concat())
            .await
            .unwrap();
        while stream.read(&mut request).await.is_ok_and(|read| read > 0) {}
    });
    let node = Node {
        host_name: "127.0.0.1".into(),
        derp_port: port.into(),
        force_http: true,
        ..Node::default()
    };
    let region = Region {
        id: 1,
        nodes: vec![node],
        ..Region::default()
    };
    let (sender, received) = mpsc::channel(64);
    (
        Client::connect(region, key, Options::default(), sender),
        received,
    )
}
