//! One WireGuard peer: keys, handshake, timers and the check that a packet comes from an address
//! of its sender. boringtun does the cryptography; retries and the pace of timers are decided here.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;

use super::{Burst, Identity, Opened};

/// Bytes of the largest handshake message.
pub(super) const LARGEST_HANDSHAKE: usize = 148;

/// How often boringtun looks at its clock while packets flow.
const TICK: Duration = Duration::from_millis(250);
/// After this much silence no timer but the keepalive's can fire.
const QUIET: Duration = Duration::from_secs(16);
/// The pace of keepalives, and of attempts that nobody answered for long.
const KEEPALIVE_SECONDS: u16 = 25;
const KEEPALIVE: Duration = Duration::from_secs(KEEPALIVE_SECONDS as u64);
/// Waits between the first attempts of a handshake: a lost first message should not cost the five
/// seconds of the standard. The last value goes on.
const RETRIES: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];
/// After this long without an answer, attempts come at the pace of keepalives.
const GIVE_UP: Duration = Duration::from_secs(90);
/// The shortest pause between two first messages of a handshake to one peer.
const SHORTEST_RETRY: Duration = Duration::from_millis(100);

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
    tunn: Box<Tunn>,
    options: PeerOptions,
    /// The source addresses of its packets are checked by whoever gets them.
    any_source: bool,
    keepalive: Option<Duration>,
    /// Datagrams that only the peer can have sent, and when the last came.
    authentic: u64,
    last_authentic: Option<Instant>,
    /// A session exists, so packets can be sealed.
    ready: bool,
    handshake: Option<Attempt>,
    last_tick: Instant,
    last_activity: Option<Instant>,
    keepalive_at: Option<Instant>,
    rejected: u64,
}

