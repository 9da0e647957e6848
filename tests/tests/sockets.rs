//! How a connection ends is carried to its other side: end of one direction, reset, refusal.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::sync::atomic::Ordering;
use std::time::Duration;

use relay_lab::apps::App;
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::{PATIENCE, needs, poll};

fn with_app() -> (Cluster, App, relay_lab::process::Process) {
    let cluster = Cluster::start(Options::default());
    let app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let forward = cluster.forward(&["--tcp", "8080:8000,8081:8001"]);
    (cluster, app, forward)
}

#[test]
fn ends_resets_and_refusals_are_carried() {
    needs!(Need::Namespaces);
    let (cluster, app, mut forward) = with_app();
    client_ends_first(&cluster);
    app_ends_first(&cluster, &app);
    app_resets(&cluster);
    client_resets(&cluster, &app);
    nobody_listens(&cluster);
    assert!(forward.runs());
}

fn client_ends_first(cluster: &Cluster) {
    let mut stream = cluster.client.local(8080).expect("connect");
    let data = vec![5; 3 << 20];
    stream.write_all(b"H").expect("write");
    stream.write_all(&data).expect("write");
    stream.shutdown(Shutdown::Write).expect("shutdown");
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .expect("the answer after the client's end");
    assert!(answer.starts_with(&format!("{} ", data.len())), "{answer}");
}

fn app_ends_first(cluster: &Cluster, app: &App) {
    let mut stream = cluster.client.local(8080).expect("connect");
    stream.write_all(b"L").expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("bye and the end");
    assert_eq!(answer, "bye");
    stream
        .write_all(&[1; 100_000])
        .expect("the other direction is open");
    drop(stream);
    let clean = poll(PATIENCE, || {
        (app.clean_ends.load(Ordering::Relaxed) == 1).then_some(())
    });
    assert!(clean.is_some(), "the app saw no end");
    assert_eq!(app.after_bye.load(Ordering::Relaxed), 100_000);
}

fn app_resets(cluster: &Cluster) {
    let mut stream = cluster.client.local(8080).expect("connect");
    stream.write_all(b"R").expect("write");
    let error = stream.read(&mut [0; 8]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

fn client_resets(cluster: &Cluster, app: &App) {
    let ends = app.clean_ends.load(Ordering::Relaxed);
    let mut stream = cluster.client.local(8080).expect("connect");
    stream.write_all(b"L").expect("write");
    let mut bye = [0; 3];
    stream.read_exact(&mut bye).expect("bye");
    let socket = socket2::SockRef::from(&stream);
    socket.set_linger(Some(Duration::ZERO)).expect("linger");
    drop(stream);
    std::thread::sleep(Duration::from_millis(500));
    let now = app.clean_ends.load(Ordering::Relaxed);
    assert_eq!(now, ends, "the app saw an end where the client had reset");
}

fn nobody_listens(cluster: &Cluster) {
    // The local side had to accept before the workspace could refuse.
    let mut stream = cluster.client.local(8081).expect("connect");
    match stream.read(&mut [0; 8]) {
        Ok(count) => assert_eq!(count, 0, "bytes from nobody"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}
