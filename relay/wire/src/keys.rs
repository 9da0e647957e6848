//! X25519 keys of nodes (WireGuard, DERP) and of disco, their text and binary forms, and the NaCl boxes between two of
//! them. Source: coder_wire.md §7.1; the box is X25519 + XSalsa20-Poly1305 with the 16-byte tag first.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use crypto_box::aead::Aead as _;
use rand::RngCore;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{Error, Result};

/// Bytes of a nonce of a box.
pub const NONCE_LEN: usize = 24;
/// Bytes a box is longer than its content.
pub const TAG_LEN: usize = 16;
/// What a node key starts with in its binary form.
const NODE_BINARY_PREFIX: &[u8; 2] = b"np";

macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 32]);

        impl $name {
            /// What the text form starts with.
            pub const PREFIX: &'static str = $prefix;

            /// The key of these bytes.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The key's bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// True for the all-zero key, which stands for "none" on the wire.
            pub fn is_zero(&self) -> bool {
                self.0 == [0; 32]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.short())
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                let digits = text.strip_prefix($prefix).ok_or(Error::KeyText($prefix))?;
                let mut bytes = [0; 32];
                hex::decode_to_slice(digits, &mut bytes).map_err(|_| Error::KeyText($prefix))?;
                Ok(Self(bytes))
            }
        }
    };
}

macro_rules! private_key {
    ($(#[$doc:meta])* $name:ident, $public:ident) => {
        $(#[$doc])*
        #[derive(Clone, Zeroize, ZeroizeOnDrop)]
        pub struct $name([u8; 32]);

        impl $name {
            /// A fresh key.
            pub fn generate(rng: &mut impl RngCore) -> Self {
                let mut bytes = Zeroizing::new([0; 32]);
                rng.fill_bytes(&mut *bytes);
                Self::from_bytes(*bytes)
            }

            /// The key of these bytes, clamped as X25519 wants it.
            pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
                bytes[0] &= 248;
                bytes[31] = bytes[31] & 127 | 64;
                let key = Self(bytes);
                bytes.zeroize();
                key
            }

            /// The (clamped) bytes. They are a secret.
            pub fn to_bytes(&self) -> [u8; 32] {
                self.0
            }

            /// The public half.
            pub fn public(&self) -> $public {
                let secret = x25519_dalek::StaticSecret::from(self.0);
                $public(x25519_dalek::PublicKey::from(&secret).to_bytes())
            }

            /// The box between this key and another's public half. Making it costs a Diffie-Hellman: keep it.
            pub fn shared(&self, peer: &$public) -> SharedBox {
                SharedBox::new(&self.0, &peer.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(secret)"))
            }
        }
    };
}

public_key!(
    /// A node's public key: its identity in WireGuard and on relays. Text form `nodekey:` + 64 hex digits.
    NodePublic,
    "nodekey:"
);
public_key!(
    /// The public key that disco messages are sealed to. Text form `discokey:` + 64 hex digits.
    DiscoPublic,
    "discokey:"
);
private_key!(
    /// A node's private key. Never shown: its `Debug` form holds nothing of it.
    NodePrivate,
    NodePublic
);
private_key!(
    /// The private key of disco messages. Never shown: its `Debug` form holds nothing of it.
    DiscoPrivate,
    DiscoPublic
);

impl NodePublic {
    /// Binary form of node descriptions: `np` and the 32 bytes.
    pub fn to_wire(&self) -> [u8; 34] {
        let mut wire = [0; 34];
        wire[..2].copy_from_slice(NODE_BINARY_PREFIX);
        wire[2..].copy_from_slice(&self.0);
        wire
    }

    /// Reads the binary form.
    pub fn from_wire(wire: &[u8]) -> Result<Self> {
        wire.strip_prefix(NODE_BINARY_PREFIX)
            .and_then(|key| key.try_into().ok())
            .map(Self)
            .ok_or(Error::Not("a node key of 34 bytes"))
    }

    /// The 64 hex digits alone, as in the `Derp-Public-Key` header.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Reads 64 hex digits.
    pub fn from_hex(digits: &str) -> Result<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| Error::KeyText(""))?;
        Ok(Self(bytes))
    }

    /// Short form for logs: `[` + 5 characters of base64 + `]`.
    pub fn short(&self) -> String {
        let text = base64::engine::general_purpose::STANDARD.encode(self.0);
        format!("[{}]", &text[..5])
    }
}

