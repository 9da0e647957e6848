//! What the first bytes of a connection tell, which stay unread: the protocol, and whether an app is
//! asked for.

use std::io;

use http::{HeaderName, HeaderValue, Request};
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::apps::pattern::{Handler, route};
use crate::connection::Peer;
use crate::proxy;
use crate::state::State;

/// What HTTP/2 starts with when nothing was agreed on before (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// Bytes that are looked at: heads of requests and of TLS are shorter as a rule.
const LOOK: usize = 8 << 10;
/// Headers of a request that is looked at.
const HEADERS: usize = 100;

/// The first bytes of a connection.
pub(crate) struct First(Vec<u8>);

impl First {
    /// Waits for the first bytes, and leaves them where they are.
    pub(crate) async fn look(stream: &TcpStream) -> io::Result<Self> {
        let mut seen = vec![0; LOOK];
        loop {
            let ready = stream.ready(Interest::READABLE).await?;
            let looked = stream.try_io(Interest::READABLE, || {
                let (_, length) = rustix::net::recv(stream, &mut seen[..], RecvFlags::PEEK)?;
                if may_become_preface(&seen[..length]) && !ready.is_read_closed() {
                    // Not ready until more comes.
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(length)
            });
            match looked {
                Ok(length) => {
                    seen.truncate(length);
                    return Ok(Self(seen));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether HTTP/2 is spoken without TLS.
    pub(crate) fn is_http2(&self) -> bool {
        self.0.starts_with(PREFACE)
    }

    /// Whether the first request is for an app. What cannot be told yet is taken for something
    /// else, which is served as well, only slower.
    pub(crate) fn is_for_app(&self, state: &State, peer: Peer) -> bool {
        if peer.tls {
            let host = self.server_name().unwrap_or_default();
            let handler = route(&host, &state.access_url, state.apps.pattern.as_ref());
            return matches!(handler, Handler::App(_));
        }
        let Some(mut request) = self.request() else {
            return false;
        };
        proxy::is_for_app(state, peer, &mut request)
    }

    /// The host that a client of TLS asks for (RFC 6066 §3).
    fn server_name(&self) -> Option<String> {
        let mut acceptor = rustls::server::Acceptor::default();
        acceptor.read_tls(&mut &self.0[..]).ok()?;
        let accepted = acceptor.accept().ok()??;
        accepted.client_hello().server_name().map(str::to_owned)
    }

    /// The first request, when its head is here.
    fn request(&self) -> Option<Request<()>> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        if !parsed.parse(&self.0).ok()?.is_complete() {
            return None;
        }
        let mut request = Request::new(());
        *request.uri_mut() = parsed.path?.parse().ok()?;
        for header in parsed.headers {
            let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
            let value = HeaderValue::from_bytes(header.value).ok()?;
            request.headers_mut().append(name, value);
        }
        Some(request)
    }
}

/// Whether more bytes are needed to tell what this is.
fn may_become_preface(start: &[u8]) -> bool {
    !start.is_empty() && start.len() < PREFACE.len() && PREFACE.starts_with(start)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_first_bytes_are_seen_and_stay() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        for (parts, http2) in [
            (&[&b"PRI * HT"[..], b"TP/2.0\r\n\r\nSM\r\n\r\n"][..], true),
            (&[b"PRINT / HTTP/1.1\r\n\r\n"], false),
            (&[b"GET / HTTP/1.1\r\n\r\n"], false),
            (&[b"PRI", b" * H"], false),
        ] {
            let mut peer = TcpStream::connect(address).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let looking = tokio::spawn(async move {
                let first = First::look(&stream).await.unwrap();
                let mut again = [0; 1];
                assert_eq!(stream.peek(&mut again).await.unwrap(), 1);
                first
            });
            for part in parts {
                peer.write_all(part).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if parts.concat() == b"PRI * H" {
                assert!(!looking.is_finished(), "the rest may come");
            }
            peer.shutdown().await.unwrap();
            assert_eq!(looking.await.unwrap().is_http2(), http2);
        }
    }

    #[test]
    fn a_request_is_read_when_its_head_is_here() {
        let first = |text: &str| First(text.as_bytes().to_vec());
        let request = first("GET /a?b HTTP/1.1\r\nHost: x.test\r\nA: b\r\n\r\nbody").request();
        let request = request.unwrap();
        assert_eq!(request.uri(), "/a?b");
        assert_eq!(request.headers()["host"], "x.test");
        for text in [
            "",
            "GET / HTTP/1.1\r\nHost: x.test\r\n",
            "\x16\x03\x01",
            "nonsense\r\n\r\n",
        ] {
            assert!(first(text).request().is_none(), "{text:?}");
            assert!(first(text).server_name().is_none(), "{text:?}");
        }
    }
}
