//! The pumps' process is killed: the applications must be told by the kernel, with every engine.

use std::env;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use relay_engine::{Engine, pump};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::{end_of, write_until_stuck};

/// Set in the process that has the pumps: `ENGINE NEAR FAR`.
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
