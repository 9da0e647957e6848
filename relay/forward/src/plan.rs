//! What to listen on: single ports, and ranges of an address that is nobody else's, for which one
//! socket may do.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use relay_engine::limits;
use relay_engine::steer::{PortSet, may_be_owned};
use relay_wire::forwards::AnyForward;
use relay_wire::spec::{Forward, Listen, Proto};

use crate::Error;
use crate::board::Row;

/// All that was asked for, in order.
#[derive(Debug)]
pub(crate) struct Plan(pub(crate) Vec<Part>);

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    One(Listen),
    Range(Range),
}

/// Ports of one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) proto: Proto,
    pub(crate) address: Ipv4Addr,
    pub(crate) spans: Vec<Span>,
}

/// Ports that follow each other, here and in the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) local: u16,
    pub(crate) remote: u16,
    pub(crate) count: u16,
}

impl Plan {
    pub(crate) fn new(forwards: &[Forward]) -> Self {
        let mut parts = Vec::new();
        for (bind, span) in spans(forwards) {
            let (proto, owned) = (bind.proto, owned(bind));
            let known = parts.iter_mut().find_map(|part| match part {
                Part::Range(range) if range.is(proto, owned) => Some(range),
                _ => None,
            });
            match (known, owned) {
                (Some(range), _) => range.spans.push(span),
                (None, Some(address)) if has_range(forwards, proto, bind.bind) => {
                    let spans = vec![span];
                    parts.push(Part::Range(Range {
                        proto,
                        address,
                        spans,
                    }));
                }
                _ => parts.extend(span.forwards(bind).flat_map(|f| f.listens()).map(Part::One)),
            }
        }
        Self(parts)
    }

    /// What it comes to, in order.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut forwards: Vec<Forward> = Vec::new();
        let mut rows = Vec::new();
        for part in &self.0 {
            match part {
                // Both sockets of a default bind are one forward.
                Part::One(listen) if forwards.last() == Some(&listen.forward) => {}
                Part::One(listen) => {
                    forwards.push(listen.forward);
                    rows.push(Row::from(&AnyForward::Port(listen.forward)));
                }
                Part::Range(range) => rows.push(range.into()),
            }
        }
        rows
    }

    /// How many addresses have a range.
    pub(crate) fn addresses(&self) -> u32 {
        let mut addresses: Vec<_> = self.ranges().map(|range| range.address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        u32::try_from(addresses.len()).unwrap_or(u32::MAX)
    }

    /// Sees whether all sockets can be open at once, if a range takes one or if it does not.
    pub(crate) fn check(&self, steered: bool) -> Result<(), Error> {
        let room = limits::room();
        let sockets = |part: &Part| match part {
            Part::Range(range) if !steered => range.ports().count(),
            _ => 1,
        };
        let sockets = self.0.iter().map(sockets).sum::<usize>() as u64;
        if sockets <= room {
            return Ok(());
        }
        let spec = self.example();
        Err(Error::TooManySockets {
            sockets,
            room,
            spec,
        })
    }

    /// The longest run of single ports as it would be with an address of its own.
    fn example(&self) -> Option<String> {
        let singles = self.0.iter().filter_map(|part| match part {
            Part::One(listen) => Some(listen.forward),
            Part::Range(_) => None,
        });
        let mut singles: Vec<Forward> = singles.collect();
        singles.dedup();
        let (bind, span) = spans(&singles).max_by_key(|(_, span)| span.count)?;
        let own = IpAddr::from([127, 77, 0, 1]);
        Some(format!("--{} {}", bind.proto, span.spec(own)))
    }

    fn ranges(&self) -> impl Iterator<Item = &Range> {
        self.0.iter().filter_map(|part| match part {
            Part::Range(range) => Some(range),
            Part::One(_) => None,
        })
    }
}

impl Range {
    fn is(&self, proto: Proto, address: Option<Ipv4Addr>) -> bool {
        self.proto == proto && Some(self.address) == address
    }

    /// Whether a forward is part of it.
    pub(crate) fn has(&self, forward: &Forward) -> bool {
        (forward.proto, forward.bind) == (self.proto, Some(self.address.into()))
            && self.remote(forward.local) == Some(forward.remote)
    }

    /// The local ports.
    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> {
        self.spans.iter().flat_map(|span| span.local..=span.last())
    }

    pub(crate) fn port_set(&self) -> PortSet {
        self.ports().collect()
    }

    /// Where a local port leads.
    pub(crate) fn remote(&self, port: u16) -> Option<u16> {
        let span = self.spans.iter().find(|span| span.holds(port))?;
        Some(span.remote + (port - span.local))
    }

    /// One listener for each port.
    pub(crate) fn listens(&self) -> impl Iterator<Item = Listen> {
        let bind = Forward {
            proto: self.proto,
            bind: Some(self.address.into()),
            local: 0,
            remote: 0,
        };
        let forwards = self.spans.iter().flat_map(move |span| span.forwards(bind));
        forwards.map(|forward| Listen {
            forward,
            address: SocketAddr::new(self.address.into(), forward.local),
            required: true,
        })
    }
}

