//! A client's coordination: one agent to reach, over a control connection that is opened again
//! whenever it breaks (coder_wire §3, §5, §6).

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use futures_util::Stream;
use relay_tunnel::endpoint::{LocalNode, PeerNode};
use relay_wire::derp_map::DerpMap;
use relay_wire::proto::tailnet::{
    self, CoordinateResponse, RefreshResumeTokenRequest, RefreshResumeTokenResponse,
    StreamDerpMapsRequest,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use url::Url;
use uuid::Uuid;

use crate::Error;
use crate::coordinate::{
    Backoff, PeerChange, add_tunnel, changes, disconnect, next_node, update_self,
};
use crate::http::{Access, Http};
use crate::rest::segment;
use crate::rpc::{Mux, RpcError};
use crate::session::{Broken, End, at, lost, pause, relays, stopped};

/// How long a peer's readiness is waited for before it is used all the same.
const READY_WITHIN: Duration = Duration::from_secs(5);
/// How long a new control connection may take.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// How long the goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// What coordination tells.
#[derive(Debug)]
pub enum Event {
    /// The control connection is open.
    Connected,
    /// The relays, already at the deployment's own address where they are part of it.
    DerpMap(DerpMap),
    /// The agent can be reached like this, and is ready for a handshake.
    Peer(Uuid, PeerNode),
    /// The agent's control connection broke; it may still be reachable.
    PeerLost(Uuid),
    /// The agent has gone.
    PeerGone(Uuid),
    /// The control connection broke; it is being opened again.
    Disconnected(String),
    /// It can never be opened; nothing follows.
    Fatal(Error),
}

/// A running coordination; it ends when dropped, in order by [`Coordination::disconnect`].
#[derive(Debug)]
pub struct Coordination {
    events: mpsc::Receiver<Event>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Coordination {
    /// Starts with the deployment at `url`, for `agent`; `nodes` is this end as it should be known.
    pub fn start(
        url: &Url,
        access: Access,
        agent: Uuid,
        nodes: watch::Receiver<Option<LocalNode>>,
    ) -> Self {
        let (sender, events) = mpsc::channel(64);
        let (stop, stopped) = watch::channel(false);
        let run = Run {
            http: Http::new(url, access),
            agent,
            nodes,
            events: sender,
            stop: stopped,
            resume_token: None,
            waiting: HashMap::new(),
            known: HashMap::new(),
        };
        Self {
            events,
            stop,
            task: tokio::spawn(run.run()),
        }
    }

    /// The next event; `None` when all is over. Cancel safe.
    pub async fn event(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Says goodbye to the agent and ends; takes a second at most.
    pub async fn disconnect(mut self) {
        self.stop.send_replace(true);
        self.events.close();
        let _ = timeout(GOODBYE, &mut self.task).await;
    }
}

impl Drop for Coordination {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Run {
    http: Http,
    agent: Uuid,
    nodes: watch::Receiver<Option<LocalNode>>,
    events: mpsc::Sender<Event>,
    stop: watch::Receiver<bool>,
    resume_token: Option<String>,
    /// Peers that are not known to be ready yet, and until when that is waited for.
    waiting: HashMap<Uuid, (PeerNode, Instant)>,
    /// Keys of the peers handed out: the readiness of a known process needs no second wait.
    known: HashMap<Uuid, PeerNode>,
}

impl Run {
    async fn run(mut self) {
        let mut backoff = Backoff::new();
        let mut ever = false;
        loop {
            match timeout(OPEN_WITHIN, self.open()).await {
                Ok(Ok(mux)) => {
                    ever = true;
                    backoff.reset();
                    if self.tell(Event::Connected).await.is_err() {
                        return;
                    }
                    let Some(reason) = lost(self.session(&mux).await) else {
                        return;
                    };
                    if self.tell(Event::Disconnected(reason)).await.is_err() {
                        return;
                    }
                }
                Ok(Err(error)) if is_resume_refusal(&error) && self.resume_token.is_some() => {
                    self.resume_token = None;
                    continue;
                }
                Ok(Err(error)) if is_fatal(&error, ever) => {
                    let _ = self.tell(Event::Fatal(error)).await;
                    return;
                }
                Ok(Err(error)) => tracing::debug!(%error, "control connection"),
                Err(_) => tracing::debug!("the control plane takes too long to answer"),
            }
            let wait = backoff.next(rand::random());
            if !pause(wait, &mut self.stop, &self.events).await {
                return;
            }
        }
    }

    async fn open(&self) -> Result<Mux, Error> {
        let mut path = format!(
            "/api/v2/workspaceagents/{}/coordinate?version=2.0",
            self.agent
        );
        if let Some(token) = &self.resume_token {
            path = format!("{path}&resume_token={}", segment(token));
        }
        Ok(Mux::client(self.http.websocket(&path, None).await?))
    }

    async fn session(&mut self, mux: &Mux) -> Result<End, Broken> {
        let (mut sender, mut updates) = mux.bidirectional(tailnet::COORDINATE).await?;
        sender.send(&add_tunnel(self.agent)).await?;
        let request = StreamDerpMapsRequest {};
        let mut maps = mux
            .server_stream(tailnet::STREAM_DERP_MAPS, &request)
            .await?;
        let mut told = None;
        // Asked beside everything else: no answer must hold up the start, or a peer's update.
        let mut refresh = pin!(resume_tokens(mux));
        let mut refreshing = true;
        let mut stop = self.stop.clone();
        loop {
            let ready_at = self.waiting.values().map(|(_, due)| *due).min();
            tokio::select! {
                biased;
                () = stopped(&mut stop) => {
                    let _ = timeout(GOODBYE / 2, async {
                        sender.send(&disconnect()).await?;
                        while updates.message::<CoordinateResponse>().await?.is_some() {}
                        Ok::<_, RpcError>(())
                    }).await;
                    mux.shutdown();
                    let _ = timeout(GOODBYE / 4, mux.closed()).await;
                    return Ok(End::Stopped);
                }
                node = next_node(&mut self.nodes, &mut told) => {
                    sender.send(&update_self(&node)).await?;
                }
                update = updates.message::<CoordinateResponse>() => match update? {
                    Some(update) => self.handle(&update).await?,
                    None => return Ok(End::Lost("the server ended coordination".to_owned())),
                },
                map = maps.message::<tailnet::DerpMap>() => match map? {
                    Some(map) => self.tell(Event::DerpMap(relays(map, self.http.url()))).await?,
                    None => return Ok(End::Lost("the server ended the relay map".to_owned())),
                },
                () = at(ready_at) => self.release_overdue().await?,
                token = poll_fn(|cx| refresh.as_mut().poll_next(cx)), if refreshing => match token {
                    Some(token) => self.resume_token = Some(token),
                    None => refreshing = false,
                },
            }
        }
    }

    async fn handle(&mut self, update: &CoordinateResponse) -> Result<(), Broken> {
        if !update.error.is_empty() {
            tracing::warn!(error = update.error, "the control plane complains");
        }
        for change in changes(update).collect::<Vec<_>>() {
            match change {
                PeerChange::Node(id, node) => self.handle_node(id, node).await?,
                PeerChange::Ready(id) => {
                    if let Some((node, _)) = self.waiting.remove(&id) {
                        self.hand_out(id, node).await?;
                    }
                }
                PeerChange::Lost(id, _) => {
                    // A process that comes back has another key, and has to get ready first.
                    self.known.remove(&id);
                    self.tell(Event::PeerLost(id)).await?;
                }
                PeerChange::Gone(id) => {
                    self.waiting.remove(&id);
                    self.known.remove(&id);
                    self.tell(Event::PeerGone(id)).await?;
                }
            }
        }
        Ok(())
    }

    async fn handle_node(&mut self, id: Uuid, node: PeerNode) -> Result<(), Broken> {
        match self.known.get(&id) {
            Some(known) if *known == node => Ok(()),
            Some(known) if known.key == node.key => self.hand_out(id, node).await,
            _ => {
                let due = match self.waiting.get(&id) {
                    Some((before, due)) if before.key == node.key => *due,
                    _ => Instant::now() + READY_WITHIN,
                };
                self.waiting.insert(id, (node, due));
                Ok(())
            }
        }
    }

    async fn release_overdue(&mut self) -> Result<(), Broken> {
        let now = Instant::now();
        let due = self.waiting.iter().filter(|(_, (_, due))| *due <= now);
        let due: Vec<Uuid> = due.map(|(id, _)| *id).collect();
        for id in due {
            if let Some((node, _)) = self.waiting.remove(&id) {
                self.hand_out(id, node).await?;
            }
        }
        Ok(())
    }

    async fn hand_out(&mut self, id: Uuid, node: PeerNode) -> Result<(), Broken> {
        self.known.insert(id, node.clone());
        self.tell(Event::Peer(id, node)).await
    }

    async fn tell(&self, event: Event) -> Result<(), Broken> {
        self.events.send(event).await.map_err(|_| Broken::Closed)
    }
}

/// The tokens that keep this client's identity over a reconnect, each when it is due; it ends when
/// the server has none to give.
fn resume_tokens(mux: &Mux) -> impl Stream<Item = String> {
    futures_util::stream::unfold(Duration::ZERO, async move |wait| {
        tokio::time::sleep(wait).await;
        let request = RefreshResumeTokenRequest {};
        let answer =
            mux.unary::<RefreshResumeTokenResponse>(tailnet::REFRESH_RESUME_TOKEN, &request);
        match answer.await {
            Ok(answer) if !answer.token.is_empty() => {
                let wait = answer
                    .refresh_in
                    .map(|wait| wait.to_std())
                    .unwrap_or_default();
                let wait = if wait.is_zero() {
                    Duration::from_secs(30 * 60)
                } else {
                    wait
                };
                Some((answer.token, wait))
            }
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%error, "no resume token");
                None
            }
        }
    })
}

fn is_resume_refusal(error: &Error) -> bool {
    matches!(error, Error::Status { status: 401, .. })
}

/// On the first dial these are final; later everything is tried again.
fn is_fatal(error: &Error, ever: bool) -> bool {
    let refused = match error {
        Error::Unauthorized { .. } => true,
        Error::Status { status, .. } => matches!(status, 400 | 401 | 403 | 404 | 409 | 500),
        _ => false,
    };
    refused && !ever
}
