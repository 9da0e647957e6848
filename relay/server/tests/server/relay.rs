//! The embedded relay, reached through the server; what it does with packets is tested beside it.

use futures_util::{SinkExt, StreamExt};
use relay_wire::derp::Frame;
use relay_wire::keys::NodePrivate;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{Plane, RawRelay};

fn key(seed: u8) -> NodePrivate {
    NodePrivate::from_bytes([seed; 32])
}

#[tokio::test]
async fn a_websocket_carries_the_same_frames() {
    let plane = Plane::start().await;
    let mut raw = RawRelay::upgrade(plane.address(), key(1)).await;
    let mut request = format!("ws://{}/derp", plane.address())
        .into_client_request()
        .unwrap();
    let headers = request.headers_mut();
    headers.insert("Sec-WebSocket-Protocol", "derp".parse().unwrap());
    headers.insert("Origin", "https://elsewhere.example".parse().unwrap());
    let stream = TcpStream::connect(plane.address()).await.unwrap();
    let (mut socket, answer) = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "derp");
    // Between its messages and plain bytes stands a pipe.
    let (near, far) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(far);
        let mut buffer = vec![0; 70_000];
        loop {
            tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => {
                        tokio::io::AsyncWriteExt::write_all(&mut write, &bytes).await.unwrap();
                    }
                    Some(Ok(_)) => {}
                    _ => return,
                },
                length = tokio::io::AsyncReadExt::read(&mut read, &mut buffer) => {
                    let bytes = buffer[..length.unwrap()].to_vec();
                    socket.send(Message::Binary(bytes.into())).await.unwrap();
                }
            }
        }
    });
    let mut inside = RawRelay::open(near, key(2)).await;
    assert_eq!(inside.server, raw.server);
    raw.packet(inside.key.public(), &[5; 1300]).await;
    assert!(
        matches!(inside.next().await, Frame::RecvPacket { packet, .. } if packet.len() == 1300)
    );
    inside.packet(raw.key.public(), &[6; 40_000]).await;
    assert!(matches!(raw.next().await, Frame::RecvPacket { packet, .. } if packet.len() == 40_000));
}

#[tokio::test]
async fn the_relays_key_survives_a_restart() {
    let plane = Plane::start().await;
    let before = RawRelay::upgrade(plane.address(), key(1)).await.server;
    let plane = plane.restart().await;
    let after = RawRelay::upgrade(plane.address(), key(1)).await.server;
    assert_eq!(before, after);
}
