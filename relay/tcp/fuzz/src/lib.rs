//! What must hold whatever a peer sends. Each function is the body of a fuzz target and of a property in
//! `relay/tcp/tests/hostile.rs`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use relay_tcp::segment::{Ecn, Flags, Options, SackBlocks, Segment};
use relay_tcp::{
    Algorithm, Config, Connection, Event, Instant, Pool, Request, Secrets, Stack, StackConfig,
    State, Tuple,
};

/// Memory of all buffers.
const MEMORY: usize = 8 << 20;

/// Any packets: a stack bears them, and answers no more than a little for each.
pub fn packets(bytes: &[u8]) {
    let address = |text: &str| text.parse().expect("an address");
    let config = StackConfig {
        addresses: vec![address("::1"), address("10.0.0.1")],
        memory: MEMORY,
        ..StackConfig::default()
    };
    let mut stack = Stack::new(config, [1, 2]);
    let mut now = Instant::from_millis(1000);
    let mut rest = bytes;
    while let Some((&length, tail)) = rest.split_first() {
        let (packet, tail) = tail.split_at(usize::from(length).min(tail.len()));
        rest = tail;
        let _ = Segment::parse(packet, false);
        stack.handle_packets(now, [packet]);
        while let Some(event) = stack.poll_event() {
            if let Event::Requested { request, .. } = event {
                let _ = stack.accept(now, request);
            }
        }
        let mut sink: Vec<Vec<u8>> = Vec::new();
        while stack.poll_transmit(now, &mut sink).is_some() {}
        assert!(sink.len() <= 4, "{} packets for one", sink.len());
        now += Duration::from_millis(u64::from(length));
        stack.handle_timeout(now);
    }
}

/// Segments that hit an open connection: numbers near those that count, any flags, any options. It bears them, sends
/// only what it was given, never runs out of bounds, and ends when it is told to.
pub fn segments(bytes: &[u8]) {
    let mut script = Script(bytes);
    let setting = script.byte();
    let mut target = Target::new(setting);
    while !script.0.is_empty() {
        target.step(&mut script);
        target.check();
    }
    target.end();
}

/// Bytes that decide what happens next; zeros when there are no more.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    /// A number near `base`, or far from it now and then.
    fn near(&mut self, base: u32) -> u32 {
        let kind = self.byte();
        let step = u32::from(self.byte());
        let far = match kind % 8 {
            0..=3 => step,
            4 => step.wrapping_mul(64),
            5 => step.wrapping_neg(),
            6 => step.wrapping_mul(1 << 13),
            _ => step.wrapping_mul(0x0101_0101),
        };
        base.wrapping_add(far)
    }
}

/// A connection, and what its peer has seen of it.
struct Target {
    connection: Connection,
    pool: Pool,
    now: Instant,
    tuple: Tuple,
    /// The next numbers of the peer and of the connection, as the peer sees them.
    theirs: u32,
    ours: u32,
    first: u32,
    written: u32,
}

const THEIR_START: u32 = 0xffff_ff00;

