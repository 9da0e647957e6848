//! Ports that others have: the sockets of this network namespace, as the kernel lists them in
//! `/proc` (proc_net_tcp in the kernel's documentation).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

use relay_ebpf::steer::TCP;
use socket2::{Domain, Socket, Type};

use super::PortSet;

/// State of a socket that listens for connections.
const LISTEN: &str = "0A";
/// State of a UDP socket that is connected.
const CONNECTED: &str = "01";

/// Which IPv4 addresses a socket serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    At(Ipv4Addr),
    Everywhere,
}

/// The ports among `wanted` that others have, and those of them that they have on every address.
pub(super) fn before(proto: u32, address: Ipv4Addr, wanted: &PortSet) -> (Vec<u16>, BTreeSet<u16>) {
    let (mut left, mut everywhere) = (BTreeSet::new(), BTreeSet::new());
    for (reach, port) in sockets(proto) {
        let concerns = reach == Reach::Everywhere || reach == Reach::At(address);
        // The list does not tell which sockets of IPv6 serve IPv4 as well; a bind does.
        if concerns && wanted.contains(port) && !is_free(proto, SocketAddrV4::new(address, port)) {
            left.insert(port);
            if reach == Reach::Everywhere {
                everywhere.insert(port);
            }
        }
    }
    (left.into_iter().collect(), everywhere)
}

fn is_free(proto: u32, address: SocketAddrV4) -> bool {
    let kind = if proto == TCP {
        Type::STREAM
    } else {
        Type::DGRAM
    };
    let bound = Socket::new(Domain::IPV4, kind.cloexec(), None).and_then(|socket| {
        // Connections that are over keep no port; listeners do all the same.
        socket.set_reuse_address(proto == TCP)?;
        socket.bind(&address.into())
    });
    bound.is_ok()
}

/// All sockets that wait for whoever comes.
pub(super) fn sockets(proto: u32) -> Vec<(Reach, u16)> {
    let tables = if proto == TCP {
        ["tcp", "tcp6"]
    } else {
        ["udp", "udp6"]
    };
    let mut sockets = Vec::new();
    for table in tables {
        // A kernel without IPv6 has no such table.
        if let Ok(file) = File::open(format!("/proc/thread-self/net/{table}")) {
            read(BufReader::new(file), proto == TCP, &mut sockets);
        }
    }
    sockets
}

fn read(table: impl BufRead, tcp: bool, sockets: &mut Vec<(Reach, u16)>) {
    for line in table.lines().skip(1).map_while(Result::ok) {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (Some(local), Some(_), Some(state)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        // Listeners come first, and connections may be many.
        if tcp && state != LISTEN {
            return;
        }
        if state != CONNECTED {
            sockets.extend(socket(local));
        }
    }
}

/// `0100007F:1F90`: words of the address in the byte order of this machine, port.
fn socket(text: &str) -> Option<(Reach, u16)> {
    let (address, port) = text.split_once(':')?;
    let mut bytes = Vec::with_capacity(16);
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    };
    let reach = match ip.to_canonical() {
        ip if ip.is_unspecified() => Reach::Everywhere,
        IpAddr::V4(ip) => Reach::At(ip),
        IpAddr::V6(_) => return None,
    };
    Some((reach, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;

    #[test]
    fn listeners_of_both_families_are_found_in_the_tables() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000
   2: 01004D7F:1F91 0100007F:C350 01 00000000:00000000 00:00000000
   3: 01004D7F:1F92 00000000:0000 0A 00000000:00000000 00:00000000";
        let tcp6 = "  sl  local_address rem_address   st
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A
   1: 0000000000000000FFFF000001004D7F:0051 00000000000000000000000000000000:0000 0A
   2: 00000000000000000000000001000000:0052 00000000000000000000000000000000:0000 0A";
        let mut sockets = Vec::new();
        read(tcp.as_bytes(), true, &mut sockets);
        read(tcp6.as_bytes(), true, &mut sockets);
        let expected = [
            (Reach::At(Ipv4Addr::LOCALHOST), 8080),
            (Reach::Everywhere, 22),
            (Reach::Everywhere, 80),
            (Reach::At(Ipv4Addr::new(127, 77, 0, 1)), 81),
        ];
        assert_eq!(sockets, expected);
    }

    #[test]
    fn a_connected_udp_socket_waits_for_one_peer_alone() {
        let udp = "  sl  local_address rem_address   st
   5: 01004D7F:0035 0100007F:C350 01 00000000:00000000
   6: 01004D7F:0036 00000000:0000 07 00000000:00000000";
        let mut sockets = Vec::new();
        read(udp.as_bytes(), false, &mut sockets);
        assert_eq!(sockets, [(Reach::At(Ipv4Addr::new(127, 77, 0, 1)), 54)]);
    }
}
