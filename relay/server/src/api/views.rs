//! What is in the database, as the API shows it.

use std::collections::BTreeMap;

use relay_wire::rest;
use uuid::Uuid;

use crate::apps::hostname::AppHost;
use crate::apps::ports::Share;
use crate::state::Presence;
use crate::store::{Agent, App, AppHealth, Build, Template, Transition, User, Workspace};

pub(super) fn user(user: &User) -> rest::User {
    let role = |name: &str, display_name: &str| rest::Role {
        name: name.to_owned(),
        display_name: display_name.to_owned(),
    };
    rest::User {
        id: user.id,
        username: user.username.clone(),
        name: user.name.clone(),
        email: user.email.clone(),
        created_at: Some(user.created_at),
        status: "active".to_owned(),
        login_type: "password".to_owned(),
        organization_ids: vec![Uuid::nil()],
        roles: user
            .is_admin
            .then(|| role("owner", "Owner"))
            .into_iter()
            .collect(),
    }
}

pub(super) fn workspace(workspace: &Workspace, presence: &Presence) -> rest::Workspace {
    let latest_build = build(workspace, &workspace.build, presence);
    let template = workspace.template.as_ref();
    let template_id = template_of(workspace);
    let failing: Vec<Uuid> = latest_build
        .resources
        .iter()
        .flat_map(|resource| &resource.agents)
        .filter(|agent| !agent.health.healthy)
        .map(|agent| agent.id)
        .collect();
    rest::Workspace {
        id: workspace.id,
        created_at: Some(workspace.created_at),
        updated_at: Some(workspace.build.created_at),
        owner_id: workspace.owner_id,
        owner_name: workspace.owner_name.clone(),
        name: workspace.name.clone(),
        template_id,
        template_name: template.map_or_else(|| TEMPLATE.to_owned(), |found| found.name.clone()),
        template_active_version_id: template_id,
        last_used_at: Some(workspace.last_used_at),
        health: rest::WorkspaceHealth {
            healthy: failing.is_empty(),
            failing_agents: failing,
        },
        automatic_updates: "never".to_owned(),
        latest_build,
        ..rest::Workspace::default()
    }
}

/// A build of a workspace; only the newest one still has its agents.
pub(super) fn build(
    workspace: &Workspace,
    build: &Build,
    presence: &Presence,
) -> rest::WorkspaceBuild {
    let (transition, status) = match build.transition {
        Transition::Start => (rest::Transition::Start, rest::BuildStatus::Running),
        Transition::Stop => (rest::Transition::Stop, rest::BuildStatus::Stopped),
    };
    let running = build.transition == Transition::Start && build.id == workspace.build.id;
    let agents = workspace.agents.iter();
    let names = Names {
        owner: &workspace.owner_name,
        workspace: &workspace.name,
    };
    let resource = running.then(|| rest::Resource {
        id: build.id,
        created_at: Some(build.created_at),
        job_id: build.id,
        workspace_transition: transition,
        kind: "relay_agent".to_owned(),
        name: workspace.name.clone(),
        agents: agents
            .map(|found| agent(found, &names, build.id, presence))
            .collect(),
    });
    rest::WorkspaceBuild {
        id: build.id,
        created_at: Some(build.created_at),
        updated_at: Some(build.created_at),
        workspace_id: workspace.id,
        workspace_name: workspace.name.clone(),
        template_version_id: template_of(workspace),
        build_number: i32::try_from(build.number).unwrap_or(i32::MAX),
        transition,
        status,
        reason: "initiator".to_owned(),
        job: job(build.id, build),
        resources: resource.into_iter().collect(),
        ..rest::WorkspaceBuild::default()
    }
}

fn job(id: Uuid, build: &Build) -> rest::Job {
    rest::Job {
        id,
        created_at: Some(build.created_at),
        completed_at: Some(build.created_at),
        status: rest::JobStatus::Succeeded,
        error: String::new(),
        tags: BTreeMap::new(),
    }
}

/// What workspaces without a template seem to come from.
const TEMPLATE: &str = "relay";

/// The id of a workspace's template; a workspace without one is its own.
fn template_of(workspace: &Workspace) -> Uuid {
    let template = workspace.template.as_ref();
    template.map_or(workspace.id, |template| template.id)
}

