//! The relay against raw clients over in-memory streams.

use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use relay_wire::derp::handshake::{self, ClientInfo};
use relay_wire::derp::{Decoder, MAX_PACKET};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;

struct Raw {
    stream: DuplexStream,
    decoder: Decoder,
}

fn relay() -> Arc<Relay> {
    Arc::new(Relay::new(key()))
}

impl Raw {
    fn dial(relay: &Arc<Relay>) -> Self {
        let (stream, server) = tokio::io::duplex(1 << 20);
        let relay = relay.clone();
        tokio::spawn(relay.serve(server));
        Self {
            stream,
            decoder: Decoder::new(),
        }
    }

    async fn join(relay: &Arc<Relay>, key: &NodePrivate) -> Self {
        let mut raw = Self::dial(relay);
        let Some(Frame::ServerKey(server)) = raw.next().await else {
            panic!("no key")
        };
        let info = ClientInfo {
            version: 2,
            can_ack_pings: true,
        };
        let hello = handshake::client_info(key, &server, &info, rand::rng().random());
        raw.send(&hello).await;
        let answer = raw.next().await.unwrap();
        handshake::open_server_info(&answer, key, &server).unwrap();
        raw
    }

    async fn send(&mut self, frame: &Frame) {
        self.stream.write_all(&frame.to_bytes()).await.unwrap();
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                return Some(frame);
            }
            let mut bytes = vec![0; 64 << 10];
            let read = self.stream.read(&mut bytes);
            match tokio::time::timeout(Duration::from_secs(5), read)
                .await
                .unwrap()
            {
                Ok(0) | Err(_) => return None,
                Ok(length) => self.decoder.push(&bytes[..length]),
            }
        }
    }
}

fn key() -> NodePrivate {
    NodePrivate::generate(&mut rand::rng())
}

fn packet(to: &NodePrivate, bytes: &[u8]) -> Frame {
    Frame::SendPacket {
        destination: to.public(),
        packet: Bytes::copy_from_slice(bytes),
    }
}

#[tokio::test]
async fn packets_reach_the_client_of_their_key_in_order() {
    let relay = relay();
    let (alice, bob) = (key(), key());
    let mut a = Raw::join(&relay, &alice).await;
    let mut b = Raw::join(&relay, &bob).await;
    a.send(&Frame::NotePreferred(true)).await;
    a.send(&Frame::Unknown(0x77)).await;
    for size in [1, 1280, MAX_PACKET] {
        let body = vec![7; size];
        a.send(&packet(&bob, &body)).await;
        let expected = Frame::RecvPacket {
            source: alice.public(),
            packet: body.into(),
        };
        assert_eq!(b.next().await, Some(expected));
    }
    for number in 0..200 {
        a.send(&packet(&bob, &[number; 1300])).await;
    }
    for number in 0..200 {
        let expected = Frame::RecvPacket {
            source: alice.public(),
            packet: vec![number; 1300].into(),
        };
        assert_eq!(b.next().await, Some(expected));
    }
    b.send(&Frame::Ping([1, 2, 3, 4, 5, 6, 7, 8])).await;
    assert_eq!(b.next().await, Some(Frame::Pong([1, 2, 3, 4, 5, 6, 7, 8])));
}

#[tokio::test]
async fn the_newest_connection_of_a_key_receives_and_the_older_takes_over() {
    let relay = relay();
    let (alice, bob) = (key(), key());
    let mut a = Raw::join(&relay, &alice).await;
    let mut old = Raw::join(&relay, &bob).await;
    let mut new = Raw::join(&relay, &bob).await;
    a.send(&packet(&bob, b"one")).await;
    assert!(matches!(new.next().await, Some(Frame::RecvPacket { .. })));
    drop(new);
    while relay.clients.read().unwrap()[&bob.public()].len() > 1 {
        tokio::task::yield_now().await;
    }
    a.send(&packet(&bob, b"two")).await;
    let expected = Frame::RecvPacket {
        source: alice.public(),
        packet: Bytes::from_static(b"two"),
    };
    assert_eq!(old.next().await, Some(expected));
}

#[tokio::test]
async fn senders_hear_that_a_client_left() {
    let relay = relay();
    let (alice, bob) = (key(), key());
    let mut a = Raw::join(&relay, &alice).await;
    let mut b = Raw::join(&relay, &bob).await;
    b.send(&packet(&alice, b"hello")).await;
    a.next().await.unwrap();
    drop(a);
    let gone = Frame::PeerGone {
        peer: alice.public(),
        reason: GoneReason::Disconnected,
    };
    assert_eq!(b.next().await, Some(gone));
}

#[tokio::test]
async fn disco_to_an_absent_key_is_answered_three_times() {
    let relay = relay();
    let (alice, nobody) = (key(), key());
    let mut a = Raw::join(&relay, &alice).await;
    let disco = [b"TS\xf0\x9f\x92\xac".as_slice(), &[0; 94]].concat();
    for _ in 0..5 {
        a.send(&packet(&nobody, &disco)).await;
        a.send(&packet(&nobody, b"not disco")).await;
    }
    a.send(&Frame::Ping([0; 8])).await;
    for _ in 0..3 {
        let gone = Frame::PeerGone {
            peer: nobody.public(),
            reason: GoneReason::NotHere,
        };
        assert_eq!(a.next().await, Some(gone));
    }
    assert_eq!(a.next().await, Some(Frame::Pong([0; 8])));
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_packets_and_slows_nobody() {
    let relay = relay();
    let (alice, bob, carol) = (key(), key(), key());
    let mut a = Raw::join(&relay, &alice).await;
    let mut b = Raw::join(&relay, &bob).await;
    let mut c = Raw::join(&relay, &carol).await;
    // So that it hears of the end.
    b.send(&packet(&alice, b"hello")).await;
    a.next().await.unwrap();
    for _ in 0..4000 {
        a.send(&packet(&bob, &[1; 1400])).await;
    }
    a.send(&Frame::Ping([9; 8])).await;
    assert_eq!(a.next().await, Some(Frame::Pong([9; 8])));
    a.send(&packet(&carol, b"alive")).await;
    let expected = Frame::RecvPacket {
        source: alice.public(),
        packet: Bytes::from_static(b"alive"),
    };
    assert_eq!(c.next().await, Some(expected));
    // What fitted into the stream and the queue is all that is left for the reader.
    drop(a);
    let mut received = 0;
    while let Some(frame) = b.next().await {
        match frame {
            Frame::RecvPacket { .. } => received += 1,
            _ => break,
        }
    }
    assert!((512..2500).contains(&received), "{received}");
}

#[tokio::test]
async fn garbage_and_long_frames_end_the_connection() {
    let relay = relay();
    let mut raw = Raw::dial(&relay);
    raw.next().await.unwrap();
    raw.stream.write_all(&[0xff; 64]).await.unwrap();
    assert_eq!(raw.next().await, None);

    for header in [
        [4, 0xff, 0xff, 0xff, 0xff],
        [0x77, 0, 0x20, 0, 0],
        [4, 0, 0, 0, 3],
    ] {
        let mut raw = Raw::join(&relay, &key()).await;
        raw.stream.write_all(&header).await.unwrap();
        let _ = raw.stream.write_all(&[0; 3]).await;
        assert_eq!(raw.next().await, None, "{header:?}");
    }
}
