//! The workspace's side of the tunnel: joins the control plane, and serves the ports of this
//! machine's loopback to the peers that the control plane names.

mod api;
mod checks;
mod error;
pub mod health;
pub mod listening;
mod metrics;
mod peers;
mod same_host;
mod speedtest;
pub mod ssh;
mod streams;
mod tcp;
mod traffic;
mod udp;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use relay_control::agent::{AgentSession, App, Event, Identity};
use relay_control::rest::Access;
use relay_engine::Engine;
use relay_tunnel::dial::TlsOptions;
use relay_tunnel::endpoint::{self, Endpoint, EndpointConfig, EndpointEvents, StackChoice};
use relay_tunnel::path::PathState;
use relay_tunnel::stack::{NetHelper, Offloads};
use relay_wire::addr::{agent_address, service_address};
use relay_wire::keys::{DiscoPrivate, NodePrivate};
use tokio::sync::watch;
use tokio::task::JoinSet;
use url::Url;

use api::Api;
pub use error::Error;
use peers::Peers;
use same_host::Neighbours;
use traffic::Traffic;

/// The protocol wants a version with a `v`.
const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
/// After so long without an answer from the control plane, that is said.
const SILENCE: Duration = Duration::from_secs(3);

/// What an agent is started with.
#[derive(Debug)]
pub struct Config {
    /// The control plane.
    pub url: Url,
    /// The agent's token, extra headers and TLS settings.
    pub access: Access,
    /// Made before the process had threads.
    pub helper: NetHelper,
    /// Whether direct paths may be used, if the control plane allows them, too.
    pub direct: bool,
    /// The TCP/IP stack.
    pub stack: StackChoice,
    /// The largest packet inside the tunnel, bytes; larger ones are proven on the path first.
    pub max_mtu: u16,
    /// Which segmentation offloads may be used.
    pub offloads: Offloads,
    /// How long to look for an answer to a small message before sleeping.
    pub busy_poll: Duration,
    /// How bytes are moved.
    pub engine: Engine,
    /// What the SSH server does not do.
    pub ssh: ssh::Options,
    /// Loops that share the clients among them.
    pub loops: u8,
    /// Where figures for Prometheus are served, if they are.
    pub prometheus: Option<SocketAddr>,
}

/// Serves until `shutdown` comes back, then takes leave in order.
///
/// # Errors
/// When the control plane refuses the agent at its first call, or no tunnel can be opened here.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let (nodes, own_node) = watch::channel(None);
    let access = config.access.clone();
    let mut session = AgentSession::start(&config.url, access, VERSION, own_node);
    let outcome = tokio::select! {
        Err(error) = serve(config, &mut session, nodes) => Err(error),
        () = shutdown => Ok(()),
    };
    session.shutdown().await;
    outcome
}

type OwnNode = watch::Sender<Option<endpoint::LocalNode>>;

async fn serve(config: Config, session: &mut AgentSession, nodes: OwnNode) -> Result<(), Error> {
    // An address that is taken is told at once.
    let figures = match config.prometheus {
        Some(address) => Some(relay_metrics::open(address).await?),
        None => None,
    };
    let own_port = figures.as_ref().and_then(|figures| figures.address());
    let identity = join(&config.url, session).await?;
    let name = format!(
        "{}/{}.{}",
        identity.owner, identity.workspace, identity.name
    );
    let engine = config.engine;
    let tls = TlsOptions {
        // Apps are asked as by anybody, without the certificate that is for the control plane.
        cert_file: None,
        key_file: None,
        ..config.access.tls.clone()
    };
    let ssh = Arc::new(ssh::Server::new(config.ssh, (&identity).into())?);
    let (apps, checked) = watch::channel(identity.apps.clone());
    let (tunnel, events) = open(config, &identity)?;
    tunnel.set_derp_map(identity.derp_map).await?;

    // Everything below ends with this function.
    let mut tasks = JoinSet::new();
    tasks.spawn(announce(tunnel.clone(), nodes, name));
    tasks.spawn(report(events));
    tasks.spawn(checks::run(checked, tls, session.healths()));
    let traffic = Arc::new(Traffic::default());
    let counted = Arc::clone(&traffic);
    session.report(Arc::new(move || counted.report()));
    let streams = streams::Streams::new(ssh.options(), engine, Arc::clone(&traffic));
    let neighbours = Neighbours::default();
    let service = tcp::Service {
        engine,
        api: Arc::new(Api::new(streams, own_port.map(|address| address.port()))),
        ssh,
        speed_tests: Default::default(),
        traffic: Arc::clone(&traffic),
        neighbours: neighbours.clone(),
        open: tcp::Open::default(),
    };
    for (runtime, incoming) in tunnel.incoming_by_loop() {
        tasks.spawn_on(tcp::serve(incoming, service.clone()), &runtime);
    }
    let connected = Arc::new(AtomicBool::new(true));
    if let Some(figures) = figures {
        let sources = metrics::Sources {
            tunnel: tunnel.clone(),
            traffic: Arc::clone(&traffic),
            connected: Arc::clone(&connected),
        };
        tasks.spawn(figures.serve(Arc::new(move |page| sources.collect(page))));
    }
    let answers = tunnel.clone();
    tasks.spawn(udp::serve(
        tunnel.serve_datagrams(),
        traffic,
        move |datagram| {
            let tunnel = answers.clone();
            async move { tunnel.send_datagram(datagram).await }
        },
    ));

    let mut peers = Peers::new(tunnel.clone(), neighbours);
    loop {
        tokio::select! {
            event = session.event() => {
                let event = event.ok_or(Error::Ended("session with the control plane"))?;
                match &event {
                    Event::Connected(_) => connected.store(true, Ordering::Relaxed),
                    Event::Disconnected(_) => connected.store(false, Ordering::Relaxed),
                    _ => {}
                }
                if let Some(ready) = handle(event, &tunnel, &mut peers, &apps).await? {
                    session.ready(ready);
                }
            }
            due = peers.due() => peers.handle(due).await?,
            _ = tasks.join_next() => return Err(Error::Ended("tunnel")),
        }
    }
}

