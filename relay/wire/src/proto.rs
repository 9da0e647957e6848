//! Messages of the control channel, generated from `proto/*.proto`, with the conversions that
//! every user of them needs. What the fields mean is said in the `.proto` files.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use uuid::Uuid;

/// The tailnet service: nodes, coordination, relay maps.
#[allow(missing_docs)]
pub mod tailnet {
    include!(concat!(env!("OUT_DIR"), "/tailnet.rs"));

    /// Swaps nodes with the peers one has a tunnel to.
    pub const COORDINATE: &str = "/coder.tailnet.v2.Tailnet/Coordinate";
    /// The relay map, again whenever it changes.
    pub const STREAM_DERP_MAPS: &str = "/coder.tailnet.v2.Tailnet/StreamDERPMaps";
    /// A token that keeps a client's peer id over a reconnection.
    pub const REFRESH_RESUME_TOKEN: &str = "/coder.tailnet.v2.Tailnet/RefreshResumeToken";
    /// Usage facts of a client.
    pub const POST_TELEMETRY: &str = "/coder.tailnet.v2.Tailnet/PostTelemetry";
    /// The workspaces of a user, as they change.
    pub const WORKSPACE_UPDATES: &str = "/coder.tailnet.v2.Tailnet/WorkspaceUpdates";

    /// The reason of a peer update of kind LOST whose peer's end closed its control connection, as that
    /// of a process does that was killed, and that of a machine that sleeps does not. An extension:
    /// Coder's server gives no reason, and its peers read none.
    pub const CLOSED: &str = "connection closed";
}

/// The agent service: manifest, life cycle, statistics.
#[allow(missing_docs)]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));

    /// What every invoke path of this service starts with.
    pub const SERVICE: &str = "/coder.agent.v2.Agent/";
    /// What the agent is and serves.
    pub const GET_MANIFEST: &str = "/coder.agent.v2.Agent/GetManifest";
    /// Version of the agent.
    pub const UPDATE_STARTUP: &str = "/coder.agent.v2.Agent/UpdateStartup";
    /// Starting, ready, shutting down.
    pub const UPDATE_LIFECYCLE: &str = "/coder.agent.v2.Agent/UpdateLifecycle";
    /// Traffic and connections; the answer tells the interval.
    pub const UPDATE_STATS: &str = "/coder.agent.v2.Agent/UpdateStats";
    /// Health of the agent's apps.
    pub const BATCH_UPDATE_APP_HEALTHS: &str = "/coder.agent.v2.Agent/BatchUpdateAppHealths";
    /// Values that the dashboard shows.
    pub const BATCH_UPDATE_METADATA: &str = "/coder.agent.v2.Agent/BatchUpdateMetadata";
    /// Lines of start-up scripts.
    pub const BATCH_CREATE_LOGS: &str = "/coder.agent.v2.Agent/BatchCreateLogs";
    /// Old form of the announcement banners.
    pub const GET_SERVICE_BANNER: &str = "/coder.agent.v2.Agent/GetServiceBanner";
    /// Texts to show at the start of a session.
    pub const GET_ANNOUNCEMENT_BANNERS: &str = "/coder.agent.v2.Agent/GetAnnouncementBanners";
    /// A script ended.
    pub const SCRIPT_COMPLETED: &str = "/coder.agent.v2.Agent/ScriptCompleted";
    /// Whether memory and volumes are watched.
    pub const GET_RESOURCES_MONITORING_CONFIGURATION: &str =
        "/coder.agent.v2.Agent/GetResourcesMonitoringConfiguration";
    /// Use of memory and volumes.
    pub const PUSH_RESOURCES_MONITORING_USAGE: &str =
        "/coder.agent.v2.Agent/PushResourcesMonitoringUsage";
    /// A session began or ended.
    pub const REPORT_CONNECTION: &str = "/coder.agent.v2.Agent/ReportConnection";
}

/// Bits of [`tailnet::Node::relay_features`].
pub mod features {
    /// Takes part in proving a path's MTU by padded disco pings.
    pub const MTU_PROOF: u64 = 1;
    /// Takes data in the first packet of a TCP stream through the tunnel, once.
    pub const EARLY_DATA: u64 = 4;
}

/// Id bytes as messages carry them.
pub fn id_bytes(id: Uuid) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

/// Id of 16 bytes, as messages carry it; `None` for any other length.
pub fn parse_id(id: &[u8]) -> Option<Uuid> {
    Uuid::from_slice(id).ok()
}

impl From<DateTime<Utc>> for tailnet::Timestamp {
    fn from(at: DateTime<Utc>) -> Self {
        Self {
            seconds: at.timestamp(),
            nanos: i32::try_from(at.timestamp_subsec_nanos()).unwrap_or(0),
        }
    }
}

impl tailnet::Timestamp {
    /// As a date; `None` where the numbers are out of range.
    pub fn to_date(self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(self.seconds, u32::try_from(self.nanos).ok()?)
    }
}

impl From<std::time::Duration> for tailnet::Duration {
    fn from(length: std::time::Duration) -> Self {
        Self {
            seconds: i64::try_from(length.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(length.subsec_nanos()).unwrap_or(0),
        }
    }
}

impl tailnet::Duration {
    /// As a length of time; negative ones count as zero.
    pub fn to_std(self) -> std::time::Duration {
        let seconds = u64::try_from(self.seconds).unwrap_or(0);
        let nanos = u32::try_from(self.nanos).unwrap_or(0).min(999_999_999);
        std::time::Duration::new(seconds, nanos)
    }
}
