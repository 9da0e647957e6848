//! What a packet costs in the tunnel, apart from system calls: sealing and opening bursts, cutting
//! the kernel's super-packets, and merging packets for the kernel.

use std::hint::black_box;
use std::net::Ipv6Addr;
use std::time::Instant;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use relay_tunnel::stack::bench_support::{coalesce, cut_tcp};
use relay_tunnel::udp::{MAX_BURST, MAX_SEGMENTS};
use relay_tunnel::wireguard::{Burst, Identity, OVERHEAD, Opened, Peer, PeerOptions};
use relay_wire::keys::NodePrivate;

/// Packets as large as an interactive session's, an ordinary path's, and the tunnel's largest.
const PACKETS: [usize; 3] = [64, 1420, 8920];
const IPV6_HEADER: usize = 40;
/// IPv6, and TCP with its timestamps.
const HEADERS: usize = IPV6_HEADER + 32;
const A: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1);
const B: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 2);

criterion_group!(benches, seal, open, segment, merge);
criterion_main!(benches);

fn seal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wireguard/seal");
    for size in PACKETS {
        let packets = packets_of(size);
        group.throughput(amount(&packets));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            let mut pair = Pair::connected();
            let mut burst = Burst::default();
            bencher.iter(|| pair.seal(&packets, &mut burst));
            assert_eq!(burst.datagrams().count(), packets.len());
        });
    }
}

fn open(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wireguard/open");
    for size in PACKETS {
        let packets = packets_of(size);
        group.throughput(amount(&packets));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            let mut pair = Pair::connected();
            let mut burst = Burst::default();
            let mut opened = Opened::default();
            let mut replies = Vec::new();
            // No datagram opens twice, so each round needs new ones.
            bencher.iter_custom(|rounds| {
                (0..rounds)
                    .map(|_| {
                        pair.seal(&packets, &mut burst);
                        opened.clear();
                        let datagram = burst.datagrams().next().map_or(0, <[u8]>::len);
                        let start = Instant::now();
                        pair.b.open_burst(
                            burst.data(),
                            datagram,
                            None,
                            pair.now,
                            &mut opened,
                            &mut replies,
                        );
                        start.elapsed()
                    })
                    .sum()
            });
            assert_eq!(opened.len(), packets.len());
        });
    }
}

fn segment(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stack/segment");
    for size in PACKETS.into_iter().filter(|size| *size > HEADERS) {
        let packet = tcp_packet(0, 65_535 - HEADERS);
        group.throughput(Throughput::Bytes(packet.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter_batched_ref(
                || packet.clone(),
                |packet| {
                    let count = cut_tcp(packet, HEADERS, size - HEADERS, &mut |segment| {
                        black_box(segment);
                    });
                    assert_eq!(count, (65_535 - HEADERS).div_ceil(size - HEADERS));
                },
                BatchSize::PerIteration,
            );
        });
    }
}

fn merge(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stack/coalesce");
    for size in PACKETS.into_iter().filter(|size| *size > HEADERS) {
        let packets = packets_of(size);
        let packets: Vec<&[u8]> = packets.iter().map(Vec::as_slice).collect();
        group.throughput(amount(&packets));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| {
                let mut writes = 0;
                coalesce(&packets, &mut |pieces| {
                    black_box(pieces);
                    writes += 1;
                });
                assert_eq!(writes, 1);
            });
        });
    }
}

/// Two ends with a session between them, at a moment that does not pass: no timer runs.
struct Pair {
    a: Peer,
    b: Peer,
    now: Instant,
}

impl Pair {
    fn connected() -> Pair {
        let now = Instant::now();
        let (a, b) = ([1; 32], [2; 32]);
        let mut pair = Pair {
            a: peer(a, b, B, now),
            b: peer(b, a, A, now),
            now,
        };
        let mut opened = Opened::default();
        let mut messages = Vec::new();
        pair.a.greet(false, now, &mut messages);
        let mut to_b = true;
        while !messages.is_empty() {
            let receiver = if to_b { &mut pair.b } else { &mut pair.a };
            let mut replies = Vec::new();
            for message in messages {
                let length = message.len();
                receiver.open_burst(&message, length, None, now, &mut opened, &mut replies);
            }
            messages = replies;
            to_b = !to_b;
        }
        assert!(pair.a.is_ready() && pair.b.is_ready());
        pair
    }

    /// From packets as they are read to datagrams ready to be sent.
    fn seal(&mut self, packets: &[Vec<u8>], burst: &mut Burst) {
        burst.clear();
        for packet in packets {
            burst.push(packet);
        }
        self.a.seal_burst(burst, self.now, &mut Vec::new());
    }
}

fn peer(own: [u8; 32], other: [u8; 32], address: Ipv6Addr, now: Instant) -> Peer {
    let key = *NodePrivate::from_bytes(other).public().as_bytes();
    let options = PeerOptions {
        key,
        index: 1,
        addresses: vec![address],
        keepalive: false,
    };
    Peer::new(&Identity::new(own), options, now)
}

/// As many packets of one stream as one send takes when they are sealed.
fn packets_of(size: usize) -> Vec<Vec<u8>> {
    let count = MAX_SEGMENTS.min(MAX_BURST / (size + OVERHEAD));
    let payload = size.saturating_sub(HEADERS);
    (0..count)
        .map(|number| {
            let mut packet = tcp_packet(number * payload, payload);
            packet.truncate(size);
            let length = (size - IPV6_HEADER) as u16;
            packet[4..6].copy_from_slice(&length.to_be_bytes());
            packet
        })
        .collect()
}

/// A packet from [`A`] to [`B`] in the middle of a stream. Its checksum is not filled in.
fn tcp_packet(sequence: usize, payload: usize) -> Vec<u8> {
    let mut packet = vec![0; HEADERS];
    let length = (HEADERS + payload - IPV6_HEADER) as u16;
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet[6..8].copy_from_slice(&[6, 64]);
    packet[8..24].copy_from_slice(&A.octets());
    packet[24..40].copy_from_slice(&B.octets());
    packet[40..44].copy_from_slice(&[0x9c, 0x40, 0x1f, 0x90]);
    packet[44..48].copy_from_slice(&(sequence as u32).to_be_bytes());
    // Header of eight words, ACK.
    packet[52..54].copy_from_slice(&[8 << 4, 0x10]);
    packet[60..64].copy_from_slice(&[1, 1, 8, 10]);
    packet.extend((0..payload).map(|byte| byte as u8));
    packet
}

fn amount<T: AsRef<[u8]>>(packets: &[T]) -> Throughput {
    let bytes: usize = packets.iter().map(|packet| packet.as_ref().len()).sum();
    Throughput::ElementsAndBytes {
        elements: packets.len() as u64,
        bytes: bytes as u64,
    }
}
