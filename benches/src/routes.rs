//! Putting a route up: the programs it needs, and the local port that leads to the app.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tempfile::TempDir;

use crate::link::Hosts;
use crate::processes::{Family, Process, run};
use crate::{Error, Route};

const READY: Duration = Duration::from_secs(20);

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
    _processes: Vec<Process>,
    _folder: Option<TempDir>,
}

/// The control plane and agent that relay's routes share.
#[derive(Debug)]
pub struct Deployment {
    program: PathBuf,
    url: String,
    token: String,
    server: Process,
    folder: TempDir,
}

impl Deployment {
    /// Starts `relay server` on a temporary data directory, with one user.
    ///
    /// # Errors
    /// When a program does not start or a command of it fails.
    pub fn start(program: &Path, hosts: &Hosts) -> Result<Self, Error> {
        let folder = TempDir::new().map_err(Error::system("cannot make a temporary directory"))?;
        let address = inside(hosts.far(|| free_port(hosts.far_address())))?;
        let url = format!("http://{address}");
        let mut command = Command::new(program);
        command
            .args([
                "server",
                "--http-address",
                &address.to_string(),
                "--stun-address",
                "none",
            ])
            .arg("--data-dir")
            .arg(folder.path());
        let mut server = inside(hosts.far(|| Process::start("relay server", &mut command)))?;
        inside(hosts.near(|| wait_for_port(&mut server, address)))?;
        let mut deployment = Self {
            program: program.to_owned(),
            url,
            token: String::new(),
            server,
            folder,
        };
        let create = [
            "user",
            "create",
            "bench",
            "--email",
            "bench@example.com",
            "--password-stdin",
        ];
        deployment.admin(&create, Some("correct horse battery staple\n"))?;
        deployment.token = deployment.admin(&["token", "create", "bench"], None)?;
        Ok(deployment)
    }

    fn admin(&self, args: &[&str], input: Option<&str>) -> Result<String, Error> {
        let mut command = Command::new(&self.program);
        command
            .arg("server")
            .args(args)
            .arg("--data-dir")
            .arg(self.folder.path());
        run("relay server", &mut command, input)
    }

    /// Creates a workspace for `route`, starts its agent and a forward to `port`.
    fn forward(&self, route: Route, hosts: &Hosts, port: u16) -> Result<OpenRoute, Error> {
        let name = format!("bench/{route}");
        let workspace = self.admin(&["workspace", "create", &name, "-o", "json"], None)?;
        let agent = agent_token(&workspace)?;
        let limit: &[&str] = if route == Route::P2p1280 {
            &["--max-mtu", "1280"]
        } else {
            &[]
        };
        let mut command = Command::new(&self.program);
        command
            .args(["agent", "--url", &self.url])
            .args(limit)
            .env("CODER_AGENT_TOKEN", &agent);
        let agent = inside(hosts.far(|| Process::start("relay agent", &mut command)))?;
        let local = inside(hosts.near(|| free_port(Ipv4Addr::LOCALHOST)))?;
        let mut command = Command::new(&self.program);
        let spec = format!("{local}:{port}");
        command
            .args(["port-forward", &name, "--tcp", &spec, "--udp", &spec])
            .args(limit)
            .env("CODER_URL", &self.url)
            .env("CODER_SESSION_TOKEN", &self.token);
        if route == Route::Relayed {
            command.arg("--disable-direct-connections");
        }
        let mut start = || {
            let mut forward = Process::start("relay port-forward", &mut command)?;
            forward.wait_for("Ready!", READY)?;
            Ok(forward)
        };
        // The agent may have been starting meanwhile: the second start is the one that is timed.
        drop(inside(hosts.near(&mut start))?);
        let begin = Instant::now();
        let forward = inside(hosts.near(&mut start))?;
        let start = begin.elapsed();
        let mut members = vec![agent.id(), forward.id()];
        if route == Route::Relayed {
            members.push(self.server.id());
        }
        Ok(OpenRoute {
            route,
            local,
            family: Family::of(members),
            start: Some(start),
            _processes: vec![forward, agent],
            _folder: None,
        })
    }
}

#[derive(Deserialize)]
struct Created {
    agents: Vec<CreatedAgent>,
}

#[derive(Deserialize)]
struct CreatedAgent {
    token: String,
}

fn agent_token(workspace: &str) -> Result<String, Error> {
    let created: Created = serde_json::from_str(workspace)
        .map_err(|error| Error::system("cannot read the created workspace")(error.into()))?;
    let agent = created.agents.into_iter().next();
    let missing = || Error::system("the created workspace has no agent")(ended());
    agent.map(|agent| agent.token).ok_or_else(missing)
}

