//! Many connections: which packet belongs to which, who may send next, which timer is next. Each
//! step costs the same whatever the number of connections.
//!
//! Every port listens. A SYN becomes a [`Event::Requested`]; the owner dials whom it is meant for
//! and then [accepts](Stack::accept) or [refuses](Stack::refuse), so that a closed port looks
//! closed.
//!
//! | file | job |
//! |---|---|
//! | here | what the owner calls |
//! | `table` | connections by id and by their ends |
//! | `requests` | SYNs that nobody has decided on |
//! | `input` | packets that come in |
//! | `output` | packets that go out, and timers |
//! | `echo` | answers to pings |

mod echo;
mod input;
mod output;
mod requests;
mod table;

use std::collections::{BTreeMap, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use requests::RequestId;
pub use table::ConnectionId;

use crate::buffer::Lent;
use crate::connection::{Connection, Events, State, Tuple};
use crate::pool::Pool;
use crate::replay::{Replays, Seen};
use crate::time::Instant;
use crate::{Algorithm, Config, Error};

use output::Timers;
use requests::Requests;
use table::{Secret, Table};

/// Local ports for connections from here (RFC 6335 §6 and a little below, as common).
const FIRST_PORT: u16 = 32_768;
const PORTS: u32 = 28_232;

/// Settings of a stack.
#[derive(Debug, Clone)]
pub struct StackConfig {
    /// Settings of each connection.
    pub connection: Config,
    /// Addresses of this end; packets to others are dropped.
    pub addresses: Vec<IpAddr>,
    /// Bytes that all buffers may take together.
    pub memory: usize,
    /// Connections that may be open, those in TIME-WAIT not counted.
    pub max_connections: usize,
    /// Connections that may be in TIME-WAIT; the oldest make room.
    pub max_time_wait: usize,
    /// Requests that may wait for a decision: of all peers, and of one.
    pub max_requests: usize,
    /// Requests of one peer's address that may wait.
    pub max_requests_of_peer: usize,
    /// How long a request waits for a decision.
    pub request_patience: Duration,
}

impl Default for StackConfig {
    fn default() -> Self {
        Self {
            connection: Config::default(),
            addresses: Vec::new(),
            memory: 256 << 20,
            max_connections: 65_536,
            max_time_wait: 8_192,
            max_requests: 4_096,
            max_requests_of_peer: 1_024,
            request_patience: Duration::from_secs(20),
        }
    }
}

/// What an owner has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A peer asks for a connection. [`Stack::accept`] or [`Stack::refuse`] decides.
    Requested {
        /// Names the request.
        request: RequestId,
        /// The end it asks for.
        local: SocketAddr,
        /// The peer's end.
        remote: SocketAddr,
    },
    /// A request was taken back, or waited too long; it cannot be accepted any more.
    Withdrawn(RequestId),
    /// Something happened to a connection.
    Changed {
        /// The connection.
        id: ConnectionId,
        /// What happened.
        events: Events,
    },
}

/// What is known about the way to a peer.
#[derive(Debug, Clone, Default)]
struct Way {
    mtu: Option<u16>,
    algorithm: Option<Algorithm>,
    receive_max: Option<u64>,
    /// What its connections share; none until one is opened after something changed.
    config: Option<Arc<Config>>,
}

/// Many connections between addresses of this end and peers.
#[derive(Debug)]
pub struct Stack {
    config: StackConfig,
    connection: Arc<Config>,
    pool: Pool,
    secret: Secret,
    table: Table,
    requests: Requests,
    replays: Replays<Secret>,
    timers: Timers,
    /// Connections that may have something to send.
    ready: VecDeque<ConnectionId>,
    /// Connections with events, and events of requests.
    changed: VecDeque<ConnectionId>,
    notes: VecDeque<Event>,
    /// Packets that belong to no connection.
    replies: VecDeque<Vec<u8>>,
    /// Connections in TIME-WAIT in the order in which they came there, with some that left it.
    time_wait: VecDeque<ConnectionId>,
    in_time_wait: usize,
    /// Writers that found no memory.
    starved: VecDeque<ConnectionId>,
    ways: BTreeMap<IpAddr, Way>,
    next_port: u32,
}

