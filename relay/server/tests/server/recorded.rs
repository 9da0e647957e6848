//! The clients' halves of recorded sessions of a real deployment, played to our server: it has to
//! end them as the real one did.

use std::collections::HashMap;
use std::path::Path;

use futures_util::{SinkExt, StreamExt};
use relay_wire::drpc::{Decoder, Kind, Packet};
use relay_wire::proto::tailnet::coordinate_response::peer_update;
use relay_wire::proto::{agent, tailnet};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderName;

use crate::support::{Plane, soon};

const AGENT: &str = "37ad227f-c139-4a70-b699-bb3fadcb5ecf";
const AGENT_TOKEN: &str = "76ef221c-a228-4e52-ae50-749d2684c113";
const WORKSPACE: &str = "31a5a889-97f3-403d-80d4-4180f729298e";

fn recording(name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/live");
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A server with the ids and tokens of the recordings.
async fn plane() -> Plane {
    let plane = Plane::start().await;
    let options = SqliteConnectOptions::new()
        .filename(plane.data.path().join("data/relay.db"))
        .busy_timeout(std::time::Duration::from_secs(10))
        .foreign_keys(false);
    let pool = SqlitePool::connect_with(options).await.unwrap();
    let hash = |text: &str| hex::encode(Sha256::digest(text.as_bytes()));
    let agent = hash(AGENT_TOKEN);
    let mut statements = vec![
        format!("UPDATE workspaces SET id = '{WORKSPACE}'"),
        format!("UPDATE builds SET workspace_id = '{WORKSPACE}'"),
        format!(
            "UPDATE agents SET workspace_id = '{WORKSPACE}', id = '{AGENT}', token_hash = '{agent}'"
        ),
    ];
    let mut tokens: Vec<String> = recording("rest_session.json")
        .as_object()
        .unwrap()
        .values()
        .flat_map(|command| command.as_array().unwrap())
        .filter_map(|exchange| header(exchange, "Coder-Session-Token"))
        .filter(|token| !token.is_empty())
        .collect();
    tokens.sort();
    tokens.dedup();
    for token in tokens {
        let (id, secret) = token.split_once('-').unwrap();
        let secret = hash(secret);
        statements.push(format!(
            "INSERT INTO api_keys (id, user_id, secret_hash, created_at, expires_at) \
             SELECT '{id}', id, '{secret}', 0, 4000000000000000 FROM users"
        ));
    }
    for statement in statements {
        sqlx::query(&statement).execute(&pool).await.unwrap();
    }
    pool.close().await;
    plane
}

fn header(exchange: &Value, name: &str) -> Option<String> {
    let headers = exchange["req_headers"].as_array()?;
    let found = headers.iter().find(|header| header[0] == name)?;
    found[1].as_str().map(str::to_owned)
}

#[tokio::test]
async fn requests_of_every_recorded_command_get_the_recorded_status() {
    let plane = plane().await;
    let recording = recording("rest_session.json");
    let mut played = 0;
    for (command, exchanges) in recording.as_object().unwrap() {
        for exchange in exchanges.as_array().unwrap() {
            let (method, path) = (&exchange["method"], exchange["path"].as_str().unwrap());
            // Sessions have their own recordings, and of one request no answer was seen.
            let session = path.contains("/coordinate") || path.contains("/rpc");
            let Some(mut status) = exchange["status"].as_u64().filter(|_| !session) else {
                continue;
            };
            if path.ends_with("/reinit") {
                // Ours tells the agent not to ask again.
                status = 409;
            }
            let body = exchange["req_body"].as_str().unwrap_or_default();
            let mut request = format!("{} {path} HTTP/1.1\r\n", method.as_str().unwrap());
            for header in exchange["req_headers"].as_array().unwrap() {
                let (name, value) = (header[0].as_str().unwrap(), header[1].as_str().unwrap());
                request.push_str(&format!("{name}: {value}\r\n"));
            }
            request.push_str(&format!("\r\n{body}"));
            let mut stream = TcpStream::connect(plane.address()).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(soon(stream.read_u8()).await.unwrap());
            }
            let head = String::from_utf8_lossy(&head);
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status} ")),
                "{command}: {method} {path} was answered {status}, not {head}"
            );
            played += 1;
        }
    }
    assert!(played > 40, "{played} requests");
}

