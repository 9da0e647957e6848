//! A forward from start to end: tunnel, listeners, and an orderly close.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use relay_control::rest::Client;
use relay_engine::Engine;
use relay_engine::steer::Steering;
use relay_tunnel::stack::NetHelper;
use relay_wire::spec::Forward;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::Error;
use crate::event::{Event, Reporter};
use crate::listeners::{self, Local, Open};
use crate::plan::Plan;
use crate::tunnel::{self, Options, Tunnel};
use crate::{tcp, udp, usage};

/// How long the agent may take to answer before that is told.
const PATIENCE: Duration = Duration::from_secs(10);

/// Forwards ports until `shutdown`, or until an error that nothing can be done about. In both cases
/// everything that was opened is closed.
pub async fn forward(
    options: Options,
    forwards: &[Forward],
    engine: Engine,
    helper: NetHelper,
    report: Reporter,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let mut shutdown = pin!(shutdown);
    let plan = Plan::new(forwards);
    let steering = listeners::prepare(&plan, &report).await?;
    let client = options.client.clone();
    let (tunnel, mut supervisor) = tokio::select! {
        biased;
        () = &mut shutdown => return Ok(()),
        opened = tunnel::open(options, helper, report.clone()) => opened?,
    };
    let (workspace, agent) = (
        supervisor.found.workspace.id,
        supervisor.found.agent.name.clone(),
    );
    let local = (&plan, steering);
    let result = tokio::select! {
        biased;
        () = &mut shutdown => Ok(()),
        error = supervisor.run() => Err(error),
        error = serve(tunnel, local, engine, &report, &client, workspace, &agent) => Err(error),
    };
    supervisor.close().await;
    result
}

/// Opens the listeners once the agent answers, and serves them.
async fn serve(
    tunnel: Tunnel,
    (plan, steering): (&Plan, Option<Steering>),
    engine: Engine,
    report: &Reporter,
    client: &Client,
    workspace: Uuid,
    agent: &str,
) -> Error {
    if let Err(error) = answered(&tunnel, report, agent).await {
        return error;
    }
    let start = Instant::now();
    let Open { sockets, steering } = match listeners::open(plan, steering, report) {
        Ok(open) => open,
        Err(error) => return error,
    };
    tracing::debug!(sockets = sockets.len(), took = ?start.elapsed(), "listening");
    let mut serving = JoinSet::new();
    for (place, local) in sockets {
        let (way, report) = (tunnel.clone(), report.clone());
        match local {
            Local::Tcp(acceptor) => serving.spawn(tcp::serve(acceptor, place, way, engine, report)),
            Local::Udp(socket) => serving.spawn(udp::serve(socket, place, way, report)),
        };
    }
    let mut background = JoinSet::new();
    if let Some(steering) = steering {
        background.spawn(steering.keep());
    }
    background.spawn(usage::report(client.clone(), workspace, None));
    report.tell(Event::Ready);
    while serving.join_next().await.is_some() {}
    Error::NothingLeft
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
