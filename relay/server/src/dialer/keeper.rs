//! Keeps the server's end of tunnels in step with the coordinator, where it has a seat like any
//! client, and ends tunnels that nobody uses.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use relay_tunnel::endpoint::{EndpointEvents, Event, LocalNode, PeerNode};
use relay_wire::addr::agent_address;
use relay_wire::derp_map::DerpMap;
use relay_wire::proto::id_bytes;
use relay_wire::proto::tailnet::{CoordinateRequest, coordinate_request};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::plan::{Plan, Step};
use super::tunnels::{Setup, Up};
use crate::coordinator::{Change, Output, Role, SeatId};
use crate::hub::Hub;

/// A tunnel ends when it was not used for so long.
const UNUSED: Duration = Duration::from_secs(30 * 60);
/// How often tunnels are looked at.
const LOOK: Duration = Duration::from_secs(60);
/// How long an agent that left its control plane may take to show that it is still there.
const DOUBT: Duration = Duration::from_secs(5);

/// The task behind the tunnels.
pub(super) struct Keeper {
    id: Uuid,
    up: Arc<Up>,
    events: EndpointEvents,
    own: watch::Receiver<Option<LocalNode>>,
    map: Option<DerpMap>,
    hub: Arc<Hub>,
    seat: SeatId,
    outputs: mpsc::Receiver<Output>,
    stopping: watch::Receiver<bool>,
    plan: Plan,
    /// Agents that were asked and did not answer.
    asked: JoinSet<Option<(Uuid, u64)>>,
    traffic: HashMap<Uuid, Traffic>,
    look_at: Instant,
}

/// What was sent to an agent so far, and when that was last seen to grow.
struct Traffic {
    sent: u64,
    grew: Instant,
}

impl Keeper {
    pub(super) fn new(id: Uuid, up: Arc<Up>, events: EndpointEvents, setup: Setup) -> Self {
        let (seat, outputs) = setup.hub.join(id, Role::Server);
        Self {
            id,
            own: up.endpoint.node(),
            up,
            events,
            map: Some(setup.map),
            hub: setup.hub,
            seat,
            outputs,
            stopping: setup.stopping,
            plan: Plan::default(),
            asked: JoinSet::new(),
            traffic: HashMap::new(),
            look_at: Instant::now() + LOOK,
        }
    }

