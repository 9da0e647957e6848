//! Parts that die and come back: what was open stays open where it can, what is new works soon.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use relay_lab::apps::{self, App, Ticker};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::{PATIENCE, needs, poll, say};

const AWAY: Duration = Duration::from_secs(3);

#[test]
fn after_an_agent_restart_new_connections_work_without_retyping() {
    needs!(Need::Namespaces);
    let mut cluster = Cluster::start(Options::default());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let mut forward = cluster.forward(&["--tcp", "8080:8000"]);
    let stream = cluster.client.local(8080).expect("connect");
    apps::echo(&stream, b"before").expect("echo");

    cluster.agents[0].kill();
    std::thread::sleep(Duration::from_millis(500));
    let restarted = Instant::now();
    cluster.agents[0] = cluster.start_agent(0);
    let works = poll(PATIENCE, || {
        let stream = cluster.client.local(8080).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .ok()?;
        apps::echo(&stream, b"after").ok()
    });
    assert!(
        works.is_some(),
        "no connection after the restart\n{}",
        forward.output()
    );
    say(format_args!(
        "a new connection {:.2?} after the agent's start",
        restarted.elapsed()
    ));
    assert!(forward.runs());
    assert!(
        apps::echo_more(&stream, b"gone").is_err(),
        "a stream to a dead agent must end"
    );
}

#[test]
fn a_direct_stream_does_not_notice_that_the_server_is_away() {
    needs!(Need::Namespaces);
    let mut cluster = Cluster::start(Options::default());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let _forward = cluster.forward(&["--tcp", "8080:8000"]);
    let stall = longest_echo_over_an_outage(&mut cluster);
    say(format_args!(
        "longest echo while the server was away: {stall:?}"
    ));
    assert!(
        stall < AWAY,
        "a direct stream waited {stall:?} for the server"
    );

    let works = poll(PATIENCE, || {
        let stream = cluster.client.local(8080).ok()?;
        apps::echo(&stream, b"after").ok()
    });
    assert!(
        works.is_some(),
        "no new connection after the server's restart"
    );
}

#[test]
fn a_relayed_stream_goes_on_when_the_server_is_back() {
    needs!(Need::Namespaces, Need::Nft);
    let mut cluster = Cluster::start(Options::default());
    cluster.client.block_udp(&cluster.workspace);
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let _forward = cluster.forward(&["--tcp", "8080:8000"]);
    let stall = longest_echo_over_an_outage(&mut cluster);
    say(format_args!(
        "server away for {AWAY:?}: a relayed stream waited {stall:?}"
    ));
    assert!(stall < Duration::from_secs(20), "waited {stall:?}");
}

#[test]
fn a_server_restart_keeps_users_workspaces_and_sessions() {
    needs!(Need::Namespaces);
    let mut cluster = Cluster::start(Options::default());
    let status = cluster.server.interrupt();
    assert!(status.success(), "{status}\n{}", cluster.server.output());
    cluster.start_server_again();
    let list = cluster.run_client(&["list", "-o", "json"]);
    assert!(list.success().contains("dev"), "{list:?}");
}

#[test]
fn an_interrupt_ends_every_part_with_success() {
    needs!(Need::Namespaces);
    let mut cluster = Cluster::start(Options::default());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let mut forward = cluster.forward(&["--tcp", "8080:8000"]);
    let stream = cluster.client.local(8080).expect("connect");
    apps::echo(&stream, b"open").expect("echo");
    let status = forward.interrupt();
    assert!(status.success(), "{status}\n{}", forward.output());
    assert!(
        cluster.client.local(8080).is_err(),
        "the listener is still there"
    );
    let status = cluster.agents[0].interrupt();
    assert!(status.success(), "{status}\n{}", cluster.agents[0].output());
    let status = cluster.server.interrupt();
    assert!(status.success(), "{status}\n{}", cluster.server.output());
}

/// The longest that a stream waits for an echo while the server goes away and comes back.
fn longest_echo_over_an_outage(cluster: &mut Cluster) -> Duration {
    let ticker = Ticker::start(cluster.client.local(8080).expect("connect"));
    assert!(ticker.progress(100, PATIENCE));
    ticker.take_longest();
    cluster.server.kill();
    std::thread::sleep(AWAY);
    cluster.start_server_again();
    assert!(ticker.progress(100, PATIENCE), "the stream stopped");
    let stall = ticker.take_longest();
    ticker.stop().expect("whole");
    stall
}
