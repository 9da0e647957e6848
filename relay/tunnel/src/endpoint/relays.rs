//! The relays an endpoint is connected to: its home, and those where its peers listen.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use relay_wire::derp_map::{DerpMap, Node, Region};
use relay_wire::keys::{NodePrivate, NodePublic};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::commands::Command;
use super::exchange::Seat;
pub(super) use crate::derp::Received;
use crate::derp::{self, Client};
use crate::dial::TlsOptions;

/// How long a region may take to show that it is near.
const MEASURE: Duration = Duration::from_millis(1500);

/// How much later than the nearest a region may be and still be compared.
const LATER: Duration = Duration::from_millis(100);

/// The way to relays, as one loop has it.
pub(super) enum Relays {
    /// It holds the connections.
    Own(Box<Connections>),
    /// The first loop of the endpoint holds them.
    Through(Detour),
}

impl Relays {
    /// Sends a packet through a region, if this end is there.
    pub(super) fn send(&mut self, region: u16, node: NodePublic, packet: &[u8]) {
        match self {
            Relays::Own(connections) => connections.send(region, node, packet),
            Relays::Through(detour) => {
                detour.seat.put_outward(region, node, packet);
                detour.waits = true;
            }
        }
    }

    /// What was sent goes on its way.
    pub(super) fn flush(&mut self) {
        if let Relays::Through(detour) = self
            && std::mem::take(&mut detour.waits)
        {
            detour.seat.ring_first();
        }
    }

    pub(super) fn is_connected(&self, region: u16) -> bool {
        match self {
            Relays::Own(connections) => connections.is_connected(region),
            Relays::Through(detour) => detour.connected.contains(&region),
        }
    }

    /// The connections, in the loop that holds them.
    pub(super) fn own(&mut self) -> Option<&mut Connections> {
        match self {
            Relays::Own(connections) => Some(connections),
            Relays::Through(_) => None,
        }
    }
}

/// The way to relays through another loop.
pub(super) struct Detour {
    seat: Seat,
    connected: HashSet<u16>,
    /// Something was sent that the first loop was not told of.
    waits: bool,
}

impl Detour {
    pub(super) fn new(seat: Seat) -> Detour {
        Detour {
            seat,
            connected: HashSet::new(),
            waits: false,
        }
    }

    /// Takes note of the regions that are connected, and gives those that were not.
    pub(super) fn set_connected(&mut self, regions: HashSet<u16>) -> Vec<u16> {
        let new = regions.difference(&self.connected).copied().collect();
        self.connected = regions;
        new
    }
}

/// All relay connections of one endpoint.
pub(super) struct Connections {
    key: NodePrivate,
    options: derp::Options,
    received: mpsc::Sender<Received>,
    commands: mpsc::WeakSender<Command>,
    map: DerpMap,
    home: Option<u16>,
    latency: BTreeMap<u16, Duration>,
    clients: HashMap<u16, Connection>,
}

