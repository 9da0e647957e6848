//! The client against a small relay that echoes.

use relay_wire::derp::handshake::{self, ServerInfo};
use relay_wire::derp::{self, Decoder, Frame};
use relay_wire::derp_map::Node;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// How a fake relay behaves.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// Takes `Upgrade: DERP`.
    Upgrade,
    /// Answers 426 to it and takes WebSockets.
    WebSocketOnly,
    /// Ends each connection after one packet.
    Short,
    /// Takes packets and says nothing.
    Mute,
}

async fn relay(manner: Manner) -> Region {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                match manner {
                    Manner::WebSocketOnly => websocket(stream).await,
                    _ => upgrade(stream, manner).await,
                }
            });
        }
    });
    let node = Node {
        name: "1a".into(),
        region_id: 1,
        host_name: "127.0.0.1".into(),
        derp_port: port.into(),
        force_http: true,
        stun_port: -1,
        ..Node::default()
    };
    Region {
        id: 1,
        code: "test".into(),
        nodes: vec![node],
        ..Region::default()
    }
}

/// The relay's half of the protocol: bytes in, bytes out.
struct Half {
    key: NodePrivate,
    client: Option<NodePublic>,
    decoder: Decoder,
    manner: Manner,
}

impl Half {
    fn new(manner: Manner) -> Self {
        let key = NodePrivate::from_bytes([5; 32]);
        Self {
            key,
            client: None,
            decoder: Decoder::new(),
            manner,
        }
    }

    /// The answer to some bytes, and whether the connection goes on.
    fn take(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        self.decoder.push(bytes);
        let mut out = bytes::BytesMut::new();
        let mut goes_on = true;
        while let Some(frame) = self.decoder.next().unwrap() {
            match frame {
                Frame::SendPacket { packet, .. } if self.manner != Manner::Mute => {
                    derp::put_recv_packet(&mut out, &self.client.unwrap(), &packet);
                    goes_on = self.manner != Manner::Short;
                }
                hello @ Frame::ClientInfo { .. } => {
                    let (client, _) = handshake::open_client_info(&hello, &self.key).unwrap();
                    self.client = Some(client);
                    let info = ServerInfo::default();
                    handshake::server_info(&self.key, &client, &info, [7; 24]).encode(&mut out);
                    Frame::Ping([3; 8]).encode(&mut out);
                }
                _ => {}
            }
        }
        (out.to_vec(), goes_on)
    }
}

async fn upgrade(mut stream: TcpStream, manner: Manner) {
    let mut half = Half::new(manner);
    let mut buffer = vec![0; 64 << 10];
    let read = stream.read(&mut buffer).await.unwrap();
    assert!(String::from_utf8_lossy(&buffer[..read]).contains("Upgrade: DERP"));
    let mut out = handshake::upgrade_response(&half.key.public()).into_bytes();
    out.extend_from_slice(&Frame::ServerKey(half.key.public()).to_bytes());
    stream.write_all(&out).await.unwrap();
    loop {
        let read = stream.read(&mut buffer).await.unwrap_or(0);
        if read == 0 {
            return;
        }
        let (answer, goes_on) = half.take(&buffer[..read]);
        if stream.write_all(&answer).await.is_err() || !goes_on {
            return;
        }
    }
}

async fn websocket(mut stream: TcpStream) {
    use futures_util::{SinkExt, StreamExt};
    let mut head = [0; 512];
    let read = stream.peek(&mut head).await.unwrap();
    if String::from_utf8_lossy(&head[..read]).contains("Upgrade: DERP") {
        let answer = b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        return;
    }
    #[allow(
        clippy::result_large_err,
        reason = "the callback's type is the library's"
    )]
    let callback = |request: &Request, mut response: Response| {
        assert_eq!(request.headers()["Sec-WebSocket-Protocol"], "derp");
        let protocol = "derp".parse().unwrap();
        response
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", protocol);
        Ok(response)
    };
    let mut socket = tokio_tungstenite::accept_hdr_async(stream, callback)
        .await
        .unwrap();
    let mut half = Half::new(Manner::WebSocketOnly);
    let hello = Frame::ServerKey(half.key.public()).to_bytes();
    socket.send(Message::Binary(hello)).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        let (answer, _) = half.take(&message.into_data());
        if !answer.is_empty() {
            socket.send(Message::Binary(answer.into())).await.unwrap();
        }
    }
}

fn client(region: Region) -> (Client, mpsc::Receiver<Received>, NodePublic) {
    let (sender, received) = mpsc::channel(64);
    let key = NodePrivate::from_bytes([9; 32]);
    let public = key.public();
    (
        Client::connect(region, key, Options::default(), sender),
        received,
        public,
    )
}

async fn receive(received: &mut mpsc::Receiver<Received>) -> Bytes {
    timeout(PATIENCE, received.recv())
        .await
        .unwrap()
        .unwrap()
        .packet
}

#[tokio::test]
async fn packets_go_there_and_back() {
    let (client, mut received, node) = client(relay(Manner::Upgrade).await);
    for length in [1, 1310, 65_000] {
        client.send(node, &vec![7; length]);
        assert_eq!(receive(&mut received).await.len(), length);
    }
    assert!(*client.connected().borrow());
}

#[tokio::test]
async fn a_refused_upgrade_leads_to_a_websocket() {
    let (client, mut received, node) = client(relay(Manner::WebSocketOnly).await);
    client.send(node, b"hello");
    assert_eq!(receive(&mut received).await[..], *b"hello");
}

#[tokio::test]
async fn a_broken_connection_is_opened_again_and_what_waited_is_sent() {
    let (client, mut received, node) = client(relay(Manner::Short).await);
    for round in 0..3_u8 {
        client.send(node, &[round]);
        assert_eq!(receive(&mut received).await[..], [round]);
        let mut connected = client.connected();
        timeout(PATIENCE, connected.wait_for(|up| !up))
            .await
            .unwrap()
            .unwrap();
    }
}

#[tokio::test]
async fn a_relay_that_takes_packets_and_says_nothing_is_left() {
    let (client, _received, node) = client(relay(Manner::Mute).await);
    let mut connected = client.connected();
    timeout(PATIENCE, connected.wait_for(|up| *up))
        .await
        .unwrap()
        .unwrap();
    client.send(node, b"anybody?");
    let begin = Instant::now();
    timeout(PATIENCE, connected.wait_for(|up| !up))
        .await
        .unwrap()
        .unwrap();
    assert!(
        (1.5..4.5).contains(&begin.elapsed().as_secs_f64()),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn tries_are_quick_at_first_and_five_seconds_apart_at_most() {
    assert_eq!(pause(0, Duration::ZERO), Duration::from_millis(50));
    assert_eq!(
        pause(50, Duration::from_secs(10)),
        Duration::from_millis(200)
    );
    assert_eq!(pause(500, Duration::from_secs(1000)), LONGEST_WAIT);
}
