//! Other forwarders, where they are installed. Nothing of them leaves this machine: they listen on
//! loopback, or live in network namespaces that are made for them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use relay_wire::keys::NodePrivate;

use super::wireguard::{self, Key};
use super::{OpenRoute, Place, READY, folder, free_port, inside, wait_for_port};
use crate::link::{Host, Hosts};
use crate::load::App;
use crate::processes::Process;
use crate::{Error, Route};

/// A peer's program, and the command that installs it.
struct Program {
    route: Route,
    name: &'static str,
    install: &'static str,
}

const PROGRAMS: &[Program] = &[
    program(Route::Onetun, "onetun", "cargo install --locked onetun"),
    program(
        Route::Boringtun,
        "boringtun-cli",
        "cargo install --locked boringtun-cli",
    ),
    program(
        Route::Gotatun,
        "gotatun",
        "cargo install --locked gotatun-cli",
    ),
    program(Route::Rathole, "rathole", "cargo install rathole"),
    program(Route::Bore, "bore", "cargo install --locked bore-cli"),
    program(
        Route::Dumbpipe,
        "dumbpipe",
        "cargo install --locked dumbpipe",
    ),
    program(Route::Socat, "socat", "apt-get install socat"),
    program(Route::Haproxy, "haproxy", "apt-get install haproxy"),
];

const fn program(route: Route, name: &'static str, install: &'static str) -> Program {
    Program {
        route,
        name,
        install,
    }
}

/// Finds a peer's program.
///
/// # Errors
/// [`Error::NotInstalled`] with the command that installs it.
pub fn require_installed(route: Route) -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.push("/usr/sbin".into());
    if let Some(home) = std::env::var_os("HOME") {
        folders.push(Path::new(&home).join(".cargo/bin"));
    }
    find(route, &folders)
}

fn find(route: Route, folders: &[PathBuf]) -> Result<PathBuf, Error> {
    let Some(program) = PROGRAMS.iter().find(|program| program.route == route) else {
        return Err(Error::NoSuchRoute(route.name().to_owned()));
    };
    let mut files = folders.iter().map(|folder| folder.join(program.name));
    files
        .find(|file| file.is_file())
        .ok_or(Error::NotInstalled {
            program: program.name,
            install: program.install,
        })
}

/// Puts a peer's route up, on this machine's loopback.
pub(super) fn open(route: Route, hosts: &Hosts, port: u16) -> Result<OpenRoute, Error> {
    let program = require_installed(route)?;
    if !matches!(hosts, Hosts::Same) {
        let what = format!("{route} is measured over loopback only");
        return Err(Error::system(what)(std::io::ErrorKind::Unsupported.into()));
    }
    match route {
        Route::Onetun => {
            let far = require_installed(Route::Boringtun)
                .or_else(|_| require_installed(Route::Gotatun))?;
            wireguard::onetun(&program, &far)
        }
        Route::Boringtun | Route::Gotatun => wireguard::devices(route, &program),
        Route::Rathole => rathole(&program, port),
        Route::Bore => bore(&program, port),
        Route::Dumbpipe => dumbpipe(&program),
        Route::Haproxy => haproxy(&program, "tcp", port),
        _ => socat(&program, port),
    }
}

/// Starts the last process of a route and waits until its local port is open.
fn finish(
    route: Route,
    mut command: Command,
    local: SocketAddr,
    mut others: Vec<Process>,
) -> Result<OpenRoute, Error> {
    let begin = Instant::now();
    let mut last = Process::start(route.name(), &mut command)?;
    wait_for_port(&mut last, local)?;
    let start = begin.elapsed();
    others.insert(0, last);
    Ok(OpenRoute {
        start: Some(start),
        ..OpenRoute::plain(route, local, others)
    })
}

fn socat(program: &Path, port: u16) -> Result<OpenRoute, Error> {
    let local = free_port(Ipv4Addr::LOCALHOST)?;
    let mut command = Command::new(program);
    let listen = format!(
        "TCP-LISTEN:{},bind={},fork,reuseaddr,nodelay,backlog=1024",
        local.port(),
        local.ip()
    );
    command
        .arg(listen)
        .arg(format!("TCP:127.0.0.1:{port},nodelay"));
    finish(Route::Socat, command, local, Vec::new())
}

/// haproxy as a plain HTTP proxy: it keeps connections to the app.
pub(crate) fn haproxy_http(port: u16) -> Result<OpenRoute, Error> {
    let program = require_installed(Route::Haproxy)?;
    haproxy(&program, "http\n  http-reuse always", port)
}

