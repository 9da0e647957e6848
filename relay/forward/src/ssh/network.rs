//! What a session's way looks like, told again and again for editors that show it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use relay_tunnel::endpoint::Endpoint;
use relay_tunnel::path::PathState;
use tokio::time::Instant;
use uuid::Uuid;

use crate::tunnel::Regions;

/// The way at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Whether it is direct.
    pub direct: bool,
    /// The time there and back; `None` when nothing came back.
    pub latency: Option<Duration>,
    /// Name of the relay that this end prefers; empty when there is none.
    pub relay: String,
    /// The time to each relay and back, in seconds.
    pub relays: Vec<(String, f64)>,
    /// Bytes a second to the workspace, since the last time.
    pub sent: u64,
    /// Bytes a second from the workspace.
    pub received: u64,
}

/// Who is told, and how often.
#[derive(Clone)]
pub struct NetworkWatch {
    /// How often.
    pub interval: Duration,
    /// Who.
    pub tell: Arc<dyn Fn(&Network) + Send + Sync>,
}

impl fmt::Debug for NetworkWatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "NetworkWatch({:?})", self.interval)
    }
}

/// Tells for as long as it is polled.
pub(super) async fn tell(endpoint: Endpoint, agent: Uuid, regions: Regions, watch: NetworkWatch) {
    let mut before: Option<(Instant, u64, u64)> = None;
    let mut ticks = tokio::time::interval(watch.interval.max(Duration::from_millis(100)));
    loop {
        ticks.tick().await;
        let latency = endpoint.disco_ping(agent).await.ok().map(|pong| pong.rtt);
        let Ok(stats) = endpoint.stats(agent).await else {
            continue;
        };
        let now = Instant::now();
        let rate = |is: u64, was: u64, since: Instant| {
            let seconds = (now - since).as_secs_f64().max(0.001);
            (is.saturating_sub(was) as f64 / seconds) as u64
        };
        let (sent, received) = before.map_or((0, 0), |(since, sent, received)| {
            (
                rate(stats.sent, sent, since),
                rate(stats.received, received, since),
            )
        });
        before = Some((now, stats.sent, stats.received));
        let name = |region: u16| match regions.get(region) {
            Some(name) => name.to_owned(),
            None => region.to_string(),
        };
        let node = endpoint.node().borrow().clone();
        let (home, known) = node.map_or((0, Vec::new()), |node| {
            let known = node.latency.iter();
            let known = known.map(|(region, time)| (name(*region), *time));
            (node.home, known.collect())
        });
        let network = Network {
            direct: matches!(*endpoint.path(agent).borrow(), PathState::Direct(_)),
            latency,
            relay: if home == 0 { String::new() } else { name(home) },
            relays: known,
            sent,
            received,
        };
        (watch.tell)(&network);
    }
}
