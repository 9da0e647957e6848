//! What is forwarded now, and how much went through it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use relay_engine::Moved;
use relay_wire::forwards::{AnyForward, Here};
use relay_wire::remote_forward::{REMOTE_BIND, RemoteForward};
use relay_wire::spec::{Forward, Proto};
use tokio::sync::watch;

use crate::event::{Connection, Event, Phase, Reporter};
use crate::plan::Range;

/// What kind of forward it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From a TCP port of this machine.
    Tcp,
    /// From a UDP port of this machine.
    Udp,
    /// From or to a Unix socket.
    Unix,
    /// From the workspace to this machine.
    Reverse,
}

impl Kind {
    /// `tcp`, `udp`, `unix` or `reverse`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Unix => "unix",
            Self::Reverse => "reverse",
        }
    }
}

impl From<Proto> for Kind {
    fn from(proto: Proto) -> Self {
        match proto {
            Proto::Tcp => Self::Tcp,
            Proto::Udp => Self::Udp,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.as_str())
    }
}

/// A forward, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The text that names it, as [`AnyForward::parse`] reads it.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// This machine's side.
    pub here: String,
    /// The workspace's side.
    pub there: String,
}

impl From<&AnyForward> for Row {
    fn from(forward: &AnyForward) -> Self {
        let name = forward.to_string();
        let (kind, here, there) = match forward {
            AnyForward::Port(Forward {
                proto,
                bind,
                local,
                remote,
            }) => (
                Kind::from(*proto),
                Here::Port(*bind, *local).to_string(),
                remote.to_string(),
            ),
            AnyForward::Unix(unix) => (Kind::Unix, unix.here.to_string(), unix.there.to_string()),
            AnyForward::Reverse(RemoteForward::Tcp { remote, host, port }) => (
                Kind::Reverse,
                format!("{host}:{port}"),
                format!("{REMOTE_BIND}:{remote}"),
            ),
            AnyForward::Reverse(RemoteForward::Unix { remote, local }) => {
                (Kind::Reverse, local.display().to_string(), remote.clone())
            }
        };
        Self {
            name,
            kind,
            here,
            there,
        }
    }
}

impl From<&Range> for Row {
    fn from(range: &Range) -> Self {
        let list = |side: fn(&crate::plan::Span) -> String| {
            range.spans.iter().map(side).collect::<Vec<_>>().join(",")
        };
        Self {
            name: range.to_string(),
            kind: range.proto.into(),
            here: format!("{}:{}", range.address, list(crate::plan::Span::locals)),
            there: list(crate::plan::Span::remotes),
        }
    }
}

/// What went through a forward so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// The forward.
    pub row: Row,
    /// Connections that are open; none for UDP.
    pub open: u64,
    /// Connections so far; none for UDP.
    pub connections: u64,
    /// Bytes to the workspace.
    pub sent: u64,
    /// Bytes from the workspace.
    pub received: u64,
}

/// What a row stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Any(AnyForward),
    Range(Range),
}

impl Key {
    fn row(&self) -> Row {
        match self {
            Self::Any(forward) => forward.into(),
            Self::Range(range) => range.into(),
        }
    }
}

/// All that is forwarded. Clones are the same board.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    entries: Mutex<BTreeMap<u64, Arc<Entry>>>,
    next_entry: AtomicU64,
    next_connection: AtomicU64,
}

/// One forward while it is open.
#[derive(Debug)]
pub(crate) struct Entry {
    id: u64,
    pub(crate) key: Key,
    pub(crate) row: Arc<Row>,
    board: Board,
    stop: watch::Sender<bool>,
    counts: Mutex<Counts>,
    /// Of datagrams.
    sent: AtomicU64,
    received: AtomicU64,
}

#[derive(Debug, Default)]
struct Counts {
    open: HashMap<u64, Moved>,
    connections: u64,
    /// Of connections that ended.
    sent: u64,
    received: u64,
}

impl Board {
    /// What is forwarded now and how much went through, `most` at most, in the order in which it was
    /// asked for; and how many there are.
    pub fn traffic(&self, most: usize) -> (Vec<Traffic>, usize) {
        let entries = self.entries();
        let shown = entries.values().take(most);
        (shown.map(|entry| entry.traffic()).collect(), entries.len())
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Entry>>> {
        let entries = self.0.entries.lock();
        entries.unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a forward up.
    pub(crate) fn put(&self, key: Key) -> Arc<Entry> {
        let id = self.0.next_entry.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry {
            id,
            row: Arc::new(key.row()),
            key,
            board: self.clone(),
            stop: watch::Sender::new(false),
            counts: Mutex::default(),
            sent: AtomicU64::default(),
            received: AtomicU64::default(),
        });
        self.entries().insert(id, Arc::clone(&entry));
        entry
    }

    /// All that is up.
    pub(crate) fn all(&self) -> Vec<Arc<Entry>> {
        self.entries().values().cloned().collect()
    }
}

impl Entry {
    /// Takes it down: nothing new is accepted, what is open goes on.
    pub(crate) fn take_down(&self) {
        self.board.entries().remove(&self.id);
        self.stop.send_replace(true);
    }

