//! Two endpoints on this machine, over loopback or over a relay in this process. A machine that
//! cannot have a kernel stack skips with its reason.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "endpoint/carried.rs"]
mod carried;
mod support;

use std::net::SocketAddrV6;
use std::process::Command;
use std::time::{Duration, Instant};

use relay_tunnel::datagram::Datagram;
use relay_tunnel::endpoint::{Endpoint, Event, PeerNode};
use relay_tunnel::path::PathState;
use sha2::{Digest, Sha256};
use support::{AGENT, CLIENT, End, PATIENCE, Pair, event};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

const MIB: usize = 1 << 20;
/// The agent's port that answers with the hash of what it got.
const HASH: u16 = 1001;
/// The agent's port that sends [`MIB`]s, as many as the first byte it gets says.
const SEND: u16 = 1002;
/// The agent's port that keeps a stream open without a word.
const SILENT: u16 = 1003;
const REFUSED: u16 = 1004;
/// The agent's port that sends one byte back.
const BACK: u16 = 1005;

fn block(n: usize) -> Vec<u8> {
    (0..MIB).map(|at| (at ^ (at >> 8) ^ n) as u8).collect()
}

fn serve(agent: &Endpoint) {
    let mut incoming = agent.incoming();
    tokio::spawn(async move {
        while let Some(connection) = incoming.recv().await {
            if connection.port() == REFUSED {
                connection.refuse();
                continue;
            }
            tokio::spawn(async move {
                let port = connection.port();
                let stream = connection.accept().await?;
                answer(port, stream).await
            });
        }
    });
}

async fn answer(port: u16, mut stream: TcpStream) -> std::io::Result<()> {
    match port {
        HASH => {
            let mut hash = Sha256::new();
            let mut buffer = vec![0; 256 * 1024];
            loop {
                match stream.read(&mut buffer).await? {
                    0 => break,
                    got => hash.update(&buffer[..got]),
                }
            }
            stream.write_all(&hash.finalize()).await
        }
        SEND => {
            let blocks = stream.read_u8().await?;
            for n in 0..usize::from(blocks) {
                stream.write_all(&block(n)).await?;
            }
            Ok(())
        }
        BACK => {
            let byte = stream.read_u8().await?;
            stream.write_u8(byte).await
        }
        _ => stream.read_u8().await.map(|_| ()),
    }
}

