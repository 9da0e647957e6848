//! Apps that speak TLS, with a certificate that nobody else would take.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::{Site, port_host, soon};

/// An app with a certificate of its own making; it tells the version of HTTP that it was asked in,
/// and takes upgrades.
async fn app(protocols: &[&[u8]]) -> u16 {
    let made = rcgen::generate_simple_self_signed(["elsewhere.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let stream = TokioIo::new(stream);
                if two {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(stream, service_fn(answer)).await;
                } else {
                    let server = hyper::server::conn::http1::Builder::new();
                    let serving = server.serve_connection(stream, service_fn(answer));
                    let _ = serving.with_upgrades().await;
                }
            });
        }
    });
    port
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let version = request.version();
    let text = format!("{version:?} {}", request.uri().path());
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    if version == Version::HTTP_11 && request.headers().contains_key("upgrade") {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgraded.await.unwrap());
            let mut bytes = [0; 4];
            while io.read_exact(&mut bytes).await.is_ok() {
                io.write_all(&bytes).await.unwrap();
                io.flush().await.unwrap();
            }
        });
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert("connection", "Upgrade".parse().unwrap());
        headers.insert("upgrade", "echo".parse().unwrap());
        *answer.body_mut() = Full::default();
    }
    Ok(answer)
}

#[tokio::test]
async fn the_mark_of_a_port_means_tls_with_any_certificate() {
    let site = Site::start().await;
    let port = app(&[b"http/1.1"]).await;
    let session = [("coder-session-token", site.alice.as_str())];
    let host = port_host(format!("{port}s"));
    for _ in 0..2 {
        let seen = site.get(&host, "/x", &session).await;
        assert_eq!((seen.status.as_u16(), seen.text()), (200, "HTTP/1.1 /x"));
    }
    assert_eq!(site.dialer.dials.load(Ordering::Relaxed), 1);
    // Without the mark the app gets plain text, and the page says what to do.
    let plain = site.open(port, "/", &site.alice).await;
    assert_eq!(plain.status, 502);
    assert!(
        plain.text().contains(&format!("https://{host}/")),
        "{}",
        plain.text()
    );
}

#[tokio::test]
async fn an_app_that_likes_http_2_gets_it_but_upgrades_stay_http_1() {
    let site = Site::start().await;
    let port = app(&[b"h2", b"http/1.1"]).await;
    let session = [("coder-session-token", site.alice.as_str())];
    let host = port_host(format!("{port}s"));
    let seen = site.get(&host, "/x", &session).await;
    assert_eq!((seen.status.as_u16(), seen.text()), (200, "HTTP/2.0 /x"));

    let mut stream = site.connect().await;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\
         Coder-Session-Token: {}\r\n\r\n",
        site.alice
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for _ in 0..3 {
        stream.write_all(b"ping").await.unwrap();
        let mut back = [0; 4];
        soon(stream.read_exact(&mut back)).await.unwrap();
        assert_eq!(&back, b"ping");
    }
}
