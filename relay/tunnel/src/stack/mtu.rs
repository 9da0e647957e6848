//! The largest packet for each peer, as far as it is more than what every path carries.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::{PoisonError, RwLock};

use super::packet::MIN_MTU;

/// What has been proven for each peer.
#[derive(Debug, Default)]
pub(super) struct PeerMtus(RwLock<HashMap<Ipv6Addr, u16>>);

impl PeerMtus {
    pub(super) fn get(&self, peer: Ipv6Addr) -> u16 {
        let mtus = self.0.read().unwrap_or_else(PoisonError::into_inner);
        mtus.get(&peer).copied().unwrap_or(MIN_MTU as u16)
    }

    /// Whether that changed anything.
    pub(super) fn set(&self, peer: Ipv6Addr, mtu: u16) -> bool {
        let mtu = mtu.max(MIN_MTU as u16);
        let mut mtus = self.0.write().unwrap_or_else(PoisonError::into_inner);
        mtus.insert(peer, mtu) != Some(mtu)
    }

    /// Whether anything was known.
    pub(super) fn remove(&self, peer: Ipv6Addr) -> bool {
        let mut mtus = self.0.write().unwrap_or_else(PoisonError::into_inner);
        mtus.remove(&peer).is_some()
    }
}
