//! Streams between this TCP and another one, over paths with faults, in virtual time.

#[path = "sim/path.rs"]
#[allow(dead_code, unreachable_pub)]
mod path;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use path::{Path, PathOptions};
use relay_tcp::{Config, ConnectionId, Event, Instant, Stack, StackConfig, State};
use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};

const OURS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const THEIRS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const PORT: u16 = 80;
const MTU: u16 = 1420;

/// A packet on its way: arrival, order, whether it goes to the other TCP, bytes.
type Arrival = (Instant, u64, bool, Vec<u8>);

/// Packets in and out of the other TCP.
#[derive(Default)]
struct Wire {
    arrived: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

struct Arrived(Vec<u8>);
struct Sender<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Arrived, Sender<'_>)> {
        let packet = self.arrived.pop_front()?;
        Some((Arrived(packet), Sender(&mut self.sent)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sender<'_>> {
        Some(Sender(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(MTU);
        capabilities
    }
}

fn byte_at(position: usize) -> u8 {
    (position.wrapping_mul(2_654_435_761) >> 13) as u8
}

/// How far an application is that sends `total` bytes and reads as many.
#[derive(Default)]
struct Progress {
    sent: usize,
    received: usize,
    shut: bool,
    ended: bool,
}

impl Progress {
    fn block(&self, total: usize) -> Vec<u8> {
        (self.sent..total.min(self.sent + 16_384))
            .map(byte_at)
            .collect()
    }

    fn check(&mut self, bytes: &[u8]) {
        for (at, &byte) in (self.received..).zip(bytes) {
            assert_eq!(byte, byte_at(at), "byte {at}");
        }
        self.received += bytes.len();
    }
}

struct World {
    now: Instant,
    stack: Stack,
    ours: Option<ConnectionId>,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    paths: [Path; 2],
    packets: BinaryHeap<Reverse<Arrival>>,
    order: u64,
    progress: [Progress; 2],
}

impl World {
    fn new(seed: u64, options: PathOptions, config: Config) -> Self {
        let now = Instant::from_millis(1000);
        let mut wire = Wire::default();
        let mut interface = Interface::new(
            InterfaceConfig::new(HardwareAddress::Ip),
            &mut wire,
            time(now),
        );
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv6(THEIRS), 64));
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; 128 << 10]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_congestion_control(tcp::CongestionControl::Reno);
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        let config = StackConfig {
            connection: Config { mtu: MTU, ..config },
            addresses: vec![IpAddr::V6(OURS)],
            ..StackConfig::default()
        };
        Self {
            now,
            stack: Stack::new(config, [seed, 1]),
            ours: None,
            wire,
            interface,
            sockets,
            handle,
            paths: [
                Path::new(options.clone(), seed),
                Path::new(options, seed + 1),
            ],
            packets: BinaryHeap::new(),
            order: 0,
            progress: Default::default(),
        }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn we_connect(&mut self) {
        self.socket().listen(PORT).expect("it listens");
        let remote = SocketAddr::new(IpAddr::V6(THEIRS), PORT);
        let id = self.stack.connect(self.now, IpAddr::V6(OURS), remote);
        self.ours = Some(id.expect("a connection"));
    }

    fn they_connect(&mut self) {
        let remote = IpEndpoint::new(IpAddress::Ipv6(OURS), PORT);
        let context = self.interface.context();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        socket
            .connect(context, remote, 50_000)
            .expect("it connects");
    }

    /// Each end sends `total` bytes, ends, and reads to the other's end.
    fn exchange(&mut self, total: usize) {
        let end = self.now + Duration::from_secs(3600);
        while !self.progress.iter().all(|progress| progress.ended) {
            assert!(self.now < end, "it never ends");
            self.deliver();
            self.stack.handle_timeout(self.now);
            self.serve_ours(total);
            self.transmit(total);
            self.interface
                .poll(time(self.now), &mut self.wire, &mut self.sockets);
            self.serve_theirs(total);
            self.interface
                .poll(time(self.now), &mut self.wire, &mut self.sockets);
            for packet in std::mem::take(&mut self.wire.sent) {
                self.send(false, packet);
            }
            self.advance();
        }
    }

    fn advance(&mut self) {
        let arrival = self.packets.peek().map(|Reverse((at, ..))| *at);
        let ours = self.stack.poll_timeout(self.now);
        let theirs = self.interface.poll_at(time(self.now), &self.sockets);
        let theirs = theirs.map(|at| Instant::from_micros(at.total_micros().max(0) as u64));
        let next = [arrival, ours, theirs].into_iter().flatten().min();
        let soonest = self.now + Duration::from_micros(10);
        self.now = next.unwrap_or(soonest).max(soonest);
    }

    fn send(&mut self, to_theirs: bool, packet: Vec<u8>) {
        let (packets, order) = (&mut self.packets, &mut self.order);
        self.paths[usize::from(to_theirs)].send(self.now, packet, &mut |at, packet| {
            *order += 1;
            packets.push(Reverse((at, *order, to_theirs, packet)));
        });
    }

    fn deliver(&mut self) {
        while self
            .packets
            .peek()
            .is_some_and(|Reverse((at, ..))| *at <= self.now)
        {
            let Some(Reverse((_, _, to_theirs, packet))) = self.packets.pop() else {
                break;
            };
            match to_theirs {
                true => self.wire.arrived.push_back(packet),
                false => self.stack.handle_packets(self.now, [&packet[..]]),
            }
        }
    }

    fn transmit(&mut self, total: usize) {
        let mut packets: Vec<Vec<u8>> = Vec::new();
        while self.stack.poll_transmit(self.now, &mut packets).is_some() {
            self.serve_ours(total);
        }
        for packet in packets {
            self.send(true, packet);
        }
    }

    fn serve_ours(&mut self, total: usize) {
        while let Some(event) = self.stack.poll_event() {
            if let Event::Requested { request, .. } = event {
                self.ours = Some(self.stack.accept(self.now, request).expect("the request"));
            }
        }
        let Some(id) = self.ours else { return };
        let progress = &mut self.progress[0];
        while let Ok(bytes) = self.stack.peek(id) {
            let count = bytes.len();
            if count == 0 {
                break;
            }
            progress.check(bytes);
            self.stack.consume(self.now, id, count).expect("it is open");
        }
        while progress.sent < total {
            let Ok(count) = self.stack.write(id, &progress.block(total)) else {
                break;
            };
            progress.sent += count;
            if count == 0 {
                break;
            }
        }
        if progress.sent == total && !progress.shut {
            progress.shut = true;
            self.stack.shutdown(id).expect("it is open");
        }
        let connection = self.stack.connection(id).expect("it is known");
        let over = matches!(connection.state(), State::TimeWait | State::Closed);
        progress.ended = over && progress.received == total;
    }

    fn serve_theirs(&mut self, total: usize) {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        let progress = &mut self.progress[1];
        while socket.can_recv() {
            let taken = socket.recv(|bytes| {
                progress.check(bytes);
                (bytes.len(), bytes.len())
            });
            if taken.is_err() {
                break;
            }
        }
        while progress.sent < total && socket.can_send() {
            let count = socket.send_slice(&progress.block(total)).expect("it sends");
            progress.sent += count;
        }
        if progress.sent == total && !progress.shut && socket.may_send() {
            progress.shut = true;
            socket.close();
        }
        let over = !socket.is_open() || socket.state() == tcp::State::TimeWait;
        progress.ended = progress.shut && over && progress.received == total;
    }
}

fn time(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros((now.as_nanos() / 1000) as i64)
}

fn bad() -> PathOptions {
    PathOptions {
        loss: 0.02,
        duplicate: 0.01,
        corrupt: 0.01,
        reorder: 0.02,
        jitter: Duration::from_millis(1),
        ..PathOptions::default()
    }
}

#[test]
fn streams_both_ways_cross_clean_and_bad_paths() {
    for (seed, options) in [(1, PathOptions::default()), (2, bad()), (3, bad())] {
        let mut world = World::new(seed, options.clone(), Config::default());
        world.we_connect();
        world.exchange(500_000);
        let mut world = World::new(seed, options, Config::default());
        world.they_connect();
        world.exchange(500_000);
    }
}

#[test]
fn extensions_may_be_missing() {
    for missing in 0..4 {
        let config = Config {
            timestamps: missing != 0,
            sack: missing != 1,
            window_scaling: missing != 2,
            ecn: missing != 3,
            ..Config::default()
        };
        let mut world = World::new(10 + missing, bad(), config);
        world.we_connect();
        world.exchange(100_000);
    }
}
