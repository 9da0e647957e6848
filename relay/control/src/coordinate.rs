//! What client and agent share of coordination: reading peer updates, and when to try again.

use std::time::Duration;

use relay_tunnel::endpoint::{LocalNode, PeerNode};
use relay_wire::proto::tailnet::{
    self, CoordinateRequest, CoordinateResponse, coordinate_request, coordinate_response,
};
use relay_wire::proto::{id_bytes, parse_id};
use tokio::sync::watch;
use uuid::Uuid;

/// What became known of a peer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PeerChange {
    /// How to reach it.
    Node(Uuid, PeerNode),
    /// Its control connection broke; it may still be reachable. Whether its own end closed it.
    Lost(Uuid, bool),
    /// It has gone.
    Gone(Uuid),
    /// It has installed this end and waits for a handshake.
    Ready(Uuid),
}

/// The changes of a response, in order. What does not read is left out.
pub(crate) fn changes(response: &CoordinateResponse) -> impl Iterator<Item = PeerChange> {
    use coordinate_response::peer_update::Kind;
    response.peer_updates.iter().filter_map(|update| {
        let id = parse_id(&update.id)?;
        match update.kind() {
            Kind::Node => match PeerNode::try_from(update.node.as_ref()?) {
                Ok(node) => Some(PeerChange::Node(id, node)),
                Err(error) => {
                    tracing::debug!(%id, %error, "a peer that cannot be used");
                    None
                }
            },
            Kind::Lost => Some(PeerChange::Lost(id, update.reason == tailnet::CLOSED)),
            Kind::Disconnected => Some(PeerChange::Gone(id)),
            Kind::ReadyForHandshake => Some(PeerChange::Ready(id)),
            Kind::Unspecified => None,
        }
    })
}

/// This end's own node, told anew.
pub(crate) fn update_self(node: &LocalNode) -> CoordinateRequest {
    let node = tailnet::Node {
        as_of: Some(chrono::Utc::now().into()),
        ..node.as_proto()
    };
    CoordinateRequest {
        update_self: Some(coordinate_request::UpdateSelf { node: Some(node) }),
        ..CoordinateRequest::default()
    }
}

pub(crate) fn add_tunnel(agent: Uuid) -> CoordinateRequest {
    CoordinateRequest {
        add_tunnel: Some(coordinate_request::Tunnel {
            id: id_bytes(agent),
        }),
        ..CoordinateRequest::default()
    }
}

pub(crate) fn ready_for_handshake(peer: Uuid) -> CoordinateRequest {
    CoordinateRequest {
        ready_for_handshake: vec![coordinate_request::ReadyForHandshake { id: id_bytes(peer) }],
        ..CoordinateRequest::default()
    }
}

pub(crate) fn disconnect() -> CoordinateRequest {
    CoordinateRequest {
        disconnect: Some(coordinate_request::Disconnect {}),
        ..CoordinateRequest::default()
    }
}

/// Waits for the next own node that differs from `last`; never ends when there is no more.
pub(crate) async fn next_node(
    nodes: &mut watch::Receiver<Option<LocalNode>>,
    last: &mut Option<LocalNode>,
) -> LocalNode {
    loop {
        let node = nodes.borrow_and_update().clone();
        if let Some(node) = node
            && last.as_ref() != Some(&node)
        {
            *last = Some(node.clone());
            return node;
        }
        if nodes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Waits between tries: some quick ones, since most interruptions are a restart, then longer and
/// longer ones.
#[derive(Debug)]
pub(crate) struct Backoff {
    tries: u32,
}

impl Backoff {
    const QUICK: u32 = 40;
    const LONGEST: Duration = Duration::from_secs(10);

    pub(crate) fn new() -> Self {
        Self { tries: 0 }
    }

    /// The next wait; `jitter` is any random number.
    pub(crate) fn next(&mut self, jitter: u32) -> Duration {
        self.tries = self.tries.saturating_add(1);
        let base = match self.tries {
            1 => Duration::from_millis(20),
            tries if tries <= Self::QUICK => Duration::from_millis(100),
            tries => {
                let doubled = 1_u32 << (tries - Self::QUICK).min(10);
                (Duration::from_millis(200) * doubled).min(Self::LONGEST)
            }
        };
        base + base.mul_f64(f64::from(jitter % 256) / 1024.0)
    }

    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_short_for_four_seconds_and_never_longer_than_ten_and_a_quarter() {
        let mut backoff = Backoff::new();
        let quick: Duration = (0..40).map(|_| backoff.next(0)).sum();
        assert!(quick < Duration::from_secs(5), "{quick:?}");
        for jitter in 0..1000 {
            assert!(backoff.next(jitter) <= Duration::from_millis(12_500));
        }
        backoff.reset();
        assert_eq!(backoff.next(0), Duration::from_millis(20));
    }
}
