//! Server, agent and client on three hosts, by the commands that a user types.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tempfile::TempDir;

use crate::PATIENCE;
use crate::nat::{Mapping, Router};
use crate::net::{Host, Lab};
use crate::process::{Finished, Process, clean, relay_binary};
use crate::rootless;

/// The port of the control plane in a lab.
pub const HTTP: u16 = 3000;

static ALONE: Mutex<()> = Mutex::new(());

/// Keeps other tests of this process from running meanwhile: their times would be worthless.
pub fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of the workspace's agents.
    pub agents: Vec<&'static str>,
    /// More words for `relay server`.
    pub server_flags: Vec<&'static str>,
    /// More words for `relay agent`.
    pub agent_flags: Vec<&'static str>,
    /// Run agent and client as an unprivileged user.
    pub rootless: bool,
    /// Run server, agent and client without TUN device, capabilities and namespaces.
    pub confined: bool,
    /// Call the client's binary `coder`.
    pub as_coder: bool,
    /// Put client and workspace behind a NAT each.
    pub nat: Option<Mapping>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            agents: vec!["main"],
            server_flags: Vec::new(),
            agent_flags: Vec::new(),
            rootless: false,
            confined: false,
            as_coder: false,
            nat: None,
        }
    }
}

/// A running deployment.
pub struct Cluster {
    /// The developer's machine.
    pub client: Host,
    /// The workspace.
    pub workspace: Host,
    /// The control plane's machine.
    pub control: Host,
    /// `relay server`.
    pub server: Process,
    /// `relay agent`, one for each name.
    pub agents: Vec<Process>,
    /// Ids of the agents, in the order of their names.
    pub agent_ids: Vec<uuid::Uuid>,
    /// Tokens of the agents, in the order of their names.
    pub agent_tokens: Vec<String>,
    /// The user's session token.
    pub session: String,
    /// The network that joins the three.
    pub lab: Lab,
    /// The routers of client and workspace, where there are any.
    pub routers: Vec<Router>,
    options: Options,
    home: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts server and agents, with user `alice` and workspace `dev`.
    ///
    /// # Panics
    /// When a part does not start, with its output.
    pub fn start(options: Options) -> Cluster {
        let guard = alone();
        let home = TempDir::new().expect("temporary folder");
        open_to_all(home.path());
        let mut lab = match options.nat {
            None => Lab::new(),
            Some(_) => Lab::public(),
        };
        let mut routers = Vec::new();
        let mut end = |name| match options.nat {
            None => lab.host(name),
            Some(mapping) => {
                let (host, router) = lab.host_behind(name, mapping);
                routers.push(router);
                host
            }
        };
        let (client, workspace) = (end("client"), end("workspace"));
        let control = lab.host("control");
        let server = start_server(&control, home.path(), &options);
        let mut cluster = Cluster {
            client,
            workspace,
            control,
            server,
            agents: Vec::new(),
            agent_ids: Vec::new(),
            agent_tokens: Vec::new(),
            session: String::new(),
            lab,
            routers,
            options,
            home,
            _alone: guard,
        };
        cluster.populate();
        for index in 0..cluster.agent_tokens.len() {
            let agent = cluster.start_agent(index);
            agent.wait_line("ready", PATIENCE);
            cluster.agents.push(agent);
        }
        cluster
    }

    /// The control plane's URL.
    pub fn url(&self) -> String {
        format!("http://{}:{HTTP}", self.control.ipv4)
    }

    /// Starts the server again, on the same data.
    pub fn start_server_again(&mut self) {
        self.server = start_server(&self.control, self.home.path(), &self.options);
    }

    /// Starts one agent.
    pub fn start_agent(&self, index: usize) -> Process {
        let mut command = self.relay(&relay_binary());
        command
            .args(["agent", "--url", &self.url()])
            .args(&self.options.agent_flags)
            .env("CODER_AGENT_TOKEN", &self.agent_tokens[index]);
        Process::start("agent", Some(&self.workspace), command)
    }

    /// Starts `relay port-forward dev WORDS`, without waiting for anything.
    pub fn start_forward(&self, words: &[&str]) -> Process {
        let mut command = self.client_command();
        command.args(["port-forward", "dev"]).args(words);
        Process::start("port-forward", Some(&self.client), command)
    }

    /// Starts `relay port-forward dev WORDS` and waits for `Ready!`.
    pub fn forward(&self, words: &[&str]) -> Process {
        let forward = self.start_forward(words);
        forward.wait_line("Ready!", PATIENCE);
        let took = forward.started().elapsed().as_millis();
        crate::say(format_args!("Ready! after {took} ms"));
        forward
    }

    /// Runs a command on the client's machine, with the session, to its end.
    pub fn run_client(&self, words: &[&str]) -> Finished {
        let mut command = self.client_command();
        command.args(words);
        finish("client", &self.client, command)
    }

