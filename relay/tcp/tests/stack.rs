//! Many connections: requests for any port, pings, limits.
#![allow(clippy::print_stdout)]

#[path = "stack/early.rs"]
mod early;
#[path = "stack/ten_thousand.rs"]
mod ten_thousand;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use relay_tcp::segment::{Flags, Segment};
use relay_tcp::{
    CloseReason, Config, ConnectionId, Error, Event, Events, Instant, RequestId, Stack,
    StackConfig, State,
};

const CLIENT: &str = "fd00::1";
const SERVER: &str = "fd00::2";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn server_port(port: u16) -> SocketAddr {
    SocketAddr::new(ip(SERVER), port)
}

fn stack(address: &str, change: impl FnOnce(&mut StackConfig)) -> Stack {
    let mut config = StackConfig {
        addresses: vec![ip(address), ip("10.0.0.1"), ip("10.0.0.2")],
        connection: Config {
            mtu: 1420,
            ..Config::default()
        },
        ..StackConfig::default()
    };
    change(&mut config);
    Stack::new(config, [1, address.len() as u64 ^ 7])
}

/// Two stacks without any delay between them.
struct Pair {
    now: Instant,
    stacks: [Stack; 2],
    events: [Vec<Event>; 2],
    /// Sizes of the runs that the client sent.
    runs: Vec<usize>,
    mtu: usize,
    dropped: usize,
}

impl Pair {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl Fn(&mut StackConfig)) -> Self {
        Self {
            now: Instant::from_millis(1000),
            stacks: [stack(CLIENT, &change), stack(SERVER, &change)],
            events: [Vec::new(), Vec::new()],
            runs: Vec::new(),
            mtu: usize::MAX,
            dropped: 0,
        }
    }

    /// Carries packets until nothing moves, without time passing.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for side in 0..2 {
                let mut packets: Vec<Vec<u8>> = Vec::new();
                while let Some((peer, sent)) =
                    self.stacks[side].poll_transmit(self.now, &mut packets)
                {
                    assert!(peer == ip([SERVER, CLIENT][side]) || peer.is_ipv4());
                    if side == 0 {
                        self.runs.push(sent.packets);
                    }
                }
                moved |= !packets.is_empty();
                let before = packets.len();
                packets.retain(|packet| packet.len() <= self.mtu);
                self.dropped += before - packets.len();
                let packets = packets.iter().map(Vec::as_slice);
                self.stacks[1 - side].handle_packets(self.now, packets);
                while let Some(event) = self.stacks[side].poll_event() {
                    self.events[side].push(event);
                }
            }
            for side in 0..2 {
                while let Some(event) = self.stacks[side].poll_event() {
                    self.events[side].push(event);
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// Lets `time` pass, with all timers on the way.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.settle();
            let timers = self
                .stacks
                .iter()
                .filter_map(|stack| stack.poll_timeout(self.now));
            let Some(next) = timers.min().filter(|&next| next <= end) else {
                break;
            };
            self.now = self.now.max(next);
            for stack in &mut self.stacks {
                stack.handle_timeout(self.now);
            }
        }
        self.now = end;
        self.settle();
    }

    fn connect(&mut self, port: u16) -> ConnectionId {
        let id = self.stacks[0]
            .connect(self.now, ip(CLIENT), server_port(port))
            .expect("a connection");
        self.settle();
        id
    }

    fn request(&mut self) -> Option<RequestId> {
        let position = self.events[1]
            .iter()
            .position(|event| matches!(event, Event::Requested { .. }))?;
        match self.events[1].remove(position) {
            Event::Requested { request, .. } => Some(request),
            _ => None,
        }
    }

    fn open(&mut self, port: u16) -> [ConnectionId; 2] {
        let client = self.connect(port);
        let request = self.request().expect("a request");
        let server = self.stacks[1]
            .accept(self.now, request)
            .expect("the request");
        self.settle();
        [client, server]
    }

    fn events_of(&self, side: usize, id: ConnectionId) -> Events {
        let mut all = Events::default();
        for event in &self.events[side] {
            if let Event::Changed { id: of, events } = event
                && *of == id
            {
                all.connected |= events.connected;
                all.readable |= events.readable;
                all.writable |= events.writable;
                all.finished |= events.finished;
                all.closed = all.closed.or(events.closed);
            }
        }
        all
    }
}

#[test]
fn a_request_to_any_port_waits_for_the_owner() {
    let mut pair = Pair::new();
    let client = pair.connect(4321);
    assert!(!pair.events_of(0, client).connected);
    let Some(Event::Requested { local, remote, .. }) = pair.events[1].first().copied() else {
        panic!("no request: {:?}", pair.events[1]);
    };
    assert_eq!((local, remote.ip()), (server_port(4321), ip(CLIENT)));
    // The SYN comes again, and is the same request.
    pair.pass(Duration::from_secs(4));
    assert_eq!(pair.events[1].len(), 1);
    let request = pair.request().unwrap();
    let server = pair.stacks[1].accept(pair.now, request).unwrap();
    pair.settle();
    assert!(pair.events_of(0, client).connected && pair.events_of(1, server).connected);
    assert_eq!(
        pair.stacks[1].accept(pair.now, request),
        Err(Error::RequestGone)
    );
}

