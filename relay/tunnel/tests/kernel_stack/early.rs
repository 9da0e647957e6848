//! Data in the first packet of a stream: what it saves, and that it never arrives twice.

use std::io;
use std::time::{Duration, Instant};

use relay_tunnel::stack::StackOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::pair::*;

const DELAY: Duration = Duration::from_millis(20);
const RTT: Duration = Duration::from_millis(40);
/// How often a busy machine may be too slow before that counts.
const TRIES: usize = 40;

/// Two stacks a long way apart, if this kernel sends data early.
fn far() -> Option<Pair> {
    let pair = pair()?;
    if !pair.client.takes_early_data() {
        println!("skip: no data in first packets here");
        return None;
    }
    pair.orders.send(Order::Delay(DELAY)).unwrap();
    Some(pair)
}

/// Answers every stream's first bytes in capitals; tells what it was asked.
fn serve(pair: &Pair) -> mpsc::UnboundedReceiver<Vec<u8>> {
    let (asked, requests) = mpsc::unbounded_channel();
    let mut incoming = pair.agent.incoming();
    tokio::spawn(async move {
        while let Some(offer) = incoming.recv().await {
            let asked = asked.clone();
            tokio::spawn(async move {
                let mut stream = offer.accept().await?;
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await?;
                request.truncate(length);
                stream.write_all(&request.to_ascii_uppercase()).await?;
                if length > 0 {
                    let _ = asked.send(request);
                }
                stream.shutdown().await?;
                io::Result::Ok(())
            });
        }
    });
    requests
}

async fn answer(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    timeout(PATIENCE, read).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn the_first_answer_comes_after_one_round_trip() {
    let Some(pair) = far() else { return };
    let _requests = serve(&pair);
    let (early, plain) = (b"get".as_slice(), b"".as_slice());
    for (first, bound) in [(early, RTT * 12 / 10), (plain, RTT * 24 / 10)] {
        let mut times = Vec::new();
        // A busy machine makes it slower; nothing makes one round trip more that fast.
        while times.len() < TRIES && times.iter().all(|took| *took > bound) {
            let began = Instant::now();
            let (mut stream, taken) = pair.connect_with(PORT, first).await.unwrap();
            assert_eq!(taken, first.len());
            stream.write_all(&b"get"[taken..]).await.unwrap();
            let byte = timeout(PATIENCE, stream.read_u8()).await.unwrap();
            times.push(began.elapsed());
            assert_eq!(byte.unwrap(), b'G');
        }
        times.sort();
        println!("{} bytes early: {times:?}", first.len());
        assert!(times[0] <= bound, "{times:?}");
        assert!(times[0] >= RTT, "faster than the way: {times:?}");
    }
}

#[tokio::test]
async fn what_finds_no_room_in_the_first_packet_follows() {
    let Some(pair) = far() else { return };
    let mut incoming = pair.agent.incoming();
    let bytes: Vec<u8> = (0..9000u32).map(|n| (n / 7) as u8).collect();
    let client = async {
        let (mut stream, taken) = pair.connect_with(PORT, &bytes).await.unwrap();
        println!("{taken} bytes went early");
        assert!(taken >= 1000 && taken <= pair.client.early_room(AGENT) + 60);
        stream.write_all(&bytes[taken..]).await.unwrap();
        stream.shutdown().await.unwrap();
        stream
    };
    let agent = async {
        let mut stream = next(&mut incoming).await.accept().await.unwrap();
        answer(&mut stream).await
    };
    let (_stream, got) = tokio::join!(client, agent);
    assert_eq!(got, bytes);
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_as_soon_as_ever() {
    let Some(pair) = far() else { return };
    let mut incoming = pair.agent.incoming();
    // The server speaks when the handshake is done on its side.
    let bound = RTT * 24 / 10;
    let mut times: Vec<Duration> = Vec::new();
    while times.len() < TRIES && times.iter().all(|took| *took > bound) {
        let agent = async {
            let mut stream = next(&mut incoming).await.accept().await.unwrap();
            stream.write_all(b"220").await.unwrap();
            stream
        };
        let client = async {
            let began = Instant::now();
            let mut stream = pair.connect(PORT).await.unwrap();
            let mut greeting = [0; 3];
            stream.read_exact(&mut greeting).await.unwrap();
            assert_eq!(&greeting, b"220");
            began.elapsed()
        };
        times.push(tokio::join!(agent, client).1);
    }
    assert!(times.iter().any(|took| *took <= bound), "{times:?}");
}

#[tokio::test]
async fn an_end_that_takes_no_early_data_gets_it_afterwards() {
    let Some(pair) = pair_with(StackOptions::default(), Place::Own) else {
        return;
    };
    assert!(!pair.agent.takes_early_data());
    let mut requests = serve(&pair);
    let (mut stream, taken) = pair.connect_with(PORT, b"get").await.unwrap();
    stream.write_all(&b"get"[taken..]).await.unwrap();
    assert_eq!(answer(&mut stream).await, b"GET");
    assert_eq!(requests.recv().await.unwrap(), b"get");
}

#[tokio::test]
async fn refusal_of_a_request_is_seen() {
    let Some(pair) = far() else { return };
    let mut incoming = pair.agent.incoming();
    let refuse = async { next(&mut incoming).await.refuse() };
    let (outcome, ()) = tokio::join!(pair.connect_with(PORT, b"get"), refuse);
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_lost_request_and_a_lost_answer_are_made_up_for() {
    let Some(pair) = far() else { return };
    let mut requests = serve(&pair);
    for to_agent in [true, false] {
        pair.orders.send(Order::Lose(to_agent, 1)).unwrap();
        let (mut stream, taken) = pair.connect_with(PORT, b"get").await.unwrap();
        assert_eq!(taken, 3);
        assert_eq!(answer(&mut stream).await, b"GET");
        assert_eq!(requests.recv().await.unwrap(), b"get");
    }
    assert!(requests.try_recv().is_err(), "asked twice");
}

/// Sends a request, then what the network kept of it, while the stream is open and once it has
/// ended; returns how often the application was asked.
async fn asked_after_replays(pair: &Pair, blind: bool) -> usize {
    let mut requests = serve(pair);
    let (mut stream, _) = pair.connect_with(PORT, b"pay").await.unwrap();
    assert_eq!(answer(&mut stream).await, b"PAY");
    pair.orders.send(Order::Blind(blind)).unwrap();
    assert_eq!(pair.replay().await, 1);
    tokio::time::sleep(4 * RTT).await;
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
    tokio::time::sleep(4 * RTT).await;
    assert_eq!(pair.replay().await, 1);
    tokio::time::sleep(4 * RTT).await;
    pair.orders.send(Order::Blind(false)).unwrap();
    let mut count = 0;
    while requests.try_recv().is_ok() {
        count += 1;
    }
    // The port goes on working.
    let (mut stream, _) = pair.connect_with(PORT, b"more").await.unwrap();
    assert_eq!(answer(&mut stream).await, b"MORE");
    count
}

#[tokio::test]
async fn a_replayed_request_is_never_delivered_twice() {
    let Some(pair) = far() else { return };
    assert_eq!(asked_after_replays(&pair, false).await, 1);
}

#[tokio::test]
async fn without_the_guard_the_kernel_would_deliver_a_replayed_request() {
    let Some(pair) = far() else { return };
    assert_eq!(asked_after_replays(&pair, true).await, 2);
}
