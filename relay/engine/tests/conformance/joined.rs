//! What only the engine that joins sockets in the kernel can get wrong.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use relay_engine::{Ending, Engine, Side, abort, connections_joined, pump};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::support::{Pieces, end_of, ended, exchange, meet, pumped, tcp_pair, write_until_stuck};
use crate::{Runtime, run, run_joining};

/// A connection within a machine may look far away at a busy moment.
const ATTEMPTS: usize = 50;

/// Without this the suite might try something else with every connection.
#[test]
fn connections_of_near_ends_are_joined() {
    run(Engine::Sockmap, Runtime::OneThread, |engine| async move {
        both_ways_until_joined("127.0.0.1:0", engine).await;
    });
}

#[test]
fn both_families_are_joined() {
    run(Engine::Sockmap, Runtime::OneThread, |engine| async move {
        both_ways_until_joined("[::1]:0", engine).await;
    });
}

/// Moves some megabytes on connections, one after the other, until one of them was joined.
async fn both_ways_until_joined(near: &str, engine: Engine) {
    until_joined(near, async |mut left, a, b, mut right| {
        let pump = tokio::spawn(pump(a, b, engine));
        // One that has ended on one side already is not joined.
        left.write_all(b"first").await.unwrap();
        right.read_exact(&mut [0; 5]).await.unwrap();
        exchange(&mut left, &mut right, (8 << 20, 8 << 20), 4, Pieces::Random).await;
        assert_eq!(ended(pump).await.end, Ending::Finished);
    })
    .await;
}

/// Does `work` with an application's socket, the two that an engine gets, and another application's,
/// until two were joined.
async fn until_joined(near: &str, work: impl AsyncFn(TcpStream, TcpStream, TcpStream, TcpStream)) {
    let near = TcpListener::bind(near).await.unwrap();
    let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for _ in 0..ATTEMPTS {
        let (left, a) = meet(&near).await;
        let (b, right) = meet(&far).await;
        let before = connections_joined();
        work(left, a, b, right).await;
        if connections_joined() > before {
            return;
        }
    }
    panic!("none of {ATTEMPTS} connections was joined");
}

/// The kernel gives the program the whole of a packet of which a part was read.
#[test]
fn what_was_read_before_is_not_sent_again() {
    run(Engine::Sockmap, Runtime::OneThread, |engine| async move {
        until_joined("127.0.0.1:0", async |mut left, mut a, b, mut right| {
            left.write_all(b"greeting and more").await.unwrap();
            a.read_exact(&mut [0; 8]).await.unwrap();
            let pump = tokio::spawn(pump(a, b, engine));
            let mut got = [0; 9];
            right.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b" and more");
            left.write_all(b", and the rest").await.unwrap();
            left.shutdown().await.unwrap();
            let mut got = Vec::new();
            right.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b", and the rest");
            drop(right);
            assert_eq!(ended(pump).await.end, Ending::Finished);
        })
        .await;
    });
}

/// While bytes are on their way in both directions, and some were read before.
#[test]
fn a_connection_that_becomes_bulk_is_joined_midway() {
    let after = crate::AS_USUAL;
    run_joining(
        after,
        Engine::Sockmap,
        Runtime::OneThread,
        |engine| async move {
            both_ways_until_joined("127.0.0.1:0", engine).await;
        },
    );
}

/// It would take longer than what it is used for.
#[test]
fn a_short_connection_is_not_joined() {
    let after = crate::AS_USUAL;
    run_joining(
        after,
        Engine::Sockmap,
        Runtime::OneThread,
        |engine| async move {
            let before = connections_joined();
            let (mut left, mut right, pump) = pumped(engine).await;
            let sizes = (512 << 10, 512 << 10);
            exchange(&mut left, &mut right, sizes, 6, Pieces::Large).await;
            assert_eq!(ended(pump).await.end, Ending::Finished);
            assert_eq!(connections_joined(), before);
        },
    );
}

/// What arrived before the sockets were joined, both ways.
#[test]
fn what_lay_there_before_arrives() {
    run(Engine::Sockmap, Runtime::OneThread, |engine| async move {
        let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut left, a) = meet(&near).await;
        let (b, mut right) = meet(&far).await;
        left.write_all(b"question").await.unwrap();
        right.write_all(b"answer").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let pump = tokio::spawn(pump(a, b, engine));
        let (mut question, mut answer) = ([0; 8], [0; 6]);
        right.read_exact(&mut question).await.unwrap();
        left.read_exact(&mut answer).await.unwrap();
        assert_eq!((&question, &answer), (b"question", b"answer"));
        drop((left, right));
        ended(pump).await;
    });
}