async fn upload(pair: &Pair, blocks: usize) {
    let mut stream = pair.connect(HASH).await.unwrap();
    let mut hash = Sha256::new();
    for n in 0..blocks {
        let block = block(n);
        hash.update(&block);
        stream.write_all(&block).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    let mut got = [0; 32];
    stream.read_exact(&mut got).await.unwrap();
    assert!(got == hash.finalize()[..]);
}

async fn download(pair: &Pair, blocks: u8) {
    let mut stream = pair.connect(SEND).await.unwrap();
    stream.write_u8(blocks).await.unwrap();
    let mut got = vec![0; MIB];
    for n in 0..usize::from(blocks) {
        stream.read_exact(&mut got).await.unwrap();
        assert!(got == block(n), "block {n}");
    }
    assert_eq!(stream.read(&mut got).await.unwrap(), 0);
}

async fn both_ways(pair: &Pair, blocks: u8, way: &str) {
    let start = Instant::now();
    tokio::time::timeout(2 * PATIENCE, upload(pair, usize::from(blocks)))
        .await
        .unwrap();
    let up = start.elapsed();
    tokio::time::timeout(2 * PATIENCE, download(pair, blocks))
        .await
        .unwrap();
    println!(
        "{blocks} MiB {way}: up in {up:?}, down in {:?}",
        start.elapsed() - up
    );
}

#[tokio::test]
async fn streams_are_carried_straight() {
    let Some(pair) = Pair::open(true).await else {
        return;
    };
    serve(&pair.agent.endpoint);
    pair.client
        .path(pair.agent.id, |state| matches!(state, PathState::Direct(_)))
        .await;
    both_ways(&pair, 255, "direct").await;
    let stats = pair.client.endpoint.stats(pair.agent.id).await.unwrap();
    assert!(stats.sent > 255 << 20 && stats.received > 255 << 20);
    assert!(stats.handshake_age.is_some());
    assert_eq!(stats.rejected, 0);
}

#[tokio::test]
async fn streams_are_carried_by_a_relay() {
    let Some(pair) = Pair::open(false).await else {
        return;
    };
    serve(&pair.agent.endpoint);
    let path = *pair.client.endpoint.path(pair.agent.id).borrow();
    assert!(
        matches!(path, PathState::Relayed(support::REGION, _)),
        "{path:?}"
    );
    both_ways(&pair, 32, "relayed").await;
}

#[tokio::test]
async fn first_bytes_go_early_only_to_a_peer_that_announces_to_take_them() {
    for direct in [true, false] {
        let Some(pair) = Pair::open(direct).await else {
            return;
        };
        serve(&pair.agent.endpoint);
        let mut node = PeerNode::from(&pair.agent.node(direct).await);
        let announced = node.features & 4 != 0;
        println!("direct {direct}, announced {announced}");
        let remote = SocketAddrV6::new(AGENT, HASH, 0, 0);
        let client = &pair.client.endpoint;
        for early in [announced, false] {
            let (mut stream, taken) = client.connect_with(remote, b"abc").await.unwrap();
            assert_eq!(taken, if early { 3 } else { 0 });
            stream.write_all(&b"abc"[taken..]).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut got = [0; 32];
            stream.read_exact(&mut got).await.unwrap();
            assert!(got == Sha256::digest(b"abc")[..]);
            node.features = 0;
            let upserted = client.upsert_peer(pair.agent.id, node.clone()).await;
            upserted.unwrap();
        }
    }
}

#[tokio::test]
async fn a_request_over_a_long_way_is_answered_after_one_round_trip() {
    let Some(pair) = Pair::open(false).await else {
        return;
    };
    serve(&pair.agent.endpoint);
    let client = &pair.client.endpoint;
    let announced = pair.agent.node(false).await.features & 4 != 0;
    pair.relay.set_delay(Duration::from_millis(20));
    // The agent is another one: what was known about the way is measured anew.
    client.remove_peer(pair.agent.id).await.unwrap();
    pair.introduce().await;
    if !announced {
        println!("skip: no data in first packets here");
        return;
    }
    let early = client.early_data(AGENT).unwrap();
    assert!(early.wait >= Duration::from_millis(2), "{early:?}");
    assert!((1100..).contains(&early.room), "{early:?}");
    let remote = SocketAddrV6::new(AGENT, BACK, 0, 0);
    let mut times = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        let (mut stream, taken) = client.connect_with(remote, &[1]).await.unwrap();
        assert_eq!(taken, 1);
        assert_eq!(stream.read_u8().await.unwrap(), 1);
        times.push(start.elapsed());
    }
    times.sort();
    println!("first byte after {times:?}");
    // A busy machine makes it slower; nothing makes two round trips that fast.
    assert!(times[0] < Duration::from_millis(80), "{times:?}");
}

