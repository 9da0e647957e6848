//! Who may use the tunnel. A peer whose control connection broke may still be in use, so it is
//! kept until its tunnel has been silent for long. One whose own end closed that connection was
//! likely killed: it is asked through the tunnel, and goes when it does not answer.

mod roll;

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::time::Duration;

use relay_tunnel::Error;
use relay_tunnel::endpoint::{Endpoint, PeerNode};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::same_host::Neighbours;
use roll::{Roll, Round};

/// How long a peer may take to answer whose control connection was closed.
const ANSWER: Duration = Duration::from_secs(20);

/// The peers that are installed.
pub(crate) struct Peers {
    tunnel: Endpoint,
    neighbours: Neighbours,
    roll: Roll,
    addresses: HashMap<Uuid, Ipv6Addr>,
    /// Each comes back with whether the peer has answered.
    asked: JoinSet<(Round, bool)>,
}

/// Something to be done by [`Peers::handle`].
pub(crate) enum Due {
    /// Lost peers should be looked at.
    Look,
    /// A peer has answered, or not.
    Answer(Round, bool),
}

impl Peers {
    pub(crate) fn new(tunnel: Endpoint, neighbours: Neighbours) -> Peers {
        Peers {
            tunnel,
            neighbours,
            roll: Roll::default(),
            addresses: HashMap::new(),
            asked: JoinSet::new(),
        }
    }

    /// Lets a peer in, or takes note of what changed about it.
    pub(crate) async fn upsert(&mut self, id: Uuid, node: PeerNode) -> Result<(), Error> {
        self.roll.present(id);
        if let Some(address) = node.addresses.first() {
            self.addresses.insert(id, *address);
        }
        self.tunnel.upsert_peer(id, node).await
    }

    /// The peer's control connection broke; whether its own end closed it.
    pub(crate) fn lost(&mut self, id: Uuid, closed: bool) {
        let round = self.roll.lost(id, closed, Instant::now().into_std());
        if let (Some(round), Some(address)) = (round, self.addresses.get(&id).copied()) {
            tracing::debug!(peer = %id, "a peer closed its control connection; asking it");
            let tunnel = self.tunnel.clone();
            self.asked.spawn(async move {
                let answered = tunnel.tsmp_ping(address, ANSWER).await;
                (round, !matches!(answered, Err(Error::NoAnswer(_))))
            });
        }
    }

    /// Our own control connection broke: who is still there will be named again.
    pub(crate) fn all_lost(&mut self) {
        self.roll.all_lost(Instant::now().into_std());
    }

    /// The peer took its leave.
    pub(crate) async fn gone(&mut self, id: Uuid) -> Result<(), Error> {
        if let Some(address) = self.addresses.remove(&id) {
            self.neighbours.end(address);
        }
        if self.roll.gone(id) {
            self.tunnel.remove_peer(id).await?;
        }
        Ok(())
    }

    /// Waits for something to be done. Nothing is lost when it is not waited for to the end.
    pub(crate) async fn due(&mut self) -> Due {
        let look = async {
            match self.roll.poll_timeout() {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = look => Due::Look,
            Some(Ok((round, answered))) = self.asked.join_next() => Due::Answer(round, answered),
        }
    }

    /// Does it.
    pub(crate) async fn handle(&mut self, due: Due) -> Result<(), Error> {
        match due {
            Due::Look => self.remove_expired().await,
            Due::Answer(round, answered) => match self.roll.answered(round, answered) {
                Some(id) => {
                    tracing::debug!(peer = %id, "a peer is gone: it does not answer");
                    self.gone(id).await
                }
                None => Ok(()),
            },
        }
    }

    /// Removes lost peers whose tunnel is silent.
    async fn remove_expired(&mut self) -> Result<(), Error> {
        for id in self.roll.look(Instant::now().into_std()) {
            let age = match self.tunnel.stats(id).await {
                Ok(stats) => stats.handshake_age,
                Err(Error::UnknownPeer) => None,
                Err(error) => return Err(error),
            };
            if roll::is_over(age) {
                self.gone(id).await?;
            }
        }
        Ok(())
    }
}

/// Who hands connections over does so by the right to use the tunnel.
impl Drop for Peers {
    fn drop(&mut self) {
        self.neighbours.end_all();
    }
}
