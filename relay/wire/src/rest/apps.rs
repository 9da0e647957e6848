//! Apps of agents and shared ports.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::null_is_default;

/// An app of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkspaceApp {
    /// Id.
    pub id: Uuid,
    /// Where the agent reaches it, or where the browser goes when it is external.
    pub url: String,
    /// Whether the browser goes to `url` itself.
    pub external: bool,
    /// Name in addresses.
    pub slug: String,
    /// Name to show.
    pub display_name: String,
    /// Command to run in a terminal instead.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub command: String,
    /// Icon.
    pub icon: String,
    /// Whether it has a host name of its own.
    pub subdomain: bool,
    /// That host name's first part.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subdomain_name: String,
    /// `owner`, `authenticated`, `organization` or `public`.
    pub sharing_level: String,
    /// How its health is watched.
    pub healthcheck: Healthcheck,
    /// `disabled`, `initializing`, `healthy` or `unhealthy`.
    pub health: String,
    /// Whether the dashboard leaves it out.
    pub hidden: bool,
    /// Heading to show it under.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Markdown to show beside it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tooltip: String,
    /// `slim-window` or `tab`.
    pub open_in: String,
    /// What it said about itself.
    #[serde(deserialize_with = "null_is_default")]
    pub statuses: Vec<serde_json::Value>,
}

/// How the health of an app is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Healthcheck {
    /// What to ask.
    pub url: String,
    /// Seconds between two questions.
    pub interval: i32,
    /// Failures that make it unhealthy.
    pub threshold: i32,
}

/// A shared port of a workspace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortShare {
    /// The workspace.
    pub workspace_id: Uuid,
    /// The agent's name.
    pub agent_name: String,
    /// The port.
    pub port: u16,
    /// `organization`, `authenticated` or `public`.
    pub share_level: String,
    /// `http` or `https`.
    pub protocol: String,
}

/// Answer to `GET /api/v2/workspaces/{id}/port-share`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortShares {
    /// All of them, by port.
    #[serde(deserialize_with = "null_is_default")]
    pub shares: Vec<PortShare>,
}
