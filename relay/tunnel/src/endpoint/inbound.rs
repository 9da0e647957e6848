//! From the network to the kernel: datagrams are opened burst by burst, and each packet inside goes
//! to whom it is for.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use relay_wire::tsmp::{self, Tsmp};

use super::driver::Driver;
use super::local::Local;
use super::peers::{Peers, Slot};
use super::relays::Received;
use super::streams;
use crate::datagram::{self, PROTO_UDP, Reassembler};
use crate::path::Paths;
use crate::stack::Verdict;
use crate::wireguard::{Identity, Opened, Sender, transport_index};

/// Receives of up to eight bursts each in one turn.
const UDP_ROUNDS: usize = 4;
/// Bytes of a transport message that are the same for all that one session seals.
const SESSION_HEADER: usize = 8;

impl Driver {
    /// Reads the UDP socket. True when there was something.
    pub(super) fn take_udp(&mut self, now: Instant) -> bool {
        let mut worked = false;
        for _ in 0..UDP_ROUNDS {
            let Driver {
                udp,
                receive,
                peers,
                paths,
                identity,
                opened,
                ..
            } = self;
            let mut each = |from: SocketAddr, data: &[u8], segment: usize| {
                let mut taker = Taker {
                    peers,
                    paths,
                    identity,
                    opened,
                    now,
                };
                taker.take(from, data, segment);
            };
            if udp.try_receive(receive, &mut each).is_err() {
                break;
            }
            worked = true;
            self.dispatch(now);
        }
        worked
    }

    /// Takes what relays brought.
    pub(super) fn take_relayed(&mut self, relayed: &[Received], now: Instant) {
        for Received {
            region,
            source,
            packet,
        } in relayed
        {
            if self.paths.handle_relayed(*region, *source, packet, now) {
                continue;
            }
            let Some(index) = self.peers.index_of_key(source.as_bytes()) else {
                tracing::trace!("relayed packet from a node that is no peer dropped");
                continue;
            };
            let Driver {
                peers,
                opened,
                paths,
                ..
            } = self;
            let before = opened.len();
            open(peers, index, packet, packet.len(), None, now, opened);
            if opened.len() > before
                && let Some(slot) = peers.get_mut(index)
            {
                paths.heard_relayed(slot.id, now);
            }
        }
        self.dispatch(now);
    }

    /// Sends opened packets on: answers, datagrams, and everything else to the kernel.
    fn dispatch(&mut self, now: Instant) {
        if self.opened.is_empty() {
            return;
        }
        self.busy_at = now;
        let mut opened = std::mem::take(&mut self.opened);
        if let Some(capture) = &self.common.capture {
            capture.record(opened.packets().map(|(_, packet)| packet));
        }
        let mut batch: Vec<&[u8]> = Vec::with_capacity(opened.len());
        for (index, packet) in opened.packets() {
            self.moved.add(packet.len());
            let Some(destination) = datagram::destination(packet) else {
                continue;
            };
            if !self.addresses.contains(&destination) {
                continue;
            }
            match packet[6] {
                tsmp::PROTOCOL => self.take_tsmp(index, packet, now),
                PROTO_UDP => self.take_datagram(packet),
                _ if Reassembler::protocol(packet) == Some(PROTO_UDP) => {
                    if let Some(whole) = self.reassembler.push(packet, now) {
                        self.take_datagram(&whole);
                    }
                }
                _ => match self.inspect(packet) {
                    Verdict::Pass => {
                        self.note_opening(index, packet);
                        batch.push(packet);
                    }
                    Verdict::Held => self.note_opening(index, packet),
                    Verdict::Drop => {}
                    Verdict::Answer(answer) => self.send_to(index, &answer),
                },
            }
        }
        if !batch.is_empty() {
            self.write_batch(&batch, now);
        }
        drop(batch);
        opened.clear();
        self.opened = opened;
    }

    fn inspect(&self, packet: &[u8]) -> Verdict {
        match &self.local {
            Local::Kernel(_, stack) => stack.inspect(packet),
            Local::User(_) => Verdict::Pass,
        }
    }

