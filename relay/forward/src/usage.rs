//! Tells the control plane once a minute that the workspace is in use, so that it is not stopped.

use std::time::Duration;

use relay_control::rest::Client;
use relay_wire::rest::Usage;
use uuid::Uuid;

const PERIOD: Duration = Duration::from_secs(60);

/// Reports at once and then each minute, until dropped. Failures are nobody's concern.
/// `used` says by what, where that is known.
pub(crate) async fn report(client: Client, workspace: Uuid, used: Option<Usage>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = client.usage(workspace, used.as_ref()).await {
            tracing::debug!(%error, "usage report");
        }
    }
}
