//! The server's figures for Prometheus; docs/metrics.md says what they mean.

use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;
use relay_metrics::{Metric, Page};

use crate::state::State;

const AGENTS: Metric = Metric::gauge(
    "relay_server_agents_connected",
    "Agents with a session at this server.",
);
const CLIENTS: Metric = Metric::gauge(
    "relay_server_client_sessions",
    "Sessions of clients (port-forward, ssh, ping) at this server.",
);
const TUNNELS: Metric = Metric::gauge(
    "relay_server_tunnels",
    "Tunnels that clients have asked this server's coordinator for.",
);
const RELAY_CLIENTS: Metric = Metric::gauge(
    "relay_server_derp_clients",
    "Clients and agents connected to the embedded relay.",
);
const RELAY_PACKETS: Metric = Metric::counter(
    "relay_server_derp_packets_total",
    "Packets that came to the embedded relay.",
);
const RELAY_BYTES: Metric = Metric::counter(
    "relay_server_derp_bytes_total",
    "Bytes of packets that came to the embedded relay.",
);
const RELAY_DROPPED: Metric = Metric::counter(
    "relay_server_derp_dropped_packets_total",
    "Packets that the embedded relay had no room for, or nobody to give to.",
);
const STUN: Metric = Metric::counter(
    "relay_server_stun_requests_total",
    "STUN requests answered.",
);
const REQUESTS: Metric = Metric::counter(
    "relay_server_http_requests_total",
    "Requests to the API and the dashboard, by the class of the status.",
);
const APPS: Metric = Metric::counter(
    "relay_server_app_requests_total",
    "Requests to apps and ports of workspaces, by the class of the status.",
);

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Counted as it happens.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    requests: [AtomicU64; 5],
    apps: [AtomicU64; 5],
    pub(crate) stun: AtomicU64,
}

impl Counts {
    /// A request to the API or the dashboard was answered.
    pub(crate) fn request(&self, status: StatusCode) {
        count(&self.requests, status);
    }

    /// A request to an app was answered.
    pub(crate) fn app(&self, status: StatusCode) {
        count(&self.apps, status);
    }
}

fn count(classes: &[AtomicU64; 5], status: StatusCode) {
    let class = usize::from(status.as_u16() / 100).saturating_sub(1);
    if let Some(count) = classes.get(class) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Puts all figures on a page.
pub(crate) fn collect(state: &State, page: &mut Page) {
    page.put(&AGENTS, state.presence.agents() as f64);
    page.put(&CLIENTS, state.clients.sessions() as f64);
    page.put(&TUNNELS, state.hub.tunnels() as f64);
    let relay = state.relay.figures();
    page.put(&RELAY_CLIENTS, relay.clients as f64);
    page.put(&RELAY_PACKETS, relay.packets as f64);
    page.put(&RELAY_BYTES, relay.bytes as f64);
    page.put(&RELAY_DROPPED, relay.dropped as f64);
    let counts = &state.counts;
    page.put(&STUN, counts.stun.load(Ordering::Relaxed) as f64);
    for (metric, classes) in [(&REQUESTS, &counts.requests), (&APPS, &counts.apps)] {
        let values = classes
            .iter()
            .map(|count| count.load(Ordering::Relaxed) as f64);
        page.put_by(metric, "code", CLASSES.into_iter().zip(values));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_class() {
        let counts = Counts::default();
        for status in [200, 204, 404, 101] {
            counts.request(StatusCode::from_u16(status).unwrap());
        }
        counts.app(StatusCode::BAD_GATEWAY);
        counts.app(StatusCode::from_u16(999).unwrap());
        let read = |all: &[AtomicU64; 5]| all.each_ref().map(|one| one.load(Ordering::Relaxed));
        assert_eq!(read(&counts.requests), [1, 2, 0, 1, 0]);
        assert_eq!(read(&counts.apps), [0, 0, 0, 0, 1]);
    }
}
