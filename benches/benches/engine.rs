//! What a byte and a message cost between two pairs of sockets, by engine.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use relay_engine::{Engine, pump};

const ENGINES: [Engine; 2] = [Engine::Copy, Engine::Splice];
const BULK: usize = 16 << 20;

criterion_group!(benches, bulk, messages);
criterion_main!(benches);

fn bulk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine/bulk");
    group.throughput(Throughput::Bytes(BULK as u64));
    group.sample_size(20);
    for engine in ENGINES {
        group.bench_function(BenchmarkId::from_parameter(engine), |bencher| {
            let (mut near, mut far) = pumped(engine);
            let (order, orders) = mpsc::channel();
            let writer = thread::spawn(move || {
                let block = vec![7; 1 << 20];
                for () in orders {
                    for _ in 0..BULK / block.len() {
                        near.write_all(&block).expect("the pump reads");
                    }
                }
            });
            let mut buffer = vec![0; 1 << 20];
            bencher.iter(|| {
                order.send(()).expect("the writer runs");
                let mut left = BULK;
                while left > 0 {
                    let most = left.min(buffer.len());
                    let read = far.read(&mut buffer[..most]).expect("the pump writes");
                    assert_ne!(read, 0, "the pump ended");
                    left -= read;
                }
            });
            drop(order);
            writer.join().expect("the writer ends");
        });
    }
}

fn messages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine/ping_pong");
    group.throughput(Throughput::Elements(1));
    for engine in ENGINES {
        group.bench_function(BenchmarkId::from_parameter(engine), |bencher| {
            let (mut near, mut far) = pumped(engine);
            let echo = thread::spawn(move || {
                let mut byte = [0];
                while far.read_exact(&mut byte).is_ok() && far.write_all(&byte).is_ok() {}
            });
            let mut byte = [1];
            bencher.iter(|| {
                near.write_all(&byte).expect("the pump reads");
                near.read_exact(&mut byte).expect("the pump writes");
            });
            drop(near);
            echo.join().expect("the echo ends");
        });
    }
}

/// Two sockets that a pump on a thread of its own joins, until both are closed.
fn pumped(engine: Engine) -> (TcpStream, TcpStream) {
    let (near, a) = tcp_pair();
    let (b, far) = tcp_pair();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts");
    thread::spawn(move || {
        runtime.block_on(async {
            let [a, b] = [a, b].map(|stream| {
                stream.set_nonblocking(true)?;
                tokio::net::TcpStream::from_std(stream)
            });
            pump(a.expect("registers"), b.expect("registers"), engine).await
        })
    });
    (near, far)
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr().expect("a listener has an address");
    let near = TcpStream::connect(address).expect("the listener is there");
    let (far, _) = listener.accept().expect("the connection is there");
    for stream in [&near, &far] {
        stream.set_nodelay(true).expect("TCP has this option");
    }
    (near, far)
}
