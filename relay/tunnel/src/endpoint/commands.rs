//! What the handle asks of the loop.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use relay_wire::derp_map::DerpMap;
use tokio::sync::{mpsc, oneshot};

use super::driver::Driver;
use super::handle::{PeerStats, Pong};
use super::local::Local;
use super::node::PeerNode;
use super::peers::Gone;
use super::streams;
use crate::Error;
use crate::path::{BASE_MTU, PathState, PeerId, PeerInfo, Survey};

/// TSMP pings that may wait for an answer; older ones are forgotten.
const MAX_PINGS: usize = 1024;

/// One request to the loop.
#[derive(Debug)]
pub(super) enum Command {
    DerpMap(Box<DerpMap>),
    Upsert {
        id: PeerId,
        node: Box<PeerNode>,
        done: oneshot::Sender<()>,
    },
    Remove {
        id: PeerId,
        done: oneshot::Sender<()>,
    },
    TsmpPing {
        remote: Ipv6Addr,
        data: [u8; 8],
        pong: mpsc::Sender<Duration>,
    },
    DiscoPing {
        peer: PeerId,
        done: oneshot::Sender<Result<Pong, Error>>,
    },
    Stats {
        peer: PeerId,
        done: oneshot::Sender<Result<PeerStats, Error>>,
    },
    Survey {
        done: oneshot::Sender<Survey>,
    },
    /// The interfaces may have changed.
    Interfaces,
    /// The STUN servers' names have been looked up.
    StunServers(Vec<SocketAddr>),
    /// The regions have been measured.
    Latency(Vec<(u16, Duration)>),
    /// A relay's connection came or went.
    Relay {
        region: u16,
        connected: bool,
    },
}

impl Driver {
    pub(super) fn handle_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::DerpMap(map) => self.set_map(*map),
            Command::Upsert { id, node, done } => {
                self.upsert(id, *node, now);
                let _ = done.send(());
            }
            Command::Remove { id, done } => {
                if let Some(gone) = self.peers.remove(id) {
                    self.forget(id, gone);
                }
                self.update_relays();
                let _ = done.send(());
            }
            Command::TsmpPing { remote, data, pong } => {
                if self.tsmp.len() >= MAX_PINGS {
                    self.tsmp.retain(|_, (_, pong)| !pong.is_closed());
                }
                if let (Some(source), Some(index)) =
                    (self.addresses.first(), self.peers.index_of_address(remote))
                {
                    self.tsmp.insert(data, (now, pong));
                    let ping = relay_wire::tsmp::ping_packet(*source, remote, data);
                    self.send_to(index, &ping);
                }
            }
            Command::DiscoPing { peer, done } => {
                if self.peers.index_of_id(peer).is_none() {
                    let _ = done.send(Err(Error::UnknownPeer));
                    return;
                }
                let tx = self.paths.start_ping(peer, now);
                self.disco.retain(|_, done| !done.is_closed());
                self.disco.insert(tx, done);
            }
            Command::Stats { peer, done } => {
                let _ = done.send(self.stats(peer, now).ok_or(Error::UnknownPeer));
            }
            Command::Survey { done } => {
                let _ = done.send(self.paths.survey());
            }
            Command::Interfaces => self.read_interfaces(now),
            Command::StunServers(servers) => {
                if let Some(seat) = &self.seat {
                    seat.post_stun_servers(&servers);
                }
                self.paths.set_stun_servers(&servers, now);
            }
            Command::Latency(measured) => {
                if let Some(relays) = self.relays.own() {
                    relays.set_latency(measured);
                }
                self.update_relays();
                self.node_changed = true;
            }
            Command::Relay { region, connected } => self.relay_changed(region, connected, now),
        }
    }

    fn upsert(&mut self, id: PeerId, node: PeerNode, now: Instant) {
        let info = PeerInfo {
            node: node.key,
            disco: node.disco,
            home: node.home,
            endpoints: node.endpoints.clone(),
            features: node.features,
        };
        let takes = node.takes_early_data() && self.local.takes_early_data();
        let addresses = node.addresses.clone();
        let (index, replaced) = self
            .peers
            .upsert(&self.identity, id, node, self.keepalive, now);
        for (old, gone) in replaced {
            tracing::debug!(peer = %old, "peer replaced by a new key");
            self.nudge(&gone);
            self.common.early.set(&gone.addresses, false);
            for address in &gone.addresses {
                self.local.set_peer_mtu(now, *address, BASE_MTU);
            }
            if old != id {
                self.forget_id(old);
            } else {
                self.paths.remove_peer(old);
            }
        }
        for address in &addresses {
            self.local.add_peer(*address);
        }
        self.common.early.set(&addresses, takes);
        self.paths.upsert_peer(id, info, now);
        self.update_relays();
        if self.keepalive
            && let Some(slot) = self.peers.get_mut(index)
        {
            slot.wireguard.greet(false, now, &mut slot.control);
        }
        self.peers.touch(index);
    }

    fn forget(&mut self, id: PeerId, gone: Gone) {
        self.nudge(&gone);
        self.common.early.set(&gone.addresses, false);
        for address in &gone.addresses {
            self.local.remove_peer(*address);
        }
        self.forget_id(id);
    }

    fn forget_id(&mut self, id: PeerId) {
        self.paths.remove_peer(id);
        self.set_state(id, PathState::None);
    }

    /// Ends the streams to a node that is gone, or makes the kernel find out that they are dead.
    fn nudge(&mut self, gone: &Gone) {
        if let Local::User(user) = &mut self.local {
            gone.addresses
                .iter()
                .for_each(|peer| user.forget_peer(*peer));
            return;
        }
        for peer in &gone.addresses {
            for own_address in &self.addresses {
                for (own, theirs) in &gone.streams {
                    self.to_tun
                        .push(streams::nudge(*peer, *theirs, *own_address, *own).to_vec());
                }
            }
        }
    }

    fn stats(&mut self, peer: PeerId, now: Instant) -> Option<PeerStats> {
        let index = self.peers.index_of_id(peer)?;
        let slot = self.peers.get_mut(index)?;
        Some(PeerStats {
            sent: slot.sent,
            received: slot.received,
            handshake_age: slot.wireguard.handshake_age(now),
            mtu: slot.mtu,
            rejected: slot.wireguard.rejected(),
            oversize: slot.oversize,
            rtt: self.paths.rtt(peer),
        })
    }
}