/// A session that is being played.
struct Session {
    socket: WebSocketStream<TcpStream>,
    received: Vec<u8>,
}

impl Session {
    async fn open(plane: &Plane, recording: &Value) -> Self {
        let path = recording["request"].as_str().unwrap();
        let path = path.split(' ').nth(1).unwrap();
        let target = format!("ws://{}{path}", plane.address());
        let mut request = target.into_client_request().unwrap();
        for name in ["Coder-Session-Token", "Cookie"] {
            if let Some(value) = header(recording, name) {
                let name: HeaderName = name.parse().unwrap();
                request.headers_mut().insert(name, value.parse().unwrap());
            }
        }
        let stream = TcpStream::connect(plane.address()).await.unwrap();
        let opened = tokio_tungstenite::client_async(request, stream).await;
        Self {
            socket: opened.unwrap().0,
            received: Vec::new(),
        }
    }

    /// Sends the client's recorded messages of this time, in milliseconds.
    async fn play(&mut self, recording: &Value, times: std::ops::Range<f64>) {
        for piece in recording["stream"].as_array().unwrap() {
            if piece["dir"] == "c2s" && times.contains(&piece["t_ms"].as_f64().unwrap()) {
                let bytes = hex::decode(piece["hex"].as_str().unwrap()).unwrap();
                self.socket
                    .send(Message::Binary(bytes.into()))
                    .await
                    .unwrap();
            }
        }
    }

    /// Reads until the streams are as wanted.
    async fn until(
        &mut self,
        wanted: impl Fn(&HashMap<u32, Stream>) -> bool,
    ) -> HashMap<u32, Stream> {
        loop {
            let streams = streams(&self.received);
            if wanted(&streams) {
                return streams;
            }
            match soon(self.socket.next()).await {
                Some(Ok(Message::Binary(bytes))) => self.received.extend_from_slice(&bytes),
                Some(Ok(_)) => {}
                end => panic!("the session ended: {end:?} {streams:?}"),
            }
        }
    }
}

/// What came on a stream.
#[derive(Debug, Default)]
struct Stream {
    packets: Vec<Packet>,
    finished: bool,
}

impl Stream {
    fn kinds(&self) -> Vec<Kind> {
        self.packets.iter().map(|packet| packet.kind).collect()
    }

    fn message<M: prost::Message + Default>(&self, index: usize) -> M {
        assert_eq!(self.packets[index].kind, Kind::Message, "{self:?}");
        M::decode(self.packets[index].body.clone()).unwrap()
    }
}

/// Takes yamux apart by hand, as far as its frames are whole.
fn streams(mut bytes: &[u8]) -> HashMap<u32, Stream> {
    let mut streams: HashMap<u32, Stream> = HashMap::new();
    let mut data: HashMap<u32, Vec<u8>> = HashMap::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<12>() {
        let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let (kind, flags, id, length) = (head[1], head[3], number(4), number(8) as usize);
        let body = if kind == 0 { length } else { 0 };
        let Some((body, rest)) = rest.split_at_checked(body) else {
            break;
        };
        bytes = rest;
        if id > 0 {
            assert_eq!(flags & 8, 0, "stream {id} was reset");
            data.entry(id).or_default().extend_from_slice(body);
            streams.entry(id).or_default().finished |= flags & 4 != 0;
        }
    }
    for (id, bytes) in data {
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        while let Some(packet) = decoder.next_packet().unwrap() {
            streams.entry(id).or_default().packets.push(packet);
        }
    }
    streams
}