/// A reader that sleeps costs memory of the kernel, which is bounded.
#[test]
fn both_readers_asleep_hold_little_and_lose_nothing() {
    const MOST: usize = 24 << 20;
    run(Engine::Sockmap, Runtime::OneThread, |engine| async move {
        for _ in 0..3 {
            let (mut left, mut right, pump) = pumped(engine).await;
            let up = write_until_stuck(&mut left, 64 << 20).await;
            let down = write_until_stuck(&mut right, 64 << 20).await;
            assert!(up < MOST && down < MOST, "{up} and {down} bytes");
            let ((mut left_in, mut left_out), (mut right_in, mut right_out)) =
                (left.split(), right.split());
            left_out.shutdown().await.unwrap();
            right_out.shutdown().await.unwrap();
            let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
            let (a, b) = tokio::join!(
                right_in.read_to_end(&mut got_up),
                left_in.read_to_end(&mut got_down)
            );
            assert_eq!((a.unwrap(), b.unwrap()), (up, down));
            assert!(got_up.iter().chain(&got_down).all(|byte| *byte == 7));
            assert_eq!(ended(pump).await.end, Ending::Finished);
        }
    });
}

/// The kernel tells of a reset once, and whoever hears of it first has to say so.
#[test]
fn a_reset_at_the_moment_of_joining_is_carried() {
    run(Engine::Sockmap, Runtime::OneThread, |engine| async move {
        let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for _ in 0..300 {
            let (mut left, a) = meet(&near).await;
            let (b, right) = meet(&far).await;
            let pump = tokio::spawn(pump(a, b, engine));
            tokio::task::yield_now().await;
            abort(right);
            assert_eq!(end_of(&mut left).await, Some(ErrorKind::ConnectionReset));
            assert_eq!(ended(pump).await.end, Ending::Reset(Side::B));
        }
    });
}

/// What lies in the kernel, with all that it needs around it, when the reader sleeps: at relay's two
/// sockets after the reader has been fast, and at all four when it has slept from the first byte on.
#[test]
fn a_sleeping_reader_costs_bounded_memory_of_the_kernel() {
    run(Engine::Sockmap, Runtime::OneThread, |engine| async move {
        for (piece, is_fast_first) in [(64 << 10, false), (64, false), (64 << 10, true)] {
            let ((mut left, a), (b, mut right)) = (tcp_pair().await, tcp_pair().await);
            let own = [a.as_fd(), b.as_fd()].map(|fd| fd.try_clone_to_owned().unwrap());
            let pump = tokio::spawn(pump(a, b, engine));
            let block = vec![7; piece];
            let (mut sent, mut got) = (0, 0);
            let mut into = vec![0; 1 << 20];
            if is_fast_first {
                const FAST: usize = 32 << 20;
                let write = async {
                    while sent < FAST {
                        left.write_all(&block).await.unwrap();
                        sent += block.len();
                    }
                };
                let read = async {
                    while got < FAST {
                        got += right.read(&mut into).await.unwrap();
                    }
                };
                tokio::join!(write, read);
            }
            while let Ok(taken) = timeout(STUCK, left.write(&block)).await {
                sent += taken.unwrap();
                assert!(sent - got < 64 << 20, "the sender is not held back");
            }
            let held: i64 = own.iter().map(memory).sum();
            // How far their own buffers have grown is the applications' matter.
            let all = held + memory(&left) + memory(&right);
            let taken = (sent - got) >> 10;
            let (relay, in_all) = (held >> 10, all >> 10);
            eprintln!("KiB: {taken} taken, {relay} at relay's sockets, {in_all} in all");
            assert!(held <= MOST && (is_fast_first || all <= MOST));
            drop(own);
            left.shutdown().await.unwrap();
            let mut rest = Vec::new();
            right.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest.len(), sent - got);
            drop((left, right));
            pump.await.unwrap();
        }
    });
}

/// The most that one connection may cost, bytes.
const MOST: i64 = 24 << 20;
/// A sender that could not write for so long is held back.
const STUCK: Duration = Duration::from_millis(300);

/// What a socket holds: what was received and what is to be sent, what the kernel needs around it,
/// and what it has set aside, which is less than nothing where it owes (`SO_MEMINFO`, sock_diag(7)).
fn memory(socket: &impl AsFd) -> i64 {
    const RECEIVED: usize = 0;
    const SET_ASIDE: usize = 4;
    const TO_SEND: usize = 5;
    const OPTIONS: usize = 6;
    const BACKLOG: usize = 7;
    let mut words = [0_i32; 9];
    let mut length = size_of_val(&words) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the array is as long as said.
    let status = unsafe {
        let into = words.as_mut_ptr().cast();
        let fd = socket.as_fd().as_raw_fd();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_MEMINFO, into, &mut length)
    };
    assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
    let parts = [RECEIVED, SET_ASIDE, TO_SEND, OPTIONS, BACKLOG];
    parts.iter().map(|part| i64::from(words[*part])).sum()
}
