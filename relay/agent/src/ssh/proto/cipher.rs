//! Packets, encrypted and authenticated: `chacha20-poly1305@openssh.com` (OpenSSH's
//! PROTOCOL.chacha20poly1305) and AES-GCM (RFC 5647, with the names of OpenSSH's PROTOCOL §1.6).

use ring::aead::chacha20_poly1305_openssh as chacha;
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::Error;

/// Of every cipher here, bytes.
pub(super) const TAG: usize = 16;
/// The length field, bytes.
pub(super) const LENGTH: usize = 4;

const FORGED: Error = Error::Ssh("a packet was changed on its way");

/// The ciphers, by the name with which they are negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    ChaCha20Poly1305,
    Aes256Gcm,
    Aes128Gcm,
}

impl Algorithm {
    /// In the order in which they are offered.
    pub(super) const NAMES: [(&'static str, Self); 3] = [
        ("chacha20-poly1305@openssh.com", Self::ChaCha20Poly1305),
        ("aes256-gcm@openssh.com", Self::Aes256Gcm),
        ("aes128-gcm@openssh.com", Self::Aes128Gcm),
    ];

    /// Bytes of key.
    pub(super) fn key_len(self) -> usize {
        match self {
            Self::ChaCha20Poly1305 => chacha::KEY_LEN,
            Self::Aes256Gcm => 32,
            Self::Aes128Gcm => 16,
        }
    }
}

/// Bytes of the initial vector that key exchange derives.
pub(super) const IV: usize = 12;

fn gcm(algorithm: Algorithm, key: &[u8]) -> Result<LessSafeKey, Error> {
    let algorithm = match algorithm {
        Algorithm::Aes128Gcm => &AES_128_GCM,
        _ => &AES_256_GCM,
    };
    let key = UnboundKey::new(algorithm, key).map_err(|_| FORGED)?;
    Ok(LessSafeKey::new(key))
}

/// A nonce that counts packets in its last eight bytes (RFC 5647 §7.1).
pub(super) struct Counter([u8; IV]);

impl Counter {
    fn next(&mut self) -> Nonce {
        let nonce = Nonce::assume_unique_for_key(self.0);
        let (_, count) = self.0.split_at_mut(4);
        for byte in count.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
        nonce
    }
}

/// Encrypts what goes out.
pub(super) enum Sealing {
    Clear,
    ChaCha(Box<chacha::SealingKey>),
    Gcm(Box<LessSafeKey>, Counter),
}

/// Decrypts what comes in.
pub(super) enum Opening {
    Clear,
    ChaCha(Box<chacha::OpeningKey>),
    Gcm(Box<LessSafeKey>, Counter),
}

impl Sealing {
    pub(super) fn new(algorithm: Algorithm, key: &[u8], iv: [u8; IV]) -> Result<Self, Error> {
        Ok(match algorithm {
            Algorithm::ChaCha20Poly1305 => {
                let key = key.try_into().map_err(|_| FORGED)?;
                Self::ChaCha(Box::new(chacha::SealingKey::new(key)))
            }
            other => Self::Gcm(Box::new(gcm(other, key)?), Counter(iv)),
        })
    }

    /// The padding of a packet with such a payload, bytes (RFC 4253 §6).
    pub(super) fn padding(&self, payload: usize) -> u8 {
        // Ciphers that leave the length field out of what they encrypt do not count it.
        let (block, counted) = match self {
            Self::Clear => (8, LENGTH + 1 + payload),
            Self::ChaCha(_) => (8, 1 + payload),
            Self::Gcm(..) => (16, 1 + payload),
        };
        let short = block - counted % block;
        // At most 16 + 4.
        u8::try_from(if short < 4 { short + block } else { short }).unwrap_or(u8::MAX)
    }

