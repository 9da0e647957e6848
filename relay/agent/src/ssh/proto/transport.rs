//! The transport protocol (RFC 4253): versions, packets, and key exchange whenever it is time.

use std::ops::Range;
use std::sync::Arc;

use ring::rand::SecureRandom;

use super::cipher::{LENGTH, Opening, Sealing};
use super::codec::{Put, u32_of};
use super::kex::{self, Choice, HostKey, Said};
use super::number;
use crate::Error;

/// What this server calls itself.
const VERSION: &str = concat!("SSH-2.0-relay_", env!("CARGO_PKG_VERSION"));
/// The longest first line of a client, bytes (RFC 4253 §4.2).
const LONGEST_VERSION: usize = 255;
/// The longest packet that is taken, bytes; OpenSSH's own limit.
const LONGEST_PACKET: usize = 256 << 10;
/// New keys after so many bytes in one direction (RFC 4253 §9).
const KEYS_LAST: u64 = 1 << 30;

/// What was found at the start of what came in.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::ssh) enum Received {
    /// Not yet a whole packet; with so many bytes there may be one.
    Incomplete(usize),
    /// A packet that was for the transport itself; so many bytes are done with.
    Done(usize),
    /// A packet of so many bytes; its payload is in that place.
    Payload(usize, Range<usize>),
    /// The peer says goodbye.
    Disconnected,
}

/// Where key exchange is.
enum Kex {
    Idle,
    /// The server's offer is out.
    Offered(Vec<u8>),
    /// Both offers are known; the client's public key is to come.
    Chosen {
        ours: Vec<u8>,
        theirs: Vec<u8>,
        choice: Choice,
    },
    /// The server uses the new keys; the client will say when it does.
    Replied(Box<Opening>),
}

/// One connection's transport.
pub(in crate::ssh) struct Transport {
    host_key: Arc<HostKey>,
    random: Box<dyn SecureRandom + Send>,
    /// What is to be sent, in order.
    pub(in crate::ssh) out: Vec<u8>,
    version: Option<Vec<u8>>,
    kex: Kex,
    session: Option<[u8; 32]>,
    strict: bool,
    sealing: Sealing,
    opening: Opening,
    sent: Direction,
    received: Direction,
    keys_last: u64,
}

#[derive(Default)]
struct Direction {
    sequence: u32,
    /// Since the last key exchange.
    bytes: u64,
}

impl Transport {
    /// Begins: the server's version and its offer are the first that is sent.
    pub(in crate::ssh) fn new(
        host_key: Arc<HostKey>,
        random: Box<dyn SecureRandom + Send>,
    ) -> Result<Self, Error> {
        let mut transport = Self {
            host_key,
            random,
            out: Vec::new(),
            version: None,
            kex: Kex::Idle,
            session: None,
            strict: false,
            sealing: Sealing::Clear,
            opening: Opening::Clear,
            sent: Direction::default(),
            received: Direction::default(),
            keys_last: KEYS_LAST,
        };
        transport.out.put(VERSION.as_bytes()).put(b"\r\n");
        transport.offer()?;
        Ok(transport)
    }

    /// Whether messages other than the transport's own may be sent now; not while keys change.
    pub(in crate::ssh) fn may_send(&self) -> bool {
        self.session.is_some() && matches!(self.kex, Kex::Idle | Kex::Replied(_))
    }

    /// Whether the first key exchange is over.
    pub(in crate::ssh) fn is_open(&self) -> bool {
        self.session.is_some() && matches!(self.kex, Kex::Idle)
    }

    /// Sends the message that `fill` appends to a buffer.
    pub(in crate::ssh) fn send(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        let start = self.out.len();
        self.out.put(&[0; LENGTH + 1]);
        fill(&mut self.out);
        let payload = self.out.len() - start - LENGTH - 1;
        let padding = self.sealing.padding(payload);
        // Zeros: a cipher that authenticates does not need them to be random.
        self.out.resize(self.out.len() + usize::from(padding), 0);
        let length = u32_of(self.out.len() - start - LENGTH);
        let packet = &mut self.out[start..];
        packet[..LENGTH].copy_from_slice(&length.to_be_bytes());
        packet[LENGTH] = padding;
        if let Some(tag) = self.sealing.seal(self.sent.sequence, packet) {
            self.out.put(&tag);
        }
        self.sent.sequence = self.sent.sequence.wrapping_add(1);
        self.sent.bytes += u64::from(length);
    }

    /// Looks at what came in and was not looked at before; opens a packet in place.
    pub(in crate::ssh) fn receive(&mut self, bytes: &mut [u8]) -> Result<Received, Error> {
        if self.version.is_none() {
            return self.greet(bytes);
        }
        let Some((field, _)) = bytes.split_first_chunk::<LENGTH>() else {
            return Ok(Received::Incomplete(LENGTH));
        };
        let sequence = self.received.sequence;
        let length = self.opening.length(sequence, *field) as usize;
        if !(2..=LONGEST_PACKET).contains(&length) {
            return Err(Error::Ssh("a packet has a length that none has"));
        }
        let whole = LENGTH + length + self.opening.tag();
        let Some(packet) = bytes.get_mut(..whole) else {
            return Ok(Received::Incomplete(whole));
        };
        self.opening.open(sequence, packet)?;
        self.received.sequence = sequence.wrapping_add(1);
        self.received.bytes += length as u64;
        let padding = usize::from(packet[LENGTH]);
        let payload = LENGTH + 1..(LENGTH + length).saturating_sub(padding);
        if payload.is_empty() {
            return Err(Error::Ssh("a packet is all padding"));
        }
        self.dispatch(sequence, &packet[payload.clone()])
            .map(|found| match found {
                Found::Disconnected => Received::Disconnected,
                Found::Transport => Received::Done(whole),
                Found::Other => Received::Payload(whole, payload),
            })
    }

