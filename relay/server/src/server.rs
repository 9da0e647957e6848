//! A running server: its sockets, its background work, and its orderly end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::TryRngCore;
use relay_tunnel::stack::NetHelper;
use relay_wire::derp_map::DerpMap;
use relay_wire::keys::NodePrivate;
use relay_wire::stun::DEFAULT_PORT;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use url::Url;
use uuid::Uuid;

use crate::api::limits::Limits;
use crate::apps::settings::Settings;
use crate::config::{Config, StunAddress};
use crate::connection::Front;
use crate::derp::Relay;
use crate::dialer::{Dial, NoTunnels, Setup, Tunnels};
use crate::error::{Error, Result};
use crate::lanes::{Lanes, Threads};
use crate::metrics::Counts;
use crate::proxy::Proxy;
use crate::resume::ResumeKey;
use crate::state::{Presence, Shared, State};
use crate::store::Store;
use crate::traffic::Traffic;
use crate::{api, map, metrics, proxy, secrets, stun, tls, traffic, usage};

/// How long sessions get to end when the server stops.
const FAREWELL: Duration = Duration::from_millis(1500);
/// How often changes by other processes are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// A silent connection is asked after this long, and given up when that brings no answer.
const SILENCE: Duration = Duration::from_secs(30);

/// A running control plane. Dropping it ends its connections to apps and leaves the others to
/// themselves; use [`Server::shutdown`].
pub struct Server {
    local: SocketAddr,
    state: Shared,
    stop: watch::Sender<bool>,
    ended: mpsc::Receiver<()>,
    tasks: Vec<JoinHandle<()>>,
    /// Let go last: they carry what the tasks began.
    threads: Threads,
}

impl Server {
    /// Opens the database and the sockets, and serves.
    pub async fn start(config: Config) -> Result<Self> {
        let tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let store = Store::open(&config.data_dir).await?;
        let deployment_id = setting_id(&store).await?;
        let relay = Arc::new(Relay::new(relay_key(&store).await?));
        let resume = ResumeKey::new(&setting_secret(&store, "resume_secret").await?);
        // After the database, so that whoever sees the port open may use the database too.
        let listener = listen(config.http_address)?;
        let local = listener.local_addr().map_err(|source| Error::Listen {
            address: config.http_address,
            source,
        })?;
        let access_url = map::access_url(config.access_url.as_ref(), local, tls.is_some())?;
        let secret = setting_secret(&store, "app_secret").await?;
        let apps = Settings::new(&config.apps, &access_url, secret.as_bytes());
        let stun = open_stun(config.stun, local).await;
        let figures = match config.prometheus {
            Some(address) => Some(relay_metrics::open(address).await?),
            None => None,
        };
        let counts = Arc::new(Counts::default());
        let (stop, stopping) = watch::channel(false);
        let (alive, ended) = mpsc::channel(1);
        let places: Vec<_> = stun.iter().map(|(_, place)| *place).collect();
        let map = map::derp_map(&access_url, &places);
        let threads = Threads::start()?;
        let hub = Arc::default();
        let setup = Setup {
            hub: Arc::clone(&hub),
            map: map::own(&map, local, tls.is_some()),
            block_direct: config.block_direct,
            force_websockets: config.force_websockets,
            busy_poll: config.busy_poll,
            stack: config.stack,
            lane: threads.lanes().first().clone(),
            loops: config.loops,
            stopping: stopping.clone(),
        };
        let state = State {
            deployment_id,
            map,
            access_url,
            apps: Arc::new(apps),
            proxy: Proxy::default(),
            traffic: Traffic::default(),
            usage: Arc::default(),
            block_direct: config.block_direct,
            force_websockets: config.force_websockets,
            hub,
            dialer: config
                .dialer
                .unwrap_or_else(|| dialer(config.helper, setup)),
            relay,
            resume,
            limits: Limits::new(config.api_rate_limit),
            counts: Arc::clone(&counts),
            presence: Presence::default(),
            clients: Presence::default(),
            stopping,
            alive,
            changes: watch::channel(0).0,
            store,
        };
        let state = Arc::new(state);
        let mut tasks = vec![
            tokio::spawn(accept(
                listener,
                tls,
                threads.lanes().clone(),
                Arc::clone(&state),
            )),
            tokio::spawn(look_for_changes(Arc::clone(&state))),
            tokio::spawn(proxy::tidy(Arc::clone(&state))),
            tokio::spawn(usage::run(Arc::clone(&state))),
            tokio::spawn(traffic::sample(Arc::clone(&state))),
        ];
        for (socket, _) in stun {
            tasks.push(tokio::spawn(stun::serve(socket, Arc::clone(&counts))));
        }
        if let Some(figures) = figures {
            let state = Arc::downgrade(&state);
            let collect = move |page: &mut relay_metrics::Page| {
                if let Some(state) = state.upgrade() {
                    metrics::collect(&state, page);
                }
            };
            tasks.push(tokio::spawn(figures.serve(Arc::new(collect))));
        }
        Ok(Self {
            local,
            state,
            stop,
            ended,
            tasks,
            threads,
        })
    }

