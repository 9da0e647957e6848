//! The forwards that are open: added, served and removed.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use relay_engine::Engine;
use relay_engine::accept::Acceptor;
use relay_engine::steer::Steering;
use relay_engine::unix::Bound;
use relay_wire::forwards::{AnyForward, Here, There, UnixForward};
use relay_wire::remote_forward::RemoteForward;
use relay_wire::spec::{Forward, Proto};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::board::{Board, Entry, Key};
use crate::event::{Event, Reporter};
use crate::listeners::{self, Leads, Local, Open, Place, Remote};
use crate::plan::Plan;
use crate::reverse::Reverse;
use crate::run::{Change, Command};
use crate::way::{Way, reason};
use crate::{Error, tcp, udp};

/// Serves forwards over a way into the workspace.
pub(crate) struct Server<W> {
    way: W,
    engine: Engine,
    report: Reporter,
    board: Board,
    serving: JoinSet<()>,
}

/// How the attempts of the workspace to listen went, of those that take one.
type Attempts = Vec<(RemoteForward, oneshot::Receiver<io::Result<()>>)>;

/// What is open and not served yet.
#[derive(Default)]
struct Opened {
    ports: Open,
    sockets: Vec<(Bound, Remote, Arc<Entry>)>,
}

impl<W: Way> Server<W> {
    pub(crate) fn new(way: W, engine: Engine, report: Reporter, board: Board) -> Self {
        Self {
            way,
            engine,
            report,
            board,
            serving: JoinSet::new(),
        }
    }

    /// Opens the first forwards, whose ports are planned.
    pub(crate) async fn open_first(
        &mut self,
        forwards: Vec<AnyForward>,
        (plan, steering): (Plan, Option<Steering>),
    ) -> Result<(), Error> {
        let attempts = self.open(&forwards, &plan, steering)?;
        listening(attempts).await
    }