    /// Says that a message is not known here.
    pub(in crate::ssh) fn unimplemented(&mut self) {
        let sequence = self.received.sequence.wrapping_sub(1);
        self.send(|out| {
            out.put_byte(number::UNIMPLEMENTED).put_u32(sequence);
        });
    }

    /// Says goodbye.
    pub(in crate::ssh) fn disconnect(&mut self, reason: u32, text: &str) {
        self.send(|out| {
            out.put_byte(number::DISCONNECT).put_u32(reason);
            out.put_string(text).put_string("");
        });
    }

    /// Begins to change keys, if they were used for long enough.
    pub(in crate::ssh) fn renew(&mut self) -> Result<(), Error> {
        let used = self.sent.bytes.max(self.received.bytes);
        if used >= self.keys_last && self.is_open() {
            self.offer()?;
        }
        Ok(())
    }

    fn offer(&mut self) -> Result<(), Error> {
        let offer = kex::offer(&*self.random)?;
        self.send(|out| {
            out.put(&offer);
        });
        self.kex = Kex::Offered(offer);
        Ok(())
    }

    /// The client's first line.
    fn greet(&mut self, bytes: &[u8]) -> Result<Received, Error> {
        let mut line = bytes.iter().take(LONGEST_VERSION + 1);
        let Some(end) = line.position(|byte| *byte == b'\n') else {
            if bytes.len() > LONGEST_VERSION {
                return Err(Error::Ssh("the client's first line has no end"));
            }
            return Ok(Received::Incomplete(bytes.len() + 1));
        };
        let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
        if !line.starts_with(b"SSH-2.0-") {
            return Err(Error::Ssh("the client does not speak SSH 2.0"));
        }
        self.version = Some(line.to_vec());
        Ok(Received::Done(end + 1))
    }

    fn dispatch(&mut self, sequence: u32, payload: &[u8]) -> Result<Found, Error> {
        let kind = payload[0];
        let first = self.session.is_none();
        // Nothing but the exchange itself may come before there are keys. Later, a side that sent
        // its offer sends only the transport's messages until the exchange is done.
        let exchange = matches!(kind, number::KEXINIT..=49 | number::DISCONNECT);
        let other = kind == number::SERVICE_REQUEST || kind > 49;
        if first && !exchange && (self.strict || other) {
            return Err(Error::Ssh("a message came before there were keys"));
        }
        if other && matches!(self.kex, Kex::Chosen { .. } | Kex::Replied(_)) {
            return Err(Error::Ssh("a message came while keys were exchanged"));
        }
        match kind {
            number::DISCONNECT => return Ok(Found::Disconnected),
            number::IGNORE | number::UNIMPLEMENTED | number::DEBUG | number::EXT_INFO => {}
            number::KEXINIT => self.their_offer(sequence, payload)?,
            number::NEWKEYS => self.new_keys()?,
            number::SERVICE_REQUEST | 50.. => return Ok(Found::Other),
            // Of the exchange that was chosen or, as a wrong guess, of another one.
            22..=49 => self.their_key(payload)?,
            _ => self.unimplemented(),
        }
        Ok(Found::Transport)
    }

    fn their_offer(&mut self, sequence: u32, theirs: &[u8]) -> Result<(), Error> {
        if matches!(self.kex, Kex::Idle) {
            self.offer()?;
        }
        let Kex::Offered(ours) = std::mem::replace(&mut self.kex, Kex::Idle) else {
            return Err(Error::Ssh("the client offers algorithms twice"));
        };
        let choice = kex::choose(theirs)?;
        if self.session.is_none() {
            self.strict = choice.strict;
            if self.strict && sequence != 0 {
                return Err(Error::Ssh("the client's offer is not its first message"));
            }
        }
        let theirs = theirs.to_vec();
        self.kex = Kex::Chosen {
            ours,
            theirs,
            choice,
        };
        Ok(())
    }

    fn their_key(&mut self, init: &[u8]) -> Result<(), Error> {
        let Kex::Chosen {
            ours,
            theirs,
            choice,
        } = &mut self.kex
        else {
            return Err(Error::Ssh("a key came before the client's offer"));
        };
        if std::mem::take(&mut choice.skip_guess) {
            return Ok(());
        }
        if init[0] != number::KEX_ECDH_INIT {
            return Err(Error::Ssh("a message of another key exchange came"));
        }
        let said = Said {
            client_version: self.version.as_deref().unwrap_or_default(),
            server_version: VERSION.as_bytes(),
            client_offer: theirs,
            server_offer: ours,
        };
        let choice = *choice;
        let agreed = kex::agree(init, choice.method, &said, &self.host_key, &*self.random)?;
        let session = *self.session.get_or_insert(agreed.hash);
        let (sealing, opening) = agreed.keys(&session, choice)?;
        self.send(|out| {
            out.put(&agreed.reply);
        });
        self.send(|out| {
            out.put_byte(number::NEWKEYS);
        });
        self.sealing = sealing;
        self.sent.bytes = 0;
        if self.strict {
            self.sent.sequence = 0;
        }
        self.kex = Kex::Replied(Box::new(opening));
        Ok(())
    }

    fn new_keys(&mut self) -> Result<(), Error> {
        let Kex::Replied(opening) = std::mem::replace(&mut self.kex, Kex::Idle) else {
            return Err(Error::Ssh("the client uses keys that were not agreed on"));
        };
        self.opening = *opening;
        self.received.bytes = 0;
        if self.strict {
            self.received.sequence = 0;
        }
        Ok(())
    }
}

enum Found {
    Transport,
    Other,
    Disconnected,
}

#[cfg(test)]
mod tests;
