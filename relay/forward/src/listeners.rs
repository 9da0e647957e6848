//! Opens the local sockets, all or none, in the order of the specs.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use relay_engine::accept::Acceptor;
use relay_engine::steer::{self, Steering};
use relay_wire::spec::{Forward, Listen, Proto};
use tokio::net::{TcpStream, UdpSocket};

use crate::Error;
use crate::board::{Board, Entry, Key};
use crate::event::{Event, Reporter};
use crate::plan::{Part, Plan, Range};
use crate::way::reason;

/// An open local socket.
pub(crate) enum Local {
    Tcp(Acceptor),
    Udp(UdpSocket),
}

/// Where a local socket is, and where it leads.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) address: SocketAddr,
    pub(crate) leads: Leads,
    pub(crate) entry: Arc<Entry>,
}

#[derive(Clone)]
pub(crate) enum Leads {
    /// To this port.
    To(u16),
    /// It depends on the port that was asked for; the socket is steered to.
    By(Arc<Range>),
    /// To this Unix socket.
    Socket(Arc<str>),
}

/// Where a connection leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Remote {
    Port(u16),
    Socket(Arc<str>),
}

impl Place {
    /// Where an accepted connection leads.
    pub(crate) fn remote(&self, stream: &TcpStream) -> io::Result<Remote> {
        match &self.leads {
            Leads::To(port) => Ok(Remote::Port(*port)),
            Leads::Socket(path) => Ok(Remote::Socket(Arc::clone(path))),
            Leads::By(range) => {
                let port = range.remote(stream.local_addr()?.port());
                let port = port.ok_or(io::ErrorKind::AddrNotAvailable)?;
                Ok(Remote::Port(port))
            }
        }
    }
}

/// On a board of its own, for those who show none.
impl From<Listen> for Place {
    fn from(listen: Listen) -> Self {
        Self {
            address: listen.address,
            leads: Leads::To(listen.forward.remote),
            entry: Board::default().put(Key::Any(listen.forward.into())),
        }
    }
}

/// Everything open. The sockets of ranges work as long as there is `steering`.
#[derive(Default)]
pub(crate) struct Open {
    pub(crate) sockets: Vec<(Place, Local)>,
    pub(crate) steering: Option<Steering>,
}

/// Gets ready for ranges, and sees whether there may be as many sockets as it takes. On a machine
/// that cannot do it ranges are listened on port by port, which is told.
pub(crate) async fn prepare(plan: &Plan, report: &Reporter) -> Result<Option<Steering>, Error> {
    plan.check(true)?;
    let addresses = plan.addresses();
    if addresses == 0 {
        return Ok(None);
    }
    let load = move || Steering::load(addresses);
    match tokio::task::spawn_blocking(load).await {
        Ok(Ok(steering)) => Ok(Some(steering)),
        Ok(Err(error)) => port_by_port(plan, &error, report).map(|()| None),
        Err(_) => Ok(None),
    }
}

fn port_by_port(plan: &Plan, why: &relay_engine::Error, report: &Reporter) -> Result<(), Error> {
    let reason = why.to_string();
    report.tell(Event::PortByPort { reason });
    plan.check(false)
}

/// Opens everything, telling each attempt before it is made. On an error all are closed again.
pub(crate) fn open(
    plan: &Plan,
    steering: Option<Steering>,
    report: &Reporter,
    board: &Board,
) -> Result<Open, Error> {
    let mut opening = Opening {
        report,
        board,
        last: None,
        sockets: Vec::with_capacity(plan.0.len()),
    };
    match opening.all(plan, steering) {
        Ok(steering) => Ok(Open {
            sockets: opening.sockets,
            steering,
        }),
        Err(error) => {
            for (place, _) in &opening.sockets {
                place.entry.take_down();
            }
            Err(error)
        }
    }
}

struct Opening<'a> {
    report: &'a Reporter,
    board: &'a Board,
    /// The forward of the last socket: it may have one more.
    last: Option<(Forward, Arc<Entry>)>,
    sockets: Vec<(Place, Local)>,
}

