//! Without root: an unprivileged user who may open the TUN device.

use std::net::Ipv4Addr;

use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs;
use relay_lab::needs::Need;

#[test]
fn an_unprivileged_user_forwards_tcp_and_udp() {
    needs!(Need::Namespaces, Need::Rootless);
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