impl fmt::Display for Range {
    /// As it is written: every run of ports after a comma.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let specs = self.spans.iter().map(|span| span.spec(self.address.into()));
        write!(
            out,
            "{}://{}",
            self.proto,
            specs.collect::<Vec<_>>().join(",")
        )
    }
}

impl Span {
    fn last(&self) -> u16 {
        self.local + (self.count - 1)
    }

    fn holds(&self, port: u16) -> bool {
        (self.local..=self.last()).contains(&port)
    }

    fn forwards(self, of: Forward) -> impl Iterator<Item = Forward> {
        (0..self.count).map(move |step| Forward {
            local: self.local + step,
            remote: self.remote + step,
            ..of
        })
    }

    /// The local ports as they are written.
    pub(crate) fn locals(&self) -> String {
        written(self.local, self.count)
    }

    /// The ports in the workspace as they are written.
    pub(crate) fn remotes(&self) -> String {
        written(self.remote, self.count)
    }

    fn spec(&self, bind: IpAddr) -> String {
        let (locals, remotes) = (self.locals(), self.remotes());
        if locals == remotes {
            format!("{bind}:{locals}")
        } else {
            format!("{bind}:{locals}:{remotes}")
        }
    }
}

fn written(first: u16, count: u16) -> String {
    match count {
        1 => first.to_string(),
        _ => format!("{first}-{}", first + (count - 1)),
    }
}

/// The runs of ports that follow each other, each with its first forward.
fn spans(forwards: &[Forward]) -> impl Iterator<Item = (Forward, Span)> {
    let follows = |before: &Forward, next: &Forward| {
        (before.proto, before.bind) == (next.proto, next.bind)
            && before.local.checked_add(1) == Some(next.local)
            && before.remote.checked_add(1) == Some(next.remote)
    };
    // Ports are 1 to 65535, so a run is never longer than a port number tells.
    forwards.chunk_by(follows).map(|run| {
        let (local, remote) = (run[0].local, run[0].remote);
        let count = u16::try_from(run.len()).unwrap_or(u16::MAX);
        let span = Span {
            local,
            remote,
            count,
        };
        (run[0], span)
    })
}

fn owned(forward: Forward) -> Option<Ipv4Addr> {
    match forward.bind {
        Some(IpAddr::V4(address)) if may_be_owned(address) => Some(address),
        _ => None,
    }
}

/// Whether an address has more than single ports.
fn has_range(forwards: &[Forward], proto: Proto, bind: Option<IpAddr>) -> bool {
    spans(forwards)
        .any(|(first, span)| first.proto == proto && first.bind == bind && span.count > 1)
}

#[cfg(test)]
mod tests {
    use relay_wire::spec::parse_specs;

    use super::*;

    fn plan(tcp: &[&str], udp: &[&str]) -> Plan {
        Plan::new(&parse_specs(tcp, udp).unwrap())
    }

    fn range(part: &Part) -> &Range {
        match part {
            Part::Range(range) => range,
            Part::One(listen) => panic!("{listen:?}"),
        }
    }

    #[test]
    fn all_ports_of_an_own_address_are_one_range_of_each_protocol() {
        let plan = plan(
            &["127.77.0.1:1-65535"],
            &["127.77.0.1:53,127.77.0.1:5000-5001:6000-6001"],
        );
        assert_eq!((plan.0.len(), plan.addresses()), (2, 1));
        let (tcp, udp) = (range(&plan.0[0]), range(&plan.0[1]));
        assert_eq!((tcp.ports().count(), tcp.spans.len()), (65_535, 1));
        assert_eq!((tcp.remote(1), tcp.remote(65_535)), (Some(1), Some(65_535)));
        assert_eq!(
            [53, 54, 5001].map(|port| udp.remote(port)),
            [Some(53), None, Some(6001)]
        );
        assert_eq!(udp.listens().count(), 3);
        assert!(udp.listens().all(|listen| listen.required));
    }

    #[test]
    fn single_ports_and_shared_addresses_have_a_listener_each() {
        let specs = [
            "127.77.0.1:80,127.77.0.1:443",
            "8000-8001",
            "0.0.0.0:9000-9001",
            "127.0.0.1:7000-7001",
            "[::1]:6000-6001",
        ];
        let plan = plan(&specs, &[]);
        assert_eq!(plan.0.len(), 2 + 4 + 2 + 2 + 2);
        assert!(plan.0.iter().all(|part| matches!(part, Part::One(_))));
    }

    #[test]
    fn more_ports_than_descriptors_are_refused_with_a_way_out() {
        let many = plan(&["1-65535:1-65535"], &[]).check(true).unwrap_err();
        let text = many.to_string();
        assert!(text.contains("131070 local sockets"), "{text}");
        assert!(text.contains("--tcp 127.77.0.1:1-65535"), "{text}");
        let own = plan(&["127.77.0.1:1-65535"], &[]);
        assert!(own.check(true).is_ok());
        assert!(own.check(false).is_err());
    }
}
