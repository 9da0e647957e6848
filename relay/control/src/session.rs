//! What the sessions of client and agent share: how one ends, and how the next is waited for.

use std::time::Duration;

use relay_wire::derp_map::DerpMap;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use url::Url;

use crate::rpc::RpcError;

/// How a session ended.
pub(crate) enum End {
    /// By wish.
    Stopped,
    /// Otherwise; it is tried again.
    Lost(String),
}

/// Why a session cannot go on.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The connection failed.
    Rpc(RpcError),
    /// Nobody listens any more.
    Closed,
}

impl From<RpcError> for Broken {
    fn from(error: RpcError) -> Self {
        Self::Rpc(error)
    }
}

/// Why another session is needed; `None` when there is to be none.
pub(crate) fn lost(ended: Result<End, Broken>) -> Option<String> {
    match ended {
        Ok(End::Lost(reason)) => Some(reason),
        Err(Broken::Rpc(error)) => Some(error.to_string()),
        Ok(End::Stopped) | Err(Broken::Closed) => None,
    }
}

/// Waits before the next try; `false` when there is to be none.
pub(crate) async fn pause<E>(
    wait: Duration,
    stop: &mut watch::Receiver<bool>,
    events: &mpsc::Sender<E>,
) -> bool {
    tokio::select! {
        () = tokio::time::sleep(wait) => true,
        () = stopped(stop) => false,
        () = events.closed() => false,
    }
}

/// Comes back when the session is to stop.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Comes back when it is time; never without one.
pub(crate) async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// The relays that a deployment at `url` tells, as they can be reached from here.
pub(crate) fn relays(told: impl Into<DerpMap>, url: &Url) -> DerpMap {
    let mut map = told.into();
    map.rewrite_embedded(url);
    map.drop_empty_regions();
    map
}
