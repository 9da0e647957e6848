//! Without root: an unprivileged user who may open the TUN device, and a container without it.

use std::io::Read;
use std::net::Ipv4Addr;

use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::{PATIENCE, needs, unconfined_only};

#[test]
fn an_unprivileged_user_forwards_tcp_and_udp() {
    needs!(Need::Namespaces, Need::Rootless);
    unconfined_only!("this user may open the TUN device");
    let cluster = Cluster::start(Options {
        rootless: true,
        ..Options::default()
    });
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let mut forward = cluster.forward(&["--tcp", "8080:8000", "--udp", "8080:8000"]);
    apps::upload(cluster.client.local(8080).expect("connect"), 64 << 20).expect("upload");
    apps::download(cluster.client.local(8080).expect("connect"), 64 << 20).expect("download");
    cluster.udp_echo(8080, &[3; 1000]);
    let status = forward.interrupt();
    assert!(status.success(), "{status}\n{}", forward.output());
}

#[test]
fn without_device_privileges_and_namespaces_relays_own_tcp_carries_the_streams() {
    needs!(Need::Namespaces, Need::Confined);
    let cluster = Cluster::start(Options {
        confined: true,
        ..Options::default()
    });
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let words = ["--tcp", "8080:8000,8081:8001", "--udp", "8080:8000"];
    let mut forward = cluster.forward(&words);
    for side in [&cluster.agents[0], &forward] {
        side.wait_line("relay's own TCP", PATIENCE);
        assert_eq!(side.count_lines("relay's own TCP"), 1, "{}", side.output());
    }
    apps::upload(cluster.client.local(8080).expect("connect"), 64 << 20).expect("upload");
    apps::download(cluster.client.local(8080).expect("connect"), 64 << 20).expect("download");
    cluster.udp_echo(8080, &[3; 1000]);
    let many: Vec<_> = (0..200)
        .map(|_| cluster.client.local(8080).expect("connect"))
        .collect();
    for (stream, number) in many.iter().zip(0_u32..) {
        apps::echo(stream, &number.to_be_bytes()).expect("echo");
    }
    // Nothing listens there.
    let mut refused = cluster.client.local(8081).expect("connect");
    let outcome = refused.read(&mut [0]);
    assert!(outcome.is_err(), "{outcome:?}");
    let status = forward.interrupt();
    assert!(status.success(), "{status}\n{}", forward.output());
}
