//! What can go wrong with the control plane, each with what to do about it.

use std::path::PathBuf;

use relay_tunnel::dial::DialError;

use crate::rpc::RpcError;

/// Why the control plane did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be reached.
    #[error("cannot reach {url}: {source}")]
    Unreachable {
        /// Its URL.
        url: String,
        /// Why.
        source: DialError,
    },
    /// The connection broke.
    #[error("the connection to {url} broke: {reason}; try again")]
    Broken {
        /// Its URL.
        url: String,
        /// How.
        reason: String,
    },
    /// It does not know the token.
    #[error(
        "{url} does not accept the session token ({message}); sign in with `relay login {url}`"
    )]
    Unauthorized {
        /// Its URL.
        url: String,
        /// What it said.
        message: String,
    },
    /// It answered with an error.
    #[error("{url} answered {status} to {request}: {message}")]
    Status {
        /// Its URL.
        url: String,
        /// Method and path.
        request: String,
        /// HTTP status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// Its answer does not read.
    #[error(
        "{url} answered {request} with something else than expected ({reason}); is it a Coder or relay deployment?"
    )]
    Answer {
        /// Its URL.
        url: String,
        /// Method and path.
        request: String,
        /// What was wrong.
        reason: String,
    },
    /// A call on the control channel failed.
    #[error("the control plane at {url} refused {call}: {source}")]
    Call {
        /// Its URL.
        url: String,
        /// Which.
        call: String,
        /// How.
        source: RpcError,
    },
    /// No URL is known.
    #[error("no deployment is known; sign in with `relay login URL`, or set CODER_URL")]
    NoUrl,
    /// No token is known.
    #[error("no session is known; sign in with `relay login URL`, or set CODER_SESSION_TOKEN")]
    NoToken,
    /// A URL that is none.
    #[error("'{0}' is no URL of a deployment; write for example https://relay.example.com")]
    Url(String),
    /// A file of the configuration directory.
    #[error("cannot use {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A session would be overwritten.
    #[error("{} already holds a session of {url}; add --force to replace it, or use another --global-config", path.display())]
    SessionExists {
        /// The directory.
        path: PathBuf,
        /// Whose session it is.
        url: String,
    },
}

impl Error {
    /// Whether it says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { status: 404, .. })
    }

    /// Whether trying again later may help.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Call { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            _ => false,
        }
    }
}