    /// Works until the server stops or the end breaks; says which.
    pub(super) async fn run(mut self) -> String {
        let mut stopping = self.stopping.clone();
        let why = tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => "the server stops".to_owned(),
            Err(error) = self.work() => {
                tracing::warn!("apps of workspaces cannot be opened any more: {error}");
                format!("{error}; start the server again")
            }
        };
        let goodbye = CoordinateRequest {
            disconnect: Some(coordinate_request::Disconnect {}),
            ..CoordinateRequest::default()
        };
        self.hub.handle(self.seat, goodbye);
        self.up.keep(|_, _| false);
        why
    }

    async fn work(&mut self) -> Result<(), relay_tunnel::Error> {
        if let Some(map) = self.map.take() {
            self.up.endpoint.set_derp_map(map).await?;
        }
        self.tell_node();
        let up = Arc::clone(&self.up);
        loop {
            let ready_at = self.plan.poll_timeout();
            let tunnels = self.plan.agents().next().is_some();
            let steps = tokio::select! {
                output = self.outputs.recv() => match output {
                    Some(output) => self.heard(output),
                    None => self.rejoin(),
                },
                () = up.changed.notified() => self.plan.set(&up.wanted()),
                Ok(()) = self.own.changed() => {
                    self.tell_node();
                    continue;
                }
                Some(event) = self.events.recv() => {
                    if let Event::Warning(text) = event {
                        tracing::warn!("{text}");
                    }
                    continue;
                }
                Some(Ok(silent)) = self.asked.join_next() => {
                    let silent = silent.and_then(|(id, which)| self.plan.silent(id, which));
                    silent.into_iter().collect()
                }
                () = at(ready_at) => self.plan.overdue(Instant::now()),
                () = at(Some(self.look_at)), if tunnels => self.look().await?,
            };
            for step in steps {
                self.take(step).await?;
            }
            up.publish(|id| self.plan.target(id));
        }
    }

    async fn take(&mut self, step: Step) -> Result<(), relay_tunnel::Error> {
        let endpoint = &self.up.endpoint;
        tracing::debug!(?step, "tunnels");
        match step {
            Step::Join(id) => self.hub.handle(self.seat, add_tunnel(id)),
            Step::Part(id) => {
                self.traffic.remove(&id);
                self.hub.handle(self.seat, remove_tunnel(id));
            }
            Step::Install(id, node) => endpoint.upsert_peer(id, node).await?,
            Step::Remove(id) => endpoint.remove_peer(id).await?,
            Step::Ask(id, generation) => {
                let endpoint = endpoint.clone();
                self.asked.spawn(async move {
                    let answer = endpoint.tsmp_ping(agent_address(&id), DOUBT).await;
                    answer.is_err().then_some((id, generation))
                });
            }
        }
        Ok(())
    }

    fn heard(&mut self, output: Output) -> Vec<Step> {
        let step = match output {
            Output::Update(id, Change::Node(node)) => match PeerNode::try_from(&*node) {
                Ok(node) => self.plan.node(id, node, Instant::now()),
                Err(error) => {
                    tracing::debug!(%id, %error, "an agent that cannot be used");
                    None
                }
            },
            Output::Update(id, Change::Ready) => self.plan.ready(id),
            Output::Update(id, Change::Lost(_)) => self.plan.lost(id),
            Output::Update(id, Change::Disconnected(_)) => self.plan.gone(id),
            Output::Error(error) => {
                tracing::warn!(
                    error,
                    "the coordinator complains about the server's own end"
                );
                None
            }
            Output::End => None,
        };
        step.into_iter().collect()
    }

    /// Takes a new seat after the old one was lost, which happens when its queue was full.
    fn rejoin(&mut self) -> Vec<Step> {
        (self.seat, self.outputs) = self.hub.join(self.id, Role::Server);
        self.tell_node();
        self.plan.agents().map(Step::Join).collect()
    }

    fn tell_node(&mut self) {
        let Some(node) = self.own.borrow_and_update().clone() else {
            return;
        };
        let node = Some(node.as_proto());
        let request = CoordinateRequest {
            update_self: Some(coordinate_request::UpdateSelf { node }),
            ..CoordinateRequest::default()
        };
        self.hub.handle(self.seat, request);
    }

    /// Ends tunnels that nobody uses, and doubts lost agents anew.
    async fn look(&mut self) -> Result<Vec<Step>, relay_tunnel::Error> {
        let now = Instant::now();
        self.look_at = now + LOOK;
        let agents: Vec<Uuid> = self.plan.agents().collect();
        for id in agents {
            let sent = match self.up.endpoint.stats(id).await {
                Ok(stats) => stats.sent,
                Err(relay_tunnel::Error::UnknownPeer) => 0,
                Err(error) => return Err(error),
            };
            let seen = self
                .traffic
                .entry(id)
                .or_insert(Traffic { sent, grew: now });
            if seen.sent != sent {
                *seen = Traffic { sent, grew: now };
            }
        }
        let traffic = &self.traffic;
        self.up.keep(|id, dialled| {
            let grew = traffic.get(&id).map_or(dialled, |seen| seen.grew);
            !is_unused(dialled, grew, now)
        });
        Ok(self.plan.doubt())
    }
}

fn is_unused(dialled: Instant, grew: Instant, now: Instant) -> bool {
    now.saturating_duration_since(dialled.max(grew)) >= UNUSED
}

fn add_tunnel(agent: Uuid) -> CoordinateRequest {
    let id = id_bytes(agent);
    CoordinateRequest {
        add_tunnel: Some(coordinate_request::Tunnel { id }),
        ..CoordinateRequest::default()
    }
}

fn remove_tunnel(agent: Uuid) -> CoordinateRequest {
    let id = id_bytes(agent);
    CoordinateRequest {
        remove_tunnel: Some(coordinate_request::Tunnel { id }),
        ..CoordinateRequest::default()
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_is_unused_half_an_hour_after_the_last_dial_and_the_last_byte() {
        let start = Instant::now();
        let minutes = |count: u64| start + Duration::from_secs(60 * count);
        assert!(is_unused(start, start, minutes(30)));
        assert!(!is_unused(start, start, minutes(29)));
        assert!(!is_unused(minutes(10), start, minutes(39)));
        assert!(!is_unused(start, minutes(10), minutes(39)));
        assert!(is_unused(minutes(10), minutes(5), minutes(40)));
    }
}
