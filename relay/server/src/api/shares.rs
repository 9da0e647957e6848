//! Shared ports of a workspace (coder_facts §2.18).

use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use http::StatusCode;
use relay_wire::rest::{PortShare, PortShares};

use super::auth::Caller;
use super::workspaces::reachable;
use super::{Refusal, empty, read_body, views};
use crate::apps::ports::{self, ShareRequest};
use crate::state::Shared;

pub(super) fn routes() -> Router<Shared> {
    let all = get(list).post(share).delete(withdraw);
    Router::new().route("/workspaces/{id}/port-share", all)
}

async fn list(
    State(state): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<PortShares>, Refusal> {
    let id = reachable(&state, &caller, &id).await?.id;
    let shares = state.store.shares(id).await?;
    Ok(Json(PortShares {
        shares: shares.iter().map(|share| views::share(id, share)).collect(),
    }))
}

async fn share(
    State(state): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<PortShare>, Refusal> {
    let workspace = reachable(&state, &caller, &id).await?;
    let request: ShareRequest = read_body(&body)?;
    let exists = |name: &str| workspace.agents.iter().any(|agent| agent.name == name);
    let share = request
        .check(workspace.max_share_level(), exists)
        .map_err(|error| Refusal::bad(error.to_string()).field(error.field(), error.to_string()))?;
    state.store.put_share(workspace.id, &share).await?;
    state.changed();
    Ok(Json(views::share(workspace.id, &share)))
}

async fn withdraw(
    State(state): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let id = reachable(&state, &caller, &id).await?.id;
    let request: ShareRequest = read_body(&body)?;
    let deleted = match ports::allowed(request.port) {
        Some(port) => {
            state
                .store
                .delete_share(id, &request.agent_name, port)
                .await?
        }
        None => false,
    };
    if !deleted {
        return Err(Refusal::not_found(format!(
            "Port {} of agent {:?} is not shared.",
            request.port, request.agent_name
        )));
    }
    state.changed();
    Ok(empty(StatusCode::OK))
}
