//! Everything that can go wrong here, each as a sentence that says what to do.

use std::net::SocketAddr;
use std::path::PathBuf;

/// An error of the control plane.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory could not be made or entered.
    #[error("cannot use the data directory {path}: {source}; name another one with --data-dir")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The database refused a statement.
    #[error("the database failed: {0}; check free space and permissions of the data directory")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the database cannot be brought up to date: {0}; was it written by a newer relay?")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A value in the database makes no sense.
    #[error("the database holds an unreadable {what}; restore it from a backup")]
    Corrupt {
        /// What was being read.
        what: &'static str,
    },
    /// The threads for apps could not be started.
    #[error("cannot start threads: {0}; raise the limit of processes and of open files")]
    Threads(std::io::Error),
    /// Figures cannot be served.
    #[error(transparent)]
    Metrics(#[from] relay_metrics::Error),
    /// The HTTP address could not be bound.
    #[error("cannot listen on {address}: {source}; choose another one with --http-address")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Certificate or key could not be used.
    #[error("cannot use the TLS file {path}: {reason}; give a PEM certificate chain and its key")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The access URL cannot be used.
    #[error(
        "access URL {url:?} is no http or https address with a host; give one like http://relay.example.com:3000"
    )]
    AccessUrl {
        /// The text given.
        url: String,
    },
    /// A user, workspace or agent name breaks the rules.
    #[error(
        "{what} name {name:?} is not allowed: use 1 to 32 letters and digits, with single hyphens between them"
    )]
    Name {
        /// What was to be named.
        what: &'static str,
        /// The offending text.
        name: String,
    },
    /// The e-mail address cannot be one.
    #[error("e-mail address {0:?} is not allowed: give one like alice@example.com")]
    Email(String),
    /// The password is too short or too long.
    #[error("the password has {0} characters; use 6 to 64")]
    Password(usize),
    /// Something of that name is there already.
    #[error("{what} {name:?} exists already; choose another name")]
    Exists {
        /// What was to be created.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Nothing of that name is there.
    #[error("there is no {what} {name:?}; `relay server {list}` shows what there is")]
    Missing {
        /// What was asked for.
        what: &'static str,
        /// The name asked for.
        name: String,
        /// The command that lists these.
        list: &'static str,
    },
    /// A template's app belongs to an agent that the workspace does not get.
    #[error(
        "template {template:?} has app {app:?} on agent {agent:?}, which is not among the workspace's agents; name that agent too, or none"
    )]
    AppWithoutAgent {
        /// The template.
        template: String,
        /// The app's slug.
        app: String,
        /// Its agent's name.
        agent: String,
    },
    /// A template that is to go is still needed.
    #[error(
        "template {template:?} is used by {workspaces}; delete those workspaces first, or keep the template"
    )]
    TemplateInUse {
        /// The template.
        template: String,
        /// Its workspaces, as a list for people.
        workspaces: String,
    },
    /// A workspace was not named as `OWNER/NAME`.
    #[error("workspace {0:?} is not of the form OWNER/NAME, for example alice/dev")]
    WorkspaceName(String),
    /// Hashing a password failed or was cut short.
    #[error("the password could not be hashed; try again")]
    Hash,
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
