//! relay's own TCP as a stack: for where there is no TUN device to reach the kernel's, as in most
//! containers. No privilege, no device, no namespace.
//!
//! ```text
//!   peers' packets ─ UserLoop::handle_packets ─┐             ┌─ UserStack::connect ─ Opened::carry
//!                                              ├ relay-tcp ──┤
//!   to peers ─────── UserLoop::turn ───────────┘     │       └─ Wanted::carry / refuse
//!                                                    └─ flows: local sockets, read and written
//!                                                       by the same loop
//! ```
//!
//! A stream is always carried to and from a socket of this machine, by the loop that moves its
//! packets: what is read from the socket lands where it is sent from, and what came is written from
//! where it was put together. Who needs a stream as a socket gets one end of a pair.
//!
//! | file | job |
//! |---|---|
//! | here | what callers hold: the stack, connections wanted and opened |
//! | `inbox` | what they ask of the loop, and which sockets woke it |
//! | `turn` | the loop's side: one turn of work |
//! | `flow` | one connection and its socket |
//! | `local` | the socket: reads, writes, readiness |
//! | `pair` | two connected sockets on loopback |
//! | `sys` | what only the system tells or does |

mod flow;
mod inbox;
mod local;
mod pair;
mod sys;
mod turn;

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use relay_engine::{Ending, Moved, Side, Summary};
use relay_tcp::RequestId;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

pub(crate) use turn::UserLoop;

use super::accept::PAIR_TIMEOUT;
use super::kernel::lock;
use super::stream::Incoming;
use super::ways::Ways;
use inbox::{Ask, Inbox, Ticket};

/// The headers of a stream's first packet, with as many options as there can be.
const HEADERS: usize = 40 + 60;

/// How relay's own TCP is set up.
#[derive(Debug, Clone)]
pub(crate) struct UserOptions {
    /// This end's addresses in the tunnel.
    pub(crate) addresses: Vec<Ipv6Addr>,
    /// Bytes the tunnel's UDP socket can queue: windows over short ways are kept below it.
    pub(crate) udp_receive_buffer: usize,
    /// Peers are relay's, or Coder's: authentic addresses, and no small segments held back.
    pub(crate) between_relays: bool,
}

/// A handle to relay's own TCP in one loop.
#[derive(Debug, Clone)]
pub(crate) struct UserStack {
    shared: Arc<Shared>,
}

/// What the handles and the loop have in common.
#[derive(Debug)]
struct Shared {
    inbox: Inbox,
    incoming: Mutex<Option<mpsc::Sender<Incoming>>>,
    runtime: Handle,
    pairs: pair::Pairs,
    ways: Ways,
}

/// Makes a stack for the loop of the runtime that runs the caller.
pub(crate) fn open(options: UserOptions) -> (UserLoop, UserStack) {
    let shared = Arc::new(Shared {
        inbox: Inbox::default(),
        incoming: Mutex::default(),
        runtime: Handle::current(),
        pairs: pair::Pairs::default(),
        ways: Ways::default(),
    });
    let stack = UserStack {
        shared: Arc::clone(&shared),
    };
    (UserLoop::new(options, shared), stack)
}

impl UserStack {
    /// Opens a stream from one of this end's addresses whose first bytes are `first`, and says how
    /// many of them it took. They travel with its first packet as far as that holds them.
    pub(crate) async fn connect(
        &self,
        source: Ipv6Addr,
        remote: SocketAddrV6,
        first: &[u8],
    ) -> io::Result<(Opened, usize)> {
        let mut open = Open::new(&self.shared);
        let (done, opened) = oneshot::channel();
        self.shared.inbox.ask(Ask::Connect {
            ticket: Arc::clone(&open.ticket),
            source,
            remote,
            first: first.to_vec(),
            done,
        });
        let taken = opened.await.map_err(|_| closed())??;
        open.is_over = false;
        Ok((Opened { open }, taken))
    }

    /// How many bytes fit the first packet of a stream to this peer.
    pub(crate) fn early_room(&self, peer: Ipv6Addr) -> usize {
        usize::from(self.shared.ways.get(peer))
            .saturating_sub(HEADERS)
            .min(relay_tcp::MOST_EARLY)
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.shared.runtime
    }

    /// Turns accept on demand on: wanted connections go there.
    pub(crate) fn send_incoming_to(&self, sender: mpsc::Sender<Incoming>) {
        *lock(&self.shared.incoming) = Some(sender);
    }
}

