//! What a request asks for, as a signed app token names it (coder_facts §2.8).

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The identity of an app request; a token counts only for a request that equals it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// `path`, `subdomain` or `terminal`.
    pub access_method: String,
    /// `/` for a subdomain app, the app's own path for a path app.
    pub base_path: String,
    /// Free text in front of the host label, with its three hyphens.
    #[serde(default)]
    pub app_prefix: String,
    /// The owner.
    pub username_or_id: String,
    /// The workspace.
    pub workspace_name_or_id: String,
    /// The agent, when named.
    #[serde(default)]
    pub agent_name_or_id: String,
    /// The app or port.
    pub app_slug_or_port: String,
}

/// Why an identity is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not one of the three.
    #[error("the access method is none of path, subdomain and terminal")]
    AccessMethod,
    /// No base path.
    #[error("the base path is missing")]
    BasePath,
    /// No user.
    #[error("the user is missing")]
    Username,
    /// `me` means somebody else for everyone who reads it.
    #[error("'me' is no user here; write the full user name")]
    Me,
    /// No workspace.
    #[error("the workspace is missing")]
    Workspace,
    /// No app.
    #[error("the app or port is missing")]
    Slug,
    /// A prefix where none can be.
    #[error("only a subdomain app has a prefix, and it ends in three hyphens")]
    Prefix,
    /// A terminal is named by its agent's id alone.
    #[error("a terminal is named by its agent's id alone")]
    Terminal,
}

impl Identity {
    /// Splits `workspace.agent`.
    pub fn with_workspace_and_agent(mut self, text: &str) -> Self {
        let (workspace, agent) = text.split_once('.').unwrap_or((text, ""));
        workspace.clone_into(&mut self.workspace_name_or_id);
        agent.clone_into(&mut self.agent_name_or_id);
        self
    }

    /// Checks the rules.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), IdentityError> {
        if self.base_path.is_empty() {
            return Err(IdentityError::BasePath);
        }
        let subdomain = self.access_method == "subdomain";
        match self.access_method.as_str() {
            "terminal" => return self.check_terminal(),
            "path" | "subdomain" => {}
            _ => return Err(IdentityError::AccessMethod),
        }
        if !(self.app_prefix.is_empty() || subdomain && self.app_prefix.ends_with("---")) {
            return Err(IdentityError::Prefix);
        }
        match self.username_or_id.as_str() {
            "" => return Err(IdentityError::Username),
            "me" => return Err(IdentityError::Me),
            _ => {}
        }
        if self.workspace_name_or_id.is_empty() {
            return Err(IdentityError::Workspace);
        }
        if self.app_slug_or_port.is_empty() {
            return Err(IdentityError::Slug);
        }
        Ok(())
    }

    fn check_terminal(&self) -> Result<(), IdentityError> {
        let others = [
            &self.app_prefix,
            &self.username_or_id,
            &self.workspace_name_or_id,
            &self.app_slug_or_port,
        ];
        let alone = others.iter().all(|other| other.is_empty());
        match alone && Uuid::parse_str(&self.agent_name_or_id).is_ok() {
            true => Ok(()),
            false => Err(IdentityError::Terminal),
        }
    }

    /// Whether a token for `self` serves `request`; the base paths are compared with a slash at
    /// their ends.
    pub fn serves(&self, request: &Self) -> bool {
        let slashed = |path: &str| format!("{}/", path.trim_end_matches('/'));
        let same_path = slashed(&self.base_path) == slashed(&request.base_path);
        let rest = Self {
            base_path: request.base_path.clone(),
            ..self.clone()
        };
        same_path && rest == *request
    }
}
