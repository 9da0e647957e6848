//! The lab itself: a test that says what is wrong with the ground before others stumble over it.

use std::net::Ipv4Addr;
use std::time::Duration;

use relay_lab::apps::{self, App};
use relay_lab::cluster::alone;
use relay_lab::needs;
use relay_lab::needs::Need;
use relay_lab::net::Lab;

#[test]
fn hosts_reach_each_other_and_a_blocked_pair_is_deaf_to_udp_only() {
    needs!(Need::Namespaces, Need::Nft);
    let _alone = alone();
    let mut lab = Lab::new();
    let (left, right) = (lab.host("left"), lab.host("right"));
    let _app = App::start(&right, (right.ipv4, 7000));

    let heard = || {
        let socket = left.udp((Ipv4Addr::UNSPECIFIED, 0));
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .expect("time-out");
        socket.send_to(b"hello", (right.ipv4, 7000)).expect("send");
        socket.recv(&mut [0; 16]).is_ok()
    };
    assert!(heard());
    left.block_udp(&right);
    assert!(!heard());
    let tcp = left.connect((right.ipv4, 7000)).expect("TCP goes on");
    apps::upload(tcp, 1 << 20).expect("upload");
    left.unblock_udp(&right);
    assert!(heard());
    let tcp = left.connect((right.ipv4, 7000)).expect("TCP");
    apps::download(tcp, 1 << 20).expect("download");
}