struct Connection {
    client: Client,
    connected: watch::Receiver<bool>,
    region: Region,
    watcher: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Connections {
    pub(super) fn new(
        key: NodePrivate,
        tls: TlsOptions,
        force_websocket: bool,
        received: mpsc::Sender<Received>,
        commands: mpsc::WeakSender<Command>,
    ) -> Connections {
        let options = derp::Options {
            force_websocket,
            tls,
            ..derp::Options::default()
        };
        Connections {
            key,
            options,
            received,
            commands,
            map: DerpMap::default(),
            home: None,
            latency: BTreeMap::new(),
            clients: HashMap::new(),
        }
    }

    /// Takes a new map. A home that is still in it stays; one region alone is home at once; of
    /// several, the nearest becomes it when all are measured.
    pub(super) fn set_map(&mut self, map: DerpMap) {
        if self.map == map && self.home.is_some() {
            return;
        }
        self.map = map;
        let candidates: Vec<u16> = self
            .map
            .regions
            .iter()
            .filter(|(id, region)| !region.avoid && self.map.is_relay(**id))
            .map(|(id, _)| *id)
            .collect();
        if self.home.is_some_and(|home| !self.map.is_relay(home)) {
            self.home = None;
        }
        if let [only] = candidates[..] {
            self.home = Some(only);
        }
        self.measure();
    }

    fn measure(&self) {
        let regions = self
            .map
            .regions
            .iter()
            .filter(|(id, _)| self.map.is_relay(**id));
        let targets: Vec<(u16, Node)> = regions
            .filter_map(|(id, region)| {
                let node = region.nodes.iter().find(|node| !node.stun_only)?;
                Some((*id, node.clone()))
            })
            .collect();
        let commands = self.commands.clone();
        tokio::spawn(async move {
            let mut measured = Vec::new();
            let mut tasks = tokio::task::JoinSet::new();
            for (region, node) in targets {
                tasks.spawn(async move { (region, connect_time(&node).await) });
            }
            // Whoever is much later than the first is no candidate.
            let mut until = tokio::time::Instant::now() + MEASURE;
            while let Ok(Some(result)) = tokio::time::timeout_at(until, tasks.join_next()).await {
                if let Ok((region, Some(time))) = result {
                    measured.push((region, time));
                    until = until.min(tokio::time::Instant::now() + LATER);
                }
            }
            if let Some(commands) = commands.upgrade() {
                let _ = commands.send(Command::Latency(measured)).await;
            }
        });
    }

    /// Takes what was measured, and chooses a home if there is none.
    pub(super) fn set_latency(&mut self, measured: Vec<(u16, Duration)>) {
        self.latency = measured.into_iter().collect();
        if self.home.is_some() {
            return;
        }
        let allowed = |id: &u16| {
            self.map.is_relay(*id) && self.map.regions.get(id).is_some_and(|region| !region.avoid)
        };
        let nearest = self
            .latency
            .iter()
            .filter(|(id, _)| allowed(id))
            .min_by_key(|(_, t)| **t);
        self.home = nearest
            .map(|(id, _)| *id)
            .or_else(|| self.map.regions.keys().copied().find(|id| allowed(id)));
    }

    /// Connects to the home and to the homes of peers, and leaves all other relays.
    pub(super) fn update(&mut self, homes: &HashSet<u16>) {
        let wanted: HashSet<u16> = homes.iter().copied().chain(self.home).collect();
        let map = &self.map;
        self.clients.retain(|id, connection| {
            wanted.contains(id) && map.regions.get(id) == Some(&connection.region)
        });
        for id in wanted {
            let Some(region) = self.map.regions.get(&id) else {
                continue;
            };
            if self.clients.contains_key(&id) || !self.map.is_relay(id) {
                continue;
            }
            let client = Client::connect(
                region.clone(),
                self.key.clone(),
                self.options.clone(),
                self.received.clone(),
            );
            let mut connected = client.connected();
            let commands = self.commands.clone();
            let watcher = tokio::spawn(async move {
                loop {
                    let up = *connected.borrow_and_update();
                    if let Some(commands) = commands.upgrade() {
                        let _ = commands
                            .send(Command::Relay {
                                region: id,
                                connected: up,
                            })
                            .await;
                    }
                    if connected.changed().await.is_err() {
                        break;
                    }
                }
            });
            let connection = Connection {
                connected: client.connected(),
                client,
                region: region.clone(),
                watcher: watcher.abort_handle(),
            };
            self.clients.insert(id, connection);
        }
    }

    fn send(&self, region: u16, node: NodePublic, packet: &[u8]) {
        if let Some(connection) = self.clients.get(&region) {
            connection.client.send(node, packet);
        }
    }

    /// The regions that are connected.
    pub(super) fn connected(&self) -> HashSet<u16> {
        let regions = self.clients.keys().copied();
        regions
            .filter(|region| self.is_connected(*region))
            .collect()
    }

    fn is_connected(&self, region: u16) -> bool {
        let connection = self.clients.get(&region);
        connection.is_some_and(|connection| *connection.connected.borrow())
    }

    pub(super) fn home(&self) -> Option<u16> {
        self.home
    }

    /// The home, once this end is connected there.
    pub(super) fn connected_home(&self) -> Option<u16> {
        self.home.filter(|home| self.is_connected(*home))
    }

    /// Seconds to each region.
    pub(super) fn latency(&self) -> BTreeMap<u16, f64> {
        self.latency
            .iter()
            .map(|(id, time)| (*id, time.as_secs_f64()))
            .collect()
    }

    /// Hosts and ports of the map's STUN servers.
    pub(super) fn stun_servers(&self) -> Vec<(String, u16)> {
        stun_servers(&self.map)
    }
}

/// Hosts and ports of a map's STUN servers.
fn stun_servers(map: &DerpMap) -> Vec<(String, u16)> {
    let nodes = map.regions.values().flat_map(|region| &region.nodes);
    nodes
        .filter_map(|node| {
            let port = node.stun()?;
            let host = if !node.stun_test_ip.is_empty() {
                &node.stun_test_ip
            } else if node.ipv4.parse::<std::net::IpAddr>().is_ok() {
                &node.ipv4
            } else {
                &node.host_name
            };
            Some((host.clone(), port))
        })
        .collect()
}

/// The addresses of a map's STUN servers.
pub(super) async fn find_stun_servers(map: &DerpMap) -> Vec<SocketAddr> {
    look_up(stun_servers(map)).await
}

/// The addresses of STUN servers.
pub(super) async fn look_up(servers: Vec<(String, u16)>) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for (host, port) in servers {
        match tokio::net::lookup_host((host.as_str(), port)).await {
            Ok(addresses) => found.extend(addresses),
            Err(error) => tracing::debug!(%host, %error, "looking up a STUN server"),
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// How long a relay takes to accept a connection.
async fn connect_time(node: &Node) -> Option<Duration> {
    let url = node.relay_url()?;
    let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default()?;
    let start = Instant::now();
    let connect = tokio::net::TcpStream::connect((host, port));
    tokio::time::timeout(MEASURE, connect).await.ok()?.ok()?;
    Some(start.elapsed())
}
