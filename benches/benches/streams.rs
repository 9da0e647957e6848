//! What a byte of long streams costs the whole machine, which has to be quiet for it: engines beside
//! each other, round after round, and beside them one hop of TCP and one of a Unix socket, with
//! nothing in between. `docs/engines.md` has figures.
//!
//! `RELAY_STREAMS=copy,sockmap` chooses some of them, `RELAY_STREAMS_SECONDS=3` how long each runs.

#![allow(clippy::print_stdout)]

mod support;

use std::fmt;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use relay_engine::{Engine, pump};
use support::{in_ticks, machine_time, tcp_pair};

/// What applications write and read at once.
const WRITTEN: usize = 64 << 10;
const READ: usize = 256 << 10;
const MESSAGES: u32 = 20_000;
const CONNECTIONS: [usize; 2] = [1, 8];
const ROUNDS: usize = 6;
const SECONDS: f64 = 1.0;
/// A run in which other processes took more of the machine's busy time than this is done again, this
/// often.
const OTHERS: f64 = 0.03;
const AGAIN: usize = 3;

fn main() {
    let is_test = std::env::args().any(|argument| argument == "--test");
    let (rounds, seconds) = if is_test {
        (1, 0.05)
    } else {
        let seconds = std::env::var("RELAY_STREAMS_SECONDS").ok();
        let seconds = seconds.map_or(SECONDS, |text| text.parse().expect("it is a number"));
        (ROUNDS, seconds)
    };
    let ways = ways();
    for connections in CONNECTIONS {
        let mut runs = vec![Vec::new(); ways.len()];
        for round in 0..rounds {
            // There and back, lest one is always the first.
            for place in 0..ways.len() {
                let place = if round % 2 == 0 {
                    place
                } else {
                    ways.len() - 1 - place
                };
                let time = Duration::from_secs_f64(seconds);
                let mut run = stream(ways[place], connections, time);
                for _ in 0..AGAIN {
                    if is_test || run.others <= OTHERS {
                        break;
                    }
                    run = stream(ways[place], connections, time);
                }
                runs[place].push(run);
            }
        }
        for (way, own) in ways.iter().zip(&runs) {
            let speed = Spread::of(own.iter().map(|run| run.speed));
            let cost = Spread::of(own.iter().map(|run| run.cost));
            let pairs = own.iter().zip(&runs[0]);
            let ratio = Spread::of(pairs.map(|(run, first)| run.cost / first.cost));
            println!(
                "{connections} x {way}: {speed:.1} Gbit/s, machine {cost:.3} s/GiB, \
                 {ratio:.2} of {}",
                ways[0]
            );
        }
    }
    for way in [Way::Tcp, Way::Unix] {
        let (near, far) = way.pair();
        let rounds = (0..rounds).map(|_| round_trip(&near, &far));
        println!(
            "message there and back, {way}: {:.1} µs",
            Spread::of(rounds)
        );
    }
}

/// What is between the applications.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Two hops of TCP, and an engine.
    Engine(Engine),
    /// One hop.
    Tcp,
    Unix,
}

fn ways() -> Vec<Way> {
    let engines = Engine::ALL.into_iter().filter(|engine| {
        // What it chooses is among the others.
        *engine != Engine::Auto && engine.check().is_ok()
    });
    let all = engines.map(Way::Engine).chain([Way::Tcp, Way::Unix]);
    let Ok(chosen) = std::env::var("RELAY_STREAMS") else {
        return all.collect();
    };
    all.filter(|way| chosen.split(',').any(|name| name == way.to_string()))
        .collect()
}

impl fmt::Display for Way {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Engine(engine) => engine.fmt(out),
            Self::Tcp => out.write_str("tcp"),
            Self::Unix => out.write_str("unix"),
        }
    }
}

impl Way {
    /// The ends of one hop.
    fn pair(self) -> (End, End) {
        if self == Self::Unix {
            let (near, far) = UnixStream::pair().expect("there are descriptors");
            (End::Unix(near), End::Unix(far))
        } else {
            let (near, far) = tcp_pair();
            (End::Tcp(near), End::Tcp(far))
        }
    }
}

/// What an application has.
enum End {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl End {
    fn write(&self, bytes: &[u8]) {
        let written = match self {
            Self::Tcp(stream) => (&mut &*stream).write_all(bytes),
            Self::Unix(stream) => (&mut &*stream).write_all(bytes),
        };
        written.expect("the other end reads");
    }

    fn read(&self, into: &mut [u8]) -> usize {
        let read = match self {
            Self::Tcp(stream) => (&mut &*stream).read(into),
            Self::Unix(stream) => (&mut &*stream).read(into),
        };
        read.expect("the other end writes")
    }

