//! What the endpoint's tests share: a small relay in this process, and two endpoints on it.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use relay_tunnel::endpoint::{
    self, Endpoint, EndpointConfig, EndpointEvents, Event, LocalNode, PeerNode, StackChoice,
};
use relay_tunnel::path::PathState;
use relay_tunnel::stack::NetHelper;
use relay_wire::derp::{self, Decoder, Frame};
use relay_wire::derp_map::{DerpMap, Node, Region};
use relay_wire::keys::{DiscoPrivate, NodePrivate, NodePublic};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use uuid::Uuid;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const REGION: u16 = 901;

pub(crate) const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1);
pub(crate) const AGENT: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 2);

type Clients = Arc<Connected>;

/// Who is connected to the relay.
#[derive(Default)]
struct Connected {
    senders: Mutex<HashMap<NodePublic, mpsc::Sender<Carried>>>,
    /// Milliseconds that a packet spends in the relay.
    delay: AtomicU64,
}

/// A packet, from whom, and when it leaves the relay.
type Carried = (NodePublic, bytes::Bytes, tokio::time::Instant);

/// A relay on loopback that does the least a relay must.
pub(crate) struct Relay {
    port: u16,
    key: NodePrivate,
    clients: Clients,
    tasks: tokio::task::JoinSet<()>,
}

impl Relay {
    pub(crate) async fn start() -> Relay {
        let key = NodePrivate::generate(&mut rand::rng());
        let mut relay = Relay {
            port: 0,
            key,
            clients: Clients::default(),
            tasks: tokio::task::JoinSet::new(),
        };
        relay.listen().await;
        relay
    }

    /// Listens again, on the same port, with nobody connected.
    pub(crate) async fn listen(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        self.port = listener.local_addr().unwrap().port();
        self.clients.senders.lock().unwrap().clear();
        let (key, clients) = (self.key.clone(), self.clients.clone());
        self.tasks.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, key.clone(), clients.clone()));
            }
        });
    }

    /// Keeps every packet for so long from now on.
    pub(crate) fn set_delay(&self, delay: Duration) {
        let delay = delay.as_millis() as u64;
        self.clients.delay.store(delay, Ordering::Relaxed);
    }

    /// Ends all connections and listens no more.
    pub(crate) async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }

    pub(crate) fn map(&self) -> DerpMap {
        let node = Node {
            name: "test".to_owned(),
            region_id: REGION,
            host_name: "127.0.0.1".to_owned(),
            stun_port: -1,
            derp_port: i32::from(self.port),
            force_http: true,
            ..Node::default()
        };
        let (code, nodes) = ("test".into(), vec![node]);
        let region = Region {
            id: REGION,
            code,
            nodes,
            ..Region::default()
        };
        DerpMap {
            regions: [(REGION, region)].into(),
            ..DerpMap::default()
        }
    }
}

/// Serves the upgrade, or the same protocol in WebSocket messages.
#[allow(clippy::result_large_err)] // the library decides the type of refusals
async fn serve(stream: TcpStream, key: NodePrivate, clients: Clients) {
    stream.set_nodelay(true).unwrap();
    let mut start = [0; 512];
    let got = stream.peek(&mut start).await.unwrap_or(0);
    if !String::from_utf8_lossy(&start[..got])
        .to_lowercase()
        .contains("upgrade: websocket")
    {
        serve_upgraded(stream, true, key, clients).await;
        return;
    }
    let answer = |_: &Request, mut response: Response| {
        let protocol = HeaderValue::from_static("derp");
        response
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", protocol);
        Ok(response)
    };
    let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, answer).await else {
        return;
    };
    let (mut sink, mut messages) = socket.split();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mut read, mut write) = tokio::io::split(far);
    let mut bridges = tokio::task::JoinSet::new();
    bridges.spawn(async move {
        while let Some(Ok(message)) = messages.next().await {
            write.write_all(&message.into_data()).await.unwrap();
        }
    });
    bridges.spawn(async move {
        let mut data = vec![0; 1000];
        while let Ok(got @ 1..) = read.read(&mut data).await {
            let message = Message::Binary(data[..got].to_vec().into());
            if sink.send(message).await.is_err() {
                break;
            }
        }
    });
    serve_upgraded(near, false, key, clients).await;
}

