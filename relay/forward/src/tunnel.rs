//! The tunnel to one workspace: an endpoint, and the supervision that keeps it pointed at the
//! workspace's agent while agents, builds and control connections come and go.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use relay_control::client::{Coordination, Event as Control};
use relay_control::rest::Client;
use relay_engine::{Moved, Side};
use relay_tunnel::capture::Capture;
use relay_tunnel::datagram::Flow as TunnelFlow;
use relay_tunnel::endpoint::{
    BUSY_POLL, EarlyData, Endpoint, EndpointConfig, EndpointEvents, Event as Packets, LocalNode,
    MAX_MTU, PeerNode, StackChoice,
};
use relay_tunnel::path::PathState;
use relay_tunnel::stack::{NetHelper, Offloads, Stream};
use relay_wire::addr::agent_address;
use relay_wire::derp_map::DerpMap;
use relay_wire::keys::{DiscoPrivate, NodePrivate, NodePublic};
use relay_wire::names::WorkspaceName;
use relay_wire::rest::{AgentStatus, Transition};
use relay_wire::same_host::To;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::Error;
use crate::event::{Event, Path, Reporter};
use crate::find::{self, Found};
use crate::monitor::{Monitor, Watched};
use crate::same_host::{Handed, Neighbour, Session};
use crate::way::{Flow, Target, Way, dial, dial_once};

/// How long a new connection may take, the wait for a lost agent included.
const DIAL: Duration = Duration::from_secs(15);
/// How long an agent that left its control plane may take to show that it is still there.
const DOUBT: Duration = Duration::from_millis(500);
/// How long an agent that came back may take to answer before it is asked anew.
const BACK: Duration = Duration::from_secs(20);
/// How often a lost agent's workspace is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A path is told when it has held for so long.
const SETTLED: Duration = Duration::from_millis(250);

/// What to reach and how.
#[derive(Debug)]
pub struct Options {
    /// The deployment and the session.
    pub client: Client,
    /// The workspace.
    pub name: WorkspaceName,
    /// Whether a stopped workspace may be started.
    pub autostart: bool,
    /// Whether direct paths may be used.
    pub direct: bool,
    /// The TCP/IP stack inside the tunnel.
    pub stack: StackChoice,
    /// The largest packet inside the tunnel, bytes; larger ones are proven on the path first.
    pub max_mtu: u16,
    /// Which segmentation offloads may be used.
    pub offloads: Offloads,
    /// How long to look for an answer to a small message before sleeping.
    pub busy_poll: Duration,
    /// Whether an agent on this machine is looked for, and connections are handed over to it.
    pub same_host: bool,
    /// Sees the tunnel while it is open.
    pub monitor: Monitor,
    /// Where the packets inside the tunnel are recorded, if anywhere.
    pub capture: Option<Capture>,
}

impl Options {
    /// The usual way to a workspace.
    pub fn new(client: Client, name: WorkspaceName) -> Self {
        Self {
            client,
            name,
            autostart: true,
            direct: true,
            stack: StackChoice::default(),
            max_mtu: MAX_MTU,
            offloads: Offloads::default(),
            busy_poll: Duration::from_micros(BUSY_POLL),
            same_host: true,
            monitor: Monitor::default(),
            capture: None,
        }
    }
}

/// Leads to the agent of the moment.
#[derive(Clone)]
pub(crate) struct Tunnel {
    pub(crate) endpoint: Endpoint,
    pub(crate) target: watch::Receiver<Option<Target<Ipv6Addr>>>,
    pub(crate) neighbour: Neighbour,
}

impl Tunnel {
    /// The agent's address, as soon as it may be spoken to.
    pub(crate) async fn address(&self) -> Result<Ipv6Addr, Error> {
        let mut target = self.target.clone();
        let found = target.wait_for(Option::is_some).await.ok();
        let address = found.and_then(|found| found.as_ref().map(|target| target.address));
        address.ok_or(Error::Tunnel(relay_tunnel::Error::Closed))
    }
}

fn socket(address: Ipv6Addr, port: u16) -> SocketAddrV6 {
    SocketAddrV6::new(address, port, 0, 0)
}

impl Way for Tunnel {
    type Flow = TunnelFlow;

    async fn connect(&self, port: u16, first: &[u8]) -> io::Result<(TcpStream, usize)> {
        let (stream, taken) = self.open(port, first).await?;
        Ok((stream.into_socket()?, taken))
    }

