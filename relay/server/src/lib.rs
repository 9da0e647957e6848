//! The control plane: accounts and workspaces, the coordinator that introduces peers to each other,
//! the embedded relay and the STUN responder. It never sees a peer's private key.

mod api;
pub mod apps;
mod config;
mod connection;
mod coordinator;
mod derp;
mod dialer;
mod error;
mod first;
mod hub;
mod lanes;
mod map;
mod metrics;
mod proxy;
mod resume;
mod secrets;
mod server;
mod session;
mod state;
mod store;
mod stun;
pub mod template;
mod tls;
mod traffic;
pub mod usage;
mod web;

pub use config::{Config, StunAddress, TlsFiles};
pub use dialer::{Dial, DialError};
pub use error::{Error, Result};
pub use relay_tunnel::path::PathState;
pub use server::Server;
pub use store::*;
