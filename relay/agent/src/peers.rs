//! Who may use the tunnel. A peer whose control connection broke may still be in use, so it is
//! kept until its tunnel has been silent for long.

use std::collections::HashSet;
use std::time::Duration;

use relay_tunnel::Error;
use relay_tunnel::endpoint::{Endpoint, PeerNode};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

/// A lost peer goes when its last handshake is older than this.
const KEEP_LOST: Duration = Duration::from_secs(15 * 60);
/// How often lost peers are looked at.
const LOOK: Duration = Duration::from_secs(60);

/// The peers that are installed.
pub(crate) struct Peers {
    tunnel: Endpoint,
    present: HashSet<Uuid>,
    lost: HashSet<Uuid>,
    next_look: Instant,
}

impl Peers {
    pub(crate) fn new(tunnel: Endpoint) -> Peers {
        Peers {
            tunnel,
            present: HashSet::new(),
            lost: HashSet::new(),
            next_look: Instant::now(),
        }
    }

    /// Lets a peer in, or takes note of what changed about it.
    pub(crate) async fn upsert(&mut self, id: Uuid, node: PeerNode) -> Result<(), Error> {
        self.lost.remove(&id);
        self.present.insert(id);
        self.tunnel.upsert_peer(id, node).await
    }

    /// The peer's control connection broke.
    pub(crate) fn lost(&mut self, id: Uuid) {
        if self.present.remove(&id) {
            if self.lost.is_empty() {
                self.next_look = Instant::now() + LOOK;
            }
            self.lost.insert(id);
        }
    }

    /// Our own control connection broke: who is still there will be named again.
    pub(crate) fn all_lost(&mut self) {
        for id in self.present.clone() {
            self.lost(id);
        }
    }

    /// The peer took its leave.
    pub(crate) async fn gone(&mut self, id: Uuid) -> Result<(), Error> {
        let known = self.present.remove(&id) | self.lost.remove(&id);
        if known {
            self.tunnel.remove_peer(id).await?;
        }
        Ok(())
    }

    /// Comes back when lost peers should be looked at.
    pub(crate) async fn wait_for_expiry(&self) {
        if self.lost.is_empty() {
            return std::future::pending().await;
        }
        sleep_until(self.next_look).await;
    }

    /// Removes lost peers whose tunnel is silent.
    pub(crate) async fn remove_expired(&mut self) -> Result<(), Error> {
        self.next_look = Instant::now() + LOOK;
        for id in self.lost.clone() {
            let age = match self.tunnel.stats(id).await {
                Ok(stats) => stats.handshake_age,
                Err(Error::UnknownPeer) => None,
                Err(error) => return Err(error),
            };
            if age.is_none_or(|age| age > KEEP_LOST) {
                self.gone(id).await?;
            }
        }
        Ok(())
    }
}
