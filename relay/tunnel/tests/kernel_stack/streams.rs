//! What streams through two stacks must do, whatever happens to them.

use std::io;
use std::net::SocketAddrV6;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use relay_tunnel::stack::{Offloads, StackOptions};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::pair::*;

#[tokio::test]
async fn sixty_four_mebibytes_each_way_arrive_unchanged() {
    let Some(pair) = pair() else { return };
    large(&pair, 1420);
    exchange(&pair, 64 * MEBIBYTE).await;
    assert!(pair.most.load(Ordering::Relaxed) > 16, "no super-packets");
}

#[tokio::test]
async fn bytes_survive_loss_and_disorder() {
    let Some(pair) = pair() else { return };
    large(&pair, 1420);
    pair.orders.send(Order::Loss(100)).unwrap();
    exchange(&pair, 8 * MEBIBYTE).await;
}

#[tokio::test]
async fn it_works_without_any_offload() {
    let options = StackOptions {
        offloads: Offloads::NONE,
        ..StackOptions::default()
    };
    let Some(pair) = pair_with(options, Place::Private) else {
        return;
    };
    exchange(&pair, 4 * MEBIBYTE).await;
    assert_eq!(pair.most.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn over_a_long_way_more_may_wait_to_be_read() {
    let mut waits = Vec::new();
    for near in [true, false] {
        let Some(pair) = pair() else { return };
        large(&pair, 1420);
        pair.client.set_peer_near(AGENT, near);
        pair.agent.set_peer_near(CLIENT, near);
        pair.orders
            .send(Order::Delay(Duration::from_millis(20)))
            .unwrap();
        waits.push(unread_at_most(&pair, 64 * MEBIBYTE).await);
    }
    let [near, long] = waits[..] else { panic!() };
    assert!(near < 4 << 20, "{near} bytes waited near by");
    assert!(long > 5 << 20, "{long} bytes waited far away");
}

/// How many bytes lie unread at a receiver that read `first` bytes and then no more.
async fn unread_at_most(pair: &Pair, first: usize) -> u64 {
    let mut incoming = pair.agent.incoming();
    let accepted = async { next(&mut incoming).await.accept().await.unwrap() };
    let (connected, mut agent) = tokio::join!(pair.connect(PORT), accepted);
    let mut stream = connected.unwrap();
    let mut client = tokio::spawn(async move {
        let block = vec![7; MEBIBYTE];
        while stream.write_all(&block).await.is_ok() {}
    });
    let mut buffer = vec![0; MEBIBYTE];
    let mut read = 0;
    while read < first {
        read += agent.read(&mut buffer).await.unwrap();
    }
    let stuck = timeout(Duration::from_secs(2), &mut client).await;
    assert!(stuck.is_err(), "the sender was not held up");
    client.abort();
    rustix::io::ioctl_fionread(&agent).unwrap()
}

#[tokio::test]
async fn a_half_closed_stream_goes_on_the_other_way() {
    let Some(pair) = pair() else { return };
    let mut incoming = pair.agent.incoming();
    let agent = async {
        let mut stream = next(&mut incoming).await.accept().await.unwrap();
        let mut request = String::new();
        stream.read_to_string(&mut request).await.unwrap();
        stream
            .write_all(request.to_uppercase().as_bytes())
            .await
            .unwrap();
    };
    let client = async {
        let mut stream = pair.connect(PORT).await.unwrap();
        stream.write_all(b"half").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "HALF");
    };
    timeout(PATIENCE, async { tokio::join!(agent, client) })
        .await
        .unwrap();
}

#[tokio::test]
async fn refusal_reaches_the_caller_with_and_without_someone_to_ask() {
    let Some(pair) = pair() else { return };
    let error = pair.connect(PORT).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    let mut incoming = pair.agent.incoming();
    let refuse = async { next(&mut incoming).await.refuse() };
    let (outcome, ()) = tokio::join!(pair.connect(PORT), refuse);
    assert_eq!(
        outcome.unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused
    );
    let forget = async { drop(next(&mut incoming).await) };
    let (outcome, ()) = tokio::join!(pair.connect(PORT), forget);
    assert_eq!(
        outcome.unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused
    );
    drop(incoming);
    let error = pair.connect(PORT).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_reset_reaches_the_other_end() {
    let Some(pair) = pair() else { return };
    let mut incoming = pair.agent.incoming();
    let accept = async { next(&mut incoming).await.accept().await.unwrap() };
    let (client, mut agent) = tokio::join!(pair.connect(PORT), accept);
    let client = client.unwrap();
    socket2::SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(client);
    let read = timeout(PATIENCE, agent.read_u8()).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_caller_that_gives_up_while_held_ends_the_wait() {
    let Some(pair) = pair() else { return };
    let mut incoming = pair.agent.incoming();
    let remote = SocketAddrV6::new(AGENT, PORT, 0, 0);
    let connect = pair.client.connect(CLIENT, remote);
    let offer = tokio::select! {
        _ = connect => panic!("nobody accepted"),
        offer = next(&mut incoming) => offer,
    };
    // The future is gone and its socket with it; an unanswered SYN leaves no trace on the wire, so
    // the handshake is what fails. A helper that another test forks at this moment can keep the
    // socket a little longer: then the stream ends at once.
    let outcome = timeout(Duration::from_secs(5), offer.accept()).await;
    if let Ok(mut stream) = outcome.unwrap() {
        let read = timeout(Duration::from_secs(5), stream.read_u8()).await;
        assert!(read.unwrap().is_err());
    }
}

#[tokio::test]
async fn two_hundred_connections_over_two_hundred_ports_keep_apart() {
    let Some(pair) = pair() else { return };
    let mut incoming = pair.agent.incoming();
    tokio::spawn(async move {
        while let Some(offer) = incoming.recv().await {
            tokio::spawn(async move {
                let port = offer.port();
                let mut stream = offer.accept().await.unwrap();
                let mut given = [0; 4];
                stream.read_exact(&mut given).await.unwrap();
                stream.write_all(&given).await.unwrap();
                stream.write_all(&port.to_be_bytes()).await.unwrap();
            });
        }
    });
    let mut calls = JoinSet::new();
    for number in 0..200u16 {
        let client = pair.client.clone();
        calls.spawn(async move {
            let port = 1 + number;
            let remote = SocketAddrV6::new(AGENT, port, 0, 0);
            let mut stream = client.connect(CLIENT, remote).await.unwrap();
            stream
                .write_all(&u32::from(number).to_be_bytes())
                .await
                .unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            let expected = [&u32::from(number).to_be_bytes()[..], &port.to_be_bytes()].concat();
            assert_eq!(answer, expected);
        });
    }
    timeout(PATIENCE, calls.join_all()).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_slipped_past_is_dialled_when_it_is_accepted() {
    let Some(pair) = pair() else { return };
    let mut incoming = pair.agent.incoming();
    let accept = async { next(&mut incoming).await.accept().await.unwrap() };
    let (_first, _stream) = tokio::join!(pair.connect(PORT), accept);
    pair.orders.send(Order::Blind(true)).unwrap();
    tokio::task::yield_now().await;
    let mut client = pair.connect(PORT).await.unwrap();
    let offer = next(&mut incoming).await;
    assert_eq!(offer.source().port(), client.local_addr().unwrap().port());
    let mut agent = offer.accept().await.unwrap();
    agent.write_u8(7).await.unwrap();
    assert_eq!(
        timeout(PATIENCE, client.read_u8()).await.unwrap().unwrap(),
        7
    );
    let mut client = pair.connect(PORT).await.unwrap();
    next(&mut incoming).await.refuse();
    let end = timeout(PATIENCE, client.read_u8()).await.unwrap();
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_thousand_connections_to_one_port_at_once_are_all_served() {
    let Some(pair) = pair() else { return };
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        ..limit
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let mut incoming = pair.agent.incoming();
    let serving = tokio::spawn(async move {
        let mut streams = Vec::new();
        let mut accepting = JoinSet::new();
        for _ in 0..1000 {
            accepting.spawn(next(&mut incoming).await.accept());
        }
        while let Some(stream) = accepting.join_next().await {
            streams.push(stream.unwrap().unwrap());
        }
        streams
    });
    let mut calls = JoinSet::new();
    for _ in 0..1000 {
        let client = pair.client.clone();
        let remote = SocketAddrV6::new(AGENT, PORT, 0, 0);
        calls.spawn(async move { client.connect(CLIENT, remote).await.unwrap() });
    }
    let streams = timeout(PATIENCE, calls.join_all()).await.unwrap();
    assert_eq!(streams.len(), 1000);
    assert_eq!(
        timeout(PATIENCE, serving).await.unwrap().unwrap().len(),
        1000
    );
}

#[tokio::test]
async fn a_stream_goes_on_soon_after_an_outage() {
    let Some(pair) = pair() else { return };
    let mut incoming = pair.agent.incoming();
    let accept = async { next(&mut incoming).await.accept().await.unwrap() };
    let (client, mut agent) = tokio::join!(pair.connect(PORT), accept);
    let mut client = client.unwrap();
    let sending = tokio::spawn(async move { send(&mut client, 4, 32 * MEBIBYTE).await });
    let mut hash = Sha256::new();
    let mut part = vec![0; 16 * MEBIBYTE];
    agent.read_exact(&mut part).await.unwrap();
    hash.update(&part);
    pair.orders.send(Order::Path(0)).unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    pair.orders.send(Order::Path(usize::MAX)).unwrap();
    let since = Instant::now();
    // What had arrived before the outage is not what is waited for.
    let mut rest = Vec::new();
    timeout(PATIENCE, agent.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    let stall = since.elapsed();
    hash.update(&rest);
    assert_eq!(sending.await.unwrap(), hash.finalize().to_vec());
    if std::path::Path::new("/proc/sys/net/ipv4/tcp_rto_max_ms").exists() {
        assert!(stall < Duration::from_millis(2500), "{stall:?}");
    } else {
        crate::skip("this kernel has no tcp_rto_max_ms");
    }
}

#[tokio::test]
async fn a_path_that_shrinks_and_grows_does_not_stall_a_stream() {
    let Some(pair) = pair() else { return };
    large(&pair, 8920);
    let mut incoming = pair.agent.incoming();
    let accept = async { next(&mut incoming).await.accept().await.unwrap() };
    let (client, mut agent) = tokio::join!(pair.connect(PORT), accept);
    let mut client = client.unwrap();
    let sending = tokio::spawn(async move { send(&mut client, 3, 24 * MEBIBYTE).await });
    let mut start = vec![0; 4 * MEBIBYTE];
    agent.read_exact(&mut start).await.unwrap();
    for (path, mtu) in [(1300, 1280), (1420, 1420), (8920, 8920), (1280, 1280)] {
        pair.orders.send(Order::Path(path)).unwrap();
        tokio::task::yield_now().await;
        large(&pair, mtu);
        let mut part = vec![0; 2 * MEBIBYTE];
        timeout(Duration::from_secs(4), agent.read_exact(&mut part))
            .await
            .unwrap_or_else(|_| panic!("stalled at {mtu}"))
            .unwrap();
        start.extend_from_slice(&part);
    }
    let mut rest = Vec::new();
    timeout(PATIENCE, agent.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    start.extend_from_slice(&rest);
    assert_eq!(sending.await.unwrap(), Sha256::digest(&start).to_vec());
}
