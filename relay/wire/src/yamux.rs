//! yamux: many streams over one ordered byte stream, as a state machine without I/O.
//!
//! Bytes and the time go in, bytes and events come out. Incoming streams are acknowledged at once:
//! a peer may close the whole session over a stream that stays unacknowledged for 75 s.

mod frame;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};

pub use frame::{ACK, FIN, Header, Kind, RST, SYN};

/// Receive window of a stream, in each direction, at its start and for good.
pub const WINDOW: u32 = 256 * 1024;
/// Longest body of a data frame that is sent, so that streams take turns.
const LONGEST_FRAME: usize = 64 * 1024;

/// Which end of the session this is: the end that dialled is the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opens streams with odd numbers.
    Client,
    /// Opens streams with even numbers.
    Server,
}

/// Times and bounds of a session.
#[derive(Clone, Debug)]
pub struct Config {
    /// Time between two keepalive pings.
    pub keepalive: Duration,
    /// How long the answer to one may take before the session counts as dead.
    pub reply_within: Duration,
    /// Streams the peer may have open at once; more are reset.
    pub max_streams: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            keepalive: Duration::from_secs(30),
            reply_within: Duration::from_secs(10),
            max_streams: 1024,
        }
    }
}

/// Number of a stream in its session.
pub type StreamId = u32;

/// What happened, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer opened a stream (and it has been acknowledged).
    Incoming(StreamId),
    /// Bytes arrived; give their window back with [`Session::consumed`].
    Data(StreamId, Bytes),
    /// The stream takes bytes again.
    Writable(StreamId),
    /// The peer will send nothing more on the stream.
    Fin(StreamId),
    /// The peer gave the stream up; it is gone.
    Reset(StreamId),
    /// The answer to a ping came after this time.
    Pong(Duration),
    /// The peer takes no new streams; the code is 0 for an orderly end.
    GoAway(u32),
}

/// Why a session must end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The peer broke the protocol.
    #[error("the peer broke the yamux protocol: {0}")]
    Protocol(&'static str),
    /// No answer to a keepalive ping.
    #[error("the peer did not answer a keepalive ping in time")]
    KeepaliveTimeout,
    /// The peer asked for no new streams.
    #[error("the peer is ending the session and takes no new streams")]
    GoingAway,
    /// The stream does not exist or its sending half is closed.
    #[error("the stream is closed")]
    Closed,
}

#[derive(Debug)]
struct Stream {
    send_window: u32,
    /// What the peer may still send.
    receive_window: u32,
    /// Taken by the application, not yet given back to the peer.
    unreturned: u32,
    local_fin: bool,
    remote_fin: bool,
    blocked: bool,
}

impl Stream {
    fn new() -> Self {
        Self {
            send_window: WINDOW,
            receive_window: WINDOW,
            unreturned: 0,
            local_fin: false,
            remote_fin: false,
            blocked: false,
        }
    }
}

/// One end of a session.
#[derive(Debug)]
pub struct Session {
    role: Role,
    config: Config,
    streams: HashMap<StreamId, Stream>,
    incoming: usize,
    next_id: StreamId,
    last_incoming: StreamId,
    input: BytesMut,
    /// Body bytes of a stream that is gone, still to be skipped.
    discard: usize,
    output: BytesMut,
    events: VecDeque<Event>,
    next_ping: u32,
    next_keepalive: Instant,
    /// The unanswered ping: its id, when it was sent, when the answer is due.
    pending_ping: Option<(u32, Instant, Instant)>,
    peer_away: bool,
    failed: Option<Error>,
}

impl Session {
    /// A new session; the first keepalive ping is due one interval after `now`.
    pub fn new(role: Role, config: Config, now: Instant) -> Self {
        Self {
            role,
            next_keepalive: now + config.keepalive,
            config,
            streams: HashMap::new(),
            incoming: 0,
            next_id: match role {
                Role::Client => 1,
                Role::Server => 2,
            },
            last_incoming: 0,
            input: BytesMut::new(),
            discard: 0,
            output: BytesMut::new(),
            events: VecDeque::new(),
            next_ping: 1,
            pending_ping: None,
            peer_away: false,
            failed: None,
        }
    }

