//! The benchmark harness behind `relay bench`: routes side by side, in interleaved rounds, on this
//! machine.
//!
//! A [`Route`] is a way from a local port to the same small app ([`load::App`]). The
//! [`runner::run`] puts each route up, drives every [`Figure`] through it in rounds, and gives a
//! [`Report`]; [`report`] prints that as a table, JSON, or one HTML page. What is measured are real
//! processes: the program under test is started by its command line, as a user would.

mod dashboard;
pub mod link;
pub mod load;
mod model;
pub mod processes;
pub mod report;
pub mod routes;
pub mod runner;
pub mod soak;
pub mod statistics;

pub use model::{Figure, Report, Route, Row, Unit};

/// What can go wrong while measuring; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that a route needs could not be started.
    #[error("cannot start {program}: {source}; install it or leave its route out with --route")]
    Start {
        /// The program's name.
        program: String,
        /// Why it did not start.
        source: std::io::Error,
    },
    /// A program started but never said that it was ready.
    #[error("{program} was not ready within {seconds} s; its last words: {output}")]
    NotReady {
        /// The program's name.
        program: String,
        /// How long it was waited for.
        seconds: u64,
        /// The end of what it printed.
        output: String,
    },
    /// A measurement failed.
    #[error("{figure} over {route} failed: {source}")]
    Measure {
        /// The figure.
        figure: Figure,
        /// The route.
        route: Route,
        /// The socket's error.
        source: std::io::Error,
    },
    /// Anything else of the system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A name that is no route.
    #[error("no route '{0}'; there are: {names}", names = names())]
    NoSuchRoute(String),
    /// A peer's program is not on this machine.
    #[error("{program} is not installed; this installs it: {install}")]
    NotInstalled {
        /// The program's name.
        program: &'static str,
        /// The command that installs it.
        install: &'static str,
    },
}

fn names() -> String {
    let names: Vec<&str> = Route::EVERY.iter().map(|route| route.name()).collect();
    names.join(", ")
}

impl Error {
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}
