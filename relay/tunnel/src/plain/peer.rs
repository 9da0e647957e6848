//! One peer of the file: where it is at the moment, whether it answers, and what waits for it. Time
//! comes in as an argument.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use relay_wire::wg::{self, Host};

use super::Event;
use crate::wireguard::{Burst, Identity, Peer, PlainOptions};

/// After so long without an answer that is told.
const SILENT: Duration = Duration::from_secs(10);
/// After so long without an answer the peer is looked for where the file says.
const LOST: Duration = Duration::from_secs(15);
/// How often.
const LOOK_UP: Duration = Duration::from_secs(30);
/// How often a peer that does not answer is thought about.
const CHECK: Duration = Duration::from_secs(1);
/// Bytes that wait for keys; the newest win.
const HELD: usize = 256 * 1024;

/// A peer.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) wireguard: Peer,
    /// Packets for it, collected in this turn.
    pub(super) outgoing: Burst,
    /// Packets that wait for keys, or until it is known where the peer is.
    pub(super) held: Burst,
    /// Messages of WireGuard's own.
    pub(super) control: Vec<Vec<u8>>,
    /// Why the last datagram could not be sent.
    pub(super) failure: Option<String>,
    /// Packets from addresses that are not the peer's.
    pub(super) rejected: u64,
    name: String,
    host: Option<Host>,
    endpoint: Option<SocketAddr>,
    /// Where it was heard last.
    heard_at: Option<SocketAddr>,
    needed: bool,
    answered: bool,
    silent: bool,
    looked_up_at: Option<Instant>,
    look_ups: usize,
    check_at: Instant,
}

/// What should be done about a peer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Look its host up, and call [`Remote::found`] or nothing.
    LookUp(Host),
    /// Tell somebody.
    Tell(Event),
}

impl Remote {
    /// A peer of the file; one that is needed is called until it answers.
    pub(super) fn new(
        identity: &Identity,
        index: u32,
        peer: &wg::Peer,
        needed: bool,
        now: Instant,
    ) -> Self {
        let options = PlainOptions {
            key: peer.public_key,
            preshared: peer.preshared_key.as_ref().map(|key| *key.as_bytes()),
            index,
            keepalive: peer.keepalive,
        };
        Self {
            wireguard: Peer::plain(identity, options, now),
            outgoing: Burst::default(),
            held: Burst::default(),
            control: Vec::new(),
            failure: None,
            rejected: 0,
            name: peer.name(),
            host: peer.endpoint.clone(),
            endpoint: None,
            heard_at: None,
            needed,
            answered: false,
            silent: false,
            looked_up_at: None,
            look_ups: 0,
            check_at: now,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_needed(&self) -> bool {
        self.needed
    }

    /// Where packets to it go.
    pub(super) fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint
    }

    /// Its host has these addresses: each time the next one is tried, and that where it was last.
    pub(super) fn found(&mut self, addresses: &[SocketAddr], now: Instant) {
        let last = self.heard_at.filter(|last| !addresses.contains(last));
        let places = addresses.len() + usize::from(last.is_some());
        let turn = self.look_ups.saturating_sub(1) % places.max(1);
        let Some(address) = addresses.get(turn).copied().or(last) else {
            return;
        };
        let first = self.endpoint.is_none();
        self.endpoint = Some(address);
        let wanted = self.needed || self.wireguard.keepalive() || !self.held.is_empty();
        if first && wanted {
            self.wireguard.greet(false, now, &mut self.control);
        }
    }

    /// Something that only the peer can have sent came from `from`: that is where it is.
    pub(super) fn heard(&mut self, from: SocketAddr) -> Option<Event> {
        if self.endpoint != Some(from) {
            if self.endpoint.is_some() {
                tracing::debug!(%from, "a peer is elsewhere now");
            }
            self.endpoint = Some(from);
        }
        self.heard_at = Some(from);
        let again = !self.answered || self.silent;
        (self.answered, self.silent) = (true, false);
        let peer = self.name.clone();
        again.then_some(Event::Answered { peer, from })
    }

    /// Puts the packets of this turn behind those that already wait.
    pub(super) fn hold(&mut self) {
        let Self { held, outgoing, .. } = self;
        outgoing.packets().for_each(|packet| held.push(packet));
        outgoing.clear();
        held.keep_newest(HELD);
    }

    /// When [`Remote::handle_timeout`] should be called next.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let wireguard = self.wireguard.poll_timeout().map(|(at, _)| at);
        let check = self.is_waiting().then_some(self.check_at);
        [wireguard, check].into_iter().flatten().min()
    }

    fn is_waiting(&self) -> bool {
        let unanswered = self.wireguard.unanswered_since().is_some();
        unanswered || (self.needed && !self.answered) || self.is_unknown()
    }

    /// It has a host, and nobody knows yet where that is.
    fn is_unknown(&self) -> bool {
        self.host.is_some() && self.endpoint.is_none()
    }

