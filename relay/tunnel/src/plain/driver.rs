//! The loop: one task that waits for whatever comes first and does one bounded turn of work, as the
//! loop of an endpoint does.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use relay_wire::wg::Host;
use tokio::sync::mpsc;

use super::Event;
use super::local::{self, Local};
use super::peer::{Remote, Step};
use super::routes::Routes;
use super::send;
use super::translate::{self, GROWTH, clamp_segments, unmap};
use crate::datagram::{self, Datagram, Delivery, Fragments, Outbox, PROTO_UDP, Reassembler};
use crate::stack::{Injection, Verdict};
use crate::udp::{ReceiveBuffers, UdpSocket};
use crate::wireguard::{Identity, Opened, Sender, transport_index};

/// Datagrams taken in one turn.
const BATCH: usize = 128;
/// Receives of up to eight bursts each in one turn.
const UDP_ROUNDS: usize = 4;
/// Reads of the TUN device in one turn; each is a packet or a super-packet.
const TUN_READS: usize = 64;
/// Bytes of super-packets after which a turn stops reading.
const TUN_BYTES: usize = 4 * 64 * 1024;
/// How long the loop waits for work before it gives its buffers back.
const IDLE: Duration = Duration::from_secs(3);
/// Bytes of a transport message that are the same for all that one session seals.
const SESSION_HEADER: usize = 8;
/// Headers of IPv4 or IPv6, and TCP.
const TCP_OVER_V4: u16 = 40;
const TCP_OVER_V6: u16 = 60;

/// What the loop is made of.
pub(super) struct Parts {
    pub(super) identity: Identity,
    pub(super) udp: UdpSocket,
    pub(super) local: Local,
    pub(super) peers: Vec<Remote>,
    pub(super) routes: Routes,
    /// This end's addresses, as the stack knows them.
    pub(super) own: Vec<Ipv6Addr>,
    /// The largest packet in the tunnel.
    pub(super) mtu: u16,
    pub(super) outbox: Outbox,
    pub(super) delivery: Delivery,
    pub(super) events: mpsc::Sender<Event>,
}

/// What looking a host up has brought.
type Found = (usize, Host, io::Result<Vec<SocketAddr>>);

/// All state of the loop.
pub(super) struct Driver {
    parts: Parts,
    injections: mpsc::UnboundedReceiver<Injection>,
    looked_up: (mpsc::Sender<Found>, mpsc::Receiver<Found>),
    receive: ReceiveBuffers,
    opened: Opened,
    /// Packets for the stack: their bytes, and where each is.
    inside: (Vec<u8>, Vec<Range<usize>>),
    to_tun: Vec<Vec<u8>>,
    fragments: Fragments,
    reassembler: Reassembler,
    scratch: Vec<u8>,
    tun_failed: bool,
    busy_at: Instant,
    released: bool,
}

/// Which peer a packet of the stack goes to, and what is sent.
pub(super) struct Router<'a> {
    peers: &'a mut [Remote],
    routes: &'a Routes,
    mtu: u16,
    scratch: &'a mut Vec<u8>,
    /// Where the last one went.
    last: Option<(Ipv6Addr, u32)>,
}

impl Router<'_> {
    pub(super) fn send(&mut self, packet: &[u8]) {
        let Some(destination) = datagram::destination(packet) else {
            return;
        };
        let v4 = unmap(destination);
        let index = match self.last {
            Some((last, index)) if last == destination => index,
            _ => {
                let address = v4.map_or(IpAddr::V6(destination), IpAddr::V4);
                let Some(index) = self
                    .routes
                    .find(address)
                    .filter(|_| !address.is_multicast())
                else {
                    return;
                };
                self.last = Some((destination, index));
                index
            }
        };
        let Some(peer) = self.peers.get_mut(index as usize) else {
            return;
        };
        let mut packet = packet;
        let mut opening = Vec::new();
        if translate::opens_stream(packet) {
            opening.extend_from_slice(packet);
            clamp_segments(&mut opening, largest_segment(self.mtu, v4.is_some()));
            packet = &opening;
        }
        if v4.is_none() {
            return peer.outgoing.push(packet);
        }
        self.scratch.clear();
        if translate::to_v4(packet, self.scratch) {
            peer.outgoing.push(self.scratch);
        }
    }
}

fn largest_segment(mtu: u16, v4: bool) -> u16 {
    mtu - if v4 { TCP_OVER_V4 } else { TCP_OVER_V6 }
}

