//! The sizes tried on a path, and the disco pings that try them.

use std::net::SocketAddr;

use relay_wire::disco::PayloadSize;

use super::BASE_MTU;

/// What WireGuard adds to an inner packet.
const WIREGUARD: usize = 32;

/// Inner MTUs worth trying on any path: links with a little taken off, plain Ethernet, jumbo frames.
const COMMON: [u16; 3] = [1380, 1420, 8920];

/// On loopback: four packets of this size fill one burst of 65,507 bytes, the most one send takes.
const LOOPBACK: u16 = 16344;

/// The sizes to try towards `addr`, rising, none above `limit`.
pub(super) fn ladder(addr: SocketAddr, limit: u16) -> impl Iterator<Item = u16> {
    let loopback = Some(LOOPBACK).filter(|_| addr.ip().is_loopback());
    COMMON
        .into_iter()
        .chain(loopback)
        .filter(move |mtu| *mtu > BASE_MTU && *mtu <= limit)
}

/// Padding of a disco ping whose datagram is as large as a WireGuard packet that carries `mtu`.
pub(super) fn ping_size(mtu: u16) -> PayloadSize {
    PayloadSize::of_packet(usize::from(mtu) + WIREGUARD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_is_as_large_as_the_packet_it_stands_for() {
        assert_eq!(ping_size(1280), PayloadSize::of_packet(1312));
        assert!((usize::from(LOOPBACK) + WIREGUARD) * 4 <= 65507);
    }

    #[test]
    fn loopback_has_a_step_more_and_the_limit_holds() {
        let loopback: Vec<u16> = ladder("127.0.0.1:1".parse().unwrap(), u16::MAX).collect();
        assert_eq!(loopback, [1380, 1420, 8920, 16344]);
        let capped: Vec<u16> = ladder("192.0.2.1:1".parse().unwrap(), 1420).collect();
        assert_eq!(capped, [1380, 1420]);
    }
}
