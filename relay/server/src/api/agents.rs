//! Agents: what clients see of them, their sessions, and what they ask themselves.

use axum::extract::{Path, RawQuery, Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use http::header::USER_AGENT;
use relay_control::rpc::websocket_config;
use relay_wire::rest::{AgentStatus, ConnectionInfo, WorkspaceAgent};
use serde::Serialize;
use uuid::Uuid;

use super::auth::{Caller, CallingAgent, parameter};
use super::websocket::{Handshake, check_origin};
use super::{HOSTNAME_SUFFIX, Refusal, client_address, empty, version, views};
use crate::apps::ports::ListeningPort;
use crate::dialer::{self, DialError, ListenError};
use crate::session;
use crate::state::Shared;
use crate::store::AgentAccess;
use crate::usage::log::{Kind, Opened};

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/workspaceagents/connection", get(connection))
        .route("/workspaceagents/{id}", get(agent))
        .route("/workspaceagents/{id}/connection", get(agent_connection))
        .route("/workspaceagents/{id}/coordinate", get(coordinate))
        .route(
            "/workspaceagents/{id}/listening-ports",
            get(listening_ports),
        )
        .route("/workspaceagents/me/rpc", get(rpc))
        .route("/workspaceagents/me/reinit", get(reinit))
        .route("/workspaceagents/me/log-source", post(log_source))
}

async fn agent(
    State(state): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<WorkspaceAgent>, Refusal> {
    let access = reachable(&state, &caller, &id).await?;
    let workspace = state.store.workspace(access.agent.workspace_id).await?;
    let resource = workspace.map_or(Uuid::nil(), |workspace| workspace.build.id);
    let names = views::Names {
        owner: &access.owner_name,
        workspace: &access.workspace_name,
    };
    Ok(Json(views::agent(
        &access.agent,
        &names,
        resource,
        &state.presence,
    )))
}

#[derive(Serialize)]
struct Ports {
    ports: Vec<ListeningPort>,
}

/// What listens in the workspace.
async fn listening_ports(
    State(state): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Ports>, Refusal> {
    let access = reachable(&state, &caller, &id).await?;
    let status = views::status(&access.agent, &state.presence);
    let away = || {
        Refusal::bad(format!(
            "The agent is {status}; what listens can be told of a connected agent only."
        ))
    };
    if status != AgentStatus::Connected {
        return Err(away());
    }
    match dialer::listening_ports(&state, &access.agent).await {
        Ok(ports) => Ok(Json(Ports { ports })),
        Err(ListenError::Dial(DialError::NotConnected)) => Err(away()),
        Err(error) => Err(Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("The ports cannot be listed: {error}."),
        )),
    }
}

async fn connection(State(state): State<Shared>, _caller: Caller) -> Json<ConnectionInfo> {
    Json(connection_info(&state))
}

async fn agent_connection(
    State(state): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<ConnectionInfo>, Refusal> {
    reachable(&state, &caller, &id).await?;
    Ok(Json(connection_info(&state)))
}

fn connection_info(state: &Shared) -> ConnectionInfo {
    ConnectionInfo {
        derp_map: Some(state.map.clone()),
        derp_force_websockets: state.force_websockets,
        disable_direct_connections: state.block_direct,
        hostname_suffix: HOSTNAME_SUFFIX.to_owned(),
    }
}

/// The control connection of a client.
async fn coordinate(
    State(state): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    check_origin(&parts.headers)?;
    let query = query.unwrap_or_default();
    version::check(parameter(&query, "version").as_deref(), "1.0")?;
    let access = reachable(&state, &caller, &id).await?;
    let (user, agent) = (caller.user.id, access.agent.id);
    let peer = match parameter(&query, "resume_token") {
        None => Uuid::new_v4(),
        Some(token) => {
            let now = crate::store::now().timestamp();
            state
                .resume
                .verify(&token, user, agent, now)
                .ok_or_else(|| {
                    Refusal::unauthorized("Invalid resume token")
                        .field("resume_token", "it is not valid or has expired")
                })?
        }
    };
    let handshake = Handshake::new(&mut parts)?;
    let user_agent = parts.headers.get(USER_AGENT);
    let user_agent = user_agent.and_then(|text| text.to_str().ok());
    state.usage.opened(Opened {
        workspace: access.agent.workspace_id,
        agent,
        kind: Kind::Tunnel,
        slug_or_port: String::new(),
        user: Some(user),
        ip: client_address(&parts, &state),
        user_agent: user_agent.unwrap_or_default().to_owned(),
        status: StatusCode::SWITCHING_PROTOCOLS.as_u16(),
    });
    let client = session::Client { peer, user, agent };
    Ok(handshake.accept(websocket_config(), move |socket| {
        session::client(state, client, socket)
    }))
}

/// The control connection of an agent.
async fn rpc(
    State(state): State<Shared>,
    CallingAgent(access): CallingAgent,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    check_origin(&parts.headers)?;
    let query = query.unwrap_or_default();
    version::check(parameter(&query, "version").as_deref(), "2.0")?;
    let handshake = Handshake::new(&mut parts)?;
    Ok(handshake.accept(websocket_config(), move |socket| {
        session::agent(state, access, socket)
    }))
}

/// Agents here never start anew by themselves; this answer tells them to stop asking.
async fn reinit(_agent: CallingAgent) -> Refusal {
    Refusal::new(
        StatusCode::CONFLICT,
        "This agent is never initialised again.",
    )
}

async fn log_source(_agent: CallingAgent) -> Response {
    empty(StatusCode::CREATED)
}

/// The agent of an id, if it is there and the user may reach it: the answer is the same.
async fn reachable(state: &Shared, caller: &Caller, id: &str) -> Result<AgentAccess, Refusal> {
    let missing = || Refusal::not_found("There is no such agent that you can reach.");
    let id = Uuid::parse_str(id).map_err(|_| missing())?;
    let found = state.store.agent(id).await?;
    found
        .filter(|found| caller.may_reach(found.owner_id))
        .ok_or_else(missing)
}
