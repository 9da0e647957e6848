//! Every kind of end, and that it is carried as what it is.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use relay_engine::{Ending, Engine, Side, abort, pump};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use crate::support::{PATIENCE, end_of, ended, pumped, tcp_pair, write_until_stuck};

/// Long enough for what was just done to have arrived.
const MOMENT: Duration = Duration::from_millis(20);

pub(crate) async fn the_end_of_one_direction_leaves_the_other_open(engine: Engine) {
    for left_first in [true, false] {
        let (mut left, mut right, pump) = pumped(engine).await;
        let (first, second) = if left_first {
            (&mut left, &mut right)
        } else {
            (&mut right, &mut left)
        };
        first.write_all(b"request").await.unwrap();
        first.shutdown().await.unwrap();
        let mut request = Vec::new();
        second.read_to_end(&mut request).await.unwrap();
        assert_eq!(request, b"request");
        sleep(MOMENT).await;
        let response = vec![7; 3 << 20];
        let (sent, mut got) = (response.clone(), Vec::new());
        let (_, read) = tokio::join!(
            async {
                second.write_all(&sent).await.unwrap();
                second.shutdown().await.unwrap();
            },
            first.read_to_end(&mut got)
        );
        read.unwrap();
        assert!(got == response, "{} bytes", got.len());
        assert_eq!(ended(pump).await.end, Ending::Finished);
    }
}

pub(crate) async fn a_reset_is_carried_from_either_side(engine: Engine) {
    for side in [Side::A, Side::B] {
        let (left, right, pump) = pumped(engine).await;
        let (broken, mut other) = if side == Side::A {
            (left, right)
        } else {
            (right, left)
        };
        other.write_all(b"hello").await.unwrap();
        sleep(MOMENT).await;
        abort(broken);
        assert_eq!(end_of(&mut other).await, Some(ErrorKind::ConnectionReset));
        assert_eq!(ended(pump).await.end, Ending::Reset(side));
    }
}

pub(crate) async fn a_reset_is_carried_after_the_end_of_a_direction(engine: Engine) {
    let (mut left, mut right, pump) = pumped(engine).await;
    left.shutdown().await.unwrap();
    assert_eq!(right.read(&mut [0; 1]).await.unwrap(), 0);
    sleep(MOMENT).await;
    abort(left);
    // Nobody reads or writes on the broken side: the pump has to notice by itself.
    assert_eq!(ended(pump).await.end, Ending::Reset(Side::A));
    sleep(MOMENT).await;
    let error = right.take_error().unwrap();
    assert!(error.is_some(), "ended without a reset");
}

pub(crate) async fn a_reset_is_carried_while_the_other_side_does_not_read(engine: Engine) {
    for side in [Side::A, Side::B] {
        let (left, right, pump) = pumped(engine).await;
        let (mut broken, mut other) = if side == Side::A {
            (left, right)
        } else {
            (right, left)
        };
        let taken = write_until_stuck(&mut broken, 64 << 20).await;
        assert!(taken < 64 << 20, "64 MiB fit into socket buffers");
        abort(broken);
        assert_eq!(ended(pump).await.end, Ending::Reset(side));
        assert_eq!(end_of(&mut other).await, Some(ErrorKind::ConnectionReset));
    }
}

pub(crate) async fn what_was_sent_before_a_reset_still_arrives(engine: Engine) {
    let (mut left, mut right, pump) = pumped(engine).await;
    // Unread bytes at close make the kernel reset instead of finishing.
    right.write_all(b"never read").await.unwrap();
    sleep(MOMENT).await;
    left.write_all(&[1; 100_000]).await.unwrap();
    drop(left);
    let mut got = Vec::new();
    let result = timeout(PATIENCE, right.read_to_end(&mut got)).await;
    assert_eq!(
        result.unwrap().unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(got.len(), 100_000);
    assert_eq!(ended(pump).await.end, Ending::Reset(Side::A));
}

/// A connection that does not come about is a broken socket to the pump.
pub(crate) async fn a_socket_that_was_refused_resets_the_other(engine: Engine) {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody: SocketAddr = free.local_addr().unwrap();
    drop(free);
    for side in [Side::A, Side::B] {
        let (mut app, end) = tcp_pair().await;
        let refused = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        refused.set_nonblocking(true).unwrap();
        let _ = refused.connect(&nobody.into());
        let refused = OwnedFd::from(refused);
        let pump = match side {
            Side::A => tokio::spawn(pump(refused, end, engine)),
            Side::B => tokio::spawn(pump(end, refused, engine)),
        };
        assert_eq!(end_of(&mut app).await, Some(ErrorKind::ConnectionReset));
        assert_eq!(ended(pump).await.end, Ending::Reset(side));
    }
}

pub(crate) async fn bytes_queued_at_an_immediate_close_arrive_whole(engine: Engine) {
    for left_first in [true, false] {
        let (left, right, pump) = pumped(engine).await;
        let (mut closing, mut other) = if left_first {
            (left, right)
        } else {
            (right, left)
        };
        let taken = write_until_stuck(&mut closing, 64 << 20).await;
        drop(closing);
        let mut got = Vec::new();
        let read = timeout(PATIENCE, other.read_to_end(&mut got)).await;
        assert_eq!(read.expect("an end").unwrap(), taken);
        assert!(got.iter().all(|byte| *byte == 7));
        drop(other);
        let summary = ended(pump).await;
        assert_eq!(summary.end, Ending::Finished);
        assert_eq!(summary.a_to_b + summary.b_to_a, taken as u64);
    }
}

pub(crate) async fn a_reset_with_bytes_queued_ends_all(engine: Engine) {
    // Both directions are full, so that neither is being read when the reset comes.
    let (mut left, mut right, pump) = pumped(engine).await;
    write_until_stuck(&mut left, 64 << 20).await;
    write_until_stuck(&mut right, 64 << 20).await;
    abort(right);
    assert_eq!(end_of(&mut left).await, Some(ErrorKind::ConnectionReset));
    assert_eq!(ended(pump).await.end, Ending::Reset(Side::B));
}

pub(crate) async fn a_dropped_pump_closes_both_sides(engine: Engine) {
    for full in [false, true] {
        let (mut left, mut right, pump) = pumped(engine).await;
        left.write_all(b"hello").await.unwrap();
        right.read_exact(&mut [0; 5]).await.unwrap();
        if full {
            write_until_stuck(&mut left, 64 << 20).await;
            write_until_stuck(&mut right, 64 << 20).await;
        }
        pump.abort();
        assert!(pump.await.unwrap_err().is_cancelled());
        // Orderly or not is the kernel's business: unread bytes make it a reset.
        tokio::join!(end_of(&mut left), end_of(&mut right));
    }
}