/// Waits until a wanted connection came about.
async fn came_about(opened: oneshot::Receiver<io::Result<usize>>) -> io::Result<()> {
    match tokio::time::timeout(PAIR_TIMEOUT, opened).await {
        Ok(outcome) => outcome.map_err(|_| closed())?.map(drop),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the tunnel was closed")
}

/// Ends a connection in the loop when it is dropped before that is over.
#[derive(Debug)]
struct Open {
    shared: Arc<Shared>,
    ticket: Arc<Ticket>,
    is_over: bool,
}

impl Open {
    fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            ticket: Arc::default(),
            is_over: false,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.is_over && self.ticket.give_up() {
            self.shared.inbox.ask(Ask::Close(Arc::clone(&self.ticket)));
        }
    }
}

/// A stream that is open. Dropping it closes it.
#[derive(Debug)]
pub struct Opened {
    open: Open,
}

impl Opened {
    /// Carries it to and from `local`, the first side of the summary, until its end; dropping the
    /// future closes both.
    pub(crate) async fn carry(mut self, local: TcpStream, moved: &Moved) -> Summary {
        let (done, ended) = oneshot::channel();
        self.join(local, moved.clone(), Some(done));
        let end = ended.await.unwrap_or(Ending::Reset(Side::B));
        self.open.is_over = true;
        summary(moved, end)
    }

    /// Resets it.
    pub(crate) fn abort(mut self) {
        let ticket = Arc::clone(&self.open.ticket);
        self.open.shared.inbox.ask(Ask::Reset(ticket));
        self.open.is_over = true;
    }

    /// As one end of a pair, whose other end the loop carries.
    pub(crate) fn into_socket(mut self) -> io::Result<TcpStream> {
        let (near, far) = self.open.shared.pairs.make()?;
        self.join(far, Moved::default(), None);
        self.open.is_over = true;
        Ok(near)
    }

    fn join(&self, local: TcpStream, moved: Moved, done: Option<oneshot::Sender<Ending>>) {
        self.open.shared.inbox.ask(Ask::Join {
            ticket: Arc::clone(&self.open.ticket),
            local,
            moved,
            done,
        });
    }
}

fn summary(moved: &Moved, end: Ending) -> Summary {
    Summary {
        a_to_b: moved.a_to_b(),
        b_to_a: moved.b_to_a(),
        end,
    }
}

/// A connection that a peer wants. Dropping it refuses the connection.
#[derive(Debug)]
pub struct Wanted {
    shared: Arc<Shared>,
    request: Option<RequestId>,
    source: SocketAddrV6,
    destination: SocketAddrV6,
    /// How long the peer may be silent, where that differs from the usual.
    patience: Option<Duration>,
}

impl Wanted {
    pub(crate) fn source(&self) -> SocketAddrV6 {
        self.source
    }

    pub(crate) fn destination(&self) -> SocketAddrV6 {
        self.destination
    }

    pub(crate) fn with_patience(mut self, silence: Duration) -> Self {
        self.patience = Some(silence);
        self
    }

    /// Lets the connection happen, and returns one end of a pair once the handshake is done.
    pub(crate) async fn accept(mut self) -> io::Result<TcpStream> {
        let (near, far) = self.shared.pairs.make()?;
        let mut open = Open::new(&self.shared);
        let opened = self.take(&open, far, Moved::default(), None);
        came_about(opened).await?;
        open.is_over = true;
        Ok(near)
    }

    /// Lets the connection happen and carries it to and from `app` until its end.
    pub(crate) async fn carry(mut self, app: TcpStream, moved: &Moved) -> io::Result<Summary> {
        let mut open = Open::new(&self.shared);
        let (done, ended) = oneshot::channel();
        let opened = self.take(&open, app, moved.clone(), Some(done));
        came_about(opened).await?;
        let end = ended.await.unwrap_or(Ending::Reset(Side::A));
        open.is_over = true;
        Ok(summary(moved, end))
    }

    fn take(
        &mut self,
        open: &Open,
        local: TcpStream,
        moved: Moved,
        done: Option<oneshot::Sender<Ending>>,
    ) -> oneshot::Receiver<io::Result<usize>> {
        let (connected, opened) = oneshot::channel();
        if let Some(request) = self.request.take() {
            self.shared.inbox.ask(Ask::Accept {
                ticket: Arc::clone(&open.ticket),
                request,
                patience: self.patience,
                local,
                moved,
                connected,
                done,
            });
        }
        opened
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            self.shared.inbox.ask(Ask::Refuse(request));
        }
    }
}
