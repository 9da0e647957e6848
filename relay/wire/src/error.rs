//! The one error type of the crate: what was wrong with the bytes or the text, and what to do about it.

/// Why bytes or text could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Fewer bytes than the format needs.
    #[error("{what} is too short: {have} bytes where at least {need} are needed; drop it")]
    Short {
        /// The thing being read.
        what: &'static str,
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// More bytes than the format or our limits allow.
    #[error(
        "{what} is too long: {have} bytes where at most {limit} are allowed; close the connection"
    )]
    Long {
        /// The thing being read.
        what: &'static str,
        /// Most bytes allowed.
        limit: usize,
        /// Bytes announced.
        have: usize,
    },
    /// A type number that this format does not have.
    #[error("{what} has the unknown type {kind}; ignore it")]
    UnknownType {
        /// The thing being read.
        what: &'static str,
        /// The number found.
        kind: u8,
    },
    /// Bytes that are not this format at all.
    #[error("this is not {0}; drop it")]
    Not(&'static str),
    /// A sealed box that does not open: wrong key, or changed on the way.
    #[error(
        "the box of {0} does not open: it is for another key or was changed on the way; drop it"
    )]
    Sealed(&'static str),
    /// A key's text form is wrong. The text itself is not repeated, for it may be a secret.
    #[error(
        "this is not a key of the form {0}: write the prefix followed by 64 hexadecimal digits"
    )]
    KeyText(&'static str),
    /// A prefix of a node that is not one address.
    #[error("{0:?} is not a single IPv6 address as \"<ip>/128\"; give the node's own address")]
    Prefix(String),
    /// JSON that does not read.
    #[error("the JSON of {what} does not read: {reason}; the other side speaks another version")]
    Json {
        /// The thing being read.
        what: &'static str,
        /// The parser's words.
        reason: String,
    },
    /// A workspace argument with too many parts.
    #[error("{0:?} does not name a workspace; write [owner/]workspace[.agent]")]
    WorkspaceName(String),
    /// A remote forward that is none.
    #[error(
        "{0:?} is no remote forward; write REMOTE_PORT:LOCAL_HOST:LOCAL_PORT, or /REMOTE.sock:/LOCAL.sock"
    )]
    RemoteForward(String),
    /// The workspace has no agent.
    #[error("this workspace has no agent to connect to; add one to its template")]
    NoAgents,
    /// Several agents and none chosen.
    #[error("this workspace has several agents; name one as WORKSPACE.AGENT: {}", .0.join(", "))]
    SeveralAgents(Vec<String>),
    /// No agent of that name.
    #[error("no agent is called {name:?}; the workspace has: {}", .known.join(", "))]
    AgentNotFound {
        /// The name asked for.
        name: String,
        /// The agents there are.
        known: Vec<String>,
    },
}