/// Plays both ends of the 26 s that were recorded at once.
#[tokio::test]
async fn recorded_sessions_of_client_and_agent_end_as_they_did() {
    let plane = plane().await;
    let agents = recording("control_session_agent_short.json");
    let clients = recording("control_session_cli_short.json");

    let mut agent = Session::open(&plane, &agents).await;
    agent.play(&agents, 0.0..f64::MAX).await;
    let answered = agent
        .until(|streams| {
            let unary = [1, 3, 5, 7, 9, 11, 13, 19, 21];
            let done = |id| {
                streams
                    .get(&id)
                    .is_some_and(|stream: &Stream| stream.finished)
            };
            let map = streams
                .get(&15)
                .is_some_and(|stream| !stream.packets.is_empty());
            let refused = streams
                .get(&17)
                .is_some_and(|stream| !stream.packets.is_empty());
            unary.into_iter().all(done) && map && refused
        })
        .await;
    let real: Vec<u8> = agents["stream"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|piece| piece["dir"] == "s2c")
        .flat_map(|piece| hex::decode(piece["hex"].as_str().unwrap()).unwrap())
        .collect();
    let real = streams(&real);
    for id in [1, 3, 5, 7, 9, 11, 13, 15, 19, 21] {
        assert_eq!(answered[&id].kinds(), real[&id].kinds(), "stream {id}");
        assert_eq!(answered[&id].finished, real[&id].finished, "stream {id}");
    }
    for id in [1, 3, 7, 9, 11, 13] {
        assert_eq!(
            answered[&id].packets[0].body, real[&id].packets[0].body,
            "stream {id}"
        );
    }
    let manifest: agent::Manifest = answered[&5].message(0);
    let recorded: agent::Manifest = real[&5].message(0);
    assert_eq!(manifest.agent_id, recorded.agent_id);
    assert_eq!(manifest.workspace_id, recorded.workspace_id);
    // Its client of then is not there: an error, and the stream goes on.
    let refused: tailnet::CoordinateResponse = answered[&17].message(0);
    assert!(
        refused.error.starts_with("ready for handshake error"),
        "{refused:?}"
    );

    let mut client = Session::open(&plane, &clients).await;
    client.play(&clients, 0.0..10_000.0).await;
    let wanted = |streams: &HashMap<u32, Stream>| {
        let some = |id| {
            streams
                .get(&id)
                .is_some_and(|stream: &Stream| !stream.packets.is_empty())
        };
        some(1) && some(3) && streams.get(&5).is_some_and(|stream| stream.finished)
    };
    let answered = client.until(wanted).await;
    let update: tailnet::CoordinateResponse = answered[&1].message(0);
    let update = &update.peer_updates[0];
    assert_eq!(update.kind(), peer_update::Kind::Node);
    assert_eq!(update.node.as_ref().unwrap().key.len(), 34);
    let token: tailnet::RefreshResumeTokenResponse = answered[&5].message(0);
    assert!(!token.token.is_empty());

    client.play(&clients, 10_000.0..f64::MAX).await;
    let done =
        |streams: &HashMap<u32, Stream>| streams.get(&1).is_some_and(|stream| stream.finished);
    let ended = client.until(done).await;
    assert!(!ended[&1].kinds().contains(&Kind::Error), "{ended:?}");
    let seen = agent.until(|streams| streams[&17].packets.len() >= 3).await;
    let node: tailnet::CoordinateResponse = seen[&17].message(1);
    assert_eq!(node.peer_updates[0].kind(), peer_update::Kind::Node);
    let gone: tailnet::CoordinateResponse = seen[&17].message(2);
    let recorded: tailnet::CoordinateResponse = real[&17].message(1);
    assert_eq!(gone.peer_updates[0].kind(), recorded.peer_updates[0].kind());
    assert_eq!(gone.peer_updates[0].reason, recorded.peer_updates[0].reason);
}
