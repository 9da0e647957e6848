//! Client of the control plane: REST, the coordination stream, the agent API. It knows nothing of
//! packets.

pub mod agent;
pub mod client;
pub mod config;
mod coordinate;
mod error;
mod http;
pub mod rest;
pub mod rpc;
mod session;

pub use error::Error;
