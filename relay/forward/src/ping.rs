//! Measures the way to an agent, and tells which it is and why.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use relay_tunnel::endpoint::StackChoice;
use relay_tunnel::path::{PathState, Reason, Survey, Via};
use relay_tunnel::stack::NetHelper;

use crate::Error;
use crate::event::{Path, Reporter};
use crate::run::answered;
use crate::same_host;
use crate::tunnel::{self, Options, Regions, Tunnel};

/// How long an agent may take to show that it runs on this machine.
const LOOK: Duration = Duration::from_secs(2);

/// How pings are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// So many, or until the end.
    pub count: Option<u64>,
    /// How long an answer may take; five seconds at most.
    pub timeout: Duration,
    /// From one ping to the next.
    pub wait: Duration,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pong {
    /// How long it took.
    pub time: Duration,
    /// Which way it came.
    pub path: Path,
}

/// How an agent is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The way; none while there is none.
    pub path: Option<Path>,
    /// Why it is not a direct one.
    pub reason: Option<Reason>,
}

/// What happens while pings are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A ping was answered, or was not in time.
    Pong(Option<Pong>),
    /// The agent is reached in this way from now on.
    Route(Route),
}

/// What is known about the way in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The agent's name.
    pub agent: String,
    /// How it is reached.
    pub route: Route,
    /// The largest packet inside the tunnel, bytes.
    pub mtu: u16,
    /// Age of the keys in use, if there are any.
    pub handshake_age: Option<Duration>,
    /// Whether the agent runs on this machine, so that forwards go past the tunnel.
    pub same_host: bool,
    /// The TCP/IP stack in use.
    pub stack: StackChoice,
    /// This machine's own network.
    pub survey: Survey,
}

/// Sends pings until there were enough of them or until `shutdown`, and tells each step. No report
/// comes of what was ended before the agent answered for the first time.
pub async fn ping(
    options: Options,
    helper: NetHelper,
    report: Reporter,
    pace: Pace,
    each: impl FnMut(Step),
    shutdown: impl Future<Output = ()>,
) -> Result<Option<Report>, Error> {
    let mut shutdown = pin!(shutdown);
    let (tunnel, mut supervisor) = tokio::select! {
        biased;
        () = &mut shutdown => return Ok(None),
        opened = tunnel::open(options, helper, report.clone()) => opened?,
    };
    let (agent, name) = (
        supervisor.found.agent.id,
        supervisor.found.agent.name.clone(),
    );
    let regions = supervisor.regions.clone();
    let pings = async {
        answered(&tunnel, &report, &name).await?;
        let mut same_host = false;
        let look = async {
            let proven = tokio::time::timeout(LOOK, same_host::prove(&tunnel)).await;
            same_host = matches!(proven, Ok(Ok(_)));
        };
        let pings = send(&tunnel, agent, &regions, pace, each);
        tokio::select! {
            biased;
            () = &mut shutdown => {}
            _ = async { tokio::join!(pings, look) } => {}
        }
        describe(&tunnel, agent, name, same_host, &regions).await
    };
    let result = tokio::select! {
        error = supervisor.run() => Err(error),
        result = pings => result.map(Some),
    };
    supervisor.close().await;
    result
}

async fn send(
    tunnel: &Tunnel,
    agent: uuid::Uuid,
    regions: &Regions,
    pace: Pace,
    mut each: impl FnMut(Step),
) {
    let mut ticks = tokio::time::interval(pace.wait.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let path = tunnel.endpoint.path(agent);
    let mut told = None;
    let mut sent = 0;
    while pace.count.is_none_or(|count| sent < count) {
        ticks.tick().await;
        sent += 1;
        let pong = tokio::time::timeout(pace.timeout, tunnel.endpoint.disco_ping(agent)).await;
        let pong = pong.ok().and_then(Result::ok).map(|pong| Pong {
            time: pong.rtt,
            path: match pong.via {
                Via::Direct(address) => Path::Direct(address),
                Via::Relay(id) => Path::Relayed(regions.name(id)),
            },
        });
        each(Step::Pong(pong));
        let route = Route::of(*path.borrow(), regions);
        if told.as_ref() != Some(&route) {
            told = Some(route.clone());
            each(Step::Route(route));
        }
    }
}

async fn describe(
    tunnel: &Tunnel,
    agent: uuid::Uuid,
    name: String,
    same_host: bool,
    regions: &Regions,
) -> Result<Report, Error> {
    let endpoint = &tunnel.endpoint;
    let stats = endpoint.stats(agent).await?;
    let state = *endpoint.path(agent).borrow();
    Ok(Report {
        agent: name,
        route: Route::of(state, regions),
        mtu: stats.mtu,
        handshake_age: stats.handshake_age,
        same_host,
        stack: endpoint.stack(),
        survey: endpoint.survey().await?,
    })
}

impl Route {
    pub(crate) fn of(state: PathState, regions: &Regions) -> Route {
        let (path, reason) = match state {
            PathState::Direct(address) => (Some(Path::Direct(address)), None),
            PathState::Relayed(region, reason) => {
                (Some(Path::Relayed(regions.name(region))), Some(reason))
            }
            PathState::None => (None, None),
        };
        Route { path, reason }
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.path, self.reason) {
            (None, _) => out.write_str("no way to the agent"),
            (Some(path), None) => write!(out, "{path}"),
            (Some(path), Some(reason)) => write!(out, "{path}: {reason}"),
        }
    }
}