#[test]
fn a_refused_request_looks_like_a_closed_port() {
    let mut pair = Pair::new();
    let client = pair.connect(1);
    let request = pair.request().unwrap();
    pair.stacks[1].refuse(request).unwrap();
    pair.settle();
    assert_eq!(pair.events_of(0, client).closed, Some(CloseReason::Refused));
    pair.stacks[0].close(pair.now, client);
    pair.settle();
    assert!(pair.stacks[0].is_empty());
}

#[test]
fn a_request_is_withdrawn_by_a_reset_and_by_time() {
    let mut pair = Pair::new();
    let client = pair.connect(1);
    let request = pair.request().unwrap();
    let tuple = pair.stacks[0].connection(client).unwrap().tuple();
    // A reset of the peer, as if it had given up.
    let mut packets: Vec<Vec<u8>> = Vec::new();
    let syn = Segment {
        source: tuple.remote,
        destination: tuple.local,
        seq: 0,
        ack: 1,
        flags: Flags::ACK,
        window: 0,
        options: relay_tcp::segment::Options::default(),
        ecn: relay_tcp::segment::Ecn::NotCapable,
        payload: &[],
    };
    assert!(relay_tcp::reset_for(&syn, &mut packets));
    pair.stacks[1].handle_packets(pair.now, packets.iter().map(Vec::as_slice));
    pair.settle();
    assert_eq!(pair.events[1], [Event::Withdrawn(request)]);

    pair.stacks[0].abort(client);
    pair.events[1].clear();
    pair.connect(2);
    let request = pair.request().unwrap();
    pair.pass(Duration::from_secs(21));
    assert_eq!(pair.events[1][0], Event::Withdrawn(request));
    assert_eq!(pair.stacks[1].refuse(request), Err(Error::RequestGone));
}

#[test]
fn requests_are_bounded() {
    let mut pair = Pair::with(|config| {
        config.max_requests_of_peer = 3;
    });
    for port in 1..=10 {
        pair.connect(port);
    }
    assert_eq!(pair.events[1].len(), 3);
}

#[test]
fn connections_are_bounded() {
    let mut pair = Pair::with(|config| config.max_connections = 2);
    pair.open(1);
    pair.connect(2);
    let third = pair.stacks[0].connect(pair.now, ip(CLIENT), server_port(3));
    assert_eq!(third, Err(Error::TooMany));
}

#[test]
fn data_travels_in_runs_of_equal_segments() {
    let mut pair = Pair::new();
    let [client, server] = pair.open(80);
    let data: Vec<u8> = (0..3_000_000_u32).map(|at| ((at * 7) >> 3) as u8).collect();
    let (mut written, mut read) = (0, Vec::new());
    let mut room = vec![0; 1 << 16];
    while read.len() < data.len() {
        written += pair.stacks[0].write(client, &data[written..]).unwrap();
        pair.pass(Duration::from_micros(100));
        loop {
            let count = pair.stacks[1].read(pair.now, server, &mut room).unwrap();
            read.extend_from_slice(&room[..count]);
            if count == 0 {
                break;
            }
        }
    }
    assert!(read == data);
    let longest = pair.runs.iter().copied().max().unwrap();
    assert!((40..=64).contains(&longest), "{longest} packets in a run");
    assert_eq!(
        pair.stacks[0].memory_used() + pair.stacks[1].memory_used(),
        0
    );
}

