//! UDP between client and workspace is blocked, opened and blocked again under a stream.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use relay_lab::apps::{self, App, Ticker};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::{PATIENCE, needs, poll, say};

#[test]
fn without_udp_the_relay_carries_tcp_and_udp() {
    needs!(Need::Namespaces, Need::Nft);
    let cluster = Cluster::start(Options::default());
    cluster.client.block_udp(&cluster.workspace);
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let _forward = cluster.forward(&["--tcp", "8080:8000", "--udp", "8080:8000"]);
    const SIZE: u64 = 128 << 20;
    let up = apps::upload(cluster.client.local(8080).expect("connect"), SIZE).expect("upload");
    let down =
        apps::download(cluster.client.local(8080).expect("connect"), SIZE).expect("download");
    say(format_args!(
        "128 MiB relayed: up in {up:.2?}, down in {down:.2?}"
    ));
    cluster.udp_echo(8080, &[7; 1200]);
}

#[test]
fn a_stream_survives_every_change_of_path() {
    needs!(Need::Namespaces, Need::Nft);
    let cluster = Cluster::start(Options::default());
    cluster.client.block_udp(&cluster.workspace);
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let _forward = cluster.forward(&["--tcp", "8080:8000"]);
    let ticker = Ticker::start(cluster.client.local(8080).expect("connect"));
    assert!(ticker.progress(50, PATIENCE), "the relay carries nothing");
    cluster.workspace.count_udp_from(&cluster.client);

    ticker.take_longest();
    cluster.client.unblock_udp(&cluster.workspace);
    let opened = Instant::now();
    // Probes are small; only data makes so many bytes.
    let direct = poll(PATIENCE, || {
        (cluster.workspace.counted() > 20_000).then_some(())
    });
    assert!(direct.is_some(), "never direct after UDP was opened");
    say(format_args!("direct after {:.1?}", opened.elapsed()));
    assert!(ticker.progress(50, PATIENCE));
    let stall = ticker.take_longest();
    say(format_args!("longest echo while going direct: {stall:?}"));

    cluster.client.block_udp(&cluster.workspace);
    assert!(
        ticker.progress(50, PATIENCE),
        "the stream died with the direct path"
    );
    let stall = ticker.take_longest();
    say(format_args!("longest echo while falling back: {stall:?}"));
    assert!(stall < Duration::from_secs(10), "fell back after {stall:?}");

    cluster.client.unblock_udp(&cluster.workspace);
    assert!(ticker.progress(100, PATIENCE));
    ticker.stop().expect("the stream is whole to its end");
}

#[test]
fn a_deployment_may_forbid_direct_paths() {
    needs!(Need::Namespaces, Need::Nft);
    let cluster = Cluster::start(Options {
        server_flags: vec!["--block-direct-connections"],
        ..Options::default()
    });
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    cluster.workspace.count_udp_from(&cluster.client);
    let _forward = cluster.forward(&["--tcp", "8080:8000"]);
    apps::upload(cluster.client.local(8080).expect("connect"), 16 << 20).expect("upload");
    assert_eq!(cluster.workspace.counted(), 0);
}

#[test]
fn relays_can_be_reached_by_websocket_alone() {
    needs!(Need::Namespaces, Need::Nft);
    let cluster = Cluster::start(Options {
        server_flags: vec!["--derp-force-websockets", "--block-direct-connections"],
        ..Options::default()
    });
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let _forward = cluster.forward(&["--tcp", "8080:8000"]);
    apps::upload(cluster.client.local(8080).expect("connect"), 16 << 20).expect("upload");
}
