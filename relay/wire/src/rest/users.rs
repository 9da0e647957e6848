//! Users: the first one, login, tokens, roles.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::null_is_default;

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
