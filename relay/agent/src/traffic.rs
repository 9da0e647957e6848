//! What goes through this agent's tunnels to apps, as the control plane is told from time to time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use relay_control::agent::Stats;
use relay_engine::Moved;

/// Counts all connections and flows.
#[derive(Debug, Default)]
pub(crate) struct Traffic(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    open: HashMap<u64, Open>,
    next: u64,
    /// Of connections that ended since the last report.
    ended: Stats,
    /// Of all so far, but the bytes of those that are open.
    totals: [Total; 3],
}

#[derive(Debug)]
struct Open {
    protocol: Protocol,
    counts: Arc<Counts>,
    told: Bytes,
    is_new: bool,
}

/// All connections or flows of a protocol since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Total {
    /// Open now.
    pub(crate) open: u64,
    /// So far.
    pub(crate) connections: u64,
    /// Bytes from peers.
    pub(crate) received: u64,
    /// Bytes to peers.
    pub(crate) sent: u64,
}

/// What a connection or flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    /// A connection to the agent's own SSH server: it counts while it is open, its bytes do not.
    Ssh,
}

/// What one of them has moved so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// A connection's, from peer to app and back.
    pub(crate) moved: Moved,
    received: AtomicU64,
    sent: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bytes {
    received: u64,
    sent: u64,
}

/// A connection or flow that is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    traffic: Arc<Traffic>,
    id: u64,
    pub(crate) counts: Arc<Counts>,
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Ssh];

    /// In lower case.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Ssh => "ssh",
        }
    }
}

impl Counts {
    /// A datagram of a peer.
    pub(crate) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A datagram to a peer.
    pub(crate) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn bytes(&self) -> Bytes {
        Bytes {
            received: self.moved.a_to_b() + self.received.load(Ordering::Relaxed),
            sent: self.moved.b_to_a() + self.sent.load(Ordering::Relaxed),
        }
    }
}

impl Traffic {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a connection or flow from now on.
    pub(crate) fn open(self: &Arc<Self>, protocol: Protocol) -> Counted {
        let counts = Arc::new(Counts::default());
        let mut inner = self.lock();
        inner.next += 1;
        let id = inner.next;
        let open = Open {
            protocol,
            counts: Arc::clone(&counts),
            told: Bytes::default(),
            is_new: true,
        };
        inner.open.insert(id, open);
        inner.totals[protocol as usize].connections += 1;
        Counted {
            traffic: Arc::clone(self),
            id,
            counts,
        }
    }

    /// What was moved since the last report, and by how many connections.
    pub(crate) fn report(&self) -> Stats {
        let mut inner = self.lock();
        let mut stats = std::mem::take(&mut inner.ended);
        for open in inner.open.values_mut() {
            open.tell(&mut stats);
        }
        stats
    }
}

impl Traffic {
    /// All so far, by protocol.
    pub(crate) fn totals(&self) -> [(Protocol, Total); 3] {
        let inner = self.lock();
        let mut totals = inner.totals;
        for open in inner.open.values() {
            let total = &mut totals[open.protocol as usize];
            total.open += 1;
            total.add(open.counts.bytes());
        }
        Protocol::ALL.map(|protocol| (protocol, totals[protocol as usize]))
    }
}

impl Total {
    fn add(&mut self, bytes: Bytes) {
        self.received += bytes.received;
        self.sent += bytes.sent;
    }
}

impl Open {
    fn tell(&mut self, stats: &mut Stats) {
        if self.protocol == Protocol::Ssh {
            self.is_new = true;
            stats.session_count_ssh += 1;
        }
        let now = self.counts.bytes();
        let before = std::mem::replace(&mut self.told, now);
        if now == before && !std::mem::take(&mut self.is_new) {
            return;
        }
        self.is_new = false;
        let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        stats.rx_bytes += number(now.received - before.received);
        stats.tx_bytes += number(now.sent - before.sent);
        stats.connection_count += 1;
        let name = match self.protocol {
            Protocol::Tcp | Protocol::Ssh => "TCP",
            Protocol::Udp => "UDP",
        };
        let count = stats.connections_by_proto.entry(name.to_owned());
        *count.or_default() += 1;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut inner = self.traffic.lock();
        if let Some(mut open) = inner.open.remove(&self.id) {
            inner.totals[open.protocol as usize].add(open.counts.bytes());
            open.tell(&mut inner.ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(traffic: &Traffic) -> (i64, i64, i64, Vec<(String, i64)>) {
        let stats = traffic.report();
        let mut by_proto: Vec<_> = stats.connections_by_proto.into_iter().collect();
        by_proto.sort();
        (
            stats.rx_bytes,
            stats.tx_bytes,
            stats.connection_count,
            by_proto,
        )
    }

    #[test]
    fn each_report_tells_what_came_since_the_last_one() {
        let traffic = Arc::new(Traffic::default());
        assert_eq!(told(&traffic), (0, 0, 0, vec![]));
        let (one, two) = (traffic.open(Protocol::Udp), traffic.open(Protocol::Tcp));
        one.counts.received(5);
        one.counts.sent(7);
        let both = vec![("TCP".to_owned(), 1), ("UDP".to_owned(), 1)];
        assert_eq!(told(&traffic), (5, 7, 2, both));
        assert_eq!(
            told(&traffic),
            (0, 0, 0, vec![]),
            "both are open and silent"
        );
        one.counts.received(1);
        assert_eq!(told(&traffic), (1, 0, 1, vec![("UDP".to_owned(), 1)]));
        one.counts.received(1);
        let ssh = traffic.open(Protocol::Ssh);
        for _ in 0..2 {
            let stats = traffic.report();
            assert_eq!(
                (stats.session_count_ssh, stats.connection_count),
                (1, 1 + stats.rx_bytes)
            );
        }
        one.counts.received(1);
        drop((one, two));
        drop(ssh);
        let stats = traffic.report();
        assert_eq!((stats.rx_bytes, stats.connection_count), (1, 2));
        assert!(traffic.lock().open.is_empty());
        let [(_, tcp), (_, udp), (_, ssh)] = traffic.totals();
        assert_eq!((udp.connections, udp.open), (1, 0));
        assert_eq!((udp.received, udp.sent), (8, 7));
        assert_eq!((tcp.connections, ssh.connections), (1, 1));
    }
}
