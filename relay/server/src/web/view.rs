//! What a workspace looks like on its page.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use futures_util::future::join_all;
use relay_tunnel::path::PathState;
use uuid::Uuid;

use super::markdown;
use super::spark::Spark;
use super::visits::{self, Connections, Used, Uses, Visit};
use crate::apps::access::ShareLevel;
use crate::apps::hostname::{AppHost, Protocol};
use crate::apps::ports::{ListeningPort, Share, effective};
use crate::dialer::{DialError, ListenError, listening_ports};
use crate::state::State;
use crate::store::{Agent, App, AppHealth, Transition, Workspace};
use crate::traffic::{REPORT, SLOT};

/// Longest tooltip that is shown without being asked for, bytes.
const LONG: usize = 120;

/// What listens, as far as it is known.
#[derive(Clone)]
pub(super) enum Listening {
    Asking,
    Ports(Vec<ListeningPort>),
    Unknown(String),
}

/// The answers of all connected agents; those that take longer than `limit` are being asked still.
pub(super) async fn listening(
    state: &State,
    workspace: &Workspace,
    limit: Duration,
) -> HashMap<Uuid, Listening> {
    let connected = workspace
        .agents
        .iter()
        .filter(|agent| is_running(workspace) && state.presence.last_seen(agent.id).is_some());
    let asked = connected.map(async |agent| {
        let answer = tokio::time::timeout(limit, listening_ports(state, agent)).await;
        let found = match answer {
            Err(_) => Listening::Asking,
            Ok(Ok(ports)) => Listening::Ports(ports),
            Ok(Err(ListenError::Dial(DialError::NotConnected))) => Listening::Asking,
            Ok(Err(error)) => Listening::Unknown(error.to_string()),
        };
        (agent.id, found)
    });
    join_all(asked).await.into_iter().collect()
}

pub(super) fn is_running(workspace: &Workspace) -> bool {
    workspace.build.transition == Transition::Start
}

/// What the database knows besides the workspace.
pub(super) struct Known {
    pub(super) shares: Vec<Share>,
    pub(super) uses: Arc<Uses>,
    pub(super) visits: Vec<Visit>,
}

impl Known {
    /// Reads it; the use of apps is summed up, so it may be given from before.
    pub(super) async fn of(
        state: &State,
        workspace: Uuid,
        uses: Option<Arc<Uses>>,
    ) -> crate::Result<Self> {
        let uses = match uses {
            Some(uses) => uses,
            None => Arc::new(Uses::of(&state.store, workspace).await?),
        };
        Ok(Self {
            shares: state.store.shares(workspace).await?,
            uses,
            visits: visits::latest(&state.store, workspace).await?,
        })
    }
}

/// The part of a workspace's page that changes while it is looked at.
#[derive(Template)]
#[template(path = "live.html")]
pub(super) struct Live {
    pub(super) id: Uuid,
    token: String,
    running: bool,
    /// Ports can be opened: there is a wildcard.
    wildcard: bool,
    agents: Vec<AgentView>,
    maximum: &'static str,
    limited: bool,
    visits: Vec<Visit>,
}

struct AgentView {
    name: String,
    status: Status,
    groups: Vec<Group>,
    shared: Vec<PortView>,
    listening: Vec<PortView>,
    /// Why the list may be missing; empty where it is there.
    trouble: String,
    asking: bool,
    connected: bool,
    levels: Vec<Level>,
    /// All that goes through its tunnels, as it tells.
    tunnels: Option<Spark>,
    connections: String,
}

/// How an agent is, in a word and a sentence.
pub(super) struct Status {
    /// `good`, `wait`, `bad` or `off`, for the colour.
    pub(super) tone: &'static str,
    pub(super) word: &'static str,
    pub(super) path: &'static str,
    pub(super) detail: String,
}

struct Group {
    name: String,
    tiles: Vec<Tile>,
}

