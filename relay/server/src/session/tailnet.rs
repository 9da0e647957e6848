//! The tailnet service: coordination, relay maps, resume tokens.

use std::time::Duration;

use chrono::TimeDelta;
use relay_control::rpc::{End, Incoming, RpcError, Sender};
use relay_wire::proto::id_bytes;
use relay_wire::proto::tailnet::coordinate_response::PeerUpdate;
use relay_wire::proto::tailnet::coordinate_response::peer_update::Kind;
use relay_wire::proto::tailnet::{
    self, CoordinateRequest, CoordinateResponse, RefreshResumeTokenResponse,
};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Client, within};
use crate::coordinator::{Change, Output, Role, SeatId};
use crate::resume::LIFE;
use crate::state::Shared;

/// Most updates in one response.
const UPDATES: usize = 1024;

/// A seat at the coordinator, given up when dropped.
struct Seat {
    state: Shared,
    id: SeatId,
    outputs: mpsc::Receiver<Output>,
    end: End,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let reason = match self.end.by_other_side() {
            true => tailnet::CLOSED,
            false => "",
        };
        self.state.hub.leave(self.id, reason);
    }
}

/// Serves `Coordinate` to its end.
pub(super) async fn coordinate(
    state: Shared,
    peer: Uuid,
    role: Role,
    mut call: Incoming,
    end: End,
) -> Result<(), RpcError> {
    let (id, outputs) = state.hub.join(peer, role);
    let mut seat = Seat {
        state,
        id,
        outputs,
        end,
    };
    loop {
        tokio::select! {
            output = seat.outputs.recv() => {
                let Some(first) = output else { break };
                if !tell(&mut call.sender, &mut seat.outputs, first).await? {
                    break;
                }
            }
            request = call.receiver.message::<CoordinateRequest>() => match request {
                Ok(Some(request)) => seat.state.hub.handle(id, request),
                Ok(None) => break,
                Err(RpcError::Protocol(text)) => {
                    return within(call.sender.error(0, &text)).await;
                }
                Err(error) => return Err(error),
            },
        }
    }
    within(call.sender.finish()).await
}

/// Sends what is queued, as few responses as possible; false when nothing more follows.
async fn tell(
    sender: &mut Sender,
    outputs: &mut mpsc::Receiver<Output>,
    first: Output,
) -> Result<bool, RpcError> {
    let mut updates = Vec::new();
    let mut next = Some(first);
    while let Some(output) = next {
        match output {
            Output::Update(id, change) => updates.push(update(id, change)),
            Output::Error(error) => {
                flush(sender, &mut updates).await?;
                let response = CoordinateResponse {
                    error,
                    ..CoordinateResponse::default()
                };
                within(sender.send(&response)).await?;
            }
            Output::End => {
                flush(sender, &mut updates).await?;
                return Ok(false);
            }
        }
        if updates.len() >= UPDATES {
            break;
        }
        next = outputs.try_recv().ok();
    }
    flush(sender, &mut updates).await?;
    Ok(true)
}

async fn flush(sender: &mut Sender, updates: &mut Vec<PeerUpdate>) -> Result<(), RpcError> {
    if updates.is_empty() {
        return Ok(());
    }
    let response = CoordinateResponse {
        peer_updates: std::mem::take(updates),
        ..CoordinateResponse::default()
    };
    within(sender.send(&response)).await
}

fn update(id: Uuid, change: Change) -> PeerUpdate {
    let mut update = PeerUpdate {
        id: id_bytes(id),
        ..PeerUpdate::default()
    };
    let kind = match change {
        Change::Node(node) => {
            update.node = Some((*node).clone());
            Kind::Node
        }
        Change::Disconnected(reason) => {
            update.reason = reason.to_owned();
            Kind::Disconnected
        }
        Change::Lost(reason) => {
            update.reason = reason.to_owned();
            Kind::Lost
        }
        Change::Ready => Kind::ReadyForHandshake,
    };
    update.set_kind(kind);
    update
}

/// Sends the relay map. It does not change, but the end of the stream would make clients connect
/// anew, so the call stays open as long as its session.
pub(super) async fn derp_maps(state: &Shared, mut call: Incoming) -> Result<(), RpcError> {
    let map = tailnet::DerpMap::from(&state.map);
    Box::pin(within(call.sender.send(&map))).await?;
    drop(map);
    std::future::pending::<()>().await;
    Ok(())
}

/// Gives the client a token that keeps its peer id.
pub(super) async fn resume_token(
    state: &Shared,
    client: Client,
    call: Incoming,
) -> Result<(), RpcError> {
    let now = crate::store::now();
    let Client { peer, user, agent } = client;
    let answer = RefreshResumeTokenResponse {
        token: state.resume.issue(peer, user, agent, now.timestamp()),
        refresh_in: Some(Duration::from_secs(LIFE.unsigned_abs() / 2).into()),
        expires_at: Some((now + TimeDelta::seconds(LIFE)).into()),
    };
    within(call.reply(&answer)).await
}
