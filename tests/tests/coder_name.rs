//! A link named `coder` to the binary is a drop-in.

use std::net::Ipv4Addr;

use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs;
use relay_lab::needs::Need;

#[test]
fn called_coder_it_forwards_lists_and_explains_itself() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options {
        as_coder: true,
        ..Options::default()
    });
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let _forward = cluster.forward(&["-p", "8080:8000"]);
    let stream = cluster.client.local(8080).expect("connect");
    apps::echo(&stream, b"coder").expect("echo");

    let mut tunnel = cluster.client_command();
    tunnel
        .args(["tunnel", "alice/dev.main"])
        .env("CODER_PORT_FORWARD_TCP", "8081:8000");
    let tunnel = relay_lab::process::Process::start("tunnel", Some(&cluster.client), tunnel);
    tunnel.wait_line("Ready!", relay_lab::PATIENCE);
    let stream = cluster.client.local(8081).expect("connect");
    apps::echo(&stream, b"tunnel").expect("echo");

    let list = cluster.run_client(&["list"]);
    assert!(list.success().contains("dev"), "{list:?}");
    let help = cluster.run_client(&["port-forward", "--help"]);
    assert!(help.success().contains("--udp"), "{help:?}");
}
