//! Where relay has no namespace of its own, one listener of a port nobody knows stands for all:
//! the ports of TCP packets are rewritten by connection, so that a peer's packets reach that
//! listener and nothing else of the machine, and applications keep their ports to themselves.

use std::collections::HashMap;
use std::net::Ipv6Addr;

use super::packet::{Flow, Parsed, address, fold, parse, put_u16, u16_at};

/// Connections that are remembered; beyond it the one that was quiet longest is forgotten.
const MAX_FLOWS: usize = 16_384;
/// Where the search for a free port to stand for the peer's begins.
const FIRST_ALIAS: u16 = 1024;

/// The connection as the kernel sees it: the peer, the port that stands for the peer's, and ours.
type Alias = (Ipv6Addr, u16, Ipv6Addr);

#[derive(Debug, Default)]
pub(super) struct Rewriter {
    /// The port of the listener on each of our addresses.
    listeners: HashMap<Ipv6Addr, u16>,
    flows: HashMap<Flow, Mapped>,
    aliases: HashMap<Alias, Flow>,
    clock: u64,
    /// Where the search for a free port goes on.
    cursor: u16,
}

#[derive(Debug)]
struct Mapped {
    alias: u16,
    used: u64,
}

impl Rewriter {
    /// From now on `port` takes all connections to `address`.
    pub(super) fn listen(&mut self, address: Ipv6Addr, port: u16) {
        self.listeners.insert(address, port);
    }

    pub(super) fn contains(&self, flow: Flow) -> bool {
        self.flows.contains_key(&flow)
    }

    /// Lets the packets of a connection through.
    pub(super) fn add(&mut self, flow: Flow) {
        self.clock += 1;
        if let Some(mapped) = self.flows.get_mut(&flow) {
            mapped.used = self.clock;
            return;
        }
        if self.flows.len() >= MAX_FLOWS {
            let oldest = self.flows.iter().min_by_key(|(_, mapped)| mapped.used);
            if let Some(oldest) = oldest.map(|(flow, _)| *flow) {
                self.remove(oldest);
            }
        }
        let free = |port: &u16| {
            !self
                .aliases
                .contains_key(&(flow.source, *port, flow.destination))
        };
        let mut alias = flow.source_port;
        // It ends, and soon: there are many more ports than connections are remembered.
        while !free(&alias) {
            self.cursor = self.cursor.wrapping_add(1).max(FIRST_ALIAS);
            alias = self.cursor;
        }
        self.aliases
            .insert((flow.source, alias, flow.destination), flow);
        let used = self.clock;
        self.flows.insert(flow, Mapped { alias, used });
    }

    fn remove(&mut self, flow: Flow) {
        if let Some(mapped) = self.flows.remove(&flow) {
            self.aliases
                .remove(&(flow.source, mapped.alias, flow.destination));
        }
    }

    /// Forgets a peer.
    pub(super) fn remove_peer(&mut self, peer: Ipv6Addr) {
        self.flows.retain(|flow, _| flow.source != peer);
        self.aliases.retain(|_, flow| flow.source != peer);
    }

    /// The connection that the listener accepted.
    pub(super) fn original(&self, alias: Alias) -> Option<Flow> {
        self.aliases.get(&alias).copied()
    }

    /// Turns a peer's packet to one for the listener, if its connection was let through.
    pub(super) fn inward(&mut self, packet: &mut [u8]) {
        let Parsed::Tcp { flow, offset, .. } = parse(packet) else {
            return;
        };
        let Some(port) = self.listeners.get(&flow.destination) else {
            return;
        };
        let Some(mapped) = self.flows.get_mut(&flow) else {
            return;
        };
        self.clock += 1;
        mapped.used = self.clock;
        replace(packet, offset, (mapped.alias, *port), true);
    }

