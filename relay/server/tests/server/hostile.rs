//! Bytes that nobody should send. The server goes on serving the others.

use std::time::Duration;

use relay_wire::keys::NodePrivate;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rest::{exchange, get};
use crate::support::{Plane, RawRelay, soon};

async fn still_serves(plane: &Plane) {
    let me = plane.client(&plane.session).me().await.unwrap();
    assert_eq!(me.username, "alice");
}

/// Sends bytes and waits for the server to close the connection.
async fn closed_after(plane: &Plane, bytes: &[u8]) {
    let mut stream = TcpStream::connect(plane.address()).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
}

#[tokio::test]
async fn nonsense_instead_of_http() {
    let plane = Plane::start().await;
    let noise: Vec<u8> = (0..100_000_u32).map(|n| ((n * 7919) >> 5) as u8).collect();
    let long = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; 1 << 20]].concat();
    for bytes in [
        &noise[..],
        &long,
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n",
    ] {
        closed_after(&plane, bytes).await;
        still_serves(&plane).await;
    }
}

#[tokio::test]
async fn bodies_that_are_too_long_or_no_json_are_refused() {
    let plane = Plane::start().await;
    let post = async |body: &str| {
        let head = "POST /api/v2/users/login HTTP/1.1\r\nHost: relay\r\nConnection: close";
        let length = body.len();
        exchange(
            &plane,
            &format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}"),
        )
        .await
    };
    for (body, status) in [
        ("{", 400),
        ("7", 400),
        (r#"{"email":7}"#, 400),
        ("", 401),
        (&"{".repeat(100_000), 400),
    ] {
        let answer = post(body).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
    let answer = post(&" ".repeat(300 << 10)).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 413 "),
        "{answer}"
    );
    still_serves(&plane).await;
}

#[tokio::test]
async fn odd_paths_are_answered() {
    let plane = Plane::start().await;
    let token = format!("Coder-Session-Token: {}\r\n", plane.session);
    for path in [
        "/api/v2/workspaces/not-an-id",
        "/api/v2/workspaceagents/%ff",
        "/api/v2/users/..%2f..%2fetc/workspace/x",
        "/api/v2/workspaces?q=owner%3A%22nobody%22&limit=-1&offset=99999999999999999999",
        "/api/v2/workspaces?q=%00",
        "/derp",
        "//",
        "/api/v2/users/me/workspace/%F0%9F%92%A3",
    ] {
        let answer = get(&plane, path, &token).await;
        let code: u16 = answer[9..12].parse().unwrap();
        assert!((200..500).contains(&code), "{path}: {answer}");
    }
}

#[tokio::test]
async fn nonsense_instead_of_relay_frames() {
    let plane = Plane::start().await;
    let upgrade = "GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n";
    for frames in [
        &[0xff; 300][..],
        // A first frame of 4 GiB.
        &[0x02, 0xff, 0xff, 0xff, 0xff],
        // An introduction that opens with no key.
        &[&[0x02, 0, 0, 0, 100][..], &[9; 100]].concat(),
        // A packet before the introduction.
        &[&[0x04, 0, 0, 0, 40][..], &[9; 40]].concat(),
    ] {
        closed_after(&plane, &[upgrade.as_bytes(), frames].concat()).await;
    }
    let key = NodePrivate::from_bytes([1; 32]);
    for frame in [
        // Longer than any, shorter than a key, and one that only relays send.
        &[0x04, 0x7f, 0xff, 0xff, 0xff][..],
        &[0x04, 0, 0, 0, 3, 1, 2, 3],
        &[0x10, 0, 0, 0, 0],
    ] {
        let mut client = RawRelay::upgrade(plane.address(), key.clone()).await;
        client.io.write_all(frame).await.unwrap();
        let mut rest = Vec::new();
        let _ = soon(client.io.read_to_end(&mut rest)).await;
    }
    still_serves(&plane).await;
}

#[tokio::test]
async fn connections_that_say_nothing_hold_up_nobody() {
    let plane = Plane::start().await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(plane.address()).await.unwrap();
        stream.write_all(b"GET /api/v2/bu").await.unwrap();
        silent.push(stream);
    }
    tokio::time::timeout(Duration::from_secs(5), still_serves(&plane))
        .await
        .unwrap();
}
