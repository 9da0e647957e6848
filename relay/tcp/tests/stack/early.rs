//! Data that travels with a SYN: it arrives a round trip sooner, and once.

use std::time::Duration;

use relay_tcp::{CloseReason, ConnectionId, Event, StackConfig, State};

use crate::{CLIENT, Pair, ip, server_port};

fn early(config: &mut StackConfig) {
    config.connection.early_data = true;
}

/// Opens with first bytes, and returns the connection, what of them was taken, and the SYN, which
/// has not arrived.
fn call(pair: &mut Pair, first: &[u8]) -> (ConnectionId, Vec<Vec<u8>>) {
    let opened = pair.stacks[0].connect_with(pair.now, ip(CLIENT), server_port(80), first);
    let (id, taken) = opened.expect("a connection");
    assert_eq!(taken, first.len());
    let mut syn: Vec<Vec<u8>> = Vec::new();
    while pair.stacks[0].poll_transmit(pair.now, &mut syn).is_some() {}
    assert_eq!(syn.len(), 1);
    (id, syn)
}

fn arrive(pair: &mut Pair, packets: &[Vec<u8>]) {
    let packets = packets.iter().map(Vec::as_slice);
    pair.stacks[1].handle_packets(pair.now, packets);
    pair.settle();
}

fn read_all(pair: &mut Pair, side: usize, id: ConnectionId) -> Vec<u8> {
    let mut room = [0; 64];
    let count = pair.stacks[side]
        .read(pair.now, id, &mut room)
        .expect("open");
    room[..count].to_vec()
}

#[test]
fn a_request_and_its_answer_cross_before_the_handshake_is_over() {
    let mut pair = Pair::with(early);
    let (client, syn) = call(&mut pair, b"get");
    pair.stacks[1].handle_packets(pair.now, syn.iter().map(Vec::as_slice));
    pair.events[1].extend(std::iter::from_fn(|| pair.stacks[1].poll_event()));
    let request = pair.request().unwrap();
    let server = pair.stacks[1].accept(pair.now, request).unwrap();
    assert_eq!(read_all(&mut pair, 1, server), b"get");
    pair.stacks[1].write(server, b"GET").unwrap();
    let mut answer: Vec<Vec<u8>> = Vec::new();
    while pair.stacks[1]
        .poll_transmit(pair.now, &mut answer)
        .is_some()
    {}
    assert_eq!(answer.len(), 2, "the SYN's answer and the application's");
    assert!(pair.stacks[1].connection(server).unwrap().state() == State::SynReceived);
    pair.stacks[0].handle_packets(pair.now, answer.iter().map(Vec::as_slice));
    assert_eq!(read_all(&mut pair, 0, client), b"GET");
    pair.settle();
    assert!(pair.events_of(0, client).connected && pair.events_of(1, server).connected);
    let state = pair.stacks[1].connection(server).unwrap().state();
    assert_eq!(state, State::Established);
}

/// Delivers a request, then copies of it while the connection is open, while its end is remembered
/// and once it is forgotten; returns how often the owner was asked and what it read.
fn asked_after_copies(pair: &mut Pair) -> (usize, Vec<u8>) {
    let (client, syn) = call(pair, b"pay");
    arrive(pair, &syn);
    arrive(pair, &syn);
    let request = pair.request().expect("a request");
    let server = pair.stacks[1]
        .accept(pair.now, request)
        .expect("the request");
    arrive(pair, &syn);
    let mut read = read_all(pair, 1, server);
    for step in 0..4 {
        match step {
            0 => pair.stacks[1].close(pair.now, server),
            1 => pair.stacks[0].close(pair.now, client),
            _ => {}
        }
        pair.settle();
        arrive(pair, &syn);
        pair.pass(Duration::from_secs(29));
        arrive(pair, &syn);
        read.extend(read_all_if_open(pair, server));
    }
    assert!(pair.stacks[1].is_empty(), "the connection is forgotten");
    let more = pair.events[1]
        .iter()
        .filter(|event| matches!(event, Event::Requested { .. }));
    (1 + more.count(), read)
}

fn read_all_if_open(pair: &mut Pair, id: ConnectionId) -> Vec<u8> {
    let mut room = [0; 64];
    let count = pair.stacks[1].read(pair.now, id, &mut room).unwrap_or(0);
    room[..count].to_vec()
}

#[test]
fn a_copy_of_a_request_is_never_delivered() {
    let mut pair = Pair::with(early);
    let (asked, read) = asked_after_copies(&mut pair);
    assert_eq!((asked, &read[..]), (1, &b"pay"[..]));
    // The next one from the same port is another one, and one that was refused may come again.
    let (client, syn) = call(&mut pair, b"more");
    arrive(&mut pair, &syn);
    let request = pair.request().unwrap();
    pair.stacks[1].refuse(request).unwrap();
    pair.settle();
    assert_eq!(pair.events_of(0, client).closed, Some(CloseReason::Refused));
    arrive(&mut pair, &syn);
    assert!(pair.request().is_some());
}

#[test]
fn where_no_data_is_taken_a_copy_of_a_syn_asks_again_and_brings_nothing() {
    let mut pair = Pair::new();
    let (asked, read) = asked_after_copies(&mut pair);
    assert!(asked > 1, "an old SYN asks again, as in any TCP");
    assert_eq!(read, b"pay", "it came once the connection was open");
}
