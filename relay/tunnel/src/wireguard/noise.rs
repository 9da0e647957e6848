//! The handshake of WireGuard, Noise_IKpsk2 (WireGuard paper, §5.4.2 to §5.4.5), as functions of keys,
//! messages, ephemeral secrets and timestamps: nothing here knows of time, retries or sessions.

use blake2::digest::{FixedOutput, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};
use boringtun::x25519::{PublicKey, SharedSecret, StaticSecret};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use hmac::SimpleHmac;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::message::{self, CookieReply, Initiation, Response};

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";

/// Seconds and nanoseconds, as TAI64N has them: later ones are greater as bytes.
pub(super) type Timestamp = [u8; 12];
pub(super) type Cookie = [u8; 16];
type Secret = Zeroizing<[u8; 32]>;

/// The keys of two ends, from the view of one of them.
pub(super) struct Statics {
    secret: StaticSecret,
    public: PublicKey,
    peer: PublicKey,
    shared: SharedSecret,
    preshared: Secret,
    mac1_key: [u8; 32],
    cookie_key: Secret,
}

/// The keys of a session, for one end.
pub(super) struct Keys {
    pub(super) sending: Secret,
    pub(super) receiving: Secret,
}

/// An initiator that waits for the response.
pub(super) struct Waiting {
    state: Symmetric,
    ephemeral: StaticSecret,
}

/// An initiation that its peer alone can have made, not answered yet.
pub(super) struct Received {
    state: Symmetric,
    ephemeral: PublicKey,
    sender: u32,
    pub(super) timestamp: Timestamp,
}

impl Statics {
    pub(super) fn new(secret: StaticSecret, peer: [u8; 32], preshared: Option<[u8; 32]>) -> Self {
        let peer = PublicKey::from(peer);
        Self {
            public: PublicKey::from(&secret),
            shared: secret.diffie_hellman(&peer),
            preshared: Zeroizing::new(preshared.unwrap_or_default()),
            mac1_key: hash(&[LABEL_MAC1, peer.as_bytes()]),
            cookie_key: Zeroizing::new(hash(&[LABEL_COOKIE, peer.as_bytes()])),
            secret,
            peer,
        }
    }

    /// The first message, without the second of its codes; `None` for a peer whose key no secret
    /// belongs to.
    pub(super) fn initiate(
        &self,
        index: u32,
        ephemeral: [u8; 32],
        timestamp: &Timestamp,
    ) -> Option<(Waiting, [u8; message::INITIATION])> {
        let mut state = Symmetric::towards(&self.peer);
        let ephemeral = StaticSecret::from(ephemeral);
        let public = PublicKey::from(&ephemeral);
        let mut message = [0; message::INITIATION];
        message[..4].copy_from_slice(&Initiation::TYPE);
        message[4..8].copy_from_slice(&index.to_le_bytes());
        message[8..40].copy_from_slice(public.as_bytes());
        state.mix_ephemeral(&public);
        let key = state.mix_shared(&ephemeral.diffie_hellman(&self.peer))?;
        state.seal(&key, self.public.as_bytes(), &mut message[40..88]);
        let key = state.mix_shared(&self.shared)?;
        state.seal(&key, timestamp, &mut message[88..116]);
        let mac = keyed(&self.mac1_key, &message[..116]);
        message[116..132].copy_from_slice(&mac);
        Some((Waiting { state, ephemeral }, message))
    }

    /// `None` where it was not made by this peer for this end.
    pub(super) fn receive(&self, initiation: Initiation<'_>) -> Option<Received> {
        let mut state = Symmetric::towards(&self.public);
        let ephemeral = PublicKey::from(initiation.ephemeral());
        state.mix_ephemeral(&ephemeral);
        let key = state.mix_shared(&self.secret.diffie_hellman(&ephemeral))?;
        let sender: [u8; 32] = state.open(&key, initiation.encrypted_static())?;
        if sender != self.peer.to_bytes() {
            return None;
        }
        let key = state.mix_shared(&self.shared)?;
        let timestamp = state.open(&key, initiation.encrypted_timestamp())?;
        Some(Received {
            state,
            ephemeral,
            sender: initiation.sender(),
            timestamp,
        })
    }

    /// The second message, without the second of its codes, and the session it begins.
    pub(super) fn respond(
        &self,
        received: Received,
        index: u32,
        ephemeral: [u8; 32],
    ) -> Option<(Keys, [u8; message::RESPONSE])> {
        let mut state = received.state;
        let ephemeral = StaticSecret::from(ephemeral);
        let public = PublicKey::from(&ephemeral);
        let mut message = [0; message::RESPONSE];
        message[..4].copy_from_slice(&Response::TYPE);
        message[4..8].copy_from_slice(&index.to_le_bytes());
        message[8..12].copy_from_slice(&received.sender.to_le_bytes());
        message[12..44].copy_from_slice(public.as_bytes());
        state.mix_ephemeral(&public);
        state.mix_shared(&ephemeral.diffie_hellman(&received.ephemeral))?;
        state.mix_shared(&ephemeral.diffie_hellman(&self.peer))?;
        let key = state.mix_preshared(&self.preshared);
        state.seal(&key, &[], &mut message[44..60]);
        let mac = keyed(&self.mac1_key, &message[..60]);
        message[60..76].copy_from_slice(&mac);
        let [receiving, sending] = state.split();
        Some((Keys { sending, receiving }, message))
    }

