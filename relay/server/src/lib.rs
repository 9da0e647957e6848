//! The control plane: accounts and workspaces, the coordinator that introduces peers to each other,
//! the embedded relay and the STUN responder. It never sees a peer's private key.

pub mod apps;
mod error;
mod secrets;
mod store;

pub use error::{Error, Result};
pub use store::*;