impl Driver {
    pub(super) fn new(parts: Parts) -> Driver {
        Driver {
            injections: parts.local.injections(),
            looked_up: mpsc::channel(16),
            receive: ReceiveBuffers::default(),
            opened: Opened::default(),
            inside: Default::default(),
            to_tun: Vec::new(),
            fragments: Fragments::new(rand::random()),
            reassembler: Reassembler::default(),
            scratch: Vec::new(),
            tun_failed: false,
            busy_at: Instant::now(),
            released: true,
            parts,
        }
    }

    /// Runs until it is aborted, or its handle is gone.
    pub(super) async fn run(mut self) {
        let mut datagrams: Vec<Datagram> = Vec::new();
        self.handle_timers(Instant::now());
        self.flush(Instant::now()).await;
        loop {
            let next = self.next_timer();
            let mut injected = None;
            let mut found = None;
            tokio::select! {
                _ = self.parts.udp.readable() => {}
                () = self.parts.local.readable(self.tun_failed) => {}
                count = self.parts.outbox.recv_many(&mut datagrams, BATCH) => if count == 0 {
                    break;
                },
                Some(injection) = self.injections.recv() => injected = Some(injection),
                Some(result) = self.looked_up.1.recv() => found = Some(result),
                () = tokio::time::sleep_until(next.into()) => {}
            }
            let now = Instant::now();
            if let Some(injection) = injected {
                self.inject(injection);
            }
            if let Some(found) = found {
                self.found(found, now);
            }
            for datagram in datagrams.drain(..) {
                self.send_datagram(&datagram);
            }
            let mut worked = self.take_udp(now);
            worked |= self.take_local(now);
            if now >= next {
                self.handle_timers(now);
            }
            self.flush(now).await;
            if worked {
                (self.busy_at, self.released) = (now, false);
                tokio::task::yield_now().await;
            }
        }
        self.parts.delivery.close();
    }