impl Stack {
    /// A stack without connections. `secret` is random and not known to peers.
    pub fn new(config: StackConfig, secret: [u64; 2]) -> Self {
        let secret = Secret(secret);
        Self {
            connection: Arc::new(config.connection.clone()),
            pool: Pool::new(config.memory),
            table: Table::new(secret),
            requests: Requests::new(secret),
            replays: Replays::new(secret),
            timers: Timers::default(),
            ready: VecDeque::new(),
            changed: VecDeque::new(),
            notes: VecDeque::new(),
            replies: VecDeque::new(),
            time_wait: VecDeque::new(),
            in_time_wait: 0,
            starved: VecDeque::new(),
            ways: BTreeMap::new(),
            next_port: secret.number(&FIRST_PORT) as u32,
            secret,
            config,
        }
    }

    /// Opens a connection from `local`, one of this end's addresses, to `remote`.
    ///
    /// # Errors
    /// [`Error::Family`], [`Error::TooMany`] or [`Error::NoPort`].
    pub fn connect(
        &mut self,
        now: Instant,
        local: IpAddr,
        remote: SocketAddr,
    ) -> Result<ConnectionId, Error> {
        Ok(self.connect_with(now, local, remote, &[])?.0)
    }

    /// The same with `first` as the first bytes, and how many of them were taken: see
    /// [`Connection::connect_with`].
    ///
    /// # Errors
    /// As those of [`connect`](Self::connect).
    pub fn connect_with(
        &mut self,
        now: Instant,
        local: IpAddr,
        remote: SocketAddr,
        first: &[u8],
    ) -> Result<(ConnectionId, usize), Error> {
        if local.is_ipv4() != remote.is_ipv4() {
            return Err(Error::Family);
        }
        self.check_room()?;
        let tuple = self.free_tuple(local, remote).ok_or(Error::NoPort)?;
        let secrets = self.secret.of_connection(&tuple, now);
        let config = self.config_for(remote.ip());
        let (connection, taken) =
            Connection::connect_with(config, tuple, secrets, &self.pool, now, first);
        Ok((self.open(connection), taken))
    }

    /// Takes the connection that `request` asks for.
    ///
    /// # Errors
    /// [`Error::RequestGone`] if it was withdrawn, [`Error::TooMany`].
    pub fn accept(&mut self, now: Instant, request: RequestId) -> Result<ConnectionId, Error> {
        self.check_room()?;
        let mut request = self.requests.take(request).ok_or(Error::RequestGone)?;
        let tuple = request.tuple;
        if request.has_data() && self.replays.note(&tuple, request.seq, now) != Seen::New {
            request.drop_data();
        }
        let secrets = self.secret.of_connection(&tuple, now);
        let config = self.config_for(tuple.remote.ip());
        let connection = Connection::accept(config, &request, secrets, &self.pool, now);
        Ok(self.open(connection))
    }

    /// Answers `request` with a reset.
    ///
    /// # Errors
    /// [`Error::RequestGone`] if it was withdrawn.
    pub fn refuse(&mut self, request: RequestId) -> Result<(), Error> {
        let request = self.requests.take(request).ok_or(Error::RequestGone)?;
        self.reply_with(|sink| request.refuse(sink));
        Ok(())
    }

    /// Forgets `request` without an answer: the peer asks again.
    pub fn ignore(&mut self, request: RequestId) {
        self.requests.take(request);
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(event) = self.notes.pop_front() {
            return Some(event);
        }
        while let Some(id) = self.changed.pop_front() {
            let Some(entry) = self.table.get(id) else {
                continue;
            };
            entry.announced = false;
            let events = entry.connection.take_events();
            if events != Events::default() && !entry.released {
                return Some(Event::Changed { id, events });
            }
        }
        None
    }

