//! The agent service: the least that an agent needs (coder_wire §14.5).

use std::time::Duration;

use relay_control::rpc::{Incoming, RpcError, UNIMPLEMENTED};
use relay_wire::proto::agent::{
    self, get_resources_monitoring_configuration_response as monitoring,
};
use relay_wire::proto::{id_bytes, parse_id, tailnet};

use super::within;
use crate::apps::access::ShareLevel;
use crate::apps::hostname::AppHost;
use crate::state::Shared;
use crate::store::{AgentAccess, App, AppHealth, Lifecycle};
use crate::traffic::REPORT;

/// Longest text about itself that is kept of an agent.
const TEXT: usize = 1024;
/// Most apps that an agent tells about at a time.
const APPS: usize = 1024;

/// Answers a call.
pub(super) async fn answer(
    state: &Shared,
    access: &AgentAccess,
    call: Incoming,
) -> Result<(), RpcError> {
    match call.path.as_str() {
        agent::GET_MANIFEST => match manifest(state, access).await {
            Ok(manifest) => within(call.reply(&manifest)).await,
            Err(error) => failed(&error, call).await,
        },
        agent::BATCH_UPDATE_APP_HEALTHS => health(state, access, call).await,
        agent::UPDATE_STARTUP => startup(state, access, call).await,
        agent::UPDATE_LIFECYCLE => lifecycle(state, access, call).await,
        agent::UPDATE_STATS => stats(state, access, call).await,
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
        | agent::SCRIPT_COMPLETED
        | agent::PUSH_RESOURCES_MONITORING_USAGE
        | agent::REPORT_CONNECTION => within(call.reply(&tailnet::Empty::default())).await,
        _ => within(call.refuse(UNIMPLEMENTED, "Unimplemented")).await,
    }
}

async fn manifest(state: &Shared, access: &AgentAccess) -> crate::Result<agent::Manifest> {
    let apps = state.store.apps_of_agent(access.agent.id).await?;
    Ok(agent::Manifest {
        agent_id: id_bytes(access.agent.id),
        disable_direct_connections: state.block_direct,
        derp_force_websockets: state.force_websockets,
        derp_map: Some((&state.map).into()),
        owner_username: access.owner_name.clone(),
        workspace_id: id_bytes(access.agent.workspace_id),
        agent_name: access.agent.name.clone(),
        workspace_name: access.workspace_name.clone(),
        vs_code_port_proxy_uri: port_template(state, access),
        apps: apps.into_iter().map(|found| app(access, found)).collect(),
        ..Default::default()
    })
}

/// The address of a port with `{{port}}` in its place, which editors make links from.
fn port_template(state: &Shared, access: &AgentAccess) -> String {
    let host = AppHost {
        slug_or_port: "{{port}}".to_owned(),
        agent: access.agent.name.clone(),
        workspace: access.workspace_name.clone(),
        user: access.owner_name.clone(),
        ..AppHost::default()
    };
    let url = state.apps.app_url(&host, &state.access_url);
    let url = url.and_then(Result::ok).unwrap_or_default();
    url.trim_end_matches('/').to_owned()
}

fn app(access: &AgentAccess, (app, health): (App, AppHealth)) -> agent::WorkspaceApp {
    use agent::workspace_app::{Healthcheck, SharingLevel};
    let sharing_level = match app.share {
        ShareLevel::Owner => SharingLevel::Owner,
        ShareLevel::Organization => SharingLevel::Organization,
        ShareLevel::Authenticated => SharingLevel::Authenticated,
        ShareLevel::Public => SharingLevel::Public,
    };
    let healthcheck = app.healthcheck.map(|check| Healthcheck {
        url: check.url,
        interval: Some(Duration::from_secs(check.interval.into()).into()),
        threshold: i32::try_from(check.threshold).unwrap_or(i32::MAX),
    });
    let (agent, workspace, owner) = (
        &access.agent.name,
        &access.workspace_name,
        &access.owner_name,
    );
    let host = AppHost::of_app(&app.slug, agent, workspace, owner);
    agent::WorkspaceApp {
        id: id_bytes(app.id),
        url: app.url,
        external: app.external,
        slug: app.slug,
        display_name: app.display_name,
        command: app.command,
        icon: app.icon,
        subdomain: app.subdomain,
        subdomain_name: match app.subdomain {
            true => host.to_string(),
            false => String::new(),
        },
        sharing_level: sharing_level.into(),
        healthcheck,
        health: health.number(),
        hidden: app.hidden,
    }
}

/// Notes what the agent found out about its apps.
async fn health(state: &Shared, access: &AgentAccess, mut call: Incoming) -> Result<(), RpcError> {
    let request: agent::BatchUpdateAppHealthRequest = call.request().await?;
    if request.updates.len() > APPS {
        return within(call.refuse(0, "too many apps")).await;
    }
    let mut states = Vec::new();
    for update in request.updates {
        match (parse_id(&update.id), AppHealth::from_number(update.health)) {
            (Some(id), Some(health)) => states.push((id, health)),
            _ => return within(call.refuse(0, "unknown app id or health")).await,
        }
    }
    match state.store.set_app_health(access.agent.id, &states).await {
        Ok(changed) => {
            if changed {
                state.changed();
            }
            let answer = agent::BatchUpdateAppHealthResponse::default();
            within(call.reply(&answer)).await
        }
        Err(error) => failed(&error, call).await,
    }
}

/// Notes what the agent's tunnels carried; the first report only asks how often to tell.
async fn stats(state: &Shared, access: &AgentAccess, mut call: Incoming) -> Result<(), RpcError> {
    let request: agent::UpdateStatsRequest = call.request().await?;
    if let Some(stats) = request.stats {
        let number = |number: i64| u64::try_from(number).unwrap_or(0);
        let bytes = number(stats.rx_bytes).saturating_add(number(stats.tx_bytes));
        let connections = number(stats.connection_count);
        state.traffic.report(access.agent.id, bytes, connections);
        if connections > 0 {
            state.usage.used(access.agent.workspace_id);
        }
    }
    let answer = agent::UpdateStatsResponse {
        report_interval: Some(REPORT.into()),
    };
    within(call.reply(&answer)).await
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
