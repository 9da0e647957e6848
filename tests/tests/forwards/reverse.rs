//! `-R`: a port or a socket of the workspace leads to this machine.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;

use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::{PATIENCE, needs, poll};

use super::{ask, echo_socket, refuses};

#[test]
fn a_port_of_the_workspace_leads_here_also_after_an_agent_restart() {
    needs!(Need::Namespaces);
    let mut cluster = Cluster::start(Options::default());
    let app = App::start(&cluster.client, (Ipv4Addr::LOCALHOST, 3000));
    let sockets = cluster.folder().to_owned();
    let serving = echo_socket(&sockets.join("here"), 1);
    let unix = format!("{0}/there:{0}/here", sockets.display());
    let mut forward = cluster.forward(&["-R", "8080:3000", "-R", &unix]);
    let back = |cluster: &Cluster| cluster.workspace.local(8080);
    // One that stands still holds up no other.
    let still = back(&cluster).expect("connect");
    apps::download(back(&cluster).expect("connect"), 8 << 20).expect("download");
    apps::upload(back(&cluster).expect("connect"), 8 << 20).expect("upload");
    apps::echo(&still, b"from the workspace").expect("echo");
    let socket = UnixStream::connect(sockets.join("there")).expect("socket");
    assert_eq!(ask(&socket, b"question").expect("answer"), b"question");
    serving.join().expect("server");

    // Nobody here: whoever connects sees it, and it is said.
    drop(app);
    let refused = back(&cluster).expect("accepted in the workspace");
    assert!(apps::echo(&refused, b"x").is_err());
    forward.wait_line("Failed to dial for remote forward", PATIENCE);
    let _app = App::start(&cluster.client, (Ipv4Addr::LOCALHOST, 3000));

    cluster.agents[0].kill();
    cluster.agents[0] = cluster.start_agent(0);
    let again = poll(PATIENCE, || {
        let stream = back(&cluster).ok()?;
        apps::echo(&stream, b"after").ok()
    });
    assert!(again.is_some(), "{}", forward.output());

    assert!(forward.interrupt().success());
    let freed = poll(PATIENCE, || refuses(&cluster.workspace, 8080).then_some(()));
    assert!(freed.is_some(), "the workspace still listens");
    assert!(!sockets.join("there").exists());
}

#[test]
fn ranges_and_lists_of_ports_lead_here() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let apps = [3000, 3001, 9000].map(|port| {
        // Each is known by what it says.
        let listener = cluster.client.listen((Ipv4Addr::LOCALHOST, port));
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            write!(stream, "{port}").expect("write");
        })
    });
    let _forward = cluster.forward(&["-R", "8000-8001:localhost:3000-3001,9000"]);
    for (port, expected) in [(8000, "3000"), (8001, "3001"), (9000, "9000")] {
        let mut said = String::new();
        let mut stream = cluster.workspace.local(port).expect("connect");
        stream.read_to_string(&mut said).expect("read");
        assert_eq!(said, expected);
    }
    for app in apps {
        app.join().expect("app");
    }
    let wrong = cluster.run_client(&["port-forward", "dev", "-R", "8000-8002:3000-3001"]);
    assert_eq!(wrong.code, 1, "{wrong:?}");
    assert!(wrong.stderr.contains("do not pair up"), "{wrong:?}");
}

#[test]
fn a_refusal_of_the_workspace_is_told() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let _busy = cluster.workspace.listen((Ipv4Addr::LOCALHOST, 8080));
    let taken = cluster.run_client(&["port-forward", "dev", "-R", "8080:3000"]);
    assert_eq!(taken.code, 1, "{taken:?}");
    let last = taken.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("reverse://8080:localhost:3000"), "{last}");
    assert!(last.contains("address already in use"), "{last}");
}

#[test]
fn an_agent_that_blocks_forwards_says_so() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options {
        agent_flags: vec![
            "--block-reverse-port-forwarding",
            "--block-local-port-forwarding",
        ],
        ..Options::default()
    });
    let refused = cluster.run_client(&["port-forward", "dev", "-R", "8080:3000"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    let said = "--block-reverse-port-forwarding";
    assert!(refused.stderr.contains(said), "{refused:?}");
    let local = cluster.folder().join("l.sock");
    let spec = format!("{}:/r.sock", local.display());
    let forward = cluster.forward(&["--unix", &spec]);
    let socket = UnixStream::connect(&local).expect("accepted here");
    assert_eq!(ask(&socket, b"").unwrap_or_default(), b"");
    forward.wait_line("--block-local-port-forwarding", PATIENCE);
}