    fn next_timer(&self) -> Instant {
        let peers = self.parts.peers.iter().filter_map(Remote::poll_timeout);
        let idle = (!self.released).then(|| self.busy_at + IDLE);
        let stack = self.parts.local.poll_timeout(Instant::now());
        let others = [idle, self.reassembler.poll_timeout(), stack];
        let next = peers.chain(others.into_iter().flatten()).min();
        next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600))
    }

    fn handle_timers(&mut self, now: Instant) {
        for index in 0..self.parts.peers.len() {
            for step in self.parts.peers[index].handle_timeout(now) {
                match step {
                    Step::Tell(event) => self.tell(event),
                    Step::LookUp(host) => self.look_up(index, host),
                }
            }
        }
        self.reassembler.expire(now);
        if let Some(warning) = self.parts.udp.take_warning() {
            self.tell(Event::Warning(warning));
        }
        if !self.released && now >= self.busy_at + IDLE {
            self.released = true;
            self.receive.release();
            self.parts.local.release();
            self.opened.release();
            self.inside = Default::default();
            self.scratch = Vec::new();
            for peer in &mut self.parts.peers {
                peer.outgoing = Default::default();
            }
        }
    }

    fn look_up(&self, index: usize, host: Host) {
        let done = self.looked_up.0.clone();
        let dual = self.parts.udp.is_dual_stack();
        tokio::spawn(async move {
            let found = tokio::net::lookup_host((host.name.as_str(), host.port)).await;
            let usable = |address: &SocketAddr| dual || address.is_ipv4();
            let found = found.map(|addresses| addresses.filter(usable).collect());
            let _ = done.send((index, host, found)).await;
        });
    }

    fn found(&mut self, (index, host, found): Found, now: Instant) {
        let reason = match found {
            Ok(addresses) if !addresses.is_empty() => {
                return self.parts.peers[index].found(&addresses, now);
            }
            Ok(_) => "it has no address that this machine can use".to_owned(),
            Err(error) => error.to_string(),
        };
        let host = host.to_string();
        self.tell(Event::Unresolved { host, reason });
    }

    fn tell(&self, event: Event) {
        let _ = self.parts.events.try_send(event);
    }

    fn router(&mut self) -> Router<'_> {
        Router {
            peers: &mut self.parts.peers,
            routes: &self.parts.routes,
            mtu: self.parts.mtu,
            scratch: &mut self.scratch,
            last: None,
        }
    }

    fn inject(&mut self, injection: Injection) {
        let mut next = Some(injection);
        while let Some(injection) = next {
            match injection {
                Injection::ToTun(packet) => self.to_tun.push(packet),
                Injection::ToPeer(packet) => self.router().send(&packet),
            }
            next = self.injections.try_recv().ok();
        }
    }

    fn send_datagram(&mut self, datagram: &Datagram) {
        let mut packet = Vec::new();
        datagram::build(
            &mut packet,
            datagram.source,
            datagram.destination,
            &datagram.payload,
        );
        let growth = unmap(*datagram.destination.ip()).map_or(0, |_| GROWTH);
        let mtu = usize::from(self.parts.mtu + growth);
        let Driver {
            fragments,
            parts,
            scratch,
            ..
        } = self;
        let mut router = Router {
            peers: &mut parts.peers,
            routes: &parts.routes,
            mtu: parts.mtu,
            scratch,
            last: None,
        };
        fragments.cut(&packet, mtu, &mut |part| router.send(part));
    }

    /// Reads the UDP socket. True when there was something.
    fn take_udp(&mut self, now: Instant) -> bool {
        let mut worked = false;
        for _ in 0..UDP_ROUNDS {
            let Driver {
                parts,
                receive,
                opened,
                ..
            } = self;
            let Parts {
                udp,
                identity,
                peers,
                events,
                ..
            } = parts;
            let mut each = |from: SocketAddr, data: &[u8], segment: usize| {
                let mut rest = data;
                while !rest.is_empty() {
                    let (run, after) = rest.split_at(run_length(rest, segment.max(1)));
                    if let Some(peer) = sender(identity, peers, run, segment, from.ip()) {
                        let event = open(peer, run, segment, from, now, opened);
                        event.map(|event| events.try_send(event));
                    }
                    rest = after;
                }
            };
            if udp.try_receive(receive, &mut each).is_err() {
                break;
            }
            worked = true;
            self.dispatch(now);
        }
        worked
    }

    /// Sends opened packets on: datagrams to their flows, and everything else to the stack.
    fn dispatch(&mut self, now: Instant) {
        if self.opened.is_empty() {
            return;
        }
        let mut opened = std::mem::take(&mut self.opened);
        let (mut bytes, mut ranges) = std::mem::take(&mut self.inside);
        for (index, packet) in opened.packets() {
            let start = bytes.len();
            let kept =
                self.admit(index, packet, &mut bytes) && self.is_stacks(&bytes[start..], now);
            match kept {
                true => ranges.push(start..bytes.len()),
                false => bytes.truncate(start),
            }
        }
        let batch: Vec<&[u8]> = ranges.iter().map(|range| &bytes[range.clone()]).collect();
        if !batch.is_empty() {
            self.parts.local.take(now, &batch);
        }
        drop(batch);
        bytes.clear();
        ranges.clear();
        opened.clear();
        (self.opened, self.inside) = (opened, (bytes, ranges));
    }

    /// Puts a packet behind `bytes` as the stack should see it, if the peer may have sent it.
    fn admit(&mut self, index: u32, packet: &[u8], bytes: &mut Vec<u8>) -> bool {
        let start = bytes.len();
        let v4 = packet.first().is_some_and(|first| first >> 4 == 4);
        let source = match v4 {
            true => translate::v4_address(packet, 12).map(IpAddr::V4),
            // What stands for IPv4 inside has no business outside.
            false => datagram::source(packet)
                .filter(|source| unmap(*source).is_none())
                .map(IpAddr::V6),
        };
        let owner = source.and_then(|source| self.parts.routes.find(source));
        if owner != Some(index) {
            self.parts.peers[index as usize].rejected += 1;
            tracing::debug!(
                index,
                "packet from an address that is not the peer's dropped"
            );
            return false;
        }
        match v4 {
            true if !translate::to_v6(packet, bytes) => return false,
            true => {}
            false => bytes.extend_from_slice(packet),
        }
        let largest = largest_segment(self.parts.mtu, v4);
        clamp_segments(&mut bytes[start..], largest);
        let destination = datagram::destination(&bytes[start..]);
        destination.is_some_and(|destination| self.parts.own.contains(&destination))
    }

    /// Whether a packet is for the stack; what is not is dealt with.
    fn is_stacks(&mut self, packet: &[u8], now: Instant) -> bool {
        if packet[6] == PROTO_UDP {
            self.deliver(packet);
            return false;
        }
        if Reassembler::protocol(packet) == Some(PROTO_UDP) {
            if let Some(whole) = self.reassembler.push(packet, now) {
                self.deliver(&whole);
            }
            return false;
        }
        let verdict = match &mut self.parts.local {
            Local::Kernel(_, stack) => stack.inspect(packet),
            Local::User(user, _) => {
                if let Some((host, mtu)) = translate::too_big(packet) {
                    user.narrow(now, host, mtu);
                }
                Verdict::Pass
            }
        };
        match verdict {
            Verdict::Pass => true,
            Verdict::Answer(answer) => {
                self.router().send(&answer);
                false
            }
            Verdict::Held | Verdict::Drop => false,
        }
    }

    fn deliver(&self, packet: &[u8]) {
        if let Some((from, to, payload)) = datagram::parse(packet) {
            self.parts.delivery.deliver(from, to, payload);
        }
    }

    /// Takes what the stack has to send. True when there was something.
    fn take_local(&mut self, now: Instant) -> bool {
        self.write_tun();
        let Driver { parts, scratch, .. } = self;
        let mut router = Router {
            peers: &mut parts.peers,
            routes: &parts.routes,
            mtu: parts.mtu,
            scratch,
            last: None,
        };
        let tun = match &mut parts.local {
            Local::Kernel(tun, _) => tun,
            Local::User(user, made) => {
                let worked = local::turn(user, made, &mut router, now);
                if worked {
                    self.busy_at = now;
                }
                return worked;
            }
        };
        let mut bytes = 0;
        let mut worked = false;
        let mut failure = None;
        for _ in 0..TUN_READS {
            let read = tun.try_read(&mut |packet| {
                bytes += packet.len();
                router.send(packet);
            });
            match read {
                Ok(_) => worked = true,
                Err(error) => {
                    failure = Some(error).filter(|error| !is_passing(error));
                    break;
                }
            }
            if bytes >= TUN_BYTES {
                break;
            }
        }
        if worked {
            self.busy_at = now;
        }
        if let Some(error) = failure {
            self.tun_failed = true;
            let text = format!("the TUN device failed: {error}; restart relay");
            self.tell(Event::Warning(text));
        }
        worked
    }

    fn write_tun(&mut self) {
        if self.to_tun.is_empty() {
            return;
        }
        let packets: Vec<&[u8]> = self.to_tun.iter().map(Vec::as_slice).collect();
        self.parts.local.take(Instant::now(), &packets);
        self.to_tun.clear();
    }

    /// Seals and sends everything that this turn collected.
    async fn flush(&mut self, now: Instant) {
        let Parts { peers, udp, .. } = &mut self.parts;
        for peer in peers {
            send::flush(peer, udp, now).await;
        }
    }
}

