//! Handshakes and packets with another implementation, boringtun's. It has a clock of its own.

use boringtun::noise::{Tunn, TunnResult};

use super::*;

const SECRETS: [[u8; 32]; 2] = [[1; 32], [2; 32]];
const SHARED: Option<[u8; 32]> = Some([5; 32]);

/// relay's end with the first secret, boringtun's with the second.
fn ends(preshared: Option<[u8; 32]>, handshakes_a_second: u64) -> (Identity, Peer, Tunn) {
    let (own, other) = (Identity::new(SECRETS[0]), Identity::new(SECRETS[1]));
    let options = PlainOptions {
        key: other.public.to_bytes(),
        preshared,
        index: 3,
        keepalive: None,
    };
    let peer = Peer::plain(&own, options, Instant::now());
    let limiter = RateLimiter::new(&other.public, handshakes_a_second);
    let limiter = Some(Arc::new(limiter));
    let tunn = Tunn::new(other.secret, own.public, preshared, None, 4, limiter);
    (own, peer, tunn)
}

/// What boringtun answers, and the packet it took.
fn to_tunn(tunn: &mut Tunn, datagram: &[u8]) -> (Vec<Vec<u8>>, Option<Vec<u8>>) {
    let (mut answers, mut packet) = (Vec::new(), None);
    let mut room = [0; 2000];
    let mut datagram = datagram;
    loop {
        let from = Some(IpAddr::from([127, 0, 0, 1]));
        match tunn.decapsulate(from, datagram, &mut room) {
            TunnResult::WriteToNetwork(answer) => answers.push(answer.to_vec()),
            TunnResult::WriteToTunnelV6(got, _) => packet = Some(got.to_vec()),
            _ => return (answers, packet),
        }
        datagram = &[];
    }
}

fn to_peer(peer: &mut Peer, datagram: &[u8]) -> (Vec<Vec<u8>>, Option<Vec<u8>>) {
    let (mut answers, mut opened) = (Vec::new(), Opened::default());
    let from = Some(IpAddr::from([127, 0, 0, 1]));
    let len = datagram.len();
    peer.open_burst(
        datagram,
        len,
        from,
        Instant::now(),
        &mut opened,
        &mut answers,
    );
    let packet = opened.packets().next().map(|(_, packet)| packet.to_vec());
    (answers, packet)
}

fn from_tunn(tunn: &mut Tunn, packet: &[u8]) -> Vec<u8> {
    let mut room = [0; 2000];
    match tunn.encapsulate(packet, &mut room) {
        TunnResult::WriteToNetwork(datagram) => datagram.to_vec(),
        other => panic!("{other:?}"),
    }
}

fn from_peer(peer: &mut Peer, packet: &[u8]) -> Vec<u8> {
    let mut burst = Burst::default();
    burst.push(packet);
    assert!(peer.seal_burst(&mut burst, Instant::now(), &mut Vec::new()));
    burst.datagrams().next().unwrap().to_vec()
}

/// Packets of many lengths, both ways.
fn packets_pass(peer: &mut Peer, tunn: &mut Tunn) {
    for len in [40, 41, 90, 300, 1280, 1420] {
        let there = packet(A, B, len, 1);
        let datagram = from_peer(peer, &there);
        assert_eq!(to_tunn(tunn, &datagram), (vec![], Some(there)));
        let back = packet(B, A, len, 2);
        let datagram = from_tunn(tunn, &back);
        assert_eq!(to_peer(peer, &datagram), (vec![], Some(back)));
        assert_eq!(to_peer(peer, &datagram), (vec![], None));
    }
}

#[test]
fn the_other_answers() {
    for preshared in [None, SHARED] {
        let (_, mut peer, mut tunn) = ends(preshared, 100);
        let mut hello = Vec::new();
        peer.greet(false, Instant::now(), &mut hello);
        let (answers, _) = to_tunn(&mut tunn, &hello[0]);
        let (confirmations, _) = to_peer(&mut peer, &answers[0]);
        assert!(peer.is_ready());
        assert_eq!(to_tunn(&mut tunn, &confirmations[0]), (vec![], None));
        packets_pass(&mut peer, &mut tunn);
    }
}

#[test]
fn the_other_begins() {
    for preshared in [None, SHARED] {
        let (identity, mut peer, mut tunn) = ends(preshared, 100);
        let first = packet(B, A, 99, 7);
        let hello = from_tunn(&mut tunn, &first);
        let sender = Sender::Key(*peer.key());
        assert_eq!(identity.sender(&hello, None), Some(sender));
        let (answers, _) = to_peer(&mut peer, &hello);
        assert!(
            !peer.is_ready(),
            "the other has not proven that it has the keys"
        );
        let (mut packets, _) = to_tunn(&mut tunn, &answers[0]);
        assert_eq!(to_peer(&mut peer, &packets.remove(0)), (vec![], None));
        assert!(peer.is_ready());
        assert_eq!(
            to_peer(&mut peer, &packets.remove(0)),
            (vec![], Some(first))
        );
        packets_pass(&mut peer, &mut tunn);
    }
}

#[test]
fn another_preshared_key_is_refused() {
    let (_, mut peer, mut tunn) = ends(SHARED, 100);
    let (_, _, mut other) = ends(None, 100);
    let mut hello = Vec::new();
    peer.greet(false, Instant::now(), &mut hello);
    let (answers, _) = to_tunn(&mut other, &hello[0]);
    assert_eq!(to_peer(&mut peer, &answers[0]), (vec![], None));
    assert!(!peer.is_ready() && peer.authentic() == 0);
    // The answer of the right one is still taken.
    let (answers, _) = to_tunn(&mut tunn, &hello[0]);
    to_peer(&mut peer, &answers[0]);
    assert!(peer.is_ready());
}

#[test]
fn an_other_under_load_gets_its_cookie() {
    let (_, mut peer, mut tunn) = ends(None, 0);
    let mut hello = Vec::new();
    peer.greet(false, Instant::now(), &mut hello);
    let (cookies, _) = to_tunn(&mut tunn, &hello[0]);
    assert_eq!(cookies[0].len(), 64);
    assert_eq!(to_peer(&mut peer, &cookies[0]), (vec![], None));
    assert_eq!(peer.authentic(), 0);
    let mut again = Vec::new();
    peer.handle_timeout(Instant::now() + Duration::from_secs(1), &mut again);
    let (answers, _) = to_tunn(&mut tunn, &again[0]);
    to_peer(&mut peer, &answers[0]);
    assert!(peer.is_ready());
}

#[test]
fn under_load_the_other_has_to_show_a_cookie() {
    let (identity, _, mut tunn) = ends(None, 100);
    let limiter = Arc::new(RateLimiter::new(&identity.public, 0));
    let loaded = Identity {
        limiter,
        ..identity
    };
    let options = PlainOptions {
        key: Identity::new(SECRETS[1]).public.to_bytes(),
        preshared: None,
        index: 3,
        keepalive: None,
    };
    let mut peer = Peer::plain(&loaded, options, Instant::now());
    let mut room = [0; 200];
    for is_answered in [false, true] {
        let TunnResult::WriteToNetwork(hello) = tunn.format_handshake_initiation(&mut room, true)
        else {
            panic!("it begins");
        };
        let (answers, _) = to_peer(&mut peer, hello);
        assert_eq!(answers[0].len() == 92, is_answered);
        to_tunn(&mut tunn, &answers[0]);
    }
}
