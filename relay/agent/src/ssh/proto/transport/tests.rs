//! The transport against a client that is written by hand.

use std::sync::Arc;

use proptest::prelude::*;
use ring::rand::SystemRandom;

use super::{Received, Transport};
use crate::ssh::proto::cipher::{LENGTH, Opening, Sealing};
use crate::ssh::proto::codec::Put;
use crate::ssh::proto::kex::client::Half;
use crate::ssh::proto::kex::{self, HostKey, Said};
use crate::ssh::proto::number;

const VERSION: &[u8] = b"SSH-2.0-by-hand";

/// A server's transport and a client that speaks to it.
struct Pair {
    server: Transport,
    sealing: Sealing,
    opening: Opening,
    sent: u32,
    received: u32,
    session: Option<[u8; 32]>,
    strict: bool,
}

impl Pair {
    fn new(strict: bool) -> Self {
        let host_key = Arc::new(HostKey::from_seed(b"seed").unwrap());
        let server = Transport::new(host_key, Box::new(SystemRandom::new())).unwrap();
        Self {
            server,
            sealing: Sealing::Clear,
            opening: Opening::Clear,
            sent: 0,
            received: 0,
            session: None,
            strict,
        }
    }

    /// With the versions exchanged and the first keys in use.
    fn open(strict: bool) -> Self {
        let mut pair = Self::new(strict);
        pair.greet();
        let theirs = pair.receive().unwrap();
        pair.exchange(&theirs);
        assert!(pair.server.is_open());
        pair
    }

    fn greet(&mut self) {
        let line = self
            .server
            .out
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap();
        let line: Vec<u8> = self.server.out.drain(..=line).collect();
        assert_eq!(line, [super::VERSION.as_bytes(), b"\r\n"].concat());
        let mut ours = [VERSION, b"\r\n"].concat();
        let whole = ours.len();
        assert_eq!(
            self.server.receive(&mut ours).unwrap(),
            Received::Done(whole)
        );
    }

    /// A packet for the server, as it goes over the wire.
    fn packet(&mut self, payload: &[u8]) -> Vec<u8> {
        let padding = self.sealing.padding(payload.len());
        let length = 1 + payload.len() + usize::from(padding);
        let mut packet = Vec::new();
        packet
            .put_u32(u32::try_from(length).unwrap())
            .put_byte(padding);
        packet.put(payload).resize(LENGTH + length, 0);
        if let Some(tag) = self.sealing.seal(self.sent, &mut packet) {
            packet.put(&tag);
        }
        self.sent = self.sent.wrapping_add(1);
        packet
    }

    fn send(&mut self, payload: &[u8]) -> Result<Received, crate::Error> {
        let mut packet = self.packet(payload);
        self.server.receive(&mut packet)
    }

    /// The payload of the server's next packet.
    fn receive(&mut self) -> Option<Vec<u8>> {
        let out = &mut self.server.out;
        let field = *out.first_chunk::<LENGTH>()?;
        let length = self.opening.length(self.received, field) as usize;
        let whole = LENGTH + length + self.opening.tag();
        let mut packet: Vec<u8> = out.drain(..whole).collect();
        self.opening.open(self.received, &mut packet).unwrap();
        self.received = self.received.wrapping_add(1);
        let padding = usize::from(packet[LENGTH]);
        Some(packet[LENGTH + 1..LENGTH + length - padding].to_vec())
    }

    fn offer(&self) -> Vec<u8> {
        let mut out = vec![number::KEXINIT; 17];
        let strict = if self.strict {
            ",kex-strict-c-v00@openssh.com"
        } else {
            ""
        };
        out.put_string(format!("curve25519-sha256{strict}"));
        out.put_string("ssh-ed25519");
        let cipher = "aes256-gcm@openssh.com";
        for list in [cipher, cipher, "", "", "none", "none", "", ""] {
            out.put_string(list);
        }
        out.put_bool(false).put_u32(0);
        out
    }

    /// Answers the server's offer, and goes on to new keys.
    fn exchange(&mut self, theirs: &[u8]) {
        let ours = self.offer();
        self.send(&ours).unwrap();
        self.finish(&ours, theirs);
    }

    fn finish(&mut self, ours: &[u8], theirs: &[u8]) {
        let half = Half::new(&SystemRandom::new());
        self.send(&half.init()).unwrap();
        let reply = self.receive().unwrap();
        assert_eq!(self.receive().unwrap(), [number::NEWKEYS]);
        let said = Said {
            client_version: VERSION,
            server_version: super::VERSION.as_bytes(),
            client_offer: ours,
            server_offer: theirs,
        };
        let choice = kex::choose(ours).unwrap();
        let (session, sealing, opening) = half.finish(&reply, &said, self.session, choice);
        self.send(&[number::NEWKEYS]).unwrap();
        self.session = Some(session);
        (self.sealing, self.opening) = (sealing, opening);
        if self.strict {
            (self.sent, self.received) = (0, 0);
        }
    }

    fn says(&mut self, payload: &[u8]) {
        self.server.send(|out| out.extend_from_slice(payload));
        assert_eq!(self.receive().unwrap(), payload);
    }

    fn hears(&mut self, payload: &[u8]) {
        let mut packet = self.packet(payload);
        let whole = packet.len();
        let Received::Payload(count, range) = self.server.receive(&mut packet).unwrap() else {
            panic!("not heard");
        };
        assert_eq!((count, &packet[range]), (whole, payload));
    }
}

