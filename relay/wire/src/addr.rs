//! Tunnel addresses and node ids, which follow from UUIDs. Source: coder_wire.md §7.2, §5.3.

use std::net::{Ipv4Addr, Ipv6Addr};

use uuid::Uuid;

use crate::{Error, Result};

/// First six bytes of agents' and clients' own addresses: fd7a:115c:a1e0::/48, prefix A.
pub const AGENT_PREFIX: [u8; 6] = [0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0];
/// First six bytes of service addresses: fd60:627a:a42b::/48, prefix B.
pub const SERVICE_PREFIX: [u8; 6] = [0xfd, 0x60, 0x62, 0x7a, 0xa4, 0x2b];
/// Bits of either prefix.
pub const PREFIX_BITS: u8 = 48;
/// The fixed address all agents once had; still tolerated in nodes.
pub const LEGACY_AGENT: Ipv6Addr = Ipv6Addr::new(
    0xfd7a, 0x115c, 0xa1e0, 0x49d6, 0xb259, 0xb7ac, 0xb1b2, 0x48f4,
);
/// Coder Desktop's name server.
pub const SERVICE_DNS: Ipv6Addr = Ipv6Addr::new(0xfd60, 0x627a, 0xa42b, 0, 0, 0, 0, 0x53);
/// The IPv4 address that stands for "over a relay"; the port is the region.
pub const DERP_MAGIC: Ipv4Addr = Ipv4Addr::new(127, 3, 3, 40);
/// Tunnel MTU that every peer has.
pub const MTU: u16 = 1280;
/// Tunnel ports of the agent's own services.
pub mod ports {
    /// SSH server.
    pub const SSH: u16 = 1;
    /// Reconnecting terminal.
    pub const RECONNECTING_PTY: u16 = 2;
    /// Speed test.
    pub const SPEEDTEST: u16 = 3;
    /// The agent's HTTP API.
    pub const HTTP_API: u16 = 4;
    /// SSH server at its usual port.
    pub const SSH_STANDARD: u16 = 22;
    /// Lower ports are never reported as listening.
    pub const MIN_LISTENING: u16 = 9;
}

/// The address of an agent or a client in prefix A: the one that is dialled.
pub fn agent_address(id: &Uuid) -> Ipv6Addr {
    with_prefix(AGENT_PREFIX, id)
}

/// The address of an agent in prefix B.
pub fn service_address(id: &Uuid) -> Ipv6Addr {
    with_prefix(SERVICE_PREFIX, id)
}

/// True for addresses of either prefix.
pub fn is_tunnel_address(address: Ipv6Addr) -> bool {
    let bytes = address.octets();
    bytes.starts_with(&AGENT_PREFIX) || bytes.starts_with(&SERVICE_PREFIX)
}

/// Number of a node: the absolute value of the last eight bytes of its UUID.
pub fn node_id(id: &Uuid) -> i64 {
    let low = id.as_u64_pair().1;
    low.cast_signed().wrapping_abs()
}

/// Text of a node's address in node descriptions: `<ip>/128`.
pub fn prefix_text(address: Ipv6Addr) -> String {
    format!("{address}/128")
}

/// Reads `<ip>/128`; any other length is an error, for a node is one address.
pub fn parse_prefix(text: &str) -> Result<Ipv6Addr> {
    text.strip_suffix("/128")
        .and_then(|ip| ip.parse().ok())
        .ok_or_else(|| Error::Prefix(text.to_owned()))
}

fn with_prefix(prefix: [u8; 6], id: &Uuid) -> Ipv6Addr {
    let mut bytes = *id.as_bytes();
    bytes[..6].copy_from_slice(&prefix);
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_addresses_are_prefixes_of_nodes() {
        let address = agent_address(&Uuid::from_u128(7));
        assert_eq!(parse_prefix(&prefix_text(address)), Ok(address));
        for bad in [
            "fd7a:115c:a1e0::/64",
            "fd7a:115c:a1e0::1",
            "10.0.0.1/32",
            "/128",
            "",
        ] {
            assert!(parse_prefix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_of_both_prefixes_are_tunnel_addresses() {
        let id = Uuid::from_u128(u128::MAX);
        assert!(is_tunnel_address(agent_address(&id)) && is_tunnel_address(service_address(&id)));
        assert!(is_tunnel_address(LEGACY_AGENT) && is_tunnel_address(SERVICE_DNS));
        assert!(!is_tunnel_address(Ipv6Addr::LOCALHOST));
    }
}
