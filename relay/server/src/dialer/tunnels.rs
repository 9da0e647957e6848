//! Tunnels to agents: one end for all of them, made when the first dial needs it.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use relay_tunnel::endpoint::{Endpoint, EndpointConfig, StackChoice};
use relay_tunnel::path::PathState;
use relay_tunnel::stack::NetHelper;
use relay_wire::addr::agent_address;
use relay_wire::derp_map::DerpMap;
use relay_wire::keys::{DiscoPrivate, NodePrivate};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::keeper::Keeper;
use super::plan::Target;
use super::{Dial, DialError};
use crate::hub::Hub;

/// How long a dial may take.
const DIAL: Duration = Duration::from_secs(10);
/// How long an agent may take to answer that the coordinator does not see.
const ABSENT: Duration = Duration::from_secs(2);
/// A silent stream is looked at this often, which also keeps its tunnel in use.
const SILENCE: Duration = Duration::from_secs(300);

/// What the end is made of.
pub(crate) struct Setup {
    /// Where agents are met.
    pub(crate) hub: Arc<Hub>,
    /// The relays, as this process reaches them.
    pub(crate) map: DerpMap,
    /// Whether peers may only use relays.
    pub(crate) block_direct: bool,
    /// Whether relays are reached by WebSocket only.
    pub(crate) force_websockets: bool,
    /// How long to look for an answer to a small message before sleeping.
    pub(crate) busy_poll: Duration,
    /// The TCP/IP stack inside the tunnels.
    pub(crate) stack: StackChoice,
    /// Where packets are moved.
    pub(crate) lane: Handle,
    /// Loops that share the agents among them.
    pub(crate) loops: u8,
    /// Becomes true when the server stops.
    pub(crate) stopping: watch::Receiver<bool>,
}

/// What comes of the first dial.
type Outcome = Option<Result<Arc<Up>, String>>;

/// Dials through tunnels.
pub(crate) struct Tunnels {
    hub: Arc<Hub>,
    /// Taken by the first dial.
    parts: Mutex<Option<(NetHelper, Setup)>>,
    up: watch::Sender<Outcome>,
}

impl Tunnels {
    /// Nothing happens until the first dial.
    pub(crate) fn new(helper: NetHelper, setup: Setup) -> Self {
        Self {
            hub: Arc::clone(&setup.hub),
            parts: Mutex::new(Some((helper, setup))),
            up: watch::channel(None).0,
        }
    }

    /// The end of the tunnels; the first to ask for it makes it.
    async fn up(&self) -> Result<Arc<Up>, DialError> {
        if let Some(outcome) = &*self.up.borrow() {
            return outcome.clone().map_err(DialError::NoStack);
        }
        let parts = self
            .parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((helper, setup)) = parts {
            // In a task of its own: a dial may be given up at any time.
            let up = self.up.clone();
            tokio::task::spawn_blocking(move || {
                let outcome = start(helper, setup, up.clone()).map_err(|error| {
                    tracing::warn!("apps of workspaces cannot be opened: {error}");
                    error.to_string()
                });
                up.send_replace(Some(outcome));
            });
        }
        let mut up = self.up.subscribe();
        let outcome = match up.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        };
        outcome
            .unwrap_or_else(|| Err("the tunnel is closed".to_owned()))
            .map_err(DialError::NoStack)
    }

    async fn connect(&self, agent: Uuid, port: u16) -> Result<TcpStream, DialError> {
        let up = self.up().await?;
        let connect = || up.connect(agent, port);
        let known = || self.hub.has(agent);
        let dialling = dial(up.tunnel(agent), known, connect);
        match tokio::time::timeout(DIAL, dialling).await {
            Ok(result) => result,
            Err(_) if known() => Err(DialError::TimedOut),
            Err(_) => Err(DialError::NotConnected),
        }
    }
}

