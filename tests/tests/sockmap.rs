//! The engine that joins sockets in the kernel, in the tunnel's two hops, and what it leaves there.

use std::net::Ipv4Addr;

use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::loaded::loaded;
use relay_lab::needs::Need;
use relay_lab::net::Namespace;
use relay_lab::{PATIENCE, kernel_stack_only, needs, poll};

#[test]
fn sockets_are_joined_in_the_kernel_and_a_kill_leaves_nothing_there() {
    needs!(Need::Namespaces, Need::Program("bpftool"));
    kernel_stack_only!("streams of relay's own TCP need no engine");
    let others = loaded(&Namespace::new());
    let mut cluster = Cluster::start(Options {
        agent_flags: vec!["--engine", "sockmap"],
        ..Options::default()
    });
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let mut agents = loaded(&cluster.workspace.namespace);
    agents.retain(|id| !others.contains(id));
    let mut forward = cluster.forward(&["--tcp", "8080:8000", "--engine", "sockmap"]);
    for part in [&cluster.agents[0], &forward] {
        assert_eq!(
            part.count_lines("does not work here"),
            0,
            "{}",
            part.output()
        );
    }
    let mut ours = loaded(&cluster.client.namespace);
    ours.retain(|id| !agents.contains(id) && !others.contains(id));
    for (kind, count) in [("prog", 1), ("map", 4)] {
        for side in [&agents, &ours] {
            let found = side.iter().filter(|(what, _)| *what == kind).count();
            assert!(found >= count, "{kind}: {side:?}");
        }
    }
    let stream = cluster.client.local(8080).expect("connect");
    apps::echo(&stream, b"before").expect("echo");
    let bulk = cluster.client.local(8080).expect("connect");
    apps::upload(bulk, 64 << 20).expect("upload");

    forward.kill();
    cluster.agents[0].kill();
    let gone = poll(PATIENCE, || {
        let left = loaded(&cluster.client.namespace);
        let mut mine = ours.iter().chain(&agents);
        mine.all(|id| !left.contains(id)).then_some(())
    });
    assert!(gone.is_some(), "{:?}", loaded(&cluster.client.namespace));
    assert!(apps::echo_more(&stream, b"gone").is_err());
}
