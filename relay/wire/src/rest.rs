//! Bodies of the REST API, shared by client and server.
//!
//! Reading is lenient (absent and `null` fields take their default, unknown fields are skipped, unknown
//! state names become `Other`), because servers of many versions answer. Ids that may be missing are options.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::derp_map::DerpMap;

/// Header with the token of a user or an agent.
pub const TOKEN_HEADER: &str = "Coder-Session-Token";
/// Cookie with the token of a user or an agent.
pub const TOKEN_COOKIE: &str = "coder_session_token";
/// Header with the server's version, on every answer.
pub const VERSION_HEADER: &str = "X-Coder-Build-Version";

macro_rules! states {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            /// A state that this version does not know.
            #[default]
            Other,
        }

        impl $name {
            /// The state's name in the API.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::Other => "unknown",
                }
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                match text {
                    $($text => Self::$variant,)*
                    _ => Self::Other,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Option::<String>::deserialize(deserializer)?;
                Ok(Self::from(text.as_deref().unwrap_or_default()))
            }
        }
    };
}

states! {
    /// What a build does to its workspace.
    Transition {
        /// Starts it.
        Start = "start",
        /// Stops it.
        Stop = "stop",
        /// Deletes it.
        Delete = "delete",
    }
}

states! {
    /// Where a workspace is, told from its latest build.
    BuildStatus {
        /// Waiting for its turn.
        Pending = "pending",
        /// Being started.
        Starting = "starting",
        /// Started.
        Running = "running",
        /// Being stopped.
        Stopping = "stopping",
        /// Stopped.
        Stopped = "stopped",
        /// The build failed.
        Failed = "failed",
        /// The build is being cancelled.
        Canceling = "canceling",
        /// The build was cancelled.
        Canceled = "canceled",
        /// Being deleted.
        Deleting = "deleting",
        /// Deleted.
        Deleted = "deleted",
    }
}

states! {
    /// Where a job is.
    JobStatus {
        /// Waiting for its turn.
        Pending = "pending",
        /// At work.
        Running = "running",
        /// Done.
        Succeeded = "succeeded",
        /// Being cancelled.
        Canceling = "canceling",
        /// Cancelled.
        Canceled = "canceled",
        /// Failed.
        Failed = "failed",
    }
}

states! {
    /// Whether an agent is connected to its control plane.
    AgentStatus {
        /// Never seen yet.
        Connecting = "connecting",
        /// Connected.
        Connected = "connected",
        /// Was connected.
        Disconnected = "disconnected",
        /// Did not come within its time.
        Timeout = "timeout",
    }
}

states! {
    /// Where an agent is in its life.
    LifecycleState {
        /// Not started.
        Created = "created",
        /// Start-up scripts are running.
        Starting = "starting",
        /// They take too long.
        StartTimeout = "start_timeout",
        /// They failed.
        StartError = "start_error",
        /// All is up.
        Ready = "ready",
        /// Being shut down.
        ShuttingDown = "shutting_down",
        /// Shutting down takes too long.
        ShutdownTimeout = "shutdown_timeout",
        /// Shutting down failed.
        ShutdownError = "shutdown_error",
        /// Shut down.
        Off = "off",
    }
}

impl LifecycleState {
    /// Whether the agent is going away or gone.
    pub fn is_ending(self) -> bool {
        matches!(
            self,
            Self::ShuttingDown | Self::ShutdownTimeout | Self::ShutdownError | Self::Off
        )
    }
}

/// Body of every answer that is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorBody {
    /// What went wrong.
    pub message: String,
    /// More about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Fields that were refused.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub validations: Vec<Validation>,
}

/// A field that was refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Validation {
    /// Its name.
    pub field: String,
    /// Why.
    pub detail: String,
}

/// Answer to `GET /api/v2/buildinfo`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BuildInfo {
    /// Where the software comes from.
    pub external_url: String,
    /// Version, with a leading `v`.
    pub version: String,
    /// The deployment's address.
    pub dashboard_url: String,
    /// Whether usage facts are sent to the maker.
    pub telemetry: bool,
    /// Whether this is a workspace proxy.
    pub workspace_proxy: bool,
    /// Highest version of the agent API.
    pub agent_api_version: String,
    /// Version of the provisioner API.
    pub provisioner_api_version: String,
    /// Text for users of other versions.
    pub upgrade_message: String,
    /// Id of the deployment.
    pub deployment_id: String,
}