impl Opening<'_> {
    fn all(
        &mut self,
        plan: &Plan,
        mut steering: Option<Steering>,
    ) -> Result<Option<Steering>, Error> {
        let mut steer = steering.is_some();
        for part in &plan.0 {
            let range = match part {
                Part::One(listen) => {
                    self.one(*listen)?;
                    continue;
                }
                Part::Range(range) => range,
            };
            if let Some(steering) = steering.as_mut().filter(|_| steer) {
                match self.range(range, steering) {
                    Ok(()) => continue,
                    Err(relay_engine::Error::Claimed(_)) => return Err(claimed(range)),
                    Err(error) => {
                        steer = false;
                        port_by_port(plan, &error, self.report)?;
                    }
                }
            }
            self.each(range)?;
        }
        Ok(steering)
    }

    /// One port. Nothing comes of one that need not be there.
    fn one(&mut self, listen: Listen) -> Result<(), Error> {
        match attempt(listen, self.report) {
            Ok(socket) => {
                let forward = listen.forward;
                let entry = match &self.last {
                    Some((last, entry)) if *last == forward => Arc::clone(entry),
                    _ => self.board.put(Key::Any(forward.into())),
                };
                self.last = Some((forward, Arc::clone(&entry)));
                let place = Place {
                    address: listen.address,
                    leads: Leads::To(forward.remote),
                    entry,
                };
                self.push(place, socket);
                Ok(())
            }
            Err(error) if listen.required => Err(failed(listen, &error)),
            Err(error) => {
                tracing::info!(local = %listen.address, reason = reason(&error), "not listening there");
                Ok(())
            }
        }
    }

    /// A range on one socket.
    fn range(&mut self, range: &Range, steering: &mut Steering) -> Result<(), relay_engine::Error> {
        let (proto, address) = (range.proto, IpAddr::from(range.address));
        for span in &range.spans {
            let (local, remote) = (span.locals(), span.remotes());
            self.report.tell(Event::ForwardingRange {
                proto,
                address,
                local,
                remote,
            });
        }
        let (socket, left) = match proto {
            Proto::Tcp => {
                let opened = steering.tcp(range.address, range.port_set())?;
                (Local::Tcp(Acceptor::new(opened.socket)), opened.left)
            }
            Proto::Udp => {
                let opened = steering.udp(range.address, range.port_set())?;
                (Local::Udp(opened.socket), opened.left)
            }
        };
        tell_left(range, left, self.report);
        let first = range.ports().next().unwrap_or_default();
        let place = Place {
            address: SocketAddr::new(address, first),
            leads: Leads::By(Arc::new(range.clone())),
            entry: self.board.put(Key::Range(range.clone())),
        };
        self.push(place, socket);
        Ok(())
    }

    /// A range with one listener for each port.
    fn each(&mut self, range: &Range) -> Result<(), Error> {
        let is_claimed = match range.proto {
            Proto::Tcp => steer::is_claimed_tcp(range.address),
            Proto::Udp => steer::is_claimed_udp(range.address),
        };
        if is_claimed {
            return Err(claimed(range));
        }
        let (mut left, mut busy) = (Vec::new(), None);
        let entry = self.board.put(Key::Range(range.clone()));
        let before = self.sockets.len();
        for listen in range.listens() {
            match attempt(listen, self.report) {
                Ok(socket) => {
                    let place = Place {
                        address: listen.address,
                        leads: Leads::To(listen.forward.remote),
                        entry: Arc::clone(&entry),
                    };
                    self.push(place, socket);
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    left.push(listen.address.port());
                    busy.get_or_insert((listen, error));
                }
                Err(error) => {
                    entry.take_down();
                    return Err(failed(listen, &error));
                }
            }
        }
        match busy {
            Some((listen, error)) if self.sockets.len() == before => {
                entry.take_down();
                Err(failed(listen, &error))
            }
            _ => {
                tell_left(range, left, self.report);
                Ok(())
            }
        }
    }

    fn push(&mut self, place: Place, socket: Local) {
        let address = match &place.leads {
            Leads::By(_) => place.entry.row.here.clone(),
            _ => place.address.to_string(),
        };
        self.report.tell(Event::Listening {
            row: Arc::clone(&place.entry.row),
            address,
        });
        self.sockets.push((place, socket));
    }
}

fn attempt(listen: Listen, report: &Reporter) -> io::Result<Local> {
    let Listen {
        forward: Forward { proto, remote, .. },
        address: local,
        ..
    } = listen;
    report.tell(Event::Forwarding {
        proto,
        local,
        remote,
    });
    match proto {
        Proto::Tcp => relay_engine::listen(local).map(|tcp| Local::Tcp(Acceptor::new(tcp))),
        Proto::Udp => relay_engine::listen_udp(local).map(Local::Udp),
    }
}

