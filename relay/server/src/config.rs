//! What a server is told when it starts.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use relay_tunnel::endpoint::{BUSY_POLL, StackChoice};
use relay_tunnel::stack::NetHelper;
use url::Url;

use crate::api::limits::API;
use crate::apps::settings::Choices;
use crate::dialer::Dial;

/// Where STUN requests are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StunAddress {
    /// UDP port 3478 on the HTTP address's host.
    #[default]
    Default,
    /// This address.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

/// Files of a certificate chain and its key, in PEM form.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Settings of a server.
pub struct Config {
    /// Where HTTP requests are answered; port 0 takes a free one.
    pub http_address: SocketAddr,
    /// The URL by which others reach the server; made from the address where it is missing.
    pub access_url: Option<Url>,
    /// Where the database lives.
    pub data_dir: PathBuf,
    /// Where STUN requests are answered.
    pub stun: StunAddress,
    /// Certificate, where the server speaks TLS itself.
    pub tls: Option<TlsFiles>,
    /// Whether peers may only use relays.
    pub block_direct: bool,
    /// Whether peers reach relays by WebSocket only.
    pub force_websockets: bool,
    /// Requests a minute that a user, or an address without one, may make to a path of the API;
    /// 0 is no limit.
    pub api_rate_limit: u32,
    /// Makes the server's end of tunnels, forked before the process had threads; without it no app
    /// of a workspace can be opened through this server.
    pub helper: Option<NetHelper>,
    /// How long the server's end of tunnels looks for an answer to a small message before it
    /// sleeps; zero is off.
    pub busy_poll: Duration,
    /// The TCP/IP stack inside tunnels to workspaces.
    pub stack: StackChoice,
    /// Loops of that end, which share the agents among them.
    pub loops: u8,
    /// What is chosen about apps in a browser.
    pub apps: Choices,
    /// Where figures for Prometheus are served, if they are.
    pub prometheus: Option<SocketAddr>,
    /// Another way to agents' ports than the server's own tunnels.
    pub dialer: Option<Arc<dyn Dial>>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("http_address", &self.http_address)
            .field("access_url", &self.access_url)
            .field("data_dir", &self.data_dir)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// The usual settings with this address and data directory.
    pub fn new(http_address: SocketAddr, data_dir: PathBuf) -> Self {
        Self {
            http_address,
            access_url: None,
            data_dir,
            stun: StunAddress::default(),
            tls: None,
            block_direct: false,
            force_websockets: false,
            api_rate_limit: API,
            helper: None,
            busy_poll: Duration::from_micros(BUSY_POLL),
            stack: StackChoice::Auto,
            loops: 1,
            apps: Choices::default(),
            prometheus: None,
            dialer: None,
        }
    }
}