#[test]
fn bytes_are_read_right_to_where_they_are_sent_from_and_lent_where_they_arrived() {
    let mut pair = Pair::new();
    let [client, server] = pair.open(80);
    let data: Vec<u8> = (0..200_000_u32).map(|at| ((at * 7) >> 3) as u8).collect();
    let (mut written, mut read) = (0, Vec::new());
    while read.len() < data.len() {
        let lent = pair.stacks[0].write_with(client, 50_000, |slices| {
            let mut rest = &data[written..];
            let room: usize = slices.iter().map(|slice| slice.len()).sum();
            assert!(room <= 50_000, "{room}");
            for slice in slices.iter_mut() {
                let count = slice.len().min(rest.len());
                slice[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
            }
            let count = data.len() - written - rest.len();
            Ok::<_, ()>(("what the borrower likes", count))
        });
        if let Some(Ok((_, count))) = lent.expect("open") {
            written += count;
        }
        pair.settle();
        let taken = pair.stacks[1].peek_with(server, |slices| {
            let before = read.len();
            slices
                .iter()
                .for_each(|slice| read.extend_from_slice(slice));
            read.len() - before
        });
        let taken = taken.expect("open");
        pair.stacks[1]
            .consume(pair.now, server, taken)
            .expect("open");
        pair.settle();
    }
    assert!(read == data);
    let idle = pair.stacks[0].memory_used() + pair.stacks[1].memory_used();
    assert_eq!(idle, 0, "what was lent and not used is given back");
    let failed = pair.stacks[0].write_with(client, 1, |_| Err::<((), usize), _>("no bytes"));
    assert_eq!(failed, Ok(Some(Err("no bytes"))));
    assert_eq!(pair.stacks[0].memory_used(), 0);
}

#[test]
fn what_came_before_a_reset_can_still_be_read() {
    let mut pair = Pair::new();
    let [client, server] = pair.open(80);
    pair.stacks[0].write(client, b"last words").expect("open");
    pair.settle();
    pair.stacks[0].abort(client);
    pair.settle();
    let closed = pair.events_of(1, server).closed;
    assert_eq!(closed, Some(CloseReason::Reset));
    assert_eq!(pair.stacks[1].peek(server), Ok(&b"last words"[..]));
    pair.stacks[1].close(pair.now, server);
    pair.settle();
    assert_eq!((pair.stacks[1].len(), pair.stacks[1].memory_used()), (0, 0));
}

#[test]
fn a_receive_buffer_keeps_within_the_bound_of_its_way() {
    let mut pair = Pair::new();
    pair.stacks[1].set_way(ip(CLIENT), relay_tcp::Algorithm::Cubic, 100_000);
    let [client, _server] = pair.open(80);
    for _ in 0..100 {
        pair.stacks[0].write(client, &[7; 50_000]).expect("open");
        pair.pass(Duration::from_millis(50));
    }
    let held = pair.stacks[1].memory_used();
    assert!((80_000..140_000).contains(&held), "{held}");
}

#[test]
fn a_smaller_path_is_followed_without_a_stall() {
    let mut pair = Pair::new();
    let [client, server] = pair.open(80);
    let data = vec![7; 2_000_000];
    let (mut written, mut read) = (0, 0);
    let mut room = vec![0; 1 << 16];
    let start = pair.now;
    while read < data.len() {
        written += pair.stacks[0].write(client, &data[written..]).unwrap();
        if read > 300_000 && pair.mtu == usize::MAX {
            // What is in flight is lost, and the tunnel says so a little later.
            pair.mtu = 1280;
            let mut flight: Vec<Vec<u8>> = Vec::new();
            while pair.stacks[0]
                .poll_transmit(pair.now, &mut flight)
                .is_some()
            {}
            pair.now += Duration::from_millis(1);
            for stack in &mut pair.stacks {
                stack.set_mtu(pair.now, ip(SERVER), 1280);
            }
        }
        pair.pass(Duration::from_micros(200));
        loop {
            let count = pair.stacks[1].read(pair.now, server, &mut room).unwrap();
            read += count;
            if count == 0 {
                break;
            }
        }
        assert!(
            pair.now.since(start) < Duration::from_secs(5),
            "{read} bytes only"
        );
    }
    assert_eq!(pair.dropped, 0, "no packet was larger than the path");
}

#[test]
fn both_ends_are_forgotten_after_time_wait() {
    let mut pair = Pair::new();
    let [client, server] = pair.open(80);
    pair.stacks[0].close(pair.now, client);
    pair.settle();
    assert!(pair.events_of(1, server).finished);
    pair.stacks[1].close(pair.now, server);
    pair.settle();
    assert_eq!((pair.stacks[0].len(), pair.stacks[1].len()), (1, 0));
    pair.pass(Duration::from_secs(61));
    assert!(pair.stacks[0].is_empty());
}

#[test]
fn connections_in_time_wait_make_room() {
    let mut pair = Pair::with(|config| config.max_time_wait = 5);
    for _ in 0..20 {
        let [client, server] = pair.open(80);
        pair.stacks[0].close(pair.now, client);
        pair.settle();
        pair.stacks[1].close(pair.now, server);
        pair.settle();
    }
    assert_eq!(pair.stacks[0].len(), 5);
}

#[test]
fn a_new_connection_takes_the_place_of_one_in_time_wait() {
    let mut pair = Pair::new();
    let [client, server] = pair.open(80);
    let tuple = pair.stacks[0].connection(client).unwrap().tuple();
    // The server ends first, so that it is the one that waits.
    pair.stacks[1].close(pair.now, server);
    pair.settle();
    pair.stacks[0].close(pair.now, client);
    pair.settle();
    assert_eq!((pair.stacks[0].len(), pair.stacks[1].len()), (0, 1));
    pair.now += Duration::from_millis(10);
    // Every port, until the same comes again.
    let mut found = false;
    for _ in 0..28_232 {
        let id = pair.stacks[0]
            .connect(pair.now, ip(CLIENT), server_port(80))
            .unwrap();
        if pair.stacks[0].connection(id).unwrap().tuple() == tuple {
            pair.settle();
            found = true;
            break;
        }
        pair.stacks[0].abort(id);
        let mut packets: Vec<Vec<u8>> = Vec::new();
        while pair.stacks[0]
            .poll_transmit(pair.now, &mut packets)
            .is_some()
        {}
        assert!(packets.is_empty());
    }
    assert!(
        found && pair.request().is_some(),
        "the server sees a request"
    );
}

#[test]
fn pings_are_answered() {
    let mut pair = Pair::new();
    let mut echo = vec![0x60, 0, 0, 0, 0, 12, 58, 64];
    for address in [CLIENT, SERVER] {
        let IpAddr::V6(address) = ip(address) else {
            panic!()
        };
        echo.extend_from_slice(&address.octets());
    }
    echo.extend_from_slice(&[128, 0, 0, 0, 1, 2, 0, 3, b'p', b'i', b'n', b'g']);
    // Not answered: the checksum is wrong.
    pair.stacks[1].handle_packets(pair.now, [&echo[..]]);
    let mut packets: Vec<Vec<u8>> = Vec::new();
    assert_eq!(pair.stacks[1].poll_transmit(pair.now, &mut packets), None);
    let sum: u32 = echo[8..]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum::<u32>()
        + 12
        + 58;
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    echo[42..44].copy_from_slice(&sum.to_be_bytes());
    pair.stacks[1].handle_packets(pair.now, [&echo[..]]);
    assert!(
        pair.stacks[1]
            .poll_transmit(pair.now, &mut packets)
            .is_some()
    );
    let answer = &packets[0];
    assert_eq!(answer[40], 129);
    assert_eq!(answer[44..], echo[44..]);
    assert_eq!(answer[8..24], echo[24..40]);
    // The same packet as an answer's answer is none.
    pair.stacks[0].handle_packets(pair.now, [&answer[..]]);
    assert_eq!(pair.stacks[0].poll_transmit(pair.now, &mut packets), None);
}

#[test]
fn ipv4_works_as_well() {
    let mut pair = Pair::new();
    let remote: SocketAddr = "10.0.0.2:80".parse().unwrap();
    let client = pair.stacks[0]
        .connect(pair.now, ip("10.0.0.1"), remote)
        .unwrap();
    pair.settle();
    let request = pair.request().unwrap();
    let server = pair.stacks[1].accept(pair.now, request).unwrap();
    pair.stacks[0].write(client, b"hello").unwrap();
    pair.settle();
    assert_eq!(pair.stacks[1].peek(server), Ok(&b"hello"[..]));
    let mixed = pair.stacks[0].connect(pair.now, ip(CLIENT), remote);
    assert_eq!(mixed, Err(Error::Family));
}

#[test]
fn a_writer_without_memory_goes_on_when_there_is_some() {
    let mut pair = Pair::with(|config| config.memory = 20 * 16 * 1024);
    let writers: Vec<_> = (1..4).map(|port| pair.open(port)).collect();
    let [second, _] = pair.open(5);
    // The peers do not read, so all memory is taken.
    for &[writer, _] in &writers {
        while pair.stacks[0].write(writer, &[0; 16384]).unwrap() > 0 {
            pair.settle();
        }
    }
    assert_eq!(pair.stacks[0].write(second, b"x"), Ok(0));
    let mut room = vec![0; 1 << 20];
    for _ in 0..200 {
        for &[_, reader] in &writers {
            let _ = pair.stacks[1].read(pair.now, reader, &mut room).unwrap();
        }
        pair.pass(Duration::from_millis(20));
    }
    assert!(pair.events_of(0, second).writable);
    assert_eq!(pair.stacks[0].write(second, b"x"), Ok(1));
}

#[test]
fn a_forgotten_peer_leaves_nothing() {
    let mut pair = Pair::new();
    pair.open(1);
    pair.connect(2);
    pair.stacks[1].forget_peer(ip(CLIENT));
    pair.settle();
    let state = |stack: &mut Stack, id| stack.connection(id).map(|connection| connection.state());
    let ids: Vec<ConnectionId> = pair.events[1]
        .iter()
        .filter_map(|event| match event {
            Event::Changed { id, .. } => Some(*id),
            _ => None,
        })
        .collect();
    for id in ids {
        assert_eq!(state(&mut pair.stacks[1], id), Some(State::Closed));
        pair.stacks[1].close(pair.now, id);
    }
    pair.settle();
    assert!(pair.stacks[1].is_empty());
}
