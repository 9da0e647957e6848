//! Figures about a running process, served to Prometheus: the text format, what the system knows about the process,
//! and the HTTP page. Which figures there are is for the server and the agent to say.

mod page;
mod process;
mod serve;

pub use page::{Kind, Metric, Page};
pub use process::put_process;
pub use serve::{Collect, Endpoint, open};

use std::net::SocketAddr;

/// Why figures cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot serve metrics on {address}: {source}; choose another --prometheus-address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system says.
        source: std::io::Error,
    },
}
