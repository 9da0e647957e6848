//! One WireGuard peer: sessions, handshakes, timers and the check that a packet comes from an address
//! of its sender (WireGuard paper, §6).

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::TunnResult;
use boringtun::noise::rate_limiter::RateLimiter;

use super::handshake::Handshake;
use super::message::{self, CookieReply, Data, Message};
use super::noise::Statics;
use super::session::Sessions;
use super::{Burst, Identity, OVERHEAD, Opened, source};

/// The pace of keepalives, and of attempts that nobody answered for long.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(KEEPALIVE_SECONDS as u64);
const KEEPALIVE_SECONDS: u16 = 25;
/// The shortest pause between two first messages of a handshake to one peer.
const SHORTEST_RETRY: Duration = Duration::from_millis(100);
/// After this long without an answer to what was sent the peer is asked for new keys.
const SILENCE: Duration = Duration::from_secs(15);
/// What the peer sent is answered within this time, by an empty message if need be.
const PASSIVE_KEEPALIVE: Duration = Duration::from_secs(10);

/// What is decided about a peer when it is installed.
#[derive(Debug, Clone)]
pub struct PeerOptions {
    /// Its public key.
    pub key: [u8; 32],
    /// A number no other peer of this end has, below 2^24.
    pub index: u32,
    /// The addresses its packets may come from.
    pub addresses: Vec<Ipv6Addr>,
    /// Whether to greet it at once and keep the tunnel open by a packet each 25 s.
    pub keepalive: bool,
}

/// What is decided about a peer that is known by its configuration alone.
#[derive(Debug, Clone)]
pub struct PlainOptions {
    /// Its public key.
    pub key: [u8; 32],
    /// A secret that both ends have besides their keys.
    pub preshared: Option<[u8; 32]>,
    /// A number no other peer of this end has, below 2^24.
    pub index: u32,
    /// After how many seconds of silence it is sent a packet.
    pub keepalive: Option<u16>,
}

/// A WireGuard peer.
pub struct Peer {
    handshake: Handshake,
    sessions: Sessions,
    limiter: Arc<RateLimiter>,
    options: PeerOptions,
    /// The source addresses of its packets are checked by whoever gets them.
    any_source: bool,
    keepalive: Option<Duration>,
    keepalive_at: Option<Instant>,
    /// Datagrams that only the peer can have sent, and when the last came.
    authentic: u64,
    last_authentic: Option<Instant>,
    /// When the first packet was sent after the last datagram came.
    sent_unanswered: Option<Instant>,
    /// When the first packet came after the last was sent.
    received_unanswered: Option<Instant>,
    rejected: u64,
}

impl Peer {
    /// Installs a peer.
    pub fn new(identity: &Identity, options: PeerOptions, now: Instant) -> Peer {
        let seconds = options.keepalive.then_some(KEEPALIVE_SECONDS);
        Peer::with(identity, options, None, seconds, now)
    }

    /// Installs a peer whose packets, of either family, are all given out: whether it may have sent
    /// from such an address is for the caller to check.
    pub fn plain(identity: &Identity, options: PlainOptions, now: Instant) -> Peer {
        let PlainOptions {
            key,
            preshared,
            index,
            keepalive,
        } = options;
        let options = PeerOptions {
            key,
            index,
            addresses: Vec::new(),
            keepalive: keepalive.is_some(),
        };
        let mut peer = Peer::with(identity, options, preshared, keepalive, now);
        peer.any_source = true;
        peer
    }

    fn with(
        identity: &Identity,
        options: PeerOptions,
        preshared: Option<[u8; 32]>,
        seconds: Option<u16>,
        now: Instant,
    ) -> Peer {
        let statics = Statics::new(identity.secret.clone(), options.key, preshared);
        let keepalive = seconds.map(|seconds| Duration::from_secs(seconds.into()));
        Peer {
            handshake: Handshake::new(statics, identity, options.index),
            sessions: Sessions::default(),
            limiter: identity.limiter.clone(),
            any_source: false,
            keepalive,
            keepalive_at: keepalive.map(|keepalive| now + keepalive),
            authentic: 0,
            last_authentic: None,
            sent_unanswered: None,
            received_unanswered: None,
            rejected: 0,
            options,
        }
    }

    /// The index this end knows the peer by.
    pub fn index(&self) -> u32 {
        self.options.index
    }

    /// The peer's public key.
    pub fn key(&self) -> &[u8; 32] {
        &self.options.key
    }

    /// The addresses the peer's packets may come from.
    pub fn addresses(&self) -> &[Ipv6Addr] {
        &self.options.addresses
    }

    /// Changes the addresses the peer's packets may come from.
    pub fn set_addresses(&mut self, addresses: Vec<Ipv6Addr>) {
        self.options.addresses = addresses;
    }

    /// Whether packets can be sealed now.
    pub fn is_ready(&self) -> bool {
        self.sessions.is_ready()
    }