async fn serve_upgraded<S>(
    mut stream: S,
    upgrade: bool,
    key: NodePrivate,
    clients: Clients,
) -> Option<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut out = BytesMut::new();
    if upgrade {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.ok()?);
        }
        out.extend_from_slice(derp::handshake::upgrade_response(&key.public()).as_bytes());
    }
    Frame::ServerKey(key.public()).encode(&mut out);
    stream.write_all(&out).await.ok()?;

    let mut decoder = Decoder::new();
    let hello = loop {
        if let Some(frame) = decoder.next().ok()? {
            break frame;
        }
        stream.read_buf(decoder.buffer_mut()).await.ok()?;
    };
    let (client, _) = derp::handshake::open_client_info(&hello, &key).ok()?;
    let info = derp::handshake::ServerInfo::default();
    let answer = derp::handshake::server_info(&key, &client, &info, [7; 24]).to_bytes();
    stream.write_all(&answer).await.ok()?;
    let (sender, mut receiver) = mpsc::channel::<Carried>(512);
    clients.senders.lock().unwrap().insert(client, sender);

    let (mut read, mut write) = tokio::io::split(stream);
    let mut writer = tokio::task::JoinSet::new();
    writer.spawn(async move {
        let mut out = BytesMut::new();
        while let Some((source, packet, leaves)) = receiver.recv().await {
            tokio::time::sleep_until(leaves).await;
            derp::put_recv_packet(&mut out, &source, &packet);
            while let Ok((source, packet, leaves)) = receiver.try_recv() {
                if leaves > tokio::time::Instant::now() {
                    if write.write_all_buf(&mut out).await.is_err() {
                        return;
                    }
                    tokio::time::sleep_until(leaves).await;
                }
                derp::put_recv_packet(&mut out, &source, &packet);
            }
            if write.write_all_buf(&mut out).await.is_err() {
                break;
            }
        }
    });
    loop {
        while let Some(frame) = decoder.next().ok()? {
            if let Frame::SendPacket {
                destination,
                packet,
            } = frame
            {
                let to = clients.senders.lock().unwrap().get(&destination).cloned();
                if let Some(to) = to {
                    let delay = clients.delay.load(Ordering::Relaxed);
                    let leaves = tokio::time::Instant::now() + Duration::from_millis(delay);
                    let _ = to.send((client, packet, leaves)).await;
                }
            }
        }
        if read.read_buf(decoder.buffer_mut()).await.ok()? == 0 {
            return None;
        }
    }
}

/// The stack under test: `RELAY_STACK` names it, and the kernel's is meant otherwise.
pub(crate) fn stack() -> StackChoice {
    match std::env::var("RELAY_STACK") {
        Ok(name) if !name.is_empty() => name.parse().unwrap(),
        _ => StackChoice::Kernel,
    }
}

/// An endpoint of a test and what names it.
pub(crate) struct End {
    pub(crate) id: Uuid,
    pub(crate) endpoint: Endpoint,
    pub(crate) events: EndpointEvents,
}

impl End {
    /// Opens an endpoint; `None`, with the reason printed, where the machine does not allow it.
    pub(crate) async fn open(
        address: Ipv6Addr,
        client: bool,
        direct: bool,
        map: &DerpMap,
    ) -> Option<End> {
        End::open_with(address, client, map, |config| config.direct = direct).await
    }

