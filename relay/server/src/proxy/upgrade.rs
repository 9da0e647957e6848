//! Connections that become something else than HTTP: WebSockets and others.

use std::sync::Arc;

use axum::body::Body;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{Response, Version};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use relay_engine::{Engine, pump_counted};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::forward::Visit;
use super::pool::Answered;
use super::{own, right};
use crate::api::websocket::has_token;
use crate::traffic::{Meter, Stream};
use crate::usage;

/// Buffer of a direction whose bytes have to be encrypted or decrypted.
const BUFFER: usize = 8 << 10;

/// A request that wants its connection for something else.
pub(super) struct Upgrade {
    /// What it is to become.
    pub(super) protocol: HeaderValue,
    browser: OnUpgrade,
}

/// Takes the wish for an upgrade from a request.
pub(super) fn wanted(parts: &mut Parts) -> Option<Upgrade> {
    let browser = parts.extensions.remove::<OnUpgrade>()?;
    let asks =
        parts.version == Version::HTTP_11 && has_token(&parts.headers, &CONNECTION, "upgrade");
    let protocol = parts.headers.get(UPGRADE).filter(|_| asks)?;
    // HTTP/2 is spoken from the first byte or not at all (RFC 9113 §3.1).
    (!protocol.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| Upgrade {
        protocol: protocol.clone(),
        browser,
    })
}

impl Upgrade {
    /// Joins the two connections once both are given up by HTTP; gives the answer to the browser.
    pub(super) fn join(
        self,
        visit: &Visit<'_>,
        answer: &mut Response<Answered>,
        session: usage::Visit,
    ) -> Response<Body> {
        let app = hyper::upgrade::on(&mut *answer);
        let protocol = answer.headers().get(UPGRADE).cloned();
        let state = Arc::clone(visit.state);
        let (asked, grant) = (visit.asked.clone(), visit.right.grant.clone());
        let epoch = visit.right.epoch;
        let (session, meter) = (session.into_connection(), Arc::clone(&visit.right.meter));
        tokio::spawn(async move {
            let (_session, stream) = (session, meter.stream());
            let (browser, app) = match tokio::try_join!(self.browser, app) {
                Ok(both) => both,
                Err(error) => return tracing::debug!(%error, "an upgrade did not come about"),
            };
            tokio::select! {
                () = carry(browser, app, &meter, &stream) => {}
                () = state.stopped() => {}
                () = right::withdrawn(&state, &asked, &grant, epoch) => {
                    tracing::debug!("an upgraded connection lost its right");
                }
            }
        });
        let mut headers = std::mem::take(answer.headers_mut());
        own::strip_hop_by_hop(&mut headers);
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, protocol.unwrap_or(self.protocol));
        let mut to_browser = Response::new(Body::empty());
        *to_browser.status_mut() = answer.status();
        *to_browser.headers_mut() = headers;
        // The case in which the app wrote the names.
        *to_browser.extensions_mut() = std::mem::take(answer.extensions_mut());
        to_browser
    }
}

/// Moves bytes both ways until both directions are done.
async fn carry(browser: Upgraded, app: Upgraded, meter: &Arc<Meter>, counted: &Stream) {
    match (raw(browser), raw(app)) {
        (Ok((mut browser, from_browser)), Ok((mut app, from_app))) => {
            // What came behind the heads.
            meter.add((from_browser.len() + from_app.len()) as u64);
            let early = async {
                browser.write_all(&from_app).await?;
                app.write_all(&from_browser).await
            };
            if early.await.is_ok() {
                drop((from_browser, from_app));
                // Idle sockets cost no buffers here.
                Box::pin(pump_counted(browser, app, Engine::Auto, &counted.moved)).await;
            }
        }
        (browser, app) => {
            let (mut browser, mut app) = (stream(browser, meter), stream(app, meter));
            let copied =
                tokio::io::copy_bidirectional_with_sizes(&mut browser, &mut app, BUFFER, BUFFER);
            if let Err(error) = Box::pin(copied).await {
                tracing::debug!(%error, "an upgraded connection broke");
            }
        }
    }
}

type Raw = Result<(TcpStream, bytes::Bytes), Upgraded>;

/// The socket below, when there is nothing between.
fn raw(upgraded: Upgraded) -> Raw {
    let parts = upgraded.downcast::<TokioIo<TcpStream>>()?;
    Ok((parts.io.into_inner(), parts.read_buf))
}

/// A stream, whatever it is, whose bytes are counted where they are read.
struct Metered {
    stream: Either,
    meter: Arc<Meter>,
}

enum Either {
    Raw(std::io::Cursor<bytes::Bytes>, TcpStream),
    Wrapped(Box<TokioIo<Upgraded>>),
}

fn stream(end: Raw, meter: &Arc<Meter>) -> Metered {
    Metered {
        stream: match end {
            Ok((stream, early)) => Either::Raw(std::io::Cursor::new(early), stream),
            Err(upgraded) => Either::Wrapped(Box::new(TokioIo::new(upgraded))),
        },
        meter: Arc::clone(meter),
    }
}

mod metered {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::{Either, Metered};

    impl AsyncRead for Metered {
        fn poll_read(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let this = self.get_mut();
            let before = buffer.filled().len();
            let polled = this.stream.poll_read(context, buffer);
            let read = buffer.filled().len() - before;
            if read > 0 {
                this.meter.add(read as u64);
            }
            polled
        }
    }

    impl Either {
        fn poll_read(
            &mut self,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            match self {
                Self::Raw(early, stream) => {
                    let at = early.position() as usize;
                    let rest = &early.get_ref()[at..];
                    if rest.is_empty() {
                        return Pin::new(stream).poll_read(context, buffer);
                    }
                    let length = rest.len().min(buffer.remaining());
                    buffer.put_slice(&rest[..length]);
                    early.set_position((at + length) as u64);
                    Poll::Ready(Ok(()))
                }
                Self::Wrapped(io) => Pin::new(io).poll_read(context, buffer),
            }
        }
    }

    impl AsyncWrite for Metered {
        fn poll_write(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            match &mut self.get_mut().stream {
                Either::Raw(_, stream) => Pin::new(stream).poll_write(context, bytes),
                Either::Wrapped(io) => Pin::new(io).poll_write(context, bytes),
            }
        }

        fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            match &mut self.get_mut().stream {
                Either::Raw(_, stream) => Pin::new(stream).poll_flush(context),
                Either::Wrapped(io) => Pin::new(io).poll_flush(context),
            }
        }

        fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            match &mut self.get_mut().stream {
                Either::Raw(_, stream) => Pin::new(stream).poll_shutdown(context),
                Either::Wrapped(io) => Pin::new(io).poll_shutdown(context),
            }
        }
    }
}