/// A handshake that waits for its answer.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    first: Instant,
    last: Instant,
    count: usize,
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
        let tunn = Tunn::new(
            identity.secret.clone(),
            x25519::PublicKey::from(options.key),
            preshared,
            seconds,
            options.index,
            Some(identity.limiter.clone()),
        );
        let keepalive = seconds.map(|seconds| Duration::from_secs(seconds.into()));
        Peer {
            tunn: Box::new(tunn),
            any_source: false,
            keepalive,
            authentic: 0,
            last_authentic: None,
            ready: false,
            handshake: None,
            last_tick: now,
            last_activity: None,
            keepalive_at: keepalive.map(|keepalive| now + keepalive),
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
        self.ready
    }

    /// Time since the keys in use were agreed.
    pub fn handshake_age(&self) -> Option<Duration> {
        self.tunn.time_since_last_handshake()
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
        self.handshake.map(|attempt| attempt.first)
    }

    /// Seals all packets of a burst. False when there are no keys yet: the burst is untouched then,
    /// and [`Peer::greet`] asks for keys.
    pub fn seal_burst(
        &mut self,
        burst: &mut Burst,
        now: Instant,
        replies: &mut Vec<Vec<u8>>,
    ) -> bool {
        self.catch_up(now, replies);
        if !self.ready {
            return false;
        }
        self.last_activity = Some(now);
        let tunn = &mut self.tunn;
        burst.seal_each(&mut |packet, room| {
            matches!(
                tunn.encapsulate(packet, room),
                TunnResult::WriteToNetwork(_)
            )
        });
        true
    }

    /// Seals bursts one behind the other, each after `before` has seen its packets. False when there are
    /// no keys yet: what is not sealed is untouched then.
    pub fn seal_in_order(
        &mut self,
        bursts: [&mut Burst; 2],
        now: Instant,
        replies: &mut Vec<Vec<u8>>,
        mut before: impl FnMut(&Burst),
    ) -> bool {
        self.catch_up(now, replies);
        for burst in bursts {
            if burst.is_empty() {
                continue;
            }
            if self.ready {
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
        self.catch_up(now, replies);
        let (was_ready, authentic) = (self.ready, self.authentic);
        for datagram in data.chunks(segment.max(1)) {
            self.open(datagram, from, opened, replies);
        }
        if self.authentic > authentic {
            self.last_authentic = Some(now);
        }
        self.last_activity = Some(now);
        if !self.ready {
            self.ready = self.tunn.time_since_last_handshake().is_some();
        }
        self.ready && !was_ready
    }

    fn open(
        &mut self,
        datagram: &[u8],
        from: Option<IpAddr>,
        opened: &mut Opened,
        replies: &mut Vec<Vec<u8>>,
    ) {
        let result = self
            .tunn
            .decapsulate(from, datagram, opened.room(datagram.len()));
        self.authentic += u64::from(is_authentic(datagram, &result));
        match result {
            TunnResult::Done => {}
            TunnResult::WriteToTunnelV6(packet, source) => {
                if self.any_source || self.options.addresses.contains(&source) {
                    let len = packet.len();
                    opened.keep(self.options.index, len);
                } else {
                    self.rejected += 1;
                    tracing::debug!(%source, "packet from an address that is not the peer's dropped");
                }
            }
            TunnResult::WriteToTunnelV4(packet, _) if self.any_source => {
                let len = packet.len();
                opened.keep(self.options.index, len);
            }
            TunnResult::WriteToTunnelV4(..) => self.rejected += 1,
            TunnResult::WriteToNetwork(reply) => {
                replies.push(reply.to_vec());
                if is_response(datagram) {
                    tracing::debug!(index = self.options.index, "WireGuard keys agreed");
                    self.handshake = None;
                    self.ready = true;
                }
                let mut room = [0; LARGEST_HANDSHAKE + super::OVERHEAD];
                while let TunnResult::WriteToNetwork(reply) =
                    self.tunn.decapsulate(None, &[], &mut room)
                {
                    replies.push(reply.to_vec());
                }
            }
            TunnResult::Err(error) => tracing::debug!(?error, "WireGuard datagram not taken"),
        }
    }

    /// Starts a handshake if there are no keys and none is under way; `again` repeats one that is
    /// under way, for when a path has just appeared.
    pub fn greet(&mut self, again: bool, now: Instant, replies: &mut Vec<Vec<u8>>) {
        let wanted = match self.handshake {
            None => !self.ready,
            Some(attempt) => again && now.duration_since(attempt.last) >= SHORTEST_RETRY,
        };
        if wanted {
            self.catch_up(now, replies);
            self.initiate(now, replies);
        }
    }

    fn initiate(&mut self, now: Instant, replies: &mut Vec<Vec<u8>>) {
        let mut room = [0; LARGEST_HANDSHAKE];
        let message = self.tunn.format_handshake_initiation(&mut room, true);
        if let TunnResult::WriteToNetwork(message) = message {
            replies.push(message.to_vec());
            self.note_attempt(now);
        }
    }

    fn note_attempt(&mut self, now: Instant) {
        let attempt = self.handshake.get_or_insert(Attempt {
            first: now,
            last: now,
            count: 0,
        });
        attempt.last = now;
        attempt.count += 1;
    }

    /// When [`Peer::handle_timeout`] should be called next, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let retry = self
            .handshake
            .map(|attempt| (attempt.next(), "handshake retry"));
        let active = self
            .last_activity
            .filter(|at| self.last_tick.saturating_duration_since(*at) < QUIET)
            .map(|_| (self.last_tick + TICK, "WireGuard timers"));
        let keepalive = self.keepalive_at.map(|at| (at, "keepalive"));
        [retry, active, keepalive]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at)
    }

    /// Does what is due: keepalives, new keys, handshake retries.
    pub fn handle_timeout(&mut self, now: Instant, replies: &mut Vec<Vec<u8>>) {
        let due = self.poll_timeout().is_some_and(|(at, _)| at <= now);
        if !due {
            return;
        }
        self.tick(now, replies);
        if self.handshake.is_some_and(|attempt| attempt.next() <= now) {
            if self.options.keepalive || self.handshake.is_some_and(|attempt| !attempt.is_old(now))
            {
                self.initiate(now, replies);
            } else {
                self.handshake = None;
            }
        }
    }

    /// boringtun reads its clock only when its timers run, so they run before anything that comes
    /// after a pause.
    fn catch_up(&mut self, now: Instant, replies: &mut Vec<Vec<u8>>) {
        if now.saturating_duration_since(self.last_tick) >= TICK {
            self.tick(now, replies);
        }
    }

    fn tick(&mut self, now: Instant, replies: &mut Vec<Vec<u8>>) {
        self.last_tick = now;
        if self.keepalive_at.is_some_and(|at| at <= now) {
            // A little later than boringtun's own, so that its is due when this one is.
            let pace = self.keepalive.unwrap_or(KEEPALIVE);
            self.keepalive_at = Some(now + pace + Duration::from_millis(20));
        }
        let mut room = [0; LARGEST_HANDSHAKE];
        match self.tunn.update_timers(&mut room) {
            TunnResult::WriteToNetwork(message) => {
                if is_initiation(message) {
                    self.note_attempt(now);
                }
                replies.push(message.to_vec());
            }
            TunnResult::Err(_) if self.options.keepalive && self.handshake.is_none() => {
                self.initiate(now, replies);
            }
            _ => {}
        }
        self.ready = self.tunn.time_since_last_handshake().is_some();
    }
}

impl Attempt {
    fn is_old(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.first) >= GIVE_UP
    }

    fn next(&self) -> Instant {
        if self.is_old(self.last) {
            return self.last + KEEPALIVE;
        }
        self.last + RETRIES[(self.count - 1).min(RETRIES.len() - 1)]
    }
}

/// Whether a datagram that was opened so has proven that the peer sent it. A cookie, sent or taken,
/// proves nothing.
fn is_authentic(datagram: &[u8], result: &TunnResult<'_>) -> bool {
    const COOKIE: Option<&u8> = Some(&3);
    match result {
        TunnResult::Err(_) => false,
        TunnResult::WriteToNetwork(reply) => reply.first() != COOKIE,
        TunnResult::Done => datagram.first() != COOKIE,
        TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => true,
    }
}

fn is_initiation(message: &[u8]) -> bool {
    message.first() == Some(&1)
}

fn is_response(message: &[u8]) -> bool {
    message.first() == Some(&2)
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("index", &self.options.index)
            .field("ready", &self.ready)
            .field("handshake", &self.handshake)
            .finish_non_exhaustive()
    }
}