impl DiscoPublic {
    /// Short form for logs: `d:` + 16 hex digits.
    pub fn short(&self) -> String {
        format!("d:{}", hex::encode(&self.0[..8]))
    }
}

impl NodePrivate {
    /// What the text form starts with.
    pub const PREFIX: &'static str = "privkey:";

    /// Text form, for key files. It is a secret.
    pub fn to_text(&self) -> Zeroizing<String> {
        let digits = Zeroizing::new(hex::encode(self.0));
        Zeroizing::new(format!("{}{}", Self::PREFIX, *digits))
    }
}

impl FromStr for NodePrivate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = text
            .strip_prefix(Self::PREFIX)
            .ok_or(Error::KeyText(Self::PREFIX))?;
        let mut bytes = Zeroizing::new([0; 32]);
        hex::decode_to_slice(digits, &mut *bytes).map_err(|_| Error::KeyText(Self::PREFIX))?;
        Ok(Self::from_bytes(*bytes))
    }
}

/// The precomputed NaCl box between two keys: seals and opens in both directions.
pub struct SharedBox(crypto_box::SalsaBox);

impl SharedBox {
    fn new(private: &[u8; 32], public: &[u8; 32]) -> Self {
        let private = crypto_box::SecretKey::from_bytes(*private);
        Self(crypto_box::SalsaBox::new(
            &crypto_box::PublicKey::from_bytes(*public),
            &private,
        ))
    }

    /// Tag and ciphertext. A nonce must never be used twice for the same pair of keys: draw it at random.
    pub fn seal(&self, nonce: &[u8; NONCE_LEN], content: &[u8]) -> Vec<u8> {
        // Sealing fails only for more than 2^38 bytes, which no caller has in memory.
        self.0
            .encrypt(&(*nonce).into(), content)
            .unwrap_or_default()
    }

    /// The content, when it was sealed by one of the two keys and not changed.
    pub fn open(&self, nonce: &[u8; NONCE_LEN], sealed: &[u8]) -> Result<Vec<u8>> {
        self.0
            .decrypt(&(*nonce).into(), sealed)
            .map_err(|_| Error::Sealed("a message"))
    }
}

impl fmt::Debug for SharedBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedBox(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn private(seed: u8) -> NodePrivate {
        NodePrivate::from_bytes([seed; 32])
    }

    #[test]
    fn a_box_opens_at_the_other_side_only() {
        let (ours, theirs, other) = (private(1), private(2), private(3));
        let sealed = ours.shared(&theirs.public()).seal(&[9; 24], b"hello");
        assert_eq!(sealed.len(), 5 + TAG_LEN);
        let opened = theirs.shared(&ours.public()).open(&[9; 24], &sealed);
        assert_eq!(opened.as_deref(), Ok(&b"hello"[..]));
        assert!(
            other
                .shared(&ours.public())
                .open(&[9; 24], &sealed)
                .is_err()
        );
        assert!(
            theirs
                .shared(&ours.public())
                .open(&[8; 24], &sealed)
                .is_err()
        );
    }

    #[test]
    fn text_forms_round_trip() {
        let key = private(7);
        let public = key.public();
        assert_eq!(public.to_string().parse(), Ok(public));
        assert_eq!(NodePublic::from_wire(&public.to_wire()), Ok(public));
        assert_eq!(NodePublic::from_hex(&public.to_hex()), Ok(public));
        let read: NodePrivate = key.to_text().parse().expect("own text form");
        assert_eq!(read.to_bytes(), key.to_bytes());
    }

    #[test]
    fn debug_forms_show_no_secret() {
        let digits = hex::encode(private(7).to_bytes());
        let shown = format!(
            "{:?} {:?}",
            private(7),
            private(7).shared(&private(8).public())
        );
        assert!(!shown.contains(&digits) && !shown.contains('7'), "{shown}");
    }

    #[test]
    fn a_node_key_of_another_form_is_refused() {
        let public = private(7).public();
        assert!(NodePublic::from_wire(public.as_bytes()).is_err());
        assert!(NodePublic::from_wire(&[]).is_err());
        assert!(public.to_string().parse::<DiscoPublic>().is_err());
    }
}
