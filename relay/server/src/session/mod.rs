//! Control sessions of clients and agents: calls on one WebSocket, each in a task of its own.

mod agent;
mod tailnet;

use std::sync::Arc;
use std::time::Duration;

use relay_control::rpc::{End, Incoming, Mux, Options, RpcError, Stream, UNIMPLEMENTED};
use relay_wire::proto::tailnet as service;
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::api::websocket::WebSocket;
use crate::coordinator::Role;
use crate::state::Shared;
use crate::store::AgentAccess;

/// Calls that a session may have open.
const CALLS: usize = 64;
/// How long a stream may take to say what it calls.
const INVOKE: Duration = Duration::from_secs(60);
/// How long an answer may take to leave.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the end of a session may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// An agent that is silent for twice this long is disconnected.
const AGENT_KEEPALIVE: Duration = Duration::from_secs(15);

/// A client of an agent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    /// The id by which peers know it.
    pub(crate) peer: Uuid,
    /// The account.
    pub(crate) user: Uuid,
    /// The agent it may reach.
    pub(crate) agent: Uuid,
}

/// Whose session it is.
enum Owner {
    Client(Client),
    Agent(Box<AgentAccess>),
}

/// Serves a client's session to its end.
pub(crate) async fn client(state: Shared, client: Client, socket: WebSocket) {
    let _alive = state.alive.clone();
    let evicted = state.clients.enter(client.agent);
    tracing::debug!(peer = %client.peer, agent = %client.agent, "client connected");
    let mux = Mux::server(socket, &Options::default());
    serve(&state, mux, evicted, Arc::new(Owner::Client(client))).await;
    state.clients.leave(client.agent);
    tracing::debug!(peer = %client.peer, "client gone");
}

/// Serves an agent's session to its end.
pub(crate) async fn agent(state: Shared, access: AgentAccess, socket: WebSocket) {
    let _alive = state.alive.clone();
    let id = access.agent.id;
    let name = format!(
        "{}/{}.{}",
        access.owner_name, access.workspace_name, access.agent.name
    );
    let evicted = state.presence.enter(id);
    if let Err(error) = state.store.agent_connected(id).await {
        tracing::warn!(%error, "cannot note that an agent is connected");
    }
    state.changed();
    tracing::info!("agent {name} connected");
    let options = Options {
        keepalive: AGENT_KEEPALIVE,
        reply_within: AGENT_KEEPALIVE,
    };
    let mux = Mux::server(socket, &options);
    serve(
        &state,
        mux,
        evicted,
        Arc::new(Owner::Agent(Box::new(access))),
    )
    .await;
    if state.presence.leave(id) {
        if let Err(error) = state.store.agent_disconnected(id).await {
            tracing::debug!(%error, "cannot note that an agent is disconnected");
        }
        tracing::info!("agent {name} disconnected");
    }
    state.changed();
}

async fn serve(
    state: &Shared,
    mut mux: Mux,
    mut evicted: watch::Receiver<bool>,
    owner: Arc<Owner>,
) {
    let mut calls = JoinSet::new();
    let stopped = state.stopped();
    let mut stopped = std::pin::pin!(stopped);
    loop {
        tokio::select! {
            stream = mux.accept() => match stream {
                Some(stream) if calls.len() < CALLS => {
                    calls.spawn(call(Arc::clone(state), Arc::clone(&owner), stream, mux.end()));
                }
                // Dropped, which resets it.
                Some(_) => tracing::debug!("a session has too many calls open"),
                None => return,
            },
            Some(_) = calls.join_next(), if !calls.is_empty() => {}
            _ = evicted.wait_for(|evicted| *evicted) => break,
            () = &mut stopped => break,
        }
    }
    mux.shutdown();
    let _ = tokio::time::timeout(FAREWELL, mux.closed()).await;
}

/// Serves one call. Whatever goes wrong ends this call only.
async fn call(state: Shared, owner: Arc<Owner>, stream: Stream, end: End) {
    let Ok(Ok(call)) = tokio::time::timeout(INVOKE, Incoming::read(stream)).await else {
        return;
    };
    let path = call.path.clone();
    // Long arms are boxed: a call that only waits must not be as large as the largest one.
    let done = match (path.as_str(), &*owner) {
        (service::COORDINATE, Owner::Client(client)) => {
            let role = Role::Client {
                agent: client.agent,
            };
            Box::pin(tailnet::coordinate(state, client.peer, role, call, end)).await
        }
        (service::COORDINATE, Owner::Agent(access)) => {
            Box::pin(tailnet::coordinate(
                state,
                access.agent.id,
                Role::Agent,
                call,
                end,
            ))
            .await
        }
        (service::STREAM_DERP_MAPS, _) => tailnet::derp_maps(&state, call).await,
        (service::REFRESH_RESUME_TOKEN, Owner::Client(client)) => {
            Box::pin(tailnet::resume_token(&state, *client, call)).await
        }
        (service::POST_TELEMETRY, _) => call.reply(&service::Empty::default()).await,
        (_, Owner::Agent(access)) => Box::pin(agent::answer(&state, access, call)).await,
        _ => call.refuse(UNIMPLEMENTED, "Unimplemented").await,
    };
    if let Err(error) = done {
        tracing::debug!(path, %error, "a call ended");
    }
}

/// Bounds how long an answer may take to leave.
async fn within<T>(answer: impl Future<Output = Result<T, RpcError>>) -> Result<T, RpcError> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(done) => done,
        Err(_) => Err(RpcError::Session("the peer does not read".to_owned())),
    }
}