fn ended() -> std::io::Error {
    std::io::ErrorKind::UnexpectedEof.into()
}

/// Puts `route` to the app at `port` of the far host up.
///
/// # Errors
/// When one of its programs does not start.
pub fn open(
    route: Route,
    hosts: &Hosts,
    port: u16,
    deployment: Option<&Deployment>,
) -> Result<OpenRoute, Error> {
    match (route, deployment) {
        (Route::Direct, _) => Ok(OpenRoute {
            route,
            local: (hosts.far_address(), port).into(),
            family: Family::default(),
            start: None,
            _processes: Vec::new(),
            _folder: None,
        }),
        (Route::Ssh, _) => ssh(hosts, port),
        (_, Some(deployment)) => deployment.forward(route, hosts, port),
        (_, None) => Err(Error::system("relay's routes need its server")(ended())),
    }
}

fn ssh(hosts: &Hosts, port: u16) -> Result<OpenRoute, Error> {
    let folder = TempDir::new().map_err(Error::system("cannot make a temporary directory"))?;
    let at = |name: &str| folder.path().join(name);
    for key in ["host", "user"] {
        let mut command = Command::new("ssh-keygen");
        command
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(at(key));
        run("ssh-keygen", &mut command, None)?;
    }
    fs::copy(at("user.pub"), at("authorized"))
        .and_then(|_| fs::set_permissions(at("authorized"), fs::Permissions::from_mode(0o600)))
        .map_err(Error::system("cannot write the key"))?;
    if nix::unistd::geteuid().is_root() {
        // sshd refuses to start as root without its privilege separation directory.
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o755)
            .create("/run/sshd")
            .map_err(Error::system("cannot make /run/sshd"))?;
    }
    let listen = inside(hosts.far(|| free_port(hosts.far_address())))?;
    let mut command = Command::new("/usr/sbin/sshd");
    command
        .args(["-D", "-e", "-f", "/dev/null", "-h"])
        .arg(at("host"));
    let authorized = format!("AuthorizedKeysFile={}", at("authorized").display());
    let listening = format!("ListenAddress={listen}");
    for option in [
        &*listening,
        &authorized,
        "StrictModes=no",
        "UsePAM=no",
        "PidFile=none",
        "PermitRootLogin=yes",
        "MaxStartups=100",
    ] {
        command.args(["-o", option]);
    }
    let mut server = inside(hosts.far(|| Process::start("sshd", &mut command)))?;
    inside(hosts.near(|| wait_for_port(&mut server, listen)))?;
    let local = inside(hosts.near(|| free_port(Ipv4Addr::LOCALHOST)))?;
    let mut command = Command::new("ssh");
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid())
        .ok()
        .flatten();
    let user = user.map_or_else(|| "root".to_owned(), |user| user.name);
    command
        .args([
            "-N",
            "-F",
            "/dev/null",
            "-p",
            &listen.port().to_string(),
            "-l",
            &user,
            "-i",
        ])
        .arg(at("user"))
        .args(["-L", &format!("{local}:127.0.0.1:{port}")])
        .args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ])
        .args(["-o", "ExitOnForwardFailure=yes", "-o", "LogLevel=ERROR"])
        .arg(listen.ip().to_string());
    let begin = Instant::now();
    let mut client = inside(hosts.near(|| Process::start("ssh", &mut command)))?;
    inside(hosts.near(|| wait_for_port(&mut client, local)))?;
    Ok(OpenRoute {
        route: Route::Ssh,
        local,
        family: Family::of([client.id(), server.id()]),
        start: Some(begin.elapsed()),
        _processes: vec![client, server],
        _folder: Some(folder),
    })
}

/// Flattens "could not enter the host" and "it went wrong there".
fn inside<T>(result: std::io::Result<Result<T, Error>>) -> Result<T, Error> {
    result.map_err(Error::system("cannot enter a host of the emulated link"))?
}

fn free_port(address: Ipv4Addr) -> Result<SocketAddr, Error> {
    TcpListener::bind((address, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(Error::system(format!("no free port on {address}")))
}

fn wait_for_port(process: &mut Process, address: SocketAddr) -> Result<(), Error> {
    let end = Instant::now() + READY;
    while TcpStream::connect(address).is_err() {
        if Instant::now() > end {
            return Err(process.unready(READY));
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
