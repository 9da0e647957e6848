//! Putting a route up: the programs it needs, and the local port that leads to the app.

mod deployment;
mod peers;
mod ssh;
mod wireguard;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::{TempDir, TempPath};

pub(crate) use deployment::Account;
pub use deployment::{Deployment, Tunnel};
pub(crate) use peers::haproxy_http;
pub use peers::require_installed;

use crate::link::{Host, Hosts};
use crate::load::App;
use crate::processes::{Family, Process};
use crate::{Error, Route};

pub(crate) const READY: Duration = Duration::from_secs(20);

/// A route that is up; its programs end when it is dropped.
#[derive(Debug)]
pub struct OpenRoute {
    /// Which.
    pub route: Route,
    /// The local port for TCP, and for UDP where the route carries it.
    pub local: SocketAddr,
    /// The processes that forward.
    pub family: Family,
    /// From the start of the forwarding command to its being ready.
    pub start: Option<Duration>,
    place: Option<Place>,
    processes: Vec<Process>,
    folders: Vec<TempDir>,
    /// What a program may leave behind.
    _files: Vec<TempPath>,
}

/// Where a route is that has hosts of its own.
#[derive(Debug)]
struct Place {
    near: Host,
    app: App,
}

impl OpenRoute {
    /// Runs `work` where this route's local port is, with the app that the route leads to.
    ///
    /// # Errors
    /// When the host cannot be entered.
    pub fn drive<T: Send>(
        &self,
        hosts: &Hosts,
        app: &App,
        work: impl FnOnce(&App) -> T + Send,
    ) -> io::Result<T> {
        match &self.place {
            Some(place) => place.near.enter(|| work(&place.app)),
            None => hosts.near(|| work(app)),
        }
    }

    /// How many lines of its programs so far contain `text`.
    pub(crate) fn count_lines(&mut self, text: &str) -> usize {
        let processes = self.processes.iter_mut();
        processes.map(|process| process.count(text)).sum()
    }

    fn plain(route: Route, local: SocketAddr, processes: Vec<Process>) -> Self {
        Self {
            route,
            local,
            family: Family::of(processes.iter().map(Process::id)),
            start: None,
            place: None,
            processes,
            folders: Vec::new(),
            _files: Vec::new(),
        }
    }
}

/// Puts `route` to the app at `port` of the far host up.
///
/// # Errors
/// When one of its programs is missing or does not start.
pub fn open(
    route: Route,
    hosts: &Hosts,
    port: u16,
    deployment: Option<&Deployment>,
) -> Result<OpenRoute, Error> {
    if route.is_peer() {
        return peers::open(route, hosts, port);
    }
    match (route, deployment) {
        (Route::Direct, _) => {
            let local = (hosts.far_address(), port).into();
            Ok(OpenRoute::plain(route, local, Vec::new()))
        }
        (Route::Ssh, _) => ssh::plain(hosts, port),
        (Route::SshTunnel, Some(deployment)) => ssh::through(deployment, hosts, port),
        (_, Some(deployment)) => deployment.forward(&Tunnel::of(route), hosts, port),
        (_, None) => Err(Error::system("relay's routes need its server")(ended())),
    }
}

fn ended() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

fn folder() -> Result<TempDir, Error> {
    TempDir::new().map_err(Error::system("cannot make a temporary directory"))
}

/// Flattens "could not enter the host" and "it went wrong there".
fn inside<T>(result: io::Result<Result<T, Error>>) -> Result<T, Error> {
    result.map_err(Error::system("cannot enter a network namespace"))?
}

fn free_port(address: Ipv4Addr) -> Result<SocketAddr, Error> {
    TcpListener::bind((address, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(Error::system(format!("no free port on {address}")))
}

fn wait_for_port(process: &mut Process, address: SocketAddr) -> Result<(), Error> {
    let end = Instant::now() + READY;
    while TcpStream::connect_timeout(&address, READY).is_err() {
        if Instant::now() > end || !process.runs() {
            return Err(process.unready(READY));
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