    /// Ends when it is taken down.
    pub(crate) async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        // The sender is this entry's own.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A datagram to the workspace.
    pub(crate) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A datagram from the workspace.
    pub(crate) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A connection through it, from somebody of this machine's network or from the workspace.
    pub(crate) fn connect(
        self: &Arc<Self>,
        from: Option<std::net::SocketAddr>,
        report: &Reporter,
    ) -> Counted {
        let id = self.board.0.next_connection.fetch_add(1, Ordering::Relaxed) + 1;
        let moved = Moved::default();
        let mut counts = self.counts();
        counts.connections += 1;
        counts.open.insert(id, moved.clone());
        drop(counts);
        let counted = Counted {
            entry: Arc::clone(self),
            id,
            from,
            moved,
            report: report.clone(),
            early: 0,
            failed: None,
        };
        counted.tell(Phase::Opened);
        counted
    }

    fn traffic(&self) -> Traffic {
        let counts = self.counts();
        let reverse = self.row.kind == Kind::Reverse;
        let (mut sent, mut received) = (counts.sent, counts.received);
        for moved in counts.open.values() {
            let (out, back) = bytes(moved, reverse);
            sent += out;
            received += back;
        }
        Traffic {
            row: Row::clone(&self.row),
            open: counts.open.len() as u64,
            connections: counts.connections,
            sent: sent + self.sent.load(Ordering::Relaxed),
            received: received + self.received.load(Ordering::Relaxed),
        }
    }
}

/// Bytes to and from the workspace: the first end of a pump is where the connection came from.
fn bytes(moved: &Moved, reverse: bool) -> (u64, u64) {
    match reverse {
        false => (moved.a_to_b(), moved.b_to_a()),
        true => (moved.b_to_a(), moved.a_to_b()),
    }
}

/// A connection that is counted until this is dropped.
pub(crate) struct Counted {
    entry: Arc<Entry>,
    id: u64,
    from: Option<std::net::SocketAddr>,
    pub(crate) moved: Moved,
    report: Reporter,
    /// Bytes to the workspace that went with the request.
    early: u64,
    failed: Option<String>,
}

impl Counted {
    /// So many bytes went with the request already.
    pub(crate) fn early(&mut self, bytes: usize) {
        self.early = bytes as u64;
        self.entry.counts().sent += self.early;
    }

    /// It came to nothing.
    pub(crate) fn fail(mut self, reason: String) {
        self.failed = Some(reason);
    }

    fn tell(&self, phase: Phase) {
        self.report.tell(Event::Connection(Connection {
            row: Arc::clone(&self.entry.row),
            id: self.id,
            from: self.from,
            phase,
        }));
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let reverse = self.entry.row.kind == Kind::Reverse;
        let (sent, received) = bytes(&self.moved, reverse);
        let mut counts = self.entry.counts();
        counts.open.remove(&self.id);
        counts.sent += sent;
        counts.received += received;
        drop(counts);
        let sent = sent + self.early;
        let phase = match self.failed.take() {
            Some(reason) => Phase::Failed { reason },
            None => Phase::Closed { sent, received },
        };
        self.tell(phase);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(text: &str) -> Key {
        Key::Any(AnyForward::parse(text).unwrap().remove(0))
    }

    #[test]
    fn what_ended_is_counted_with_what_is_open() {
        let (board, report) = (Board::default(), Reporter::new(|_| {}));
        let entry = board.put(any("tcp://8080:8000"));
        let (mut one, two) = (entry.connect(None, &report), entry.connect(None, &report));
        one.early(2);
        entry.sent(1);
        entry.received(4);
        drop(one);
        let (rows, count) = board.traffic(10);
        assert_eq!((count, rows[0].open, rows[0].connections), (1, 1, 2));
        assert_eq!((rows[0].sent, rows[0].received), (3, 4));
        assert_eq!((&*rows[0].row.here, &*rows[0].row.there), ("8080", "8000"));
        two.fail("refused".to_owned());
        assert_eq!(board.traffic(10).0[0].open, 0);
        entry.take_down();
        assert_eq!(board.traffic(10), (Vec::new(), 0));
    }

    #[test]
    fn each_connection_is_told_with_a_number_of_its_own() {
        let phases = Arc::new(Mutex::new(Vec::new()));
        let copy = Arc::clone(&phases);
        let report = Reporter::new(move |event| {
            if let Event::Connection(connection) = event {
                let told = (connection.id, connection.phase.clone());
                copy.lock().unwrap().push(told);
            }
        });
        let board = Board::default();
        let entry = board.put(any("reverse://8080:3000"));
        let one = entry.connect(None, &report);
        drop(entry.connect(None, &report));
        one.fail("no answer".to_owned());
        let closed = Phase::Closed {
            sent: 0,
            received: 0,
        };
        let failed = Phase::Failed {
            reason: "no answer".to_owned(),
        };
        let expected = [
            (1, Phase::Opened),
            (2, Phase::Opened),
            (2, closed),
            (1, failed),
        ];
        assert_eq!(*phases.lock().unwrap(), expected);
    }
}
