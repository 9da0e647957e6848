//! A workspace as it changes, as server-sent events.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use uuid::Uuid;

use super::auth::Caller;
use super::workspaces::reachable;
use super::{Refusal, views};
use crate::state::Shared;

/// Time between two signs of life.
const PING: Duration = Duration::from_secs(15);

pub(super) async fn workspace(
    State(state): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let id = reachable(&state, &caller, &id).await?.id;
    let watch = Watch {
        changes: state.changes.subscribe(),
        state,
        id,
        first: true,
    };
    let events = stream::unfold(watch, |mut watch| async move {
        let event = watch.next().await?;
        Some((Ok::<_, std::convert::Infallible>(event), watch))
    });
    let mut answer = Response::new(Body::from_stream(events));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(answer)
}

struct Watch {
    state: Shared,
    id: Uuid,
    changes: tokio::sync::watch::Receiver<u64>,
    first: bool,
}

impl Watch {
    /// The next event; `None` when the workspace is gone or the server stops.
    async fn next(&mut self) -> Option<Bytes> {
        if !std::mem::take(&mut self.first) {
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                () = tokio::time::sleep(PING) => {
                    return Some(Bytes::from_static(b"event: ping\n\n"));
                }
                () = self.state.stopped() => return None,
            }
        }
        let found = self.state.store.workspace(self.id).await.ok()??;
        let body = serde_json::to_string(&views::workspace(&found, &self.state.presence)).ok()?;
        Some(Bytes::from(format!("event: data\ndata: {body}\n\n")))
    }
}
