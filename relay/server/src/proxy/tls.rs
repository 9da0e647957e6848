//! TLS towards apps: the certificate is not checked, since the far end of the tunnel is trusted and
//! an app's own certificate is rarely more than self-made.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Which version of HTTP the connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Whichever the app likes best.
    Any,
    /// HTTP/1.1, as upgrades need it.
    One,
    /// HTTP/2, as gRPC needs it.
    Two,
}

static ANY: LazyLock<Option<TlsConnector>> = LazyLock::new(|| connector(&[b"h2", b"http/1.1"]));
static ONE: LazyLock<Option<TlsConnector>> = LazyLock::new(|| connector(&[b"http/1.1"]));
static TWO: LazyLock<Option<TlsConnector>> = LazyLock::new(|| connector(&[b"h2"]));

fn connector(protocols: &[&[u8]]) -> Option<TlsConnector> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let schemes = provider
        .signature_verification_algorithms
        .supported_schemes();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything(schemes)))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Some(TlsConnector::from(Arc::new(config)))
}

/// Speaks TLS with an app.
pub(super) async fn open(stream: TcpStream, want: Want) -> io::Result<TlsStream<TcpStream>> {
    let connector = match want {
        Want::Any => &*ANY,
        Want::One => &*ONE,
        Want::Two => &*TWO,
    };
    let connector = connector
        .as_ref()
        .ok_or_else(|| io::Error::other("there is no TLS"))?;
    // An address, so that no name is sent: the app may know itself by any.
    let name = ServerName::from(IpAddr::from(Ipv4Addr::LOCALHOST));
    tokio::time::timeout(HANDSHAKE, connector.connect(name, stream))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Whether a handshake failed because the other side speaks no TLS.
pub(super) fn met_plain_text(error: &io::Error) -> bool {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidMessage(_)))
}

/// Takes any certificate.
#[derive(Debug)]
struct Anything(Vec<SignatureScheme>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
