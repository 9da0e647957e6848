//! The stack, as the loop sees it: the kernel's behind a TUN device, or relay's own.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use relay_tcp::{Bursts, PacketSink};

use super::driver::Driver;
use super::peers::Peers;
use crate::stack::{KernelStack, Tun, UserLoop};

/// Where the packets of streams come from and go to.
pub(super) enum Local {
    Kernel(Tun, KernelStack),
    User(Box<UserLoop>),
}

impl Local {
    /// Waits until there is something to read, or to do. For ever where `device_failed`.
    pub(super) fn readable(&self, device_failed: bool) -> impl Future<Output = ()> + Send {
        let (tun, user) = match self {
            Self::Kernel(tun, _) => (Some(tun).filter(|_| !device_failed), None),
            Self::User(user) => (None, Some(user.readable())),
        };
        async move {
            match (tun, user) {
                (Some(tun), _) => drop(tun.readable().await),
                (_, Some(user)) => user.await,
                (None, None) => std::future::pending().await,
            }
        }
    }

    /// Whether the stack sends and takes data in a stream's first packet.
    pub(super) fn takes_early_data(&self) -> bool {
        match self {
            Self::Kernel(_, stack) => stack.takes_early_data(),
            Self::User(_) => true,
        }
    }

    /// Prepares for a peer, before anything is sent there.
    pub(super) fn add_peer(&self, peer: Ipv6Addr) {
        if let Self::Kernel(_, stack) = self {
            stack.add_peer(peer);
        }
    }

    /// Sets the largest packet that reaches this peer; streams that are open follow at once.
    pub(super) fn set_peer_mtu(&mut self, now: Instant, peer: Ipv6Addr, mtu: u16) {
        match self {
            Self::Kernel(_, stack) => stack.set_peer_mtu(peer, mtu),
            Self::User(user) => user.set_peer_mtu(now, peer, mtu),
        }
    }

    /// Says whether the way to this peer is known to be short.
    pub(super) fn set_peer_near(&mut self, peer: Ipv6Addr, near: bool) {
        match self {
            Self::Kernel(_, stack) => stack.set_peer_near(peer, near),
            Self::User(user) => user.set_peer_near(peer, near),
        }
    }

    /// Forgets a peer and the streams to it.
    pub(super) fn remove_peer(&mut self, peer: Ipv6Addr) {
        match self {
            Self::Kernel(_, stack) => stack.remove_peer(peer),
            Self::User(user) => user.forget_peer(peer),
        }
    }

    /// Gives memory back that is not in use.
    pub(super) fn release(&mut self) {
        if let Self::User(user) = self {
            user.release();
        }
    }

    /// When the stack wants to be called next, and why.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<(Instant, &'static str)> {
        match self {
            Self::Kernel(..) => None,
            Self::User(user) => user.poll_timeout(now),
        }
    }
}

impl Driver {
    /// One turn of relay's own TCP, if that is the stack. True when it made packets, or was not
    /// done.
    pub(super) fn take_user(&mut self, now: Instant) -> bool {
        let Driver {
            local,
            peers,
            scratch,
            common,
            ..
        } = self;
        let Local::User(user) = local else {
            return false;
        };
        let mut outgoing = Outgoing {
            peers,
            to: None,
            // A capture has packets as they were before.
            at_once: common.capture.is_none(),
            scratch,
        };
        let made = user.turn(now, &mut outgoing);
        if made.packets > 0 {
            self.moved.packets += made.packets;
            self.moved.bytes += made.bytes;
            self.busy_at = now;
        }
        made.packets > 0 || user.is_pending()
    }
}

/// The bursts of the peers.
struct Outgoing<'a> {
    peers: &'a mut Peers,
    /// Whose burst was asked for. What is sent to nobody known is lost; a peer may come later, and a
    /// packet is sent again.
    to: Option<u32>,
    /// Whether packets are sealed as they are made.
    at_once: bool,
    scratch: &'a mut Vec<u8>,
}

impl Bursts for Outgoing<'_> {
    fn burst_to(&mut self, peer: IpAddr) -> &mut dyn PacketSink {
        self.to = match peer {
            IpAddr::V6(address) => self.peers.index_of_address(address),
            IpAddr::V4(_) => None,
        };
        if let Some(index) = self.to {
            self.peers.touch(index);
        }
        self
    }
}

impl PacketSink for Outgoing<'_> {
    fn packet(&mut self, length: usize, write: &mut dyn FnMut(&mut [u8])) {
        if let Some(slot) = self.to.and_then(|index| self.peers.get_mut(index)) {
            slot.add_written(length, write, self.at_once, self.scratch);
        }
    }
}