    /// Time since the keys in use were agreed.
    pub fn handshake_age(&self, now: Instant) -> Option<Duration> {
        let established = self.sessions.established()?;
        Some(now.saturating_duration_since(established))
    }

    /// Packets dropped because their source address was not the peer's.
    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    /// Whether it is greeted by itself and sent something when it was silent for long.
    pub fn keepalive(&self) -> bool {
        self.options.keepalive
    }

    /// Datagrams that only the peer can have sent, so far: where they come from is where it is.
    pub fn authentic(&self) -> u64 {
        self.authentic
    }

    /// When the last of them came.
    pub fn last_authentic(&self) -> Option<Instant> {
        self.last_authentic
    }

    /// Since when a handshake waits for its answer.
    pub fn unanswered_since(&self) -> Option<Instant> {
        self.handshake.attempt().map(|attempt| attempt.first)
    }

    /// Adds a packet, sealed, to a burst that is empty or has others that were added so. False when
    /// there are no keys yet. [`Peer::seal_burst`] is still to be called for the burst.
    pub fn seal_packet(&mut self, packet: &[u8], burst: &mut Burst) -> bool {
        let Some(session) = self.sessions.current() else {
            return false;
        };
        burst.push_sealed(packet, &mut |packet, room| session.seal(packet, room));
        true
    }

    /// Seals all packets of a burst that are not sealed yet. False when there are no keys: the burst is
    /// untouched then, and [`Peer::greet`] asks for keys.
    pub fn seal_burst(
        &mut self,
        burst: &mut Burst,
        now: Instant,
        replies: &mut Vec<Vec<u8>>,
    ) -> bool {
        self.sessions.expire(now);
        let Some(session) = self.sessions.current() else {
            return burst.is_sealed();
        };
        if !burst.is_sealed() {
            burst.seal_each(&mut |packet, room| session.seal(packet, room));
        }
        if !burst.is_empty() {
            let is_old = session.is_old_for_sending(now);
            self.received_unanswered = None;
            self.sent_unanswered.get_or_insert(now);
            if is_old {
                self.initiate_unless_under_way(now, replies);
            }
        }
        true
    }

    /// Seals bursts one behind the other, each after `before` has seen its packets, if they are not sealed
    /// yet. False when there are
    /// no keys yet: what is not sealed is untouched then.
    pub fn seal_in_order(
        &mut self,
        bursts: [&mut Burst; 2],
        now: Instant,
        replies: &mut Vec<Vec<u8>>,
        mut before: impl FnMut(&Burst),
    ) -> bool {
        self.sessions.expire(now);
        for burst in bursts {
            if burst.is_empty() {
                continue;
            }
            if self.is_ready() && !burst.is_sealed() {
                before(burst);
            }
            if !self.seal_burst(burst, now, replies) {
                return false;
            }
        }
        true
    }

    /// Opens datagrams of `segment` bytes (the last may be shorter) that lie side by side. Packets
    /// go to `opened`; what must be answered, to `replies`. True when a session began.
    pub fn open_burst(
        &mut self,
        data: &[u8],
        segment: usize,
        from: Option<IpAddr>,
        now: Instant,
        opened: &mut Opened,
        replies: &mut Vec<Vec<u8>>,
    ) -> bool {
        self.sessions.expire(now);
        let was_ready = self.is_ready();
        for datagram in data.chunks(segment.max(1)) {
            let is_authentic = match Message::parse(datagram) {
                Some(Message::Data(data)) => self.open(data, now, opened),
                Some(Message::CookieReply(reply)) => {
                    self.take_cookie(reply, now);
                    // It proves that somebody knows this end's key and saw its message, no more.
                    false
                }
                Some(message) => self.take_handshake(message, datagram, from, now, replies),
                None => false,
            };
            if is_authentic {
                self.authentic += 1;
                self.last_authentic = Some(now);
                self.sent_unanswered = None;
            } else {
                tracing::trace!(length = datagram.len(), "datagram proves nothing");
            }
        }
        let current = self.sessions.current();
        if current.is_some_and(|session| session.is_old_for_receiving(now)) {
            self.initiate_unless_under_way(now, replies);
        }
        self.is_ready() && !was_ready
    }

    /// Opens a data message. False when it is not authentic.
    fn open(&mut self, data: Data<'_>, now: Instant, opened: &mut Opened) -> bool {
        let room = opened.room(data.sealed.len());
        let Some((len, is_new_session)) = self.sessions.open(data, room) else {
            return false;
        };
        if is_new_session {
            self.handshake.rest();
        }
        if len == 0 {
            return true;
        }
        self.received_unanswered.get_or_insert(now);
        match source(&room[..len]) {
            Some((_, len)) if self.any_source => opened.keep(self.options.index, len),
            Some((IpAddr::V6(source), len)) if self.options.addresses.contains(&source) => {
                opened.keep(self.options.index, len);
            }
            other => {
                self.rejected += 1;
                let source = other.map(|(source, _)| source);
                tracing::debug!(
                    ?source,
                    "packet from an address that is not the peer's dropped"
                );
            }
        }
        true
    }

