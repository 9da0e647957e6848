//! The agent's figures for Prometheus; docs/metrics.md says what they mean.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use relay_metrics::{Metric, Page};
use relay_tunnel::endpoint::Endpoint;
use relay_tunnel::path::PathState;

use crate::traffic::{Total, Traffic};

const CONNECTED: Metric = Metric::gauge(
    "relay_agent_control_connected",
    "Whether the control plane is connected: 1 or 0.",
);
const PEERS: Metric = Metric::gauge(
    "relay_agent_peers",
    "Clients in the tunnel, by the path to them.",
);
const OPEN: Metric = Metric::gauge(
    "relay_agent_connections",
    "Connections and flows that are open, by protocol.",
);
const CONNECTIONS: Metric = Metric::counter(
    "relay_agent_connections_total",
    "Connections and flows so far, by protocol.",
);
const RECEIVED: Metric = Metric::counter(
    "relay_agent_received_bytes_total",
    "Bytes from clients to apps, by protocol; not those of SSH.",
);
const SENT: Metric = Metric::counter(
    "relay_agent_sent_bytes_total",
    "Bytes from apps to clients, by protocol; not those of SSH.",
);

/// Where the figures come from.
pub(crate) struct Sources {
    pub(crate) tunnel: Endpoint,
    pub(crate) traffic: Arc<Traffic>,
    /// Whether the control plane is connected.
    pub(crate) connected: Arc<AtomicBool>,
}

impl Sources {
    /// Puts all figures on a page.
    pub(crate) fn collect(&self, page: &mut Page) {
        let connected = self.connected.load(Ordering::Relaxed);
        page.put(&CONNECTED, f64::from(u8::from(connected)));
        put_paths(page, &self.tunnel.path_states());
        let totals = self.traffic.totals();
        let by = |figure: fn(&Total) -> u64| {
            let values = totals.iter();
            values.map(move |(protocol, total)| (protocol.name(), figure(total) as f64))
        };
        page.put_by(&OPEN, "protocol", by(|total| total.open));
        page.put_by(&CONNECTIONS, "protocol", by(|total| total.connections));
        page.put_by(&RECEIVED, "protocol", by(|total| total.received));
        page.put_by(&SENT, "protocol", by(|total| total.sent));
    }
}

fn put_paths(page: &mut Page, states: &[PathState]) {
    let count = |is: fn(&PathState) -> bool| states.iter().filter(|state| is(state)).count() as f64;
    let direct = count(|state| matches!(state, PathState::Direct(_)));
    let relayed = count(|state| matches!(state, PathState::Relayed(..)));
    page.put_by(&PEERS, "path", [("direct", direct), ("relayed", relayed)]);
}
