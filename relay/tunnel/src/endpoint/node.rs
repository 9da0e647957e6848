//! What an endpoint tells its peers about itself, and what it is told about them.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};

use relay_wire::addr;
use relay_wire::keys::{DiscoPublic, NodePublic};
use relay_wire::proto::{self, tailnet};
use uuid::Uuid;

use crate::path::FEATURE_MTU_PROOF;

/// Bit of a node's features: it takes IPv6 fragments of UDP datagrams.
pub(super) const FEATURE_FRAGMENTS: u64 = 2;

/// Bit of a node's features: it takes data in a stream's first packet, and no copy of it.
pub(super) const FEATURE_EARLY_DATA: u64 = proto::features::EARLY_DATA;

/// The extensions that every end has.
pub const FEATURES: u64 = FEATURE_MTU_PROOF | FEATURE_FRAGMENTS;

/// This end, as its peers should know it.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalNode {
    /// The id its node number follows from.
    pub id: Uuid,
    /// Its WireGuard key.
    pub key: NodePublic,
    /// Its disco key.
    pub disco: DiscoPublic,
    /// The relay region it listens on.
    pub home: u16,
    /// Its addresses in the tunnel.
    pub addresses: Vec<Ipv6Addr>,
    /// Where it may be reached over UDP.
    pub endpoints: Vec<SocketAddr>,
    /// Seconds to the relays it measured, by region.
    pub latency: BTreeMap<u16, f64>,
    /// Extensions it has.
    pub features: u64,
}

/// A peer, as coordination describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerNode {
    /// Its WireGuard key.
    pub key: NodePublic,
    /// Its disco key.
    pub disco: Option<DiscoPublic>,
    /// The relay region it listens on.
    pub home: Option<u16>,
    /// Its addresses in the tunnel.
    pub addresses: Vec<Ipv6Addr>,
    /// Where it may be reached over UDP.
    pub endpoints: Vec<SocketAddr>,
    /// Extensions it has.
    pub features: u64,
}

impl LocalNode {
    /// The form in which coordination carries it.
    pub fn as_proto(&self) -> tailnet::Node {
        let prefixes: Vec<String> = self
            .addresses
            .iter()
            .map(|address| addr::prefix_text(*address))
            .collect();
        let latency = self.latency.iter();
        tailnet::Node {
            id: addr::node_id(&self.id),
            as_of: None,
            key: self.key.to_wire().to_vec().into(),
            disco: self.disco.to_string(),
            preferred_derp: i32::from(self.home),
            derp_latency: latency
                .map(|(region, seconds)| (format!("{region}-v4"), *seconds))
                .collect(),
            derp_forced_websocket: Default::default(),
            addresses: prefixes.clone(),
            allowed_ips: prefixes,
            endpoints: self.endpoints.iter().map(SocketAddr::to_string).collect(),
            relay_features: self.features,
        }
    }
}

impl TryFrom<&tailnet::Node> for PeerNode {
    type Error = relay_wire::Error;

    /// Reads a peer's description. What is wrong in its key or addresses makes it useless; an
    /// endpoint or disco key that cannot be read is left out.
    fn try_from(node: &tailnet::Node) -> Result<Self, Self::Error> {
        let addresses = node.addresses.iter().map(|text| addr::parse_prefix(text));
        Ok(PeerNode {
            key: NodePublic::from_wire(&node.key)?,
            disco: node.disco.parse().ok(),
            home: u16::try_from(node.preferred_derp)
                .ok()
                .filter(|region| *region != 0),
            addresses: addresses.collect::<Result<_, _>>()?,
            endpoints: node
                .endpoints
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect(),
            features: node.relay_features,
        })
    }
}

impl PeerNode {
    /// Whether it puts fragments of datagrams together.
    pub(super) fn takes_fragments(&self) -> bool {
        self.features & FEATURE_FRAGMENTS != 0
    }

    /// Whether it takes data in a stream's first packet.
    pub(super) fn takes_early_data(&self) -> bool {
        self.features & FEATURE_EARLY_DATA != 0
    }
}

impl From<&LocalNode> for PeerNode {
    /// How a peer sees this node: what coordination carries, without the trip.
    fn from(node: &LocalNode) -> Self {
        PeerNode {
            key: node.key,
            disco: Some(node.disco),
            home: Some(node.home),
            addresses: node.addresses.clone(),
            endpoints: node.endpoints.clone(),
            features: node.features,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_wire::keys::{DiscoPrivate, NodePrivate};

    #[test]
    fn a_peer_reads_what_this_end_tells() {
        let id = Uuid::from_u128(0x1234);
        let node = LocalNode {
            id,
            key: NodePrivate::from_bytes([1; 32]).public(),
            disco: DiscoPrivate::from_bytes([2; 32]).public(),
            home: 999,
            addresses: vec![addr::agent_address(&id), addr::service_address(&id)],
            endpoints: vec![
                "192.0.2.1:7".parse().unwrap(),
                "[2001:db8::1]:8".parse().unwrap(),
            ],
            latency: [(999, 0.25)].into(),
            features: FEATURES,
        };
        let proto = node.as_proto();
        assert_eq!(PeerNode::try_from(&proto).unwrap(), PeerNode::from(&node));
        assert_eq!(proto.derp_latency["999-v4"], 0.25);

        let coder = tailnet::Node {
            relay_features: 0,
            ..proto.clone()
        };
        assert!(!PeerNode::try_from(&coder).unwrap().takes_fragments());
        let bad = tailnet::Node {
            addresses: vec!["fd7a::/64".into()],
            ..proto.clone()
        };
        assert!(PeerNode::try_from(&bad).is_err());
        let bad = tailnet::Node {
            key: vec![1; 32].into(),
            ..proto
        };
        assert!(PeerNode::try_from(&bad).is_err());
    }
}
