//! What wakes the loop: questions of the handles, and local sockets that became ready.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use relay_engine::{Ending, Moved};
use relay_tcp::{ConnectionId, RequestId};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::super::kernel::lock;
use super::Shared;

/// One question to the loop.
#[derive(Debug)]
pub(super) enum Ask {
    Connect {
        ticket: Arc<Ticket>,
        source: Ipv6Addr,
        remote: SocketAddrV6,
        /// Its first bytes.
        first: Vec<u8>,
        done: oneshot::Sender<io::Result<usize>>,
    },
    Join {
        ticket: Arc<Ticket>,
        local: TcpStream,
        moved: Moved,
        done: Option<oneshot::Sender<Ending>>,
    },
    Accept {
        ticket: Arc<Ticket>,
        request: RequestId,
        patience: Option<Duration>,
        local: TcpStream,
        moved: Moved,
        connected: oneshot::Sender<io::Result<usize>>,
        done: Option<oneshot::Sender<Ending>>,
    },
    Refuse(RequestId),
    Close(Arc<Ticket>),
    Reset(Arc<Ticket>),
}

/// By what handle and loop name a connection, which the loop makes later than the handle.
#[derive(Debug, Default)]
pub(super) struct Ticket(Mutex<Progress>);

#[derive(Debug, Default, Clone, Copy)]
enum Progress {
    #[default]
    Waiting,
    Made(ConnectionId),
    GivenUp,
}

impl Ticket {
    /// The loop made the connection. False when nobody waits for it any more.
    pub(super) fn made(&self, id: ConnectionId) -> bool {
        let mut progress = lock(&self.0);
        match *progress {
            Progress::GivenUp => false,
            _ => {
                *progress = Progress::Made(id);
                true
            }
        }
    }

    /// Nobody waits any more. Whether there is a connection that has to be closed.
    pub(super) fn give_up(&self) -> bool {
        let mut progress = lock(&self.0);
        match *progress {
            Progress::Made(_) => true,
            _ => {
                *progress = Progress::GivenUp;
                false
            }
        }
    }

    /// Whether nobody waits any more.
    pub(super) fn is_given_up(&self) -> bool {
        matches!(*lock(&self.0), Progress::GivenUp)
    }

    pub(super) fn id(&self) -> Option<ConnectionId> {
        match *lock(&self.0) {
            Progress::Made(id) => Some(id),
            _ => None,
        }
    }
}

/// Where they arrive.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    post: Mutex<Post>,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct Post {
    asks: Vec<Ask>,
    ready: Vec<ConnectionId>,
    /// The loop has ended.
    closed: bool,
}

impl Inbox {
    /// Asks the loop; one that has ended drops the question, which is an answer.
    pub(super) fn ask(&self, ask: Ask) {
        let mut post = lock(&self.post);
        if post.closed {
            drop(post);
            drop(ask);
            return;
        }
        post.asks.push(ask);
        drop(post);
        self.waker.wake();
    }

    /// Takes everything; what the arguments held goes back as memory for the next.
    pub(super) fn take(&self, asks: &mut Vec<Ask>, ready: &mut Vec<ConnectionId>) {
        debug_assert!(asks.is_empty() && ready.is_empty());
        let mut post = lock(&self.post);
        std::mem::swap(&mut post.asks, asks);
        std::mem::swap(&mut post.ready, ready);
    }

    /// Whether there is something.
    pub(super) fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        self.waker.register(context.waker());
        let post = lock(&self.post);
        match post.asks.is_empty() && post.ready.is_empty() {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    }

    /// The loop ends.
    pub(super) fn close(&self) {
        let mut post = lock(&self.post);
        post.closed = true;
        let rest = std::mem::take(&mut *post);
        post.closed = true;
        drop(post);
        // Without the lock: what is dropped may ask.
        drop(rest);
    }
}

/// The waker of one flow's socket.
#[derive(Debug)]
pub(super) struct SocketWaker {
    shared: Arc<Shared>,
    id: ConnectionId,
    listed: AtomicBool,
}

impl SocketWaker {
    pub(super) fn new(shared: &Arc<Shared>, id: ConnectionId) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            id,
            listed: AtomicBool::new(false),
        })
    }

    /// The flow is looked at now: what happens from here on is listed again.
    pub(super) fn looked(&self) {
        self.listed.store(false, Ordering::Release);
    }
}

impl Wake for SocketWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.listed.swap(true, Ordering::AcqRel) {
            return;
        }
        let inbox = &self.shared.inbox;
        lock(&inbox.post).ready.push(self.id);
        inbox.waker.wake();
    }
}
