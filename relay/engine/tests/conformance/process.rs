//! What becomes of pumps in a process that is killed, and in one that may not have a ring.

use std::env;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use relay_engine::{Ending, Engine, pump};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::{Pieces, end_of, ended, exchange, pumped, write_until_stuck};
use crate::{Runtime, run};

/// Set in the process that has the pumps, which are joined at once if ever: `ENGINE NEAR FAR`.
const ORDERS: &str = "RELAY_CONFORMANCE_PUMPS";
const PUMPS: usize = 12;

pub(crate) async fn a_killed_process_leaves_nobody_waiting(engine: Engine) {
    let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let [left, right] = [&near, &far].map(|listener| listener.local_addr().unwrap());
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "process::pumps_of_another_process"])
        .env(ORDERS, format!("{engine} {left} {right}"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut apps = JoinSet::new();
    for number in 0..PUMPS {
        let (mut left, _) = near.accept().await.unwrap();
        let (mut right, _) = far.accept().await.unwrap();
        left.write_all(b"hello").await.unwrap();
        right.read_exact(&mut [0; 5]).await.unwrap();
        // Idle ones, and some that are full in one direction or both.
        if number % 3 > 0 {
            write_until_stuck(&mut left, 64 << 20).await;
        }
        if number % 3 > 1 {
            write_until_stuck(&mut right, 64 << 20).await;
        }
        apps.spawn(async move { tokio::join!(end_of(&mut left), end_of(&mut right)) });
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(apps.try_join_next().is_none(), "an end before the kill");
    child.kill().unwrap();
    child.wait().unwrap();
    // Each `end_of` gives up by a panic when nothing comes.
    while let Some(app) = apps.join_next().await {
        app.unwrap();
    }
}

/// Not a test by itself: what the killed process does.
#[test]
fn pumps_of_another_process() {
    let Ok(orders) = env::var(ORDERS) else { return };
    relay_engine::test_support::join_after(crate::AT_ONCE);
    let mut words = orders.split(' ');
    let engine: Engine = words.next().unwrap().parse().unwrap();
    let [near, far] = [(); 2].map(|()| words.next().unwrap().parse::<SocketAddr>().unwrap());
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(async move {
        for _ in 0..PUMPS {
            let a = TcpStream::connect(near).await.unwrap();
            let b = TcpStream::connect(far).await.unwrap();
            tokio::spawn(pump(a, b, engine));
        }
        std::future::pending::<()>().await;
    });
}

#[test]
fn where_rings_are_forbidden_it_is_said_and_connections_are_carried_all_the_same() {
    run(Engine::Auto, Runtime::OneThread, |_| async {
        forbid_rings();
        let why = Engine::IoUring.check().unwrap_err().to_string();
        assert!(why.contains("io-uring") && why.contains("seccomp"), "{why}");
        // Some of them at the same moment.
        let mut pumps = Vec::new();
        for _ in 0..8 {
            pumps.push(pumped(Engine::IoUring).await);
        }
        for (mut left, mut right, pump) in pumps {
            exchange(&mut left, &mut right, (1 << 20, 100), 1, Pieces::Random).await;
            assert_eq!(ended(pump).await.end, Ending::Finished);
        }
    });
}

/// As containers do, but for this thread alone.
fn forbid_rings() {
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let answer = |action| statement(libc::BPF_RET | libc::BPF_K, 0, 0, action);
    let number = libc::SYS_io_uring_setup.try_into().unwrap();
    let mut filter = [
        load(0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        answer(libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned()),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len().try_into().unwrap(),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the filter is as long as said, and is copied by the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &program), 0);
    }
}

fn statement(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    let code = code.try_into().unwrap();
    libc::sock_filter { code, jt, jf, k }
}