    /// Does what a handle asks for, and answers.
    pub(crate) async fn obey(&mut self, Command { change, reply }: Command) {
        let added = match change {
            Change::Add(forwards) => self.add(&forwards).await,
            Change::Remove(forwards) => {
                let _ = reply.send(self.remove(&forwards));
                return;
            }
        };
        match added {
            // The workspace answers in its own time.
            Ok(attempts) => drop(self.serving.spawn(async move {
                let _ = reply.send(listening(attempts).await);
            })),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Whether nothing is served.
    pub(crate) fn is_idle(&self) -> bool {
        self.serving.is_empty()
    }

    /// Ends when one of those that are served does.
    pub(crate) async fn ended(&mut self) {
        self.serving.join_next().await;
    }

    async fn add(&mut self, forwards: &[AnyForward]) -> Result<Attempts, Error> {
        let ports: Vec<Forward> = forwards.iter().filter_map(port).collect();
        let plan = Plan::new(&ports);
        let steering = listeners::prepare(&plan, &self.report).await?;
        self.open(forwards, &plan, steering)
    }

    /// Opens all or none of what is listened on here, and asks the workspace to listen.
    fn open(
        &mut self,
        forwards: &[AnyForward],
        plan: &Plan,
        steering: Option<Steering>,
    ) -> Result<Attempts, Error> {
        let start = std::time::Instant::now();
        let mut opened = Opened {
            ports: listeners::open(plan, steering, &self.report, &self.board)?,
            ..Opened::default()
        };
        for forward in forwards {
            if let AnyForward::Unix(unix) = forward
                && let Err(error) = self.open_unix(unix, &mut opened)
            {
                opened.take_down();
                return Err(error);
            }
        }
        tracing::debug!(took = ?start.elapsed(), "listening");
        self.start(opened);
        let reverse = forwards.iter().filter_map(|forward| match forward {
            AnyForward::Reverse(reverse) => Some(reverse.clone()),
            _ => None,
        });
        Ok(reverse.map(|forward| self.start_reverse(forward)).collect())
    }

    fn open_unix(&self, unix: &UnixForward, opened: &mut Opened) -> Result<(), Error> {
        self.report.tell(Event::ForwardingUnix {
            forward: unix.clone(),
        });
        let remote = match &unix.there {
            There::Socket(path) => Remote::Socket(path.as_str().into()),
            There::Port(port) => Remote::Port(*port),
        };
        match (&unix.here, &remote) {
            (Here::Socket(path), _) => {
                let bound = Bound::listen(path).map_err(|error| Error::ListenUnix {
                    path: path.display().to_string(),
                    reason: reason(&error),
                })?;
                let entry = self.put(unix);
                self.tell_listening(&entry, path.display().to_string());
                opened.sockets.push((bound, remote, entry));
            }
            (Here::Port(bind, local), Remote::Socket(path)) => {
                let forward = Forward {
                    proto: Proto::Tcp,
                    bind: *bind,
                    local: *local,
                    remote: *local,
                };
                self.open_port_to_socket(unix, forward, path, opened)?;
            }
            // No text is read as this.
            (Here::Port(..), Remote::Port(_)) => {}
        }
        Ok(())
    }

    fn open_port_to_socket(
        &self,
        unix: &UnixForward,
        forward: Forward,
        path: &Arc<str>,
        opened: &mut Opened,
    ) -> Result<(), Error> {
        let entry = self.put(unix);
        for listen in forward.listens() {
            let address = listen.address;
            match relay_engine::listen(address) {
                Ok(socket) => {
                    self.tell_listening(&entry, address.to_string());
                    let place = Place {
                        address,
                        leads: Leads::Socket(Arc::clone(path)),
                        entry: Arc::clone(&entry),
                    };
                    let local = Local::Tcp(Acceptor::new(socket));
                    opened.ports.sockets.push((place, local));
                }
                Err(error) if listen.required => {
                    entry.take_down();
                    return Err(Error::Listen {
                        proto: Proto::Tcp,
                        local: address,
                        reason: reason(&error),
                    });
                }
                Err(error) => {
                    tracing::info!(local = %address, reason = reason(&error), "not listening there");
                }
            }
        }
        Ok(())
    }

    fn put(&self, unix: &UnixForward) -> Arc<Entry> {
        self.board.put(Key::Any(AnyForward::Unix(unix.clone())))
    }

    fn tell_listening(&self, entry: &Entry, address: String) {
        let row = Arc::clone(&entry.row);
        self.report.tell(Event::Listening { row, address });
    }

    fn start(&mut self, opened: Opened) {
        let (engine, report) = (self.engine, &self.report);
        let Open { sockets, steering } = opened.ports;
        if let Some(steering) = steering {
            let entries: Vec<_> = sockets.iter().map(|(place, _)| &place.entry).collect();
            let entries = entries.into_iter().cloned().collect();
            self.serving.spawn(keep(steering, entries));
        }
        for (place, local) in sockets {
            let (way, report) = (self.way.clone(), report.clone());
            match local {
                Local::Tcp(acceptor) => self
                    .serving
                    .spawn(tcp::serve(acceptor, place, way, engine, report)),
                Local::Udp(socket) => self.serving.spawn(udp::serve(socket, place, way, report)),
            };
        }
        for (bound, remote, entry) in opened.sockets {
            let (way, report) = (self.way.clone(), report.clone());
            let serving = tcp::serve_unix(bound, remote, entry, way, engine, report);
            self.serving.spawn(serving);
        }
    }

    fn start_reverse(
        &mut self,
        forward: RemoteForward,
    ) -> (RemoteForward, oneshot::Receiver<io::Result<()>>) {
        let (way, report) = (self.way.clone(), self.report.clone());
        let reverse = Reverse::new(forward.clone(), way, self.engine, report, &self.board);
        let (tell, first) = oneshot::channel();
        self.serving.spawn(reverse.serve(tell));
        (forward, first)
    }

    fn remove(&self, forwards: &[AnyForward]) -> Result<(), Error> {
        let (entries, mut chosen) = (self.board.all(), Vec::new());
        let mut missing: HashSet<&AnyForward> = forwards.iter().collect();
        for entry in entries {
            match &entry.key {
                Key::Any(forward) => {
                    if missing.remove(forward) {
                        chosen.push(entry);
                    }
                }
                Key::Range(range) => {
                    let named: Vec<_> = forwards
                        .iter()
                        .filter(|forward| port(forward).is_some_and(|port| range.has(&port)))
                        .collect();
                    let Some(first) = named.first() else {
                        continue;
                    };
                    if named.len() < range.ports().count() {
                        return Err(Error::PartOfRange {
                            forward: first.to_string(),
                            range: range.to_string(),
                        });
                    }
                    for forward in named {
                        missing.remove(forward);
                    }
                    chosen.push(entry);
                }
            }
        }
        if let Some(first) = missing.into_iter().next() {
            return Err(Error::NotForwarded(first.to_string()));
        }
        for entry in chosen {
            entry.take_down();
            let row = Arc::clone(&entry.row);
            self.report.tell(Event::Removed { row });
        }
        Ok(())
    }
}

impl Opened {
    fn take_down(self) {
        let ports = self.ports.sockets.iter().map(|(place, _)| &place.entry);
        let sockets = self.sockets.iter().map(|(_, _, entry)| entry);
        for entry in ports.chain(sockets) {
            entry.take_down();
        }
    }
}

fn port(forward: &AnyForward) -> Option<Forward> {
    match forward {
        AnyForward::Port(port) => Some(*port),
        _ => None,
    }
}

/// Steers as long as one of the forwards is up.
async fn keep(steering: Steering, entries: Vec<Arc<Entry>>) {
    let all_down = async {
        for entry in entries {
            entry.stopped().await;
        }
    };
    tokio::select! {
        () = steering.keep() => {}
        () = all_down => {}
    }
}

/// Waits until the workspace listens for all.
async fn listening(attempts: Attempts) -> Result<(), Error> {
    for (forward, first) in attempts {
        let listening = first.await.map_err(|_| Error::Ended)?;
        listening.map_err(|error| Error::BackRefused {
            forward: AnyForward::Reverse(forward).to_string(),
            reason: reason(&error),
        })?;
    }
    Ok(())
}