const ALOUD: &[u8] = &[number::GLOBAL_REQUEST, 1, 2, 3];

#[test]
fn after_the_first_keys_messages_pass_both_ways() {
    for strict in [true, false] {
        let mut pair = Pair::open(strict);
        for length in 1..200 {
            let message = vec![number::CHANNEL_DATA; length];
            pair.says(&message);
            pair.hears(&message);
        }
    }
}

#[test]
fn the_client_may_change_keys_at_any_time() {
    for strict in [true, false] {
        let mut pair = Pair::open(strict);
        for _ in 0..3 {
            let ours = pair.offer();
            pair.send(&ours).unwrap();
            assert!(!pair.server.may_send());
            let theirs = pair.receive().unwrap();
            pair.finish(&ours, &theirs);
            pair.says(ALOUD);
            pair.hears(ALOUD);
        }
    }
}

#[test]
fn the_server_changes_keys_that_were_used_for_long_and_takes_what_is_on_its_way() {
    let mut pair = Pair::open(true);
    pair.server.keys_last = 1000;
    pair.server.renew().unwrap();
    assert!(pair.receive().is_none());
    pair.says(&[number::CHANNEL_DATA; 1200]);
    pair.server.renew().unwrap();
    let theirs = pair.receive().unwrap();
    assert_eq!(theirs[0], number::KEXINIT);
    assert!(!pair.server.may_send());
    // The client has not seen the offer yet.
    pair.hears(ALOUD);
    pair.server.renew().unwrap();
    pair.exchange(&theirs);
    assert!(pair.server.may_send());
    pair.says(ALOUD);
    pair.hears(ALOUD);
    pair.server.renew().unwrap();
    assert!(pair.receive().is_none());
}

#[test]
fn after_its_offer_a_client_sends_nothing_else() {
    let mut pair = Pair::open(true);
    let ours = pair.offer();
    pair.send(&ours).unwrap();
    assert!(pair.send(ALOUD).is_err());
}

#[test]
fn before_there_are_keys_nothing_but_their_exchange_is_heard() {
    for early in [
        &[number::SERVICE_REQUEST, 0, 0, 0, 0][..],
        ALOUD,
        &[number::NEWKEYS],
        &[number::KEX_ECDH_INIT, 0, 0, 0, 0],
    ] {
        let mut pair = Pair::new(false);
        pair.greet();
        assert!(pair.send(early).is_err(), "{early:?}");
        let mut pair = Pair::new(false);
        pair.greet();
        let ours = pair.offer();
        pair.send(&ours).unwrap();
        assert!(pair.send(early).is_err(), "{early:?}");
    }
}

#[test]
fn a_strict_client_begins_with_its_offer() {
    let ignore = [number::IGNORE, 0, 0, 0, 0];
    for (strict, fine) in [(true, false), (false, true)] {
        let mut pair = Pair::new(strict);
        pair.greet();
        pair.send(&ignore).unwrap();
        let ours = pair.offer();
        assert_eq!(pair.send(&ours).is_ok(), fine);
    }
    let mut pair = Pair::new(true);
    pair.greet();
    let ours = pair.offer();
    pair.send(&ours).unwrap();
    assert!(pair.send(&ignore).is_err(), "nothing may be slipped in");
}

#[test]
fn a_packet_that_was_changed_ends_the_connection() {
    let mut pair = Pair::open(true);
    let mut packet = pair.packet(ALOUD);
    let last = packet.len() - 20;
    packet[last] ^= 1;
    assert!(pair.server.receive(&mut packet).is_err());
}

#[test]
fn a_packet_waits_for_its_last_byte_and_lengths_are_bounded() {
    let mut pair = Pair::open(true);
    let mut packet = pair.packet(ALOUD);
    let whole = packet.len();
    for length in LENGTH..whole {
        let received = pair.server.receive(&mut packet[..length]).unwrap();
        assert_eq!(received, Received::Incomplete(whole));
    }
    for length in [0_u32, 1, 300 << 10, u32::MAX] {
        let mut pair = Pair::open(true);
        let mut packet = pair.packet(ALOUD);
        packet[..LENGTH].copy_from_slice(&length.to_be_bytes());
        assert!(pair.server.receive(&mut packet).is_err());
    }
}

#[test]
fn a_client_of_another_protocol_is_turned_away() {
    for line in ["GET / HTTP/1.1\r\n", "SSH-1.5-old\n", &"x".repeat(300)] {
        let mut pair = Pair::new(true);
        assert!(
            pair.server.receive(&mut line.as_bytes().to_vec()).is_err(),
            "{line}"
        );
    }
}

#[test]
fn messages_that_are_not_known_are_answered_with_their_number() {
    let mut pair = Pair::open(true);
    pair.hears(ALOUD);
    pair.send(&[15]).unwrap();
    assert_eq!(pair.receive().unwrap(), [number::UNIMPLEMENTED, 0, 0, 0, 1]);
}

proptest! {
    /// Whatever comes in, at whatever time, is an answer or an error.
    #[test]
    fn nonsense_is_borne(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..80), 0..8)) {
        let mut raw = Pair::new(true);
        let mut open = Pair::open(false);
        for mut part in parts {
            let _ = open.send(&part);
            while open.receive().is_some() {}
            let _ = raw.server.receive(&mut part);
        }
    }
}
