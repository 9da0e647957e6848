//! What key exchange agrees on and derives (RFC 4253 §7 and §8, RFC 5656 §4, RFC 8731).

use ring::agreement::{self, EphemeralPrivateKey, UnparsedPublicKey};
use ring::digest::{Context, SHA256, digest};
use ring::rand::SecureRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use zeroize::Zeroizing;

use super::cipher::{Algorithm, IV, Opening, Sealing};
use super::codec::{Put, Reader};
use super::number;
use crate::Error;

/// The name of the host key's algorithm (RFC 8709).
const HOST_KEY: &str = "ssh-ed25519";
/// Ciphers here authenticate by themselves, but some clients insist on agreeing about this, too.
const MACS: &str = "hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com,hmac-sha2-256,\
                    hmac-sha2-512";
/// Says that sequence numbers start again with new keys, and that nothing but key exchange happens
/// before the first ones (OpenSSH's PROTOCOL §1.10): what each side says of itself.
const STRICT_SERVER: &str = "kex-strict-s-v00@openssh.com";
const STRICT_CLIENT: &[u8] = b"kex-strict-c-v00@openssh.com";

const WEAK: Error = Error::Ssh("the peer's public key of the key exchange is not valid");
const RANDOM: Error = Error::Ssh("this machine has no random numbers");

/// The key by which a client would know this server again.
pub(in crate::ssh) struct HostKey {
    pair: Ed25519KeyPair,
    public: Vec<u8>,
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostKey")
    }
}

impl HostKey {
    /// The key that follows from `seed`, always the same.
    pub(in crate::ssh) fn from_seed(seed: &[u8]) -> Result<Self, Error> {
        let secret = Zeroizing::new(digest(&SHA256, seed).as_ref().to_vec());
        let pair = Ed25519KeyPair::from_seed_unchecked(&secret)
            .map_err(|_| Error::Ssh("the seed of the host key makes no key"))?;
        let mut public = Vec::new();
        public
            .put_string(HOST_KEY)
            .put_string(pair.public_key().as_ref());
        Ok(Self { pair, public })
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let mut signature = Vec::new();
        signature
            .put_string(HOST_KEY)
            .put_string(self.pair.sign(message).as_ref());
        signature
    }
}

/// How a secret is agreed on; SHA-256 goes with all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    X25519,
    P256,
}

impl Method {
    const NAMES: [(&'static str, Self); 3] = [
        ("curve25519-sha256", Self::X25519),
        ("curve25519-sha256@libssh.org", Self::X25519),
        ("ecdh-sha2-nistp256", Self::P256),
    ];

    fn algorithm(self) -> &'static agreement::Algorithm {
        match self {
            Self::X25519 => &agreement::X25519,
            Self::P256 => &agreement::ECDH_P256,
        }
    }
}

/// The server's offer, a KEXINIT message (RFC 4253 §7.1).
pub(super) fn offer(random: &dyn SecureRandom) -> Result<Vec<u8>, Error> {
    let mut cookie = [0; 16];
    random.fill(&mut cookie).map_err(|_| RANDOM)?;
    let methods = Method::NAMES.map(|(name, _)| name).join(",");
    let ciphers = Algorithm::NAMES.map(|(name, _)| name).join(",");
    let mut out = Vec::new();
    out.put_byte(number::KEXINIT).put(&cookie);
    out.put_string(format!("{methods},{STRICT_SERVER}"))
        .put_string(HOST_KEY);
    for list in [&*ciphers, &*ciphers, MACS, MACS, "none", "none", "", ""] {
        out.put_string(list);
    }
    out.put_bool(false).put_u32(0);
    Ok(out)
}

/// What both sides agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) method: Method,
    /// From the client to the server.
    pub(super) incoming: Algorithm,
    /// From the server to the client.
    pub(super) outgoing: Algorithm,
    /// The client's next key exchange message was a wrong guess and is not for us.
    pub(super) skip_guess: bool,
    pub(super) strict: bool,
}

/// Chooses by the client's KEXINIT: of each list, the first that the server has, too.
pub(super) fn choose(theirs: &[u8]) -> Result<Choice, Error> {
    let mut reader = Reader::new(theirs);
    reader.take(17)?;
    let methods = reader.string()?;
    let host_keys = reader.string()?;
    let (incoming, outgoing) = (reader.string()?, reader.string()?);
    for _ in 0..6 {
        reader.string()?;
    }
    let guessed = reader.bool()?;
    let method = first(methods, &Method::NAMES).ok_or(Error::Ssh(
        "the client has no key exchange that is known here",
    ))?;
    if !names(host_keys).any(|name| name == HOST_KEY.as_bytes()) {
        return Err(Error::Ssh("the client does not know host keys of Ed25519"));
    }
    let cipher = |list| {
        first(list, &Algorithm::NAMES)
            .ok_or(Error::Ssh("the client has no cipher that is known here"))
    };
    let right = names(methods).next() == Some(Method::NAMES[0].0.as_bytes())
        && names(host_keys).next() == Some(HOST_KEY.as_bytes());
    Ok(Choice {
        method,
        incoming: cipher(incoming)?,
        outgoing: cipher(outgoing)?,
        skip_guess: guessed && !right,
        strict: names(methods).any(|name| name == STRICT_CLIENT),
    })
}