/// Waits until the control plane says who this agent is.
async fn join(url: &Url, session: &mut AgentSession) -> Result<Identity, Error> {
    let mut silence = std::pin::pin!(tokio::time::sleep(SILENCE));
    let mut said = false;
    loop {
        let event = tokio::select! {
            event = session.event() => event,
            () = &mut silence, if !said => {
                said = true;
                tracing::warn!("{url} does not answer; trying again until it does");
                continue;
            }
        };
        match event {
            Some(Event::Connected(identity)) => return Ok(*identity),
            Some(Event::Refused(relay_control::Error::Unauthorized { url, .. })) => {
                return Err(Error::Token { url });
            }
            Some(Event::Refused(error)) => return Err(Error::Refused(error)),
            Some(_) => {}
            None => return Err(Error::Ended("session with the control plane")),
        }
    }
}

fn open(config: Config, identity: &Identity) -> Result<(Endpoint, EndpointEvents), Error> {
    let mut rng = rand::rng();
    let (node, disco) = (
        NodePrivate::generate(&mut rng),
        DiscoPrivate::generate(&mut rng),
    );
    let id = identity.agent;
    let addresses = vec![agent_address(&id), service_address(&id)];
    let endpoint = EndpointConfig {
        id,
        direct: config.direct && !identity.disable_direct,
        force_websockets: identity.force_websockets,
        stack: config.stack,
        max_mtu: config.max_mtu,
        offloads: config.offloads,
        busy_poll: config.busy_poll,
        loops: config.loops,
        tls: config.access.tls,
        ..EndpointConfig::new(node, disco, addresses)
    };
    Ok(endpoint::start(endpoint, config.helper)?)
}

/// Handles an event; gives the peer that may now be told to start.
async fn handle(
    event: Event,
    tunnel: &Endpoint,
    peers: &mut Peers,
    apps: &watch::Sender<Vec<App>>,
) -> Result<Option<uuid::Uuid>, Error> {
    match event {
        Event::Connected(identity) => {
            tracing::info!("the control plane is back");
            tunnel.set_derp_map(identity.derp_map).await?;
            peers.all_lost();
            let list = identity.apps;
            apps.send_if_modified(|now| {
                let changed = *now != list;
                *now = list;
                changed
            });
        }
        Event::DerpMap(map) => tunnel.set_derp_map(map).await?,
        Event::Peer(id, node) => {
            peers.upsert(id, node).await?;
            return Ok(Some(id));
        }
        Event::PeerLost(id, closed) => peers.lost(id, closed),
        Event::PeerGone(id) => peers.gone(id).await?,
        Event::Disconnected(reason) => {
            tracing::info!(
                reason,
                "the control plane is away; connections through the tunnel stay"
            );
        }
        Event::Refused(relay_control::Error::Unauthorized { url, .. }) => tracing::warn!(
            url,
            "this agent's token is not accepted any more; was the workspace rebuilt or deleted? \
             Start the agent with the new token"
        ),
        Event::Refused(error) => tracing::warn!(%error, "the control plane refuses this agent"),
    }
    Ok(None)
}

/// Hands this end's own node on whenever it changes, and says once that all is up.
async fn announce(tunnel: Endpoint, nodes: OwnNode, name: String) {
    let mut own = tunnel.node();
    let mut said = false;
    loop {
        let node = own.borrow_and_update().clone();
        if node.is_some() && !said {
            said = true;
            tracing::info!("agent {name} is ready");
        }
        nodes.send_replace(node);
        if own.changed().await.is_err() {
            return;
        }
    }
}

async fn report(mut events: EndpointEvents) {
    while let Some(event) = events.recv().await {
        match event {
            endpoint::Event::Path { state, .. } => match state {
                PathState::Direct(address) => tracing::debug!("a peer's path is direct, {address}"),
                PathState::None => tracing::debug!("a peer has no path"),
                relayed => tracing::debug!("a peer's path is relayed, {relayed:?}"),
            },
            endpoint::Event::Relay { region, connected } => {
                tracing::debug!(region, connected, "home relay");
            }
            endpoint::Event::Warning(text) => tracing::warn!("{text}"),
        }
    }
}
