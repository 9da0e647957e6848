//! Opens a byte stream to a URL's host: name resolution, TCP, TLS where the scheme asks for it, and HTTP/1.1 upgrades.
//! What is said on the stream afterwards (WebSocket, DERP) lives with its speakers.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use url::{Host, Url};

/// How long [`connect`] tries before it gives up.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Head start of one address before the next one is tried beside it.
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// Longest response head an upgrade accepts.
const MAX_HEAD: usize = 16 * 1024;

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The URL names no host that can be dialled.
    #[error("{url} cannot be dialled: use http:// or https:// with a host name")]
    Url {
        /// The URL as given.
        url: String,
    },
    /// The name has no address.
    #[error("cannot resolve {host}: {source}; check the name and this machine's DNS")]
    Resolve {
        /// The host name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// No address of the host took the connection.
    #[error("cannot connect to {host}:{port}: {source}; check that the server is up and reachable")]
    Connect {
        /// The host name.
        host: String,
        /// The port.
        port: u16,
        /// The last failure.
        source: io::Error,
    },
    /// Nothing answered in time.
    #[error("no answer from {host}:{port} within {} ms; check that the server is up and reachable", limit.as_millis())]
    Late {
        /// The host name.
        host: String,
        /// The port.
        port: u16,
        /// How long was waited.
        limit: Duration,
    },
    /// The TLS handshake failed.
    #[error(
        "TLS with {host} failed: {source}; for a private authority name its file by CODER_CLIENT_TLS_CA_FILE"
    )]
    Tls {
        /// The host name.
        host: String,
        /// What rustls said.
        source: io::Error,
    },
    /// A certificate or key file is not usable.
    #[error("cannot use {}: {reason}; it has to hold PEM", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The server did not switch protocols.
    #[error("the server answered {status} instead of switching to {protocol}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The protocol that was asked for.
        protocol: String,
    },
    /// The answer was not HTTP/1.1.
    #[error("the server's answer is not HTTP/1.1: {0}; check the URL's port and scheme")]
    NotHttp(&'static str),
    /// The stream broke during the upgrade.
    #[error(
        "the connection broke while it was upgraded: {0}; the server may have stopped, try again"
    )]
    Io(#[from] io::Error),
}

/// A byte stream, encrypted or not.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What [`connect`] returns.
pub type BoxedStream = Box<dyn Stream>;

/// TLS settings of this process's connections to its deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsOptions {
    /// PEM file of authorities trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the certificate shown to the server; needs `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the key of `cert_file`.
    pub key_file: Option<PathBuf>,
}

/// Where to connect and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Name the certificate must carry, when it is not `host`.
    pub certificate_name: Option<String>,
    /// Addresses to use instead of asking the resolver.
    pub addresses: Vec<IpAddr>,
    /// Accept any certificate: only for regions that are marked as being for tests.
    pub insecure: bool,
}

impl Target {
    /// The target of an http, https, ws or wss URL.
    pub fn from_url(url: &Url) -> Result<Target, DialError> {
        let bad = || DialError::Url {
            url: url.to_string(),
        };
        let tls = match url.scheme() {
            "https" | "wss" => true,
            "http" | "ws" => false,
            _ => return Err(bad()),
        };
        let host = match url.host().ok_or_else(bad)? {
            Host::Domain(name) => name.to_owned(),
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        };
        Ok(Target {
            host,
            port: url.port_or_known_default().ok_or_else(bad)?,
            tls,
            certificate_name: None,
            addresses: Vec::new(),
            insecure: false,
        })
    }

    /// The value of the `Host` header for this target.
    pub fn host_header(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        match (self.port, self.tls) {
            (80, false) | (443, true) => host,
            (port, _) => format!("{host}:{port}"),
        }
    }
}

/// Connects to the host of `url` within [`CONNECT_LIMIT`].
pub async fn connect(url: &Url, tls: &TlsOptions) -> Result<BoxedStream, DialError> {
    connect_to(&Target::from_url(url)?, tls, CONNECT_LIMIT).await
}

/// Connects to `target`, TLS handshake included, within `limit`.
pub async fn connect_to(
    target: &Target,
    tls: &TlsOptions,
    limit: Duration,
) -> Result<BoxedStream, DialError> {
    timeout(limit, connect_unlimited(target, tls))
        .await
        .map_err(|_| DialError::Late {
            host: target.host.clone(),
            port: target.port,
            limit,
        })?
}

async fn connect_unlimited(target: &Target, tls: &TlsOptions) -> Result<BoxedStream, DialError> {
    let addresses = resolve(target).await?;
    let stream = connect_first(&addresses)
        .await
        .map_err(|source| DialError::Connect {
            host: target.host.clone(),
            port: target.port,
            source,
        })?;
    stream.set_nodelay(true)?;
    if !target.tls {
        return Ok(Box::new(stream));
    }
    let config = client_config(tls, target.insecure)?;
    let name = target.certificate_name.as_deref().unwrap_or(&target.host);
    let name = ServerName::try_from(name.to_owned()).map_err(|_| DialError::Url {
        url: format!("https://{}", target.host_header()),
    })?;
    let stream = TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|source| DialError::Tls {
            host: target.host.clone(),
            source,
        })?;
    Ok(Box::new(stream))
}

