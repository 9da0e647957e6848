//! Names of workspaces and agents, as commands and SSH hosts write them (coder_facts §1.6, §3.4).

use std::str::FromStr;

use crate::{Error, Result};

/// `[owner/]workspace[.agent]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceName {
    /// The owner; `None` is the caller.
    pub owner: Option<String>,
    /// The workspace's name or id.
    pub workspace: String,
    /// The agent's name; `None` is the only one.
    pub agent: Option<String>,
}

impl FromStr for WorkspaceName {
    type Err = Error;

    /// What follows a second dot is ignored.
    fn from_str(text: &str) -> Result<Self> {
        let mut pieces = text.split('.');
        let identifier = pieces.next().unwrap_or_default();
        let agent = pieces
            .next()
            .filter(|agent| !agent.is_empty())
            .map(str::to_owned);
        let (owner, workspace) = match identifier.split('/').collect::<Vec<_>>()[..] {
            [workspace] => (None, workspace),
            [owner, workspace] => (Some(owner.to_owned()), workspace),
            _ => return Err(Error::WorkspaceName(text.to_owned())),
        };
        Ok(Self {
            owner,
            workspace: workspace.to_owned(),
            agent,
        })
    }
}

impl WorkspaceName {
    /// The owner as the API takes it.
    pub fn owner_or_me(&self) -> &str {
        self.owner.as_deref().unwrap_or("me")
    }
}

/// Chooses an agent by name; without one the workspace must have exactly one. `name_of` gives an
/// agent's name.
///
/// # Errors
/// When there is none, none of that name, or several to choose from.
pub fn pick_agent<'a, T>(
    agents: &'a [T],
    name: Option<&str>,
    name_of: impl Fn(&T) -> &str,
) -> Result<&'a T> {
    let known = || {
        agents
            .iter()
            .map(|agent| name_of(agent).to_owned())
            .collect()
    };
    match (agents, name) {
        ([], _) => Err(Error::NoAgents),
        (_, Some(name)) => agents
            .iter()
            .find(|agent| name_of(agent) == name)
            .ok_or_else(|| Error::AgentNotFound {
                name: name.to_owned(),
                known: known(),
            }),
        ([only], None) => Ok(only),
        (_, None) => Err(Error::SeveralAgents(known())),
    }
}

/// The looser names of SSH, as `[owner/]workspace[.agent]`: pieces may be joined by `/`, `.` or
/// `--`; three that dots alone join are agent, workspace and owner. More are left as they are.
pub fn normalize_ssh(text: &str) -> String {
    let pieces: Vec<&str> = text
        .split("--")
        .flat_map(|part| part.split(['/', '.']))
        .collect();
    let dots_only = !text.contains("--") && !text.contains('/');
    match pieces[..] {
        [workspace, agent] if dots_only => format!("{workspace}.{agent}"),
        [owner, workspace] => format!("{owner}/{workspace}"),
        [agent, workspace, owner] if dots_only => format!("{owner}/{workspace}.{agent}"),
        [owner, workspace, agent] => format!("{owner}/{workspace}.{agent}"),
        _ => text.to_owned(),
    }
}

/// The workspace part of an SSH host: without the prefix (`coder.`), else without the suffix
/// (`coder`, after a dot).
pub fn ssh_host<'a>(host: &'a str, prefix: &str, suffix: &str) -> &'a str {
    if !prefix.is_empty()
        && let Some(rest) = host.strip_prefix(prefix)
    {
        return rest;
    }
    let dotted = (!suffix.is_empty())
        .then(|| host.strip_suffix(suffix))
        .flatten();
    dotted
        .and_then(|rest| rest.strip_suffix('.'))
        .unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_names_may_mix_their_separators() {
        for (text, name) in [
            ("ws.agent", "ws.agent"),
            ("owner.ws--agent", "owner/ws.agent"),
            ("owner/ws/agent", "owner/ws.agent"),
            ("a.b/c", "a/b.c"),
            ("a--b/c", "a/b.c"),
            ("a--b.c.d", "a--b.c.d"),
        ] {
            assert_eq!(normalize_ssh(text), name, "{text}");
        }
    }
}