fn failed(listen: Listen, error: &io::Error) -> Error {
    Error::Listen {
        proto: listen.forward.proto,
        local: listen.address,
        reason: reason(error),
    }
}

fn claimed(range: &Range) -> Error {
    Error::Claimed {
        proto: range.proto,
        address: range.address,
    }
}

fn tell_left(range: &Range, ports: Vec<u16>, report: &Reporter) {
    if !ports.is_empty() {
        let (proto, address) = (range.proto, IpAddr::from(range.address));
        report.tell(Event::LeftToOthers {
            proto,
            address,
            ports,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;
    use std::sync::Mutex;

    use super::*;

    fn forward(proto: Proto, local: u16, remote: u16) -> Forward {
        Forward {
            proto,
            bind: None,
            local,
            remote,
        }
    }

    fn free_port() -> u16 {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap().port()
    }

    fn reporter() -> (Arc<Mutex<Vec<String>>>, Reporter) {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let copy = lines.clone();
        let report = Reporter::new(move |event| {
            if event.is_for_people() {
                copy.lock().unwrap().push(event.to_string());
            }
        });
        (lines, report)
    }

    fn open_plain(forwards: &[Forward], report: &Reporter) -> Result<Open, Error> {
        open(&Plan::new(forwards), None, report, &Board::default())
    }

    #[tokio::test]
    async fn a_busy_port_is_named_and_nothing_stays_open() {
        let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (first, second) = (free_port(), busy.local_addr().unwrap().port());
        let plan = [
            forward(Proto::Tcp, first, 1),
            forward(Proto::Tcp, second, 2),
        ];
        let (lines, report) = reporter();
        let Err(error) = open_plain(&plan, &report) else {
            panic!("the port was busy")
        };
        assert_eq!(
            error.to_string(),
            format!("listen 'tcp://127.0.0.1:{second}': address already in use")
        );
        assert!(std::net::TcpListener::bind(("127.0.0.1", first)).is_ok());
        assert_eq!(lines.lock().unwrap().len(), 4);
        assert_eq!(
            lines.lock().unwrap()[1],
            format!(
                "Forwarding 'tcp://127.0.0.1:{first}' locally to 'tcp://127.0.0.1:1' in the \
                 workspace"
            )
        );
    }

    #[tokio::test]
    async fn a_busy_ipv6_loopback_is_no_error_unless_asked_for() {
        let Ok(busy) = std::net::TcpListener::bind("[::1]:0") else {
            return;
        };
        let port = busy.local_addr().unwrap().port();
        let report = Reporter::new(|_| {});
        let by_default = open_plain(&[forward(Proto::Tcp, port, 1)], &report);
        assert_eq!(by_default.map(|open| open.sockets.len()).unwrap(), 1);
        let asked = Forward {
            bind: Some(Ipv6Addr::LOCALHOST.into()),
            ..forward(Proto::Tcp, port, 1)
        };
        assert!(open_plain(&[asked], &report).is_err());
    }

    #[tokio::test]
    async fn busy_ports_of_an_own_address_stay_with_those_who_have_them() {
        let own = IpAddr::from([127, 77, 9, 1]);
        let busy = std::net::TcpListener::bind((own, 0)).unwrap();
        let port = busy.local_addr().unwrap().port();
        let range = |ports: [u16; 2]| {
            ports.map(|local| Forward {
                bind: Some(own),
                ..forward(Proto::Tcp, local, local)
            })
        };
        let beside = if port == u16::MAX { port - 1 } else { port };
        let (lines, report) = reporter();
        let opened = open_plain(&range([beside, beside + 1]), &report).unwrap();
        assert_eq!(opened.sockets.len(), 1);
        assert_eq!(
            *lines.lock().unwrap().last().unwrap(),
            format!("Left to other programs of this machine: tcp {port} on 127.77.9.1")
        );
        drop(opened);
        let also = std::net::TcpListener::bind((own, beside + u16::from(port == beside)));
        if also.is_ok() {
            assert!(open_plain(&range([beside, beside + 1]), &report).is_err());
        }
    }
}