    /// Turns a packet of the listener to one from the port the peer asked for. The checksum of a
    /// packet that is not `finished` does not cover the ports yet.
    pub(super) fn outward(&mut self, packet: &mut [u8], finished: bool) {
        let Parsed::Tcp { flow, offset, .. } = parse(packet) else {
            return;
        };
        if self.listeners.get(&flow.source) != Some(&flow.source_port) {
            return;
        }
        let alias = (address(packet, 24), flow.destination_port, flow.source);
        if let Some(original) = self.aliases.get(&alias) {
            let ports = (original.destination_port, original.source_port);
            replace(packet, offset, ports, finished);
        }
    }
}

/// Writes new ports, and corrects a checksum that covers the old ones.
fn replace(packet: &mut [u8], offset: usize, (source, destination): (u16, u16), finished: bool) {
    if finished {
        let sum = [
            !u16_at(packet, offset + 16),
            !u16_at(packet, offset),
            !u16_at(packet, offset + 2),
            source,
            destination,
        ];
        let sum: u64 = sum.into_iter().map(u64::from).sum();
        let sum = u16::from_ne_bytes(fold(sum));
        put_u16(packet, offset + 16, !sum);
    }
    put_u16(packet, offset, source);
    put_u16(packet, offset + 2, destination);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::packet::tests::{checksum_holds, flow, tcp_packet};
    use crate::stack::packet::{ACK, SYN};

    fn rewriter() -> Rewriter {
        let mut rewriter = Rewriter::default();
        rewriter.listen(flow(0).destination, 33_333);
        rewriter
    }

    fn back(packet: &[u8]) -> Vec<u8> {
        let Parsed::Tcp { flow, .. } = parse(packet) else {
            panic!("not TCP");
        };
        let reversed = Flow {
            source: flow.destination,
            source_port: flow.destination_port,
            destination: flow.source,
            destination_port: flow.source_port,
        };
        tcp_packet(reversed, ACK, 9, b"answer")
    }

    #[test]
    fn packets_of_a_known_connection_go_to_the_listener_and_back() {
        let mut rewriter = rewriter();
        rewriter.add(flow(80));
        rewriter.add(flow(81));
        let mut seen = Vec::new();
        for port in [80, 81] {
            let mut packet = tcp_packet(flow(port), SYN, 1, b"some data");
            rewriter.inward(&mut packet);
            assert!(checksum_holds(&packet));
            assert_eq!(u16_at(&packet, 42), 33_333);
            let alias = u16_at(&packet, 40);
            let known = (flow(port).source, alias, flow(port).destination);
            assert_eq!(rewriter.original(known), Some(flow(port)));
            seen.push(alias);
            let mut answer = back(&packet);
            rewriter.outward(&mut answer, true);
            assert!(checksum_holds(&answer));
            assert_eq!((u16_at(&answer, 40), u16_at(&answer, 42)), (port, 40_000));
        }
        assert_ne!(seen[0], seen[1]);
    }

    #[test]
    fn other_packets_stay_as_they_are() {
        let mut rewriter = rewriter();
        rewriter.add(flow(80));
        let mut unknown = tcp_packet(flow(90), SYN, 1, b"");
        rewriter.inward(&mut unknown);
        assert_eq!(unknown, tcp_packet(flow(90), SYN, 1, b""));
        let mut own = back(&unknown);
        rewriter.outward(&mut own, true);
        assert_eq!(own, back(&unknown));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_quietest() {
        let mut rewriter = rewriter();
        for port in 0..MAX_FLOWS as u16 {
            rewriter.add(flow(port));
        }
        rewriter.add(flow(0));
        rewriter.add(flow(60_000));
        assert_eq!(rewriter.flows.len(), MAX_FLOWS);
        assert_eq!(rewriter.aliases.len(), MAX_FLOWS);
        assert!(rewriter.contains(flow(0)) && !rewriter.contains(flow(1)));
        rewriter.remove_peer(flow(0).source);
        assert!(rewriter.flows.is_empty() && rewriter.aliases.is_empty());
    }
}
