//! The client of relays (DERP): one connection a region, opened again whenever it breaks
//! (coder_wire §8).

mod connection;
mod queue;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use relay_wire::derp_map::{Node, Region};
use relay_wire::keys::{NodePrivate, NodePublic};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::dial::{Target, TlsOptions};
use connection::Connection;
use queue::Queue;

/// Waits between tries while an interruption is likely to be a restart.
const QUICK: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(150),
    Duration::from_millis(200),
];
/// How long tries follow one another quickly.
const QUICK_FOR: Duration = Duration::from_secs(15);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How a region is dialled.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Speak WebSocket only.
    pub force_websocket: bool,
    /// TLS settings.
    pub tls: TlsOptions,
    /// Headers to add to the opening request.
    pub headers: Vec<(String, String)>,
}

/// A packet that came through a relay.
#[derive(Debug)]
pub struct Received {
    /// The region it came through.
    pub region: u16,
    /// Who sent it.
    pub source: NodePublic,
    /// The packet.
    pub packet: Bytes,
}

/// The connection to one region; it ends when dropped.
#[derive(Debug)]
pub struct Client {
    queue: Arc<Queue>,
    connected: watch::Receiver<bool>,
    task: AbortHandle,
}

impl Client {
    /// Connects, and connects again for ever. Packets go to `received`.
    pub fn connect(
        region: Region,
        key: NodePrivate,
        options: Options,
        received: mpsc::Sender<Received>,
    ) -> Self {
        let queue = Arc::new(Queue::default());
        let (state, connected) = watch::channel(false);
        let run = Run {
            region,
            key,
            options,
            received,
            queue: queue.clone(),
            state,
        };
        let task = tokio::spawn(run.run()).abort_handle();
        Self {
            queue,
            connected,
            task,
        }
    }

    /// Sends a packet to a node of this region. While there is no connection the newest packets
    /// are kept for it.
    pub fn send(&self, node: NodePublic, packet: &[u8]) {
        self.queue.push(&node, packet);
    }

    /// Whether the region is connected.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.connected.clone()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Run {
    region: Region,
    key: NodePrivate,
    options: Options,
    received: mpsc::Sender<Received>,
    queue: Arc<Queue>,
    state: watch::Sender<bool>,
}

impl Run {
    async fn run(mut self) {
        let mut since = Instant::now();
        let mut tries = 0_usize;
        loop {
            if let Some(connection) = self.open().await {
                self.state.send_replace(true);
                let end = connection
                    .carry(self.region.id, &self.queue, &self.received)
                    .await;
                self.state.send_replace(false);
                tracing::debug!(region = self.region.id, end, "relay connection ended");
                since = Instant::now();
                tries = 0;
            }
            if self.received.is_closed() {
                return;
            }
            tokio::time::sleep(pause(tries, since.elapsed())).await;
            tries += 1;
        }
    }

    /// The first node of the region that answers.
    async fn open(&mut self) -> Option<Connection> {
        let nodes = self.region.nodes.iter().filter(|node| !node.stun_only);
        for node in nodes {
            let mut websocket = self.options.force_websocket;
            loop {
                match Connection::open(node, &self.key, &self.options, websocket).await {
                    Ok(connection) => return Some(connection),
                    Err(error) if error.asks_for_websocket() && !websocket => {
                        // Some proxy does not let `Upgrade: DERP` through: WebSocket from now on.
                        self.options.force_websocket = true;
                        websocket = true;
                    }
                    Err(error) => {
                        tracing::debug!(region = self.region.id, %error, "relay");
                        break;
                    }
                }
            }
        }
        None
    }
}

fn pause(tries: usize, away: Duration) -> Duration {
    if away < QUICK_FOR {
        return QUICK[tries.min(QUICK.len() - 1)];
    }
    (away / 10).min(LONGEST_WAIT)
}

/// Where a relay is dialled, and under which name; or why that cannot be.
pub(crate) fn target(node: &Node) -> Result<Target, String> {
    connection::target(node).map_err(|error| error.to_string())
}
