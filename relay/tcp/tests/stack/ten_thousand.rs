//! Ten thousand connections: what they take of memory and of time.

use std::time::Duration;

use crate::Pair;

#[test]
fn ten_thousand_idle_connections_take_little_memory() {
    let resident = || {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let mut pair = Pair::with(|config| config.max_requests_of_peer = 20_000);
    let before = resident();
    for index in 0..10_000_u16 {
        let [client, server] = pair.open(1 + index % 50);
        // Each carried something.
        pair.stacks[0].write(client, b"hello").unwrap();
        pair.settle();
        let mut room = [0; 16];
        assert_eq!(pair.stacks[1].read(pair.now, server, &mut room), Ok(5));
        pair.settle();
        pair.events = [Vec::new(), Vec::new()];
    }
    pair.pass(Duration::from_secs(1));
    assert_eq!(
        (pair.stacks[0].len(), pair.stacks[1].len()),
        (10_000, 10_000)
    );
    let each = (resident() - before) / 20_000;
    println!("{each} bytes for an idle connection");
    assert!(each * 10_000 < 100 << 20, "{each} bytes each");
}

/// The least nanoseconds that a packet cost, of many tries, while `connections` are open.
fn cost_of_a_packet(connections: u16) -> f64 {
    let mut pair = Pair::with(|config| config.max_requests_of_peer = 20_000);
    let all: Vec<_> = (0..connections)
        .map(|index| pair.open(1 + index % 50))
        .collect();
    let [client, server] = all[all.len() / 2];
    let (data, mut room) = (vec![7; 1 << 16], vec![0; 1 << 20]);
    let mut least = f64::MAX;
    for _ in 0..200 {
        pair.runs.clear();
        let start = std::time::Instant::now();
        for _ in 0..10 {
            pair.stacks[0].write(client, &data).expect("it is open");
            pair.pass(Duration::from_micros(500));
            while pair.stacks[1].read(pair.now, server, &mut room) != Ok(0) {}
        }
        let packets: usize = pair.runs.iter().sum();
        least = least.min(start.elapsed().as_nanos() as f64 / packets.max(1) as f64);
    }
    least
}

#[test]
fn a_packet_costs_the_same_among_ten_thousand_connections() {
    let (alone, among) = (cost_of_a_packet(1), cost_of_a_packet(10_000));
    println!("{alone:.0} ns a packet alone, {among:.0} ns among 10,000 connections");
    assert!(among < 1.5 * alone, "{alone:.0} and {among:.0} ns");
}
