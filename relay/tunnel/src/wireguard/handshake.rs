//! Handshakes with one peer: the attempts of this end and their pace, answers to those of the peer, and
//! cookies (WireGuard paper, §5.3, §6.4 to §6.6).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::message::{CookieReply, Initiation, Response};
use super::noise::{self, Cookie, Statics, Timestamp, Waiting};
use super::session::{Session, Sessions};
use super::{Cipher, Clock, Draw, Identity};

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
/// Attempts whose answer is still taken: on a long path it is under way when the next is made.
const AWAITED: usize = 4;
/// How long an end that asked for a cookie takes it.
const COOKIE_LASTS: Duration = Duration::from_secs(120);

pub(super) struct Handshake {
    statics: Statics,
    clock: Clock,
    draw: Draw,
    cipher: Cipher,
    /// This end's number for the peer, in the upper 24 bits of its numbers for sessions.
    index: u32,
    /// Sessions and attempts so far, which the lower eight bits count.
    count: u8,
    awaited: VecDeque<(u32, Waiting)>,
    attempt: Option<Attempt>,
    /// Of the newest initiation that was answered: older ones are recordings.
    answered: Timestamp,
    cookie: Option<(Cookie, Instant)>,
    /// The number in the last message sent, and its code, which a cookie is bound to.
    last_sent: Option<(u32, [u8; 16])>,
}

/// Initiations that wait for their answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    pub(super) first: Instant,
    pub(super) last: Instant,
    count: usize,
}

impl Attempt {
    pub(super) fn is_old(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.first) >= GIVE_UP
    }

    /// When the next is made, if nothing comes.
    pub(super) fn next(&self) -> Instant {
        if self.is_old(self.last) {
            return self.last + super::peer::KEEPALIVE;
        }
        self.last + RETRIES[(self.count - 1).min(RETRIES.len() - 1)]
    }
}

impl Handshake {
    /// With what `identity` has; `index` is this end's number for the peer.
    pub(super) fn new(statics: Statics, identity: &Identity, index: u32) -> Self {
        Self {
            statics,
            clock: identity.clock,
            draw: identity.draw,
            cipher: identity.cipher,
            index,
            count: 0,
            awaited: VecDeque::new(),
            attempt: None,
            answered: Timestamp::default(),
            cookie: None,
            last_sent: None,
        }
    }

    /// What waits for its answer.
    pub(super) fn attempt(&self) -> Option<Attempt> {
        self.attempt
    }

    /// No more attempts; the answer to an earlier one is still taken.
    pub(super) fn rest(&mut self) {
        self.attempt = None;
    }

    /// The first message of a handshake; `sessions` are those with this peer.
    pub(super) fn initiate(&mut self, sessions: &Sessions, now: Instant) -> Option<Vec<u8>> {
        let index = self.next_index(sessions);
        let (waiting, mut message) =
            self.statics
                .initiate(index, (self.draw)(), &self.clock.timestamp(now))?;
        if self.awaited.len() == AWAITED {
            self.awaited.pop_front();
        }
        self.awaited.push_back((index, waiting));
        let attempt = self.attempt.get_or_insert(Attempt {
            first: now,
            last: now,
            count: 0,
        });
        attempt.last = now;
        attempt.count += 1;
        self.finish_message(index, &mut message, now);
        Some(message.to_vec())
    }

    /// The session that the peer's first message asks for, and the answer.
    pub(super) fn answer(
        &mut self,
        initiation: Initiation<'_>,
        sessions: &Sessions,
        now: Instant,
    ) -> Option<(Session, Vec<u8>)> {
        let received = self.statics.receive(initiation)?;
        if received.timestamp <= self.answered {
            return None;
        }
        let timestamp = received.timestamp;
        let index = self.next_index(sessions);
        let sender = initiation.sender();
        let (keys, mut message) = self.statics.respond(received, index, (self.draw)())?;
        self.answered = timestamp;
        self.finish_message(index, &mut message, now);
        let session = Session::new([index, sender], &keys, self.cipher, false, now);
        Some((session, message.to_vec()))
    }

    /// The session that an answer of the peer begins.
    pub(super) fn conclude(&mut self, response: Response<'_>, now: Instant) -> Option<Session> {
        let receiver = response.receiver();
        let (_, waiting) = self.awaited.iter().find(|(index, _)| *index == receiver)?;
        let keys = self.statics.finish(waiting, response)?;
        self.awaited.clear();
        self.attempt = None;
        let indexes = [receiver, response.sender()];
        Some(Session::new(indexes, &keys, self.cipher, true, now))
    }

    /// Keeps a cookie for the next message. False when it is none for the last message.
    pub(super) fn take_cookie(&mut self, reply: CookieReply<'_>, now: Instant) -> bool {
        let cookie = self
            .last_sent
            .filter(|(index, _)| *index == reply.receiver())
            .and_then(|(_, mac1)| self.statics.cookie(reply, &mac1));
        self.cookie = cookie.map(|cookie| (cookie, now)).or(self.cookie);
        cookie.is_some()
    }

    /// A number that is not in use: those of a peer come again after 256.
    fn next_index(&mut self, sessions: &Sessions) -> u32 {
        loop {
            self.count = self.count.wrapping_add(1);
            let index = self.index << 8 | u32::from(self.count);
            let is_awaited = self.awaited.iter().any(|(awaited, _)| *awaited == index);
            // Few sessions and attempts are kept, so that one is found.
            if !is_awaited && !sessions.has(index) {
                return index;
            }
        }
    }

    fn finish_message(&mut self, index: u32, message: &mut [u8], now: Instant) {
        self.last_sent = Some((index, noise::mac1(message)));
        let is_fresh = |at: &Instant| now.saturating_duration_since(*at) < COOKIE_LASTS;
        if let Some((cookie, _)) = self.cookie.as_ref().filter(|(_, at)| is_fresh(at)) {
            noise::write_mac2(message, cookie);
        }
    }
}
