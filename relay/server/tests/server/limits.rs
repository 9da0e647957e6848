//! How many requests are answered a minute.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use crate::rest::get;
use crate::support::{Plane, soon};

async fn status(plane: &Plane, path: &str, token: &str) -> u16 {
    plane.json("GET", path, token, &Value::Null).await.0
}

#[tokio::test]
async fn a_users_requests_to_a_path_are_limited_and_nobody_elses() {
    let plane = Plane::start_with(|config| config.api_rate_limit = 3).await;
    let alice = &plane.session;
    let bob = plane.session_of("bob", false).await;
    for _ in 0..3 {
        assert_eq!(status(&plane, "users/me", alice).await, 200);
    }
    let text = get(
        &plane,
        "/api/v2/users/me",
        &format!("Coder-Session-Token: {alice}\r\n"),
    )
    .await;
    assert!(text.starts_with("HTTP/1.1 429 "), "{text}");
    assert!(text.contains("\r\nRetry-After: "), "{text}");
    assert!(text.contains(r#"{"message":"#), "{text}");
    // Another session is the same user.
    let store = plane.server.store();
    let user = store.user_by_name("alice").await.unwrap().unwrap();
    let second = store.create_token(user.id).await.unwrap();
    assert_eq!(status(&plane, "users/me", &second).await, 429);
    assert_eq!(status(&plane, "workspaces", alice).await, 200);
    assert_eq!(status(&plane, "users/me", &bob).await, 200);
}

#[tokio::test]
async fn strangers_are_counted_by_address_and_wrong_tokens_do_not_help() {
    let plane = Plane::start_with(|config| config.api_rate_limit = 3).await;
    for number in 0..3 {
        let token = format!("{number:010}-{}", "x".repeat(22));
        assert_eq!(status(&plane, "users/me", &token).await, 401);
    }
    assert_eq!(status(&plane, "users/me", "another").await, 429);
    assert_eq!(status(&plane, "users/me", "").await, 429);
    assert_eq!(status(&plane, "users/me", &plane.session).await, 200);
    for expected in [200, 200, 200, 429] {
        assert_eq!(status(&plane, "buildinfo", "").await, expected);
    }
    let agent = plane.control("workspaceagents/me/rpc", &[]).await;
    assert_eq!(agent.unwrap_err(), 401);
}

#[tokio::test]
async fn only_administrators_may_ask_not_to_be_counted() {
    let plane = Plane::start_with(|config| config.api_rate_limit = 1).await;
    let root = plane.session_of("root", true).await;
    for (token, last) in [(&root, "200"), (&plane.session, "429")] {
        let headers = format!("Coder-Session-Token: {token}\r\nX-Coder-Bypass-Ratelimit: true\r\n");
        get(&plane, "/api/v2/users/me", &headers).await;
        let text = get(&plane, "/api/v2/users/me", &headers).await;
        assert!(text.starts_with(&format!("HTTP/1.1 {last} ")), "{text}");
    }
}

#[tokio::test]
async fn attempts_to_log_in_are_limited_whatever_the_limit_of_the_api() {
    let plane = Plane::start_with(|config| config.api_rate_limit = 0).await;
    let nobody = json!({"email": "nobody@example.com", "password": "x"});
    let login = async |body: &Value| plane.json("POST", "users/login", "", body).await.0;
    for _ in 0..59 {
        // Not even a hash is computed for what is no JSON.
        assert_eq!(login(&json!(1)).await, 400);
    }
    assert_eq!(login(&nobody).await, 401);
    let right = json!({"email": "alice@example.com", "password": "correct-horse-7"});
    assert_eq!(login(&right).await, 429);
    // From another address of this machine.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut stream = socket.connect(plane.address()).await.unwrap();
    let body = right.to_string();
    let head = "POST /api/v2/users/login HTTP/1.1\r\nHost: relay\r\nConnection: close";
    let length = body.len();
    let request = format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert_eq!(status(&plane, "users/me", &plane.session).await, 200);
}