    async fn open(&self, port: u16, first: &[u8]) -> io::Result<(Stream, usize)> {
        let (target, endpoint) = (self.target.clone(), &self.endpoint);
        let open = |address| endpoint.open(socket(address, port), first);
        match first.is_empty() {
            true => dial(target, DIAL, open).await,
            false => dial_once(target, DIAL, open).await,
        }
    }

    async fn hand_over(
        &self,
        to: To,
        socket: BorrowedFd<'_>,
        moved: (&Moved, Side),
    ) -> Option<io::Result<Handed>> {
        self.neighbour.hand_over(to, socket, moved).await
    }

    fn early_data(&self) -> Option<EarlyData> {
        let target = self.target.borrow();
        let target = target.as_ref().filter(|target| target.present)?;
        self.endpoint.early_data(target.address)
    }

    fn open_flow(&self, port: u16) -> io::Result<TunnelFlow> {
        let address = self.target.borrow().as_ref().map(|target| target.address);
        let address = address.ok_or(io::ErrorKind::NotConnected)?;
        self.endpoint
            .open_flow(socket(address, port))
            .map_err(io::Error::other)
    }
}

impl Flow for TunnelFlow {
    async fn send(&self, payload: Bytes) -> io::Result<()> {
        TunnelFlow::send(self, payload)
            .await
            .map_err(io::Error::other)
    }

    async fn receive(&mut self, datagrams: &mut Vec<Bytes>, limit: usize) -> usize {
        self.recv_many(datagrams, limit).await
    }
}

/// The names of relay regions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Regions(HashMap<u16, String>);

impl Regions {
    /// A region's name, if it has one.
    pub(crate) fn get(&self, id: u16) -> Option<&str> {
        self.0.get(&id).map(String::as_str)
    }

    /// A region's name, or what to call it.
    pub(crate) fn name(&self, id: u16) -> String {
        let name = self.get(id).map(str::to_owned);
        name.unwrap_or_else(|| format!("region {id}"))
    }
}

/// What was found out aside.
enum Aside {
    /// Whether the agent of that generation answered within its time.
    Answer { generation: u64, answered: bool },
    /// What the workspace looks like now.
    Look(Option<Box<Found>>),
    /// There is no such workspace any more.
    Deleted,
}

/// How the agent is reached, as it was told.
#[derive(Clone, PartialEq, Eq)]
enum Told {
    SameHost,
    Tunnel(Path),
}

/// Keeps a tunnel pointed at the agent. It works only while [`Supervisor::run`] is polled.
pub(crate) struct Supervisor {
    pub(crate) found: Found,
    pub(crate) regions: Regions,
    client: Client,
    name: WorkspaceName,
    report: Reporter,
    endpoint: Endpoint,
    events: EndpointEvents,
    node: watch::Sender<Option<LocalNode>>,
    own: watch::Receiver<Option<LocalNode>>,
    coordination: Coordination,
    /// The control plane will say nothing more about this agent.
    over: bool,
    target: watch::Sender<Option<Target<Ipv6Addr>>>,
    key: Option<NodePublic>,
    generation: u64,
    lost: bool,
    /// The workspace is being looked at.
    looking: bool,
    aside: JoinSet<Aside>,
    path: Option<Path>,
    told_path: Option<Told>,
    /// The agent on this machine, while it is that.
    neighbour: watch::Receiver<Option<Arc<Session>>>,
    settled_at: Option<Instant>,
    /// The agent went away because its workspace was stopped.
    stopped: watch::Sender<bool>,
    watched: Watched,
}