struct Tile {
    name: String,
    initial: String,
    icon: String,
    href: String,
    /// Why there is no link; empty where there is one.
    blocked: String,
    tone: &'static str,
    health: &'static str,
    who: &'static str,
    /// HTML.
    tooltip: String,
    /// It is shown only when it is asked for.
    long: bool,
    used: Option<Used>,
    spark: Option<Spark>,
}

struct PortView {
    port: u16,
    process: String,
    protocol: &'static str,
    http: String,
    https: String,
    /// Why there are no links.
    blocked: String,
    who: &'static str,
    shared: bool,
    listens: bool,
    cut: bool,
    levels: Vec<Level>,
    used: Option<Used>,
    spark: Option<Spark>,
}

impl PortView {
    fn href(&self) -> &str {
        if self.protocol == "https" {
            &self.https
        } else {
            &self.http
        }
    }
}

/// A level to choose.
#[derive(Clone)]
struct Level {
    name: &'static str,
    label: &'static str,
    hint: &'static str,
    chosen: bool,
    allowed: bool,
}

fn levels(chosen: ShareLevel, maximum: ShareLevel) -> Vec<Level> {
    [
        (ShareLevel::Owner, "Private"),
        (ShareLevel::Organization, "Organization"),
        (ShareLevel::Authenticated, "Signed-in"),
        (ShareLevel::Public, "Public"),
    ]
    .into_iter()
    .map(|(level, label)| Level {
        name: level.as_str(),
        label,
        hint: who(level),
        chosen: level == chosen,
        allowed: level <= maximum,
    })
    .collect()
}

/// Who can see what is shared so.
pub(super) fn who(level: ShareLevel) -> &'static str {
    match level {
        ShareLevel::Owner => "Only the owner",
        ShareLevel::Organization => "Members of the organization",
        ShareLevel::Authenticated => "Everybody who signs in",
        ShareLevel::Public => "Anybody with the link",
    }
}

/// How an agent is at the moment.
pub(super) fn status(state: &State, workspace: &Workspace, agent: &Agent) -> Status {
    let plain = |tone, word, detail: &str| Status {
        tone,
        word,
        path: "",
        detail: detail.to_owned(),
    };
    if !is_running(workspace) {
        return plain("off", "Stopped", "");
    }
    if state.presence.last_seen(agent.id).is_none() {
        return match agent.first_connected_at {
            Some(_) => plain(
                "bad",
                "Disconnected",
                "Its agent is gone. Check that the machine is on and “relay agent” runs there.",
            ),
            None => plain(
                "wait",
                "Waiting for its agent",
                "Run “relay agent” in the workspace with the token that was printed when the \
                 workspace was made.",
            ),
        };
    }
    let (path, detail) = match state.dialer.path(agent.id) {
        Some(PathState::Direct(address)) => ("direct", format!("Straight to {address}")),
        Some(PathState::Relayed(region, reason)) => {
            ("relayed", format!("Through relay {region}: {reason}"))
        }
        Some(PathState::None) | None => ("", String::new()),
    };
    Status {
        tone: "good",
        word: "Connected",
        path,
        detail,
    }
}

impl Live {
    pub(super) fn new(
        state: &State,
        workspace: &Workspace,
        known: Known,
        listening: &HashMap<Uuid, Listening>,
        token: String,
    ) -> Self {
        let maximum = workspace.max_share_level();
        let shares = &known.shares;
        let context = Context {
            state,
            workspace,
            uses: &known.uses,
        };
        let agents = workspace.agents.iter();
        Self {
            id: workspace.id,
            token,
            running: is_running(workspace),
            wildcard: state.apps.pattern.is_some(),
            agents: agents
                .map(|agent| context.agent(agent, shares, listening.get(&agent.id)))
                .collect(),
            maximum: who(maximum),
            limited: maximum < ShareLevel::Public,
            visits: known.visits,
        }
    }
}

struct Context<'a> {
    state: &'a State,
    workspace: &'a Workspace,
    uses: &'a Uses,
}

