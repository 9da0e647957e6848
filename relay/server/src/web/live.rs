//! Pages that change while they are looked at, by server-sent events.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use askama::Template;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::view::{Listening, Live, listening};
use super::{Trouble, Visitor, list};
use crate::state::Shared;

/// The type of the streams.
pub(super) const KIND: &str = "text/event-stream";
/// How often what tells nobody of its changes is looked at on a workspace's page.
const LOOK: Duration = Duration::from_secs(2);
/// The same on the list, which costs more.
const LIST: Duration = Duration::from_secs(5);
/// Time between two signs of life.
const PING: Duration = Duration::from_secs(15);
/// How long agents may take to tell their ports.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn list(
    State(state): State<Shared>,
    visitor: Visitor,
) -> Result<Response, Trouble> {
    Ok(events(Watch::new(state, visitor, None)))
}

pub(super) async fn workspace(
    State(state): State<Shared>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, Trouble> {
    let id = visitor.workspace(&state, &id).await?.id;
    Ok(events(Watch::new(state, visitor, Some(id))))
}

fn events(watch: Watch) -> Response {
    let events = stream::unfold(watch, |mut watch| async move {
        let event = watch.next().await?;
        Some((Ok::<_, Infallible>(event), watch))
    });
    let mut answer = Response::new(Body::from_stream(events));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(KIND));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    answer
}

struct Watch {
    changes: watch::Receiver<u64>,
    state: Shared,
    visitor: Visitor,
    /// The workspace; none for the list of them.
    id: Option<Uuid>,
    ports: HashMap<Uuid, Listening>,
    /// What the browser shows.
    shown: String,
    first: bool,
    told: Instant,
}

impl Watch {
    fn new(state: Shared, visitor: Visitor, id: Option<Uuid>) -> Self {
        Self {
            changes: state.changes.subscribe(),
            state,
            visitor,
            id,
            ports: HashMap::new(),
            shown: String::new(),
            first: true,
            told: Instant::now(),
        }
    }

    /// The next event; `None` when there is nothing to see any more.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if std::mem::take(&mut self.first) {
                // What the page itself did not wait for.
                if self.id.is_some() {
                    self.ask().await;
                }
            } else {
                let look = if self.id.is_some() { LOOK } else { LIST };
                tokio::select! {
                    changed = self.changes.changed() => changed.ok()?,
                    () = tokio::time::sleep(look) => self.ask().await,
                    () = self.state.stopped() => return None,
                }
            }
            if !self.visitor.is_current(&self.state).await {
                return None;
            }
            let now = self.look().await?;
            if now != self.shown {
                let event = event(&now);
                self.shown = now;
                self.told = Instant::now();
                return Some(event);
            }
            if self.told.elapsed() > PING {
                self.told = Instant::now();
                return Some(Bytes::from_static(b": still here\n\n"));
            }
        }
    }

    async fn ask(&mut self) {
        let Some(id) = self.id else { return };
        let Ok(Some(workspace)) = self.state.store.workspace(id).await else {
            return;
        };
        let asked = listening(&self.state, &workspace, PATIENCE);
        tokio::select! {
            ports = asked => self.ports = ports,
            () = self.state.stopped() => {}
        }
    }

    async fn look(&self) -> Option<String> {
        let Some(id) = self.id else {
            let rows = list::rows(&self.state, &self.visitor).await.ok()?;
            return rows.render().ok();
        };
        let workspace = self.state.store.workspace(id).await.ok()??;
        if !self.visitor.may_reach(workspace.owner_id) {
            return None;
        }
        let shares = self.state.store.shares(id).await.ok()?;
        let token = self.visitor.form_token();
        let live = Live::new(&self.state, &workspace, &shares, &self.ports, token);
        live.render().ok()
    }
}

/// A text as one event.
fn event(text: &str) -> Bytes {
    let mut event = String::with_capacity(text.len() + 256);
    for line in text.lines() {
        event.push_str("data: ");
        event.push_str(line.trim());
        event.push('\n');
    }
    event.push('\n');
    Bytes::from(event)
}
