//! Two ends in simulated time: a network with delay, cuts, NATs and size limits, and a relay beside it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use relay_wire::keys::{DiscoPrivate, NodePrivate};
use relay_wire::stun;

use super::*;

/// The simulated STUN server.
pub(super) const STUN: &str = "198.51.100.1:3478";
/// Another one.
pub(super) const STUN_TOO: &str = "198.51.100.1:3479";
pub(super) const REGION: u16 = 999;
pub(super) const RELAY_DELAY: Duration = Duration::from_millis(20);
pub(super) const DELAY: Duration = Duration::from_millis(5);

pub(super) struct End {
    pub(super) id: PeerId,
    pub(super) paths: Paths,
    info: PeerInfo,
    pub(super) addr: SocketAddr,
    /// The address the outside sees, when there is a NAT; it lets in only whom we sent to.
    pub(super) nat: Option<SocketAddr>,
    /// The NAT gives each destination another port.
    pub(super) varies: bool,
    opened: HashSet<SocketAddr>,
    pub(super) events: Vec<(Duration, Event)>,
    /// When data arrived from the other end, and whether by relay.
    pub(super) data: VecDeque<(Duration, bool)>,
}

impl End {
    /// The address by which somebody outside sees this end.
    fn seen_by(&self, other: SocketAddr) -> SocketAddr {
        let mut seen = self.nat.unwrap_or(self.addr);
        if self.varies {
            seen.set_port(seen.port().wrapping_add(other.port()));
        }
        seen
    }
}

struct Packet {
    at: Instant,
    to: usize,
    from: Option<SocketAddr>,
    payload: Vec<u8>,
}

pub(super) struct World {
    pub(super) ends: [End; 2],
    pub(super) start: Instant,
    pub(super) now: Instant,
    flying: Vec<Packet>,
    /// Whether UDP from an end to the other is dropped.
    pub(super) cut: [bool; 2],
    pub(super) relay_down: bool,
    pub(super) stun_down: bool,
    /// Largest datagram that passes.
    pub(super) limit: usize,
    pub(super) udp_sent: HashMap<usize, usize>,
    /// One of so many datagrams is lost; 0 for none.
    pub(super) loss: u32,
    dice: u32,
}

impl World {
    pub(super) fn new(direct: bool, addrs: [&str; 2], nats: [Option<&str>; 2]) -> World {
        World::with_relay_mtu(BASE_MTU, direct, addrs, nats)
    }

    pub(super) fn with_relay_mtu(
        relay_mtu: u16,
        direct: bool,
        addrs: [&str; 2],
        nats: [Option<&str>; 2],
    ) -> World {
        let end = |n: usize| {
            let (disco, node) = (
                DiscoPrivate::from_bytes([n as u8 + 1; 32]),
                [n as u8 + 9; 32],
            );
            let node = NodePrivate::from_bytes(node).public();
            let info = PeerInfo {
                node,
                disco: Some(disco.public()),
                home: Some(REGION),
                endpoints: Vec::new(),
                features: 0,
            };
            let config = PathConfig {
                disco,
                node,
                direct,
                max_mtu: u16::MAX,
                relay_mtu,
            };
            End {
                id: Uuid::from_u128(n as u128),
                paths: Paths::new(config, [n as u8; 32]),
                info,
                addr: addrs[n].parse().unwrap(),
                nat: nats[n].map(|addr| addr.parse().unwrap()),
                varies: false,
                opened: HashSet::new(),
                events: Vec::new(),
                data: VecDeque::new(),
            }
        };
        let start = Instant::now() + Duration::from_secs(3600);
        World {
            ends: [end(0), end(1)],
            start,
            now: start,
            flying: Vec::new(),
            cut: [false; 2],
            relay_down: false,
            stun_down: false,
            limit: 1472,
            udp_sent: HashMap::new(),
            loss: 0,
            dice: 1,
        }
    }

    /// Both ends learn of each other, with or without the endpoints they have now.
    pub(super) fn introduce(&mut self, endpoints: bool, features: u64) {
        let offered = [0, 1].map(|n| self.ends[n].paths.local_endpoints());
        for n in [0, 1] {
            let (id, mut info) = (self.ends[1 - n].id, self.ends[1 - n].info.clone());
            info.features = features;
            if endpoints {
                info.endpoints.clone_from(&offered[1 - n]);
            }
            let now = self.now;
            self.ends[n].paths.upsert_peer(id, info, now);
        }
    }

