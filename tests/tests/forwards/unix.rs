//! `--unix`: Unix sockets on either side.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::{PATIENCE, needs};

use super::{ask, echo_socket};

#[test]
fn sockets_lead_to_sockets_and_ports_and_ports_to_sockets() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let folder = cluster.folder();
    let path = |name: &str| folder.join(name).display().to_string();
    let serving = echo_socket(&folder.join("there"), 2);
    let specs = [
        format!("{}:{}", path("to-socket"), path("there")),
        format!("{}:8000", path("to-port")),
        format!("8080:{}", path("there")),
        format!("{}:{}", path("to-nobody"), path("nobody")),
    ];
    let words: Vec<_> = specs.iter().flat_map(|spec| ["--unix", spec]).collect();
    // One that a killed relay left behind.
    drop(std::os::unix::net::UnixListener::bind(folder.join("to-socket")).expect("stale"));
    let mut forward = cluster.forward(&words);
    let mode = folder.join("to-socket").metadata().expect("socket");
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);

    let connect = |name: &str| UnixStream::connect(folder.join(name)).expect("connect");
    let question: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (asking, expected) = (connect("to-socket"), question.clone());
    let sending = asking.try_clone().expect("socket");
    let writer = std::thread::spawn(move || {
        std::io::Write::write_all(&mut &sending, &question).expect("send");
        sending.shutdown(std::net::Shutdown::Write).expect("end");
    });
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut &asking, &mut answer).expect("answer");
    writer.join().expect("writer");
    assert!(answer == expected, "{} bytes came back", answer.len());
    assert_eq!(
        ask(&connect("to-port"), b"Ehello").expect("answer"),
        b"hello"
    );
    let port = cluster.client.local(8080).expect("port");
    std::io::Write::write_all(&mut &port, b"question").expect("write");
    port.shutdown(std::net::Shutdown::Write).expect("end");
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut &port, &mut answer).expect("answer");
    assert_eq!(answer, "question");
    serving.join().expect("server");

    assert_eq!(ask(&connect("to-nobody"), b"").unwrap_or_default(), b"");
    forward.wait_line("no such file or directory", PATIENCE);
    // A live socket is nobody's to take.
    let second = cluster.run_client(&["port-forward", "dev", "--unix", &specs[1]]);
    assert_eq!(second.code, 1, "{second:?}");
    assert!(
        second.stderr.contains("address already in use"),
        "{second:?}"
    );
    apps::echo(&cluster.workspace.local(8000).expect("app"), b"x").expect("echo");

    assert!(forward.interrupt().success());
    assert!(!folder.join("to-socket").exists(), "a socket stays behind");
}
