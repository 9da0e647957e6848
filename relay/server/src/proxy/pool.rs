//! Connections to apps, kept for the next request.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1, http2};
use tokio::runtime;
use uuid::Uuid;

use crate::state::Shared;
use crate::traffic::Meter;
use crate::usage::Visit;

/// Idle connections to one app.
const IDLE: usize = 128;
/// Idle connections to all apps.
const ALL_IDLE: usize = 4096;
/// How long a connection may be idle.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a connection leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) agent: Uuid,
    pub(super) port: u16,
    pub(super) tls: bool,
    /// The runtime that watches the connection: one that another watches is woken by a detour.
    pub(super) runtime: runtime::Id,
}

/// The body of a request to an app.
pub(super) enum Outgoing {
    /// None.
    Empty,
    /// The browser's, as it comes.
    Stream(Incoming, Arc<Meter>),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Stream(body, meter) => {
                let polled = Pin::new(body).poll_frame(context);
                count(&polled, meter);
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream(body, _) => body.size_hint(),
        }
    }
}

/// Counts the bytes of a frame.
fn count(polled: &Poll<Option<Result<Frame<Bytes>, hyper::Error>>>, meter: &Meter) {
    if let Poll::Ready(Some(Ok(frame))) = polled
        && let Some(data) = frame.data_ref()
    {
        meter.add(data.len() as u64);
    }
}

/// The sending end of a connection.
pub(super) enum Sender {
    One(http1::SendRequest<Outgoing>),
    Two(http2::SendRequest<Outgoing>),
}

#[derive(Default)]
struct Idle {
    ones: Vec<(http1::SendRequest<Outgoing>, Instant)>,
    two: Option<(http2::SendRequest<Outgoing>, Instant)>,
}

/// The idle connections.
#[derive(Default)]
pub(super) struct Pool(Mutex<Idles>);

#[derive(Default)]
struct Idles {
    by_key: HashMap<Key, Idle>,
    ones: usize,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Idles> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that can take a request now.
    pub(super) fn take(&self, key: Key, may_be_two: bool, must_be_two: bool) -> Option<Sender> {
        let mut idles = self.lock();
        let idles = &mut *idles;
        let idle = idles.by_key.get_mut(&key)?;
        if may_be_two && let Some((two, used)) = &mut idle.two {
            if two.is_closed() {
                idle.two = None;
            } else {
                *used = Instant::now();
                return Some(Sender::Two(two.clone()));
            }
        }
        if must_be_two {
            return None;
        }
        // The newest first, so that the others can grow old.
        let mut at = idle.ones.len();
        while at > 0 {
            at -= 1;
            let one = &idle.ones[at].0;
            if one.is_closed() {
                idle.ones.remove(at);
                idles.ones -= 1;
            } else if one.is_ready() {
                idles.ones -= 1;
                return Some(Sender::One(idle.ones.remove(at).0));
            }
        }
        None
    }

    /// Keeps a connection of HTTP/2, which takes many requests at once.
    pub(super) fn share(&self, key: Key, sender: &http2::SendRequest<Outgoing>) {
        let mut idles = self.lock();
        let idle = idles.by_key.entry(key).or_default();
        idle.two = Some((sender.clone(), Instant::now()));
    }

    fn put(&self, key: Key, sender: http1::SendRequest<Outgoing>) {
        if sender.is_closed() {
            return;
        }
        let mut idles = self.lock();
        let idles = &mut *idles;
        let idle = idles.by_key.entry(key).or_default();
        if idle.ones.len() < IDLE && idles.ones < ALL_IDLE {
            idle.ones.push((sender, Instant::now()));
            idles.ones += 1;
        }
    }

    /// Closes what was idle for too long.
    pub(super) fn tidy(&self) {
        let now = Instant::now();
        let fresh = |since: Instant| now.duration_since(since) < PATIENCE;
        let mut idles = self.lock();
        let mut ones = 0;
        idles.by_key.retain(|_, idle| {
            idle.ones
                .retain(|(sender, since)| !sender.is_closed() && fresh(*since));
            idle.two
                .take_if(|(sender, since)| sender.is_closed() || !fresh(*since));
            ones += idle.ones.len();
            !idle.ones.is_empty() || idle.two.is_some()
        });
        idles.ones = ones;
    }
}

/// A connection in use; it goes back to the pool when its answer has been read.
pub(super) struct Lease {
    pub(super) state: Shared,
    pub(super) key: Key,
    pub(super) sender: http1::SendRequest<Outgoing>,
}

impl Lease {
    pub(super) fn give_back(self) {
        self.state.proxy.pool.put(self.key, self.sender);
    }
}

/// The body of an app's answer, with the connection that it comes by.
pub(super) struct Answered {
    pub(super) body: Incoming,
    pub(super) lease: Option<Lease>,
    pub(super) meter: Arc<Meter>,
    /// The request's session, which ends with the answer.
    pub(super) visit: Option<Visit>,
}

impl Body for Answered {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(context);
        count(&polled, &this.meter);
        let done = match &polled {
            Poll::Pending => false,
            Poll::Ready(None) => true,
            Poll::Ready(Some(Ok(_))) => this.body.is_end_stream(),
            Poll::Ready(Some(Err(_))) => {
                this.lease = None;
                false
            }
        };
        if done && let Some(lease) = this.lease.take() {
            lease.give_back();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl std::fmt::Debug for Answered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answered").finish_non_exhaustive()
    }
}

/// Shares the state with what outlives a request.
pub(super) fn lease(state: &Shared, key: Key, sender: http1::SendRequest<Outgoing>) -> Lease {
    Lease {
        state: Arc::clone(state),
        key,
        sender,
    }
}
