//! Where datagrams go to and come from above the tunnel: flows that this end opened, and one
//! receiver for everything that peers send unasked.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Datagram, MAX_PAYLOAD};
use crate::Error;

/// Datagrams a flow keeps for a reader that is slow; later ones are dropped, as UDP does.
const FLOW_QUEUE: usize = 1024;
/// Datagrams that wait for the server of this end, or for the loop. Where processes take turns on a
/// processor a wait is some milliseconds, of a hundred datagrams each.
const QUEUE: usize = 1024;
/// Source ports of flows.
const FIRST_PORT: u16 = 49_152;

/// Opens and serves datagram flows of one endpoint.
#[derive(Debug, Clone)]
pub struct Datagrams {
    hub: Arc<Hub>,
    out: Outlets,
    source: Ipv6Addr,
}

/// The ways to the loops of an endpoint.
#[derive(Clone)]
struct Outlets {
    each: Arc<[mpsc::Sender<Datagram>]>,
    home: Option<Home>,
}

/// Says which loop has the peer with an address; needed where there are several.
pub(crate) type Home = Arc<dyn Fn(Ipv6Addr) -> usize + Send + Sync>;

impl Outlets {
    /// The way of a datagram: peers may change loops under a flow.
    fn to(&self, destination: Ipv6Addr) -> &mpsc::Sender<Datagram> {
        let home = self.home.as_ref().map_or(0, |home| home(destination));
        &self.each[home]
    }
}

impl std::fmt::Debug for Outlets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Outlets").field(&self.each.len()).finish()
    }
}

/// A loop's end of [`Datagrams`]: what is to be sent.
pub(crate) type Outbox = mpsc::Receiver<Datagram>;

/// The loop's end of [`Datagrams`]: where received datagrams go.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    hub: Arc<Hub>,
}

/// One UDP conversation with a port of a peer.
#[derive(Debug)]
pub struct Flow {
    local: SocketAddrV6,
    remote: SocketAddrV6,
    hub: Arc<Hub>,
    out: Outlets,
    received: mpsc::Receiver<Bytes>,
}

#[derive(Debug, Default)]
struct Hub {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    flows: HashMap<u16, (SocketAddrV6, mpsc::Sender<Bytes>)>,
    server: Option<mpsc::Sender<Datagram>>,
    last_port: u16,
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Datagrams {
    /// Those of one loop; `source` is the address flows come from.
    pub(crate) fn new(source: Ipv6Addr) -> (Datagrams, Outbox, Delivery) {
        let (datagrams, mut outboxes, delivery) = Self::of_loops(source, 1, None);
        (datagrams, outboxes.remove(0), delivery)
    }

    /// The same for an endpoint of `loops` loops, one at least, with an outbox for each.
    pub(crate) fn of_loops(
        source: Ipv6Addr,
        loops: usize,
        home: Option<Home>,
    ) -> (Datagrams, Vec<Outbox>, Delivery) {
        let channels = (0..loops).map(|_| mpsc::channel(QUEUE));
        let (each, outboxes): (Vec<_>, Vec<_>) = channels.unzip();
        let each = each.into();
        let hub = Arc::new(Hub::default());
        let delivery = Delivery { hub: hub.clone() };
        let out = Outlets { each, home };
        (Datagrams { hub, out, source }, outboxes, delivery)
    }

    /// The same, with flows from another of this end's addresses.
    pub(crate) fn with_source(&self, source: Ipv6Addr) -> Datagrams {
        Datagrams {
            source,
            ..self.clone()
        }
    }

    /// Opens a flow to `remote`. It ends when it is dropped.
    pub fn open_flow(&self, remote: SocketAddrV6) -> Result<Flow, Error> {
        let (sender, received) = mpsc::channel(FLOW_QUEUE);
        let mut state = self.hub.lock();
        let start = state.last_port.max(FIRST_PORT);
        let mut ports = (start..=u16::MAX).skip(1).chain(FIRST_PORT..=start);
        let port = ports
            .find(|port| !state.flows.contains_key(port))
            .ok_or(Error::TooManyFlows)?;
        state.last_port = port;
        state.flows.insert(port, (remote, sender));
        drop(state);
        let local = SocketAddrV6::new(self.source, port, 0, 0);
        Ok(Flow {
            local,
            remote,
            hub: self.hub.clone(),
            out: self.out.clone(),
            received,
        })
    }

    /// Everything that peers send to this end and that belongs to no flow. The latest caller
    /// gets it.
    pub fn serve(&self) -> mpsc::Receiver<Datagram> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.hub.lock().server = Some(sender);
        receiver
    }

    /// Sends a datagram from one of this end's addresses, or drops it while the tunnel is busy.
    pub fn try_send(&self, datagram: Datagram) -> Result<(), Error> {
        check_size(&datagram.payload)?;
        match self.out.to(*datagram.destination.ip()).try_send(datagram) {
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Error::Closed),
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
        }
    }

    /// Sends a datagram from one of this end's addresses. Waits while the tunnel is busy.
    pub async fn send(&self, datagram: Datagram) -> Result<(), Error> {
        check_size(&datagram.payload)?;
        let out = self.out.to(*datagram.destination.ip());
        out.send(datagram).await.map_err(|_| Error::Closed)
    }
}

impl Flow {
    /// This end's address and port inside the tunnel.
    pub fn local(&self) -> SocketAddrV6 {
        self.local
    }

    /// Sends one datagram. Waits while the tunnel is busy.
    pub async fn send(&self, payload: Bytes) -> Result<(), Error> {
        check_size(&payload)?;
        let datagram = Datagram {
            source: self.local,
            destination: self.remote,
            payload,
        };
        let out = self.out.to(*self.remote.ip());
        out.send(datagram).await.map_err(|_| Error::Closed)
    }

    /// The next datagram of the peer; `None` when the tunnel is closed.
    pub async fn recv(&mut self) -> Option<Bytes> {
        self.received.recv().await
    }

    /// Appends what the peer sent, `limit` datagrams at most, and returns how many there were: one at
    /// least, none when the tunnel is closed.
    pub async fn recv_many(&mut self, datagrams: &mut Vec<Bytes>, limit: usize) -> usize {
        self.received.recv_many(datagrams, limit).await
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.hub.lock().flows.remove(&self.local.port());
    }
}

impl Delivery {
    /// Hands a received datagram to whom it is for. False when nobody wanted it or had room.
    pub(crate) fn deliver(&self, from: SocketAddrV6, to: SocketAddrV6, payload: &[u8]) -> bool {
        let state = self.hub.lock();
        if let Some((remote, sender)) = state.flows.get(&to.port())
            && *remote == from
        {
            return sender.try_send(Bytes::copy_from_slice(payload)).is_ok();
        }
        let Some(server) = &state.server else {
            return false;
        };
        let payload = Bytes::copy_from_slice(payload);
        server
            .try_send(Datagram {
                source: from,
                destination: to,
                payload,
            })
            .is_ok()
    }

    /// Ends all flows.
    pub(crate) fn close(&self) {
        let mut state = self.hub.lock();
        state.flows.clear();
        state.server = None;
    }
}

fn check_size(payload: &[u8]) -> Result<(), Error> {
    if payload.len() > MAX_PAYLOAD {
        return Err(Error::DatagramTooLarge {
            size: payload.len(),
            limit: MAX_PAYLOAD,
        });
    }
    Ok(())
}
