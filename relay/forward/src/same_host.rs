//! An agent on this machine: it is found out by a proof (`relay_wire::same_host`), and then gets
//! connections handed over instead of their bytes sent through the tunnel.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use relay_engine::handover::Channel;
use relay_engine::{Moved, Side};
use relay_wire::same_host::{ANSWER, Answer, Moved as Told, Outcome, Request, SECRET, Secret, To};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::agent_api;
use crate::tunnel::Tunnel;
use crate::way::Way;

/// How long the proof may take.
const PROOF: Duration = Duration::from_secs(5);
/// How long an agent may take over a connection.
const DIAL: Duration = Duration::from_secs(15);
/// A first pause before an agent that could not answer is asked again, and the longest.
const SOON: Duration = Duration::from_secs(1);
const LATE: Duration = Duration::from_secs(60);

/// The agent, while it is known to be on this machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Neighbour(Arc<watch::Sender<Option<Arc<Session>>>>);

impl Neighbour {
    /// Whether connections are handed over now.
    pub(crate) fn is_here(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Follows whether they are.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Arc<Session>>> {
        self.0.subscribe()
    }

    /// Hands a connection over, unread; `moved` counts what comes from the socket as of that side.
    /// Nothing when the tunnel is the way.
    pub(crate) async fn hand_over(
        &self,
        to: To,
        socket: BorrowedFd<'_>,
        moved: (&Moved, Side),
    ) -> Option<io::Result<Handed>> {
        let session = self.0.borrow().clone()?;
        session.hand_over(to, socket, moved).await
    }
}

/// A connection that the agent carries.
pub(crate) struct Handed(oneshot::Receiver<()>);

impl Handed {
    /// Waits for its end. Its bytes are counted then.
    pub(crate) async fn ended(self) {
        // An agent that has gone ends it as well.
        let _ = self.0.await;
    }
}

/// Finds out whether the agent is here, and again when it is another one.
pub(crate) async fn keep(tunnel: Tunnel) {
    let mut target = tunnel.target.clone();
    loop {
        let generation = match target.wait_for(Option::is_some).await {
            Ok(found) => found.as_ref().map(|target| target.generation),
            Err(_) => return,
        };
        tokio::select! {
            () = stay(&tunnel) => {}
            changed = target.wait_for(|now| now.as_ref().map(|at| at.generation) != generation) => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// Keeps up with one agent. It never comes back.
async fn stay(tunnel: &Tunnel) {
    let mut pause = SOON;
    loop {
        match prove(tunnel).await {
            Ok(channel) => {
                pause = SOON;
                hand_over_to(&tunnel.neighbour, channel).await;
                tracing::info!("the agent on this machine takes no more; the tunnel is the way");
            }
            // Where a process runs does not change.
            Err(error) if is_final(&error) => {
                tracing::debug!(%error, "the agent is not on this machine");
                std::future::pending::<()>().await;
            }
            Err(error) => tracing::debug!(%error, "is the agent on this machine?"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(LATE);
    }
}

fn is_final(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::Unsupported
    )
}

/// Hands connections over until the agent has gone, or this is dropped.
async fn hand_over_to(neighbour: &Neighbour, channel: Channel) {
    struct Here<'a>(&'a Neighbour, Arc<Session>);
    impl Drop for Here<'_> {
        fn drop(&mut self) {
            self.0.0.send_replace(None);
            self.1.end();
        }
    }
    let session = Arc::new(Session::new(channel));
    let here = Here(neighbour, Arc::clone(&session));
    neighbour.0.send_replace(Some(session));
    here.1.run().await;
}

/// Asks the agent through the tunnel for an invitation, and goes where it says.
///
/// # Errors
/// [`ErrorKind::ConnectionRefused`] when the agent is elsewhere, [`ErrorKind::Unsupported`] when it
/// does not know the question.
pub(crate) async fn prove(way: &impl Way) -> io::Result<Channel> {
    let challenge = Secret::generate(&mut rand::rng());
    let proof = async {
        let invitation = agent_api::invite(way, &challenge).await?;
        let channel = Channel::connect(&invitation.name)?;
        channel.send(invitation.token.reveal(), None).await?;
        let mut shown = [0; SECRET];
        let (length, _) = channel.receive(&mut shown).await?;
        match challenge.is(&shown[..length]) {
            true => Ok(channel),
            false => {
                let what = "somebody else answers";
                Err(io::Error::new(ErrorKind::PermissionDenied, what))
            }
        }
    };
    let proven = timeout(PROOF, proof).await;
    proven.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

/// A proven agent.
#[derive(Debug)]
pub(crate) struct Session {
    channel: Channel,
    last: AtomicU64,
    /// What was handed over; nothing when the agent has gone.
    open: Mutex<Option<HashMap<u64, Connection>>>,
}

/// A connection that was handed over.
#[derive(Debug)]
struct Connection {
    /// Takes the answer, once.
    became: Option<oneshot::Sender<Outcome>>,
    moved: Moved,
    side: Side,
    /// Tells the end, at the latest by being dropped.
    _ended: oneshot::Sender<()>,
}

impl Connection {
    fn count(&self, told: &Told) {
        let other = match self.side {
            Side::A => Side::B,
            Side::B => Side::A,
        };
        self.moved
            .of(self.side)
            .store(told.taken, Ordering::Relaxed);
        self.moved.of(other).store(told.given, Ordering::Relaxed);
    }
}

impl Session {
    fn new(channel: Channel) -> Self {
        Self {
            channel,
            last: AtomicU64::new(0),
            open: Mutex::new(Some(HashMap::new())),
        }
    }

    /// Reads answers until the agent has gone.
    async fn run(&self) {
        let mut message = [0; ANSWER + 1];
        while let Ok((length @ 1.., _)) = self.channel.receive(&mut message).await {
            let Some(answer) = Answer::decode(&message[..length]) else {
                tracing::debug!("the agent on this machine says something else");
                return;
            };
            self.note(answer);
        }
    }

    fn note(&self, answer: Answer) {
        let mut open = self.open();
        let Some(open) = open.as_mut() else { return };
        match answer {
            Answer::Became(id, outcome) => {
                let asked = open.get_mut(&id).and_then(|one| one.became.take());
                if let Some(asked) = asked {
                    let _ = asked.send(outcome);
                }
            }
            Answer::Moved(list) => {
                for told in list {
                    if let Some(one) = open.get(&told.id) {
                        one.count(&told);
                    }
                }
            }
            Answer::Ended(told) => {
                if let Some(one) = open.remove(&told.id) {
                    one.count(&told);
                }
            }
        }
    }

    /// Nobody will answer any more.
    fn end(&self) {
        *self.open() = None;
    }

    async fn hand_over(
        &self,
        to: To,
        socket: BorrowedFd<'_>,
        (moved, side): (&Moved, Side),
    ) -> Option<io::Result<Handed>> {
        let id = self.last.fetch_add(1, Ordering::Relaxed);
        let request = Request { id, to }.encode()?;
        let (became, outcome) = oneshot::channel();
        let (ended, end) = oneshot::channel();
        let connection = Connection {
            became: Some(became),
            moved: moved.clone(),
            side,
            _ended: ended,
        };
        self.open().as_mut()?.insert(id, connection);
        if self.channel.send(&request, Some(socket)).await.is_err() {
            self.forget(id);
            return None;
        }
        let outcome = timeout(DIAL, outcome).await;
        if !matches!(outcome, Ok(Ok(Outcome::Carried))) {
            self.forget(id);
        }
        let failed = |kind, text: &str| Some(Err(io::Error::new(kind, text.to_owned())));
        match outcome {
            Ok(Ok(Outcome::Carried)) => Some(Ok(Handed(end))),
            Ok(Ok(Outcome::ThroughTunnel)) => None,
            Ok(Ok(Outcome::Refused)) => Some(Err(ErrorKind::ConnectionRefused.into())),
            Ok(Ok(Outcome::TooMany)) => {
                failed(ErrorKind::Other, "the agent takes no more connections")
            }
            Ok(Ok(Outcome::TimedOut)) | Err(_) => failed(ErrorKind::TimedOut, "no answer in time"),
            // It may have read of the connection already.
            Ok(Err(_)) => failed(ErrorKind::ConnectionAborted, "the agent went away"),
        }
    }

    fn forget(&self, id: u64) {
        if let Some(open) = self.open().as_mut() {
            open.remove(&id);
        }
    }

    fn open(&self) -> MutexGuard<'_, Option<HashMap<u64, Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
