//! What is known about the way to each peer: the largest packet, as far as it is more than what
//! every path carries, and whether it is short.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::packet::MIN_MTU;

/// What has been proven for each peer.
#[derive(Debug, Default)]
pub(super) struct Ways(RwLock<HashMap<Ipv6Addr, Way>>);

#[derive(Debug, Clone, Copy)]
struct Way {
    mtu: u16,
    near: bool,
}

impl Default for Way {
    fn default() -> Self {
        Self {
            mtu: MIN_MTU as u16,
            near: false,
        }
    }
}

impl Ways {
    pub(super) fn get(&self, peer: Ipv6Addr) -> u16 {
        self.read().get(&peer).copied().unwrap_or_default().mtu
    }

    /// Whether anything was said of this peer.
    pub(super) fn knows(&self, peer: Ipv6Addr) -> bool {
        self.read().contains_key(&peer)
    }

    pub(super) fn is_near(&self, peer: Ipv6Addr) -> bool {
        self.read().get(&peer).is_some_and(|way| way.near)
    }

    /// Whether that changed anything.
    pub(super) fn set(&self, peer: Ipv6Addr, mtu: u16) -> bool {
        let mut ways = self.write();
        let way = ways.entry(peer).or_default();
        let mtu = mtu.max(MIN_MTU as u16);
        std::mem::replace(&mut way.mtu, mtu) != mtu
    }

    /// Whether some way is not known to be short.
    pub(super) fn any_long(&self) -> bool {
        self.read().values().any(|way| !way.near)
    }

    pub(super) fn set_near(&self, peer: Ipv6Addr, near: bool) {
        self.write().entry(peer).or_default().near = near;
    }

    /// Whether anything was known.
    pub(super) fn remove(&self, peer: Ipv6Addr) -> bool {
        self.write().remove(&peer).is_some()
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<Ipv6Addr, Way>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Ipv6Addr, Way>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