/// The addresses to try, in order: the families take turns, the resolver's first family begins.
async fn resolve(target: &Target) -> Result<Vec<SocketAddr>, DialError> {
    let port = target.port;
    let fixed: Vec<SocketAddr> = target
        .addresses
        .iter()
        .map(|address| SocketAddr::new(*address, port))
        .collect();
    if !fixed.is_empty() {
        return Ok(interleave(fixed));
    }
    if let Ok(address) = target.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if is_loopback_name(&target.host) {
        return Ok(vec![
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
            SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port),
        ]);
    }
    let failed = |source| DialError::Resolve {
        host: target.host.clone(),
        source,
    };
    let found: Vec<SocketAddr> = tokio::net::lookup_host((target.host.as_str(), port))
        .await
        .map_err(failed)?
        .collect();
    if found.is_empty() {
        return Err(failed(io::Error::new(
            io::ErrorKind::NotFound,
            "it has no address",
        )));
    }
    Ok(interleave(found))
}

/// `localhost` and names below it are this machine, whatever a resolver says.
fn is_loopback_name(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let v6_first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == v6_first);
    let mut second = second.into_iter();
    let mut ordered = Vec::new();
    for address in first {
        ordered.push(address);
        ordered.extend(second.next());
    }
    ordered.extend(second);
    ordered
}

/// Connects to whichever address answers first; each has a head start over the next, a refusal ends it early.
async fn connect_first(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut waiting = addresses.iter();
    let mut tries = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    loop {
        if let Some(address) = waiting.next() {
            tries.push(TcpStream::connect(*address));
        }
        let more = waiting.len() > 0;
        tokio::select! {
            result = tries.next() => match result {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => last = error,
                None if !more => return Err(last),
                None => {}
            },
            () = sleep(NEXT_ADDRESS), if more => {}
        }
    }
}

/// The rustls configuration for `options`, made once per process and kept.
pub fn client_config(options: &TlsOptions, insecure: bool) -> Result<Arc<ClientConfig>, DialError> {
    type Known = Mutex<Option<HashMap<(TlsOptions, bool), Arc<ClientConfig>>>>;
    static KNOWN: Known = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_with(HashMap::new);
    let key = (options.clone(), insecure);
    if let Some(config) = known.get(&key) {
        return Ok(Arc::clone(config));
    }
    let config = Arc::new(build_config(options, insecure)?);
    known.insert(key, Arc::clone(&config));
    Ok(config)
}

fn build_config(options: &TlsOptions, insecure: bool) -> Result<ClientConfig, DialError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| io::Error::other(error.to_string()))?;
    let builder = if insecure {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        builder.with_root_certificates(roots(options)?)
    };
    let mut config = match (&options.cert_file, &options.key_file) {
        (Some(cert), Some(key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|e| bad_file(key, e))?;
            let chain = certificates(cert)?;
            builder
                .with_client_auth_cert(chain, private)
                .map_err(|e| bad_file(cert, e))?
        }
        (Some(cert), None) => return Err(bad_file(cert, "its key file is not given")),
        (None, Some(key)) => return Err(bad_file(key, "its certificate file is not given")),
        (None, None) => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn roots(options: &TlsOptions) -> Result<rustls::RootCertStore, DialError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = &options.ca_file {
        for certificate in certificates(path)? {
            roots
                .add(certificate)
                .map_err(|error| bad_file(path, error))?;
        }
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, DialError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|error| bad_file(path, error))?
        .collect();
    let found = found.map_err(|error| bad_file(path, error))?;
    if found.is_empty() {
        return Err(bad_file(path, "it holds no certificate"));
    }
    Ok(found)
}

fn bad_file(path: &Path, reason: impl ToString) -> DialError {
    DialError::File {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// Checks signatures but not who signed: for regions marked as being for tests.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A stream whose server switched protocols.
pub struct Upgraded {
    /// The stream, now speaking the new protocol.
    pub stream: BoxedStream,
    /// Bytes of the new protocol that arrived together with the answer; they come before what `stream` yields.
    pub rest: Bytes,
    /// The headers of the answer, names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Upgraded {
    /// The value of the first header called `name` (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Asks by `GET path` to switch `stream` to `protocol`; any answer but 101 is [`DialError::Refused`].
pub async fn upgrade(
    mut stream: BoxedStream,
    host: &str,
    path: &str,
    protocol: &str,
    headers: &[(String, String)],
) -> Result<Upgraded, DialError> {
    let mut request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n"
    );
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;

    let mut input = BytesMut::with_capacity(4096);
    let end = loop {
        if let Some(at) = input.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if input.len() > MAX_HEAD {
            return Err(DialError::NotHttp("the head is too long"));
        }
        if stream.read_buf(&mut input).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    };
    let head = input.split_to(end);
    let (status, headers) = parse_head(&head)?;
    if status != 101 {
        return Err(DialError::Refused {
            status,
            protocol: protocol.to_owned(),
        });
    }
    Ok(Upgraded {
        stream,
        rest: input.freeze(),
        headers,
    })
}

fn parse_head(head: &[u8]) -> Result<(u16, Vec<(String, String)>), DialError> {
    let text = std::str::from_utf8(head).map_err(|_| DialError::NotHttp("the head is not text"))?;
    let mut lines = text.split("\r\n");
    let mut status = lines.next().unwrap_or_default().split(' ');
    if !status.next().unwrap_or_default().starts_with("HTTP/1.") {
        return Err(DialError::NotHttp("the first line is no status line"));
    }
    let status = status
        .next()
        .and_then(|code| code.parse().ok())
        .ok_or(DialError::NotHttp("the first line has no status"))?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok((status, headers))
}

#[cfg(test)]
#[path = "dial_tests.rs"]
mod tests;
