//! Which peer an address belongs to: of the networks that have it, the one with the longest prefix
//! says. The same table sends packets out and judges those that come in (cryptokey routing).

use std::cmp::Reverse;
use std::net::IpAddr;

use relay_wire::wg::Network;

/// The table.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// The longest prefixes first.
    networks: Vec<(Network, u32)>,
}

impl Routes {
    /// Gives a network to a peer, whoever had it before.
    pub(super) fn insert(&mut self, network: Network, peer: u32) {
        self.networks.retain(|(known, _)| *known != network);
        let order = Reverse(network.prefix());
        let at = self
            .networks
            .partition_point(|(known, _)| Reverse(known.prefix()) <= order);
        self.networks.insert(at, (network, peer));
    }

    /// The peer that has an address.
    pub(super) fn find(&self, address: IpAddr) -> Option<u32> {
        let found = self
            .networks
            .iter()
            .find(|(network, _)| network.contains(address));
        found.map(|(_, peer)| *peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_says_and_the_last_peer_has_a_network() {
        let mut routes = Routes::default();
        for (network, peer) in [
            ("0.0.0.0/0", 0),
            ("10.1.0.0/16", 1),
            ("10.1.2.3", 2),
            ("10.0.0.0/8", 3),
            ("fd00::/8", 4),
            ("10.1.0.0/16", 5),
        ] {
            routes.insert(network.parse().unwrap(), peer);
        }
        for (address, peer) in [
            ("192.0.2.1", Some(0)),
            ("10.1.9.9", Some(5)),
            ("10.1.2.3", Some(2)),
            ("10.2.0.0", Some(3)),
            ("fd12::1", Some(4)),
            ("2001:db8::1", None),
        ] {
            assert_eq!(routes.find(address.parse().unwrap()), peer, "{address}");
        }
    }
}