    /// Runs a program on one of the machines to its end.
    pub fn run_on(&self, host: &Host, command: Command) -> Finished {
        let name = command.get_program().to_string_lossy().into_owned();
        finish(&name, host, command)
    }

    /// The binary as the client calls it, with URL and session in the environment.
    pub fn client_command(&self) -> Command {
        let binary = if self.options.as_coder {
            let link = self.home.path().join("coder");
            let _ = std::os::unix::fs::symlink(relay_binary(), &link);
            link
        } else {
            relay_binary()
        };
        let mut command = self.relay(&binary);
        command
            .env("CODER_URL", self.url())
            .env("CODER_SESSION_TOKEN", &self.session);
        command
    }

    /// Sends a datagram from the client's machine to a port of its loopback until an answer comes:
    /// UDP may lose any of them.
    ///
    /// # Panics
    /// When no answer comes, or another one than was sent.
    pub fn udp_echo(&self, port: u16, data: &[u8]) {
        let socket = self.client.udp((Ipv4Addr::LOCALHOST, 0));
        let short = Some(Duration::from_millis(500));
        socket.set_read_timeout(short).expect("time-out");
        let mut buffer = vec![0; 65_536];
        let answer = crate::poll(PATIENCE, || {
            socket.send_to(data, (Ipv4Addr::LOCALHOST, port)).ok()?;
            socket.recv(&mut buffer).ok()
        });
        let size = data.len();
        let count = answer.unwrap_or_else(|| panic!("no answer to {size} bytes"));
        assert!(buffer[..count] == *data, "sent {size} bytes, got {count}");
    }

    /// A folder for the test's files.
    pub fn folder(&self) -> &Path {
        self.home.path()
    }

    fn relay(&self, binary: &Path) -> Command {
        let command = match self.options {
            Options { rootless: true, .. } => rootless::wrap(&self.reachable(binary)),
            _ => Command::new(binary),
        };
        confined(clean(command, self.home.path()), &self.options)
    }

    /// A copy of the binary where every user can run it: the target folder may be private.
    fn reachable(&self, binary: &Path) -> PathBuf {
        let copy = self.home.path().join("relay");
        if !copy.exists() {
            std::fs::copy(binary, &copy).expect("copy of the binary");
        }
        copy
    }

    fn populate(&mut self) {
        self.administer(&[
            "user",
            "create",
            "alice",
            "--email",
            "alice@example.com",
            "--password",
            "correct-horse-7",
            "--admin",
        ]);
        self.session = self.administer(&["token", "create", "alice"]);
        let mut words = vec!["workspace", "create", "alice/dev", "-o", "json"];
        for name in &self.options.agents {
            words.extend(["--agent", name]);
        }
        let text = self.administer(&words);
        let made: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let agents = made["agents"].as_array().expect("agents");
        self.agent_ids = agents
            .iter()
            .map(|agent| agent["id"].as_str().expect("id").parse().expect("a UUID"))
            .collect();
        self.agent_tokens = agents
            .iter()
            .map(|agent| agent["token"].as_str().expect("token").to_owned())
            .collect();
    }

    /// Runs `relay server WORDS` on the server's data and gives what it printed.
    pub fn administer(&self, words: &[&str]) -> String {
        let mut command = clean(Command::new(relay_binary()), self.home.path());
        let data = self.home.path().join("data");
        command
            .arg("server")
            .args(words)
            .arg("--data-dir")
            .arg(data);
        let finished = finish("relay server", &self.control, command);
        finished.success().to_owned()
    }
}

pub(crate) fn start_server(host: &Host, home: &Path, options: &Options) -> Process {
    let mut command = clean(Command::new(relay_binary()), home);
    let address = format!("{}:{HTTP}", host.ipv4);
    command
        .args(["server", "--http-address", &address, "--data-dir"])
        .arg(home.join("data"))
        .args(&options.server_flags);
    let command = confined(command, options);
    let mut server = Process::start("server", Some(host), command);
    let up = crate::poll(PATIENCE, || {
        (host.listens(host.ipv4.into(), HTTP) || !server.runs()).then_some(())
    });
    assert!(
        up.is_some() && server.runs(),
        "the server does not run\n{}",
        server.output()
    );
    server
}

pub(crate) fn finish(name: &str, host: &Host, command: Command) -> Finished {
    let mut process = Process::start(name, Some(host), command);
    let status = process.wait(PATIENCE + Duration::from_secs(30));
    Finished {
        code: status.code().unwrap_or(-1),
        stdout: process.stdout(),
        stderr: process.stderr(),
    }
}

/// The command as the options want it: confined, where all programs are not anyway. It is for relay
/// to find which stack works there.
fn confined(mut command: Command, options: &Options) -> Command {
    if !options.confined {
        return command;
    }
    command.env_remove("RELAY_STACK");
    match rootless::all_are_confined() {
        true => command,
        false => rootless::confine(&command),
    }
}

fn open_to_all(folder: &Path) {
    let everyone = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(folder, everyone).expect("permissions");
}