/// How many bytes of a burst the same session sealed.
fn run_length(burst: &[u8], segment: usize) -> usize {
    let header = burst.get(..SESSION_HEADER);
    let chunks = burst.chunks(segment);
    let same = chunks.take_while(|chunk| chunk.get(..SESSION_HEADER) == header);
    let length: usize = same.map(<[u8]>::len).sum();
    // A last piece that is shorter than a header is one of its own.
    length.clamp(segment.min(burst.len()), burst.len())
}

/// The peer that says it sent these datagrams.
fn sender<'a>(
    identity: &Identity,
    peers: &'a mut [Remote],
    run: &[u8],
    segment: usize,
    from: IpAddr,
) -> Option<&'a mut Remote> {
    let first = &run[..segment.clamp(1, run.len())];
    let named = match transport_index(first) {
        Some(index) => Sender::Index(index),
        None => identity.sender(first, Some(from))?,
    };
    match named {
        Sender::Index(index) => peers.get_mut(index as usize),
        Sender::Key(key) => {
            let known = peers.iter_mut().find(|peer| *peer.wireguard.key() == key);
            if known.is_none() {
                tracing::debug!("a handshake by a key that is no peer's");
            }
            known
        }
    }
}

fn open(
    peer: &mut Remote,
    run: &[u8],
    segment: usize,
    from: SocketAddr,
    now: Instant,
    opened: &mut Opened,
) -> Option<Event> {
    let before = peer.wireguard.authentic();
    let Remote {
        wireguard, control, ..
    } = peer;
    wireguard.open_burst(run, segment, Some(from.ip()), now, opened, control);
    (peer.wireguard.authentic() > before)
        .then(|| peer.heard(from))
        .flatten()
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
