//! What a byte, a message and a connection cost between pairs of sockets, by engine: by the clock, by
//! the processor's time of the thread that has the pumps, and by that of the whole machine, which
//! has to be quiet for it. `docs/engines.md` has figures.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use relay_engine::{Engine, pump};
use support::{machine_time, tcp_pair};

const BULK: usize = 16 << 20;
const MESSAGE: usize = 64;
/// Connections in use at once.
const MANY: [usize; 2] = [32, 1000];

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = bulk, ping_pong, many, connections
}
criterion_main!(benches);

/// What is compared.
#[derive(Clone, Copy)]
enum Meter {
    Clock,
    /// Of the thread that has the pumps.
    Processor,
    /// Of all that runs: the applications, and what the kernel does for an engine elsewhere.
    Machine,
}

/// Each engine that works here, by every meter.
fn compare(
    criterion: &mut Criterion,
    name: &str,
    throughput: &Throughput,
    bench: impl Fn(&mut BenchmarkGroup<'_, WallTime>, &str, Engine, Meter),
) {
    let meters = [
        ("", Meter::Clock),
        ("/cpu", Meter::Processor),
        ("/machine", Meter::Machine),
    ];
    for (kind, meter) in meters {
        let mut group = criterion.benchmark_group(format!("engine/{name}{kind}"));
        group.throughput(throughput.clone());
        for engine in Engine::ALL {
            // What it chooses is among the others.
            if engine != Engine::Auto && engine.check().is_ok() {
                bench(&mut group, &engine.to_string(), engine, meter);
            }
        }
    }
}

fn bulk(criterion: &mut Criterion) {
    let throughput = Throughput::Bytes(BULK as u64);
    compare(
        criterion,
        "bulk",
        &throughput,
        |group, name, engine, meter| {
            group.bench_function(name, |bencher| {
                let pumps = Pumps::start(engine, 1);
                let (mut near, mut far) = (&pumps.near[0], &pumps.far[0]);
                thread::scope(|scope| {
                    let (order, orders) = mpsc::channel();
                    scope.spawn(move || {
                        let block = vec![7; 1 << 20];
                        for () in orders {
                            for _ in 0..BULK / block.len() {
                                near.write_all(&block).expect("the pump reads");
                            }
                        }
                    });
                    let mut buffer = vec![0; 1 << 20];
                    bencher.iter_custom(|rounds| {
                        pumps.measure(meter, rounds, || {
                            order.send(()).expect("the writer runs");
                            let mut left = BULK;
                            while left > 0 {
                                let most = left.min(buffer.len());
                                let read = far.read(&mut buffer[..most]).expect("the pump writes");
                                assert_ne!(read, 0, "the pump ended");
                                left -= read;
                            }
                        })
                    });
                });
            });
        },
    );
}

fn ping_pong(criterion: &mut Criterion) {
    let throughput = Throughput::Elements(1);
    compare(
        criterion,
        "ping_pong",
        &throughput,
        |group, name, engine, meter| {
            group.bench_function(name, |bencher| round_trips(bencher, engine, meter, 1));
        },
    );
}

fn many(criterion: &mut Criterion) {
    for connections in MANY {
        let name = format!("many/{connections}");
        let throughput = Throughput::Elements(connections as u64);
        compare(
            criterion,
            &name,
            &throughput,
            |group, name, engine, meter| {
                group.bench_function(name, |bencher| {
                    round_trips(bencher, engine, meter, connections);
                });
            },
        );
    }
}

/// A message on every connection, and its echo.
fn round_trips(
    bencher: &mut criterion::Bencher<'_>,
    engine: Engine,
    meter: Meter,
    connections: usize,
) {
    let pumps = Pumps::start(engine, connections);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut message = [0; MESSAGE];
            loop {
                for mut far in &pumps.far {
                    if far.read_exact(&mut message).is_err() {
                        return;
                    }
                    far.write_all(&message).expect("the pump reads");
                }
            }
        });
        let mut message = [1; MESSAGE];
        bencher.iter_custom(|rounds| {
            pumps.measure(meter, rounds, || {
                for mut near in &pumps.near {
                    near.write_all(&message).expect("the pump reads");
                }
                for mut near in &pumps.near {
                    near.read_exact(&mut message).expect("the pump writes");
                }
            })
        });
        for near in &pumps.near {
            near.shutdown(std::net::Shutdown::Write)
                .expect("it is connected");
        }
    });
}

/// A connection that is made, carries a message to and fro, and ends.
fn connections(criterion: &mut Criterion) {
    let throughput = Throughput::Elements(1);
    compare(
        criterion,
        "connections",
        &throughput,
        |group, name, engine, meter| {
            group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                let pumps = Pumps::start(engine, 0);
                let mut message = [1; MESSAGE];
                bencher.iter_custom(|rounds| {
                    pumps.measure(meter, rounds, || {
                        let (mut near, mut far) = pumps.another();
                        near.write_all(&message).expect("the pump reads");
                        far.read_exact(&mut message).expect("the pump writes");
                        far.write_all(&message).expect("the pump reads");
                        drop(far);
                        near.read_exact(&mut message).expect("the pump writes");
                        assert_eq!(near.read(&mut message).expect("the pump writes"), 0);
                    })
                });
            });
        },
    );
}

/// A thread with pumps, and the ends of what they join.
struct Pumps {
    near: Vec<TcpStream>,
    far: Vec<TcpStream>,
    orders: tokio::sync::mpsc::UnboundedSender<[TcpStream; 2]>,
    /// Where the kernel counts the thread's time.
    times: String,
}

impl Pumps {
    fn start(engine: Engine, connections: usize) -> Self {
        let (orders, mut ordered) = tokio::sync::mpsc::unbounded_channel::<[TcpStream; 2]>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let thread = rustix::thread::gettid().as_raw_nonzero();
            tell.send(thread).expect("somebody asks");
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().expect("a runtime starts");
            runtime.block_on(async {
                while let Some(ends) = ordered.recv().await {
                    let [a, b] = ends.map(|end| {
                        end.set_nonblocking(true).expect("it is a socket");
                        tokio::net::TcpStream::from_std(end).expect("it registers")
                    });
                    tokio::spawn(pump(a, b, engine));
                }
            });
        });
        let thread = told.recv().expect("the thread starts");
        let mut pumps = Self {
            near: Vec::new(),
            far: Vec::new(),
            orders,
            times: format!("/proc/self/task/{thread}/schedstat"),
        };
        for _ in 0..connections {
            let (near, far) = pumps.another();
            pumps.near.push(near);
            pumps.far.push(far);
        }
        pumps
    }

    /// One more pump.
    fn another(&self) -> (TcpStream, TcpStream) {
        let (near, a) = tcp_pair();
        let (b, far) = tcp_pair();
        self.orders.send([a, b]).expect("the thread runs");
        (near, far)
    }

    fn measure(&self, meter: Meter, rounds: u64, mut work: impl FnMut()) -> Duration {
        let start = Instant::now();
        let read = || match meter {
            Meter::Clock => start.elapsed(),
            Meter::Processor => self.processor_time(),
            Meter::Machine => machine_time(),
        };
        let before = read();
        for _ in 0..rounds {
            work();
        }
        read() - before
    }

    fn processor_time(&self) -> Duration {
        let times = std::fs::read_to_string(&self.times).expect("the thread runs");
        let nanoseconds = times.split(' ').next().expect("it has three words");
        Duration::from_nanos(nanoseconds.parse().expect("it is a number"))
    }
}
