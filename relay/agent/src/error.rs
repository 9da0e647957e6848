//! Why an agent cannot start; once it runs, it goes on for ever.

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The token is not known.
    #[error(
        "{url} does not accept the agent token; give the one that `relay server workspace create` \
         printed for this agent"
    )]
    Token {
        /// The control plane.
        url: String,
    },
    /// The control plane does not let this agent in, for another reason.
    #[error("the control plane does not let this agent in: {0}")]
    Refused(relay_control::Error),
    /// The tunnel cannot be opened.
    #[error(transparent)]
    Tunnel(#[from] relay_tunnel::Error),
    /// Figures cannot be served.
    #[error(transparent)]
    Metrics(#[from] relay_metrics::Error),
    /// A peer of the SSH server breaks the rules.
    #[error("SSH: {0}; use another client, or report this if it is OpenSSH's")]
    Ssh(&'static str),
    /// A connection to the SSH server broke.
    #[error("the connection broke: {0}; connect again")]
    Io(#[from] std::io::Error),
    /// Something that goes on for ever ended.
    #[error("the agent's {0} ended; start the agent again")]
    Ended(&'static str),
}
