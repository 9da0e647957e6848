//! Measures the way to an agent.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use relay_tunnel::path::Via;
use relay_tunnel::stack::NetHelper;

use crate::Error;
use crate::event::{Path, Reporter};
use crate::run::answered;
use crate::tunnel::{self, Options};

const PERIOD: Duration = Duration::from_secs(1);

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pong {
    /// How long it took.
    pub time: Duration,
    /// Which way it came.
    pub path: Path,
}

/// Pings once a second, `count` times or until `shutdown`, and hands out each answer; none means
/// that there was no answer within five seconds.
pub async fn ping(
    options: Options,
    helper: NetHelper,
    report: Reporter,
    count: Option<u64>,
    mut each: impl FnMut(Option<Pong>),
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let mut shutdown = pin!(shutdown);
    let (tunnel, mut supervisor) = tokio::select! {
        biased;
        () = &mut shutdown => return Ok(()),
        opened = tunnel::open(options, helper, report.clone()) => opened?,
    };
    let (agent, name) = (
        supervisor.found.agent.id,
        supervisor.found.agent.name.clone(),
    );
    let regions = supervisor.regions.clone();
    let pings = async {
        answered(&tunnel, &report, &name).await?;
        let mut ticks = tokio::time::interval(PERIOD);
        let mut sent = 0;
        while count.is_none_or(|count| sent < count) {
            ticks.tick().await;
            sent += 1;
            each(tunnel.endpoint.disco_ping(agent).await.ok().map(|pong| {
                Pong {
                    time: pong.rtt,
                    path: match pong.via {
                        Via::Direct(address) => Path::Direct(address),
                        Via::Relay(id) => Path::Relayed(
                            regions
                                .get(&id)
                                .cloned()
                                .unwrap_or_else(|| format!("region {id}")),
                        ),
                    },
                }
            }));
        }
        Ok(())
    };
    let result = tokio::select! {
        biased;
        () = &mut shutdown => Ok(()),
        error = supervisor.run() => Err(error),
        result = pings => result,
    };
    supervisor.close().await;
    result
}
