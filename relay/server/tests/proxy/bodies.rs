//! Bodies stream both ways and are held nowhere; apps that misbehave harm nobody but themselves.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use relay_server::CorsBehavior;
use relay_server::apps::access::ShareLevel;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{PATIENCE, Site, echo, port_host, request, serve, soon};

/// Reads a request's head.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Sends a request's head by hand, as the owner.
async fn raw(site: &Site, port: u16, line: &str, more: &str) -> TcpStream {
    let mut stream = site.connect().await;
    let (host, session) = (port_host(port), &site.alice);
    let head =
        format!("{line} HTTP/1.1\r\nHost: {host}\r\nCoder-Session-Token: {session}\r\n{more}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn a_part_of_an_answer_arrives_before_the_rest_is_there() {
    let site = Site::start().await;
    let port = serve(async |mut stream| {
        head(&mut stream).await;
        let start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
        stream.write_all(start).await.unwrap();
        // The rest comes when the visitor has gone.
        let _ = stream.read_u8().await;
    })
    .await;
    let mut stream = raw(&site, port, "GET /", "").await;
    let mut seen = String::new();
    while !seen.contains("first") {
        let mut buffer = [0; 4096];
        let length = soon(stream.read(&mut buffer)).await.unwrap();
        assert!(length > 0, "{seen}");
        seen.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
}

#[tokio::test]
async fn a_part_of_a_request_reaches_the_app_before_the_rest_is_sent() {
    let site = Site::start().await;
    let (told, heard) = std::sync::mpsc::channel();
    let port = serve(move |mut stream| {
        let told = told.clone();
        async move {
            head(&mut stream).await;
            let mut body = [0; 10];
            stream.read_exact(&mut body).await.unwrap();
            told.send(body).unwrap();
            let _ = stream.read_u8().await;
        }
    })
    .await;
    let mut stream = raw(&site, port, "POST /", "Transfer-Encoding: chunked\r\n").await;
    stream.write_all(b"5\r\nfirst\r\n").await.unwrap();
    let body = tokio::task::spawn_blocking(move || heard.recv_timeout(PATIENCE).unwrap());
    assert_eq!(&body.await.unwrap(), b"5\r\nfirst\r\n");
}

#[tokio::test]
async fn an_endless_answer_waits_for_its_reader() {
    let site = Site::start().await;
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    let port = serve(move |mut stream| {
        let counter = Arc::clone(&counter);
        async move {
            head(&mut stream).await;
            let start = b"HTTP/1.1 200 OK\r\n\r\n";
            stream.write_all(start).await.unwrap();
            let block = [b'x'; 16384];
            while stream.write_all(&block).await.is_ok() {
                counter.fetch_add(block.len() as u64, Ordering::Relaxed);
            }
        }
    })
    .await;
    let stream = raw(&site, port, "GET /", "").await;
    let mut before = 0;
    let still = async {
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = sent.load(Ordering::Relaxed);
            if now > 0 && now == before {
                break now;
            }
            before = now;
        }
    };
    let held = soon(still).await;
    // What the kernel's buffers of four sockets hold, and little more.
    assert!(held < 64 << 20, "{held} bytes are held");
    drop(stream);
}

#[tokio::test]
async fn an_app_that_breaks_off_or_answers_nonsense_is_a_bad_gateway() {
    let site = Site::start().await;
    let huge = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(400 << 10));
    for answer in [
        "",
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX",
        huge.as_str(),
    ] {
        let answer = answer.to_owned();
        let port = serve(move |mut stream| {
            let answer = answer.clone();
            async move {
                head(&mut stream).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        })
        .await;
        let seen = site.open(port, "/", &site.alice).await;
        assert_eq!(seen.status, 502);
        assert_eq!(seen.header("content-type"), "text/html; charset=utf-8");
    }
}

#[tokio::test]
async fn https_where_http_is_meant_offers_the_other_address() {
    let site = Site::start().await;
    let alert = serve(async |mut stream| {
        head(&mut stream).await;
        let alert = [0x15, 3, 1, 0, 2, 2, 40];
        let _ = stream.write_all(&alert).await;
    })
    .await;
    let seen = site.open(alert, "/", &site.alice).await;
    assert_eq!(seen.status, 502);
    let link = format!("https://{}/", port_host(format!("{alert}s")));
    assert!(seen.text().contains(&link), "{}", seen.text());
    let plain = echo().await;
    let session = [("coder-session-token", site.alice.as_str())];
    let seen = site
        .get(&port_host(format!("{plain}s")), "/", &session)
        .await;
    assert_eq!(seen.status, 502, "{}", seen.text());
}

#[tokio::test]
async fn a_huge_head_is_refused_and_a_long_one_is_not() {
    let site = Site::start().await;
    let port = echo().await;
    let long = format!("X-Long: {}\r\nConnection: close\r\n", "x".repeat(30_000));
    let mut stream = raw(&site, port, "GET /", &long).await;
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{:.200}", answer);
    let huge = format!("X-Huge: {}\r\n", "x".repeat(200_000));
    let mut stream = site.connect().await;
    let sent = format!("GET / HTTP/1.1\r\nHost: {}\r\n{huge}\r\n", port_host(port));
    let _ = stream.write_all(sent.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );
}

#[tokio::test]
async fn an_idle_connection_that_the_app_closed_costs_no_request() {
    let site = Site::start().await;
    let port = serve(async |mut stream| {
        head(&mut stream).await;
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        stream.write_all(answer).await.unwrap();
        // Closes although it said nothing of it.
    })
    .await;
    for _ in 0..10 {
        let seen = site.open(port, "/", &site.alice).await;
        assert_eq!((seen.status.as_u16(), seen.text()), (200, "ok"));
    }
}

#[tokio::test]
async fn no_second_request_is_smuggled_to_the_app() {
    let site = Site::start().await;
    let (told, heard) = std::sync::mpsc::channel();
    let port = serve(move |mut stream| {
        let told = told.clone();
        async move {
            loop {
                let seen = head(&mut stream).await;
                if seen.is_empty() {
                    return;
                }
                told.send(seen.lines().next().unwrap().to_owned()).unwrap();
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let inner = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    for framing in [
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Content-Length: 4\r\nContent-Length: 0\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n",
        "Content-Length: +0\r\n\r\n",
        "Content-Length: 0x0\r\n\r\n",
        "Transfer-Encoding: \u{b}chunked\r\n\r\n",
        "X: a\r\n Transfer-Encoding: chunked\r\n\r\n",
        "X: a\nContent-Length: 0\r\n\r\n",
        "Connection: Content-Length\r\nContent-Length: 0\r\n\r\n",
    ] {
        let mut stream = site.connect().await;
        let (host, session) = (port_host(port), &site.bob);
        // Bob has no right to the app: nothing behind his request may reach it either.
        let sent = format!(
            "POST /front HTTP/1.1\r\nHost: {host}\r\nCoder-Session-Token: {session}\r\n{framing}{inner}"
        );
        let _ = stream.write_all(sent.as_bytes()).await;
        let mut answer = vec![0; 65536];
        let _ = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut answer)).await;
    }
    assert_eq!(heard.try_recv().ok(), None);
    for framing in [
        "Content-Length: 37",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
    ] {
        let mut stream = raw(&site, port, "POST /front", &format!("{framing}\r\n")).await;
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        stream.write_all(inner.as_bytes()).await.unwrap();
        let mut answer = vec![0; 65536];
        let _ = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut answer)).await;
    }
    // One request with the body, which the app of this test reads as lines of its own; and none
    // that the proxy made of the rest, which names another host.
    let seen: Vec<String> = heard.try_iter().collect();
    assert!(
        seen.iter().any(|line| line.starts_with("POST /front ")),
        "{seen:?}"
    );
}

/// A browser of HTTP/2, without TLS.
async fn http2(site: &Site) -> http2::SendRequest<Full<Bytes>> {
    let stream = TokioIo::new(site.connect().await);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn a_browser_may_speak_http_2() {
    let site = Site::start().await;
    let port = echo().await;
    let mut sender = http2(&site).await;
    let target = format!("http://{}/a", port_host(port));
    let mut sent = request("GET", "x", &target, &[("coder-session-token", &site.alice)]);
    sent.headers_mut().remove("host");
    for cookie in ["a=1", "b=2"] {
        sent.headers_mut().append("cookie", cookie.parse().unwrap());
    }
    let answer = soon(sender.send_request(sent)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let head = String::from_utf8(body.to_vec()).unwrap().to_lowercase();
    assert!(head.starts_with("get /a http/1.1\r\n"), "{head}");
    assert!(head.contains("cookie: a=1; b=2\r\n"), "{head}");
    assert!(
        head.contains(&format!("host: {}\r\n", port_host(port))),
        "{head}"
    );
}

#[tokio::test]
async fn grpc_goes_through_from_end_to_end() {
    let site = Site::start().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                assert_eq!(request.headers()["te"], "trailers");
                let body = request.into_body().collect().await?.to_bytes();
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                let body = Full::new(body).with_trailers(async { Some(Ok(trailers)) });
                Ok::<_, hyper::Error>(http::Response::new(body))
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    let mut sender = http2(&site).await;
    for _ in 0..2 {
        let sent = http::Request::post(format!("http://{}/s/M", port_host(port)))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("coder-session-token", &site.alice)
            .body(Full::new(Bytes::from_static(b"message")))
            .unwrap();
        let answer = soon(sender.send_request(sent)).await.unwrap();
        assert_eq!(answer.status(), 200);
        let body = soon(answer.into_body().collect()).await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(body.to_bytes(), "message");
    }
    assert_eq!(site.dialer.dials.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn preflights_are_answered_before_anybody_is_known() {
    let site = Site::start().await;
    let port = echo().await;
    let own = format!("https://80--main--dev--alice.{}", crate::support::APPS);
    let foreign = "https://example.com";
    let ask = async |origin: &str| {
        let headers = [("origin", origin), ("access-control-request-method", "PUT")];
        site.send(request("OPTIONS", &port_host(port), "/", &headers))
            .await
    };
    let answer = ask(&own).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), own);
    let answer = ask(foreign).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), "");
    site.cors(CorsBehavior::Passthru).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(ask(&own).await.status, 401);
    site.share(port, ShareLevel::Public).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let answer = ask(&own).await;
    assert!(answer.text().starts_with("OPTIONS / HTTP/1.1\r\n"));
}