    /// See [`Connection::write`].
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::NotOpen`].
    pub fn write(&mut self, id: ConnectionId, data: &[u8]) -> Result<usize, Error> {
        let entry = self.table.get(id).ok_or(Error::Gone)?;
        let count = entry.connection.write(data)?;
        if count < data.len() && entry.connection.is_flushed() {
            // No acknowledgement will tell that there is room.
            self.starved.push_back(id);
        }
        if count > 0 {
            self.make_ready(id);
        }
        Ok(count)
    }

    /// See [`Connection::write_with`].
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::NotOpen`].
    pub fn write_with<R, E>(
        &mut self,
        id: ConnectionId,
        most: usize,
        fill: impl FnOnce(&mut [IoSliceMut<'_>]) -> Result<(R, usize), E>,
    ) -> Result<Lent<R, E>, Error> {
        let entry = self.table.get(id).ok_or(Error::Gone)?;
        let outcome = entry.connection.write_with(most, fill)?;
        match &outcome {
            None if entry.connection.is_flushed() => self.starved.push_back(id),
            Some(Ok((_, 1..))) => self.make_ready(id),
            _ => {}
        }
        Ok(outcome)
    }

    /// See [`Connection::peek_with`].
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn peek_with<R>(
        &mut self,
        id: ConnectionId,
        take: impl FnOnce(&[IoSlice<'_>]) -> R,
    ) -> Result<R, Error> {
        let entry = self.table.get(id).ok_or(Error::Gone)?;
        Ok(entry.connection.peek_with(take))
    }

    /// See [`Connection::peek`].
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn peek(&mut self, id: ConnectionId) -> Result<&[u8], Error> {
        let entry = self.table.get(id).ok_or(Error::Gone)?;
        Ok(entry.connection.peek())
    }

    /// See [`Connection::consume`].
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn consume(&mut self, now: Instant, id: ConnectionId, count: usize) -> Result<(), Error> {
        let entry = self.table.get(id).ok_or(Error::Gone)?;
        entry.connection.consume(now, count);
        self.make_ready(id);
        Ok(())
    }

    /// See [`Connection::read`].
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn read(&mut self, now: Instant, id: ConnectionId, out: &mut [u8]) -> Result<usize, Error> {
        let entry = self.table.get(id).ok_or(Error::Gone)?;
        let count = entry.connection.read(now, out);
        self.make_ready(id);
        Ok(count)
    }

    /// See [`Connection::shutdown`].
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub fn shutdown(&mut self, id: ConnectionId) -> Result<(), Error> {
        self.table.get(id).ok_or(Error::Gone)?.connection.shutdown();
        self.make_ready(id);
        Ok(())
    }

    /// Ends a connection and gives its id up: what was written is still sent. See
    /// [`Connection::close`].
    pub fn close(&mut self, now: Instant, id: ConnectionId) {
        self.give_up(id, |connection| connection.close(now));
    }

    /// Resets a connection and gives its id up.
    pub fn abort(&mut self, id: ConnectionId) {
        self.give_up(id, Connection::abort);
    }

    fn give_up(&mut self, id: ConnectionId, end: impl FnOnce(&mut Connection)) {
        if let Some(entry) = self.table.get(id)
            && !entry.released
        {
            entry.released = true;
            end(&mut entry.connection);
            self.make_ready(id);
        }
    }

    /// See [`Connection::tell_when_flushed`].
    pub fn tell_when_flushed(&mut self, id: ConnectionId) {
        if let Some(entry) = self.table.get(id) {
            entry.connection.tell_when_flushed();
        }
    }

    /// See [`Connection::set_user_timeout`].
    pub fn set_user_timeout(&mut self, id: ConnectionId, longest: Duration) {
        if let Some(entry) = self.table.get(id) {
            entry.connection.set_user_timeout(longest);
        }
    }

    /// The congestion control of connections to `peer` that are opened from now on, and to what
    /// the receive buffers of all of them may grow.
    pub fn set_way(&mut self, peer: IpAddr, algorithm: Algorithm, receive_max: u64) {
        let way = self.ways.entry(peer).or_default();
        if way.algorithm.replace(algorithm) != Some(algorithm) {
            way.config = None;
        }
        if way.receive_max.replace(receive_max) == Some(receive_max) {
            return;
        }
        for id in self.table.of_peer(peer) {
            if let Some(entry) = self.table.get(id) {
                entry.connection.set_receive_max(receive_max);
            }
        }
    }

    /// A connection, to ask it something.
    pub fn connection(&mut self, id: ConnectionId) -> Option<&Connection> {
        self.table.get(id).map(|entry| &*entry.connection)
    }

    /// The largest packet the way to `peer` carries from now on. Connections follow at once: what
    /// is in flight and too large is sent again.
    pub fn set_mtu(&mut self, now: Instant, peer: IpAddr, mtu: u16) {
        let way = self.ways.entry(peer).or_default();
        if way.mtu.replace(mtu) != Some(mtu) {
            way.config = None;
        }
        for id in self.table.of_peer(peer) {
            if let Some(entry) = self.table.get(id) {
                entry.connection.set_mtu(now, mtu);
            }
            self.make_ready(id);
        }
    }

    /// Forgets what was said of `peer`, and resets its connections without telling it.
    pub fn forget_peer(&mut self, peer: IpAddr) {
        self.ways.remove(&peer);
        self.notes
            .extend(self.requests.forget(peer).map(Event::Withdrawn));
        for id in self.table.of_peer(peer) {
            if let Some(entry) = self.table.get(id) {
                entry.connection.abort();
            }
            self.make_ready(id);
        }
    }

    /// Connections, those in TIME-WAIT included.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is no connection.
    pub fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    /// Bytes that buffers take now.
    pub fn memory_used(&self) -> usize {
        self.pool.used()
    }

    /// Gives memory that no buffer has back to the system.
    pub fn trim(&mut self) {
        self.pool.trim();
    }

    fn check_room(&self) -> Result<(), Error> {
        match self.table.len() - self.in_time_wait < self.config.max_connections {
            true => Ok(()),
            false => Err(Error::TooMany),
        }
    }

    fn open(&mut self, mut connection: Connection) -> ConnectionId {
        let way = self.ways.get(&connection.tuple().remote.ip());
        if let Some(most) = way.and_then(|way| way.receive_max) {
            connection.set_receive_max(most);
        }
        let id = self.table.insert(connection);
        self.make_ready(id);
        id
    }

    fn config_for(&mut self, peer: IpAddr) -> Arc<Config> {
        let usual = &self.connection;
        let Some(way) = self.ways.get_mut(&peer) else {
            return Arc::clone(usual);
        };
        let config = way.config.get_or_insert_with(|| {
            Arc::new(Config {
                mtu: way.mtu.unwrap_or(usual.mtu),
                algorithm: way.algorithm.unwrap_or(usual.algorithm),
                ..Config::clone(usual)
            })
        });
        Arc::clone(config)
    }

    /// A tuple that no connection has; one in TIME-WAIT makes room if there is no other.
    fn free_tuple(&mut self, local: IpAddr, remote: SocketAddr) -> Option<Tuple> {
        const QUICK: u32 = 64;
        let start = self.secret.number(&(local, remote)) as u32;
        let mut in_time_wait = None;
        for attempt in 0..PORTS {
            self.next_port = self.next_port.wrapping_add(1);
            let port = FIRST_PORT + (start.wrapping_add(self.next_port) % PORTS) as u16;
            let tuple = Tuple {
                local: SocketAddr::new(local, port),
                remote,
            };
            let Some(id) = self.table.find(&tuple) else {
                return Some(tuple);
            };
            let is_over = self
                .table
                .get(id)
                .is_some_and(|entry| entry.released && entry.connection.state() == State::TimeWait);
            if is_over {
                in_time_wait = in_time_wait.or(Some((id, tuple)));
            }
            if attempt > QUICK && in_time_wait.is_some() {
                break;
            }
        }
        let (id, tuple) = in_time_wait?;
        self.remove(id);
        Some(tuple)
    }

    /// Lists a connection whose owner has to know something.
    fn announce(&mut self, id: ConnectionId) {
        if let Some(entry) = self.table.get(id)
            && entry.connection.has_events()
            && !entry.announced
            && !entry.released
        {
            entry.announced = true;
            self.changed.push_back(id);
        }
    }

    fn make_ready(&mut self, id: ConnectionId) {
        if let Some(entry) = self.table.get(id)
            && !entry.ready
        {
            entry.ready = true;
            self.ready.push_back(id);
        }
    }

    fn remove(&mut self, id: ConnectionId) {
        if let Some(entry) = self.table.remove(id)
            && entry.waits
        {
            self.in_time_wait -= 1;
            // They end in the order in which they began to wait, but for few, which stay listed
            // until it would have been their turn.
            while let Some(&first) = self.time_wait.front()
                && self.table.get(first).is_none()
            {
                self.time_wait.pop_front();
            }
        }
    }
}