    /// The session that the answer to `waiting` begins; `None` where it is not the peer's answer.
    pub(super) fn finish(&self, waiting: &Waiting, response: Response<'_>) -> Option<Keys> {
        let mut state = waiting.state.clone();
        let ephemeral = PublicKey::from(response.ephemeral());
        state.mix_ephemeral(&ephemeral);
        state.mix_shared(&waiting.ephemeral.diffie_hellman(&ephemeral))?;
        state.mix_shared(&self.secret.diffie_hellman(&ephemeral))?;
        let key = state.mix_preshared(&self.preshared);
        let []: [u8; 0] = state.open(&key, response.encrypted_nothing())?;
        let [sending, receiving] = state.split();
        Some(Keys { sending, receiving })
    }

    /// The cookie in an answer to a message with this first code.
    pub(super) fn cookie(&self, reply: CookieReply<'_>, mac1: &[u8; 16]) -> Option<Cookie> {
        let cipher = XChaCha20Poly1305::new((&*self.cookie_key).into());
        let payload = Payload {
            msg: reply.encrypted_cookie(),
            aad: mac1,
        };
        let cookie = cipher.decrypt(&reply.nonce().into(), payload).ok()?;
        cookie.try_into().ok()
    }
}

/// The first of the two codes at the end of a handshake's message.
pub(super) fn mac1(message: &[u8]) -> [u8; 16] {
    let mut mac = [0; 16];
    mac.copy_from_slice(&message[message.len() - 32..message.len() - 16]);
    mac
}

/// Writes the second of the two codes, which proves to an end under load that its cookie arrived.
pub(super) fn write_mac2(message: &mut [u8], cookie: &Cookie) {
    let (covered, mac) = message.split_at_mut(message.len() - 16);
    mac.copy_from_slice(&keyed(cookie, covered));
}

/// What both ends have made of the handshake so far ("SymmetricState" of the Noise framework, §5.2).
#[derive(Clone)]
struct Symmetric {
    chain: Secret,
    hash: [u8; 32],
}

impl Symmetric {
    fn towards(responder: &PublicKey) -> Self {
        let chain = hash(&[CONSTRUCTION]);
        let start = hash(&[&chain, IDENTIFIER]);
        Self {
            chain: Zeroizing::new(chain),
            hash: hash(&[&start, responder.as_bytes()]),
        }
    }

    fn mix_hash(&mut self, bytes: &[u8]) {
        self.hash = hash(&[&self.hash, bytes]);
    }

    fn mix_ephemeral(&mut self, public: &PublicKey) {
        self.mix_hash(public.as_bytes());
        let [chain] = derive(&self.chain, public.as_bytes());
        self.chain = chain;
    }

    /// `None` where the other's key is such that the secret is known to everybody.
    fn mix_shared(&mut self, shared: &SharedSecret) -> Option<Secret> {
        if !shared.was_contributory() {
            return None;
        }
        let [chain, key] = derive(&self.chain, shared.as_bytes());
        self.chain = chain;
        Some(key)
    }

    fn mix_preshared(&mut self, preshared: &[u8; 32]) -> Secret {
        let [chain, mixed, key] = derive(&self.chain, preshared);
        self.chain = chain;
        self.mix_hash(&*mixed);
        key
    }

    fn seal(&mut self, key: &[u8; 32], plaintext: &[u8], into: &mut [u8]) {
        let (text, tag) = into.split_at_mut(plaintext.len());
        text.copy_from_slice(plaintext);
        let sealed =
            cipher(key).seal_in_place_separate_tag(first_nonce(), Aad::from(&self.hash), text);
        // It fails for texts of many gigabytes alone.
        tag.copy_from_slice(sealed.expect("a few bytes can be sealed").as_ref());
        self.mix_hash(into);
    }

    fn open<const N: usize>(&mut self, key: &[u8; 32], sealed: &[u8]) -> Option<[u8; N]> {
        let mut text = sealed.to_vec();
        let opened = cipher(key).open_in_place(first_nonce(), Aad::from(&self.hash), &mut text);
        let opened = <[u8; N]>::try_from(&*opened.ok()?).ok()?;
        self.mix_hash(sealed);
        Some(opened)
    }

    /// The initiator's sending key, and the responder's.
    fn split(self) -> [Secret; 2] {
        derive(&self.chain, &[])
    }
}

fn cipher(key: &[u8; 32]) -> LessSafeKey {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("a key has 32 bytes");
    LessSafeKey::new(key)
}

/// Each key of a handshake seals one message.
fn first_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    for part in parts {
        Digest::update(&mut hash, part);
    }
    hash.finalize().into()
}

/// The keyed hash that codes of messages are.
fn keyed(key: &[u8], message: &[u8]) -> [u8; 16] {
    let mut mac = <Blake2sMac<_> as blake2::digest::KeyInit>::new_from_slice(key)
        .expect("keys of 16 and 32 bytes are taken");
    Mac::update(&mut mac, message);
    FixedOutput::finalize_fixed(mac).into()
}

/// HKDF with HMAC of BLAKE2s (RFC 5869, without info).
fn derive<const N: usize>(chain: &[u8; 32], input: &[u8]) -> [Secret; N] {
    let key = hmac(chain, &[input]);
    let mut last = Zeroizing::new([0; 32]);
    std::array::from_fn(|place| {
        let number = [place as u8 + 1];
        last = if place == 0 {
            hmac(&key, &[&number])
        } else {
            hmac(&key, &[&*last, &number])
        };
        last.clone()
    })
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Secret {
    let mut hmac = <SimpleHmac<Blake2s256> as blake2::digest::KeyInit>::new_from_slice(key)
        .expect("keys of any length are taken");
    for part in parts {
        Mac::update(&mut hmac, part);
    }
    Zeroizing::new(hmac.finalize_fixed().into())
}
