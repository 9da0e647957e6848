//! The agent's own SSH server, on two ports of the tunnel where no app is ever dialled
//! (coder_facts §3.3): shells, programs, files and forwards, with the agent's own user and rights.
//!
//! Its packets and channels are written here and not taken from a library: channels of one
//! connection must not wait for each other, and that needs windows that open only as bytes are used.

mod channel;
mod connection;
mod environment;
pub(crate) mod forward;
mod process;
mod proto;
mod session;
mod sftp;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use relay_control::agent::Identity;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::Error;
use proto::HostKey;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub use proto::fuzzing;

/// A connection outlives the sleep of its client's machine, if it is not longer (coder_facts §3.3).
/// Who has gone for good is found by the server's own questions.
pub(crate) const SLEEP: Duration = Duration::from_secs(72 * 3600);

/// The ports of the tunnel on which it is served.
pub(crate) const PORTS: [u16; 2] = [1, 22];

/// What peers may not do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// No connections from a client to what the workspace can reach (`ssh -L`, `-D`, `-W`).
    pub block_local_forwarding: bool,
    /// No listeners in the workspace for a client (`ssh -R`).
    pub block_reverse_forwarding: bool,
    /// None of the programs and subsystems that move files.
    pub block_file_transfer: bool,
}

/// What programs are started with, as the control plane says.
#[derive(Clone, Debug, Default)]
pub struct Workspace {
    /// The workspace's id; the host key follows from it and from `agent`.
    pub id: uuid::Uuid,
    /// The agent's name.
    pub agent: String,
    /// The workspace's name.
    pub name: String,
    /// The user name of the workspace's owner.
    pub owner: String,
    /// Where programs are started; may begin with `~` or name variables, and may be empty.
    pub directory: String,
    /// Variables for all programs.
    pub environment: BTreeMap<String, String>,
    /// The address of a port in a browser, with `{{port}}` in its place; may be empty.
    pub port_template: String,
}

impl From<&Identity> for Workspace {
    fn from(identity: &Identity) -> Self {
        Self {
            id: identity.workspace_id,
            agent: identity.name.clone(),
            name: identity.workspace.clone(),
            owner: identity.owner.clone(),
            directory: identity.directory.clone(),
            environment: identity.environment.clone(),
            port_template: identity.port_template.clone(),
        }
    }
}

/// The two ends of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Where it comes from.
    pub remote: SocketAddr,
    /// Where it was accepted.
    pub local: SocketAddr,
}

/// The server, shared by its connections.
#[derive(Debug)]
pub struct Server {
    options: Options,
    workspace: Workspace,
    host_key: Arc<HostKey>,
}

impl Server {
    /// A server for a workspace; its host key is the same whenever the workspace and the agent are.
    ///
    /// # Errors
    /// When there can be no host key, which does not happen.
    pub fn new(options: Options, workspace: Workspace) -> Result<Self, Error> {
        let seed = format!("relay ssh host key {} {}", workspace.id, workspace.agent);
        Ok(Self {
            options,
            host_key: Arc::new(HostKey::from_seed(seed.as_bytes())?),
            workspace,
        })
    }

    /// What peers may not do.
    pub(crate) fn options(&self) -> Options {
        self.options
    }

    /// Serves a connection to its end. When this is dropped, so is all that was started for it.
    pub async fn serve<S>(self: Arc<Self>, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if let Err(error) = connection::run(stream, self, peer).await {
            tracing::debug!(%error, "an SSH connection ended");
        }
    }
}
