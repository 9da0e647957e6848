//! The lab itself: a test that says what is wrong with the ground before others stumble over it.

use std::net::Ipv4Addr;
use std::time::Duration;

use relay_lab::apps::{self, App};
use relay_lab::cluster::alone;
use relay_lab::nat::Mapping;
use relay_lab::needs::Need;
use relay_lab::net::Lab;
use relay_lab::{PATIENCE, needs, poll};

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
    // A link that has just come up may lose some.
    let heard_soon = || poll(PATIENCE, || heard().then_some(())).is_some();
    assert!(heard_soon());
    left.block_udp(&right);
    assert!(!heard());
    let tcp = left.connect((right.ipv4, 7000)).expect("TCP goes on");
    apps::upload(tcp, 1 << 20).expect("upload");
    left.unblock_udp(&right);
    assert!(heard_soon());
    let tcp = left.connect((right.ipv4, 7000)).expect("TCP");
    apps::download(tcp, 1 << 20).expect("download");
}

#[test]
fn a_nat_maps_as_it_is_told_and_lets_nothing_in_but_answers() {
    needs!(Need::Namespaces, Need::Nat);
    let _alone = alone();
    for mapping in [Mapping::EndpointIndependent, Mapping::EndpointDependent] {
        let mut lab = Lab::public();
        let (inside, router) = lab.host_behind("inside", mapping);
        let (outside, stranger) = (lab.host("outside"), lab.host("stranger"));
        let socket = inside.udp((Ipv4Addr::UNSPECIFIED, 0));
        let short = Some(Duration::from_millis(300));
        socket.set_read_timeout(short).expect("time-out");
        let ask = |port: u16| {
            let peer = outside.udp((outside.ipv4, port));
            peer.set_read_timeout(short).expect("time-out");
            let mut buffer = [0; 16];
            // A link that has just come up may lose some.
            let answered = poll(PATIENCE, || {
                let question = socket.send_to(b"question", (outside.ipv4, port));
                question.expect("send");
                let (_, seen) = peer.recv_from(&mut buffer).ok()?;
                peer.send_to(b"answer", seen).expect("send");
                let count = socket.recv(&mut buffer).ok()?;
                assert_eq!(&buffer[..count], b"answer");
                Some(seen)
            });
            answered.expect("an answer")
        };
        let seen = [7001, 7002].map(ask);
        assert!(seen.iter().all(|seen| seen.ip() == router.outer()));
        let same = seen[0] == seen[1];
        assert_eq!(same, mapping == Mapping::EndpointIndependent, "{seen:?}");
        let unasked = stranger.udp((stranger.ipv4, 0));
        unasked.send_to(b"unasked", seen[0]).expect("send");
        let mut buffer = [0; 16];
        while let Ok(count) = socket.recv(&mut buffer) {
            // Answers that were late.
            assert_eq!(&buffer[..count], b"answer");
        }
    }
}
