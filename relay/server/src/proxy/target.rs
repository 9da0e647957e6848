//! Where an app is, and how far it is shared: looked up in the database (coder_facts §2.7).

use uuid::Uuid;

use super::asked::Asked;
use crate::apps::access::{Method, ShareLevel};
use crate::apps::cors::Behavior;
use crate::apps::hostname::{Protocol, port_info};
use crate::apps::ports::{FIRST_PORT, effective};
use crate::error::Result;
use crate::store::{Store, Transition, Workspace};

/// An app or port that exists, or a place of a workspace where there is none.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) workspace: Uuid,
    pub(super) owner: Uuid,
    pub(super) owner_name: String,
    pub(super) workspace_name: String,
    pub(super) share: ShareLevel,
    pub(super) cors: Behavior,
    /// A port, and no app of the template.
    pub(super) is_port: bool,
    /// The agent and the app's URL as seen from there.
    pub(super) place: Result<(Uuid, String), Trouble>,
}

/// Why there is nothing to be reached. It is told only to those who have access.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    /// The workspace does not run.
    Stopped,
    /// A port, and several agents that could have it.
    SeveralAgents,
    /// Ports have no path.
    PortOnPath,
    /// The agent's own.
    ReservedPort(u16),
    /// Nothing of that name.
    Missing,
}

/// Looks an app up; `None` when there is no such workspace.
pub(super) async fn find(store: &Store, asked: &Asked) -> Result<Option<Target>> {
    let identity = &asked.identity;
    let found = store.workspace_by_names(&identity.username_or_id, &identity.workspace_name_or_id);
    let Some(workspace) = found.await? else {
        return Ok(None);
    };
    let named = named_port(asked);
    let app = match named {
        Some(_) => None,
        None => app_of(store, asked, &workspace).await?,
    };
    let is_port = app.is_none();
    let (share, place) = match (
        app,
        named.or_else(|| port_info(&asked.identity.app_slug_or_port)),
    ) {
        (Some(place), _) => place,
        (None, None) => (ShareLevel::Owner, Err(Trouble::Missing)),
        (None, Some(_)) if asked.method == Method::Path => {
            (ShareLevel::Owner, Err(Trouble::PortOnPath))
        }
        (None, Some((port, protocol))) => port_of(store, asked, &workspace, port, protocol).await?,
    };
    let stopped = workspace.build.transition != Transition::Start;
    Ok(Some(Target {
        workspace: workspace.id,
        owner: workspace.owner_id,
        share,
        cors: workspace.cors_behavior(),
        is_port,
        place: if stopped {
            Err(Trouble::Stopped)
        } else {
            place
        },
        owner_name: workspace.owner_name,
        workspace_name: workspace.name,
    }))
}

type Place = (ShareLevel, Result<(Uuid, String), Trouble>);

/// The port that a request can only mean as such: the parser leaves an agent beside nothing else.
fn named_port(asked: &Asked) -> Option<(u16, Protocol)> {
    let with_agent =
        asked.method == Method::Subdomain && !asked.identity.agent_name_or_id.is_empty();
    with_agent
        .then(|| port_info(&asked.identity.app_slug_or_port))
        .flatten()
}

/// The template's app of that name.
async fn app_of(store: &Store, asked: &Asked, workspace: &Workspace) -> Result<Option<Place>> {
    let slug = &asked.identity.app_slug_or_port;
    let found = store.app_by_slug(workspace.id, slug).await?;
    Ok(found.map(|(app, agent)| {
        let url = if app.external { String::new() } else { app.url };
        (app.share, Ok((agent, url)))
    }))
}

async fn port_of(
    store: &Store,
    asked: &Asked,
    workspace: &Workspace,
    port: u16,
    protocol: Protocol,
) -> Result<Place> {
    let name = &asked.identity.agent_name_or_id;
    let owner = |trouble| Ok((ShareLevel::Owner, Err(trouble)));
    let agent = match (name.as_str(), &workspace.agents[..]) {
        ("", [agent]) => agent,
        ("", []) => return owner(Trouble::Missing),
        ("", _) => return owner(Trouble::SeveralAgents),
        (name, agents) => {
            // A browser writes every host in lower case.
            let like = |agent: &&crate::store::Agent| agent.name.eq_ignore_ascii_case(name);
            let exact = agents.iter().find(|agent| agent.name == name);
            match exact.or_else(|| agents.iter().find(like)) {
                Some(agent) => agent,
                None => return owner(Trouble::Missing),
            }
        }
    };
    let share = store.share(workspace.id, &agent.name, port).await?;
    let level = share.map_or(ShareLevel::Owner, |share| {
        effective(share.level, workspace.max_share_level())
    });
    if port < FIRST_PORT {
        return Ok((level, Err(Trouble::ReservedPort(port))));
    }
    let url = format!("{}://127.0.0.1:{port}", protocol.scheme());
    Ok((level, Ok((agent.id, url))))
}
