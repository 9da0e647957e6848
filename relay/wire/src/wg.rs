//! What a plain WireGuard end is told: the configuration file of wg-quick(8) and wg(8), and which
//! local ports lead where in the tunnel.

mod config;
mod forward;
mod network;
#[cfg(test)]
mod tests;

pub use config::{Config, ConfigError, Host, Interface, Peer, Secret};
pub use forward::{Forward, ForwardError};
pub use network::Network;
