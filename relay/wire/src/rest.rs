//! Bodies of the REST API, shared by client and server.
//!
//! Reading is lenient (absent and `null` fields take their default, unknown fields are skipped, unknown
//! state names become `Other`), because servers of many versions answer. Ids that may be missing are options.

mod agents;
mod apps;
mod deployment;
mod states;
mod templates;
mod users;
mod workspaces;

use serde::{Deserialize, Deserializer, Serialize};

pub use agents::{AgentHealth, ConnectionInfo, WorkspaceAgent};
pub use apps::{Healthcheck, PortShare, PortShares, WorkspaceApp};
pub use deployment::{AppHost, BuildInfo, Region, Regions, SshConfig};
pub use states::{AgentStatus, BuildStatus, JobStatus, LifecycleState, Transition};
pub use templates::{Template, TemplateVersion, UpdateTemplate};
pub use users::{
    CreateFirstUser, CreatedFirstUser, LoginAnswer, LoginWithPassword, NewKey, Role, User,
};
pub use workspaces::{
    CreateBuild, Job, Parameter, Resource, Usage, Workspace, WorkspaceBuild, WorkspaceHealth,
    Workspaces,
};

/// Header with the token of a user or an agent.
pub const TOKEN_HEADER: &str = "Coder-Session-Token";
/// Cookie with the token of a user or an agent.
pub const TOKEN_COOKIE: &str = "coder_session_token";
/// Header with the server's version, on every answer.
pub const VERSION_HEADER: &str = "X-Coder-Build-Version";

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

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