fn names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',')
}

fn first<T: Copy>(list: &[u8], known: &[(&str, T)]) -> Option<T> {
    names(list).find_map(|name| {
        let found = known.iter().find(|(known, _)| known.as_bytes() == name);
        found.map(|(_, value)| *value)
    })
}

/// What was said before the exchange, all of which its hash covers.
pub(super) struct Said<'a> {
    pub(super) client_version: &'a [u8],
    pub(super) server_version: &'a [u8],
    pub(super) client_offer: &'a [u8],
    pub(super) server_offer: &'a [u8],
}

/// What an exchange comes to.
pub(super) struct Agreed {
    /// The reply that the client needs.
    pub(super) reply: Vec<u8>,
    /// The hash; that of the first exchange names the session.
    pub(super) hash: [u8; 32],
    secret: Zeroizing<Vec<u8>>,
}

/// Answers a client's `KEX_ECDH_INIT`.
pub(super) fn agree(
    init: &[u8],
    method: Method,
    said: &Said<'_>,
    host_key: &HostKey,
    random: &dyn SecureRandom,
) -> Result<Agreed, Error> {
    let mut reader = Reader::new(init);
    reader.byte()?;
    let theirs = reader.string()?;
    let private = EphemeralPrivateKey::generate(method.algorithm(), random).map_err(|_| RANDOM)?;
    let public = private.compute_public_key().map_err(|_| RANDOM)?;
    let peer = UnparsedPublicKey::new(method.algorithm(), theirs);
    let secret = agreement::agree_ephemeral(private, &peer, |shared| {
        let mut secret = Zeroizing::new(Vec::with_capacity(40));
        secret.put_mpint(shared);
        secret
    })
    .map_err(|_| WEAK)?;

    let mut covered = Zeroizing::new(Vec::new());
    covered
        .put_string(said.client_version)
        .put_string(said.server_version)
        .put_string(said.client_offer)
        .put_string(said.server_offer)
        .put_string(&host_key.public)
        .put_string(theirs)
        .put_string(public.as_ref())
        .put(&secret);
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, &covered).as_ref());

    let mut reply = Vec::new();
    reply
        .put_byte(number::KEX_ECDH_REPLY)
        .put_string(&host_key.public)
        .put_string(public.as_ref())
        .put_string(host_key.sign(&hash));
    Ok(Agreed {
        reply,
        hash,
        secret,
    })
}

impl Agreed {
    /// The keys for both directions.
    pub(super) fn keys(
        &self,
        session: &[u8; 32],
        choice: Choice,
    ) -> Result<(Sealing, Opening), Error> {
        let iv = |letter| {
            let mut iv = [0; IV];
            iv.copy_from_slice(&self.derive(session, letter, IV));
            iv
        };
        let (incoming, outgoing) = (choice.incoming, choice.outgoing);
        let opening = Opening::new(
            incoming,
            &self.derive(session, b'C', incoming.key_len()),
            iv(b'A'),
        )?;
        let sealing = Sealing::new(
            outgoing,
            &self.derive(session, b'D', outgoing.key_len()),
            iv(b'B'),
        )?;
        Ok((sealing, opening))
    }

    /// RFC 4253 §7.2.
    fn derive(&self, session: &[u8; 32], letter: u8, length: usize) -> Zeroizing<Vec<u8>> {
        let mut key = Zeroizing::new(Vec::with_capacity(length + 32));
        while key.len() < length {
            let mut context = Context::new(&SHA256);
            context.update(&self.secret);
            context.update(&self.hash);
            if key.is_empty() {
                context.update(&[letter]);
                context.update(session);
            } else {
                context.update(&key);
            }
            let more = context.finish();
            key.extend_from_slice(more.as_ref());
        }
        key.truncate(length);
        key
    }
}

/// The client's side, for tests of the server's.
#[cfg(test)]
pub(super) mod client {
    use ring::signature::{ED25519, UnparsedPublicKey as Verifier};

    use super::*;

    pub(in crate::ssh::proto) struct Half {
        private: EphemeralPrivateKey,
        public: Vec<u8>,
    }

    impl Half {
        pub(in crate::ssh::proto) fn new(random: &dyn SecureRandom) -> Self {
            let private = EphemeralPrivateKey::generate(&agreement::X25519, random).unwrap();
            let public = private.compute_public_key().unwrap().as_ref().to_vec();
            Self { private, public }
        }

        pub(in crate::ssh::proto) fn init(&self) -> Vec<u8> {
            let mut out = vec![number::KEX_ECDH_INIT];
            out.put_string(&self.public);
            out
        }