impl Dial for Tunnels {
    fn dial(&self, agent: Uuid, port: u16) -> BoxFuture<'_, Result<TcpStream, DialError>> {
        Box::pin(self.connect(agent, port))
    }

    fn path(&self, agent: Uuid) -> Option<PathState> {
        let Some(Ok(up)) = self.up.borrow().clone() else {
            return None;
        };
        up.is_installed(agent)
            .then(|| *up.endpoint.path(agent).borrow())
    }

    fn keep_only(&self, agents: &[Uuid]) {
        if let Some(Ok(up)) = self.up.borrow().as_ref() {
            up.keep(|id, _| agents.contains(&id));
        }
    }
}

fn start(
    helper: NetHelper,
    setup: Setup,
    ended: watch::Sender<Outcome>,
) -> Result<Arc<Up>, relay_tunnel::Error> {
    let mut random = rand::rng();
    let (node, disco) = (
        NodePrivate::generate(&mut random),
        DiscoPrivate::generate(&mut random),
    );
    let id = Uuid::new_v4();
    let config = EndpointConfig {
        id,
        direct: !setup.block_direct,
        force_websockets: setup.force_websockets,
        loops: setup.loops,
        keepalive: true,
        busy_poll: setup.busy_poll,
        stack: setup.stack,
        ..EndpointConfig::new(node, disco, vec![agent_address(&id)])
    };
    let (endpoint, events) = {
        // Its task and its sockets belong to the runtime that it is started in.
        let _lane = setup.lane.enter();
        relay_tunnel::endpoint::start(config, helper)?
    };
    let up = Arc::new(Up {
        endpoint,
        tunnels: Mutex::default(),
        changed: Notify::new(),
    });
    let keeper = Keeper::new(id, Arc::clone(&up), events, setup);
    tokio::spawn(async move {
        let why = keeper.run().await;
        ended.send_replace(Some(Err(why)));
    });
    Ok(up)
}

/// Dials an agent, anew whenever it is another one, until it answers or is known to be away.
async fn dial<T, F>(
    mut target: watch::Receiver<Option<Target>>,
    known: impl Fn() -> bool,
    connect: impl Fn() -> F,
) -> Result<T, DialError>
where
    F: Future<Output = io::Result<T>>,
{
    loop {
        let now = *target.borrow_and_update();
        let changed = target.changed();
        let ended = match now {
            None if !known() => return Err(DialError::NotConnected),
            None => changed.await.is_err(),
            Some(Target { present, .. }) => tokio::select! {
                result = connect() => match result {
                    Ok(stream) => return Ok(stream),
                    Err(error) => match error.into() {
                        DialError::Io(_) | DialError::TimedOut if !present => {
                            return Err(DialError::NotConnected);
                        }
                        error => return Err(error),
                    },
                },
                changed = changed => changed.is_err(),
                () = tokio::time::sleep(ABSENT), if !present => {
                    return Err(DialError::NotConnected);
                }
            },
        };
        if ended {
            return Err(DialError::NotConnected);
        }
    }
}

/// The end of the tunnels, at work.
pub(super) struct Up {
    pub(super) endpoint: Endpoint,
    tunnels: Mutex<HashMap<Uuid, Tunnel>>,
    /// There are other tunnels than before.
    pub(super) changed: Notify,
}

struct Tunnel {
    target: watch::Sender<Option<Target>>,
    used: Instant,
}

impl Up {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Tunnel>> {
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where dials to an agent go. The tunnel is opened if there is none.
    fn tunnel(&self, agent: Uuid) -> watch::Receiver<Option<Target>> {
        let mut tunnels = self.lock();
        let used = Instant::now();
        let tunnel = tunnels.entry(agent).or_insert_with(|| {
            self.changed.notify_one();
            Tunnel {
                target: watch::channel(None).0,
                used,
            }
        });
        tunnel.used = used;
        tunnel.target.subscribe()
    }

    fn is_installed(&self, agent: Uuid) -> bool {
        let tunnels = self.lock();
        tunnels
            .get(&agent)
            .is_some_and(|tunnel| tunnel.target.borrow().is_some())
    }

