//! What must hold for any packet that comes out of a tunnel or off the network. Each function is the body of a fuzz
//! target and of a property in `relay/tunnel/tests/properties.rs`.

use std::time::{Duration, Instant};

use relay_tunnel::datagram::{self, Fragments, Reassembler};
use relay_tunnel::wireguard::{Identity, Opened, Peer, PeerOptions, transport_index};

/// UDP packets inside the tunnel: what was read is built and read again.
pub fn inner_packet(bytes: &[u8]) {
    let _ = (datagram::source(bytes), datagram::destination(bytes));
    if let Some((from, to, payload)) = datagram::parse(bytes) {
        let mut built = Vec::new();
        datagram::build(&mut built, from, to, payload);
        assert_eq!(datagram::parse(&built), Some((from, to, payload)));
    }
}

/// Fragments: any packets are borne, and those waited for are given up in time.
pub fn fragments(packets: &[&[u8]]) {
    let now = Instant::now();
    let mut reassembler = Reassembler::default();
    for packet in packets {
        let _ = Reassembler::protocol(packet);
        if let Some(whole) = reassembler.push(packet, now) {
            inner_packet(&whole);
        }
    }
    reassembler.expire(now + Duration::from_secs(3600));
    assert_eq!(reassembler.poll_timeout(), None);
}

/// A packet is whole again after it was cut for any MTU, in either order of its pieces.
pub fn cut_and_joined(packet: &[u8], mtu: usize, reversed: bool) {
    let mut parts = Vec::new();
    Fragments::new(7).cut(packet, mtu, &mut |part| parts.push(part.to_vec()));
    assert!(parts.iter().all(|part| part.len() <= mtu));
    if let [only] = &parts[..] {
        assert_eq!(only, packet);
        return;
    }
    if reversed {
        parts.reverse();
    }
    let (mut reassembler, now) = (Reassembler::default(), Instant::now());
    let mut wholes = parts.iter().filter_map(|part| reassembler.push(part, now));
    assert_eq!(wholes.next().as_deref(), Some(packet));
    assert_eq!(wholes.next(), None);
}

/// WireGuard datagrams from anyone: none is taken for a packet of the peer.
pub fn wireguard(bytes: &[u8]) {
    let now = Instant::now();
    let identity = Identity::new([1; 32]);
    let _ = (transport_index(bytes), identity.sender(bytes, None));
    let options = PeerOptions {
        key: [9; 32],
        index: 1,
        addresses: Vec::new(),
        keepalive: false,
    };
    let mut peer = Peer::new(&identity, options, now);
    let (mut opened, mut replies) = (Opened::default(), Vec::new());
    let ready = peer.open_burst(bytes, 1280, None, now, &mut opened, &mut replies);
    assert!(!ready && opened.is_empty());
}