    fn finish(&self) {
        let finished = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
        finished.expect("it is connected");
    }
}

#[derive(Clone, Copy)]
struct Run {
    /// Gbit/s.
    speed: f64,
    /// Busy time of the machine, s/GiB.
    cost: f64,
    /// Part of it that other processes took.
    others: f64,
}

/// Streams one way for some time, and then to their end.
fn stream(way: Way, connections: usize, time: Duration) -> Run {
    let mut ends = Vec::new();
    let pumps = if let Way::Engine(engine) = way {
        let mut joined = Vec::new();
        for _ in 0..connections {
            let ((near, a), (b, far)) = (tcp_pair(), tcp_pair());
            ends.push((End::Tcp(near), End::Tcp(far)));
            joined.push([a, b]);
        }
        Some(pumps(engine, joined))
    } else {
        ends.extend((0..connections).map(|_| way.pair()));
        None
    };
    let (start, before) = (Instant::now(), [machine_time(), time_of_others()]);
    let is_over = AtomicBool::new(false);
    let bytes: usize = thread::scope(|scope| {
        let is_over = &is_over;
        let mut readers = Vec::new();
        for (near, far) in &ends {
            scope.spawn(move || {
                let block = vec![7; WRITTEN];
                while !is_over.load(Ordering::Relaxed) {
                    near.write(&block);
                }
                near.finish();
            });
            readers.push(scope.spawn(move || {
                let mut buffer = vec![0; READ];
                let mut bytes = 0;
                loop {
                    match far.read(&mut buffer) {
                        0 => return bytes,
                        read => bytes += read,
                    }
                }
            }));
        }
        thread::sleep(time);
        is_over.store(true, Ordering::Relaxed);
        let read = readers.into_iter().map(|reader| reader.join());
        read.map(|bytes| bytes.expect("it reads to the end")).sum()
    });
    let took = start.elapsed();
    let busy = machine_time() - before[0];
    let others = time_of_others().saturating_sub(before[1]);
    drop(ends);
    if let Some(pumps) = pumps {
        pumps.join().expect("the pumps end");
    }
    Run {
        speed: bytes as f64 * 8e-9 / took.as_secs_f64(),
        cost: busy.as_secs_f64() / bytes as f64 * f64::from(1 << 30),
        others: others.as_secs_f64() / busy.as_secs_f64(),
    }
}

/// A thread that has the pumps.
fn pumps(engine: Engine, ends: Vec<[TcpStream; 2]>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().expect("a runtime starts");
        runtime.block_on(async {
            let mut pumps = tokio::task::JoinSet::new();
            for ends in ends {
                let [a, b] = ends.map(|end| {
                    end.set_nonblocking(true).expect("it is a socket");
                    tokio::net::TcpStream::from_std(end).expect("it registers")
                });
                pumps.spawn(pump(a, b, engine));
            }
            pumps.join_all().await;
        });
    })
}

/// Microseconds that a message and its echo take.
fn round_trip(near: &End, far: &End) -> f64 {
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..MESSAGES {
                let mut message = [0; 64];
                let read = far.read(&mut message);
                far.write(&message[..read]);
            }
        });
        let start = Instant::now();
        for _ in 0..MESSAGES {
            near.write(&[1; 64]);
            assert_eq!(near.read(&mut [0; 64]), 64);
        }
        start.elapsed().as_secs_f64() * 1e6 / f64::from(MESSAGES)
    })
}

/// The median, the lowest and the highest of some figures.
struct Spread([f64; 3]);

impl Spread {
    fn of(figures: impl Iterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        let last = figures.len() - 1;
        let median = f64::midpoint(figures[last / 2], figures[last.div_ceil(2)]);
        Self([median, figures[0], figures[last]])
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, lowest, highest] = self.0;
        let digits = out.precision().unwrap_or(1);
        write!(
            out,
            "{median:.digits$} [{lowest:.digits$}-{highest:.digits$}]"
        )
    }
}

/// The same of other processes that there are, the kernel's own threads aside (proc_pid_stat(5)).
fn time_of_others() -> Duration {
    const KTHREADD: &str = "2";
    let own = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").expect("the kernel tells");
    let times = processes.flatten().filter_map(|process| {
        let number = process.file_name().into_string().ok()?;
        let is_process = number.bytes().all(|byte| byte.is_ascii_digit());
        if !is_process || number == own || number == KTHREADD {
            return None;
        }
        let stat = std::fs::read_to_string(process.path().join("stat")).ok()?;
        // What is before it is a name, with any signs.
        let (_, words) = stat.rsplit_once(')')?;
        let words: Vec<&str> = words.split_whitespace().collect();
        let ticks = |place: usize| words.get(place)?.parse::<u64>().ok();
        let is_kernels = words.get(1) == Some(&KTHREADD);
        (!is_kernels).then_some(ticks(11)? + ticks(12)?)
    });
    in_ticks(times.sum())
}
