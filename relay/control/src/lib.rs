//! Client of the control plane: REST, the coordination stream, the agent API. It knows nothing of
//! packets.

pub mod config;
mod error;
mod http;
pub mod rest;
pub mod rpc;

pub use error::Error;
