//! What the codecs cost: path discovery, relayed packets, the control channel, port specifications.

use std::hint::black_box;
use std::time::Instant;

use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use relay_wire::derp::{self, Frame};
use relay_wire::disco::{self, Message, PayloadSize, TxId};
use relay_wire::drpc;
use relay_wire::keys::{DiscoPrivate, NodePrivate};
use relay_wire::spec::{parse_specs, plan};
use relay_wire::yamux::{Config, Event, Role, Session};

/// Bytes of a relayed packet: the tunnel's smallest MTU, sealed.
const RELAYED: usize = 1312;
const RELAYED_AT_ONCE: usize = 64;
/// Bytes of a large message on the control channel, such as a map of relays.
const CONTROL: usize = 32 << 10;

criterion_group!(
    benches,
    disco_codec,
    derp_codec,
    drpc_codec,
    yamux_codec,
    specs
);
criterion_main!(benches);

fn disco_codec(criterion: &mut Criterion) {
    let (a, b) = (
        DiscoPrivate::from_bytes([1; 32]),
        DiscoPrivate::from_bytes([2; 32]),
    );
    let shared = a.shared(&b.public());
    let own = a.public();
    let ping = Message::Ping {
        tx: TxId([7; 12]),
        node_key: Some(NodePrivate::from_bytes([3; 32]).public()),
    };
    let packet = disco::seal(&ping, PayloadSize::PADDED, &own, &shared, [9; 24]);
    assert_eq!(disco::open(&packet, &shared).as_ref(), Ok(&ping));
    let mut group = criterion.benchmark_group("disco");
    group.throughput(Throughput::ElementsAndBytes {
        elements: 1,
        bytes: packet.len() as u64,
    });
    group.bench_function("seal", |bencher| {
        bencher.iter(|| {
            disco::seal(
                black_box(&ping),
                PayloadSize::PADDED,
                &own,
                &shared,
                [9; 24],
            )
        });
    });
    group.bench_function("open", |bencher| {
        bencher.iter(|| disco::open(black_box(&packet), &shared));
    });
}

fn derp_codec(criterion: &mut Criterion) {
    let key = NodePrivate::from_bytes([3; 32]).public();
    let packet = [5; RELAYED];
    let mut stream = BytesMut::new();
    let fill = |out: &mut BytesMut| {
        for _ in 0..RELAYED_AT_ONCE {
            derp::put_send_packet(out, &key, &packet);
        }
    };
    fill(&mut stream);
    let stream = stream.freeze();
    let mut group = criterion.benchmark_group("derp");
    group.throughput(Throughput::ElementsAndBytes {
        elements: RELAYED_AT_ONCE as u64,
        bytes: stream.len() as u64,
    });
    group.bench_function("encode", |bencher| {
        let mut out = BytesMut::new();
        bencher.iter(|| {
            out.clear();
            fill(black_box(&mut out));
        });
        assert_eq!(out, stream);
    });
    group.bench_function("decode", |bencher| {
        let mut decoder = derp::Decoder::new();
        bencher.iter(|| {
            decoder.push(&stream);
            let mut packets = 0;
            while let Ok(Some(Frame::SendPacket { packet, .. })) = decoder.next() {
                black_box(packet);
                packets += 1;
            }
            assert_eq!(packets, RELAYED_AT_ONCE);
        });
    });
}

fn drpc_codec(criterion: &mut Criterion) {
    let body = vec![5; CONTROL];
    let mut group = criterion.benchmark_group("drpc");
    group.throughput(Throughput::Bytes(CONTROL as u64));
    group.bench_function("encode", |bencher| {
        let mut encoder = drpc::Encoder::new();
        let mut out = BytesMut::new();
        bencher.iter(|| {
            out.clear();
            encoder.put(drpc::Kind::Message, black_box(&body), &mut out);
        });
        assert!(out.len() > CONTROL);
    });
    group.bench_function("decode", |bencher| {
        let mut stream = BytesMut::new();
        drpc::Encoder::new().put(drpc::Kind::Message, &body, &mut stream);
        bencher.iter(|| {
            let mut decoder = drpc::Decoder::new();
            decoder.push(&stream);
            let packet = decoder.next_packet().ok().flatten();
            assert_eq!(packet.map(|packet| packet.body.len()), Some(CONTROL));
        });
    });
}

/// A message from one end of a session to the other, and the window it takes back again.
fn yamux_codec(criterion: &mut Criterion) {
    let now = Instant::now();
    let mut client = Session::new(Role::Client, Config::default(), now);
    let mut server = Session::new(Role::Server, Config::default(), now);
    let id = client.open().expect("a new session takes a stream");
    let body = vec![5; CONTROL];
    let mut group = criterion.benchmark_group("yamux");
    group.throughput(Throughput::Bytes(CONTROL as u64));
    group.bench_function("transfer", |bencher| {
        bencher.iter(|| {
            assert_eq!(client.send(id, &body), Ok(CONTROL));
            carry(&mut client, &mut server, now);
            let mut received = 0;
            while let Some(event) = server.poll_event() {
                if let Event::Data(id, bytes) = event {
                    received += bytes.len();
                    server.consumed(id, bytes.len());
                }
            }
            assert_eq!(received, CONTROL);
            carry(&mut server, &mut client, now);
            while client.poll_event().is_some() {}
        });
    });
}

fn carry(from: &mut Session, to: &mut Session, now: Instant) {
    while let Some(bytes) = from.poll_output() {
        to.handle_input(&bytes, now)
            .expect("what a session sends is right");
    }
}

fn specs(criterion: &mut Criterion) {
    let tcp = [
        "8080",
        "3000:3001",
        "[::1]:9000:9001",
        "0.0.0.0:5432-5440:6432-6440",
    ];
    let udp = ["53:5353, 4000-4010"];
    let mut group = criterion.benchmark_group("spec");
    group.throughput(Throughput::Elements(6));
    group.bench_function("few", |bencher| {
        bencher.iter(|| {
            let forwards = parse_specs(black_box(&tcp), black_box(&udp)).expect("right");
            assert_eq!(plan(&forwards).len(), 38);
        });
    });
    group.throughput(Throughput::Elements(65_535));
    group.bench_function("every_port", |bencher| {
        bencher.iter(|| {
            let forwards = parse_specs(black_box(&["1-65535"]), &[]).expect("right");
            assert_eq!(forwards.len(), 65_535);
        });
    });
}
