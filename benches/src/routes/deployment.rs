//! relay's own routes: one server, and for each route a workspace with its agent and its forward.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde::Deserialize;
use tempfile::TempDir;

use super::{OpenRoute, READY, ended, folder, free_port, inside, wait_for_port};
use crate::link::Hosts;
use crate::processes::{Family, Process, run};
use crate::{Error, Route};

/// The one user's.
const EMAIL: &str = "bench@example.com";
const PASSWORD: &str = "correct horse battery staple";

/// The control plane that relay's routes share.
#[derive(Debug)]
pub struct Deployment {
    program: PathBuf,
    url: String,
    token: String,
    server: Process,
    folder: TempDir,
}

/// How a tunnel is made.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// The route it is or belongs to.
    pub route: Route,
    /// The workspace's name, which no other tunnel of the deployment has.
    pub name: String,
    /// More words for `relay port-forward`.
    pub near: Vec<&'static str>,
    /// More words for `relay agent`.
    pub far: Vec<&'static str>,
    /// `RELAY_LOG` of both.
    pub log: Option<&'static str>,
}

impl Tunnel {
    /// The tunnel of a route.
    pub fn of(route: Route) -> Self {
        let (near, far): (&[_], &[_]) = match route {
            Route::P2p1280 => (&["--max-mtu", "1280"], &["--max-mtu", "1280"]),
            Route::P2pUser => (&["--stack", "user"], &["--stack", "user"]),
            Route::Relayed => (&["--disable-direct-connections"], &[]),
            _ => (&[], &[]),
        };
        Self {
            route,
            name: route.name().to_owned(),
            near: near.to_vec(),
            far: far.to_vec(),
            log: None,
        }
    }
}

impl Deployment {
    /// Starts `relay server` on a temporary data directory, with one user.
    ///
    /// # Errors
    /// When a program does not start or a command of it fails.
    pub fn start(program: &Path, hosts: &Hosts) -> Result<Self, Error> {
        let folder = folder()?;
        let address = inside(hosts.far(|| free_port(hosts.far_address())))?;
        let url = format!("http://{address}");
        let mut command = Command::new(program);
        command
            .args(["server", "--http-address", &address.to_string()])
            .args(["--stun-address", "none", "--data-dir"])
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
        let create = ["user", "create", "bench", "--email", EMAIL];
        let create = [&create[..], &["--password-stdin"]].concat();
        deployment.admin(&create, Some(&format!("{PASSWORD}\n")))?;
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

    /// Creates a workspace, starts its agent and a forward to `port`.
    ///
    /// # Errors
    /// When one of the two does not start.
    pub fn forward(&self, tunnel: &Tunnel, hosts: &Hosts, port: u16) -> Result<OpenRoute, Error> {
        let name = format!("bench/{}", tunnel.name);
        let agent = self.start_agent(tunnel, &name, hosts)?;
        let local = inside(hosts.near(|| free_port(Ipv4Addr::LOCALHOST)))?;
        let mut command = self.client(tunnel, &name, local, port);
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
        if tunnel.route == Route::Relayed {
            members.push(self.server.id());
        }
        Ok(OpenRoute {
            family: Family::of(members),
            start: Some(start),
            ..OpenRoute::plain(tunnel.route, local, vec![forward, agent])
        })
    }

    /// Creates a workspace and starts its agent, for what browsers open.
    ///
    /// # Errors
    /// When one of the two fails.
    pub(crate) fn web(&self, hosts: &Hosts) -> Result<Web<'_>, Error> {
        let tunnel = Tunnel::of(Route::Dashboard);
        let name = format!("bench/{}", tunnel.name);
        let agent = self.start_agent(&tunnel, &name, hosts)?;
        let (server, url) = (self.server.id(), self.url.as_str());
        let address = url.trim_start_matches("http://").parse();
        let address =
            address.map_err(|_| Error::system(format!("{url} is no address"))(ended()))?;
        Ok(Web {
            account: Account {
                url,
                email: EMAIL,
                password: PASSWORD,
            },
            server,
            open: OpenRoute {
                family: Family::of([agent.id(), server]),
                ..OpenRoute::plain(tunnel.route, address, vec![agent])
            },
        })
    }

    fn start_agent(&self, tunnel: &Tunnel, name: &str, hosts: &Hosts) -> Result<Process, Error> {
        let workspace = self.admin(&["workspace", "create", name, "-o", "json"], None)?;
        let mut command = Command::new(&self.program);
        command
            .args(["agent", "--url", &self.url])
            .args(&tunnel.far)
            .envs(tunnel.log.map(|filter| ("RELAY_LOG", filter)))
            .env("CODER_AGENT_TOKEN", agent_token(&workspace)?);
        inside(hosts.far(|| Process::start("relay agent", &mut command)))
    }

    fn client(&self, tunnel: &Tunnel, name: &str, local: SocketAddr, port: u16) -> Command {
        let spec = format!("{local}:{port}");
        let mut command = Command::new(&self.program);
        command
            .args(["port-forward", name, "--tcp", &spec, "--udp", &spec])
            .arg("--always-tunnel")
            .args(&tunnel.near)
            .envs(tunnel.log.map(|filter| ("RELAY_LOG", filter)))
            .env("CODER_URL", &self.url)
            .env("CODER_SESSION_TOKEN", &self.token);
        command
    }
}

/// What is needed to log in.
pub(crate) struct Account<'a> {
    /// The server, `http://address`.
    pub(crate) url: &'a str,
    pub(crate) email: &'a str,
    pub(crate) password: &'a str,
}

/// The server and an agent, for browsers.
pub(crate) struct Web<'a> {
    /// The one user's.
    pub(crate) account: Account<'a>,
    /// The server's process.
    pub(crate) server: u32,
    /// The server's address, and the agent.
    pub(crate) open: OpenRoute,
}

impl Web<'_> {
    /// The `Host` of a port of the workspace, under the wildcard of a server on loopback.
    pub(crate) fn host(&self, port: u16) -> String {
        let server = self.open.local.port();
        format!(
            "{port}--main--{}--bench.localhost:{server}",
            self.open.route
        )
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
