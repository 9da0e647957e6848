//! An agent's session with the control plane: manifest, life cycle, coordination, all over one
//! connection that is opened again whenever it breaks (coder_wire §14).

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use relay_tunnel::endpoint::{LocalNode, PeerNode};
use relay_wire::derp_map::DerpMap;
use relay_wire::proto::agent::{
    self, BatchUpdateAppHealthRequest, BatchUpdateAppHealthResponse, GetManifestRequest, Lifecycle,
    Manifest, Startup, UpdateLifecycleRequest, UpdateStartupRequest, UpdateStatsRequest,
    UpdateStatsResponse, WorkspaceApp, batch_update_app_health_request::HealthUpdate,
    lifecycle::State,
};
use relay_wire::proto::tailnet::{self, CoordinateResponse, StreamDerpMapsRequest};
use relay_wire::proto::{id_bytes, parse_id};
use relay_wire::rest::TOKEN_COOKIE;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use url::Url;
use uuid::Uuid;

pub use relay_wire::proto::agent::{AppHealth, Stats};

use crate::Error;
use crate::coordinate::{
    Backoff, PeerChange, changes, disconnect, next_node, ready_for_handshake, update_self,
};
use crate::http::{Access, Http};
use crate::rpc::{Mux, RpcError};
use crate::session::{Broken, End, at, lost, pause, relays, stopped};

const OPEN_WITHIN: Duration = Duration::from_secs(15);
const CALL_WITHIN: Duration = Duration::from_secs(15);
const GOODBYE: Duration = Duration::from_secs(1);
/// Between tries while the control plane refuses this agent.
const REFUSED: Duration = Duration::from_secs(10);
/// Between reports where the server names no interval.
const STATS_EVERY: Duration = Duration::from_secs(300);

/// What the agent is, as the control plane says.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its id.
    pub agent: Uuid,
    /// Its name.
    pub name: String,
    /// The workspace's name.
    pub workspace: String,
    /// The workspace owner's user name.
    pub owner: String,
    /// The workspace's id; nil when the control plane does not say it.
    pub workspace_id: Uuid,
    /// Where programs are started, with `~` and variables not yet expanded; may be empty.
    pub directory: String,
    /// Variables for programs in the workspace.
    pub environment: BTreeMap<String, String>,
    /// The address of a port in a browser, with `{{port}}` in its place; may be empty.
    pub port_template: String,
    /// The relays, already at the deployment's own address where they are part of it.
    pub derp_map: DerpMap,
    /// No direct connections.
    pub disable_direct: bool,
    /// Relays by WebSocket only.
    pub force_websockets: bool,
    /// The apps whose health is to be watched.
    pub apps: Vec<App>,
}

/// An app of the workspace, as far as the agent has to do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// Its id.
    pub id: Uuid,
    /// What is asked to see how it is; may be empty.
    pub check_url: String,
    /// How often.
    pub interval: Duration,
    /// Failures in a row that are borne.
    pub threshold: u32,
}

/// What is known of apps' health.
pub type Healths = Vec<(Uuid, AppHealth)>;

/// What happens to an agent.
#[derive(Debug)]
pub enum Event {
    /// The session is open; the identity may be another one than before.
    Connected(Box<Identity>),
    /// The relays changed.
    DerpMap(DerpMap),
    /// A peer is to be let in; answer with [`AgentSession::ready`] when that is done.
    Peer(Uuid, PeerNode),
    /// A peer's control connection broke; it may still be in use. Whether the peer's own end closed
    /// it, as when its process was killed.
    PeerLost(Uuid, bool),
    /// A peer has gone.
    PeerGone(Uuid),
    /// The session broke; it is being opened again.
    Disconnected(String),
    /// The control plane refuses this agent; it is asked again, in case it changes its mind.
    Refused(Error),
}

/// Gives what the tunnels carried since it was asked last.
pub type Statistics = Arc<dyn Fn() -> Stats + Send + Sync>;

/// A running session; it ends when dropped, in order by [`AgentSession::shutdown`].
pub struct AgentSession {
    events: mpsc::Receiver<Event>,
    ready: mpsc::UnboundedSender<Uuid>,
    healths: watch::Sender<Healths>,
    statistics: Arc<OnceLock<Statistics>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Where the endpoint's own node appears, once there is an endpoint.
pub type Nodes = watch::Receiver<Option<LocalNode>>;

impl AgentSession {
    /// Starts with the deployment at `url`; `access` has the agent's token, `version` starts with
    /// a `v`. Nodes come from whatever `nodes` holds at the time.
    pub fn start(url: &Url, access: Access, version: &str, nodes: Nodes) -> Self {
        let (sender, events) = mpsc::channel(64);
        let (ready, readies) = mpsc::unbounded_channel();
        let (healths, told_healths) = watch::channel(Healths::new());
        let (stop, stopped) = watch::channel(false);
        let statistics = Arc::new(OnceLock::new());
        let run = Run {
            http: Http::new(url, access),
            version: version.to_owned(),
            nodes,
            events: sender,
            readies,
            healths: told_healths,
            statistics: Arc::clone(&statistics),
            stop: stopped,
        };
        Self {
            events,
            ready,
            healths,
            statistics,
            stop,
            task: tokio::spawn(run.run()),
        }
    }

