//! The REST API, by our own client and by hand.

use relay_control::rest::{Access, Client, FirstUser};
use relay_server::{Config, Server, StunAddress, TlsFiles};
use relay_wire::rest::{AgentStatus, BuildStatus, CreateFirstUser, Transition};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Plane, soon};

/// Sends a request as it is and gives the whole answer.
pub(crate) async fn exchange(plane: &Plane, request: &str) -> String {
    let mut stream = TcpStream::connect(plane.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

pub(crate) async fn get(plane: &Plane, path: &str, headers: &str) -> String {
    let head = "Host: relay\r\nConnection: close\r\n";
    exchange(
        plane,
        &format!("GET {path} HTTP/1.1\r\n{head}{headers}\r\n"),
    )
    .await
}

#[tokio::test]
async fn a_workspace_is_found_and_says_what_clients_need() {
    let plane = Plane::start().await;
    let client = plane.client(&plane.session);
    assert_eq!(client.me().await.unwrap().username, "alice");
    assert_eq!(client.first_user().await.unwrap(), FirstUser::Exists);
    let found = client.workspace("me", "dev").await.unwrap();
    assert_eq!(found.id, plane.workspace.id);
    assert_eq!(found.latest_build.status, BuildStatus::Running);
    assert_eq!(found.latest_build.transition, Transition::Start);
    assert!(found.latest_build.job.completed_at.is_some());
    let agent = found.agents().next().unwrap();
    assert_eq!(agent.status, AgentStatus::Connecting);
    let info = client.connection(agent.id).await.unwrap();
    let map = info.derp_map.unwrap();
    assert_eq!(map.regions.keys().copied().collect::<Vec<_>>(), [999]);
    client.usage(found.id, None).await.unwrap();
    let text = get(&plane, "/api/v2/nonsense", "").await;
    assert!(text.starts_with("HTTP/1.1 404 "), "{text}");
    assert!(text.contains("X-Coder-Build-Version: v0.0.0"), "{text}");
    assert!(text.contains(r#"{"message":"#), "{text}");
}

#[tokio::test]
async fn tokens_are_taken_from_header_cookie_query_and_bearer() {
    let plane = Plane::start().await;
    let token = &plane.session;
    let me = "/api/v2/users/me";
    for (path, headers) in [
        (me.to_owned(), format!("Coder-Session-Token: {token}\r\n")),
        (
            me.to_owned(),
            format!("Cookie: coder_session_token={token}\r\n"),
        ),
        (me.to_owned(), format!("Authorization: Bearer {token}\r\n")),
        (format!("{me}?coder_session_token={token}"), String::new()),
    ] {
        let text = get(&plane, &path, &headers).await;
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    }
    for headers in ["", "Coder-Session-Token: wrong\r\n"] {
        let text = get(&plane, me, headers).await;
        assert!(text.starts_with("HTTP/1.1 401 "), "{text}");
    }
}

#[tokio::test]
async fn what_belongs_to_others_is_not_found() {
    let plane = Plane::start().await;
    let store = plane.server.store();
    let bob = store
        .create_user("bob", "bob@example.com", "bob-horse-7", false)
        .await
        .unwrap();
    let bobs = store.create_token(bob.id).await.unwrap();
    let client = plane.client(&bobs);
    assert!(client.workspace("alice", "dev").await.is_err());
    let agent = plane.workspace.agents[0].id;
    assert!(client.connection(agent).await.is_err());
    let path = format!("workspaceagents/{agent}/coordinate?version=2.0");
    let header = [("Coder-Session-Token", bobs.as_str())];
    assert_eq!(plane.control(&path, &header).await.unwrap_err(), 404);
    let admin = store
        .create_user("root", "root@example.com", "root-horse-7", true)
        .await
        .unwrap();
    let roots = store.create_token(admin.id).await.unwrap();
    assert!(plane.client(&roots).workspace("alice", "dev").await.is_ok());
}

#[tokio::test]
async fn logging_in_and_out() {
    let plane = Plane::start().await;
    let stranger = plane.client("");
    let wrong = stranger.login("alice@example.com", "wrong-horse").await;
    assert!(wrong.is_err());
    let token = stranger
        .login("alice@example.com", "correct-horse-7")
        .await
        .unwrap();
    let client = plane.client(&token);
    let key = client.create_key().await.unwrap();
    client.logout().await.unwrap();
    assert!(client.me().await.is_err());
    assert!(plane.client(&key).me().await.is_ok());
    let again = CreateFirstUser {
        username: "eve".into(),
        email: "eve@example.com".into(),
        password: "eves-horse-7".into(),
        ..CreateFirstUser::default()
    };
    assert!(stranger.create_first_user(&again).await.is_err());
}

#[tokio::test]
async fn a_workspace_stops_starts_and_goes() {
    let plane = Plane::start().await;
    let id = plane.workspace.id;
    let build = async |transition: &str| {
        let body = format!(r#"{{"transition":"{transition}"}}"#);
        let length = body.len();
        let token = &plane.session;
        let head = format!("Host: relay\r\nConnection: close\r\nCoder-Session-Token: {token}");
        let request = format!(
            "POST /api/v2/workspaces/{id}/builds HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        exchange(&plane, &request).await
    };
    let stopped = build("stop").await;
    assert!(stopped.starts_with("HTTP/1.1 201 "), "{stopped}");
    assert!(stopped.contains(r#""status":"stopped""#), "{stopped}");
    assert!(build("start").await.contains(r#""build_number":3"#));
    assert!(build("explode").await.starts_with("HTTP/1.1 400 "));
    assert!(build("delete").await.contains(r#""status":"deleted""#));
    assert_eq!(plane.all_workspaces().await, 0);
}

#[tokio::test]
async fn sessions_survive_a_restart() {
    let plane = Plane::start().await.restart().await;
    let client = plane.client(&plane.session);
    assert_eq!(client.me().await.unwrap().username, "alice");
}

#[tokio::test]
async fn a_watched_workspace_is_told_at_once_and_when_it_changes() {
    let plane = Plane::start().await;
    let id = plane.workspace.id;
    let token = &plane.session;
    let mut stream = TcpStream::connect(plane.address()).await.unwrap();
    let head = format!("Host: relay\r\nCoder-Session-Token: {token}");
    let request = format!("GET /api/v2/workspaces/{id}/watch HTTP/1.1\r\n{head}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    let mut events = async |count: usize| {
        let mut buffer = [0; 8192];
        while text.matches("event: data\ndata: {").count() < count {
            let length = soon(stream.read(&mut buffer)).await.unwrap();
            assert!(length > 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        text.clone()
    };
    let first = events(1).await;
    assert!(first.contains("text/event-stream"), "{first}");
    // As another process does it, on the same database.
    let store = relay_server::Store::open(&plane.data.path().join("data")).await;
    let store = store.unwrap();
    let found = store.workspace(id).await.unwrap().unwrap();
    store.rebuild_workspace(&found).await.unwrap();
    assert!(events(2).await.contains(r#""build_number":2"#));
}

#[tokio::test]
async fn tls_is_spoken_with_the_files_given() {
    let data = tempfile::TempDir::new().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = TlsFiles {
        certificate: data.path().join("cert.pem"),
        key: data.path().join("key.pem"),
    };
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let address = "127.0.0.1:0".parse().unwrap();
    let config = || Config {
        stun: StunAddress::Off,
        tls: Some(files.clone()),
        ..Config::new(address, data.path().join("data"))
    };
    let server = Server::start(config()).await.unwrap();
    assert_eq!(server.access_url().scheme(), "https");
    let mut access = Access::default();
    access.tls.ca_file = Some(files.certificate.clone());
    let url = format!("https://localhost:{}", server.local_addr().port());
    let client = Client::new(&url.parse().unwrap(), access);
    let info = soon(client.buildinfo()).await.unwrap();
    assert!(info.version.starts_with('v'));
    assert_eq!(client.first_user().await.unwrap(), FirstUser::Missing);
    // Plain HTTP at a TLS port ends, and nothing else does.
    let mut plain = TcpStream::connect(server.local_addr()).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let _ = soon(plain.read_to_end(&mut Vec::new())).await;
    assert!(client.buildinfo().await.is_ok());
    server.shutdown().await;
    std::fs::write(&files.key, "nonsense").unwrap();
    let error = Server::start(config()).await.err().unwrap().to_string();
    assert!(error.contains("key.pem"), "{error}");
}

#[tokio::test]
async fn a_busy_address_is_named_and_a_busy_stun_port_only_left_out() {
    let plane = Plane::start().await;
    let data = tempfile::TempDir::new().unwrap();
    let busy = Config::new(plane.address(), data.path().join("data"));
    let error = Server::start(busy).await.err().unwrap().to_string();
    assert!(error.contains(&plane.address().to_string()), "{error}");
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for (address, regions) in [
        (socket.local_addr().unwrap(), 1),
        ("127.0.0.1:0".parse().unwrap(), 2),
    ] {
        let config = Config {
            stun: StunAddress::At(address),
            ..Config::new("127.0.0.1:0".parse().unwrap(), data.path().join("data"))
        };
        let server = Server::start(config).await.unwrap();
        let map = server.derp_map();
        // The port behind the first one may be taken.
        assert_eq!(map.regions.len().min(2), regions);
        server.shutdown().await;
    }
}
