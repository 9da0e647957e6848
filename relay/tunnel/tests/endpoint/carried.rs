//! Streams that the two ends carry to and from sockets of this machine, as a forward and an agent do.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV6};
use std::time::{Duration, Instant};

use relay_engine::{Ending, Engine, Moved, Side, Summary};
use relay_tunnel::endpoint::StackChoice;
use relay_tunnel::stack::Incoming;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::support::{AGENT, PATIENCE, Pair};

/// Both ends of a stream, and how its two carriers end.
struct Carried {
    /// The developer's side.
    user: TcpStream,
    /// The workspace's side.
    app: TcpStream,
    near: JoinHandle<Summary>,
    far: JoinHandle<Summary>,
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let connect = TcpStream::connect(listener.local_addr().unwrap());
    let (ours, accepted) = tokio::join!(connect, listener.accept());
    (ours.unwrap(), accepted.unwrap().0)
}

async fn carry(pair: &Pair, incoming: &mut mpsc::Receiver<Incoming>) -> Carried {
    let (user, local) = sockets().await;
    let (app, dialled) = sockets().await;
    let endpoint = pair.client.endpoint.clone();
    let near = tokio::spawn(async move {
        let remote = SocketAddrV6::new(AGENT, 8000, 0, 0);
        let (stream, _) = endpoint.open(remote, &[]).await.unwrap();
        stream.carry(local, Engine::Auto, &Moved::default()).await
    });
    let wanted = tokio::time::timeout(PATIENCE, incoming.recv()).await;
    let wanted = wanted.unwrap().unwrap();
    assert_eq!(wanted.port(), 8000);
    let far = tokio::spawn(async move {
        let moved = Moved::default();
        wanted.carry(dialled, Engine::Auto, &moved).await.unwrap()
    });
    Carried {
        user,
        app,
        near,
        far,
    }
}

async fn ended(carrier: JoinHandle<Summary>) -> Summary {
    tokio::time::timeout(PATIENCE, carrier)
        .await
        .unwrap()
        .unwrap()
}

async fn read_all(stream: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut got = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut got)).await;
    (got, read.unwrap().err().map(|error| error.kind()))
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

#[tokio::test]
async fn the_end_of_a_direction_is_that_and_no_more() {
    let Some(pair) = Pair::open(true).await else {
        return;
    };
    let mut incoming = pair.agent.endpoint.incoming();
    let mut carried = carry(&pair, &mut incoming).await;
    carried.user.write_all(b"question").await.unwrap();
    carried.user.shutdown().await.unwrap();
    let asked = read_all(&mut carried.app).await;
    assert_eq!(asked, (b"question".to_vec(), None));
    carried.app.write_all(b"an answer").await.unwrap();
    drop(carried.app);
    let answered = read_all(&mut carried.user).await;
    assert_eq!(answered, (b"an answer".to_vec(), None));
    let (near, far) = (ended(carried.near).await, ended(carried.far).await);
    for summary in [near, far] {
        assert_eq!((summary.a_to_b, summary.b_to_a), (8, 9), "{summary:?}");
        assert_eq!(summary.end, Ending::Finished);
    }
}

#[tokio::test]
async fn a_reset_arrives_as_a_reset_after_the_bytes_before_it() {
    let Some(pair) = Pair::open(true).await else {
        return;
    };
    let mut incoming = pair.agent.endpoint.incoming();
    let mut carried = carry(&pair, &mut incoming).await;
    carried.app.write_all(b"last words").await.unwrap();
    reset(carried.app);
    let got = read_all(&mut carried.user).await;
    let ends = (ended(carried.near).await.end, ended(carried.far).await.end);
    assert_eq!(ends, (Ending::Reset(Side::B), Ending::Reset(Side::B)));
    let expected = (b"last words".to_vec(), Some(ErrorKind::ConnectionReset));
    assert_eq!(got, expected);

    let mut carried = carry(&pair, &mut incoming).await;
    carried.user.write_all(b"never mind").await.unwrap();
    reset(carried.user);
    let got = read_all(&mut carried.app).await;
    let expected = (b"never mind".to_vec(), Some(ErrorKind::ConnectionReset));
    assert_eq!(got, expected);
    assert_eq!(ended(carried.near).await.end, Ending::Reset(Side::A));
    assert_eq!(ended(carried.far).await.end, Ending::Reset(Side::A));
}

#[tokio::test]
async fn who_does_not_read_holds_the_other_back_and_a_reset_is_noticed_meanwhile() {
    let Some(pair) = Pair::open(true).await else {
        return;
    };
    let mut incoming = pair.agent.endpoint.incoming();
    let mut carried = carry(&pair, &mut incoming).await;
    let block = vec![7; 1 << 16];
    let mut written = 0;
    let still = Duration::from_secs(2);
    while let Ok(wrote) = tokio::time::timeout(still, carried.user.write(&block)).await {
        written += wrote.unwrap();
        assert!(written < 128 << 20, "nothing holds the writer back");
    }
    let mut got = vec![0; written];
    let read = carried.app.read_exact(&mut got);
    tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
    assert!(got.iter().all(|byte| *byte == 7));

    while tokio::time::timeout(still, carried.user.write(&block))
        .await
        .is_ok()
    {}
    reset(carried.user);
    assert_eq!(ended(carried.near).await.end, Ending::Reset(Side::A));
}