#[tokio::test]
async fn a_refused_port_is_refused_and_the_tunnel_stays() {
    let Some(pair) = Pair::open(true).await else {
        return;
    };
    serve(&pair.agent.endpoint);
    for _ in 0..3 {
        let error = pair.connect(REFUSED).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    both_ways(&pair, 2, "after refusals").await;
}

#[tokio::test]
async fn pings_are_answered() {
    let Some(pair) = Pair::open(true).await else {
        return;
    };
    let rtt = pair
        .client
        .endpoint
        .tsmp_ping(AGENT, PATIENCE)
        .await
        .unwrap();
    assert!(rtt < Duration::from_secs(1));
    pair.agent
        .endpoint
        .tsmp_ping(CLIENT, PATIENCE)
        .await
        .unwrap();
    let pong = pair
        .client
        .endpoint
        .disco_ping(pair.agent.id)
        .await
        .unwrap();
    assert!(pong.rtt < Duration::from_secs(1));
    let short = Duration::from_millis(200);
    assert!(
        pair.client
            .endpoint
            .tsmp_ping("fd7a::9".parse().unwrap(), short)
            .await
            .is_err()
    );
}

async fn datagrams_echo(pair: &Pair) {
    let mut served = pair.agent.endpoint.serve_datagrams();
    let agent = pair.agent.endpoint.clone();
    tokio::spawn(async move {
        while let Some(Datagram {
            source,
            destination,
            payload,
        }) = served.recv().await
        {
            let answer = Datagram {
                source: destination,
                destination: source,
                payload,
            };
            agent.send_datagram(answer).await.unwrap();
        }
    });
    let remote = SocketAddrV6::new(AGENT, 53, 0, 0);
    let mut flow = pair.client.endpoint.open_flow(remote).unwrap();
    for size in [0, 1, 2, 511, 1232, 1233, 1400, 9000, 32_768, 65_507] {
        let payload: Vec<u8> = (0..size).map(|n| (n * 3) as u8).collect();
        flow.send(payload.clone().into()).await.unwrap();
        let got = tokio::time::timeout(PATIENCE, flow.recv())
            .await
            .unwrap()
            .unwrap();
        assert!(got == payload, "{size} bytes");
    }
}

#[tokio::test]
async fn datagrams_of_any_size_pass_straight() {
    let Some(pair) = Pair::open(true).await else {
        return;
    };
    datagrams_echo(&pair).await;
}

#[tokio::test]
async fn datagrams_of_any_size_pass_a_relay() {
    let Some(pair) = Pair::open(false).await else {
        return;
    };
    datagrams_echo(&pair).await;
}

#[tokio::test]
async fn a_large_datagram_to_a_peer_without_fragments_is_dropped_and_said_once() {
    let Some(mut pair) = Pair::open(true).await else {
        return;
    };
    let node = pair.agent.node(true).await;
    let plain = PeerNode {
        features: 0,
        ..PeerNode::from(&node)
    };
    pair.client
        .endpoint
        .upsert_peer(pair.agent.id, plain)
        .await
        .unwrap();
    let flow = pair
        .client
        .endpoint
        .open_flow(SocketAddrV6::new(AGENT, 53, 0, 0))
        .unwrap();
    flow.send(vec![0; 1233].into()).await.unwrap();
    flow.send(vec![0; 1233].into()).await.unwrap();
    let warning = event(&mut pair.client.events, |event| {
        matches!(event, Event::Warning(_))
    })
    .await;
    assert!(matches!(warning, Event::Warning(text) if text.contains("1233")));
    let stats = pair.client.endpoint.stats(pair.agent.id).await.unwrap();
    assert_eq!(stats.oversize, 2);
}

#[tokio::test]
async fn a_restarted_agent_takes_over_and_old_streams_end() {
    let Some(mut pair) = Pair::open(true).await else {
        return;
    };
    serve(&pair.agent.endpoint);
    let mut old = pair.connect(SILENT).await.unwrap();

    let Some(mut agent) = End::open(AGENT, false, true, &pair.relay.map()).await else {
        return;
    };
    agent.id = pair.agent.id;
    let former = std::mem::replace(&mut pair.agent, agent);
    drop(former);
    serve(&pair.agent.endpoint);
    pair.introduce().await;

    let ended = tokio::time::timeout(Duration::from_secs(2), old.read_u8()).await;
    let error = ended.expect("the old stream ends soon").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    both_ways(&pair, 2, "to the new agent").await;
}

#[tokio::test]
async fn streams_of_a_removed_peer_end() {
    let Some(pair) = Pair::open(true).await else {
        return;
    };
    serve(&pair.agent.endpoint);
    let mut stream = pair.connect(SILENT).await.unwrap();
    pair.client
        .endpoint
        .remove_peer(pair.agent.id)
        .await
        .unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(2), stream.read_u8()).await;
    assert!(ended.expect("the stream ends soon").is_err());
    assert!(pair.client.endpoint.stats(pair.agent.id).await.is_err());
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Set in the process that has the test of memory for itself.
const ALONE: &str = "RELAY_TEST_ALONE";

#[tokio::test]
async fn memory_is_given_back_when_nothing_moves() {
    if std::env::var_os(ALONE).is_none() {
        // What is measured is the whole process's, and other tests would be in it.
        let mut alone = Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", "memory_is_given_back_when_nothing_moves"]);
        let status = alone.arg("--nocapture").env(ALONE, "1").status().unwrap();
        assert!(status.success(), "{status}");
        return;
    }
    let Some(pair) = Pair::open(true).await else {
        return;
    };
    serve(&pair.agent.endpoint);
    let before = resident();
    both_ways(&pair, 64, "before a rest").await;
    let busy = resident();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let rest = resident();
    println!("RssAnon {before} kB before, {busy} kB after, {rest} kB at rest");
    assert!(rest < 12 * 1024, "two endpoints at rest take {rest} kB");
}

#[tokio::test]
async fn many_streams_at_once() {
    let Some(pair) = Pair::open(true).await else {
        return;
    };
    serve(&pair.agent.endpoint);
    let start = Instant::now();
    let pair = std::sync::Arc::new(pair);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..400 {
        let pair = pair.clone();
        tasks.spawn(async move {
            let mut stream = pair.connect(HASH).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut got = [0; 32];
            stream.read_exact(&mut got).await.unwrap();
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    println!("400 streams in {:?}", start.elapsed());
}

#[tokio::test]
async fn a_relayed_stream_outlives_its_relay() {
    let Some(mut pair) = Pair::open(false).await else {
        return;
    };
    serve(&pair.agent.endpoint);
    let mut stream = pair.connect(SEND).await.unwrap();
    stream.write_u8(96).await.unwrap();
    let (under_way, wait_under_way) = oneshot::channel();
    let (gone, wait_gone) = oneshot::channel();
    let reader = tokio::spawn(async move {
        let mut got = vec![0; MIB];
        for n in 0..32 {
            stream.read_exact(&mut got).await.unwrap();
            assert!(got == block(n), "block {n}");
        }
        under_way.send(()).unwrap();
        wait_gone.await.unwrap();
        // More than fits into all buffers on the way.
        for n in 32..96 {
            stream.read_exact(&mut got).await.unwrap();
            assert!(got == block(n), "block {n}");
        }
    });
    let patience = tokio::time::timeout(PATIENCE, wait_under_way).await;
    patience.unwrap().unwrap();
    pair.relay.stop().await;
    gone.send(()).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!reader.is_finished(), "there is another way");
    pair.relay.listen().await;
    let patience = tokio::time::timeout(PATIENCE, reader).await;
    patience.unwrap().unwrap();
}

#[tokio::test]
async fn a_relay_is_reached_over_websocket_too() {
    let relay = support::Relay::start().await;
    let websocket = |config: &mut relay_tunnel::endpoint::EndpointConfig| {
        config.direct = false;
        config.force_websockets = true;
    };
    let Some(client) = End::open_with(CLIENT, true, &relay.map(), websocket).await else {
        return;
    };
    let Some(agent) = End::open(AGENT, false, false, &relay.map()).await else {
        return;
    };
    let pair = Pair {
        client,
        agent,
        relay,
        direct: false,
    };
    pair.introduce().await;
    serve(&pair.agent.endpoint);
    both_ways(&pair, 8, "relayed over WebSocket").await;
}
