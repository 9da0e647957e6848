//! Who may open an app or port (coder_facts §2.7).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How far an app or port is shared; a later one includes all before.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum ShareLevel {
    /// The workspace's owner.
    #[default]
    Owner,
    /// Members of the workspace's organization.
    Organization,
    /// Every user of the deployment.
    Authenticated,
    /// Everybody.
    Public,
}

impl ShareLevel {
    /// The text in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Organization => "organization",
            Self::Authenticated => "authenticated",
            Self::Public => "public",
        }
    }
}

impl fmt::Display for ShareLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no sharing level; there are owner, organization, authenticated and public")]
pub struct LevelError(String);

impl FromStr for ShareLevel {
    type Err = LevelError;

    fn from_str(text: &str) -> Result<Self, LevelError> {
        [
            Self::Owner,
            Self::Organization,
            Self::Authenticated,
            Self::Public,
        ]
        .into_iter()
        .find(|level| level.as_str() == text)
        .ok_or_else(|| LevelError(text.to_owned()))
    }
}

/// How the app is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// By a host name of its own.
    Subdomain,
    /// Below the dashboard's own host, whose origin it shares.
    Path,
}

/// Who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Visitor {
    /// Logged in at all.
    pub authenticated: bool,
    /// Owns the workspace.
    pub owner: bool,
    /// Administers the deployment.
    pub site_admin: bool,
    /// Belongs to the workspace's organization.
    pub member: bool,
}

/// The deployment's settings for apps on the dashboard's own host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathPolicy {
    /// Sharing levels count on paths, too.
    pub allow_sharing: bool,
    /// Site administrators may open other people's path apps.
    pub allow_site_admin: bool,
}

/// The decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Go on.
    Granted,
    /// Not for this user: answered as if there were no such app.
    Hidden,
    /// Nobody is logged in, and logging in may help.
    Login,
}

/// Decides. What is not for an anonymous visitor is [`Access::Login`] whether it exists or not, so
/// nothing is learnt from the answer.
pub fn decide(method: Method, share: ShareLevel, visitor: Visitor, policy: PathPolicy) -> Access {
    let shared = method == Method::Subdomain || policy.allow_sharing;
    let share = if shared { share } else { ShareLevel::Owner };
    let admin = match method {
        Method::Subdomain => visitor.site_admin,
        Method::Path => visitor.site_admin && policy.allow_site_admin,
    };
    let granted = visitor.owner
        || admin
        || match share {
            ShareLevel::Owner => false,
            ShareLevel::Organization => visitor.member,
            ShareLevel::Authenticated => visitor.authenticated,
            ShareLevel::Public => true,
        };
    match (granted, visitor.authenticated) {
        (true, _) => Access::Granted,
        (false, true) => Access::Hidden,
        (false, false) => Access::Login,
    }
}