        /// Checks the server's reply; gives the session's hash and the client's keys.
        pub(in crate::ssh::proto) fn finish(
            self,
            reply: &[u8],
            said: &Said<'_>,
            session: Option<[u8; 32]>,
            choice: Choice,
        ) -> ([u8; 32], Sealing, Opening) {
            let mut reader = Reader::new(reply);
            assert_eq!(reader.byte().unwrap(), number::KEX_ECDH_REPLY);
            let (host, theirs) = (reader.string().unwrap(), reader.string().unwrap());
            let mut signature = Reader::new(reader.string().unwrap());
            assert_eq!(signature.text().unwrap(), HOST_KEY);
            let peer = UnparsedPublicKey::new(&agreement::X25519, theirs);
            let mut secret = Zeroizing::new(Vec::new());
            agreement::agree_ephemeral(self.private, &peer, |shared| {
                secret.put_mpint(shared);
            })
            .unwrap();
            let mut covered = Vec::new();
            for part in [
                said.client_version,
                said.server_version,
                said.client_offer,
                said.server_offer,
                host,
                &self.public,
                theirs,
            ] {
                covered.put_string(part);
            }
            covered.put(&secret);
            let mut hash = [0; 32];
            hash.copy_from_slice(digest(&SHA256, &covered).as_ref());
            Verifier::new(&ED25519, &host[host.len() - 32..])
                .verify(&hash, signature.string().unwrap())
                .unwrap();
            let agreed = Agreed {
                reply: Vec::new(),
                hash,
                secret,
            };
            let session = session.unwrap_or(hash);
            let key = |letter, length| agreed.derive(&session, letter, length);
            let iv = |letter| key(letter, IV)[..].try_into().unwrap();
            let to = key(b'C', choice.incoming.key_len());
            let from = key(b'D', choice.outgoing.key_len());
            let sealing = Sealing::new(choice.incoming, &to, iv(b'A')).unwrap();
            let opening = Opening::new(choice.outgoing, &from, iv(b'B')).unwrap();
            (session, sealing, opening)
        }
    }
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;

    use super::*;

    fn init(methods: &str, keys: &str, ciphers: &str, guess: bool) -> Vec<u8> {
        let mut out = vec![number::KEXINIT; 17];
        out.put_string(methods).put_string(keys);
        for list in [ciphers, ciphers, "", "", "none", "none", "", ""] {
            out.put_string(list);
        }
        out.put_bool(guess).put_u32(0);
        out
    }

    #[test]
    fn the_clients_order_decides() {
        let ours = offer(&SystemRandom::new()).unwrap();
        assert_eq!(choose(&ours).unwrap().method, Method::X25519);
        let theirs = init(
            "unknown,ecdh-sha2-nistp256,curve25519-sha256,kex-strict-c-v00@openssh.com",
            "rsa-sha2-512,ssh-ed25519",
            "aes128-ctr,aes128-gcm@openssh.com,chacha20-poly1305@openssh.com",
            false,
        );
        let choice = choose(&theirs).unwrap();
        assert_eq!(choice.method, Method::P256);
        assert_eq!(choice.outgoing, Algorithm::Aes128Gcm);
        assert!(choice.strict && !choice.skip_guess);
    }

    #[test]
    fn a_wrong_guess_is_skipped_and_a_right_one_is_not() {
        let cipher = "aes256-gcm@openssh.com";
        let right = init("curve25519-sha256", "ssh-ed25519", cipher, true);
        assert!(!choose(&right).unwrap().skip_guess);
        let wrong = init("unknown,curve25519-sha256", "ssh-ed25519", cipher, true);
        assert!(choose(&wrong).unwrap().skip_guess);
    }

    #[test]
    fn without_anything_in_common_there_is_no_connection() {
        let cipher = "aes256-gcm@openssh.com";
        let kex = "curve25519-sha256";
        assert!(choose(&init("x", "ssh-ed25519", cipher, false)).is_err());
        assert!(choose(&init(kex, "ssh-rsa", cipher, false)).is_err());
        assert!(choose(&init(kex, "ssh-ed25519", "aes128-cbc", false)).is_err());
        assert!(choose(&init(kex, "ssh-ed25519", cipher, false)[..30]).is_err());
    }

    #[test]
    fn a_public_key_that_is_none_is_refused() {
        let said = Said {
            client_version: b"c",
            server_version: b"s",
            client_offer: b"",
            server_offer: b"",
        };
        let key = HostKey::from_seed(b"seed").unwrap();
        let random = SystemRandom::new();
        for (method, length) in [
            (Method::X25519, 31),
            (Method::X25519, 32),
            (Method::P256, 65),
        ] {
            let mut init = vec![number::KEX_ECDH_INIT];
            // All zeros is a point of small order on one curve and no point on the other.
            init.put_string(vec![0; length]);
            assert!(agree(&init, method, &said, &key, &random).is_err());
        }
    }

    #[test]
    fn the_host_key_follows_from_its_seed() {
        let [one, same, other] = ["a", "a", "b"].map(|seed| {
            let key = HostKey::from_seed(seed.as_bytes()).unwrap();
            key.public
        });
        assert_eq!(one, same);
        assert_ne!(one, other);
    }
}