    /// The address that HTTP requests are answered on.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The URL by which others reach the server.
    pub fn access_url(&self) -> &Url {
        &self.state.access_url
    }

    /// The relays that clients and agents are told to use.
    pub fn derp_map(&self) -> &DerpMap {
        &self.state.map
    }

    /// The database.
    pub fn store(&self) -> &Store {
        &self.state.store
    }

    /// Takes nothing new, ends all sessions and closes the database.
    pub async fn shutdown(self) {
        let Self {
            state,
            stop,
            mut ended,
            tasks,
            threads,
            ..
        } = self;
        stop.send_replace(true);
        for task in &tasks {
            task.abort();
        }
        for task in tasks {
            let _ = task.await;
        }
        let (store, usage) = (state.store.clone(), Arc::clone(&state.usage));
        // The channel closes when the last session has given the state back.
        drop(state);
        let _ = tokio::time::timeout(FAREWELL, ended.recv()).await;
        let _ = tokio::time::timeout(FAREWELL, usage.store_rest(&store)).await;
        let _ = tokio::time::timeout(FAREWELL, store.close()).await;
        drop(threads);
    }
}

fn dialer(helper: Option<NetHelper>, setup: Setup) -> Arc<dyn Dial> {
    match helper {
        Some(helper) => Arc::new(Tunnels::new(helper, setup)),
        None => Arc::new(NoTunnels("it was started without a net helper".to_owned())),
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let open = || {
        let socket = match address {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
        }?;
        // A restart must not wait for old connections to be forgotten.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(4096)
    };
    open().map_err(|source| Error::Listen { address, source })
}

/// Opens the STUN sockets, with the places that peers are told; a busy port is only warned about.
///
/// The second is on the next port, 3479 by default (RFC 5780 section 7.3 calls it the alternate one): from the answers of
/// two, a peer learns whether its NAT maps each destination to another address. One alone serves as well.
async fn open_stun(wanted: StunAddress, http: SocketAddr) -> Vec<(UdpSocket, map::Stun)> {
    let address = match wanted {
        StunAddress::Off => return Vec::new(),
        StunAddress::Default => SocketAddr::new(http.ip(), DEFAULT_PORT),
        StunAddress::At(address) => address,
    };
    let told = wanted != StunAddress::Default;
    let first = match open_stun_at(address, told).await {
        Ok(first) => first,
        Err(error) => {
            tracing::warn!(
                "STUN is off: cannot use UDP {address}: {error}; choose another address with --stun-address"
            );
            return Vec::new();
        }
    };
    let next = first.1.port.checked_add(1);
    let second = match next.map(|port| SocketAddr::new(address.ip(), port)) {
        Some(address) => open_stun_at(address, told).await,
        None => Err(std::io::ErrorKind::AddrNotAvailable.into()),
    };
    let second = second.inspect_err(|error| {
        tracing::debug!(%error, "STUN is on one port only");
    });
    std::iter::once(first).chain(second.ok()).collect()
}

async fn open_stun_at(address: SocketAddr, told: bool) -> std::io::Result<(UdpSocket, map::Stun)> {
    let socket = UdpSocket::bind(address).await?;
    let bound = socket.local_addr()?;
    let place = map::Stun {
        host: (told && !bound.ip().is_unspecified()).then_some(bound.ip()),
        port: bound.port(),
    };
    Ok((socket, place))
}

async fn setting_id(store: &Store) -> Result<String> {
    store
        .setting_or("deployment_id", || Uuid::new_v4().to_string())
        .await
}

async fn setting_secret(store: &Store, name: &str) -> Result<String> {
    store.setting_or(name, || secrets::alphanumeric(43)).await
}

async fn relay_key(store: &Store) -> Result<NodePrivate> {
    let stored = store.setting_or("relay_key", || {
        let mut rng = rand::rngs::OsRng.unwrap_err();
        NodePrivate::generate(&mut rng).to_text().to_string()
    });
    stored
        .await?
        .parse()
        .map_err(|_| Error::Corrupt { what: "relay key" })
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, lanes: Lanes, state: Shared) {
    let front = Front::new(Arc::clone(&state), api::router(state), tls, lanes);
    let mut said = false;
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!("cannot accept connections: {error}; trying again");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        said = false;
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "a connection cannot be set up");
            continue;
        }
        tokio::spawn(front.clone().meet(stream, address.ip().to_canonical()));
    }
}

/// Sends at once, and notices peers that went away without a word.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(SILENCE)
        .with_interval(SILENCE / 3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(SILENCE * 2))
}

/// Notices what other processes changed in the database, and ends the sessions of agents that are
/// no more.
async fn look_for_changes(state: Shared) {
    let mut known = state.store.revision().await.unwrap_or_default();
    let mut own = state.changes.subscribe();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            changed = own.changed() => if changed.is_err() { return },
        }
        let Ok(revision) = state.store.revision().await else {
            continue;
        };
        if revision == known {
            continue;
        }
        known = revision;
        state.proxy.look_for_changes(&state.store).await;
        if let Ok(agents) = state.store.agent_ids().await {
            state.presence.keep_only(&agents);
            state.clients.keep_only(&agents);
            state.dialer.keep_only(&agents);
        }
        state.changed();
    }
}
