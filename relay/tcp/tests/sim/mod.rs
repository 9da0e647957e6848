//! Two hosts and the path between them in virtual time: each direction has a rate, a queue, a delay
//! and faults. Everything is decided by one seed.
#![allow(dead_code, unreachable_pub, clippy::print_stdout)]

pub mod app;
pub mod path;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use relay_tcp::segment::Segment;
use relay_tcp::{Config, Connection, Events, Instant, Pool, Request, Secrets, State, Timer, Tuple};

use app::App;
use path::{Path, PathOptions, Random};

/// One connection: its client end on the first host and its server end on the second.
pub struct Flow {
    pub ends: [Option<Connection>; 2],
    pub apps: [App; 2],
    pub configs: [Arc<Config>; 2],
    pub events: [Events; 2],
    start: Instant,
    wake: [Option<Instant>; 2],
}

/// A packet on its way: arrival, order, side it goes to, bytes.
type Arrival = (Instant, u64, usize, Vec<u8>);

/// The simulated world.
pub struct Sim {
    pub now: Instant,
    pub flows: Vec<Flow>,
    pub paths: [Path; 2],
    pub pools: [Pool; 2],
    pub random: Random,
    packets: BinaryHeap<Reverse<Arrival>>,
    order: u64,
    pub steps: u64,
    pub trace: bool,
    /// Segments with data that reached the second host although it had them.
    pub twice: u64,
    seen: HashSet<(u16, u32)>,
    pub timers_fired: Vec<(Instant, usize, Timer)>,
    /// Packets that arrive within this time are one burst.
    pub burst: Duration,
    /// Everything is late by up to this time, as on a busy machine.
    pub late: Duration,
}

pub const POOL: usize = 256 << 20;

impl Sim {
    /// A world with the same path in both directions.
    pub fn new(seed: u64, path: PathOptions) -> Self {
        Self::with_paths(seed, [path.clone(), path])
    }

    pub fn with_paths(seed: u64, [out, back]: [PathOptions; 2]) -> Self {
        let mut random = Random(seed);
        Self {
            now: Instant::from_millis(1000),
            flows: Vec::new(),
            paths: [
                Path::new(out, random.next()),
                Path::new(back, random.next()),
            ],
            pools: [Pool::new(POOL), Pool::new(POOL)],
            random,
            packets: BinaryHeap::new(),
            order: 0,
            steps: 0,
            trace: false,
            twice: 0,
            seen: HashSet::new(),
            timers_fired: Vec::new(),
            burst: Duration::ZERO,
            late: Duration::ZERO,
        }
    }

    /// Adds a connection that opens `after` from now.
    pub fn connect(&mut self, configs: [Config; 2], apps: [App; 2], after: Duration) -> usize {
        self.flows.push(Flow {
            ends: [None, None],
            apps,
            configs: configs.map(Arc::new),
            events: [Events::default(); 2],
            start: self.now + after,
            wake: [Some(self.now + after), None],
        });
        self.flows.len() - 1
    }

    /// Runs until every connection is over, or `limit` of virtual time passed. Returns whether all
    /// are over.
    pub fn run(&mut self, limit: Duration) -> bool {
        let end = self.now + limit;
        while self.now < end {
            if self.flows.iter().all(Flow::is_over) && self.packets.is_empty() {
                return true;
            }
            let Some(next) = self.next_moment() else {
                return self.flows.iter().all(Flow::is_over);
            };
            if next > end {
                self.now = end;
                break;
            }
            let late = self.random.below(self.late.as_nanos() as u64);
            self.now = self.now.max(next) + Duration::from_nanos(late);
            self.step();
        }
        self.flows.iter().all(Flow::is_over)
    }

    fn next_moment(&self) -> Option<Instant> {
        let packet = self
            .packets
            .peek()
            .map(|Reverse((at, ..))| *at + self.burst);
        let wakes = self.flows.iter().flat_map(|flow| flow.wake).flatten();
        packet.into_iter().chain(wakes).min()
    }

    fn step(&mut self) {
        self.steps += 1;
        let mut touched = vec![[false; 2]; self.flows.len()];
        while let Some(Reverse((at, ..))) = self.packets.peek() {
            if *at > self.now {
                break;
            }
            let Some(Reverse((_, _, side, packet))) = self.packets.pop() else {
                break;
            };
            if let Some(flow) = self.deliver(side, &packet) {
                touched[flow][side] = true;
            }
        }
        for (index, touched) in touched.into_iter().enumerate() {
            for (side, touched) in touched.into_iter().enumerate() {
                let is_due = self.flows[index].wake[side].is_some_and(|at| at <= self.now);
                if is_due || touched {
                    self.serve(index, side);
                }
            }
        }
    }