/// Opens a tunnel to a workspace: looks it up, and starts everything that talks to it at once.
pub(crate) async fn open(
    options: Options,
    helper: NetHelper,
    report: Reporter,
) -> Result<(Tunnel, Supervisor), Error> {
    let Options {
        client,
        mut name,
        autostart,
        direct,
        stack,
        max_mtu,
        offloads,
        busy_poll,
        same_host: _,
        monitor,
        capture,
    } = options;
    if !direct {
        report.tell(Event::RelaysOnly);
    }
    let found = find::find_connected(&client, &name, autostart, &report).await?;
    // A rebuilt workspace has other agents; the one of the same name is meant.
    name.agent = Some(found.agent.name.clone());
    let (node, nodes) = watch::channel(None);
    let access = client.access().clone();
    let coordination = Coordination::start(client.url(), access, found.agent.id, nodes);
    let info = client.connection(found.agent.id).await?;

    let mut random = rand::rng();
    let (key, disco) = (
        NodePrivate::generate(&mut random),
        DiscoPrivate::generate(&mut random),
    );
    let id = Uuid::new_v4();
    let mut config = EndpointConfig::new(key, disco, vec![agent_address(&id)]);
    config.id = id;
    config.direct = direct && !info.disable_direct_connections;
    config.force_websockets = info.derp_force_websockets;
    config.stack = stack;
    config.max_mtu = max_mtu;
    config.offloads = offloads;
    config.busy_poll = busy_poll;
    config.tls = client.access().tls.clone();
    config.keepalive = true;
    config.capture = capture;
    let (endpoint, events) = relay_tunnel::endpoint::start(config, helper)?;

    let neighbour = Neighbour::default();
    let watched = monitor.watch(&endpoint, &neighbour);
    let (target, target_now) = watch::channel(None);
    let tunnel = Tunnel {
        endpoint: endpoint.clone(),
        target: target_now,
        neighbour: neighbour.clone(),
    };
    let mut supervisor = Supervisor {
        found,
        regions: Regions::default(),
        client,
        name,
        report,
        own: endpoint.node(),
        endpoint,
        events,
        node,
        coordination,
        over: false,
        target,
        key: None,
        generation: 0,
        lost: false,
        looking: false,
        aside: JoinSet::new(),
        path: None,
        told_path: None,
        neighbour: neighbour.watch(),
        settled_at: None,
        stopped: watch::Sender::new(false),
        watched,
    };
    supervisor
        .watched
        .leads_to(&supervisor.found, &supervisor.regions);
    if let Some(map) = info.derp_map {
        supervisor.set_map(map).await?;
    }
    Ok((tunnel, supervisor))
}

impl Supervisor {
    /// Works until something ends it for good.
    pub(crate) async fn run(&mut self) -> Error {
        loop {
            match self.step().await {
                Ok(()) => {}
                Err(error) => return error,
            }
        }
    }

    /// Whether the agent went away with its workspace, which was stopped or deleted. A workspace
    /// that is started again has another agent.
    pub(crate) fn stopped(&self) -> watch::Receiver<bool> {
        self.stopped.subscribe()
    }

    /// Says goodbye.
    pub(crate) async fn close(self) {
        self.coordination.disconnect().await;
    }

    async fn step(&mut self) -> Result<(), Error> {
        let settled = self.settled_at;
        tokio::select! {
            event = self.coordination.event(), if !self.over => match event {
                Some(event) => self.handle(event).await?,
                None => self.over = true,
            },
            Ok(()) = self.own.changed() => {
                let own = self.own.borrow_and_update().clone();
                self.node.send_replace(own);
            }
            Some(event) = self.events.recv() => self.note(event),
            Ok(()) = self.neighbour.changed() => self.settled_at = Some(Instant::now()),
            Some(Ok(found)) = self.aside.join_next() => self.judge(found).await?,
            () = async { match settled {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }} => self.tell_path(),
        }
        Ok(())
    }

    async fn handle(&mut self, event: Control) -> Result<(), Error> {
        let agent = self.found.agent.id;
        match event {
            Control::Connected => tracing::debug!("control connection is open"),
            Control::Disconnected(reason) => tracing::debug!(reason, "control connection broke"),
            Control::DerpMap(map) => self.set_map(map).await?,
            Control::Peer(id, node) if id == agent => self.install(node).await?,
            Control::PeerLost(id) if id == agent => {
                self.set_present(false);
                self.ask(DOUBT);
            }
            Control::PeerGone(id) if id == agent => self.lose(),
            Control::Peer(..) | Control::PeerLost(_) | Control::PeerGone(_) => {}
            Control::Fatal(error) if self.generation == 0 => return Err(error.into()),
            Control::Fatal(error) => {
                tracing::debug!(%error, "coordination ended");
                self.over = true;
                self.lose();
            }
        }
        Ok(())
    }

    async fn set_map(&mut self, map: DerpMap) -> Result<(), Error> {
        let names = map
            .regions
            .iter()
            .map(|(id, region)| (*id, region.name.clone()));
        self.regions = Regions(names.collect());
        self.watched.leads_to(&self.found, &self.regions);
        Ok(self.endpoint.set_derp_map(map).await?)
    }

    /// The agent can be reached like this.
    async fn install(&mut self, node: PeerNode) -> Result<(), Error> {
        let key = node.key;
        self.endpoint.upsert_peer(self.found.agent.id, node).await?;
        if self.key != Some(key) {
            if self.key.is_some() {
                self.lose();
            }
            self.key = Some(key);
            self.generation += 1;
        }
        self.set_present(true);
        if self.lost {
            self.ask(BACK);
        }
        Ok(())
    }