fn haproxy(program: &Path, mode: &str, port: u16) -> Result<OpenRoute, Error> {
    let local = free_port(Ipv4Addr::LOCALHOST)?;
    let folder = folder()?;
    let file = folder.path().join("haproxy.cfg");
    let text = format!(
        "global\n  maxconn 4000\ndefaults\n  mode {mode}\n  timeout connect 5s\n  timeout client 10m\n  \
         timeout server 10m\nlisten bench\n  bind {local}\n  server app 127.0.0.1:{port}\n"
    );
    write(&file, &text)?;
    let mut command = Command::new(program);
    command.arg("-db").arg("-f").arg(&file);
    let mut open = finish(Route::Haproxy, command, local, Vec::new())?;
    open.folders.push(folder);
    Ok(open)
}

fn rathole(program: &Path, port: u16) -> Result<OpenRoute, Error> {
    let (control, local) = (
        free_port(Ipv4Addr::LOCALHOST)?,
        free_port(Ipv4Addr::LOCALHOST)?,
    );
    let key = Key::of(&NodePrivate::generate(&mut rand::rng()));
    let folder = folder()?;
    let file = |name: &str| folder.path().join(name);
    let server = format!(
        "[server]\nbind_addr = \"{control}\"\ndefault_token = \"bench\"\n\
         [server.transport]\ntype = \"noise\"\n\
         [server.transport.noise]\nlocal_private_key = \"{}\"\n\
         [server.services.tcp]\nbind_addr = \"{local}\"\n\
         [server.services.udp]\ntype = \"udp\"\nbind_addr = \"{local}\"\n",
        key.private_base64()
    );
    let client = format!(
        "[client]\nremote_addr = \"{control}\"\ndefault_token = \"bench\"\n\
         [client.transport]\ntype = \"noise\"\n\
         [client.transport.noise]\nremote_public_key = \"{}\"\n\
         [client.services.tcp]\nlocal_addr = \"127.0.0.1:{port}\"\n\
         [client.services.udp]\ntype = \"udp\"\nlocal_addr = \"127.0.0.1:{port}\"\n",
        key.public_base64()
    );
    write(&file("server.toml"), &server)?;
    write(&file("client.toml"), &client)?;
    let mut command = Command::new(program);
    command.arg(file("server.toml"));
    let mut server = Process::start("rathole", &mut command)?;
    wait_for_port(&mut server, control)?;
    let mut command = Command::new(program);
    command.arg(file("client.toml"));
    let mut open = finish(Route::Rathole, command, local, vec![server])?;
    open.folders.push(folder);
    Ok(open)
}

fn bore(program: &Path, port: u16) -> Result<OpenRoute, Error> {
    /// bore's control port cannot be chosen.
    const CONTROL: u16 = 7835;
    let local = free_port(Ipv4Addr::LOCALHOST)?;
    let mut command = Command::new(program);
    command.args(["server", "--bind-addr", "127.0.0.1"]);
    let mut server = Process::start("bore", &mut command)?;
    wait_for_port(&mut server, (Ipv4Addr::LOCALHOST, CONTROL).into())?;
    let mut command = Command::new(program);
    command
        .args(["local", &port.to_string(), "--to", "127.0.0.1", "--port"])
        .arg(local.port().to_string());
    finish(Route::Bore, command, local, vec![server])
}

/// In a host of its own: dumbpipe looks for relays on the internet, and finds none there.
fn dumbpipe(program: &Path) -> Result<OpenRoute, Error> {
    let host = Host::bare().map_err(wireguard::no_namespace)?;
    let app = host.enter(App::start).and_then(|app| app);
    let app = app.map_err(wireguard::no_namespace)?;
    let mut open = inside(host.enter(|| {
        let local = free_port(Ipv4Addr::LOCALHOST)?;
        let mut command = Command::new(program);
        let target = format!("127.0.0.1:{}", app.port());
        command.args(["listen-tcp", "--host", &target]);
        let mut server = Process::start("dumbpipe", &mut command)?;
        let line = server.wait_for("dumbpipe connect-tcp ", READY)?;
        let ticket = line
            .split_whitespace()
            .last()
            .unwrap_or_default()
            .to_owned();
        let mut command = Command::new(program);
        command.args(["connect-tcp", "--addr", &local.to_string(), &ticket]);
        finish(Route::Dumbpipe, command, local, vec![server])
    }))?;
    open.place = Some(Place { near: host, app });
    Ok(open)
}

fn write(file: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(file, text).map_err(Error::system(format!("cannot write {}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_has_a_program_and_a_missing_one_says_how_to_install_it() {
        for route in Route::peers() {
            let error = find(route, &["/nonexistent".into()]).unwrap_err();
            assert!(matches!(error, Error::NotInstalled { .. }), "{error}");
            assert!(error.to_string().contains(" install "), "{error}");
        }
    }
}
