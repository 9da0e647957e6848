//! What a deployment says about itself.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::null_is_default;

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
