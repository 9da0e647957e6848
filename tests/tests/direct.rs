//! Three hosts, nothing in the way: all traffic takes the direct path.

#[path = "plain/wg.rs"]
mod wg;

use std::net::{Ipv4Addr, Ipv6Addr};

use relay_lab::apps::{self, App};
use relay_lab::cluster::{Cluster, Options};
use relay_lab::needs::Need;
use relay_lab::{needs, say};

const GIB: u64 = 1 << 30;

#[test]
fn a_gibibyte_each_way_is_whole_and_takes_the_direct_path() {
    needs!(Need::Namespaces, Need::Nft);
    let cluster = Cluster::start(Options::default());
    let _app = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    cluster.workspace.count_udp_from(&cluster.client);
    cluster.client.count_udp_from(&cluster.workspace);
    let forward = cluster.forward(&["--tcp", "8080:8000"]);
    let (client, agent) = (forward.memory(), cluster.agents[0].memory());
    say(format_args!("idle: client {client} KiB, agent {agent} KiB"));
    assert!(
        client < 24 << 10 && agent < 24 << 10,
        "idle: {client} and {agent} KiB"
    );

    let up = apps::upload(cluster.client.local(8080).expect("connect"), GIB).expect("upload");
    let down = apps::download(cluster.client.local(8080).expect("connect"), GIB).expect("download");
    say(format_args!("1 GiB up in {up:.2?}, down in {down:.2?}"));
    for host in [&cluster.workspace, &cluster.client] {
        let direct = host.counted();
        assert!(
            direct > GIB / 10 * 9,
            "{} got {direct} bytes directly",
            host.name
        );
    }
}

#[test]
fn both_address_families_are_served_by_name_and_by_range() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let _four = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 8000));
    let _six = App::start(&cluster.workspace, (Ipv6Addr::LOCALHOST, 8001));
    let _forward = cluster.forward(&["--tcp", "9000-9001:8000-8001"]);
    for port in [9000, 9001] {
        for loopback in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            let address = std::net::SocketAddr::new(loopback, port);
            let stream = cluster.client.connect(address).expect("connect");
            apps::echo(&stream, b"family").expect("echo");
        }
    }
}

#[test]
fn datagrams_of_every_size_come_back_whole() {
    needs!(Need::Namespaces);
    let cluster = Cluster::start(Options::default());
    let _four = App::start(&cluster.workspace, (Ipv4Addr::LOCALHOST, 9000));
    let _six = App::start(&cluster.workspace, (Ipv6Addr::LOCALHOST, 9001));
    let _forward = cluster.forward(&["--udp", "9000,9001"]);
    let data: Vec<u8> = (0..65_507_u32)
        .map(|n| n.to_le_bytes()[n as usize % 3])
        .collect();
    for size in [1, 512, 1200, 1232, 1233, 1500, 4096, 9000, 30_000, 65_507] {
        cluster.udp_echo(9000, &data[..size]);
        cluster.udp_echo(9001, &data[..size]);
    }
}
