//! WebSockets and other upgrades.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{APPS, DASHBOARD, Site, port_host, request, serve, soon};

/// An app that takes any upgrade, says so in its own spelling, and echoes.
async fn echo() -> u16 {
    serve(async |mut stream: TcpStream| {
        let head = read_head(&mut stream).await;
        let accepts = head.contains("Sec-WebSocket-Key: dGVzdA==\r\n");
        let early = "early";
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accepts}\r\n\r\n{early}"
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match soon(stream.read_u8()).await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

async fn open(site: &Site, port: u16, more: &str) -> (TcpStream, String) {
    let mut stream = site.connect().await;
    let host = port_host(port);
    let request = format!(
        "GET /socket HTTP/1.1\r\nHost: {host}\r\nConnection: keep-alive, Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGVzdA==\r\n\
         Cookie: coder_session_token={}\r\n{more}\r\nahead",
        site.alice
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    (stream, head)
}

#[tokio::test]
async fn bytes_go_both_ways_from_the_first_on() {
    let site = Site::start().await;
    let port = echo().await;
    let (mut stream, head) = open(&site, port, "").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("Sec-WebSocket-Accept: true\r\n"), "{head}");
    let mut seen = [0; 10];
    soon(stream.read_exact(&mut seen)).await.unwrap();
    assert_eq!(&seen, b"earlyahead");
    let block = vec![7; 1 << 20];
    let (mut reader, mut writer) = stream.into_split();
    let sent = block.clone();
    tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer
    });
    let mut back = vec![0; block.len()];
    soon(reader.read_exact(&mut back)).await.unwrap();
    assert!(back == block);
}

#[tokio::test]
async fn the_end_of_one_direction_is_passed_on() {
    let site = Site::start().await;
    let port = echo().await;
    let (mut stream, _) = open(&site, port, "").await;
    stream.write_all(b"last").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"earlyaheadlast");
}

#[tokio::test]
async fn pages_of_others_may_not_use_the_visitors_cookies() {
    let site = Site::start().await;
    let port = echo().await;
    for (origin, status) in [
        (format!("https://{}", port_host(port)), 101),
        (format!("https://3000--main--other--alice.{APPS}"), 101),
        (format!("https://3000--main--dev--bob.{APPS}"), 403),
        ("https://evil.example".to_owned(), 403),
        ("null".to_owned(), 403),
    ] {
        let (_, head) = open(&site, port, &format!("Origin: {origin}\r\n")).await;
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{origin}: {head}"
        );
    }
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let site = Site::start().await;
    let port = crate::support::echo().await;
    let (_, head) = open(&site, port, "").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(!head.to_lowercase().contains("upgrade"), "{head}");
}

#[tokio::test]
async fn a_server_that_stops_ends_what_was_upgraded() {
    let site = Site::start().await;
    let port = echo().await;
    let (mut stream, _) = open(&site, port, "").await;
    let Site { server, .. } = site;
    soon(server.shutdown()).await;
    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
}

#[tokio::test]
async fn a_connection_ends_with_the_session_that_opened_it() {
    let site = Site::start().await;
    let port = echo().await;
    let (mut stream, _) = open(&site, port, "").await;
    // Somebody else's change is none of its business.
    let bob = [("coder-session-token", site.bob.as_str())];
    let logout =
        |session: &[(&str, &str)]| request("POST", DASHBOARD, "/api/v2/users/logout", session);
    assert_eq!(site.send(logout(&bob)).await.status, 200);
    stream.write_all(b"still").await.unwrap();
    let mut seen = [0; 15];
    soon(stream.read_exact(&mut seen)).await.unwrap();
    assert_eq!(&seen, b"earlyaheadstill");
    let alice = [("coder-session-token", site.alice.as_str())];
    assert_eq!(site.send(logout(&alice)).await.status, 200);
    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
}
