//! Workspaces and their builds.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{BuildStatus, JobStatus, Transition, WorkspaceAgent, null_is_default};

/// Answer to `GET /api/v2/workspaces`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Workspaces {
    /// This page.
    #[serde(deserialize_with = "null_is_default")]
    pub workspaces: Vec<Workspace>,
    /// How many there are in all.
    pub count: i64,
}

/// A workspace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Workspace {
    /// Id.
    pub id: Uuid,
    /// When it was made.
    pub created_at: Option<DateTime<Utc>>,
    /// When it last changed.
    pub updated_at: Option<DateTime<Utc>>,
    /// Its owner.
    pub owner_id: Uuid,
    /// Its owner's user name.
    pub owner_name: String,
    /// Its organisation.
    pub organization_id: Uuid,
    /// Its name.
    pub name: String,
    /// Its template.
    pub template_id: Uuid,
    /// Its template's name.
    pub template_name: String,
    /// Its template's name to show.
    pub template_display_name: String,
    /// The version that the template recommends.
    pub template_active_version_id: Uuid,
    /// Whether only that version may be started.
    pub template_require_active_version: bool,
    /// Whether its template has a newer version.
    pub outdated: bool,
    /// When it was last used.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it will be deleted.
    pub deleting_at: Option<DateTime<Utc>>,
    /// Since when it is dormant.
    pub dormant_at: Option<DateTime<Utc>>,
    /// Whether its agents are well.
    pub health: WorkspaceHealth,
    /// `always` or `never`.
    pub automatic_updates: String,
    /// The build that says what state it is in.
    pub latest_build: WorkspaceBuild,
}

impl Workspace {
    /// All agents of the latest build.
    pub fn agents(&self) -> impl Iterator<Item = &WorkspaceAgent> {
        let resources = self.latest_build.resources.iter();
        resources.flat_map(|resource| &resource.agents)
    }
}

/// Whether the agents of a workspace are well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkspaceHealth {
    /// All are.
    pub healthy: bool,
    /// Those that are not.
    #[serde(deserialize_with = "null_is_default")]
    pub failing_agents: Vec<Uuid>,
}

/// A build of a workspace: one start, stop or deletion.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkspaceBuild {
    /// Id.
    pub id: Uuid,
    /// When it was made.
    pub created_at: Option<DateTime<Utc>>,
    /// When it last changed.
    pub updated_at: Option<DateTime<Utc>>,
    /// Its workspace.
    pub workspace_id: Uuid,
    /// Its workspace's name.
    pub workspace_name: String,
    /// The version that was built.
    pub template_version_id: Uuid,
    /// Number, from 1.
    pub build_number: i32,
    /// What it does.
    pub transition: Transition,
    /// Where it is.
    pub status: BuildStatus,
    /// Who or what asked for it.
    pub reason: String,
    /// When the workspace will be stopped.
    pub deadline: Option<DateTime<Utc>>,
    /// The latest time that the deadline can move to.
    pub max_deadline: Option<DateTime<Utc>>,
    /// Its job.
    pub job: Job,
    /// What it made.
    #[serde(deserialize_with = "null_is_default")]
    pub resources: Vec<Resource>,
}

/// The work behind a build or a template version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Job {
    /// Id.
    pub id: Uuid,
    /// When it was made.
    pub created_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
    /// Where it is.
    pub status: JobStatus,
    /// Why it failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Who may do it.
    #[serde(deserialize_with = "null_is_default")]
    pub tags: std::collections::BTreeMap<String, String>,
}

/// Something that a build made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resource {
    /// Id.
    pub id: Uuid,
    /// When it was made.
    pub created_at: Option<DateTime<Utc>>,
    /// The job that made it.
    pub job_id: Uuid,
    /// The transition of that job.
    pub workspace_transition: Transition,
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Name.
    pub name: String,
    /// Agents that run on it.
    #[serde(deserialize_with = "null_is_default")]
    pub agents: Vec<WorkspaceAgent>,
}

/// Body of `POST /api/v2/workspaces/{id}/builds`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateBuild {
    /// The version to build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_version_id: Option<Uuid>,
    /// What to do.
    pub transition: Transition,
    /// Values of the template's parameters.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub rich_parameter_values: Vec<Parameter>,
    /// Why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Value of a template's parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Parameter {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// Body of `POST /api/v2/workspaces/{id}/usage`, where one is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// The agent in use.
    pub agent_id: Uuid,
    /// What it is used for.
    pub app_name: String,
}