impl Context<'_> {
    fn agent(&self, agent: &Agent, shares: &[Share], listening: Option<&Listening>) -> AgentView {
        let status = status(self.state, self.workspace, agent);
        let open = self.state.usage.connections(agent.id);
        let found: &[ListeningPort] = match listening {
            Some(Listening::Ports(ports)) => ports,
            _ => &[],
        };
        let own: Vec<&Share> = shares
            .iter()
            .filter(|share| share.agent_name == agent.name)
            .collect();
        let shared = own.iter().map(|share| {
            let listens = found.iter().find(|port| port.port == share.port);
            self.port(agent, &open, share.port, listens, Some(share))
        });
        let unshared = found
            .iter()
            .filter(|port| !own.iter().any(|share| share.port == port.port));
        let tunnels = self.state.traffic.tunnels(agent.id);
        let connections = tunnels.as_ref().map_or(0, |(_, connections)| *connections);
        AgentView {
            name: agent.name.clone(),
            tunnels: tunnels.map(|(history, _)| Spark::new(&history, REPORT)),
            connections: visits::counted(connections, "connection", "connections"),
            connected: status.word == "Connected",
            groups: self.groups(agent, &open),
            shared: shared.collect(),
            listening: unshared
                .map(|port| self.port(agent, &open, port.port, Some(port), None))
                .collect(),
            trouble: match listening {
                Some(Listening::Unknown(why)) => why.clone(),
                _ => String::new(),
            },
            asking: matches!(listening, None | Some(Listening::Asking)),
            levels: levels(ShareLevel::Owner, self.workspace.max_share_level()),
            status,
        }
    }

    fn host(&self, slug_or_port: String, agent: &str) -> AppHost {
        AppHost {
            prefix: String::new(),
            slug_or_port,
            agent: agent.to_owned(),
            workspace: self.workspace.name.clone(),
            user: self.workspace.owner_name.clone(),
        }
    }

    fn url(&self, host: &AppHost) -> Result<String, String> {
        match self.state.apps.app_url(host, &self.state.access_url) {
            Some(url) => url.map_err(|error| error.to_string()),
            None => Err(NO_WILDCARD.to_owned()),
        }
    }

    fn port(
        &self,
        agent: &Agent,
        open: &Connections,
        port: u16,
        listens: Option<&ListeningPort>,
        share: Option<&&Share>,
    ) -> PortView {
        let url = |protocol| port_url(self.state, self.workspace, &agent.name, port, protocol);
        let (http, https) = (url(Protocol::Http), url(Protocol::Https));
        let maximum = self.workspace.max_share_level();
        let asked = share.map_or(ShareLevel::Owner, |share| share.level);
        let level = effective(asked, maximum);
        let history = self.state.traffic.history(agent.id, port);
        PortView {
            port,
            process: listens.map_or_else(String::new, |port| port.process_name.clone()),
            protocol: share
                .map_or(Protocol::Http, |share| share.protocol)
                .scheme(),
            blocked: http
                .as_ref()
                .err()
                .or(https.as_ref().err())
                .cloned()
                .unwrap_or_default(),
            http: http.unwrap_or_default(),
            https: https.unwrap_or_default(),
            who: who(level),
            shared: share.is_some(),
            listens: listens.is_some(),
            cut: level < asked,
            levels: levels(level, maximum),
            used: self.uses.of_port(&agent.name, port, open),
            spark: history.as_ref().map(|history| Spark::new(history, SLOT)),
        }
    }

    fn groups(&self, agent: &Agent, open: &Connections) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for (app, health) in agent.apps.iter().filter(|(app, _)| !app.hidden) {
            let tile = self.tile(agent, app, *health, open);
            match groups.iter_mut().find(|group| group.name == app.group) {
                Some(group) => group.tiles.push(tile),
                None => groups.push(Group {
                    name: app.group.clone(),
                    tiles: vec![tile],
                }),
            }
        }
        groups
    }

    fn tile(&self, agent: &Agent, app: &App, health: AppHealth, open: &Connections) -> Tile {
        let name = match app.display_name.is_empty() {
            true => app.slug.clone(),
            false => app.display_name.clone(),
        };
        let href = match app {
            app if app.external && is_link(&app.url) => Ok(app.url.clone()),
            app if app.external => Err("Its address is none that a browser opens.".to_owned()),
            app if !app.command.is_empty() => {
                Err("It is a command: run it in a terminal of the workspace.".to_owned())
            }
            app if app.subdomain => {
                let (workspace, owner) = (&self.workspace.name, &self.workspace.owner_name);
                self.url(&AppHost::of_app(&app.slug, &agent.name, workspace, owner))
            }
            app => {
                let (user, workspace) = (&self.workspace.owner_name, &self.workspace.name);
                let path = self.state.apps.path_app_url(user, workspace, &app.slug);
                path.ok_or_else(|| "Apps below the dashboard's own address are off.".to_owned())
            }
        };
        let (tone, health) = match health {
            AppHealth::Disabled => ("none", ""),
            AppHealth::Initializing => ("wait", "Starting"),
            AppHealth::Healthy => ("good", "Healthy"),
            AppHealth::Unhealthy => ("bad", "Unhealthy"),
        };
        let port = url::Url::parse(&app.url).ok();
        let port = port.and_then(|url| url.port_or_known_default());
        let history = port
            .filter(|_| !app.external)
            .and_then(|port| self.state.traffic.history(agent.id, port));
        Tile {
            initial: name
                .chars()
                .next()
                .map(|c| c.to_uppercase().to_string())
                .unwrap_or_default(),
            name,
            icon: if is_picture(&app.icon) {
                app.icon.clone()
            } else {
                String::new()
            },
            blocked: href.as_ref().err().cloned().unwrap_or_default(),
            href: href.unwrap_or_default(),
            tone,
            health,
            who: if app.external { "" } else { who(app.share) },
            tooltip: markdown::html(&app.tooltip),
            long: app.tooltip.len() > LONG || app.tooltip.trim().contains('\n'),
            used: self.uses.of_app(&agent.name, &app.slug, open),
            spark: history.as_ref().map(|history| Spark::new(history, SLOT)),
        }
    }
}