    fn write_batch(&mut self, batch: &[&[u8]], now: Instant) {
        match &mut self.local {
            Local::Kernel(tun, _) => {
                if let Err(error) = tun.write_batch(batch) {
                    tracing::debug!(%error, "writing to the TUN device");
                }
            }
            Local::User(user) => user.handle_packets(now, batch.iter().copied()),
        }
    }

    fn note_opening(&mut self, index: u32, packet: &[u8]) {
        if matches!(self.local, Local::Kernel(..))
            && let Some((theirs, own)) = streams::opening(packet)
            && let Some(slot) = self.peers.get_mut(index)
        {
            slot.note_stream(own, theirs);
        }
    }

    fn take_tsmp(&mut self, index: u32, packet: &[u8], now: Instant) {
        match tsmp::parse(packet) {
            Some(Tsmp::Ping { src, dst, data }) => {
                self.send_to(index, &tsmp::pong_packet(dst, src, data, 0));
            }
            Some(Tsmp::Pong { src, data, .. }) => {
                if let Some((sent, pong)) = self.tsmp.remove(&data) {
                    let rtt = now.saturating_duration_since(sent);
                    self.common.early.answered(src, rtt);
                    let _ = pong.try_send(rtt);
                }
            }
            None => {}
        }
    }

    fn take_datagram(&mut self, packet: &[u8]) {
        if let Some((from, to, payload)) = datagram::parse(packet)
            && !self.common.delivery.deliver(from, to, payload)
        {
            tracing::trace!("datagram that nobody takes dropped");
        }
    }
}

/// Finds out whose each datagram of a received burst is.
struct Taker<'a> {
    peers: &'a mut Peers,
    paths: &'a mut Paths,
    identity: &'a Identity,
    opened: &'a mut Opened,
    now: Instant,
}

impl Taker<'_> {
    fn take(&mut self, from: SocketAddr, data: &[u8], segment: usize) {
        let mut rest = data;
        while !rest.is_empty() {
            let first = &rest[..segment.min(rest.len())];
            let (burst, tail) = match transport_index(first) {
                Some(index) => {
                    let before = self.opened.len();
                    let (burst, tail) = rest.split_at(same_session(rest, segment));
                    open(
                        self.peers,
                        index,
                        burst,
                        segment,
                        Some(from.ip()),
                        self.now,
                        self.opened,
                    );
                    if self.opened.len() > before
                        && let Some(slot) = self.peers.get_mut(index)
                    {
                        self.paths.heard(slot.id, from, self.now);
                    }
                    (burst, tail)
                }
                None => {
                    self.take_other(from, first);
                    rest.split_at(first.len())
                }
            };
            debug_assert!(!burst.is_empty());
            rest = tail;
        }
    }

    /// Disco, STUN, and WireGuard's messages that are not packets.
    fn take_other(&mut self, from: SocketAddr, datagram: &[u8]) {
        if self.paths.handle_udp(from, datagram, self.now) {
            return;
        }
        let index = match self.identity.sender(datagram, Some(from.ip())) {
            Some(Sender::Index(index)) => Some(index),
            Some(Sender::Key(key)) => self.peers.index_of_key(&key),
            None => None,
        };
        let Some(index) = index else {
            tracing::trace!(%from, "datagram from nobody known dropped");
            return;
        };
        open(
            self.peers,
            index,
            datagram,
            datagram.len(),
            Some(from.ip()),
            self.now,
            self.opened,
        );
    }
}

/// How many bytes of a burst belong to the session of its first datagram.
fn same_session(burst: &[u8], segment: usize) -> usize {
    let header = burst.get(..SESSION_HEADER);
    let of_session = |chunk: &&[u8]| chunk.get(..SESSION_HEADER) == header;
    burst
        .chunks(segment)
        .take_while(of_session)
        .map(<[u8]>::len)
        .sum()
}

fn open(
    peers: &mut Peers,
    index: u32,
    data: &[u8],
    segment: usize,
    from: Option<IpAddr>,
    now: Instant,
    opened: &mut Opened,
) {
    let Some(slot) = peers.get_mut(index) else {
        return;
    };
    let Slot {
        wireguard,
        control,
        received,
        held,
        ..
    } = slot;
    let began = wireguard.open_burst(data, segment, from, now, opened, control);
    *received += data.len() as u64;
    if began || !control.is_empty() || !held.is_empty() {
        peers.touch(index);
    }
    peers.note_timer(index);
}