    /// The next event; `None` when all is over. Cancel safe.
    pub async fn event(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Tells a peer that it has been let in.
    pub fn ready(&self, peer: Uuid) {
        let _ = self.ready.send(peer);
    }

    /// Where the health of apps is put; the control plane hears of every change, and of all when
    /// the session was opened anew.
    pub fn healths(&self) -> watch::Sender<Healths> {
        self.healths.clone()
    }

    /// Whom to ask for statistics, as often as the control plane wants them. The first one counts.
    pub fn report(&self, statistics: Statistics) {
        let _ = self.statistics.set(statistics);
    }

    /// Says goodbye and ends; takes about a second at most.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        self.events.close();
        let _ = timeout(GOODBYE, &mut self.task).await;
    }
}

impl std::fmt::Debug for AgentSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentSession").finish_non_exhaustive()
    }
}

impl Drop for AgentSession {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Run {
    http: Http,
    version: String,
    nodes: Nodes,
    events: mpsc::Sender<Event>,
    readies: mpsc::UnboundedReceiver<Uuid>,
    healths: watch::Receiver<Healths>,
    statistics: Arc<OnceLock<Statistics>>,
    stop: watch::Receiver<bool>,
}

impl Run {
    async fn run(mut self) {
        let mut backoff = Backoff::new();
        let mut refused = false;
        loop {
            let mut stop = self.stop.clone();
            let opened = tokio::select! {
                opened = timeout(OPEN_WITHIN, self.open()) => opened,
                () = stopped(&mut stop) => return,
            };
            match opened {
                Ok(Ok(mux)) => {
                    refused = false;
                    let Some(reason) = lost(self.session(&mux, &mut backoff).await) else {
                        return;
                    };
                    drop(self.tell(Event::Disconnected(reason)).await);
                }
                Ok(Err(error)) if error.is_temporary() => {
                    tracing::debug!(%error, "control connection");
                }
                Ok(Err(error)) => {
                    // Said once; asking again soon would change nothing.
                    if !std::mem::replace(&mut refused, true) {
                        drop(self.tell(Event::Refused(error)).await);
                    }
                }
                Err(_) => tracing::debug!("the control plane takes too long to answer"),
            }
            let wait = if refused {
                REFUSED
            } else {
                backoff.next(rand::random())
            };
            if !pause(wait, &mut stop, &self.events).await {
                return;
            }
        }
    }

    async fn open(&self) -> Result<Mux, Error> {
        // The real server takes an agent's token from the cookie, ours and others from the header.
        let cookie = format!("{TOKEN_COOKIE}={}", self.http.access().token);
        let path = "/api/v2/workspaceagents/me/rpc?version=2.0&role=agent";
        Ok(Mux::client(self.http.websocket(path, Some(cookie)).await?))
    }

    async fn session(&mut self, mux: &Mux, backoff: &mut Backoff) -> Result<End, Broken> {
        let manifest: Manifest =
            call(mux.unary(agent::GET_MANIFEST, &GetManifestRequest {})).await?;
        let Some(identity) = self.identity(manifest) else {
            return Ok(End::Lost("the manifest has no agent id".to_owned()));
        };
        backoff.reset();
        self.tell(Event::Connected(Box::new(identity))).await?;
        let startup = Startup {
            version: self.version.clone(),
            ..Startup::default()
        };
        let request = UpdateStartupRequest {
            startup: Some(startup),
        };
        let _: Startup = call(mux.unary(agent::UPDATE_STARTUP, &request)).await?;
        lifecycle(mux, State::Starting).await?;
        lifecycle(mux, State::Ready).await?;
        let end = self.coordinate(mux).await?;
        if matches!(end, End::Stopped) {
            let goodbye = async {
                lifecycle(mux, State::ShuttingDown).await?;
                lifecycle(mux, State::Off).await
            };
            let _ = timeout(GOODBYE / 2, goodbye).await;
            mux.shutdown();
            let _ = timeout(GOODBYE / 4, mux.closed()).await;
        }
        Ok(end)
    }

    fn identity(&self, manifest: Manifest) -> Option<Identity> {
        let told = manifest.derp_map.unwrap_or_default();
        Some(Identity {
            agent: parse_id(&manifest.agent_id)?,
            name: manifest.agent_name,
            workspace: manifest.workspace_name,
            owner: manifest.owner_username,
            workspace_id: parse_id(&manifest.workspace_id).unwrap_or_default(),
            directory: manifest.directory,
            environment: manifest.environment_variables,
            port_template: manifest.vs_code_port_proxy_uri,
            derp_map: relays(told, self.http.url()),
            disable_direct: manifest.disable_direct_connections,
            force_websockets: manifest.derp_force_websockets,
            apps: manifest.apps.into_iter().filter_map(checked).collect(),
        })
    }