const NO_WILDCARD: &str = "This server has no wildcard address for ports. Its administrator can \
    set one with --wildcard-access-url.";

/// The address of a port, or why there is none.
pub(super) fn port_url(
    state: &State,
    workspace: &Workspace,
    agent: &str,
    port: u16,
    protocol: Protocol,
) -> Result<String, String> {
    let context = Context {
        state,
        workspace,
        uses: &Uses::default(),
    };
    let mark = if protocol == Protocol::Https { "s" } else { "" };
    context.url(&context.host(format!("{port}{mark}"), agent))
}

/// Only what cannot run scripts in the dashboard's name.
fn is_link(url: &str) -> bool {
    url::Url::parse(url).is_ok_and(|url| {
        !matches!(
            url.scheme(),
            "javascript" | "data" | "vbscript" | "blob" | "file"
        )
    })
}

fn is_picture(icon: &str) -> bool {
    icon.starts_with("https://") || (icon.starts_with('/') && !icon.starts_with("//"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_cannot_put_scripts_into_links() {
        assert!(is_link("https://example.com/") && is_link("vscode://open?x=1"));
        for bad in [
            "javascript:alert(1)",
            " JavaScript:alert(1)",
            "data:text/html,x",
            "x",
            "",
        ] {
            assert!(!is_link(bad), "{bad}");
        }
        assert!(is_picture("/icon/code.svg") && is_picture("https://example.com/a.png"));
        assert!(!is_picture("//evil.test/a.png") && !is_picture("javascript:x"));
    }

    #[test]
    fn levels_above_the_maximum_cannot_be_chosen() {
        let levels = levels(ShareLevel::Owner, ShareLevel::Authenticated);
        let allowed: Vec<bool> = levels.iter().map(|level| level.allowed).collect();
        assert_eq!(allowed, [true, true, true, false]);
        assert!(levels[0].chosen && !levels[1].chosen);
    }
}
