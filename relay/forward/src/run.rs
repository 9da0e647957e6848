//! A forwarder from start to end: tunnel, forwards that come and go, and an orderly close.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use relay_control::rest::Client;
use relay_engine::Engine;
use relay_engine::steer::Steering;
use relay_tunnel::stack::NetHelper;
use relay_wire::forwards::AnyForward;
use relay_wire::spec::Forward;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::board::Board;
use crate::event::{Event, Reporter};
use crate::plan::Plan;
use crate::serve::Server;
use crate::tunnel::{self, Options, Tunnel};
use crate::{Error, auto, listeners, same_host, usage};

/// How long the agent may take to answer before that is told.
const PATIENCE: Duration = Duration::from_secs(10);
/// Commands that may wait.
const COMMANDS: usize = 16;

/// Forwards ports of one workspace. Made by [`Forwarder::new`], and at work while
/// [`Forwarder::run`] is polled.
#[derive(Debug)]
pub struct Forwarder {
    options: Options,
    helper: NetHelper,
    engine: Engine,
    report: Reporter,
    board: Board,
    commands: mpsc::Receiver<Command>,
    handle: Handle,
}

/// What to forward from the start.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// These.
    pub forwards: Vec<AnyForward>,
    /// Whatever listens in the workspace, on the same ports here.
    pub auto: bool,
    /// Go on while nothing is forwarded: a [`Handle`] may add something.
    pub stay: bool,
}

/// Adds and removes forwards while a [`Forwarder`] runs, and tells what went through them.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    board: Board,
}

#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) change: Change,
    pub(crate) reply: oneshot::Sender<Result<(), Error>>,
}

#[derive(Debug)]
pub(crate) enum Change {
    Add(Vec<AnyForward>),
    Remove(Vec<AnyForward>),
}

impl Handle {
    /// Adds forwards, all or none; comes back when they listen.
    ///
    /// # Errors
    /// What could not be opened, and [`Error::Ended`] when the forwarder has.
    pub async fn add(&self, forwards: Vec<AnyForward>) -> Result<(), Error> {
        self.change(Change::Add(forwards)).await
    }

    /// Removes forwards. Their connections go on until they end.
    ///
    /// # Errors
    /// [`Error::NotForwarded`] or [`Error::PartOfRange`] for the first that cannot be; then all stay.
    pub async fn remove(&self, forwards: Vec<AnyForward>) -> Result<(), Error> {
        self.change(Change::Remove(forwards)).await
    }

    /// What is forwarded.
    pub fn board(&self) -> &Board {
        &self.board
    }

    async fn change(&self, change: Change) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(Command { change, reply }).await;
        sent.map_err(|_| Error::Ended)?;
        answer.await.map_err(|_| Error::Ended)?
    }
}

impl Forwarder {
    /// A forwarder that does nothing yet. The helper was made before the process had threads.
    pub fn new(options: Options, helper: NetHelper) -> Self {
        let (commands, received) = mpsc::channel(COMMANDS);
        let board = Board::default();
        Self {
            options,
            helper,
            engine: Engine::default(),
            report: Reporter::new(|_| {}),
            board: board.clone(),
            commands: received,
            handle: Handle { commands, board },
        }
    }

    /// Has bytes moved by this engine.
    #[must_use]
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// Tells events to this.
    #[must_use]
    pub fn report(mut self, report: Reporter) -> Self {
        self.report = report;
        self
    }

    /// Leads to this forwarder, as long as it runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Forwards until `shutdown`, or until an error that nothing can be done about. In both cases
    /// everything that was opened is closed.
    ///
    /// # Errors
    /// When the workspace cannot be reached, when one of the first forwards cannot be opened, and
    /// when none is left.
    pub async fn run(
        self,
        wanted: Wanted,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        let mut shutdown = pin!(shutdown);
        let report = self.report.clone();
        let (plan, rows) = plan(&wanted.forwards);
        report.tell(Event::Plan(rows));
        let steering = listeners::prepare(&plan, &report).await?;
        let (client, same_host) = (self.options.client.clone(), self.options.same_host);
        let (tunnel, mut supervisor) = tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            opened = tunnel::open(self.options, self.helper, report.clone()) => opened?,
        };
        let (workspace, agent) = (
            supervisor.found.workspace.id,
            supervisor.found.agent.name.clone(),
        );
        let work = Work {
            server: Server::new(tunnel.clone(), self.engine, report.clone(), self.board),
            tunnel,
            same_host,
            wanted,
            first: (plan, steering),
            report,
            client,
            workspace,
            agent,
            handle: self.handle,
        };
        let result = tokio::select! {
            biased;
            () = &mut shutdown => Ok(()),
            error = supervisor.run() => Err(error),
            error = work.run(self.commands) => Err(error),
        };
        supervisor.close().await;
        result
    }
}

/// What to listen on for those that are ports, and what all of them are called.
fn plan(forwards: &[AnyForward]) -> (Plan, Vec<crate::board::Row>) {
    let (mut ports, mut others) = (Vec::<Forward>::new(), Vec::new());
    for forward in forwards {
        match forward {
            AnyForward::Port(port) => ports.push(*port),
            other => others.push(other.into()),
        }
    }
    let plan = Plan::new(&ports);
    let mut rows = plan.rows();
    rows.extend(others);
    (plan, rows)
}

/// All that is done once there is a tunnel.
struct Work {
    tunnel: Tunnel,
    /// Whether an agent on this machine is looked for.
    same_host: bool,
    wanted: Wanted,
    first: (Plan, Option<Steering>),
    server: Server<Tunnel>,
    report: Reporter,
    client: Client,
    workspace: Uuid,
    agent: String,
    handle: Handle,
}

impl Work {
    /// Opens the forwards once the agent answers, and serves them.
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> Error {
        if let Err(error) = answered(&self.tunnel, &self.report, &self.agent).await {
            return error;
        }
        let Wanted {
            forwards,
            auto,
            stay,
        } = self.wanted;
        let mut background = JoinSet::new();
        if self.same_host {
            background.spawn(same_host::keep(self.tunnel.clone()));
        }
        if let Err(error) = self.server.open_first(forwards, self.first).await {
            return error;
        }
        background.spawn(usage::report(self.client, self.workspace, None));
        if auto {
            let board = self.handle.board.clone();
            let follow = auto::follow(self.tunnel, self.handle, board, self.report.clone());
            background.spawn(follow);
        }
        self.report.tell(Event::Ready);
        loop {
            if self.server.is_idle() && !auto && !stay {
                return Error::NothingLeft;
            }
            tokio::select! {
                Some(command) = commands.recv() => self.server.obey(command).await,
                () = self.server.ended(), if !self.server.is_idle() => {}
            }
        }
    }
}

/// Waits until the agent answers through the tunnel.
pub(crate) async fn answered(tunnel: &Tunnel, report: &Reporter, agent: &str) -> Result<(), Error> {
    let wait = async {
        loop {
            let address = tunnel.address().await?;
            match tunnel.endpoint.tsmp_ping(address, PATIENCE).await {
                Err(relay_tunnel::Error::NoAnswer(_)) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(()),
            }
        }
    };
    let mut wait = pin!(wait);
    match tokio::time::timeout(PATIENCE, &mut wait).await {
        Ok(result) => result,
        Err(_) => {
            report.tell(Event::WaitingForTunnel {
                agent: agent.to_owned(),
            });
            wait.await
        }
    }
}
