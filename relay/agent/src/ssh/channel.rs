//! One channel, as the tasks of this side see it: something to read, something to write.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};

use super::proto::mux::{Id, Mux, Refusal, Request};

/// What is read of an app at a time, bytes.
const CHUNK: usize = 32 << 10;
/// The peer hears of used bytes in portions of this.
const PORTION: usize = 32 << 10;
/// What was sent before a channel was closed may take so long to be written.
const DRAIN: Duration = Duration::from_secs(10);

/// A connection's channels, shared by the connection and those who use them.
#[derive(Clone, Default)]
pub(super) struct Link(Arc<Mutex<Mux>>);

impl Link {
    pub(super) fn lock(&self) -> MutexGuard<'_, Mux> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the peer for a channel, and waits for its answer.
    pub(super) async fn open(&self, kind: &str, data: &[u8]) -> Option<Channel> {
        let id = self.lock().open(kind, data)?;
        let channel = Channel::new(self.clone(), id);
        let opened = poll_fn(|cx| channel.link.lock().poll_opened(id, cx)).await;
        opened.then_some(channel)
    }
}

/// A channel; it is closed when this is dropped, behind all that was written.
pub(super) struct Channel {
    link: Link,
    id: Id,
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.link.lock().drop_channel(self.id);
    }
}

impl Channel {
    pub(super) fn new(link: Link, id: Id) -> Self {
        Self { link, id }
    }

    /// The connection that it is of.
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Opens it, as the peer asked for it.
    pub(super) fn accept(&self) {
        self.link.lock().accept(self.id);
    }

    /// Does not open it, though the peer asked for it.
    pub(super) fn refuse(self, reason: Refusal, text: &str) {
        self.link.lock().refuse(self.id, reason, text);
    }

    /// The peer's next request; `None` when the channel is closed. Cancel safe.
    pub(super) async fn request(&self) -> Option<Request> {
        poll_fn(|cx| self.link.lock().poll_request(self.id, cx)).await
    }

    /// Answers a request that wants it.
    pub(super) fn reply(&self, request: &Request, success: bool) {
        if request.want_reply {
            self.link.lock().reply(self.id, success);
        }
    }

    /// Waits until the peer has closed it. Not together with [`Self::request`].
    pub(super) async fn closed(&self) {
        while self.request().await.is_some() {}
    }

    /// Makes a last request, behind all that was written.
    pub(super) fn say_last(&self, kind: &str, data: &[u8]) {
        let mut mux = self.link.lock();
        mux.shutdown(self.id);
        mux.say_last(self.id, kind, data);
    }

    /// What comes from the peer, and what goes to it.
    pub(super) fn split(self: &Arc<Self>) -> (Reader, Writer) {
        let reader = Reader {
            channel: Arc::clone(self),
            bytes: Vec::new(),
            at: 0,
            used: 0,
        };
        (reader, self.writer(false))
    }

    /// What goes to the peer as data, or as standard error.
    pub(super) fn writer(self: &Arc<Self>, stderr: bool) -> Writer {
        Writer {
            channel: Arc::clone(self),
            stderr,
        }
    }

    /// Joins it with an app's connection until both are done. The end of one direction is carried
    /// as that.
    pub(super) async fn join(
        self,
        app_reader: impl AsyncRead + Unpin,
        mut app_writer: impl AsyncWrite + Unpin,
    ) {
        let channel = Arc::new(self);
        let (mut reader, mut writer) = channel.split();
        let to_app = async {
            tokio::io::copy_buf(&mut reader, &mut app_writer).await?;
            app_writer.shutdown().await
        };
        let from_app = async {
            let mut app_reader = BufReader::with_capacity(CHUNK, app_reader);
            tokio::io::copy_buf(&mut app_reader, &mut writer).await?;
            writer.shutdown().await
        };
        // When the peer has closed the channel, what it sent before is still written.
        let closed = async {
            channel.closed().await;
            tokio::time::sleep(DRAIN).await;
        };
        let from_app = async {
            tokio::select! {
                done = from_app => done,
                () = channel.closed() => Ok(()),
            }
        };
        tokio::select! {
            joined = async { tokio::try_join!(to_app, from_app) } => {
                if let Err(error) = joined {
                    tracing::debug!(%error, "a forwarded connection ended");
                }
            }
            () = closed => {}
        }
    }
}

/// The peer's bytes.
pub(super) struct Reader {
    channel: Arc<Channel>,
    bytes: Vec<u8>,
    at: usize,
    /// What the peer has not been told of.
    used: usize,
}

impl Reader {
    fn tell(&mut self) {
        let used = std::mem::take(&mut self.used);
        if used > 0 {
            self.channel.link.lock().credit(self.channel.id, used);
        }
    }
}

impl AsyncBufRead for Reader {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.at == this.bytes.len() {
            this.at = 0;
            let (channel, bytes) = (&this.channel, &mut this.bytes);
            ready!(channel.link.lock().poll_take(channel.id, bytes, cx));
        }
        Poll::Ready(Ok(&this.bytes[this.at..]))
    }

    fn consume(self: Pin<&mut Self>, count: usize) {
        let this = self.get_mut();
        this.at += count;
        this.used += count;
        if this.used >= PORTION || this.at == this.bytes.len() {
            this.tell();
        }
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let bytes = ready!(self.as_mut().poll_fill_buf(cx))?;
        let count = bytes.len().min(into.remaining());
        into.put_slice(&bytes[..count]);
        self.consume(count);
        Poll::Ready(Ok(()))
    }
}

/// Bytes for the peer.
pub(super) struct Writer {
    channel: Arc<Channel>,
    stderr: bool,
}

impl AsyncWrite for Writer {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let (channel, stderr) = (&self.channel, self.stderr);
        let written = channel
            .link
            .lock()
            .poll_write(channel.id, stderr, bytes, cx);
        written.map(|written| written.ok_or_else(|| io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.channel.link.lock().shutdown(self.channel.id);
        Poll::Ready(Ok(()))
    }
}
