//! Ports of hosts behind plain WireGuard peers, on this machine: no workspace and no control plane.

use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;

use relay_engine::Engine;
use relay_engine::accept::Acceptor;
use relay_tunnel::datagram::Flow as TunnelFlow;
use relay_tunnel::endpoint::{EarlyData, StackChoice};
use relay_tunnel::plain::{self, Tunnel};
use relay_tunnel::stack::{NetHelper, Offloads, Stream};
use relay_wire::spec::{Listen, Proto};
use relay_wire::wg;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::Error;
use crate::event::{self, Reporter};
use crate::listeners::Place;
use crate::way::{Way, reason};
use crate::{tcp, udp};

/// Something worth telling the user. Its text is the line that the command line prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A setting of the file that has no meaning here.
    Ignored {
        /// The line it is on.
        line: usize,
        /// Its name.
        setting: &'static str,
    },
    /// A local socket is open.
    Listening {
        /// Protocol of both sides.
        proto: Proto,
        /// Where it listens.
        local: SocketAddr,
        /// Where it leads.
        remote: SocketAddr,
    },
    /// A local socket failed and is closed.
    ListenerStopped {
        /// Its protocol.
        proto: Proto,
        /// Where it listened.
        local: SocketAddr,
        /// What the system says.
        reason: String,
    },
    /// A connection could not be made through the tunnel.
    DialFailed {
        /// Where to.
        remote: SocketAddr,
        /// Why.
        reason: String,
    },
    /// Something about a peer.
    Peer(plain::Event),
    /// All listeners are open and the peers that lead to their hosts answer.
    Ready,
}

impl fmt::Display for Event {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ignored { line, setting } => write!(
                out,
                "line {line}: {setting} is about a machine's own network and ignored; relay changes \
                 nothing there"
            ),
            Self::Listening {
                proto,
                local,
                remote,
            } => write!(
                out,
                "Forwarding '{proto}://{local}' to '{proto}://{remote}'"
            ),
            Self::ListenerStopped {
                proto,
                local,
                reason,
            } => write!(out, "Stopped listening on '{proto}://{local}': {reason}"),
            Self::DialFailed { remote, reason } => {
                write!(out, "Failed to dial 'tcp://{remote}': {reason}")
            }
            Self::Peer(event) => write_peer(event, out),
            Self::Ready => out.write_str("Ready!"),
        }
    }
}

fn write_peer(event: &plain::Event, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    match event {
        plain::Event::Answered { peer, .. } => write!(out, "Peer {peer} answers"),
        plain::Event::Silent {
            peer,
            host,
            since,
            reason,
        } => {
            let seconds = since.as_secs();
            write!(out, "Peer {peer} does not answer")?;
            match host {
                Some(host) => write!(out, " at {host}")?,
                None => out.write_str(", which has no Endpoint in the file,")?,
            }
            write!(out, " for {seconds} seconds now; trying on. ")?;
            if let Some(reason) = reason {
                write!(out, "Sending fails: {reason}. ")?;
            }
            out.write_str(
                "Check that it runs there, that UDP gets through, and that each end has the other's \
                 PublicKey and both the same PresharedKey, if any",
            )
        }
        plain::Event::Unresolved { host, reason } => {
            write!(out, "Cannot look up {host}: {reason}; trying on")
        }
        plain::Event::Warning(text) => out.write_str(text),
    }
}

/// What is to be done.
pub struct Options {
    /// The tunnel's ends.
    pub config: wg::Config,
    /// What leads where, one at least.
    pub forwards: Vec<wg::Forward>,
    /// How bytes are moved.
    pub engine: Engine,
    /// The TCP/IP stack inside the tunnel.
    pub stack: StackChoice,
    /// Which offloads may be used.
    pub offloads: Offloads,
}

