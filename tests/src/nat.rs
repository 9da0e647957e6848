//! Routers with a NAT, by the kernel's own: hosts behind one have a private network to themselves, and
//! see of the others only what answers them.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::net::{Host, Lab, Namespace};

/// How a NAT maps one socket of a host (RFC 4787 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// One outer port, whoever is spoken to.
    EndpointIndependent,
    /// Another outer port for each destination.
    EndpointDependent,
}

/// The router that a host is behind.
pub struct Router(Host);

impl Lab {
    /// Adds a host in a network of its own, behind a router that the switch knows.
    pub fn host_behind(&mut self, name: &str, mapping: Mapping) -> (Host, Router) {
        let router = self.host(&format!("router of {name}"));
        let [.., number] = router.ipv4.octets();
        let inside = Namespace::new();
        let (ipv4, gateway) = (
            Ipv4Addr::new(10, number, 0, 2),
            Ipv4Addr::new(10, number, 0, 1),
        );
        let ipv6 = Ipv6Addr::new(0xfd78, 0, 0, u16::from(number), 0, 0, 0, 2);
        let path = inside.path();
        let outside = &router.namespace;
        outside.ip(&format!(
            "link add inner type veth peer name eth0 netns {path}"
        ));
        outside.ip(&format!("addr add {gateway}/24 dev inner"));
        outside.ip("link set inner up");
        // Of the namespace that the writing thread is in.
        let forwarding = "/proc/sys/net/ipv4/ip_forward";
        let switched = outside.enter(|| std::fs::write(forwarding, "1"));
        switched.unwrap_or_else(|error| panic!("{forwarding}: {error}"));
        inside.ip(&format!("addr add {ipv4}/24 dev eth0"));
        inside.ip(&format!("addr add {ipv6}/64 dev eth0 nodad"));
        inside.ip("link set eth0 up");
        inside.ip(&format!("route add default via {gateway} dev eth0"));
        router.translate(mapping);
        let host = Host {
            name: name.to_owned(),
            namespace: inside,
            ipv4,
            ipv6,
        };
        (host, Router(router))
    }
}

impl Host {
    /// Makes this host a NAT as routers at home are: what comes from outside is let in only where
    /// something went out to just there, and vanishes without an answer otherwise.
    fn translate(&self, mapping: Mapping) {
        let how = match mapping {
            // The kernel keeps a socket's port where it is free, and here it is.
            Mapping::EndpointIndependent => "masquerade",
            Mapping::EndpointDependent => "masquerade fully-random",
        };
        let rules = format!(
            "add table ip relay_nat
             add chain ip relay_nat out {{ type nat hook postrouting priority 100; }}
             add rule ip relay_nat out oifname eth0 {how}
             add chain ip relay_nat in {{ type filter hook input priority 0; }}
             add rule ip relay_nat in iifname eth0 ct state new drop
             add chain ip relay_nat through {{ type filter hook forward priority 0; }}
             add rule ip relay_nat through iifname eth0 ct state new drop"
        );
        for rule in rules.lines() {
            self.namespace.tool("nft", &[rule]);
        }
    }
}

impl Router {
    /// The address by which the outside sees the host behind.
    pub fn outer(&self) -> Ipv4Addr {
        self.0.ipv4
    }

    /// Lets no UDP pass, in either direction.
    pub fn block_udp(&self) {
        self.block_udp_from(0);
    }

    /// Lets no packet of UDP pass that has so many bytes, its headers included, or more.
    pub fn block_udp_from(&self, bytes: usize) {
        let rules = format!(
            "add table ip relay_block
             add chain ip relay_block through {{ type filter hook forward priority -10; }}
             add rule ip relay_block through meta l4proto udp meta length >= {bytes} drop"
        );
        for rule in rules.lines() {
            self.0.namespace.tool("nft", &[rule]);
        }
    }

    /// Ends [`Router::block_udp`] and [`Router::block_udp_from`].
    pub fn open_udp(&self) {
        let rule = "delete table ip relay_block";
        self.0.namespace.tool("nft", &[rule]);
    }
}
