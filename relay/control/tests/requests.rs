//! Requests over a connection that is kept between them.
#![allow(
    clippy::unwrap_used,
    reason = "a test panics on what it does not expect"
)]

use std::time::Duration;

use relay_control::Error;
use relay_control::rest::{Access, Client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use url::Url;

/// Answers `requests` of each connection, then closes it; tells what was asked, by connection.
async fn server(requests: usize) -> (Url, mpsc::UnboundedReceiver<(usize, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let (sender, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            for _ in 0..requests {
                let line = head(&mut stream).await;
                if line.is_empty() || sender.send((number, line)).is_err() {
                    break;
                }
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"version\":\"\"}";
                stream.write_all(answer).await.unwrap();
            }
            number += 1;
        }
    });
    (url, asked)
}

/// First line of a request without a body.
async fn head(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => text.push(byte),
            Err(_) => return String::new(),
        }
    }
    let text = String::from_utf8(text).unwrap();
    text.lines().next().unwrap_or_default().to_owned()
}

async fn soon<T>(wait: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, wait).await.expect("hangs")
}

#[tokio::test]
async fn requests_share_a_connection() {
    let (url, mut asked) = server(3).await;
    let client = Client::new(&url, Access::default());
    for _ in 0..3 {
        soon(client.buildinfo()).await.unwrap();
        let (connection, line) = asked.recv().await.unwrap();
        assert_eq!(connection, 0);
        assert_eq!(line, "GET /api/v2/buildinfo HTTP/1.1");
    }
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_is_replaced() {
    let (url, mut asked) = server(1).await;
    let client = Client::new(&url, Access::default());
    for number in 0..3 {
        soon(client.buildinfo()).await.unwrap();
        assert_eq!(asked.recv().await.unwrap().0, number);
    }
}

#[tokio::test]
async fn requests_at_the_same_time_do_not_wait_for_one_another() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let client = Client::new(&url, Access::default());
    let two = async { tokio::join!(client.buildinfo(), client.buildinfo()) };
    let serve = async {
        let (mut first, _) = listener.accept().await.unwrap();
        let (mut second, _) = listener.accept().await.unwrap();
        for stream in [&mut first, &mut second] {
            head(stream).await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
            stream.write_all(answer).await.unwrap();
        }
    };
    let ((one, other), ()) = soon(async { tokio::join!(two, serve) }).await;
    assert!(one.is_ok() && other.is_ok());
}

#[tokio::test]
async fn nobody_listening_is_said_in_one_line_with_the_url() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    drop(listener);
    let client = Client::new(&url, Access::default());
    let error = soon(client.buildinfo()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }));
    let text = error.to_string();
    assert!(text.contains(url.as_str().trim_end_matches('/')), "{text}");
    assert!(!text.contains('\n'), "{text}");
}