/// Forwards ports until `shutdown`, or until nothing is listened on any more. Everything that was
/// opened is closed then.
///
/// # Errors
/// What keeps the tunnel or a listener from being opened.
pub async fn forward(
    options: Options,
    helper: NetHelper,
    tell: impl Fn(Event) + Clone + Send + Sync + 'static,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let Options {
        config,
        forwards,
        engine,
        stack,
        offloads,
    } = options;
    for (line, setting) in &config.ignored {
        let (line, setting) = (*line, *setting);
        tell(Event::Ignored { line, setting });
    }
    let mut hosts: Vec<IpAddr> = forwards.iter().map(|forward| forward.host).collect();
    hosts.sort();
    hosts.dedup();
    let (tunnel, events) = plain::start(&config, &hosts, stack, offloads, helper)?;
    let mut serving = JoinSet::new();
    for forward in &forwards {
        for listen in forward.listening().listens() {
            let way = Lane {
                tunnel: tunnel.clone(),
                host: forward.host,
            };
            serve(listen, way, engine, tell.clone(), &mut serving)?;
        }
    }
    let all_closed = async { while serving.join_next().await.is_some() {} };
    let (shutdown, all_closed) = (pin!(shutdown), pin!(all_closed));
    tokio::select! {
        biased;
        () = shutdown => Ok(()),
        () = all_closed => Err(Error::NothingLeft),
        () = watch(&tunnel, events, tell) => Ok(()),
    }
}

/// Opens a local socket and serves it. One that need not be there may fail.
fn serve(
    listen: Listen,
    way: Lane,
    engine: Engine,
    tell: impl Fn(Event) + Send + Sync + 'static,
    serving: &mut JoinSet<()>,
) -> Result<(), Error> {
    let (proto, local) = (listen.forward.proto, listen.address);
    let remote = SocketAddr::new(way.host, listen.forward.remote);
    let place = Place::from(listen);
    let failed = |error: io::Error| match listen.required {
        true => Err(Error::Listen {
            proto,
            local,
            reason: reason(&error),
        }),
        false => Ok(()),
    };
    match proto {
        Proto::Tcp => match relay_engine::listen(local) {
            Ok(listener) => {
                tell(Event::Listening {
                    proto,
                    local,
                    remote,
                });
                let report = reporter(tell, remote);
                let acceptor = Acceptor::new(listener);
                serving.spawn(tcp::serve(acceptor, place, way, engine, report));
            }
            Err(error) => return failed(error),
        },
        Proto::Udp => match relay_engine::listen_udp(local) {
            Ok(socket) => {
                tell(Event::Listening {
                    proto,
                    local,
                    remote,
                });
                let report = reporter(tell, remote);
                serving.spawn(udp::serve(socket, place, way, report));
            }
            Err(error) => return failed(error),
        },
    }
    Ok(())
}

/// Tells what a listener tells, with the host that it leads to.
fn reporter(tell: impl Fn(Event) + Send + Sync + 'static, remote: SocketAddr) -> Reporter {
    Reporter::new(move |event| match event {
        event::Event::DialFailed { reason, .. } => {
            let reason = reason.clone();
            tell(Event::DialFailed { remote, reason });
        }
        event::Event::ListenerStopped {
            proto,
            local,
            reason,
        } => {
            let (proto, local, reason) = (*proto, *local, reason.clone());
            tell(Event::ListenerStopped {
                proto,
                local,
                reason,
            });
        }
        other => tracing::debug!("{other}"),
    })
}

/// Tells what becomes of the peers, for as long as the tunnel lives.
async fn watch(tunnel: &Tunnel, mut events: mpsc::Receiver<plain::Event>, tell: impl Fn(Event)) {
    let mut missing: HashSet<String> = tunnel.needed().iter().cloned().collect();
    while let Some(event) = events.recv().await {
        let answered = match &event {
            plain::Event::Answered { peer, .. } => missing.remove(peer),
            _ => false,
        };
        tell(Event::Peer(event));
        if answered && missing.is_empty() {
            tell(Event::Ready);
        }
    }
}

/// The way to one host of the tunnel.
#[derive(Clone)]
struct Lane {
    tunnel: Tunnel,
    host: IpAddr,
}

impl Way for Lane {
    type Flow = TunnelFlow;

    async fn connect(&self, port: u16, _: &[u8]) -> io::Result<(TcpStream, usize)> {
        let to = SocketAddr::new(self.host, port);
        Ok((self.tunnel.connect(to).await?, 0))
    }

    async fn open(&self, port: u16, _: &[u8]) -> io::Result<(Stream, usize)> {
        let to = SocketAddr::new(self.host, port);
        Ok((self.tunnel.open(to).await?, 0))
    }

    fn early_data(&self) -> Option<EarlyData> {
        None
    }

    fn open_flow(&self, port: u16) -> io::Result<TunnelFlow> {
        let to = SocketAddr::new(self.host, port);
        self.tunnel.open_flow(to).map_err(io::Error::other)
    }
}
