//! What all requests and sessions of a running server share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use relay_wire::derp_map::DerpMap;
use tokio::sync::{mpsc, watch};
use url::Url;
use uuid::Uuid;

use crate::api::limits::Limits;
use crate::apps::settings::Settings;
use crate::derp::Relay;
use crate::dialer::Dial;
use crate::hub::Hub;
use crate::metrics::Counts;
use crate::proxy::Proxy;
use crate::resume::ResumeKey;
use crate::store::Store;
use crate::traffic::Traffic;
use crate::usage::Usage;

/// Handle of the shared state.
pub(crate) type Shared = Arc<State>;

/// The shared state.
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) access_url: Url,
    pub(crate) deployment_id: String,
    pub(crate) map: DerpMap,
    /// The deployment's choices about apps.
    pub(crate) apps: Arc<Settings>,
    /// What the proxy keeps between requests.
    pub(crate) proxy: Proxy,
    /// Bytes that the proxy moved lately.
    pub(crate) traffic: Traffic,
    /// Who uses which apps.
    pub(crate) usage: Arc<Usage>,
    pub(crate) block_direct: bool,
    pub(crate) force_websockets: bool,
    pub(crate) hub: Arc<Hub>,
    /// The way into workspaces.
    pub(crate) dialer: Arc<dyn Dial>,
    pub(crate) relay: Arc<Relay>,
    pub(crate) resume: ResumeKey,
    /// How many requests to the API are answered.
    pub(crate) limits: Limits,
    /// What is counted for Prometheus.
    pub(crate) counts: Arc<Counts>,
    /// Agents with a session.
    pub(crate) presence: Presence,
    /// Agents with clients, by the agent.
    pub(crate) clients: Presence,
    /// Becomes true when the server stops.
    pub(crate) stopping: watch::Receiver<bool>,
    /// Held by every session; the server waits for them when it stops.
    pub(crate) alive: mpsc::Sender<()>,
    /// Changes when workspaces or agents may have changed.
    pub(crate) changes: watch::Sender<u64>,
}

impl State {
    /// Tells everybody who watches workspaces to look again.
    pub(crate) fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Comes back when the server stops.
    pub(crate) async fn stopped(&self) {
        let mut stopping = self.stopping.clone();
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }
}

/// Which agents have sessions now, their own or their clients'.
#[derive(Default)]
pub(crate) struct Presence(Mutex<HashMap<Uuid, Live>>);

struct Live {
    sessions: usize,
    /// Sessions end when it becomes true.
    evict: watch::Sender<bool>,
}

impl Presence {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Live>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a session; the receiver tells when it has to end.
    pub(crate) fn enter(&self, agent: Uuid) -> watch::Receiver<bool> {
        let mut live = self.lock();
        let entry = live.entry(agent).or_insert_with(|| Live {
            sessions: 0,
            evict: watch::channel(false).0,
        });
        entry.sessions += 1;
        entry.evict.subscribe()
    }

    /// Notes the end of a session; true when it was the agent's last one.
    pub(crate) fn leave(&self, agent: Uuid) -> bool {
        let mut live = self.lock();
        let Some(entry) = live.get_mut(&agent) else {
            return true;
        };
        entry.sessions -= 1;
        let last = entry.sessions == 0;
        if last {
            live.remove(&agent);
        }
        last
    }

    /// How many agents have sessions.
    pub(crate) fn agents(&self) -> usize {
        self.lock().len()
    }

    /// How many sessions there are.
    pub(crate) fn sessions(&self) -> usize {
        self.lock().values().map(|live| live.sessions).sum()
    }

    /// Ends the sessions of all agents that are not among these.
    pub(crate) fn keep_only(&self, agents: &[Uuid]) {
        for (id, live) in self.lock().iter() {
            if !agents.contains(id) {
                live.evict.send_replace(true);
            }
        }
    }

    /// When the agent was last connected: now, if it is.
    pub(crate) fn last_seen(&self, agent: Uuid) -> Option<DateTime<Utc>> {
        self.lock().contains_key(&agent).then(crate::store::now)
    }
}
