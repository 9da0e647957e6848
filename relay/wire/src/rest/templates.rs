//! Templates and their versions.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Job;

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
