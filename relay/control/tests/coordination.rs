//! Client coordination and agent session against a small control plane made of this crate's own
//! server half.
#![allow(
    clippy::unwrap_used,
    reason = "a test panics on what it does not expect"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use relay_control::agent::{self, AgentSession};
use relay_control::client::{Coordination, Event};
use relay_control::rest::Access;
use relay_control::rpc::{Incoming, Mux, Options, UNIMPLEMENTED, websocket_config};
use relay_tunnel::endpoint::LocalNode;
use relay_wire::keys::{DiscoPrivate, NodePrivate};
use relay_wire::proto::agent::{self as proto, Lifecycle, Manifest, Startup, UpdateStatsResponse};
use relay_wire::proto::id_bytes;
use relay_wire::proto::tailnet::coordinate_response::{PeerUpdate, peer_update::Kind};
use relay_wire::proto::tailnet::{
    self, CoordinateRequest, CoordinateResponse, RefreshResumeTokenResponse,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use url::Url;
use uuid::Uuid;

/// What a fake control plane saw.
#[derive(Debug)]
enum Seen {
    /// A WebSocket with this path and query.
    Opened(String),
    /// A coordination request.
    Request(Box<CoordinateRequest>),
    /// A call of the agent API.
    Called(String),
    /// Statistics of an agent; none in a call that only asks how often they are wanted.
    Stats(Option<proto::Stats>),
}

/// How it behaves.
#[derive(Clone, Copy)]
struct Manner {
    /// Says that the agent is ready for a handshake.
    ready: bool,
    /// Gives resume tokens.
    resume: bool,
    /// Ends the first session after this long.
    drop_after: Option<Duration>,
}

const AGENT: Uuid = Uuid::from_u128(0x1234_5678);

async fn control_plane(manner: Manner) -> (Url, mpsc::UnboundedReceiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let (sender, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut manner = manner;
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(session(stream, manner, sender.clone()));
            manner.drop_after = None;
        }
    });
    (url, seen)
}

async fn session(stream: TcpStream, manner: Manner, seen: mpsc::UnboundedSender<Seen>) {
    let tell = seen.clone();
    #[allow(
        clippy::result_large_err,
        reason = "the callback's type is the library's"
    )]
    let callback = move |request: &Request, response: Response| {
        drop(tell.send(Seen::Opened(request.uri().to_string())));
        Ok(response)
    };
    let config = Some(websocket_config());
    let socket = tokio_tungstenite::accept_hdr_async_with_config(stream, callback, config).await;
    let mut mux = Mux::server(socket.unwrap(), &Options::default());
    let serve = async {
        while let Some(stream) = mux.accept().await {
            tokio::spawn(call(
                Incoming::read(stream).await.unwrap(),
                manner,
                seen.clone(),
            ));
        }
    };
    match manner.drop_after {
        Some(wait) => drop(tokio::time::timeout(wait, serve).await),
        None => serve.await,
    }
    mux.shutdown();
}

async fn call(mut call: Incoming, manner: Manner, seen: mpsc::UnboundedSender<Seen>) {
    match call.path.as_str() {
        tailnet::COORDINATE => {
            while let Ok(Some(request)) = call.receiver.message::<CoordinateRequest>().await {
                if request.update_self.is_some() {
                    drop(call.sender.send(&update(Kind::Node)).await);
                    if manner.ready {
                        drop(call.sender.send(&update(Kind::ReadyForHandshake)).await);
                    }
                }
                let bye = request.disconnect.is_some();
                drop(seen.send(Seen::Request(Box::new(request))));
                if bye {
                    drop(call.sender.finish().await);
                }
            }
        }
        tailnet::STREAM_DERP_MAPS => std::future::pending().await,
        tailnet::REFRESH_RESUME_TOKEN if manner.resume => {
            let answer = RefreshResumeTokenResponse {
                token: "keep+me".into(),
                ..Default::default()
            };
            drop(call.reply(&answer).await);
        }
        proto::UPDATE_STATS => {
            let request: proto::UpdateStatsRequest = call.request().await.unwrap();
            drop(seen.send(Seen::Stats(request.stats)));
            let answer = UpdateStatsResponse {
                report_interval: Some(Duration::from_secs(1).into()),
            };
            drop(call.reply(&answer).await);
        }
        path => {
            drop(seen.send(Seen::Called(path.to_owned())));
            drop(match path {
                proto::GET_MANIFEST => {
                    let manifest = Manifest {
                        agent_id: id_bytes(AGENT),
                        ..Default::default()
                    };
                    call.reply(&manifest).await
                }
                proto::UPDATE_STARTUP => call.reply(&Startup::default()).await,
                proto::UPDATE_LIFECYCLE => call.reply(&Lifecycle::default()).await,
                _ => call.refuse(UNIMPLEMENTED, "Unimplemented").await,
            });
        }
    }
}

fn update(kind: Kind) -> CoordinateResponse {
    let node = node(9).as_proto();
    let update = PeerUpdate {
        id: id_bytes(AGENT),
        node: (kind == Kind::Node).then_some(node),
        kind: kind.into(),
        ..Default::default()
    };
    CoordinateResponse {
        peer_updates: vec![update],
        ..Default::default()
    }
}

fn node(seed: u8) -> LocalNode {
    let id = Uuid::from_u128(seed.into());
    LocalNode {
        id,
        key: NodePrivate::from_bytes([seed; 32]).public(),
        disco: DiscoPrivate::from_bytes([seed; 32]).public(),
        home: 999,
        addresses: vec![relay_wire::addr::agent_address(&id)],
        endpoints: Vec::new(),
        latency: Default::default(),
        features: 0,
    }
}

