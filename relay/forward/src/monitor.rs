//! A running tunnel, as somebody else of this machine may ask about it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use relay_tunnel::endpoint::{Endpoint, StackChoice};
use uuid::Uuid;

use crate::find::Found;
use crate::ping::Route;
use crate::same_host::Neighbour;
use crate::tunnel::Regions;

/// How long the agent may take to answer the ping that measures the way.
const PING: Duration = Duration::from_secs(1);

/// Sees the tunnel that was opened with it, for as long as that is open. Clones see the same.
#[derive(Clone, Debug, Default)]
pub struct Monitor(Arc<Mutex<Option<Seen>>>);

#[derive(Clone, Debug)]
struct Seen {
    endpoint: Endpoint,
    regions: Regions,
    neighbour: Neighbour,
    owner: String,
    workspace: String,
    agent: String,
    id: Uuid,
}

/// The tunnel at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The workspace's owner.
    pub owner: String,
    /// The workspace.
    pub workspace: String,
    /// Its agent.
    pub agent: String,
    /// How the agent is reached.
    pub route: Route,
    /// Whether the agent runs on this machine and connections are handed over to it.
    pub same_host: bool,
    /// The round trip to it; none when it does not answer now.
    pub rtt: Option<Duration>,
    /// The largest packet inside the tunnel, bytes.
    pub mtu: u16,
    /// Age of the keys in use, if there are any.
    pub handshake_age: Option<Duration>,
    /// Bytes of packets to the agent.
    pub sent: u64,
    /// Bytes of packets from the agent.
    pub received: u64,
    /// The TCP/IP stack in use.
    pub stack: StackChoice,
}

impl Monitor {
    fn seen(&self) -> MutexGuard<'_, Option<Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has it see a tunnel; until the guard is dropped.
    pub(crate) fn watch(&self, endpoint: &Endpoint, neighbour: &Neighbour) -> Watched {
        Watched {
            monitor: self.clone(),
            neighbour: neighbour.clone(),
            endpoint: endpoint.clone(),
        }
    }

    /// What is seen now; none while there is no tunnel.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        let Seen {
            endpoint,
            regions,
            neighbour,
            owner,
            workspace,
            agent,
            id,
        } = self.seen().clone()?;
        let pong = tokio::time::timeout(PING, endpoint.disco_ping(id)).await;
        let stats = endpoint.stats(id).await.ok()?;
        let state = *endpoint.path(id).borrow();
        Some(Snapshot {
            owner,
            workspace,
            agent,
            route: Route::of(state, &regions),
            same_host: neighbour.is_here(),
            rtt: pong.ok().and_then(Result::ok).map(|pong| pong.rtt),
            mtu: stats.mtu,
            handshake_age: stats.handshake_age,
            sent: stats.sent,
            received: stats.received,
            stack: endpoint.stack(),
        })
    }
}

/// A tunnel that a monitor sees.
pub(crate) struct Watched {
    monitor: Monitor,
    neighbour: Neighbour,
    endpoint: Endpoint,
}

impl Watched {
    /// Where the tunnel leads from now on.
    pub(crate) fn leads_to(&self, found: &Found, regions: &Regions) {
        let seen = Seen {
            endpoint: self.endpoint.clone(),
            regions: regions.clone(),
            neighbour: self.neighbour.clone(),
            owner: found.workspace.owner_name.clone(),
            workspace: found.workspace.name.clone(),
            agent: found.agent.name.clone(),
            id: found.agent.id,
        };
        *self.monitor.seen() = Some(seen);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // What it holds would keep the tunnel open.
        *self.monitor.seen() = None;
    }
}
