//! Ports of a workspace on the dashboard: which are shown, and how they are shared
//! (coder_facts §2.17, §2.18).

use serde::{Deserialize, Serialize};
use url::Url;

use super::access::ShareLevel;
use super::hostname::Protocol;

/// The smallest port that may be opened: those below belong to the agent itself.
pub const FIRST_PORT: u16 = 9;

/// Well-known services that the list leaves out; they can still be opened by number.
const HIDDEN: [u16; 24] = [
    20, 21, 22, 23, 25, 53, 110, 143, 179, 389, 465, 587, 636, 989, 990, 993, 995, 3306, 3389,
    5432, 27017, 27018, 27019, 28017,
];

/// A port that something listens on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListeningPort {
    /// The process's name; may be empty.
    pub process_name: String,
    /// Always `tcp`.
    pub network: String,
    /// The port.
    pub port: u16,
}

/// The ports that the dashboard shows: not the agent's, not a well-known service's, and not those
/// that an app of the template names in its URL.
pub fn shown(listening: Vec<ListeningPort>, app_urls: &[String]) -> Vec<ListeningPort> {
    let explicit = |url: &String| Url::parse(url).ok()?.port();
    let apps: Vec<u16> = app_urls.iter().filter_map(explicit).collect();
    listening
        .into_iter()
        .filter(|found| found.port >= FIRST_PORT)
        .filter(|found| !HIDDEN.contains(&found.port) && !apps.contains(&found.port))
        .collect()
}

/// A port that may be opened or shared.
pub fn allowed(port: i64) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port >= FIRST_PORT)
}

/// The body of a request to share a port, or to take a share back.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ShareRequest {
    /// The agent's name.
    #[serde(default)]
    pub agent_name: String,
    /// The port.
    #[serde(default)]
    pub port: i64,
    /// The level's text.
    #[serde(default)]
    pub share_level: String,
    /// `http` or `https`.
    #[serde(default)]
    pub protocol: String,
}

/// A valid request to share a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The agent's name.
    pub agent_name: String,
    /// The port.
    pub port: u16,
    /// How far.
    pub level: ShareLevel,
    /// Which link the dashboard makes.
    pub protocol: Protocol,
}

/// Why a port is not shared; the order of the variants is the order of the checks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// Not a level to share at.
    #[error(
        "'{0}' is no level to share a port at; there are organization, authenticated and public \
         (delete the share to take it back)"
    )]
    Level(String),
    /// Outside 9-65535.
    #[error("port {0} cannot be shared; ports are 9 to 65535")]
    Port(i64),
    /// Neither http nor https.
    #[error("'{0}' is no protocol of a port; there are http and https")]
    Protocol(String),
    /// Above the template's maximum.
    #[error("the template of this workspace allows sharing up to '{maximum}', not '{asked}'")]
    AboveMaximum {
        /// What was asked for.
        asked: ShareLevel,
        /// What is allowed.
        maximum: ShareLevel,
    },
    /// No such agent in the workspace's latest build.
    #[error("the workspace has no agent '{0}'")]
    NoAgent(String),
}

impl ShareError {
    /// The field of the request that is wrong.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Level(_) | Self::AboveMaximum { .. } => "share_level",
            Self::Port(_) => "port",
            Self::Protocol(_) => "protocol",
            Self::NoAgent(_) => "agent_name",
        }
    }
}

impl ShareRequest {
    /// Checks everything that a share must be; `agent_exists` tells of an agent's name.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn check(
        self,
        maximum: ShareLevel,
        agent_exists: impl FnOnce(&str) -> bool,
    ) -> Result<Share, ShareError> {
        let level = self
            .share_level
            .parse()
            .ok()
            .filter(|level| *level != ShareLevel::Owner);
        let level = level.ok_or(ShareError::Level(self.share_level))?;
        let port = allowed(self.port).ok_or(ShareError::Port(self.port))?;
        let protocol = match self.protocol.as_str() {
            "http" => Protocol::Http,
            "https" => Protocol::Https,
            _ => return Err(ShareError::Protocol(self.protocol)),
        };
        if level > maximum {
            return Err(ShareError::AboveMaximum {
                asked: level,
                maximum,
            });
        }
        if !agent_exists(&self.agent_name) {
            return Err(ShareError::NoAgent(self.agent_name));
        }
        Ok(Share {
            agent_name: self.agent_name,
            port,
            level,
            protocol,
        })
    }
}

/// What becomes of a stored share when a template's maximum is lowered; `None` deletes it. What
/// stays above the maximum is cut at request time by [`effective`].
pub fn after_lowering(level: ShareLevel, maximum: ShareLevel) -> Option<ShareLevel> {
    match maximum {
        ShareLevel::Owner => None,
        ShareLevel::Authenticated => Some(level.min(maximum)),
        ShareLevel::Organization | ShareLevel::Public => Some(level),
    }
}

/// The level that counts for a request.
pub fn effective(level: ShareLevel, maximum: ShareLevel) -> ShareLevel {
    level.min(maximum)
}