    /// The agents that have tunnels.
    pub(super) fn wanted(&self) -> Vec<Uuid> {
        self.lock().keys().copied().collect()
    }

    /// Tells dials where to go.
    pub(super) fn publish(&self, target: impl Fn(Uuid) -> Option<Target>) {
        for (id, tunnel) in self.lock().iter() {
            let next = target(*id);
            tunnel.target.send_if_modified(|now| {
                let changed = *now != next;
                *now = next;
                changed
            });
        }
    }

    /// Ends the tunnels that are not to be kept; says when each was dialled last.
    pub(super) fn keep(&self, keep: impl Fn(Uuid, Instant) -> bool) {
        let mut tunnels = self.lock();
        let before = tunnels.len();
        tunnels.retain(|id, tunnel| keep(*id, tunnel.used));
        if tunnels.len() != before {
            self.changed.notify_one();
        }
    }

    async fn connect(&self, agent: Uuid, port: u16) -> io::Result<TcpStream> {
        let address: Ipv6Addr = agent_address(&agent);
        let remote = SocketAddrV6::new(address, port, 0, 0);
        let stream = self.endpoint.connect(remote).await?;
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(SILENCE)
            .with_interval(SILENCE / 10);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(generation: u64, present: bool) -> Option<Target> {
        Some(Target {
            generation,
            present,
        })
    }

    #[tokio::test]
    async fn a_dial_waits_for_an_agent_that_is_about_to_be_ready() {
        let (set, target) = watch::channel(None);
        let dialling = tokio::spawn(dial(target, || true, || async { Ok(7) }));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!dialling.is_finished());
        set.send_replace(at(1, true));
        assert_eq!(dialling.await.unwrap().unwrap(), 7);
    }

    #[tokio::test]
    async fn an_agent_that_nobody_knows_is_not_waited_for() {
        let (_set, target) = watch::channel(None);
        let error = dial(target, || false, || async { Ok(()) }).await;
        assert!(matches!(error, Err(DialError::NotConnected)));
    }

    #[tokio::test]
    async fn a_dial_starts_anew_with_the_agents_next_process() {
        let (set, target) = watch::channel(at(1, true));
        let tries = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&tries);
        let connect = move || {
            *counted.lock().unwrap() += 1;
            let first = *counted.lock().unwrap() == 1;
            async move {
                if first {
                    std::future::pending::<()>().await;
                }
                Ok(())
            }
        };
        let dialling = tokio::spawn(dial(target, || true, connect));
        tokio::time::sleep(Duration::from_millis(20)).await;
        set.send_replace(at(2, true));
        dialling.await.unwrap().unwrap();
        assert_eq!(*tries.lock().unwrap(), 2);
    }

    #[tokio::test]
    async fn a_refusal_is_final_and_a_lost_agents_failure_means_that_it_is_away() {
        let fail = |kind: io::ErrorKind, present| async move {
            let (_set, target) = watch::channel(at(1, present));
            let connect = || async move { Err::<(), _>(kind.into()) };
            dial(target, || true, connect).await.unwrap_err()
        };
        let refused = io::ErrorKind::ConnectionRefused;
        assert!(matches!(fail(refused, true).await, DialError::Refused));
        assert!(matches!(fail(refused, false).await, DialError::Refused));
        let reset = io::ErrorKind::ConnectionReset;
        assert!(matches!(fail(reset, true).await, DialError::Io(_)));
        assert!(matches!(fail(reset, false).await, DialError::NotConnected));
    }

    #[tokio::test]
    async fn a_tunnel_that_is_ended_ends_the_dials_through_it() {
        let (set, target) = watch::channel(at(1, true));
        let connect = || std::future::pending::<io::Result<()>>();
        let dialling = tokio::spawn(dial(target, || true, connect));
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(set);
        let error = dialling.await.unwrap();
        assert!(matches!(error, Err(DialError::NotConnected)));
    }
}