    async fn coordinate(&mut self, mux: &Mux) -> Result<End, Broken> {
        let (mut sender, mut updates) = mux.bidirectional(tailnet::COORDINATE).await?;
        let request = StreamDerpMapsRequest {};
        let mut maps = mux
            .server_stream(tailnet::STREAM_DERP_MAPS, &request)
            .await?;
        let mut told = None;
        let mut stats_at = Some(Instant::now());
        // The first report is empty: it asks how often to send others.
        let mut asked = false;
        let mut stop = self.stop.clone();
        self.healths.mark_changed();
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => {
                    let _ = timeout(GOODBYE / 4, sender.send(&disconnect())).await;
                    return Ok(End::Stopped);
                }
                node = next_node(&mut self.nodes, &mut told) => {
                    sender.send(&update_self(&node)).await?;
                }
                peer = self.readies.recv() => match peer {
                    Some(peer) => sender.send(&ready_for_handshake(peer)).await?,
                    None => return Err(Broken::Closed),
                },
                update = updates.message::<CoordinateResponse>() => match update? {
                    Some(update) => self.handle(&update).await?,
                    None => return Ok(End::Lost("the server ended coordination".to_owned())),
                },
                map = maps.message::<tailnet::DerpMap>() => match map? {
                    Some(map) => self.tell(Event::DerpMap(relays(map, self.http.url()))).await?,
                    None => return Ok(End::Lost("the server ended the relay map".to_owned())),
                },
                Ok(()) = self.healths.changed() => {
                    let healths = self.healths.borrow_and_update().clone();
                    tell_healths(mux, healths).await?;
                }
                () = at(stats_at) => {
                    let told = self.statistics.get().filter(|_| asked).map(|told| told());
                    asked = true;
                    stats_at = Some(Instant::now() + stats(mux, told).await?);
                }
            }
        }
    }

    async fn handle(&self, update: &CoordinateResponse) -> Result<(), Broken> {
        if !update.error.is_empty() {
            tracing::warn!(error = update.error, "the control plane complains");
        }
        for change in changes(update).collect::<Vec<_>>() {
            match change {
                PeerChange::Node(id, node) => self.tell(Event::Peer(id, node)).await?,
                PeerChange::Lost(id, closed) => self.tell(Event::PeerLost(id, closed)).await?,
                PeerChange::Gone(id) => self.tell(Event::PeerGone(id)).await?,
                // Clients never say so.
                PeerChange::Ready(_) => {}
            }
        }
        Ok(())
    }

    async fn tell(&self, event: Event) -> Result<(), Broken> {
        self.events.send(event).await.map_err(|_| Broken::Closed)
    }
}

/// Bounds a unary call: a server that stops answering must not hold an agent for ever.
async fn call<T>(answer: impl Future<Output = Result<T, RpcError>>) -> Result<T, RpcError> {
    timeout(CALL_WITHIN, answer)
        .await
        .unwrap_or(Err(RpcError::Ended))
}

async fn lifecycle(mux: &Mux, state: State) -> Result<(), RpcError> {
    let lifecycle = Lifecycle {
        state: state.into(),
        changed_at: Some(chrono::Utc::now().into()),
    };
    let request = UpdateLifecycleRequest {
        lifecycle: Some(lifecycle),
    };
    let _: Lifecycle = call(mux.unary(agent::UPDATE_LIFECYCLE, &request)).await?;
    Ok(())
}

/// Tells how the apps are.
async fn tell_healths(mux: &Mux, healths: Healths) -> Result<(), RpcError> {
    if healths.is_empty() {
        return Ok(());
    }
    let update = |(id, health): (Uuid, AppHealth)| HealthUpdate {
        id: id_bytes(id),
        health: health.into(),
    };
    let request = BatchUpdateAppHealthRequest {
        updates: healths.into_iter().map(update).collect(),
    };
    let told = call(mux.unary(agent::BATCH_UPDATE_APP_HEALTHS, &request)).await;
    match told {
        Ok(BatchUpdateAppHealthResponse {}) => {}
        Err(RpcError::Refused { code, text }) => {
            tracing::debug!(code, text, "the health of apps is not taken");
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// An app that has a check.
fn checked(app: WorkspaceApp) -> Option<App> {
    let check = app.healthcheck?;
    let interval = check.interval.map(|interval| interval.to_std());
    Some(App {
        id: parse_id(&app.id)?,
        check_url: check.url,
        interval: interval.unwrap_or_default(),
        threshold: u32::try_from(check.threshold).unwrap_or_default(),
    })
}

/// Reports what the tunnels carried and gives the time to the next report.
async fn stats(mux: &Mux, stats: Option<Stats>) -> Result<Duration, RpcError> {
    let request = UpdateStatsRequest { stats };
    let answer: UpdateStatsResponse = call(mux.unary(agent::UPDATE_STATS, &request)).await?;
    let interval = answer
        .report_interval
        .map(|interval| interval.to_std())
        .unwrap_or_default();
    Ok(if interval.is_zero() {
        STATS_EVERY
    } else {
        interval.max(Duration::from_secs(1))
    })
}