    pub(super) fn start_local(&mut self, stun: bool) {
        for end in &mut self.ends {
            end.paths.set_local_endpoints(&[end.addr]);
            if stun {
                let servers = [STUN, STUN_TOO].map(|addr| addr.parse().unwrap());
                end.paths.set_stun_servers(&servers, self.now);
            }
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Sends a burst from an end as the endpoint would.
    pub(super) fn send(&mut self, n: usize) {
        let (peer, node) = (self.ends[1 - n].id, self.ends[1 - n].info.node);
        let route = self.ends[n].paths.route(peer, self.now);
        let payload = b"data".to_vec();
        if let Some(addr) = route.direct {
            self.transmit(
                n,
                Transmit {
                    to: Destination::Udp(addr),
                    payload: payload.clone(),
                },
            );
        }
        if let Some((region, to)) = route.relay {
            assert_eq!((region, to), (REGION, node));
            self.transmit(
                n,
                Transmit {
                    to: Destination::Relay(region, to),
                    payload,
                },
            );
        }
    }

    fn transmit(&mut self, n: usize, transmit: Transmit) {
        let other = 1 - n;
        let Destination::Udp(to) = transmit.to else {
            if !self.relay_down {
                let at = self.now + RELAY_DELAY;
                self.flying.push(Packet {
                    at,
                    to: other,
                    from: None,
                    payload: transmit.payload,
                });
            }
            return;
        };
        *self.udp_sent.entry(n).or_default() += 1;
        if transmit.payload.len() > self.limit {
            return;
        }
        self.ends[n].opened.insert(to);
        let seen_as = self.ends[n].seen_by(to);
        if [STUN, STUN_TOO].contains(&to.to_string().as_str()) {
            if !self.stun_down {
                let tx = stun::parse_request(&transmit.payload).unwrap();
                let payload = stun::response(tx, seen_as);
                let at = self.now + 2 * DELAY;
                self.flying.push(Packet {
                    at,
                    to: n,
                    from: Some(to),
                    payload,
                });
            }
            return;
        }
        let target = &self.ends[other];
        let reached = target.seen_by(seen_as) == to;
        self.dice = self
            .dice
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        let lost = self.loss > 0 && (self.dice >> 16).is_multiple_of(self.loss);
        if reached && !lost && !self.cut[n] {
            let at = self.now + DELAY;
            self.flying.push(Packet {
                at,
                to: other,
                from: Some(seen_as),
                payload: transmit.payload,
            });
        }
    }

    fn drain(&mut self) {
        for n in [0, 1] {
            while let Some(transmit) = self.ends[n].paths.poll_transmit() {
                self.transmit(n, transmit);
            }
            let elapsed = self.elapsed();
            while let Some(event) = self.ends[n].paths.poll_event() {
                self.ends[n].events.push((elapsed, event));
            }
        }
    }

    fn deliver(&mut self, packet: Packet) {
        let elapsed = self.elapsed();
        let source = self.ends[1 - packet.to].info.node;
        let peer = self.ends[1 - packet.to].id;
        let end = &mut self.ends[packet.to];
        match packet.from {
            Some(from) => {
                if end.nat.is_some() && !end.opened.contains(&from) {
                    return;
                }
                if !end.paths.handle_udp(from, &packet.payload, self.now) {
                    end.paths.heard(peer, from, self.now);
                    end.data.push_back((elapsed, false));
                }
            }
            None => {
                if !end
                    .paths
                    .handle_relayed(REGION, source, &packet.payload, self.now)
                {
                    end.paths.heard_relayed(peer, self.now);
                    end.data.push_back((elapsed, true));
                }
            }
        }
    }

    /// Lets time pass in steps of a millisecond; `each` may send.
    pub(super) fn run(&mut self, span: Duration, mut each: impl FnMut(&mut World)) {
        let end = self.now + span;
        while self.now < end {
            self.now += Duration::from_millis(1);
            for n in [0, 1] {
                if let Some((at, _)) = self.ends[n].paths.poll_timeout()
                    && at <= self.now
                {
                    self.ends[n].paths.handle_timeout(self.now);
                }
            }
            self.drain();
            let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.flying)
                .into_iter()
                .partition(|p| p.at <= self.now);
            self.flying = rest;
            for packet in due {
                self.deliver(packet);
            }
            each(self);
            self.drain();
        }
    }

    /// A stream of one end, acknowledged by the other: one burst each 10 ms, an answer for each that arrives.
    pub(super) fn stream(&mut self, span: Duration) {
        let mut answered = self.ends[1].data.len();
        self.run(span, |world| {
            if world.elapsed().as_millis() % 10 == 0 {
                world.send(0);
            }
            if world.ends[1].data.len() > answered {
                answered = world.ends[1].data.len();
                world.send(1);
            }
        });
    }

    /// The longest time between two arrivals at `n` from `since` on, until now.
    pub(super) fn longest_gap(&self, n: usize, since: Duration) -> Duration {
        let times = self.ends[n]
            .data
            .iter()
            .map(|(at, _)| *at)
            .filter(|at| *at >= since);
        let mut last = since;
        let mut gap = Duration::ZERO;
        for at in times.chain([self.elapsed()]) {
            gap = gap.max(at - last);
            last = at;
        }
        gap
    }

    pub(super) fn state(&self, n: usize) -> Option<PathState> {
        self.ends[n]
            .events
            .iter()
            .rev()
            .find_map(|(_, event)| match event {
                Event::Path { state, .. } => Some(*state),
                _ => None,
            })
    }

    pub(super) fn mtu(&self, n: usize) -> u16 {
        let told = self.ends[n]
            .events
            .iter()
            .rev()
            .find_map(|(_, event)| match event {
                Event::Mtu { mtu, .. } => Some(*mtu),
                _ => None,
            });
        told.unwrap_or(BASE_MTU)
    }

    pub(super) fn is_direct(&self, n: usize) -> bool {
        matches!(self.state(n), Some(PathState::Direct(_)))
    }
}
