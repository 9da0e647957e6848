//! The REST API, as far as relay's commands need it (coder_wire §2).

use std::fmt::Write;

use http::Method;
use relay_wire::rest::{
    BuildInfo, ConnectionInfo, CreateBuild, CreateFirstUser, CreatedFirstUser, LoginAnswer,
    LoginWithPassword, NewKey, SshConfig, Transition, Usage, User, Workspace, WorkspaceAgent,
    WorkspaceBuild, Workspaces,
};
use url::Url;
use uuid::Uuid;

use crate::Error;
pub use crate::http::Access;
use crate::http::Http;

/// A client of one deployment. Clones share its connection.
#[derive(Clone, Debug)]
pub struct Client {
    http: Http,
}

/// Whether a deployment has users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstUser {
    /// It has.
    Exists,
    /// It waits for its first user.
    Missing,
}

const NONE: Option<&()> = None;

impl Client {
    /// A client; nothing is connected before the first request.
    pub fn new(url: &Url, access: Access) -> Self {
        Self {
            http: Http::new(url, access),
        }
    }

    /// The deployment's URL.
    pub fn url(&self) -> &Url {
        self.http.url()
    }

    /// What it shows the deployment.
    pub fn access(&self) -> &Access {
        self.http.access()
    }

    /// The same deployment with another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        let access = Access {
            token: token.to_owned(),
            ..self.access().clone()
        };
        Self::new(self.url(), access)
    }

    /// Version and address of the deployment.
    ///
    /// # Errors
    /// As all of these: unreachable, refused, or an answer that does not read.
    pub async fn buildinfo(&self) -> Result<BuildInfo, Error> {
        self.get("buildinfo").await
    }

    /// Whether the deployment has users.
    ///
    /// # Errors
    /// Also when it is no Coder or relay deployment.
    pub async fn first_user(&self) -> Result<FirstUser, Error> {
        const PATH: &str = "/api/v2/users/first";
        match self.http.request(Method::GET, PATH, NONE).await {
            Ok(_) => Ok(FirstUser::Exists),
            Err(Error::Status { status: 404, .. }) => match self.buildinfo().await {
                Ok(info) if !info.version.is_empty() => Ok(FirstUser::Missing),
                _ => Err(Error::Answer {
                    url: self.http.shown(),
                    request: format!("GET {PATH}"),
                    reason: "it does not know this path".to_owned(),
                }),
            },
            Err(error) => Err(error),
        }
    }

    /// Creates the first user of a fresh deployment.
    ///
    /// # Errors
    /// As [`Client::buildinfo`].
    pub async fn create_first_user(
        &self,
        user: &CreateFirstUser,
    ) -> Result<CreatedFirstUser, Error> {
        self.http
            .json(Method::POST, "/api/v2/users/first", Some(user))
            .await
    }

    /// Logs in by password and gives the session token.
    ///
    /// # Errors
    /// As [`Client::buildinfo`].
    pub async fn login(&self, email: &str, password: &str) -> Result<String, Error> {
        let login = LoginWithPassword {
            email: email.to_owned(),
            password: password.to_owned(),
        };
        let answer: LoginAnswer = self
            .http
            .json(Method::POST, "/api/v2/users/login", Some(&login))
            .await?;
        Ok(answer.session_token)
    }

    /// The user whose token this is.
    ///
    /// # Errors
    /// As [`Client::buildinfo`].
    pub async fn me(&self) -> Result<User, Error> {
        self.get("users/me").await
    }

    /// A new key for the same user.
    ///
    /// # Errors
    /// As [`Client::buildinfo`].
    pub async fn create_key(&self) -> Result<String, Error> {
        let key: NewKey = self
            .http
            .json(Method::POST, "/api/v2/users/me/keys", NONE)
            .await?;
        Ok(key.key)
    }

    /// Ends the session of this token.
    ///
    /// # Errors
    /// As [`Client::buildinfo`].
    pub async fn logout(&self) -> Result<(), Error> {
        self.http
            .request(Method::POST, "/api/v2/users/logout", NONE)
            .await
            .map(drop)
    }

    /// A workspace by its owner (`me` for the caller) and name.
    ///
    /// # Errors
    /// As [`Client::buildinfo`]; [`Error::is_not_found`] when there is none.
    pub async fn workspace(&self, owner: &str, name: &str) -> Result<Workspace, Error> {
        let (owner, name) = (segment(owner), segment(name));
        self.get(&format!(
            "users/{owner}/workspace/{name}?include_deleted=false"
        ))
        .await
    }

    /// A workspace by its id.
    ///
    /// # Errors
    /// As [`Client::workspace`].
    pub async fn workspace_by_id(&self, id: Uuid) -> Result<Workspace, Error> {
        self.get(&format!("workspaces/{id}")).await
    }

    /// The workspaces that a search finds; `owner:me` are one's own.
    ///
    /// # Errors
    /// As [`Client::buildinfo`].
    pub async fn workspaces(&self, query: &str) -> Result<Vec<Workspace>, Error> {
        let found: Workspaces = self
            .get(&format!("workspaces?q={}", segment(query)))
            .await?;
        Ok(found.workspaces)
    }

    /// An agent.
    ///
    /// # Errors
    /// As [`Client::workspace`].
    pub async fn agent(&self, id: Uuid) -> Result<WorkspaceAgent, Error> {
        self.get(&format!("workspaceagents/{id}")).await
    }

    /// How to connect to an agent. Embedded relays are at this client's own URL.
    ///
    /// # Errors
    /// As [`Client::workspace`].
    pub async fn connection(&self, agent: Uuid) -> Result<ConnectionInfo, Error> {
        let mut info: ConnectionInfo = self
            .get(&format!("workspaceagents/{agent}/connection"))
            .await?;
        if let Some(map) = &mut info.derp_map {
            map.rewrite_embedded(self.url());
            map.drop_empty_regions();
        }
        Ok(info)
    }

    /// The deployment's relays, whatever agent is meant. Embedded relays are at this client's own URL.
    ///
    /// # Errors
    /// As [`Client::buildinfo`].
    pub async fn relays(&self) -> Result<ConnectionInfo, Error> {
        let mut info: ConnectionInfo = self.get("workspaceagents/connection").await?;
        if let Some(map) = &mut info.derp_map {
            map.rewrite_embedded(self.url());
            map.drop_empty_regions();
        }
        Ok(info)
    }

    /// Starts a stopped workspace with the parameters it had.
    ///
    /// # Errors
    /// As [`Client::workspace`].
    pub async fn start_workspace(&self, workspace: &Workspace) -> Result<WorkspaceBuild, Error> {
        let version = workspace.latest_build.template_version_id;
        let build = CreateBuild {
            template_version_id: (!version.is_nil()).then_some(version),
            transition: Transition::Start,
            reason: "ssh_connection".to_owned(),
            ..CreateBuild::default()
        };
        let path = format!("/api/v2/workspaces/{}/builds", workspace.id);
        self.http.json(Method::POST, &path, Some(&build)).await
    }

    /// Tells that a workspace is in use, and by what where that is known.
    ///
    /// # Errors
    /// As [`Client::workspace`].
    pub async fn usage(&self, workspace: Uuid, used: Option<&Usage>) -> Result<(), Error> {
        let path = format!("/api/v2/workspaces/{workspace}/usage");
        self.http.request(Method::POST, &path, used).await.map(drop)
    }

    /// How the deployment wants SSH to be configured.
    ///
    /// # Errors
    /// As [`Client::buildinfo`].
    pub async fn ssh_config(&self) -> Result<SshConfig, Error> {
        self.get("deployment/ssh").await
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.http
            .json(Method::GET, &format!("/api/v2/{path}"), NONE)
            .await
    }
}

/// Percent-encodes everything that could mean something in a path or query.
pub(crate) fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_segment() {
        assert_eq!(segment("a/b?c d"), "a%2Fb%3Fc%20d");
        assert_eq!(segment("my-ws_1.x~"), "my-ws_1.x~");
    }
}