impl Target {
    fn new(setting: u8) -> Self {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let tuple = Tuple {
            local: address("[::1]:1"),
            remote: address("[::2]:2"),
        };
        let config = Arc::new(Config {
            timestamps: setting & 1 != 0,
            sack: setting & 2 != 0,
            ecn: setting & 4 != 0,
            window_scaling: setting & 8 != 0,
            early_data: setting & 64 != 0,
            algorithm: if setting & 16 != 0 {
                Algorithm::Cubic
            } else {
                Algorithm::Bbr
            },
            receive_buffer: 32 << 10,
            receive_buffer_max: 1 << 20,
            ..Config::default()
        });
        let first = 0x7fff_ff80;
        let secrets = Secrets {
            initial_sequence: first,
            timestamp_offset: 0xffff_ff00,
            seed: 1,
        };
        let (pool, now) = (Pool::new(MEMORY), Instant::from_millis(1000));
        let syn = segment(
            tuple,
            THEIR_START,
            0,
            Flags::SYN | Flags::ECE | Flags::CWR,
            60_000,
            true,
            &[9; 300],
        );
        let mut written = 0;
        let connection = match setting & 32 {
            0 => {
                let request = Request::from_segment(&syn).expect("a SYN");
                Connection::accept(config, &request, secrets, &pool, now)
            }
            _ => {
                let first: &[u8] = if setting & 64 != 0 { &[7; 1500] } else { &[] };
                let (connection, taken) =
                    Connection::connect_with(config, tuple, secrets, &pool, now, first);
                written = taken as u32;
                connection
            }
        };
        Self {
            connection,
            pool,
            now,
            tuple,
            theirs: THEIR_START.wrapping_add(1),
            ours: first.wrapping_add(1),
            first,
            written,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 16 {
            0 => self.now += Duration::from_millis(u64::from(script.byte()) * 16),
            1 => {
                let data = vec![7; usize::from(script.byte()) * 64];
                self.written += self.connection.write(&data).unwrap_or(0) as u32;
            }
            2 => {
                let mut room = vec![0; usize::from(script.byte()) * 256];
                self.connection.read(self.now, &mut room);
            }
            3 if script.byte() > 200 => self.connection.shutdown(),
            4 if script.byte() > 250 => self.connection.close(self.now),
            5 => self
                .connection
                .set_mtu(self.now, 600 + u16::from(script.byte()) * 16),
            // The handshake, or what any good peer would say.
            6 => {
                let flags = if script.byte() & 1 == 0 {
                    Flags::ACK
                } else {
                    Flags::SYN | Flags::ACK
                };
                let seq = if flags.has(Flags::SYN) {
                    THEIR_START
                } else {
                    self.theirs
                };
                let good = segment(
                    self.tuple,
                    seq,
                    self.ours,
                    flags,
                    60_000,
                    flags.has(Flags::SYN),
                    &[],
                );
                self.connection.handle_segment(self.now, &good);
            }
            _ => self.hit(script),
        }
        self.connection.handle_timeout(self.now);
    }

    fn hit(&mut self, script: &mut Script<'_>) {
        let flags = match script.byte() {
            byte @ 0..=127 => Flags(byte & 0xd9) | Flags::ACK,
            byte => Flags(byte),
        };
        let payload = vec![9; usize::from(script.byte()) * 8];
        let (seq, ack) = (
            script.near(self.theirs),
            script.near(self.ours.wrapping_sub(128)),
        );
        let window = u16::from(script.byte()) << 8;
        let mut hit = segment(
            self.tuple,
            seq,
            ack,
            flags,
            window,
            flags.has(Flags::SYN),
            &payload,
        );
        let options = script.byte();
        if options & 1 != 0 {
            for _ in 0..options >> 6 {
                let start = script.near(self.ours.wrapping_sub(2048));
                hit.options.sack.push(start, script.near(start));
            }
        }
        if options & 6 != 0 {
            hit.options.timestamps = Some((script.near(5), script.near(1000u32.wrapping_sub(256))));
        }
        if options & 8 != 0 {
            hit.ecn = Ecn::Congested;
        }
        let is_in_order = seq == self.theirs && !flags.has(Flags::SYN) && !flags.has(Flags::RST);
        self.connection.handle_segment(self.now, &hit);
        if is_in_order {
            self.theirs = self.theirs.wrapping_add(payload.len() as u32);
        }
    }

    /// Does what is due until nothing is, as an owner would, and looks at what comes of it.
    fn check(&mut self) {
        for _ in 0..4 {
            self.take();
            assert!(self.pool.used() <= MEMORY);
            assert!(self.connection.peek().iter().all(|&byte| byte == 9));
            match self.connection.poll_timeout() {
                Some((at, _)) if at <= self.now => self.connection.handle_timeout(self.now),
                _ => return,
            }
        }
        let timer = self.connection.poll_timeout();
        panic!("{timer:?} stays due at {:?}", self.now);
    }

    /// Takes what the connection sends, as its peer would.
    fn take(&mut self) {
        let mut packets: Vec<Vec<u8>> = Vec::new();
        let mut runs = 0;
        while self
            .connection
            .poll_transmit(self.now, &mut packets)
            .is_some()
        {
            runs += 1;
            assert!(runs < 2000, "it sends without end");
        }
        for packet in &packets {
            let sent = Segment::parse(packet, true).expect("a whole segment");
            let end = sent
                .seq
                .wrapping_add(sent.length() as u32)
                .wrapping_sub(self.first);
            let limit = self.written + 2;
            // A reset may answer a number of the peer's.
            assert!(
                sent.flags.has(Flags::RST) || end <= limit,
                "{end} of {limit} bytes are sent"
            );
            if !sent.payload.is_empty() {
                assert!(sent.payload.iter().all(|&byte| byte == 7));
            }
            if !sent.flags.has(Flags::RST) {
                self.ours = self
                    .first
                    .wrapping_add(end.max(self.ours.wrapping_sub(self.first)));
            }
        }
    }

    /// A silent peer: the connection is over in the end, and has no memory left.
    fn end(&mut self) {
        self.connection.close(self.now);
        for _ in 0..2000 {
            self.check();
            if self.connection.state() == State::Closed {
                break;
            }
            let Some((at, _)) = self.connection.poll_timeout() else {
                break;
            };
            self.now = self.now.max(at);
            self.connection.handle_timeout(self.now);
        }
        assert_eq!(self.connection.state(), State::Closed);
        let mut room = vec![0; 1 << 21];
        self.connection.read(self.now, &mut room);
        assert_eq!(self.pool.used(), 0);
    }
}

fn segment(
    tuple: Tuple,
    seq: u32,
    ack: u32,
    flags: Flags,
    window: u16,
    is_syn: bool,
    payload: &[u8],
) -> Segment<'_> {
    Segment {
        source: tuple.remote,
        destination: tuple.local,
        seq,
        ack,
        flags,
        window,
        options: Options {
            mss: is_syn.then_some(1200),
            window_scale: is_syn.then_some(7),
            sack_permitted: is_syn,
            timestamps: is_syn.then_some((5, 0)),
            sack: SackBlocks::default(),
        },
        ecn: Ecn::NotCapable,
        payload,
    }
}
