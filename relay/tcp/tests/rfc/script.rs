//! Runs scripts of packets against one connection, in virtual time.
//!
//! | line | meaning |
//! |---|---|
//! | `set NAME VALUE` | a setting, before the connection exists |
//! | `connect`, `connect N` | our end opens, with N first bytes; a SYN that is received makes it the passive end instead |
//! | `< FLAGS key=value…` | the peer's segment arrives |
//! | `> FLAGS key=value…` | the next segment we send has these properties; others do not matter |
//! | `none` | nothing is sent now |
//! | `+N` | N milliseconds pass, in which nothing is sent |
//! | `~N > …` | the segment is sent by a timer, N milliseconds from now |
//! | `write N`, `read N`, `shutdown`, `close`, `abort`, `mtu N` | the application does that |
//! | `state NAME`, `closed REASON`, `window A..B`, `unread N` | that is so |
//!
//! Flags are letters of `SFRPEW` and `.` for an acknowledgement; PSH is not compared. Numbers count
//! from each side's SYN. Keys: `seq len ack win mss ws sackok ts sack ce ect`.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use relay_tcp::segment::{Ecn, Flags, Options, SackBlocks, Segment};
use relay_tcp::{
    Algorithm, Checksums, Config, Connection, Events, Instant, Keepalive, Pool, Request, Secrets,
    Tuple,
};

const OUR_START: u32 = 0xffff_fff0;
const THEIR_START: u32 = 0x7fff_fff0;
const TIMESTAMP_START: u32 = 0xffff_f000;

pub(crate) struct Run {
    config: Config,
    connection: Option<Connection>,
    pub(crate) now: Instant,
    pending: Vec<Vec<u8>>,
    events: Events,
    tuple: Tuple,
    line: String,
}

/// Runs `script`; panics at the first line that is not so.
pub(crate) fn run(script: &str) -> Run {
    let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let mut run = Run {
        config: Config {
            mtu: 1060,
            algorithm: Algorithm::Cubic,
            timestamps: false,
            ecn: false,
            window_scaling: false,
            receive_buffer: 60_000,
            receive_buffer_max: 60_000,
            ..Config::default()
        },
        connection: None,
        now: Instant::from_millis(1000),
        pending: Vec::new(),
        events: Events::default(),
        tuple: Tuple {
            local: address("[fd00::1]:1"),
            remote: address("[fd00::2]:2"),
        },
        line: String::new(),
    };
    for (number, line) in (1..).zip(script.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            run.line = format!("line {number}: {line}");
            run.step(line);
        }
    }
    run
}

