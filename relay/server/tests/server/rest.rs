//! The REST API, by our own client and by hand.

use relay_control::rest::FirstUser;
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
    client.usage(found.id).await.unwrap();
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
