//! What a thousand clients cost the server that do nothing: each with its control connection and
//! its relay connection open.

use std::net::Ipv6Addr;
use std::time::Instant;

use bytes::BytesMut;
use relay_control::rpc::{Mux, Receiver, Sender, websocket_config};
use relay_lab::cluster::{Cluster, HTTP, Options};
use relay_lab::needs::Need;
use relay_lab::process::raise_own_descriptor_limit;
use relay_lab::{needs, say};
use relay_wire::derp::handshake::{self, ClientInfo};
use relay_wire::derp::{Decoder, Frame};
use relay_wire::keys::{DiscoPrivate, NodePrivate};
use relay_wire::proto::id_bytes;
use relay_wire::proto::tailnet::{self, CoordinateRequest, Node, coordinate_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

const CLIENTS: usize = 1_000;
/// Twice what it should cost: this is about leaks and per-client buffers, not about the allocator.
const BOUND: u64 = 80 << 10;

#[test]
fn a_thousand_idle_clients_fit_in_little_memory() {
    needs!(Need::Namespaces);
    raise_own_descriptor_limit();
    let mut cluster = Cluster::start(Options {
        // All of them are one user's, and come at once.
        server_flags: vec!["--api-rate-limit=0"],
        ..Options::default()
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("runtime");
    let empty = cluster.server.memory();
    let start = Instant::now();
    let clients = runtime.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(Client::join(&cluster).await);
        }
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        clients
    });
    let more = cluster.server.memory().saturating_sub(empty);
    say(format_args!(
        "{CLIENTS} clients in {:.1?}: server {empty} KiB empty, {more} KiB more",
        start.elapsed()
    ));
    assert!(cluster.server.runs());
    assert!(more < BOUND, "{more} KiB for {CLIENTS} idle clients");
    drop(clients);
}

/// Keeps both connections open.
struct Client {
    _control: (Mux, Sender, Receiver, Receiver),
    _relay: TcpStream,
}

impl Client {
    async fn join(cluster: &Cluster) -> Client {
        let key = NodePrivate::generate(&mut rand::rng());
        let relay = relay(connect(cluster), &key).await;
        let control = control(connect(cluster), cluster, &key).await;
        Client {
            _control: control,
            _relay: relay,
        }
    }
}

fn connect(cluster: &Cluster) -> TcpStream {
    let stream = cluster
        .client
        .connect((cluster.control.ipv4, HTTP))
        .expect("connect");
    stream.set_nonblocking(true).expect("non-blocking");
    TcpStream::from_std(stream).expect("stream")
}

async fn control(
    stream: TcpStream,
    cluster: &Cluster,
    key: &NodePrivate,
) -> (Mux, Sender, Receiver, Receiver) {
    let agent = cluster.agent_ids[0];
    let host = format!("ws://{}:{HTTP}", cluster.control.ipv4);
    let url = format!("{host}/api/v2/workspaceagents/{agent}/coordinate?version=2.0");
    let mut request = url.into_client_request().expect("request");
    let token = cluster.session.parse().expect("token");
    request.headers_mut().insert("Coder-Session-Token", token);
    let config = Some(websocket_config());
    let socket = tokio_tungstenite::client_async_with_config(request, stream, config).await;
    let mux = Mux::client(socket.expect("WebSocket").0);
    let (mut sender, receiver) = mux.bidirectional(tailnet::COORDINATE).await.expect("call");
    let address = Ipv6Addr::from_bits((0xfd7a_115c_a1e0 << 80) | (rand::random::<u128>() >> 48));
    let node = Node {
        id: i64::from(rand::random::<u32>()),
        key: key.public().to_wire().to_vec().into(),
        disco: DiscoPrivate::generate(&mut rand::rng())
            .public()
            .to_string(),
        preferred_derp: 999,
        addresses: vec![format!("{address}/128")],
        allowed_ips: vec![format!("{address}/128")],
        ..Node::default()
    };
    let update = CoordinateRequest {
        update_self: Some(coordinate_request::UpdateSelf { node: Some(node) }),
        ..CoordinateRequest::default()
    };
    sender.send(&update).await.expect("update");
    let tunnel = CoordinateRequest {
        add_tunnel: Some(coordinate_request::Tunnel {
            id: id_bytes(agent),
        }),
        ..CoordinateRequest::default()
    };
    sender.send(&tunnel).await.expect("tunnel");
    let question = tailnet::StreamDerpMapsRequest::default();
    let maps = mux
        .server_stream(tailnet::STREAM_DERP_MAPS, &question)
        .await;
    (mux, sender, receiver, maps.expect("maps"))
}

async fn relay(mut stream: TcpStream, key: &NodePrivate) -> TcpStream {
    let request = handshake::upgrade_request("control", handshake::PATH, &[]);
    stream.write_all(request.as_bytes()).await.expect("request");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("the head of the answer"));
    }
    let mut decoder = Decoder::new();
    let Frame::ServerKey(server) = next(&mut stream, &mut decoder).await else {
        panic!("the first frame is not the relay's key");
    };
    let info = handshake::client_info(key, &server, &ClientInfo::default(), rand::random());
    let mut bytes = BytesMut::new();
    info.encode(&mut bytes);
    Frame::NotePreferred(true).encode(&mut bytes);
    stream.write_all(&bytes).await.expect("write");
    let granted = next(&mut stream, &mut decoder).await;
    handshake::open_server_info(&granted, key, &server).expect("server info");
    stream
}

async fn next(stream: &mut TcpStream, decoder: &mut Decoder) -> Frame {
    loop {
        if let Some(frame) = decoder.next().expect("a frame") {
            return frame;
        }
        let mut buffer = [0; 2048];
        let count = stream.read(&mut buffer).await.expect("read");
        assert!(count > 0, "the relay closed the connection");
        decoder.push(&buffer[..count]);
    }
}
