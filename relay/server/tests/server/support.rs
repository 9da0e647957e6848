//! Starting a server, and the parts of clients that several tests need.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use relay_control::rest::{Access, Client};
use relay_control::rpc::{Mux, websocket_config};
use relay_server::{Config, CreatedWorkspace, Server, StunAddress, WorkspaceFilter};
use relay_wire::derp::handshake::{self, ClientInfo};
use relay_wire::derp::{Decoder, Frame};
use relay_wire::keys::{NodePrivate, NodePublic};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, http};
use url::Url;

/// Nothing here takes this long unless it never comes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A server with user `alice`, her workspace `dev` and her session.
pub(crate) struct Plane {
    pub(crate) server: Server,
    pub(crate) session: String,
    pub(crate) workspace: CreatedWorkspace,
    pub(crate) data: TempDir,
}

impl Plane {
    pub(crate) async fn start() -> Plane {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Plane {
        let data = TempDir::new().unwrap();
        let mut config = config(&data);
        change(&mut config);
        let server = Server::start(config).await.unwrap();
        let store = server.store();
        let email = "alice@example.com";
        let alice = store
            .create_user("alice", email, "correct-horse-7", false)
            .await
            .unwrap();
        let agents = ["main".to_owned()];
        let workspace = store
            .create_workspace(alice.id, "dev", &agents)
            .await
            .unwrap();
        let session = store.create_token(alice.id).await.unwrap();
        Plane {
            server,
            session,
            workspace,
            data,
        }
    }

    /// Ends the server and starts another one on the same data.
    pub(crate) async fn restart(self) -> Plane {
        let Plane {
            server,
            session,
            workspace,
            data,
        } = self;
        server.shutdown().await;
        let server = Server::start(config(&data)).await.unwrap();
        Plane {
            server,
            session,
            workspace,
            data,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    pub(crate) fn url(&self) -> &Url {
        self.server.access_url()
    }

    pub(crate) fn client(&self, token: &str) -> Client {
        let access = Access {
            token: token.to_owned(),
            ..Access::default()
        };
        Client::new(self.url(), access)
    }

    pub(crate) async fn all_workspaces(&self) -> usize {
        let filter = WorkspaceFilter::default();
        self.server.store().workspaces(&filter).await.unwrap().len()
    }

    /// Sends a request with a JSON body; an answer without one is null.
    pub(crate) async fn json(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: &serde_json::Value,
    ) -> (u16, serde_json::Value) {
        let body = body.to_string();
        let length = body.len();
        let request = format!(
            "{method} /api/v2/{path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\
             Coder-Session-Token: {token}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let answer = crate::rest::exchange(self, &request).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    /// Another user's session.
    pub(crate) async fn session_of(&self, name: &str, admin: bool) -> String {
        let store = self.server.store();
        let email = format!("{name}@example.com");
        let made = store.create_user(name, &email, "correct-horse-7", admin);
        let user = made.await.unwrap();
        store.create_token(user.id).await.unwrap()
    }

    /// Opens a control WebSocket.
    pub(crate) async fn control(&self, path: &str, headers: &[(&str, &str)]) -> Result<Mux, u16> {
        let target = format!("ws://{}/api/v2/{path}", self.address());
        let mut request = target.into_client_request().unwrap();
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(self.address()).await.unwrap();
        let config = Some(websocket_config());
        match tokio_tungstenite::client_async_with_config(request, stream, config).await {
            Ok((socket, _)) => Ok(Mux::client(socket)),
            Err(tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }
}

fn config(data: &TempDir) -> Config {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Config {
        stun: StunAddress::Off,
        ..Config::new(address, data.path().join("data"))
    }
}

/// Fails a test that waits for what does not come.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("it does not come")
}

/// A client of the relay, with nothing between it and the bytes.
pub(crate) struct RawRelay<S> {
    pub(crate) key: NodePrivate,
    pub(crate) server: NodePublic,
    pub(crate) io: S,
    decoder: Decoder,
}

impl RawRelay<TcpStream> {
    pub(crate) async fn upgrade(address: SocketAddr, key: NodePrivate) -> Self {
        let mut io = TcpStream::connect(address).await.unwrap();
        let request = handshake::upgrade_request("relay", handshake::PATH, &[]);
        io.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon(io.read_u8()).await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let client = Self::open(io, key).await;
        assert!(head.contains(&client.server.to_hex()), "{head}");
        client
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> RawRelay<S> {
    /// Swaps introductions.
    pub(crate) async fn open(mut io: S, key: NodePrivate) -> Self {
        let mut decoder = Decoder::new();
        let Frame::ServerKey(server) = next(&mut io, &mut decoder).await else {
            panic!("the first frame is not the relay's key");
        };
        let info = handshake::client_info(&key, &server, &ClientInfo::default(), rand::random());
        io.write_all(&info.to_bytes()).await.unwrap();
        let info = next(&mut io, &mut decoder).await;
        handshake::open_server_info(&info, &key, &server).unwrap();
        Self {
            key,
            server,
            io,
            decoder,
        }
    }

    pub(crate) async fn send(&mut self, frame: &Frame) {
        self.io.write_all(&frame.to_bytes()).await.unwrap();
    }

    pub(crate) async fn packet(&mut self, destination: NodePublic, packet: &[u8]) {
        let packet = packet.to_vec().into();
        let frame = Frame::SendPacket {
            destination,
            packet,
        };
        self.send(&frame).await;
    }

    pub(crate) async fn next(&mut self) -> Frame {
        next(&mut self.io, &mut self.decoder).await
    }
}

async fn next<S: AsyncRead + Unpin>(io: &mut S, decoder: &mut Decoder) -> Frame {
    loop {
        if let Some(frame) = decoder.next().unwrap() {
            return frame;
        }
        let mut buffer = [0; 65_536];
        let length = soon(io.read(&mut buffer)).await.unwrap();
        assert!(length > 0, "the relay closed the connection");
        decoder.push(&buffer[..length]);
    }
}