    fn set_present(&mut self, present: bool) {
        if self.key.is_none() {
            return;
        }
        let address = agent_address(&self.found.agent.id);
        let next = Some(Target {
            address,
            generation: self.generation,
            present,
        });
        self.target.send_if_modified(|now| {
            let changed = *now != next;
            *now = next;
            changed
        });
    }

    fn lose(&mut self) {
        self.set_present(false);
        if !self.lost {
            self.lost = true;
            self.told_path = None;
            self.report.tell(Event::AgentLost);
            if !self.looking {
                self.look();
            }
        }
    }

    /// Asks the agent through the tunnel whether it is there.
    fn ask(&mut self, limit: Duration) {
        let (endpoint, generation) = (self.endpoint.clone(), self.generation);
        let address = agent_address(&self.found.agent.id);
        self.aside.spawn(async move {
            let answered = endpoint.tsmp_ping(address, limit).await.is_ok();
            Aside::Answer {
                generation,
                answered,
            }
        });
    }

    /// Looks after a while what has become of the workspace.
    fn look(&mut self) {
        self.looking = true;
        let (client, name) = (self.client.clone(), self.name.clone());
        self.aside.spawn(async move {
            tokio::time::sleep(LOOK).await;
            let found = find::find(&client, &name).await;
            match found {
                Ok(found) => Aside::Look(Some(Box::new(found))),
                Err(Error::UnknownWorkspace(_)) => Aside::Deleted,
                Err(error) => {
                    tracing::debug!(%error, "looking");
                    Aside::Look(None)
                }
            }
        });
    }

    async fn judge(&mut self, found: Aside) -> Result<(), Error> {
        match found {
            Aside::Answer { generation, .. } if generation != self.generation => {}
            Aside::Answer { answered: true, .. } => {
                self.set_present(true);
                if self.lost {
                    self.lost = false;
                    self.report.tell(Event::AgentBack);
                }
            }
            Aside::Answer {
                answered: false, ..
            } => {
                let present = self.target.borrow().as_ref().is_some_and(|now| now.present);
                match present {
                    true if self.lost => self.ask(BACK),
                    true => {}
                    false => self.lose(),
                }
            }
            Aside::Look(_) | Aside::Deleted if !self.lost => self.looking = false,
            Aside::Deleted => {
                self.stopped.send_replace(true);
                self.look();
            }
            Aside::Look(found) => {
                let stopped =
                    |found: &Found| found.workspace.latest_build.transition != Transition::Start;
                if found.as_deref().is_some_and(stopped) {
                    self.stopped.send_replace(true);
                }
                if let Some(found) = found
                    && found.workspace.latest_build.transition == Transition::Start
                    && found.agent.status == AgentStatus::Connected
                    && (self.over || found.agent.id != self.found.agent.id)
                {
                    self.follow(*found).await?;
                }
                self.look();
            }
        }
        Ok(())
    }

    /// Turns to the agent of a rebuilt workspace.
    async fn follow(&mut self, found: Found) -> Result<(), Error> {
        tracing::debug!(agent = %found.agent.id, "following the workspace to its agent");
        let (url, access) = (self.client.url(), self.client.access().clone());
        let next = Coordination::start(url, access, found.agent.id, self.node.subscribe());
        let last = std::mem::replace(&mut self.coordination, next);
        tokio::spawn(last.disconnect());
        self.endpoint.remove_peer(self.found.agent.id).await?;
        self.over = false;
        self.found = found;
        self.watched.leads_to(&self.found, &self.regions);
        self.key = None;
        self.target.send_replace(None);
        Ok(())
    }

    fn note(&mut self, event: Packets) {
        match event {
            Packets::Path { peer, state } if peer == self.found.agent.id => {
                self.path = match state {
                    PathState::Direct(address) => Some(Path::Direct(address)),
                    PathState::Relayed(region, _) => Some(Path::Relayed(self.regions.name(region))),
                    PathState::None => None,
                };
                self.settled_at = Some(Instant::now() + SETTLED);
            }
            Packets::Path { .. } => {}
            Packets::Relay { region, connected } => tracing::debug!(region, connected, "relay"),
            Packets::Warning(text) => tracing::warn!("{text}"),
        }
    }

    fn tell_path(&mut self) {
        self.settled_at = None;
        let path = match self.neighbour.borrow_and_update().is_some() {
            true => Some(Told::SameHost),
            false => self.path.clone().map(Told::Tunnel),
        };
        if path.is_some() && self.told_path != path {
            self.told_path = path.clone();
            self.report.tell(match path {
                Some(Told::Tunnel(path)) => Event::Path(path),
                _ => Event::SameHost,
            });
        }
    }
}
