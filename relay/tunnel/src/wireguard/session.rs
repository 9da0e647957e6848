//! The keys that two ends have agreed, and the messages sealed with them (WireGuard paper, §5.4.6, §6).

use std::time::{Duration, Instant};

use relay_aead::{Key, TAG};

use super::Cipher;
use super::message::{DATA_HEAD, Data};
use super::noise::Keys;
use super::window::Window;

/// The age from which the end that began a session asks for new keys, when it sends.
const REKEY_AFTER: Duration = Duration::from_secs(120);
/// The age from which it does so when it only receives: in time for the answer.
const REKEY_BEFORE_REJECT: Duration = Duration::from_secs(165);
/// The age from which keys are used no more.
const REJECT_AFTER: Duration = Duration::from_secs(180);
const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// Sessions of one peer that are kept: those that crossing and repeated handshakes begin.
const KEPT: usize = 4;

/// The sessions with one peer.
#[derive(Default)]
pub(super) struct Sessions {
    /// The newest last.
    all: Vec<Session>,
    /// The number of the one that is sealed with.
    current: Option<u32>,
}

impl Sessions {
    /// The one that is sealed with.
    pub(super) fn current(&mut self) -> Option<&mut Session> {
        let local = self.current?;
        self.all.iter_mut().find(|session| session.local == local)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.current.is_some()
    }

    /// Whether this end's number is one of theirs.
    pub(super) fn has(&self, local: u32) -> bool {
        self.all.iter().any(|session| session.local == local)
    }

    /// When the keys in use were agreed.
    pub(super) fn established(&self) -> Option<Instant> {
        let current = self
            .all
            .iter()
            .find(|one| Some(one.local) == self.current)?;
        Some(current.established)
    }

    /// Takes one more. The peer of an initiator has its keys already; that of a responder may not, and
    /// proves by a message that it has.
    pub(super) fn add(&mut self, session: Session) {
        if session.is_initiator {
            self.current = Some(session.local);
        }
        debug_assert!(!self.has(session.local), "each has its own number");
        self.all.push(session);
        if self.all.len() > KEPT {
            let is_spare = |session: &Session| Some(session.local) != self.current;
            if let Some(oldest) = self.all.iter().position(is_spare) {
                self.all.remove(oldest);
            }
        }
    }

    /// Opens a message into `packet`, and gives the length. True beside it when these keys are those to
    /// seal with from now on. `None` for what was sealed with no key of these, or was there before.
    pub(super) fn open(&mut self, data: Data<'_>, packet: &mut [u8]) -> Option<(usize, bool)> {
        let session = self.all.iter_mut().find(|one| one.local == data.receiver)?;
        let len = session.open(data, packet)?;
        if self.current == Some(data.receiver) {
            return Some((len, false));
        }
        let established = session.established;
        let is_newest = self
            .established()
            .is_none_or(|current| established >= current);
        if is_newest {
            self.current = Some(data.receiver);
        }
        Some((len, is_newest))
    }

    /// Forgets those that are too old to be used.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.next_end().is_some_and(|end| end <= now) {
            self.all.retain(|session| session.end() > now);
            self.current = self
                .current
                .filter(|local| self.all.iter().any(|one| one.local == *local));
        }
    }

    /// When the oldest is too old.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.all.iter().map(Session::end).min()
    }
}

/// One pair of keys, in use or about to be.
pub(super) struct Session {
    /// This end's number for it, and the peer's.
    local: u32,
    remote: u32,
    sending: Key,
    receiving: Key,
    /// Of the next message.
    counter: u64,
    window: Box<Window>,
    established: Instant,
    /// This end began the handshake.
    is_initiator: bool,
}

impl Session {
    pub(super) fn new(
        [local, remote]: [u32; 2],
        keys: &Keys,
        cipher: Cipher,
        is_initiator: bool,
        now: Instant,
    ) -> Self {
        Self {
            local,
            remote,
            sending: Key::with(&keys.sending, cipher),
            receiving: Key::with(&keys.receiving, cipher),
            counter: 0,
            window: Box::default(),
            established: now,
            is_initiator,
        }
    }

    fn end(&self) -> Instant {
        self.established + REJECT_AFTER
    }

    /// Whether new keys should be asked for, now that a message was sent.
    pub(super) fn is_old_for_sending(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.established);
        self.counter >= REKEY_AFTER_MESSAGES || (self.is_initiator && age >= REKEY_AFTER)
    }

    /// The same, now that one was received.
    pub(super) fn is_old_for_receiving(&self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.established);
        self.is_initiator && age >= REKEY_BEFORE_REJECT
    }

    /// Makes the datagram of a packet: `datagram` is longer by [`super::OVERHEAD`]. False when as much
    /// was sealed as these keys may seal.
    pub(super) fn seal(&mut self, packet: &[u8], datagram: &mut [u8]) -> bool {
        if self.counter >= REJECT_AFTER_MESSAGES {
            return false;
        }
        let (head, sealed) = datagram.split_at_mut(DATA_HEAD);
        head.copy_from_slice(&Data::head(self.remote, self.counter));
        self.sending.seal(self.counter, packet, sealed);
        self.counter += 1;
        true
    }

    /// Opens a message into `packet`, and gives the length; `None` for one that was changed, or was
    /// opened before.
    fn open(&mut self, data: Data<'_>, packet: &mut [u8]) -> Option<usize> {
        if data.counter >= REJECT_AFTER_MESSAGES || !self.window.is_new(data.counter) {
            return None;
        }
        let len = data.sealed.len() - TAG;
        if !self
            .receiving
            .open(data.counter, data.sealed, &mut packet[..len])
        {
            return None;
        }
        self.window.note(data.counter);
        Some(len)
    }
}
