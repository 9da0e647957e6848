//! The embedded relay.

use futures_util::{SinkExt, StreamExt};
use relay_wire::derp::{Frame, GoneReason};
use relay_wire::disco;
use relay_wire::keys::NodePrivate;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{Plane, RawRelay, soon};

fn key(seed: u8) -> NodePrivate {
    NodePrivate::from_bytes([seed; 32])
}

fn disco_packet() -> Vec<u8> {
    [&disco::MAGIC[..], &[1; 100]].concat()
}

#[tokio::test]
async fn packets_reach_their_key_in_order() {
    let plane = Plane::start().await;
    let mut a = RawRelay::upgrade(plane.address(), key(1)).await;
    let mut b = RawRelay::upgrade(plane.address(), key(2)).await;
    for number in 0..200_u8 {
        a.packet(b.key.public(), &[number; 1300]).await;
    }
    for number in 0..200_u8 {
        let packet = vec![number; 1300].into();
        let source = a.key.public();
        assert_eq!(b.next().await, Frame::RecvPacket { source, packet });
    }
    let large = vec![9; 65_536];
    b.packet(a.key.public(), &large).await;
    let source = b.key.public();
    let packet = large.into();
    assert_eq!(a.next().await, Frame::RecvPacket { source, packet });
    plane.server.shutdown().await;
}

#[tokio::test]
async fn pings_are_answered_and_unknown_frames_skipped() {
    let plane = Plane::start().await;
    let mut client = RawRelay::upgrade(plane.address(), key(1)).await;
    client.send(&Frame::NotePreferred(true)).await;
    client.send(&Frame::Unknown(0x7f)).await;
    client.send(&Frame::Ping([1, 2, 3, 4, 5, 6, 7, 8])).await;
    let pong = Frame::Pong([1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(client.next().await, pong);
}

#[tokio::test]
async fn an_absent_peer_is_said_for_disco_only_and_not_often() {
    let plane = Plane::start().await;
    let mut client = RawRelay::upgrade(plane.address(), key(1)).await;
    let absent = key(9).public();
    client.packet(absent, &[0; 100]).await;
    client.sync().await;
    for _ in 0..50 {
        client.packet(absent, &disco_packet()).await;
    }
    client.send(&Frame::Ping([0; 8])).await;
    let mut gone = 0;
    loop {
        match client.next().await {
            Frame::PeerGone { peer, reason } => {
                assert_eq!((peer, reason), (absent, GoneReason::NotHere));
                gone += 1;
            }
            Frame::Pong(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!((1..=4).contains(&gone), "{gone} times");
}

#[tokio::test]
async fn the_newest_connection_of_a_key_receives_and_the_older_takes_over() {
    let plane = Plane::start().await;
    let mut sender = RawRelay::upgrade(plane.address(), key(1)).await;
    let mut old = RawRelay::upgrade(plane.address(), key(2)).await;
    let to = old.key.public();
    sender.packet(to, b"one").await;
    assert!(matches!(old.next().await, Frame::RecvPacket { packet, .. } if packet == "one"));
    let mut new = RawRelay::upgrade(plane.address(), key(2)).await;
    new.sync().await;
    sender.packet(to, b"two").await;
    assert!(matches!(new.next().await, Frame::RecvPacket { packet, .. } if packet == "two"));
    drop(new);
    // The end of the newer connection is noticed when it is.
    let took_over = async {
        loop {
            sender.packet(to, b"three").await;
            let wait = std::time::Duration::from_millis(50);
            if let Ok(frame) = tokio::time::timeout(wait, old.next()).await {
                return frame;
            }
        }
    };
    let frame = soon(took_over).await;
    assert!(matches!(frame, Frame::RecvPacket { packet, .. } if packet == "three"));
}

#[tokio::test]
async fn a_sender_hears_that_its_peer_left() {
    let plane = Plane::start().await;
    let mut a = RawRelay::upgrade(plane.address(), key(1)).await;
    let mut b = RawRelay::upgrade(plane.address(), key(2)).await;
    a.packet(b.key.public(), b"hello").await;
    b.next().await;
    let peer = b.key.public();
    drop(b);
    let reason = GoneReason::Disconnected;
    assert_eq!(a.next().await, Frame::PeerGone { peer, reason });
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_packets_and_slows_nobody() {
    let plane = Plane::start().await;
    let mut sender = RawRelay::upgrade(plane.address(), key(1)).await;
    let mut reader = RawRelay::upgrade(plane.address(), key(2)).await;
    let stuck = RawRelay::upgrade(plane.address(), key(3)).await;
    let packet = vec![0; 60_000];
    for _ in 0..2_000 {
        sender.packet(stuck.key.public(), &packet).await;
    }
    sender.packet(reader.key.public(), b"alive").await;
    assert!(matches!(reader.next().await, Frame::RecvPacket { packet, .. } if packet == "alive"));
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
