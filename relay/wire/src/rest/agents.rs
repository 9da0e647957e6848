//! Agents of workspaces, and how they are reached.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{AgentStatus, LifecycleState, WorkspaceApp, null_is_default};
use crate::derp_map::DerpMap;

/// An agent of a workspace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkspaceAgent {
    /// Id; its tunnel addresses come from it.
    pub id: Uuid,
    /// The agent that made this one.
    pub parent_id: Option<Uuid>,
    /// When it was made.
    pub created_at: Option<DateTime<Utc>>,
    /// When it last changed.
    pub updated_at: Option<DateTime<Utc>>,
    /// When it was first connected.
    pub first_connected_at: Option<DateTime<Utc>>,
    /// When it was last connected.
    pub last_connected_at: Option<DateTime<Utc>>,
    /// When it was lost.
    pub disconnected_at: Option<DateTime<Utc>>,
    /// When its start-up scripts began.
    pub started_at: Option<DateTime<Utc>>,
    /// When they ended.
    pub ready_at: Option<DateTime<Utc>>,
    /// Whether it is connected.
    pub status: AgentStatus,
    /// Where it is in its life.
    pub lifecycle_state: LifecycleState,
    /// Name.
    pub name: String,
    /// What it runs on.
    pub resource_id: Uuid,
    /// Processor, as Go names it.
    pub architecture: String,
    /// Operating system, as Go names it.
    pub operating_system: String,
    /// Version, with a leading `v`.
    pub version: String,
    /// Version of its API.
    pub api_version: String,
    /// Working directory.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub directory: String,
    /// The same, as the agent expanded it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub expanded_directory: String,
    /// Apps that it serves.
    #[serde(deserialize_with = "null_is_default")]
    pub apps: Vec<WorkspaceApp>,
    /// Sources of its log lines.
    #[serde(deserialize_with = "null_is_default")]
    pub log_sources: Vec<serde_json::Value>,
    /// Its scripts.
    #[serde(deserialize_with = "null_is_default")]
    pub scripts: Vec<serde_json::Value>,
    /// What it runs inside.
    #[serde(deserialize_with = "null_is_default")]
    pub subsystems: Vec<String>,
    /// Built-in apps that are shown.
    #[serde(deserialize_with = "null_is_default")]
    pub display_apps: Vec<String>,
    /// Whether it is well.
    pub health: AgentHealth,
    /// Seconds after which it counts as timed out.
    pub connection_timeout_seconds: i32,
    /// Where to read about trouble.
    pub troubleshooting_url: String,
    /// `blocking` or `non-blocking`.
    pub startup_script_behavior: String,
}

/// Whether an agent is well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentHealth {
    /// It is.
    pub healthy: bool,
    /// Why it is not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Answer to `GET /api/v2/workspaceagents/{id}/connection`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionInfo {
    /// The relays.
    pub derp_map: Option<DerpMap>,
    /// Whether relays are reached by WebSocket only.
    pub derp_force_websockets: bool,
    /// Whether only relays may be used.
    pub disable_direct_connections: bool,
    /// Last part of the names of workspaces.
    pub hostname_suffix: String,
}
