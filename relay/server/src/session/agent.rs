//! The agent service: the least that an agent needs (coder_wire §14.5).

use std::time::Duration;

use relay_control::rpc::{Incoming, RpcError, UNIMPLEMENTED};
use relay_wire::proto::agent::{
    self, get_resources_monitoring_configuration_response as monitoring,
};
use relay_wire::proto::{id_bytes, tailnet};

use super::within;
use crate::state::Shared;
use crate::store::{AgentAccess, Lifecycle};

/// How often agents tell their statistics.
const REPORT: Duration = Duration::from_secs(30);
/// Longest text about itself that is kept of an agent.
const TEXT: usize = 1024;

/// Answers a call.
pub(super) async fn answer(
    state: &Shared,
    access: &AgentAccess,
    call: Incoming,
) -> Result<(), RpcError> {
    match call.path.as_str() {
        agent::GET_MANIFEST => within(call.reply(&manifest(state, access))).await,
        agent::UPDATE_STARTUP => startup(state, access, call).await,
        agent::UPDATE_LIFECYCLE => lifecycle(state, access, call).await,
        agent::UPDATE_STATS => {
            let answer = agent::UpdateStatsResponse {
                report_interval: Some(REPORT.into()),
            };
            within(call.reply(&answer)).await
        }
        agent::GET_RESOURCES_MONITORING_CONFIGURATION => {
            let answer = agent::GetResourcesMonitoringConfigurationResponse {
                config: Some(monitoring::Config {
                    num_datapoints: 20,
                    collection_interval_seconds: 10,
                }),
                ..Default::default()
            };
            within(call.reply(&answer)).await
        }
        agent::GET_SERVICE_BANNER
        | agent::GET_ANNOUNCEMENT_BANNERS
        | agent::BATCH_CREATE_LOGS
        | agent::BATCH_UPDATE_METADATA
        | agent::BATCH_UPDATE_APP_HEALTHS
        | agent::SCRIPT_COMPLETED
        | agent::PUSH_RESOURCES_MONITORING_USAGE
        | agent::REPORT_CONNECTION => within(call.reply(&tailnet::Empty::default())).await,
        _ => within(call.refuse(UNIMPLEMENTED, "Unimplemented")).await,
    }
}

fn manifest(state: &Shared, access: &AgentAccess) -> agent::Manifest {
    agent::Manifest {
        agent_id: id_bytes(access.agent.id),
        disable_direct_connections: state.block_direct,
        derp_force_websockets: state.force_websockets,
        derp_map: Some((&state.map).into()),
        owner_username: access.owner_name.clone(),
        workspace_id: id_bytes(access.agent.workspace_id),
        agent_name: access.agent.name.clone(),
        workspace_name: access.workspace_name.clone(),
        ..Default::default()
    }
}

async fn startup(state: &Shared, access: &AgentAccess, mut call: Incoming) -> Result<(), RpcError> {
    let request: agent::UpdateStartupRequest = call.request().await?;
    let startup = request.startup.unwrap_or_default();
    if startup.version.len() > TEXT || startup.expanded_directory.len() > TEXT {
        return within(call.refuse(0, "version or directory is too long")).await;
    }
    let id = access.agent.id;
    let (version, directory) = (&startup.version, &startup.expanded_directory);
    match state.store.agent_startup(id, version, directory).await {
        Ok(()) => within(call.reply(&startup)).await,
        Err(error) => failed(&error, call).await,
    }
}

async fn lifecycle(
    state: &Shared,
    access: &AgentAccess,
    mut call: Incoming,
) -> Result<(), RpcError> {
    let request: agent::UpdateLifecycleRequest = call.request().await?;
    let lifecycle = request.lifecycle.unwrap_or_default();
    let Some(known) = Lifecycle::from_number(lifecycle.state) else {
        let text = format!("unknown lifecycle state {}", lifecycle.state);
        return within(call.refuse(0, &text)).await;
    };
    match state.store.agent_lifecycle(access.agent.id, known).await {
        Ok(()) => {
            state.changed();
            within(call.reply(&lifecycle)).await
        }
        Err(error) => failed(&error, call).await,
    }
}

async fn failed(error: &crate::Error, call: Incoming) -> Result<(), RpcError> {
    tracing::warn!(%error, "a call of an agent failed");
    within(call.refuse(0, "the server failed; its log says why")).await
}