    /// Takes bytes from the peer, cut anywhere. After an error the session only has output left.
    pub fn handle_input(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let skipped = self.discard.min(bytes.len());
        bytes.advance(skipped);
        self.discard -= skipped;
        self.input.extend_from_slice(bytes);
        match self.handle_frames(now) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.put(Kind::GoAway, 0, 0, 1);
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Bytes for the peer, if any: everything that is due, in one piece.
    pub fn poll_output(&mut self) -> Option<Bytes> {
        (!self.output.is_empty()).then(|| self.output.split().freeze())
    }

    /// Whether [`Session::poll_output`] has something, and how much.
    pub fn pending_output(&self) -> usize {
        self.output.len()
    }

    /// The next event, if any.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Session::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match (&self.failed, self.pending_ping) {
            (Some(_), _) => None,
            (None, Some((_, _, due))) => Some(due),
            (None, None) => Some(self.next_keepalive),
        }
    }

    /// Sends a keepalive ping when one is due, and fails when an answer is overdue.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match self.pending_ping {
            Some((_, _, due)) if now >= due => {
                self.failed = Some(Error::KeepaliveTimeout);
                Err(Error::KeepaliveTimeout)
            }
            None if now >= self.next_keepalive => {
                self.ping(now);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Sends a ping now, unless one is on its way; [`Event::Pong`] tells the round trip.
    pub fn ping(&mut self, now: Instant) {
        if self.pending_ping.is_some() || self.failed.is_some() {
            return;
        }
        let id = self.next_ping;
        self.next_ping = self.next_ping.wrapping_add(1);
        self.pending_ping = Some((id, now, now + self.config.reply_within));
        self.put(Kind::Ping, SYN, 0, id);
    }

    /// Opens a stream.
    pub fn open(&mut self) -> Result<StreamId, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let id = self.next_id;
        if self.peer_away {
            return Err(Error::GoingAway);
        }
        self.next_id = id.checked_add(2).ok_or(Error::GoingAway)?;
        self.streams.insert(id, Stream::new());
        self.put(Kind::Window, SYN, id, 0);
        Ok(id)
    }

    /// Sends as much of `bytes` as the peer's window takes and says how much that was. After less
    /// than all, [`Event::Writable`] tells when to go on.
    pub fn send(&mut self, id: StreamId, bytes: &[u8]) -> Result<usize, Error> {
        let stream = self.streams.get_mut(&id).ok_or(Error::Closed)?;
        if stream.local_fin {
            return Err(Error::Closed);
        }
        let taken = bytes.len().min(stream.send_window as usize);
        stream.send_window -= taken as u32;
        stream.blocked = taken < bytes.len();
        for part in bytes[..taken].chunks(LONGEST_FRAME) {
            self.put(Kind::Data, 0, id, part.len() as u32);
            self.output.extend_from_slice(part);
        }
        Ok(taken)
    }

    /// Gives the window of `length` received bytes back, which the application has taken.
    pub fn consumed(&mut self, id: StreamId, length: usize) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.unreturned = stream.unreturned.saturating_add(length as u32).min(WINDOW);
        if stream.unreturned >= WINDOW / 2 && !stream.remote_fin {
            let delta = std::mem::take(&mut stream.unreturned);
            stream.receive_window += delta;
            self.put(Kind::Window, 0, id, delta);
        }
    }

    /// Ends the sending half.
    pub fn close(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if !std::mem::replace(&mut stream.local_fin, true) {
            let done = stream.remote_fin;
            self.put(Kind::Window, FIN, id, 0);
            if done {
                self.forget(id);
            }
        }
    }

    /// Gives the stream up in both directions.
    pub fn reset(&mut self, id: StreamId) {
        if self.streams.contains_key(&id) {
            self.put(Kind::Window, RST, id, 0);
            self.forget(id);
        }
    }

    /// Tells the peer that no more streams are taken, in an orderly way.
    pub fn go_away(&mut self) {
        self.put(Kind::GoAway, 0, 0, 0);
    }

    /// Number of streams that are open in at least one direction.
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    fn handle_frames(&mut self, now: Instant) -> Result<(), Error> {
        while let Some(head) = self.input.first_chunk::<{ Header::LENGTH }>() {
            let header = Header::decode(head)?;
            match header.kind {
                Kind::Data => {
                    if !self.handle_data(header)? {
                        return Ok(());
                    }
                }
                Kind::Window => {
                    self.input.advance(Header::LENGTH);
                    self.handle_window(header)?;
                }
                Kind::Ping => {
                    self.input.advance(Header::LENGTH);
                    self.handle_ping(header, now);
                }
                Kind::GoAway => {
                    self.input.advance(Header::LENGTH);
                    self.peer_away = true;
                    self.events.push_back(Event::GoAway(header.length));
                }
            }
        }
        Ok(())
    }

    /// False when the rest of the body has yet to come.
    fn handle_data(&mut self, header: Header) -> Result<bool, Error> {
        let length = header.length as usize;
        if header.flags & SYN != 0 && header.length > WINDOW {
            return Err(Error::Protocol("more data than the window"));
        }
        if let Some(stream) = self.streams.get(&header.stream)
            && header.length > stream.receive_window
        {
            return Err(Error::Protocol("more data than the window"));
        }
        let known = self.streams.contains_key(&header.stream) || header.flags & SYN != 0;
        let arrived = self.input.len() - Header::LENGTH;
        if known && arrived < length {
            self.input.reserve(length - arrived);
            return Ok(false);
        }
        self.input.advance(Header::LENGTH);
        self.handle_syn(header)?;
        match self.streams.get_mut(&header.stream) {
            Some(stream) => {
                if stream.remote_fin && length > 0 {
                    return Err(Error::Protocol("data after the end of a stream"));
                }
                stream.receive_window -= header.length;
                let body = self.input.split_to(length).freeze();
                if !body.is_empty() {
                    self.events.push_back(Event::Data(header.stream, body));
                }
            }
            None => {
                let skipped = length.min(self.input.len());
                self.input.advance(skipped);
                self.discard = length - skipped;
                if self.discard > 0 {
                    return Ok(false);
                }
            }
        }
        self.handle_end(header);
        Ok(true)
    }

    fn handle_window(&mut self, header: Header) -> Result<(), Error> {
        self.handle_syn(header)?;
        if let Some(stream) = self.streams.get_mut(&header.stream) {
            stream.send_window = stream
                .send_window
                .checked_add(header.length)
                .ok_or(Error::Protocol("window too large"))?;
            if header.length > 0 && std::mem::take(&mut stream.blocked) {
                self.events.push_back(Event::Writable(header.stream));
            }
        }
        self.handle_end(header);
        Ok(())
    }

    fn handle_syn(&mut self, header: Header) -> Result<(), Error> {
        if header.flags & SYN == 0 {
            return Ok(());
        }
        let id = header.stream;
        let parity = match self.role {
            Role::Client => 0,
            Role::Server => 1,
        };
        if id == 0 || id % 2 != parity {
            return Err(Error::Protocol("stream number of the wrong side"));
        }
        if id <= self.last_incoming {
            return Err(Error::Protocol("stream number used twice"));
        }
        self.last_incoming = id;
        if self.incoming >= self.config.max_streams {
            self.put(Kind::Window, RST, id, 0);
            return Ok(());
        }
        self.incoming += 1;
        self.streams.insert(id, Stream::new());
        self.put(Kind::Window, ACK, id, 0);
        self.events.push_back(Event::Incoming(id));
        Ok(())
    }

    fn handle_end(&mut self, header: Header) {
        let id = header.stream;
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if header.flags & RST != 0 {
            self.forget(id);
            self.events.push_back(Event::Reset(id));
        } else if header.flags & FIN != 0 && !std::mem::replace(&mut stream.remote_fin, true) {
            let done = stream.local_fin;
            self.events.push_back(Event::Fin(id));
            if done {
                self.forget(id);
            }
        }
    }

    fn handle_ping(&mut self, header: Header, now: Instant) {
        if header.flags & SYN != 0 {
            self.put(Kind::Ping, ACK, 0, header.length);
        } else if let Some((id, sent, _)) = self.pending_ping
            && id == header.length
        {
            self.pending_ping = None;
            self.next_keepalive = now + self.config.keepalive;
            self.events.push_back(Event::Pong(now - sent));
        }
    }

    fn forget(&mut self, id: StreamId) {
        let mine = match self.role {
            Role::Client => id % 2 == 1,
            Role::Server => id.is_multiple_of(2),
        };
        if self.streams.remove(&id).is_some() && !mine {
            self.incoming -= 1;
        }
    }

    fn put(&mut self, kind: Kind, flags: u16, stream: StreamId, length: u32) {
        let header = Header {
            kind,
            flags,
            stream,
            length,
        };
        self.output.extend_from_slice(&header.encode());
    }
}

#[cfg(test)]
mod tests;
