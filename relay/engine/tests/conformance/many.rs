//! Many pumps: at once, and one after the other.

use std::io::ErrorKind;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use relay_engine::{Ending, Engine, Side, abort, pump};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Pieces, end_of, ended, exchange, meet, pumped};

const AT_ONCE: u64 = 500;
const WORKERS: u64 = 50;
const EACH: u64 = 60;

pub(crate) async fn hundreds_of_pumps_run_at_once(engine: Engine) {
    let mut tasks = Vec::new();
    for seed in 0..AT_ONCE {
        tasks.push(tokio::spawn(async move {
            let (mut left, mut right, pump) = pumped(engine).await;
            let sizes = (100_000, 50_000);
            exchange(&mut left, &mut right, sizes, seed, Pieces::Random).await;
            assert_eq!(ended(pump).await.end, Ending::Finished);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

pub(crate) async fn three_thousand_connections_come_and_go(engine: Engine) {
    let mut workers = Vec::new();
    for seed in 0..WORKERS {
        workers.push(tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
            for _ in 0..EACH {
                let (left, a) = meet(&near).await;
                let (b, right) = meet(&far).await;
                let pump = tokio::spawn(pump(a, b, engine));
                let expected = one_life(left, right, &mut random).await;
                assert_eq!(ended(pump).await.end, expected);
            }
        }));
    }
    for worker in workers {
        worker.await.unwrap();
    }
}

/// A connection that is used and ended in one of many ways. Returns how the pump must end.
async fn one_life(mut left: TcpStream, mut right: TcpStream, random: &mut StdRng) -> Ending {
    let size = [0, 1, 100, 4096, 20_000, 300_000][random.random_range(0..6)];
    let way = random.random_range(0..5);
    if way == 0 {
        drop(left);
        assert_eq!(end_of(&mut right).await, None);
        drop(right);
        return Ending::Finished;
    }
    let message = vec![random.random(); size];
    let mut got = vec![0; size];
    let (written, read) = tokio::join!(left.write_all(&message), right.read_exact(&mut got));
    written.unwrap();
    read.unwrap();
    assert!(got == message);
    match way {
        1 => {
            left.shutdown().await.unwrap();
            assert_eq!(end_of(&mut right).await, None);
            right.write_all(&message).await.unwrap();
            drop(right);
            let mut answer = Vec::new();
            left.read_to_end(&mut answer).await.unwrap();
            assert!(answer == message);
            Ending::Finished
        }
        2 => {
            abort(left);
            assert_eq!(end_of(&mut right).await, Some(ErrorKind::ConnectionReset));
            Ending::Reset(Side::A)
        }
        3 => {
            abort(right);
            assert_eq!(end_of(&mut left).await, Some(ErrorKind::ConnectionReset));
            Ending::Reset(Side::B)
        }
        _ => {
            right.write_all(b"bye").await.unwrap();
            right.shutdown().await.unwrap();
            let mut answer = Vec::new();
            left.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"bye");
            drop(left);
            assert_eq!(end_of(&mut right).await, None);
            Ending::Finished
        }
    }
}