    /// Takes a message of a handshake. False when it is not authentic.
    fn take_handshake(
        &mut self,
        message: Message<'_>,
        datagram: &[u8],
        from: Option<IpAddr>,
        now: Instant,
        replies: &mut Vec<Vec<u8>>,
    ) -> bool {
        let mut cookie = [0; message::COOKIE_REPLY];
        match self.limiter.verify_packet(from, datagram, &mut cookie) {
            Ok(_) => {}
            Err(TunnResult::WriteToNetwork(reply)) => {
                replies.push(reply.to_vec());
                return false;
            }
            Err(_) => return false,
        }
        match message {
            Message::Initiation(initiation) => {
                let Some((session, answer)) =
                    self.handshake.answer(initiation, &self.sessions, now)
                else {
                    return false;
                };
                self.sessions.add(session);
                replies.push(answer);
                self.received_unanswered = None;
                true
            }
            Message::Response(response) => {
                let Some(session) = self.handshake.conclude(response, now) else {
                    return false;
                };
                tracing::debug!(index = self.options.index, "WireGuard keys agreed");
                self.sessions.add(session);
                // The peer uses the keys as soon as it knows that this end has them.
                self.send_empty(replies);
                true
            }
            Message::CookieReply(_) | Message::Data(_) => false,
        }
    }

    fn take_cookie(&mut self, reply: CookieReply<'_>, now: Instant) {
        if self.handshake.take_cookie(reply, now) {
            tracing::debug!("the peer is under load, and the next handshake carries its cookie");
        }
    }

    /// Starts a handshake if there are no keys and none is under way; `again` repeats one that is
    /// under way, for when a path has just appeared.
    pub fn greet(&mut self, again: bool, now: Instant, replies: &mut Vec<Vec<u8>>) {
        self.sessions.expire(now);
        let wanted = match self.handshake.attempt() {
            None => !self.is_ready(),
            Some(attempt) => again && now.duration_since(attempt.last) >= SHORTEST_RETRY,
        };
        if wanted {
            self.initiate(now, replies);
        }
    }

    fn initiate_unless_under_way(&mut self, now: Instant, replies: &mut Vec<Vec<u8>>) {
        if self.handshake.attempt().is_none() {
            self.initiate(now, replies);
        }
    }

    fn initiate(&mut self, now: Instant, replies: &mut Vec<Vec<u8>>) {
        replies.extend(self.handshake.initiate(&self.sessions, now));
        self.received_unanswered = None;
        self.sent_unanswered = None;
    }

    /// Sends an empty packet, if there are keys.
    fn send_empty(&mut self, replies: &mut Vec<Vec<u8>>) {
        let Some(session) = self.sessions.current() else {
            return;
        };
        let mut datagram = [0; OVERHEAD];
        if session.seal(&[], &mut datagram) {
            replies.push(datagram.to_vec());
            self.received_unanswered = None;
        }
    }

    /// When [`Peer::handle_timeout`] should be called next, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let retry = self.handshake.attempt().map(|attempt| attempt.next());
        let silence = self.sent_unanswered.map(|at| at + SILENCE);
        let answer = self.received_unanswered.map(|at| at + PASSIVE_KEEPALIVE);
        [
            (retry, "handshake retry"),
            (silence, "no answer"),
            (answer, "nothing to answer with"),
            (self.keepalive_at, "keepalive"),
            (self.sessions.next_end(), "end of a session"),
        ]
        .into_iter()
        .filter_map(|(at, why)| Some((at?, why)))
        .min_by_key(|(at, _)| *at)
    }

    /// Does what is due: keepalives, new keys, handshake retries.
    pub fn handle_timeout(&mut self, now: Instant, replies: &mut Vec<Vec<u8>>) {
        self.sessions.expire(now);
        self.retry(now, replies);
        if self.sent_unanswered.is_some_and(|at| at + SILENCE <= now) {
            self.sent_unanswered = None;
            self.initiate_unless_under_way(now, replies);
        }
        let answer = self.received_unanswered.map(|at| at + PASSIVE_KEEPALIVE);
        if answer.is_some_and(|at| at <= now) {
            self.received_unanswered = None;
            self.send_empty(replies);
        }
        if self.keepalive_at.is_some_and(|at| at <= now) {
            self.keepalive_at = Some(now + self.keepalive.unwrap_or(KEEPALIVE));
            if self.is_ready() {
                self.send_empty(replies);
            } else {
                self.initiate_unless_under_way(now, replies);
            }
        }
    }

    fn retry(&mut self, now: Instant, replies: &mut Vec<Vec<u8>>) {
        match self.handshake.attempt() {
            Some(attempt) if attempt.next() > now => {}
            Some(attempt) if self.options.keepalive || !attempt.is_old(now) => {
                self.initiate(now, replies);
            }
            Some(_) => self.handshake.rest(),
            None => {}
        }
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("index", &self.options.index)
            .field("ready", &self.is_ready())
            .field("attempt", &self.handshake.attempt())
            .finish_non_exhaustive()
    }
}