    fn deliver(&mut self, side: usize, packet: &[u8]) -> Option<usize> {
        let segment = Segment::parse(packet, true).ok()?;
        if self.trace {
            let (now, arrow) = (self.now.as_nanos() / 1000, ["<", ">"][side]);
            println!("{now:>12} {arrow} {}", describe(&segment));
        }
        let port = if side == 1 {
            segment.source.port()
        } else {
            segment.destination.port()
        };
        if side == 1 && !segment.payload.is_empty() && !self.seen.insert((port, segment.seq)) {
            self.twice += 1;
        }
        let index = usize::from(port.checked_sub(10_000)?);
        let flow = self.flows.get_mut(index)?;
        match &mut flow.ends[side] {
            Some(connection) => connection.handle_segment(self.now, &segment),
            None => {
                let request = Request::from_segment(&segment)?;
                let secrets = secrets(&mut self.random);
                let config = flow.configs[side].clone();
                let pool = &self.pools[side];
                flow.ends[side] = Some(Connection::accept(
                    config, &request, secrets, pool, self.now,
                ));
            }
        }
        Some(index)
    }

    /// Lets one end do all it can now.
    fn serve(&mut self, index: usize, side: usize) {
        let now = self.now;
        let secrets = secrets(&mut self.random);
        let flow = &mut self.flows[index];
        if side == 0 && flow.ends[0].is_none() && flow.start <= now {
            let tuple = tuple(index);
            let config = flow.configs[0].clone();
            let first = match config.early_data {
                true => flow.apps[0].first(2000),
                false => Vec::new(),
            };
            let (end, taken) =
                Connection::connect_with(config, tuple, secrets, &self.pools[0], now, &first);
            flow.apps[0].sent = taken as u64;
            flow.ends[0] = Some(end);
        }
        let Some(connection) = &mut flow.ends[side] else {
            return;
        };
        if let Some((at, timer)) = connection.poll_timeout()
            && at <= now
        {
            self.timers_fired.push((now, side, timer));
        }
        connection.handle_timeout(now);
        let app_wake = flow.apps[side].serve(connection, now);
        let mut sink: Vec<Vec<u8>> = Vec::new();
        loop {
            let before = sink.len();
            let Some(sent) = connection.poll_transmit(now, &mut sink) else {
                break;
            };
            check_run(&sink[before..], &sent);
            // Room that was made by sending is used at once.
            flow.apps[side].serve(connection, now);
        }
        let events = connection.take_events();
        merge(&mut flow.events[side], events);
        let timeout = connection.poll_timeout().map(|(at, _)| at);
        assert!(
            timeout.is_none_or(|at| at >= now || connection.state() == State::Closed)
                || timeout == Some(now)
        );
        flow.wake[side] = timeout.into_iter().chain(app_wake).min();
        for packet in sink {
            self.send(side, packet);
        }
    }

    fn send(&mut self, from: usize, packet: Vec<u8>) {
        let (now, order) = (self.now, &mut self.order);
        let packets = &mut self.packets;
        self.paths[from].send(now, packet, &mut |at, packet| {
            *order += 1;
            packets.push(Reverse((at, *order, 1 - from, packet)));
        });
    }

    pub fn end(&self, flow: usize, side: usize) -> &Connection {
        self.flows[flow].ends[side]
            .as_ref()
            .expect("the end exists")
    }
}

impl Flow {
    fn is_over(&self) -> bool {
        let over = |end: &Option<Connection>| {
            end.as_ref().is_some_and(|end| {
                matches!(end.state(), State::Closed | State::TimeWait) && end.peek().is_empty()
            })
        };
        over(&self.ends[0]) && (self.ends[1].is_none() || over(&self.ends[1]))
    }
}

/// The ends of flow `index`, seen from the client.
pub fn tuple(index: usize) -> Tuple {
    let local: SocketAddr = format!("[fd00::1]:{}", 10_000 + index)
        .parse()
        .expect("an address");
    let remote: SocketAddr = "[fd00::2]:80".parse().expect("an address");
    Tuple { local, remote }
}

pub fn secrets(random: &mut Random) -> Secrets {
    Secrets {
        initial_sequence: random.next() as u32,
        timestamp_offset: random.next() as u32,
        seed: random.next(),
    }
}

/// A run is what segmentation offload takes: equal lengths, the last may be shorter.
fn check_run(packets: &[Vec<u8>], sent: &relay_tcp::Transmit) {
    assert_eq!(packets.len(), sent.packets);
    assert_eq!(packets.iter().map(Vec::len).sum::<usize>(), sent.bytes);
    assert!(packets.len() <= 64 && sent.bytes <= 65_507);
    let first = packets[0].len();
    let (last, others) = packets.split_last().expect("a run has packets");
    assert!(others.iter().all(|packet| packet.len() == first) && last.len() <= first);
}

fn merge(all: &mut Events, new: Events) {
    all.connected |= new.connected;
    all.readable |= new.readable;
    all.writable |= new.writable;
    all.finished |= new.finished;
    all.closed = all.closed.or(new.closed);
}

pub fn describe(segment: &Segment<'_>) -> String {
    format!(
        "{:02x} seq {} ack {} len {} win {} sack {:?} ts {:?} ecn {:?}",
        segment.flags.0,
        segment.seq,
        segment.ack,
        segment.payload.len(),
        segment.window,
        segment.options.sack.as_slice(),
        segment.options.timestamps,
        segment.ecn
    )
}