pub(super) fn template(template: &Template) -> rest::Template {
    rest::Template {
        id: template.id,
        created_at: Some(template.created_at),
        updated_at: Some(template.updated_at),
        organization_id: Uuid::nil(),
        name: template.name.clone(),
        display_name: String::new(),
        active_version_id: template.id,
        max_port_share_level: template.max_share_level.to_string(),
        cors_behavior: template.cors_behavior.as_str().to_owned(),
    }
}

pub(super) fn share(workspace_id: Uuid, share: &Share) -> rest::PortShare {
    rest::PortShare {
        workspace_id,
        agent_name: share.agent_name.clone(),
        port: share.port,
        share_level: share.level.to_string(),
        protocol: share.protocol.scheme().to_owned(),
    }
}

pub(super) fn template_version(id: Uuid) -> rest::TemplateVersion {
    rest::TemplateVersion {
        id,
        name: TEMPLATE.to_owned(),
        created_at: None,
        updated_at: None,
        job: rest::Job {
            id,
            status: rest::JobStatus::Succeeded,
            ..rest::Job::default()
        },
        warnings: Vec::new(),
    }
}

/// What an app's host name is made of besides its own.
pub(super) struct Names<'a> {
    pub(super) owner: &'a str,
    pub(super) workspace: &'a str,
}

/// Whether an agent is connected.
pub(super) fn status(agent: &Agent, presence: &Presence) -> rest::AgentStatus {
    match (presence.last_seen(agent.id), agent.first_connected_at) {
        (Some(_), _) => rest::AgentStatus::Connected,
        (None, Some(_)) => rest::AgentStatus::Disconnected,
        (None, None) => rest::AgentStatus::Connecting,
    }
}

pub(super) fn agent(
    agent: &Agent,
    names: &Names<'_>,
    resource_id: Uuid,
    presence: &Presence,
) -> rest::WorkspaceAgent {
    let apps = agent.apps.iter();
    let seen = presence.last_seen(agent.id);
    let status = status(agent, presence);
    let healthy = status == rest::AgentStatus::Connected;
    rest::WorkspaceAgent {
        id: agent.id,
        created_at: Some(agent.created_at),
        updated_at: Some(agent.updated_at),
        // Must be there as soon as the status is not `connecting`: Coder's CLI relies on it.
        first_connected_at: agent.first_connected_at.or(seen),
        last_connected_at: seen.or(agent.last_connected_at),
        disconnected_at: agent.disconnected_at.filter(|_| seen.is_none()),
        started_at: agent.started_at,
        ready_at: agent.ready_at,
        status,
        lifecycle_state: agent.lifecycle.as_str().into(),
        name: agent.name.clone(),
        resource_id,
        architecture: "amd64".to_owned(),
        operating_system: "linux".to_owned(),
        version: agent.version.clone(),
        api_version: super::version::NEWEST.to_owned(),
        expanded_directory: agent.directory.clone(),
        apps: apps
            .map(|(found, health)| app(found, *health, names))
            .collect(),
        display_apps: vec!["port_forwarding_helper".to_owned()],
        health: rest::AgentHealth {
            healthy,
            reason: if healthy {
                ""
            } else {
                "agent is not connected"
            }
            .to_owned(),
        },
        connection_timeout_seconds: 120,
        startup_script_behavior: "non-blocking".to_owned(),
        ..rest::WorkspaceAgent::default()
    }
}

fn app(app: &App, health: AppHealth, names: &Names<'_>) -> rest::WorkspaceApp {
    let check = app.healthcheck.clone().unwrap_or_default();
    let number = |number| i32::try_from(number).unwrap_or(i32::MAX);
    rest::WorkspaceApp {
        id: app.id,
        url: app.url.clone(),
        external: app.external,
        slug: app.slug.clone(),
        display_name: app.display_name.clone(),
        command: app.command.clone(),
        icon: app.icon.clone(),
        subdomain: app.subdomain,
        subdomain_name: match app.subdomain {
            true => {
                AppHost::of_app(&app.slug, &app.agent, names.workspace, names.owner).to_string()
            }
            false => String::new(),
        },
        sharing_level: app.share.to_string(),
        healthcheck: rest::Healthcheck {
            url: check.url,
            interval: number(check.interval),
            threshold: number(check.threshold),
        },
        health: health.as_str().to_owned(),
        hidden: app.hidden,
        group: app.group.clone(),
        tooltip: app.tooltip.clone(),
        open_in: app.open_in.as_str().to_owned(),
        statuses: Vec::new(),
    }
}