    pub(crate) async fn open_with(
        address: Ipv6Addr,
        client: bool,
        map: &DerpMap,
        change: impl FnOnce(&mut EndpointConfig),
    ) -> Option<End> {
        let mut rng = rand::rng();
        let keys = (
            NodePrivate::generate(&mut rng),
            DiscoPrivate::generate(&mut rng),
        );
        let mut config = EndpointConfig::new(keys.0, keys.1, vec![address]);
        config.keepalive = client;
        config.stack = stack();
        change(&mut config);
        let opened = NetHelper::spawn().and_then(|helper| endpoint::start(config, helper));
        let (endpoint, events) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let required = std::env::var_os("RELAY_REQUIRE_ALL");
                let required = required.is_some_and(|value| !value.is_empty());
                assert!(!required, "nothing may be skipped here: {error}");
                println!("skip: {error}");
                return None;
            }
        };
        endpoint.set_derp_map(map.clone()).await.unwrap();
        Some(End {
            id: Uuid::from_u128(rand::random()),
            endpoint,
            events,
        })
    }

    /// What this end tells its peers, once it is complete.
    pub(crate) async fn node(&self, direct: bool) -> LocalNode {
        let mut node = self.endpoint.node();
        let complete = node.wait_for(|node| {
            node.as_ref()
                .is_some_and(|node| !direct || !node.endpoints.is_empty())
        });
        let node = tokio::time::timeout(PATIENCE, complete)
            .await
            .unwrap()
            .unwrap();
        node.clone().unwrap()
    }

    /// Waits until `peer` is reached the way that `wanted` accepts.
    pub(crate) async fn path(&self, peer: Uuid, wanted: impl Fn(&PathState) -> bool) {
        let mut path = self.endpoint.path(peer);
        let changed = tokio::time::timeout(PATIENCE, path.wait_for(wanted));
        changed.await.unwrap().unwrap();
    }
}

/// Two ends that know each other.
pub(crate) struct Pair {
    pub(crate) client: End,
    pub(crate) agent: End,
    pub(crate) relay: Relay,
    pub(crate) direct: bool,
}

impl Pair {
    pub(crate) async fn open(direct: bool) -> Option<Pair> {
        Self::open_with(direct, [stack(), stack()]).await
    }

    /// The same with a stack for the client and one for the agent.
    pub(crate) async fn open_with(direct: bool, stacks: [StackChoice; 2]) -> Option<Pair> {
        let relay = Relay::start().await;
        let map = relay.map();
        let with = |stack| {
            move |config: &mut EndpointConfig| (config.direct, config.stack) = (direct, stack)
        };
        let client = End::open_with(CLIENT, true, &map, with(stacks[0])).await?;
        let agent = End::open_with(AGENT, false, &map, with(stacks[1])).await?;
        let pair = Pair {
            client,
            agent,
            relay,
            direct,
        };
        pair.introduce().await;
        Some(pair)
    }

    /// Tells both ends of each other, the agent first, as coordination does.
    pub(crate) async fn introduce(&self) {
        let node = self.client.node(self.direct).await;
        let client = PeerNode::from(&node);
        self.agent
            .endpoint
            .upsert_peer(self.client.id, client)
            .await
            .unwrap();
        let node = self.agent.node(self.direct).await;
        let agent = PeerNode::from(&node);
        self.client
            .endpoint
            .upsert_peer(self.agent.id, agent)
            .await
            .unwrap();
        self.client
            .endpoint
            .tsmp_ping(AGENT, PATIENCE)
            .await
            .unwrap();
    }

    pub(crate) async fn connect(&self, port: u16) -> std::io::Result<TcpStream> {
        let remote = SocketAddrV6::new(AGENT, port, 0, 0);
        let connect = self.client.endpoint.connect(remote);
        tokio::time::timeout(PATIENCE, connect).await.unwrap()
    }
}

/// The next event that `wanted` accepts.
pub(crate) async fn event(events: &mut EndpointEvents, wanted: impl Fn(&Event) -> bool) -> Event {
    let next = async {
        loop {
            let event = events.recv().await.unwrap();
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(PATIENCE, next).await.unwrap()
}