fn nodes() -> (
    watch::Sender<Option<LocalNode>>,
    watch::Receiver<Option<LocalNode>>,
) {
    watch::channel(Some(node(1)))
}

async fn peer(coordination: &mut Coordination) -> Uuid {
    loop {
        match coordination.event().await.unwrap() {
            Event::Peer(id, node) => {
                assert_eq!(node.key, self::node(9).key);
                return id;
            }
            Event::Fatal(error) => panic!("{error}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_peer_is_handed_out_when_it_is_ready() {
    let manner = Manner {
        ready: true,
        resume: false,
        drop_after: None,
    };
    let (url, mut seen) = control_plane(manner).await;
    let (_keep, nodes) = nodes();
    let mut coordination = Coordination::start(&url, Access::default(), AGENT, nodes);
    let begin = Instant::now();
    assert_eq!(peer(&mut coordination).await, AGENT);
    assert!(begin.elapsed() < Duration::from_secs(3));
    coordination.disconnect().await;
    let mut requests = Vec::new();
    while let Ok(seen) = seen.try_recv() {
        if let Seen::Request(request) = seen {
            requests.push(request);
        }
    }
    assert!(requests[0].add_tunnel.is_some());
    assert!(
        requests.iter().any(|request| request.disconnect.is_some()),
        "{requests:?}"
    );
    assert!(
        requests
            .iter()
            .all(|request| request.ready_for_handshake.is_empty())
    );
}

#[tokio::test]
async fn a_peer_that_never_gets_ready_is_used_after_five_seconds() {
    let manner = Manner {
        ready: false,
        resume: false,
        drop_after: None,
    };
    let (url, _seen) = control_plane(manner).await;
    let (_keep, nodes) = nodes();
    let mut coordination = Coordination::start(&url, Access::default(), AGENT, nodes);
    let begin = Instant::now();
    peer(&mut coordination).await;
    let waited = begin.elapsed();
    assert!((4.5..15.0).contains(&waited.as_secs_f64()), "{waited:?}");
}

#[tokio::test]
async fn a_broken_session_is_opened_again_with_the_resume_token() {
    let manner = Manner {
        ready: true,
        resume: true,
        drop_after: Some(Duration::from_millis(300)),
    };
    let (url, mut seen) = control_plane(manner).await;
    let (_keep, nodes) = nodes();
    let mut coordination = Coordination::start(&url, Access::default(), AGENT, nodes);
    peer(&mut coordination).await;
    let mut broke = false;
    loop {
        match coordination.event().await.unwrap() {
            Event::Disconnected(_) => broke = true,
            Event::Connected if broke => break,
            Event::Fatal(error) => panic!("{error}"),
            _ => {}
        }
    }
    let mut opened = Vec::new();
    while let Ok(seen) = seen.try_recv() {
        if let Seen::Opened(path) = seen {
            opened.push(path);
        }
    }
    assert!(opened[0].ends_with("/coordinate?version=2.0"), "{opened:?}");
    assert!(opened[1].contains("&resume_token=keep%2Bme"), "{opened:?}");
}

#[tokio::test]
async fn an_agent_tells_its_life_and_that_it_let_a_peer_in() {
    let manner = Manner {
        ready: false,
        resume: false,
        drop_after: None,
    };
    let (url, mut seen) = control_plane(manner).await;
    let (_keep, nodes) = nodes();
    let mut session = AgentSession::start(&url, Access::default(), "v0.1.0", nodes);
    session.report(Arc::new(|| agent::Stats {
        rx_bytes: 7,
        ..agent::Stats::default()
    }));
    loop {
        match session.event().await.unwrap() {
            agent::Event::Connected(identity) => assert_eq!(identity.agent, AGENT),
            agent::Event::Peer(id, _) => break session.ready(id),
            _ => {}
        }
    }
    let (mut calls, mut told) = (Vec::new(), Vec::new());
    loop {
        match seen.recv().await.unwrap() {
            Seen::Called(path) => calls.push(path),
            Seen::Stats(stats) => told.push(stats.map(|stats| stats.rx_bytes)),
            Seen::Request(request) if !request.ready_for_handshake.is_empty() => break,
            _ => {}
        }
    }
    // The first one asks how often the others are wanted.
    while told.len() < 2 {
        match seen.recv().await.unwrap() {
            Seen::Called(path) => calls.push(path),
            Seen::Stats(stats) => told.push(stats.map(|stats| stats.rx_bytes)),
            _ => {}
        }
    }
    assert_eq!(told, [None, Some(7)]);
    session.shutdown().await;
    while let Ok(seen) = seen.try_recv() {
        if let Seen::Called(path) = seen {
            calls.push(path);
        }
    }
    assert_eq!(calls[..2], [proto::GET_MANIFEST, proto::UPDATE_STARTUP]);
    let lives = calls
        .iter()
        .filter(|path| *path == proto::UPDATE_LIFECYCLE)
        .count();
    assert_eq!(lives, 4, "starting, ready, shutting down, off: {calls:?}");
}

#[tokio::test]
async fn a_refusal_on_the_first_dial_is_final_and_names_the_url() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4096];
        let _ = stream.read(&mut buffer).await;
        let body = r#"{"message":"no such agent"}"#;
        let head = "HTTP/1.1 404 Not Found\r\nContent-Type: application/json";
        let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let (_keep, nodes) = nodes();
    let mut coordination = Coordination::start(&url, Access::default(), AGENT, nodes);
    match coordination.event().await.unwrap() {
        Event::Fatal(error) => {
            let text = error.to_string();
            let known = [url.as_str().trim_end_matches('/'), "no such agent"];
            assert!(known.iter().all(|known| text.contains(known)), "{text}");
        }
        event => panic!("{event:?}"),
    }
    assert!(coordination.event().await.is_none());
}
