//! What this machine can do, found out by trying it.

use std::net::Ipv6Addr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use relay_engine::Engine;
use relay_tunnel::endpoint::StackChoice;
use relay_tunnel::stack::{self, NetHelper, Offloads, StackOptions};
use relay_tunnel::udp::{UdpOffloads, UdpSocket};
use relay_tunnel::wireguard::Cipher;
use serde::Serialize;

/// Any address of the tunnel: nobody sees the device that gets it.
const ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1);

/// What the machine can do.
pub(super) struct Machine {
    pub(super) kernel: String,
    /// The offloads of a TUN device, or why there is none; relay's own TCP takes its place then.
    pub(super) tun: Result<Offloads, String>,
    /// Offloads of the UDP socket.
    pub(super) udp: Result<UdpOffloads, String>,
    /// Whether the engine works, or why not.
    pub(super) io_uring: Result<(), String>,
    /// What seals and opens packets.
    pub(super) cipher: Cipher,
}

/// An interface that is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) addresses: Vec<String>,
    /// The largest packet on its link, bytes.
    pub(super) mtu: Option<u32>,
}

impl Machine {
    /// The stack that a tunnel has here by default.
    pub(super) fn stack(&self) -> StackChoice {
        match self.tun {
            Ok(_) => StackChoice::Kernel,
            Err(_) => StackChoice::User,
        }
    }

    /// Tries it out. Call it in a runtime.
    pub(super) fn try_out(helper: Result<NetHelper, String>) -> Machine {
        let tun = helper.and_then(|helper| {
            let opened = stack::start(helper, &[ADDRESS], StackOptions::default());
            let (tun, _stack) = opened.map_err(|error| error.to_string())?;
            Ok(tun.offloads(Offloads::default()))
        });
        let udp = UdpSocket::bind(0, UdpOffloads::default());
        let kernel = nix::sys::utsname::uname().map_or_else(
            |_| "unknown".to_owned(),
            |name| name.release().to_string_lossy().into_owned(),
        );
        Machine {
            kernel,
            tun,
            udp: udp
                .map(|socket| socket.offloads())
                .map_err(|error| error.to_string()),
            io_uring: Engine::IoUring.check().map_err(|error| error.to_string()),
            cipher: Cipher::best(),
        }
    }
}

/// The interfaces that are up and lead away from this machine.
pub(super) fn interfaces() -> Vec<Interface> {
    let mut found: Vec<Interface> = Vec::new();
    let Ok(all) = getifaddrs() else {
        return found;
    };
    let leads_away = |flags: InterfaceFlags| {
        flags.contains(InterfaceFlags::IFF_UP) && !flags.contains(InterfaceFlags::IFF_LOOPBACK)
    };
    for one in all.filter(|one| leads_away(one.flags)) {
        let address = one.address.and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| v4.ip().to_string());
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().to_string()))
        });
        let Some(address) = address else { continue };
        match found
            .iter_mut()
            .find(|known| known.name == one.interface_name)
        {
            Some(known) => known.addresses.push(address),
            None => found.push(Interface {
                mtu: mtu(&one.interface_name),
                name: one.interface_name,
                addresses: vec![address],
            }),
        }
    }
    found
}

fn mtu(interface: &str) -> Option<u32> {
    let path = format!("/sys/class/net/{interface}/mtu");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
