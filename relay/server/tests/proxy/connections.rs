//! Browsers' connections: which thread serves them, and when they have to end.

use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use relay_server::TlsFiles;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client};

use crate::support::{APPS, Site, echo, port_host, request, soon};

/// The threads that dialled apps since the last call.
fn dialled(site: &Site) -> Vec<String> {
    std::mem::take(&mut *site.dialer.threads.lock().unwrap())
}

fn by_apps_thread(threads: &[String]) -> bool {
    matches!(threads, [thread] if thread.starts_with("apps-"))
}

#[tokio::test]
async fn connections_to_apps_are_served_by_their_own_threads() {
    let site = Site::start().await;
    let port = echo().await;
    assert_eq!(site.open(port, "/", &site.alice).await.status, 200);
    let threads = dialled(&site);
    assert!(by_apps_thread(&threads), "{threads:?}");
    // A head that comes in pieces, and HTTP/2, do not tell in time, and are served as well.
    let head = format!(
        "GET /slow HTTP/1.1\r\nHost: {}\r\nCoder-Session-Token: {}\r\nConnection: close\r\n\r\n",
        port_host(port),
        site.alice
    );
    let mut stream = site.connect().await;
    let (first, rest) = head.split_at(20);
    stream.write_all(first.as_bytes()).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    stream.write_all(rest.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.contains("GET /slow "), "{answer}");
    let threads = dialled(&site);
    assert!(!by_apps_thread(&threads), "{threads:?}");
}

#[tokio::test]
async fn a_connection_that_goes_from_the_dashboard_to_an_app_is_served_on() {
    let site = Site::start().await;
    let port = echo().await;
    let stream = TokioIo::new(site.connect().await);
    let (mut sender, connection) = http1::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let session = [("coder-session-token", site.alice.as_str())];
    for (host, path) in [
        ("relay.example.com".to_owned(), "/api/v2/users/me"),
        (port_host(port), "/app"),
        ("relay.example.com".to_owned(), "/api/v2/users/me"),
    ] {
        let request = request("GET", &host, path, &session);
        let answer = soon(sender.send_request(request)).await.unwrap();
        assert_eq!(answer.status(), 200, "{host}{path}");
        answer.into_body().collect().await.unwrap();
    }
    connection.abort();
}

/// Opens TLS without a look at the certificate.
async fn tls(site: &Site, name: &str, protocol: &[u8]) -> client::TlsStream<TcpStream> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = site.connect().await;
    let opening = TlsConnector::from(Arc::new(config)).connect(name, stream);
    soon(opening).await.unwrap()
}

#[tokio::test]
async fn tls_tells_the_host_before_the_first_request() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed([format!("*.{APPS}")]).unwrap();
    let files = TlsFiles {
        certificate: folder.path().join("certificate.pem"),
        key: folder.path().join("key.pem"),
    };
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let site = Site::with_tls(files).await;
    let port = echo().await;
    let host = port_host(port);
    let session = [("coder-session-token", site.alice.as_str())];
    for (number, name, own) in [(0, host.as_str(), true), (1, "relay.example.com", false)] {
        let stream = TokioIo::new(tls(&site, name, b"http/1.1").await);
        let (mut sender, connection) = http1::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(request("GET", &host, "/one", &session));
        assert_eq!(soon(answer).await.unwrap().status(), 200);
        let threads = dialled(&site);
        assert_eq!(by_apps_thread(&threads), own, "{number}: {threads:?}");
        connection.abort();
    }
    let stream = TokioIo::new(tls(&site, &host, b"h2").await);
    let opened = http2::handshake::<_, _, Full<bytes::Bytes>>(TokioExecutor::new(), stream);
    let (mut sender, connection) = opened.await.unwrap();
    let connection = tokio::spawn(connection);
    let mut asked = request("GET", &host, "/two", &session);
    asked.headers_mut().remove("host");
    *asked.uri_mut() = format!("https://{host}/two").parse().unwrap();
    let answer = soon(sender.send_request(asked)).await.unwrap();
    assert_eq!(answer.status(), 200);
    connection.abort();
}

/// RFC 9112 §6.1: where somebody in between may have read another end of the message, what follows
/// it on the connection is nobody's request.
#[tokio::test]
async fn a_request_with_both_lengths_is_the_last_of_its_connection() {
    let site = Site::start().await;
    let port = echo().await;
    let (host, session) = (port_host(port), &site.alice);
    let start = format!("Host: {host}\r\nCoder-Session-Token: {session}\r\n");
    let next = format!("GET /next HTTP/1.1\r\n{start}\r\n");
    let chunked = "Transfer-Encoding: chunked\r\n";
    let length = "Content-Length: 5\r\n";
    for (lines, last) in [
        (format!("{length}{chunked}"), true),
        (format!("{chunked}{length}"), true),
        (format!("{chunked}{length}Connection: keep-alive\r\n"), true),
        (chunked.to_owned(), false),
        (length.to_owned(), false),
    ] {
        let mut stream = site.connect().await;
        let text = format!("POST /first HTTP/1.1\r\n{start}{lines}\r\n0\r\n\r\n{next}");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answers = Vec::new();
        let mut reading = Box::pin(async {
            let mut buffer = [0; 4096];
            loop {
                match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(count) => answers.extend_from_slice(&buffer[..count]),
                }
                let text = String::from_utf8_lossy(&answers);
                if !last && text.contains("GET /next ") && text.ends_with("\r\n\r\n") {
                    return;
                }
            }
        });
        soon(&mut reading).await;
        drop(reading);
        let text = String::from_utf8_lossy(&answers);
        assert!(text.contains("POST /first "), "{lines:?}: {text}");
        assert_eq!(text.contains("GET /next "), !last, "{lines:?}: {text}");
    }
}

/// Takes any certificate: these tests are about what comes behind it.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