#[tokio::test]
async fn a_carrier_that_is_dropped_ends_its_stream() {
    let Some(pair) = Pair::open(true).await else {
        return;
    };
    let mut incoming = pair.agent.endpoint.incoming();
    let mut carried = carry(&pair, &mut incoming).await;
    carried.user.write_all(b"hello").await.unwrap();
    carried.app.read_exact(&mut [0; 5]).await.unwrap();
    carried.near.abort();
    let (_, _) = (read_all(&mut carried.user).await, carried.near.await);
    let (rest, _) = read_all(&mut carried.app).await;
    assert!(rest.is_empty(), "{rest:?}");
    drop(carried.app);
    ended(carried.far).await;
}

/// Asks with first bytes, as a forward does, and returns the time until the answer began.
async fn ask(pair: &Pair, incoming: &mut mpsc::Receiver<Incoming>) -> Duration {
    let (mut user, local) = sockets().await;
    let (mut app, dialled) = sockets().await;
    let endpoint = pair.client.endpoint.clone();
    let began = Instant::now();
    let near = tokio::spawn(async move {
        let remote = SocketAddrV6::new(AGENT, 8000, 0, 0);
        let (stream, taken) = endpoint.open(remote, b"get").await.unwrap();
        assert_eq!(taken, 3);
        stream.carry(local, Engine::Auto, &Moved::default()).await
    });
    let wanted = tokio::time::timeout(PATIENCE, incoming.recv()).await;
    let wanted = wanted.unwrap().unwrap();
    let far = tokio::spawn(async move {
        let moved = Moved::default();
        wanted.carry(dialled, Engine::Auto, &moved).await.unwrap()
    });
    let mut request = [0; 3];
    app.read_exact(&mut request).await.unwrap();
    assert_eq!(&request, b"get");
    app.write_all(b"GET").await.unwrap();
    let mut answer = [0; 3];
    user.read_exact(&mut answer).await.unwrap();
    let took = began.elapsed();
    assert_eq!(&answer, b"GET");
    user.write_all(b" more").await.unwrap();
    user.shutdown().await.unwrap();
    assert_eq!(read_all(&mut app).await, (b" more".to_vec(), None));
    app.shutdown().await.unwrap();
    assert_eq!(read_all(&mut user).await, (vec![], None));
    let (near, far) = (ended(near).await, ended(far).await);
    // What went with the request is counted by whoever sent it.
    assert_eq!((near.a_to_b, near.b_to_a), (5, 3));
    assert_eq!((far.a_to_b, far.b_to_a), (8, 3));
    took
}

/// Whether a request over a long way is answered after one round trip: never two round trips are
/// as fast, though a busy machine may make one as slow, now and then.
async fn is_answered_at_once(stacks: [StackChoice; 2]) {
    const WAY: Duration = Duration::from_millis(50);
    let Some(pair) = Pair::open_with(false, stacks).await else {
        return;
    };
    if pair.agent.node(false).await.features & 4 == 0 {
        println!("skip: no data in first packets here");
        return;
    }
    let mut incoming = pair.agent.endpoint.incoming();
    pair.relay.set_delay(WAY);
    let mut times = Vec::new();
    while times.len() < 50 {
        let took = ask(&pair, &mut incoming).await;
        assert!(took >= 2 * WAY, "{took:?} is faster than the way");
        times.push(took);
        if took < 4 * WAY {
            println!("{stacks:?}: answered after {times:?}");
            return;
        }
    }
    panic!("{stacks:?}: more than a round trip each time: {times:?}");
}

#[tokio::test]
async fn a_request_over_a_long_way_is_answered_after_one_round_trip_by_either_stack() {
    let (user, kernel) = (StackChoice::User, StackChoice::Kernel);
    tokio::join!(
        is_answered_at_once([user, user]),
        is_answered_at_once([user, kernel]),
        is_answered_at_once([kernel, user]),
    );
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_after_one_round_trip() {
    const WAY: Duration = Duration::from_millis(50);
    let user = StackChoice::User;
    let Some(pair) = Pair::open_with(false, [user, user]).await else {
        return;
    };
    let mut incoming = pair.agent.endpoint.incoming();
    pair.relay.set_delay(WAY);
    let mut times = Vec::new();
    while times.len() < 50 {
        let began = Instant::now();
        let mut carried = carry(&pair, &mut incoming).await;
        carried.app.write_all(b"220").await.unwrap();
        let mut greeting = [0; 3];
        carried.user.read_exact(&mut greeting).await.unwrap();
        times.push(began.elapsed());
        assert_eq!(&greeting, b"220");
        if began.elapsed() < 4 * WAY {
            println!("greeted after {times:?}");
            return;
        }
    }
    panic!("more than a round trip each time: {times:?}");
}