impl Run {
    fn step(&mut self, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "set" => self.set(rest),
            "connect" => {
                let config = Arc::new(self.config.clone());
                let first = match rest {
                    "" => Vec::new(),
                    length => vec![b'x'; number(length) as usize],
                };
                let (connection, taken) = Connection::connect_with(
                    config,
                    self.tuple,
                    secrets(),
                    &Pool::new(64 << 20),
                    self.now,
                    &first,
                );
                assert_eq!(taken, first.len());
                self.connection = Some(connection);
            }
            "<" => self.arrive(rest),
            ">" => self.expect(rest),
            "none" => self.expect_nothing(),
            "state" => {
                let state = format!("{:?}", self.end().state());
                assert_eq!(state, rest, "{}", self.line);
            }
            "closed" => {
                self.collect();
                let reason = self.events.closed.map(|reason| format!("{reason:?}"));
                assert_eq!(reason.as_deref().unwrap_or("no"), rest, "{}", self.line);
            }
            "window" => {
                let window = self.end().congestion_window();
                assert!(
                    range(rest).contains(&window),
                    "{}: it is {window}",
                    self.line
                );
            }
            "unread" => {
                let unread = self.end().peek().len();
                assert_eq!(unread, number(rest) as usize, "{}", self.line);
            }
            _ if word.starts_with('+') => self.pass(number(&word[1..])),
            _ if word.starts_with('~') => {
                self.expect_later(number(&word[1..]), rest.trim_start_matches('>').trim())
            }
            _ => self.act(word, rest),
        }
    }

    fn set(&mut self, rest: &str) {
        let (name, value) = rest.split_once(' ').expect("a name and a value");
        let config = &mut self.config;
        let on = value == "on";
        match name {
            "timestamps" => config.timestamps = on,
            "sack" => config.sack = on,
            "ecn" => config.ecn = on,
            "early" => config.early_data = on,
            "patient" => config.patient_acks = on,
            "scaling" => config.window_scaling = on,
            "mtu" => config.mtu = number(value) as u16,
            "buffer" => {
                config.receive_buffer = number(value);
                config.receive_buffer_max = number(value);
            }
            "keepalive" => {
                let parts: Vec<u64> = value.split('/').map(number).collect();
                config.keepalive = Some(Keepalive {
                    idle: Duration::from_millis(parts[0]),
                    interval: Duration::from_millis(parts[1]),
                    probes: parts[2] as u32,
                });
            }
            "user_timeout" => config.user_timeout = Duration::from_millis(number(value)),
            "algorithm" => {
                config.algorithm = if value == "bbr" {
                    Algorithm::Bbr
                } else {
                    Algorithm::Cubic
                }
            }
            _ => panic!("{}: no such setting", self.line),
        }
    }

    fn act(&mut self, word: &str, rest: &str) {
        let now = self.now;
        let end = self.end();
        match word {
            "write" => {
                let data = vec![b'x'; number(rest) as usize];
                let written = end.write(&data).expect("it is open");
                assert_eq!(written, data.len());
            }
            "read" => {
                let mut room = vec![0; number(rest) as usize];
                let count = end.read(now, &mut room);
                assert_eq!(count, room.len(), "{}", self.line);
            }
            "shutdown" => end.shutdown(),
            "close" => end.close(now),
            "abort" => end.abort(),
            "mtu" => end.set_mtu(now, number(rest) as u16),
            _ => panic!("{}: what is that?", self.line),
        }
    }

    fn end(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("there is a connection")
    }

    /// Takes what the connection sends now.
    fn collect(&mut self) {
        let now = self.now;
        if let Some(connection) = &mut self.connection {
            while connection.poll_transmit(now, &mut self.pending).is_some() {}
            let new = connection.take_events();
            self.events.closed = self.events.closed.or(new.closed);
        }
    }

    fn expect_nothing(&mut self) {
        self.collect();
        assert!(
            self.pending.is_empty(),
            "{}: {:?} is sent",
            self.line,
            self.describe_pending()
        );
    }

    fn describe_pending(&self) -> Vec<String> {
        self.pending
            .iter()
            .map(|packet| describe(&segment(packet)))
            .collect()
    }

    /// Lets time pass up to the next timer, but no further than `until`.
    fn next_timer(&mut self, until: Instant) {
        let next = self.end().poll_timeout().map_or(until, |(at, _)| at);
        self.now = self.now.max(next.min(until));
        let now = self.now;
        self.end().handle_timeout(now);
        self.collect();
    }

    fn pass(&mut self, millis: u64) {
        let until = self.now + Duration::from_millis(millis);
        self.expect_nothing();
        while self.now < until {
            self.next_timer(until);
            assert!(
                self.now == until || self.pending.is_empty(),
                "{}: after {} ms: {:?}",
                self.line,
                millis - until.since(self.now).as_millis() as u64,
                self.describe_pending()
            );
        }
    }

    fn expect_later(&mut self, millis: u64, expected: &str) {
        let start = self.now;
        let limit = start + Duration::from_secs(1000);
        self.expect_nothing();
        while self.pending.is_empty() && self.now < limit {
            self.next_timer(limit);
        }
        let took = self.now.since(start).as_millis() as u64;
        self.expect(expected);
        assert!(
            took.abs_diff(millis) <= 2,
            "{}: it took {took} ms",
            self.line
        );
    }

    fn arrive(&mut self, line: &str) {
        let words = Words::parse(line);
        let payload = vec![b'y'; words.number("len").unwrap_or(0) as usize];
        let mut sack = SackBlocks::default();
        for (start, end) in words.pairs("sack", '-') {
            sack.push(OUR_START.wrapping_add(start), OUR_START.wrapping_add(end));
        }
        let timestamps = words.pairs("ts", ':').first().copied();
        let segment = Segment {
            source: self.tuple.remote,
            destination: self.tuple.local,
            seq: THEIR_START.wrapping_add(words.number("seq").unwrap_or(0) as u32),
            ack: OUR_START.wrapping_add(words.number("ack").unwrap_or(0) as u32),
            flags: words.flags,
            window: words.number("win").unwrap_or(60_000) as u16,
            options: Options {
                mss: words.number("mss").map(|mss| mss as u16),
                window_scale: words.number("ws").map(|shift| shift as u8),
                sack_permitted: words.has("sackok"),
                timestamps: timestamps
                    .map(|(value, echo)| (value, echo.wrapping_add(TIMESTAMP_START))),
                sack,
            },
            ecn: if words.has("ce") {
                Ecn::Congested
            } else {
                Ecn::NotCapable
            },
            payload: &payload,
        };
        match &mut self.connection {
            Some(connection) => connection.handle_segment(self.now, &segment),
            None => {
                let request = Request::from_segment(&segment).expect("a SYN");
                let config = Arc::new(self.config.clone());
                let pool = Pool::new(64 << 20);
                self.connection = Some(Connection::accept(
                    config,
                    &request,
                    secrets(),
                    &pool,
                    self.now,
                ));
            }
        }
    }

    fn expect(&mut self, line: &str) {
        self.collect();
        assert!(!self.pending.is_empty(), "{}: nothing is sent", self.line);
        let packet = self.pending.remove(0);
        let segment = segment(&packet);
        let words = Words::parse(line);
        let context = format!("{}: it is {}", self.line, describe(&segment));
        let without_push = segment.flags.without(Flags::PSH);
        assert_eq!(without_push, words.flags.without(Flags::PSH), "{context}");
        let options = &segment.options;
        let check = |name: &str, value: u64| {
            if let Some(expected) = words.number(name) {
                assert_eq!(value, expected, "{name} in {context}");
            }
        };
        check("seq", u64::from(segment.seq.wrapping_sub(OUR_START)));
        check("len", segment.payload.len() as u64);
        check("win", u64::from(segment.window));
        check("mss", options.mss.map_or(0, u64::from));
        check("ws", options.window_scale.map_or(99, u64::from));
        if segment.flags.has(Flags::ACK) {
            check("ack", u64::from(segment.ack.wrapping_sub(THEIR_START)));
        }
        for (name, value) in [
            ("sackok", options.sack_permitted),
            ("ect", segment.ecn == Ecn::Capable0),
        ] {
            if let Some(expected) = words.get(name) {
                assert_eq!(value, expected != "no", "{name} in {context}");
            }
        }
        if let Some(expected) = words.get("sack") {
            let expected = if expected == "no" {
                Vec::new()
            } else {
                words.pairs("sack", '-')
            };
            let told = options.sack.as_slice().iter();
            let told: Vec<_> = told
                .map(|(a, b)| (a.wrapping_sub(THEIR_START), b.wrapping_sub(THEIR_START)))
                .collect();
            assert_eq!(told, expected, "{context}");
        }
        if let Some(&(value, echo)) = words.pairs("ts", ':').first() {
            let told = options
                .timestamps
                .map(|(value, echo)| (value.wrapping_sub(TIMESTAMP_START), echo));
            assert_eq!(told, Some((value, echo)), "{context}");
        } else if words.get("ts") == Some("no") {
            assert_eq!(options.timestamps, None, "{context}");
        }
    }
}

