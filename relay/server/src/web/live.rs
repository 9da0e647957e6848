//! Pages that change while they are looked at, by server-sent events.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::view::{Known, Listening, Live, listening};
use super::visits::Uses;
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
/// How long the use of apps is not summed up again; it is stored no more often.
const SUMS: Duration = Duration::from_secs(30);
/// How long the first look waits for them, so that a page does not lose what it shows already.
const FIRST: Duration = Duration::from_millis(700);
/// A sign of life: pages that hear none open the stream anew.
const ALIVE: &[u8] = b"event: alive\ndata:\n\n";

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
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
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
    /// Agents are being asked. An agent that is lost answers late, and nothing else waits for it.
    asking: Option<Asking>,
    /// When to look again, or to ask.
    again: Instant,
    /// The use of apps, and when it was summed up.
    uses: Option<(Arc<Uses>, Instant)>,
    /// What the browser shows.
    shown: String,
    told: Instant,
}

type Asking = BoxFuture<'static, HashMap<Uuid, Listening>>;

impl Watch {
    fn new(state: Shared, visitor: Visitor, id: Option<Uuid>) -> Self {
        let now = Instant::now();
        Self {
            changes: state.changes.subscribe(),
            // What the page itself did not wait for.
            asking: id.map(|id| ask(Arc::clone(&state), id)),
            again: if id.is_some() { now + FIRST } else { now },
            state,
            visitor,
            id,
            ports: HashMap::new(),
            uses: None,
            shown: String::new(),
            told: now,
        }
    }

    /// The next event; `None` when there is nothing to see any more.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                ports = answer(&mut self.asking) => self.ports = ports,
                () = sleep_until(self.again) => self.look_soon(),
                () = self.state.stopped() => return None,
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
                return Some(Bytes::from_static(ALIVE));
            }
        }
    }

    /// Plans the next look, and asks the agents again unless they are being asked.
    fn look_soon(&mut self) {
        let look = if self.id.is_some() { LOOK } else { LIST };
        self.again = Instant::now() + look;
        if let (Some(id), None) = (self.id, &self.asking) {
            self.asking = Some(ask(Arc::clone(&self.state), id));
        }
    }

    async fn look(&mut self) -> Option<String> {
        let Some(id) = self.id else {
            let rows = list::rows(&self.state, &self.visitor).await.ok()?;
            return rows.render().ok();
        };
        let workspace = self.state.store.workspace(id).await.ok()??;
        if !self.visitor.may_reach(workspace.owner_id) {
            return None;
        }
        let uses = self.uses.take().filter(|(_, at)| at.elapsed() < SUMS);
        let at = uses.as_ref().map_or_else(Instant::now, |(_, at)| *at);
        let known = Known::of(&self.state, id, uses.map(|(uses, _)| uses)).await;
        let known = known.ok()?;
        self.uses = Some((Arc::clone(&known.uses), at));
        let token = self.visitor.form_token();
        let live = Live::new(&self.state, &workspace, known, &self.ports, token);
        live.render().ok()
    }
}

/// What listens in a workspace.
fn ask(state: Shared, id: Uuid) -> Asking {
    Box::pin(async move {
        match state.store.workspace(id).await {
            Ok(Some(workspace)) => listening(&state, &workspace, PATIENCE).await,
            _ => HashMap::new(),
        }
    })
}

/// The answer, once; never, when nobody is asked.
async fn answer(asking: &mut Option<Asking>) -> HashMap<Uuid, Listening> {
    let Some(asked) = asking else {
        return std::future::pending().await;
    };
    let found = asked.await;
    *asking = None;
    found
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