    /// Encrypts `packet` (length, padding length, payload, padding) where it is and gives its tag.
    pub(super) fn seal(&mut self, sequence: u32, packet: &mut [u8]) -> Option<[u8; TAG]> {
        match self {
            Self::Clear => None,
            Self::ChaCha(key) => {
                let mut tag = [0; TAG];
                key.seal_in_place(sequence, packet, &mut tag);
                Some(tag)
            }
            Self::Gcm(key, counter) => {
                let (length, rest) = packet.split_at_mut(LENGTH);
                let tag = key.seal_in_place_separate_tag(counter.next(), Aad::from(&*length), rest);
                // Fails only for packets of 64 GiB.
                let mut out = [0; TAG];
                out.copy_from_slice(tag.ok()?.as_ref());
                Some(out)
            }
        }
    }
}

impl Opening {
    pub(super) fn new(algorithm: Algorithm, key: &[u8], iv: [u8; IV]) -> Result<Self, Error> {
        Ok(match algorithm {
            Algorithm::ChaCha20Poly1305 => {
                let key = key.try_into().map_err(|_| FORGED)?;
                Self::ChaCha(Box::new(chacha::OpeningKey::new(key)))
            }
            other => Self::Gcm(Box::new(gcm(other, key)?), Counter(iv)),
        })
    }

    /// Bytes behind a packet.
    pub(super) fn tag(&self) -> usize {
        match self {
            Self::Clear => 0,
            Self::ChaCha(_) | Self::Gcm(..) => TAG,
        }
    }

    /// What the length field says.
    pub(super) fn length(&self, sequence: u32, field: [u8; LENGTH]) -> u32 {
        u32::from_be_bytes(match self {
            Self::Clear | Self::Gcm(..) => field,
            Self::ChaCha(key) => key.decrypt_packet_length(sequence, field),
        })
    }

    /// Decrypts a packet with its length field and its tag where it is, if it is genuine.
    pub(super) fn open(&mut self, sequence: u32, packet: &mut [u8]) -> Result<(), Error> {
        let split = packet.len().checked_sub(self.tag()).ok_or(FORGED)?;
        match self {
            Self::Clear => {}
            Self::ChaCha(key) => {
                let (sealed, tag) = packet.split_at_mut(split);
                let tag = (&*tag).try_into().map_err(|_| FORGED)?;
                key.open_in_place(sequence, sealed, tag)
                    .map_err(|_| FORGED)?;
            }
            Self::Gcm(key, counter) => {
                let (length, rest) = packet.split_at_mut(LENGTH);
                key.open_in_place(counter.next(), Aad::from(&*length), rest)
                    .map_err(|_| FORGED)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(payload: &[u8], padding: u8) -> Vec<u8> {
        let length = 1 + payload.len() + usize::from(padding);
        let mut packet = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        packet.push(padding);
        packet.extend_from_slice(payload);
        packet.resize(LENGTH + length, 0);
        packet
    }

    #[test]
    fn packets_come_back_as_they_were_and_changed_ones_do_not() {
        for (name, algorithm) in Algorithm::NAMES {
            let key: Vec<u8> = (0..).take(algorithm.key_len()).collect();
            let mut sealing = Sealing::new(algorithm, &key, [9; IV]).unwrap();
            let mut opening = Opening::new(algorithm, &key, [9; IV]).unwrap();
            for sequence in 0..300 {
                let payload = vec![7; sequence as usize];
                let plain = packet(&payload, sealing.padding(payload.len()));
                let mut sealed = plain.clone();
                let tag = sealing.seal(sequence, &mut sealed).unwrap();
                sealed.extend_from_slice(&tag);
                let field = sealed[..LENGTH].try_into().unwrap();
                let length = opening.length(sequence, field) as usize;
                assert_eq!(length, plain.len() - LENGTH, "{name}");
                opening.open(sequence, &mut sealed).unwrap();
                assert_eq!(sealed[LENGTH..plain.len()], plain[LENGTH..], "{name}");
            }
            let mut sealed = packet(b"once more", 4);
            let tag = sealing.seal(300, &mut sealed).unwrap();
            sealed.extend_from_slice(&tag);
            sealed[6] ^= 1;
            assert!(opening.open(300, &mut sealed).is_err(), "{name}");
        }
    }

    #[test]
    fn padding_fills_blocks_and_is_never_shorter_than_four() {
        let clear = Sealing::Clear;
        let gcm = Sealing::new(Algorithm::Aes128Gcm, &[0; 16], [0; IV]).unwrap();
        for payload in 0..100 {
            let padding = usize::from(clear.padding(payload));
            assert!(padding >= 4 && (LENGTH + 1 + payload + padding).is_multiple_of(8));
            let padding = usize::from(gcm.padding(payload));
            assert!(padding >= 4 && (1 + payload + padding).is_multiple_of(16));
        }
    }

    #[test]
    fn the_counter_leaves_the_fixed_part_alone() {
        let mut counter = Counter([0xff; IV]);
        counter.next();
        assert_eq!(counter.0, [255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