fn secrets() -> Secrets {
    Secrets {
        initial_sequence: OUR_START,
        timestamp_offset: TIMESTAMP_START,
        seed: 1,
    }
}

fn segment(packet: &[u8]) -> Segment<'_> {
    assert_eq!(Checksums::default(), Checksums::Full);
    Segment::parse(packet, true).expect("a whole segment")
}

fn describe(segment: &Segment<'_>) -> String {
    let letters = [
        (1, 'F'),
        (2, 'S'),
        (4, 'R'),
        (8, 'P'),
        (16, '.'),
        (64, 'E'),
        (128, 'W'),
    ];
    let flags: String = letters
        .iter()
        .filter(|(bit, _)| segment.flags.0 & bit != 0)
        .map(|(_, letter)| letter)
        .collect();
    let relative = |(start, end): &(u32, u32)| {
        (
            start.wrapping_sub(THEIR_START),
            end.wrapping_sub(THEIR_START),
        )
    };
    format!(
        "{flags} seq={} len={} ack={} win={} sack={:?} {:?}",
        segment.seq.wrapping_sub(OUR_START),
        segment.payload.len(),
        segment.ack.wrapping_sub(THEIR_START),
        segment.window,
        segment
            .options
            .sack
            .as_slice()
            .iter()
            .map(relative)
            .collect::<Vec<_>>(),
        segment
            .options
            .timestamps
            .map(|(value, echo)| (value.wrapping_sub(TIMESTAMP_START), echo)),
    )
}

fn number(text: &str) -> u64 {
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("{text:?} is no number"))
}

fn range(text: &str) -> Range<u64> {
    let (from, to) = text.split_once("..").expect("a range");
    number(from)..number(to)
}

/// Flags and properties of a segment in a script.
struct Words<'a> {
    flags: Flags,
    words: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    fn parse(line: &'a str) -> Self {
        let mut words = line.split_whitespace();
        let mut flags = Flags::NONE;
        for letter in words.next().unwrap_or_default().chars() {
            flags = flags
                | match letter {
                    'S' => Flags::SYN,
                    'F' => Flags::FIN,
                    'R' => Flags::RST,
                    'P' => Flags::PSH,
                    'E' => Flags::ECE,
                    'W' => Flags::CWR,
                    '.' => Flags::ACK,
                    '-' => Flags::NONE,
                    _ => panic!("{letter} is no flag"),
                };
        }
        let words = words
            .map(|word| word.split_once('=').unwrap_or((word, "")))
            .collect();
        Self { flags, words }
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.words
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| *value)
    }

    fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name).map(number)
    }

    fn pairs(&self, name: &str, between: char) -> Vec<(u32, u32)> {
        let text = self
            .get(name)
            .filter(|text| *text != "no")
            .unwrap_or_default();
        text.split(',')
            .filter_map(|pair| pair.split_once(between))
            .map(|(first, second)| (number(first) as u32, number(second) as u32))
            .collect()
    }
}
