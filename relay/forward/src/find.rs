//! From a name on the command line to a connected agent: looks the workspace up, starts it where
//! that is allowed, chooses the agent, and waits for it.

use std::time::Duration;

use relay_control::rest::Client;
use relay_wire::names::{WorkspaceName, pick_agent};
use relay_wire::rest::{AgentStatus, BuildStatus, Transition, Workspace, WorkspaceAgent};

use crate::Error;
use crate::event::{Event, Reporter};

const BUILD_POLL: Duration = Duration::from_secs(1);
const AGENT_POLL: Duration = Duration::from_millis(500);

/// A workspace and one agent of it.
#[derive(Clone, Debug)]
pub struct Found {
    /// The workspace.
    pub workspace: Workspace,
    /// The agent.
    pub agent: WorkspaceAgent,
}

/// Looks a workspace up and chooses the agent, in whatever state they are.
pub async fn find(client: &Client, name: &WorkspaceName) -> Result<Found, Error> {
    let workspace = look_up(client, name).await?;
    let agent = choose(&workspace, name.agent.as_deref())?.clone();
    Ok(Found { workspace, agent })
}

/// Finds an agent that is connected, and makes it so where it can.
pub(crate) async fn find_connected(
    client: &Client,
    name: &WorkspaceName,
    autostart: bool,
    report: &Reporter,
) -> Result<Found, Error> {
    let mut workspace = look_up(client, name).await?;
    let title = workspace.name.clone();
    let mut may_start = autostart;
    let mut told = false;
    loop {
        let build = &workspace.latest_build;
        let wait = match (build.transition, build.status) {
            (Transition::Start, BuildStatus::Running) => false,
            (Transition::Start, BuildStatus::Pending | BuildStatus::Starting) => true,
            (Transition::Start, BuildStatus::Other) if build.job.completed_at.is_some() => false,
            (_, BuildStatus::Stopped) if may_start => {
                may_start = false;
                report.tell(Event::StartingWorkspace {
                    workspace: title.clone(),
                });
                client.start_workspace(&workspace).await?;
                true
            }
            (_, BuildStatus::Stopped) if !autostart => return Err(Error::Stopped(title)),
            (_, BuildStatus::Stopped) => true,
            (_, status) => {
                return Err(Error::NotRunning {
                    workspace: title,
                    status: status.to_string(),
                });
            }
        };
        if !wait {
            break;
        }
        if !told {
            told = true;
            report.tell(Event::WaitingForBuild {
                workspace: title.clone(),
            });
        }
        tokio::time::sleep(BUILD_POLL).await;
        workspace = client.workspace_by_id(workspace.id).await?;
    }
    let mut agent = choose(&workspace, name.agent.as_deref())?.clone();
    let mut told = false;
    loop {
        if agent.lifecycle_state.is_ending() {
            let state = agent.lifecycle_state.to_string().replace('_', " ");
            return Err(Error::AgentEnding {
                agent: agent.name,
                state,
            });
        }
        if agent.status == AgentStatus::Connected {
            return Ok(Found { workspace, agent });
        }
        if !told {
            told = true;
            let status = agent.status.to_string();
            report.tell(Event::WaitingForAgent {
                agent: agent.name.clone(),
                status,
            });
        }
        tokio::time::sleep(AGENT_POLL).await;
        agent = client.agent(agent.id).await?;
    }
}

/// A UUID is tried as an id first, since a name may look like one.
async fn look_up(client: &Client, name: &WorkspaceName) -> Result<Workspace, Error> {
    if let (None, Ok(id)) = (&name.owner, name.workspace.parse()) {
        match client.workspace_by_id(id).await {
            Err(error) if error.is_not_found() => {}
            result => return Ok(result?),
        }
    }
    let owner = name.owner_or_me();
    client
        .workspace(owner, &name.workspace)
        .await
        .map_err(|error| match error.is_not_found() {
            true => Error::UnknownWorkspace(match &name.owner {
                Some(owner) => format!("{owner}/{}", name.workspace),
                None => name.workspace.clone(),
            }),
            false => error.into(),
        })
}

/// The agent by that name, or the only one.
pub(crate) fn choose<'a>(
    workspace: &'a Workspace,
    name: Option<&str>,
) -> Result<&'a WorkspaceAgent, Error> {
    let agents: Vec<_> = workspace.agents().collect();
    let title = || workspace.name.clone();
    let picked = pick_agent(&agents, name, |agent| &agent.name);
    picked.copied().map_err(|error| match error {
        relay_wire::Error::AgentNotFound { name, known } => Error::UnknownAgent {
            workspace: title(),
            agent: name,
            names: known.join(", "),
        },
        relay_wire::Error::SeveralAgents(names) => {
            let names = names
                .iter()
                .map(|name| format!("{}.{name}", workspace.name));
            Error::SeveralAgents {
                workspace: title(),
                names: names.collect::<Vec<_>>().join(", "),
            }
        }
        _ => Error::NoAgents(title()),
    })
}

#[cfg(test)]
mod tests {
    use relay_wire::rest::Resource;

    use super::*;

    fn workspace(agents: &[&str]) -> Workspace {
        let agents = agents
            .iter()
            .map(|name| WorkspaceAgent {
                name: (*name).to_owned(),
                ..Default::default()
            })
            .collect();
        let mut workspace = Workspace {
            name: "dev".to_owned(),
            ..Default::default()
        };
        workspace.latest_build.resources = vec![Resource {
            agents,
            ..Default::default()
        }];
        workspace
    }

    #[test]
    fn the_only_agent_needs_no_name_and_among_several_one_is_asked_for() {
        assert_eq!(choose(&workspace(&["main"]), None).unwrap().name, "main");
        let two = workspace(&["main", "gpu"]);
        assert_eq!(choose(&two, Some("gpu")).unwrap().name, "gpu");
        let error = choose(&two, None).unwrap_err().to_string();
        assert!(error.contains("dev.main, dev.gpu"), "{error}");
    }

    #[test]
    fn an_agent_that_is_not_there_is_named_with_those_that_are() {
        let error = choose(&workspace(&["main", "gpu"]), Some("cpu"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"cpu\"") && error.contains("main, gpu"),
            "{error}"
        );
        assert!(matches!(
            choose(&workspace(&[]), None),
            Err(Error::NoAgents(_))
        ));
    }
}
