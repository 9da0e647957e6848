//! `--auto`: what listens in the workspace is forwarded, as it comes and goes.

use std::net::Ipv4Addr;

use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::{PATIENCE, needs, poll};

use super::refuses;

#[test]
fn what_listens_is_forwarded_as_it_comes_and_goes_and_conflicts_are_told() {
    needs!(Need::Namespaces);
    let mut cluster = Cluster::start(Options::default());
    let first = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let _second = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8001));
    let _named = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8002));
    let busy = cluster.client.listen((Ipv4Addr::LOCALHOST, 8001));
    let forward = cluster.forward(&["--auto", "--tcp", "9002:8002"]);
    let reaches = |port| {
        poll(PATIENCE, || {
            let stream = cluster.client.local(port).ok()?;
            apps::echo(&stream, b"x").ok()
        })
    };
    assert!(reaches(8000).is_some(), "{}", forward.output());
    let skipped = forward.wait_line("Skipping port 8001", PATIENCE);
    assert!(skipped.contains("127.0.0.1:8001"), "{skipped}");
    // What is forwarded by name is not forwarded twice.
    assert!(reaches(9002).is_some());
    assert!(cluster.client.local(8002).is_err(), "{}", forward.output());

    let third = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8003));
    assert!(reaches(8003).is_some(), "{}", forward.output());
    drop(first);
    forward.wait_line("Port 8000 listens no more", PATIENCE);
    let closed = poll(PATIENCE, || refuses(&cluster.client, 8000).then_some(()));
    assert!(closed.is_some(), "it still listens here");
    // A conflict that goes away is none any more, and it was told once.
    drop(busy);
    assert!(reaches(8001).is_some(), "{}", forward.output());
    assert_eq!(forward.count_lines("Skipping port 8001"), 1);

    // The workspace's agent comes back, and what listens then is followed again.
    cluster.agents[0].kill();
    drop(third);
    cluster.agents[0] = cluster.start_agent(0);
    forward.wait_line("Port 8003 listens no more", PATIENCE);
}