/// Body of `POST /api/v2/users/first`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateFirstUser {
    /// Address, used to log in.
    pub email: String,
    /// Name in addresses.
    pub username: String,
    /// Name to show.
    pub name: String,
    /// Password.
    pub password: String,
    /// Whether a trial licence is wanted.
    pub trial: bool,
}

/// Answer to `POST /api/v2/users/first`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedFirstUser {
    /// The new user.
    pub user_id: Uuid,
    /// Its organisation.
    pub organization_id: Uuid,
}

/// Body of `POST /api/v2/users/login`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoginWithPassword {
    /// Address.
    pub email: String,
    /// Password.
    pub password: String,
}

/// Answer to `POST /api/v2/users/login`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoginAnswer {
    /// The token.
    pub session_token: String,
}

/// Answer to `POST /api/v2/users/me/keys`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NewKey {
    /// The token.
    pub key: String,
}

/// A user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct User {
    /// Id.
    pub id: Uuid,
    /// Name in addresses.
    pub username: String,
    /// Name to show.
    pub name: String,
    /// Address.
    pub email: String,
    /// When it was made.
    pub created_at: Option<DateTime<Utc>>,
    /// `active`, `dormant` or `suspended`.
    pub status: String,
    /// How it logs in.
    pub login_type: String,
    /// Its organisations.
    #[serde(deserialize_with = "null_is_default")]
    pub organization_ids: Vec<Uuid>,
    /// Its roles.
    #[serde(deserialize_with = "null_is_default")]
    pub roles: Vec<Role>,
}

/// A role of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Role {
    /// Name.
    pub name: String,
    /// Name to show.
    pub display_name: String,
}

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

/// A template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Template {
    /// Id.
    pub id: Uuid,
    /// When it was made.
    pub created_at: Option<DateTime<Utc>>,
    /// When it last changed.
    pub updated_at: Option<DateTime<Utc>>,
    /// Its organisation.
    pub organization_id: Uuid,
    /// Its name.
    pub name: String,
    /// Its name to show.
    pub display_name: String,
    /// The version that new workspaces get.
    pub active_version_id: Uuid,
    /// The highest level at which ports are shared.
    pub max_port_share_level: String,
    /// `simple` or `passthru`.
    pub cors_behavior: String,
}

/// Body of `PATCH /api/v2/templates/{id}`, as far as it is heeded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateTemplate {
    /// The highest level at which ports are shared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_port_share_level: Option<String>,
    /// `simple` or `passthru`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors_behavior: Option<String>,
}

/// Answer to `GET /api/v2/applications/host`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AppHost {
    /// The wildcard of apps' host names; empty when they have none.
    pub host: String,
}

/// Answer to `GET /api/v2/regions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Regions {
    /// The places where apps are served.
    #[serde(deserialize_with = "null_is_default")]
    pub regions: Vec<Region>,
}

/// A place where apps are served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Region {
    /// Id.
    pub id: Uuid,
    /// Name.
    pub name: String,
    /// Name to show.
    pub display_name: String,
    /// Picture.
    pub icon_url: String,
    /// Whether it works.
    pub healthy: bool,
    /// Where apps without a host name of their own are.
    pub path_app_url: String,
    /// The wildcard of apps' host names; empty when they have none.
    pub wildcard_hostname: String,
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

/// Answer to `GET /api/v2/deployment/ssh`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SshConfig {
    /// What host names of workspaces start with.
    pub hostname_prefix: String,
    /// What they end with.
    pub hostname_suffix: String,
    /// Options for every host.
    #[serde(deserialize_with = "null_is_default")]
    pub ssh_config_options: std::collections::BTreeMap<String, String>,
}

/// Answer to `GET /api/v2/templateversions/{id}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TemplateVersion {
    /// Id.
    pub id: Uuid,
    /// Name.
    pub name: String,
    /// When it was made.
    pub created_at: Option<DateTime<Utc>>,
    /// When it last changed.
    pub updated_at: Option<DateTime<Utc>>,
    /// The job that read it.
    pub job: Job,
    /// What is odd about it.
    pub warnings: Vec<String>,
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
