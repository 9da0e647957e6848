//! How decrypted IP packets become streams: kernel TCP over a TUN device in a private network
//! namespace. This module holds what callers name; who the peers are and how packets travel
//! between them lives elsewhere.
//!
//! ```text
//!   peers' packets ─ KernelStack::inspect ─ Tun::write_batch ─┐            ┌─ KernelStack::connect
//!                        │ held SYNs                          ├ TUN, kernel ┤
//!                        └─ Incoming::accept / refuse         │ TCP         ├─ listeners ─ Incoming
//!   to peers ──────────── Tun::try_read ──────────────────────┘            └─ sockets from NetHelper
//! ```
//!
//! The device and every socket live in the namespace; relay itself does not, it only holds their
//! descriptors, which the [`NetHelper`] process passes to it.

mod accept;
#[doc(hidden)]
pub mod bench_support;
mod coalesce;
mod congestion;
mod helper;
mod kernel;
mod listeners;
mod packet;
mod rewrite;
mod segment;
mod stream;
mod tun;
mod user;
mod ways;

use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

pub use helper::NetHelper;
#[doc(hidden)]
pub use helper::Step;
pub use kernel::KernelStack;
pub(crate) use stream::Streams;
pub use stream::{Incoming, Stream};
pub use tun::Tun;
pub(crate) use user::{UserLoop, UserOptions, open as open_user};

use crate::Error;
use crate::wireguard::Cipher;
use coalesce::Merger;
use helper::Helper;

/// Which offloads may be used, to the kernel or to the processor. All of them are probed, so switching one off is for
/// machines on which the probe succeeds and the traffic does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// Large TCP segments between the kernel stack and relay (TSO on the TUN device).
    pub tun_tcp: bool,
    /// Large UDP datagram trains between the kernel stack and relay (USO on the TUN device).
    pub tun_udp: bool,
    /// One send call for a train of WireGuard packets (`UDP_SEGMENT`).
    pub udp_send: bool,
    /// One receive call for a train of WireGuard packets (`UDP_GRO`).
    pub udp_receive: bool,
    /// Sealing and opening packets with AVX-512.
    pub avx512: bool,
}

impl Offloads {
    /// Every packet by itself.
    pub const NONE: Self = Self {
        tun_tcp: false,
        tun_udp: false,
        udp_send: false,
        udp_receive: false,
        avx512: false,
    };

    /// All but those named in a comma-separated list: `tun-tcp`, `tun-udp`, `udp-send`,
    /// `udp-receive`, `avx512`, or `all`.
    ///
    /// # Errors
    /// [`Error::UnknownOffload`] with the name that is none.
    pub fn without(names: &str) -> Result<Self, Error> {
        let mut offloads = Self::default();
        let names = names.split(',').map(str::trim);
        for name in names.filter(|name| !name.is_empty()) {
            match name {
                "tun-tcp" => offloads.tun_tcp = false,
                "tun-udp" => offloads.tun_udp = false,
                "udp-send" => offloads.udp_send = false,
                "udp-receive" => offloads.udp_receive = false,
                "avx512" => offloads.avx512 = false,
                "all" => offloads = Self::NONE,
                _ => return Err(Error::UnknownOffload(name.to_owned())),
            }
        }
        Ok(offloads)
    }

    /// What seals and opens packets then.
    pub fn cipher(self) -> Cipher {
        if self.avx512 {
            Cipher::best()
        } else {
            Cipher::Ring
        }
    }
}

impl Default for Offloads {
    fn default() -> Self {
        Self {
            tun_tcp: true,
            tun_udp: true,
            udp_send: true,
            udp_receive: true,
            avx512: true,
        }
    }
}

/// How a kernel stack is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackOptions {
    /// The largest packet any peer may ever be sent; a peer gets 1280 until
    /// [`KernelStack::set_peer_mtu`] says more.
    pub mtu: u16,
    /// Offloads that may be tried.
    pub offloads: Offloads,
    /// Bytes the tunnel's UDP socket can queue: TCP windows are kept below it.
    pub udp_receive_buffer: usize,
}

impl Default for StackOptions {
    fn default() -> Self {
        Self {
            mtu: 8920,
            offloads: Offloads::default(),
            udp_receive_buffer: 4 << 20,
        }
    }
}

/// What to say when relay's own TCP takes the place of the kernel's, because of `error`.
pub(crate) fn instead_of_kernel(error: Error) -> String {
    let reason = match error {
        Error::KernelStack { reason } => reason,
        error => error.to_string(),
    };
    format!(
        "the tunnel uses relay's own TCP (--stack user), since the kernel's cannot be had: {reason}"
    )
}

/// What to do with a decrypted packet from a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Write it to the TUN device.
    Pass,
    /// The stack keeps a copy until the application has been dialled; nothing to do now.
    Held,
    /// Forget it.
    Drop,
    /// Forget it and send this packet back to the peer.
    Answer(Vec<u8>),
}

/// A packet that the stack wants written although no packet of that moment asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Injection {
    /// Write it to the TUN device.
    ToTun(Vec<u8>),
    /// Send it to the peer that its destination address names.
    ToPeer(Vec<u8>),
}

/// One of a namespace's TUN devices, to be opened by the loop that moves its packets.
#[derive(Debug)]
pub struct Device {
    descriptor: OwnedFd,
    number: u8,
    shared_namespace: bool,
    helper: Arc<Helper>,
    addresses: Vec<Ipv6Addr>,
    /// The namespace holds nothing else.
    own_namespace: bool,
    windows: Arc<kernel::Windows>,
    early_data: bool,
    merger: Merger,
}

/// Makes the TUN device and its namespace with the help of `helper`, and returns both ends: the
/// packets and the streams. Must be called inside a tokio runtime with I/O enabled.
pub fn start(
    helper: NetHelper,
    addresses: &[Ipv6Addr],
    options: StackOptions,
) -> Result<(Tun, KernelStack), Error> {
    let mut devices = set_up(helper, addresses, options, 1)?;
    devices.remove(0).open()
}

/// Makes a namespace with `count` TUN devices, or as many as the machine allows, one at least; one
/// alone where relay has no namespace of its own.
pub fn set_up(
    helper: NetHelper,
    addresses: &[Ipv6Addr],
    options: StackOptions,
    count: u8,
) -> Result<Vec<Device>, Error> {
    kernel::set_up(helper, addresses, options, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_offloads_are_left_out_and_others_stay() {
        let offloads = Offloads::without("udp-send, tun-udp").unwrap();
        let expected = Offloads {
            udp_send: false,
            tun_udp: false,
            ..Offloads::default()
        };
        assert_eq!(offloads, expected);
        assert_eq!(Offloads::without("all").unwrap(), Offloads::NONE);
        assert_eq!(Offloads::without("").unwrap(), Offloads::default());
        let error = Offloads::without("tun-tcp,gso").unwrap_err().to_string();
        assert!(error.contains("\"gso\""), "{error}");
    }
}
