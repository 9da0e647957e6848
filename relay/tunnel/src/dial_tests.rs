//! Tests of dialling: order of addresses, refusals, limits, what follows a 101.
#![allow(clippy::unwrap_used)]

use tokio::net::TcpListener;

use super::*;

async fn serve_once(answer: &'static [u8]) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let _ = stream.read(&mut request).await.unwrap();
        stream.write_all(answer).await.unwrap();
        sleep(Duration::from_secs(1)).await;
    });
    Url::parse(&format!("http://localhost:{port}/derp")).unwrap()
}

async fn upgrade_once(answer: &'static [u8]) -> Result<Upgraded, DialError> {
    let stream = connect(&serve_once(answer).await, &TlsOptions::default())
        .await
        .unwrap();
    upgrade(stream, "localhost", "/derp", "DERP", &[]).await
}

#[test]
fn families_take_turns() {
    let parse = |texts: &[&str]| -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    };
    let given = parse(&[
        "[2001:db8::1]:1",
        "[2001:db8::2]:1",
        "192.0.2.1:1",
        "192.0.2.2:1",
    ]);
    let wanted = parse(&[
        "[2001:db8::1]:1",
        "192.0.2.1:1",
        "[2001:db8::2]:1",
        "192.0.2.2:1",
    ]);
    assert_eq!(interleave(given), wanted);
}

#[test]
fn target_takes_scheme_and_default_port() {
    let target = Target::from_url(&Url::parse("https://example.test/x").unwrap()).unwrap();
    assert_eq!((target.port, target.tls), (443, true));
    assert_eq!(target.host_header(), "example.test");
    let target = Target::from_url(&Url::parse("http://[::1]:3000").unwrap()).unwrap();
    assert_eq!(target.host_header(), "[::1]:3000");
    assert!(Target::from_url(&Url::parse("ftp://example.test").unwrap()).is_err());
}

#[tokio::test]
async fn localhost_falls_over_to_the_family_that_listens() {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else {
        return;
    };
    let port = listener.local_addr().unwrap().port();
    let url = Url::parse(&format!("http://app.localhost:{port}")).unwrap();
    connect(&url, &TlsOptions::default()).await.unwrap();
}

#[tokio::test]
async fn refused_port_names_host_and_port() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let url = Url::parse(&format!("http://127.0.0.1:{port}")).unwrap();
    let error = connect(&url, &TlsOptions::default())
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains(&format!("127.0.0.1:{port}")), "{error}");
}

#[tokio::test]
async fn bytes_behind_the_switch_are_kept() {
    let upgraded = upgrade_once(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nDerp-Version: 2\r\n\r\nfirst frame",
    )
    .await
    .unwrap();
    assert_eq!(&upgraded.rest[..], b"first frame");
    assert_eq!(upgraded.header("derp-version"), Some("2"));
}

#[tokio::test]
async fn refused_upgrade_carries_the_status() {
    let refused = upgrade_once(b"HTTP/1.1 426 Upgrade Required\r\n\r\n")
        .await
        .err()
        .unwrap();
    assert!(
        matches!(refused, DialError::Refused { status: 426, .. }),
        "{refused}"
    );
    let other = upgrade_once(b"SSH-2.0-x\r\n\r\n").await.err().unwrap();
    assert!(matches!(other, DialError::NotHttp(_)), "{other}");
}

#[tokio::test]
async fn server_that_never_answers_is_left_in_time() {
    let target = Target {
        host: "127.0.0.1".into(),
        port: TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port(),
        tls: true,
        certificate_name: None,
        addresses: Vec::new(),
        insecure: true,
    };
    let listener = TcpListener::bind(("127.0.0.1", target.port)).await.unwrap();
    let limit = Duration::from_millis(50);
    let late = connect_to(&target, &TlsOptions::default(), limit)
        .await
        .err()
        .unwrap();
    assert!(matches!(late, DialError::Late { .. }), "{late}");
    drop(listener);
}

#[test]
fn missing_authority_file_is_named() {
    let options = TlsOptions {
        ca_file: Some("/nonexistent/ca.pem".into()),
        ..Default::default()
    };
    let error = client_config(&options, false).err().unwrap().to_string();
    assert!(error.contains("/nonexistent/ca.pem"), "{error}");
}