    /// Does what is due, and says what else should be done.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Vec<Step> {
        self.wireguard.handle_timeout(now, &mut self.control);
        let mut steps = Vec::new();
        if now < self.check_at || !self.is_waiting() {
            return steps;
        }
        self.check_at = now + CHECK;
        if self.needed && !self.answered && self.endpoint.is_some() {
            self.wireguard.greet(false, now, &mut self.control);
        }
        let silence = self.wireguard.unanswered_since();
        let silence = silence.map(|since| now.saturating_duration_since(since));
        if let Some(since) = silence.filter(|silence| *silence >= SILENT && !self.silent) {
            self.silent = true;
            steps.push(Step::Tell(Event::Silent {
                peer: self.name.clone(),
                host: self.host.as_ref().map(Host::to_string),
                since,
                reason: self.failure.take(),
            }));
        }
        let lost = self.is_unknown() || silence.is_some_and(|silence| silence >= LOST);
        let lately = (self.looked_up_at).is_some_and(|at| now < at + LOOK_UP);
        if let Some(host) = self.host.clone().filter(|_| lost && !lately) {
            self.looked_up_at = Some(now);
            self.look_ups += 1;
            steps.push(Step::LookUp(host));
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [9; 32];

    fn remote(needed: bool, now: Instant) -> Remote {
        let peer = wg::Peer {
            public_key: KEY,
            preshared_key: None,
            allowed: Vec::new(),
            endpoint: Some(Host {
                name: "peer.example".to_owned(),
                port: 51820,
            }),
            keepalive: None,
        };
        Remote::new(&Identity::new([1; 32]), 0, &peer, needed, now)
    }

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 51820))
    }

    /// Lets time pass in steps as the loop would.
    fn run(remote: &mut Remote, from: Instant, length: Duration) -> Vec<(u64, Step)> {
        let mut steps = Vec::new();
        while let Some(next) = remote.poll_timeout().filter(|next| *next <= from + length) {
            let due = remote.handle_timeout(next.max(from));
            let seconds = next.saturating_duration_since(from).as_secs();
            steps.extend(due.into_iter().map(|step| (seconds, step)));
        }
        steps
    }

    #[test]
    fn a_peer_is_looked_up_and_called_when_it_is_needed() {
        let now = Instant::now();
        let mut peer = remote(true, now);
        let steps = peer.handle_timeout(now);
        assert!(matches!(&steps[..], [Step::LookUp(host)] if host.name == "peer.example"));
        assert!(peer.control.is_empty());
        peer.found(&[at(1), at(2)], now);
        assert_eq!(peer.endpoint(), Some(at(1)));
        assert_eq!(peer.control.len(), 1, "the first message of a handshake");
    }

    #[test]
    fn a_peer_that_is_not_needed_is_left_alone() {
        let now = Instant::now();
        let mut peer = remote(false, now);
        peer.handle_timeout(now);
        peer.found(&[at(1)], now);
        assert!(peer.control.is_empty());
        assert_eq!(peer.poll_timeout(), None);
    }

    #[test]
    fn silence_is_told_once_and_the_host_looked_up_again() {
        let now = Instant::now();
        let mut peer = remote(true, now);
        peer.handle_timeout(now);
        peer.found(&[at(1), at(2)], now);
        peer.failure = Some("network is unreachable".to_owned());
        let steps = run(&mut peer, now, Duration::from_secs(40));
        let told: Vec<_> = steps
            .iter()
            .filter(|(_, step)| matches!(step, Step::Tell(_)))
            .collect();
        let [(10, Step::Tell(Event::Silent { reason, .. }))] = &told[..] else {
            panic!("{told:?}");
        };
        assert_eq!(reason.as_deref(), Some("network is unreachable"));
        let look_ups = steps
            .iter()
            .filter(|(_, step)| matches!(step, Step::LookUp(_)));
        assert_eq!(look_ups.map(|(at, _)| *at).collect::<Vec<_>>(), [30]);
        peer.found(&[at(1), at(2)], now);
        assert_eq!(peer.endpoint(), Some(at(2)), "the next address is tried");
    }

    #[test]
    fn a_peer_is_where_it_was_heard_and_that_it_answers_is_told_once() {
        let now = Instant::now();
        let mut peer = remote(true, now);
        let from = at(7);
        let answered = peer.heard(from);
        assert!(matches!(answered, Some(Event::Answered { from: told, .. }) if told == from));
        assert_eq!(peer.endpoint(), Some(from));
        assert_eq!(peer.heard(at(8)), None);
        assert_eq!(peer.endpoint(), Some(at(8)));
        // Where the file says, where it was last, and over again.
        for expected in [at(1), at(8), at(1)] {
            peer.look_ups += 1;
            peer.found(&[at(1)], now);
            assert_eq!(peer.endpoint(), Some(expected));
        }
    }
}
