//! The addresses of this machine's interfaces: the only place of this module that asks the system something.

use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// The addresses of all interfaces that are up, loopback included (last), each once.
pub fn interfaces() -> io::Result<Vec<IpAddr>> {
    let mut found = Vec::new();
    for interface in getifaddrs().map_err(io::Error::from)? {
        if !interface.flags.contains(InterfaceFlags::IFF_UP) {
            continue;
        }
        let Some(address) = interface.address else {
            continue;
        };
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => continue,
        };
        if !found.contains(&ip) {
            found.push(ip);
        }
    }
    found.sort_by_key(IpAddr::is_loopback);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_and_last() {
        let found = interfaces().unwrap();
        if found.iter().any(IpAddr::is_loopback) {
            assert!(found.last().unwrap().is_loopback());
        }
    }
}
