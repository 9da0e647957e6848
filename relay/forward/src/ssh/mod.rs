//! SSH to a workspace. The server is the agent's own, on a port of the tunnel; who may reach it is
//! decided by the tunnel, so neither side asks the other who it is.
//!
//! * [`stdio`]: the bytes of somebody else's SSH, between standard input and output and the server;
//! * [`session`]: a shell or a command, with this crate's own SSH.

mod handler;
mod network;
mod session;
mod stdio;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use relay_control::rest::Client;
use relay_tunnel::stack::NetHelper;
use relay_wire::remote_forward::RemoteForward;
use relay_wire::rest::{LifecycleState, Usage};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::Error;
use crate::event::{Event, Reporter};
use crate::find::Found;
use crate::tunnel::{self, Options, Tunnel};
use crate::usage;
use crate::way::{Way, reason};
pub use network::{Network, NetworkWatch};

/// The agent's SSH server (coder_facts §1.9).
pub const PORT: u16 = 1;
/// How often a connection that came to nothing is tried again, and how long after.
const ATTEMPTS: usize = 10;
const PAUSE: Duration = Duration::from_secs(2);
/// How often an agent is asked whether its start-up scripts are done.
const SCRIPTS_POLL: Duration = Duration::from_millis(500);

/// Whether start-up scripts of the workspace are waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Where the workspace's template asks for it.
    #[default]
    Auto,
    /// Always.
    Yes,
    /// Never.
    No,
}

/// What both ways need beside the tunnel's own options.
#[derive(Debug)]
pub struct Link {
    /// The workspace, and how to get there.
    pub options: Options,
    /// The tunnel's own network.
    pub helper: NetHelper,
    /// Who is told what happens.
    pub report: Reporter,
    /// Whether start-up scripts are waited for.
    pub wait: Wait,
    /// What the deployment is told that the workspace is used for; nothing when `None`.
    pub usage: Option<String>,
    /// Who is told what the way looks like.
    pub network: Option<NetworkWatch>,
}

/// A session to be run.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// What to run; the login shell when `None`.
    pub command: Option<String>,
    /// Variables to set there.
    pub environment: Vec<(String, String)>,
    /// The terminal that it gets.
    pub terminal: Option<Terminal>,
    /// What leads back to this machine meanwhile.
    pub forwards: Vec<RemoteForward>,
    /// Socket of the SSH agent on this machine that the session may use.
    pub agent: Option<PathBuf>,
}

/// A terminal, as the other side should imitate it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terminal {
    /// Value of `TERM`.
    pub name: String,
    /// Size when the session begins.
    pub size: Size,
    /// Modes: RFC 4254 §8 opcodes with their values.
    pub modes: Vec<(u8, u32)>,
}

/// Size of a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Characters in a line.
    pub columns: u32,
    /// Lines.
    pub rows: u32,
    /// Pixels across; 0 when unknown.
    pub width: u32,
    /// Pixels down; 0 when unknown.
    pub height: u32,
}

/// What a session reads, and where what it prints goes.
#[derive(Debug)]
pub struct Console {
    /// Standard input; closed at its end.
    pub input: mpsc::Receiver<Bytes>,
    /// Standard output and error; closed when nobody takes them any more.
    pub output: mpsc::Sender<Output>,
    /// Sizes of the terminal.
    pub sizes: watch::Receiver<Size>,
    /// Signals to this process.
    pub signals: mpsc::Receiver<Signal>,
}

/// Something that the other side printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// On standard output.
    Data(Bytes),
    /// On standard error.
    Error(Bytes),
}

/// A signal that this process got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-\.
    Quit,
    /// A request to end.
    Terminate,
    /// The terminal is gone.
    Hangup,
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The command ended by itself.
    Status(u32),
    /// The command was ended by this signal, named without `SIG`.
    Signal(String),
    /// A signal to this process ended the session.
    Interrupted(Signal),
    /// Nobody takes what the command prints.
    OutputClosed,
}

/// Joins standard input and output to the agent's SSH server, for a `ProxyCommand`. Returns when the
/// server has closed, when whoever reads standard output is gone, or at a signal.
///
/// # Errors
/// When the workspace or its server cannot be reached, or when the connection breaks.
pub async fn stdio(link: Link, mut signals: mpsc::Receiver<Signal>) -> Result<Exit, Error> {
    carry(link, &mut signals, async |stream, signals| {
        tokio::select! {
            biased;
            signal = next(signals) => Ok(Exit::Interrupted(signal)),
            exit = stdio::join(stream) => exit,
        }
    })
    .await
}

/// Runs a shell or a command in the workspace.
///
/// # Errors
/// When the workspace or its server cannot be reached, when the server refuses what is asked for,
/// or when the connection breaks.
pub async fn session(link: Link, plan: Plan, console: Console) -> Result<Exit, Error> {
    let report = link.report.clone();
    let Console {
        input,
        output,
        sizes,
        mut signals,
    } = console;
    carry(link, &mut signals, async move |stream, signals| {
        let ends = session::Ends {
            input,
            output,
            sizes,
            signals,
        };
        session::run(stream, plan, ends, report).await
    })
    .await
}

/// The next signal; none ever when their sender is gone.
async fn next(signals: &mut mpsc::Receiver<Signal>) -> Signal {
    match signals.recv().await {
        Some(signal) => signal,
        None => std::future::pending().await,
    }
}

/// Opens a tunnel, connects to the agent's SSH server, and does the work on that connection.
async fn carry(
    link: Link,
    signals: &mut mpsc::Receiver<Signal>,
    work: impl AsyncFnOnce(TcpStream, &mut mpsc::Receiver<Signal>) -> Result<Exit, Error>,
) -> Result<Exit, Error> {
    let Link {
        options,
        helper,
        report,
        wait,
        usage,
        network,
    } = link;
    let client = options.client.clone();
    let (tunnel, mut supervisor) = tokio::select! {
        biased;
        signal = next(signals) => return Ok(Exit::Interrupted(signal)),
        opened = tunnel::open(options, helper, report.clone()) => opened?,
    };
    let found = supervisor.found.clone();
    let regions = supervisor.regions.clone();
    let mut stopped = supervisor.stopped();
    let working = async {
        let stream = tokio::select! {
            biased;
            signal = next(signals) => return Ok(Exit::Interrupted(signal)),
            stream = connect(&tunnel, &found, &report, wait, &client) => stream?,
        };
        let mut background = JoinSet::new();
        if let Some(app_name) = usage {
            let body = Usage {
                agent_id: found.agent.id,
                app_name,
            };
            background.spawn(usage::report(
                client.clone(),
                found.workspace.id,
                Some(body),
            ));
        }
        if let Some(watch) = network {
            let endpoint = tunnel.endpoint.clone();
            background.spawn(network::tell(endpoint, found.agent.id, regions, watch));
        }
        work(stream, signals).await
    };
    let result = tokio::select! {
        biased;
        error = supervisor.run() => Err(error),
        Ok(_) = stopped.wait_for(|stopped| *stopped) => {
            Err(Error::WorkspaceStopped(found.workspace.name.clone()))
        }
        result = working => result,
    };
    supervisor.close().await;
    result
}

/// Connects to the SSH server, once the workspace is ready for it.
async fn connect(
    tunnel: &Tunnel,
    found: &Found,
    report: &Reporter,
    wait: Wait,
    client: &Client,
) -> Result<TcpStream, Error> {
    scripts(found, report, wait, client).await?;
    let agent = &found.agent.name;
    let mut attempt = 1;
    loop {
        let error = match tunnel.connect(PORT, &[]).await {
            Ok((stream, _)) => return Ok(stream),
            Err(error) => error,
        };
        if error.kind() == io::ErrorKind::ConnectionRefused {
            return Err(Error::NoSshServer(agent.clone()));
        }
        if attempt == ATTEMPTS {
            return Err(Error::SshUnreachable {
                agent: agent.clone(),
                reason: reason(&error),
            });
        }
        if attempt == 1 {
            report.tell(Event::WaitingForTunnel {
                agent: agent.clone(),
            });
        }
        attempt += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until the agent's start-up scripts have ended, if they are to be waited for.
async fn scripts(
    found: &Found,
    report: &Reporter,
    wait: Wait,
    client: &Client,
) -> Result<(), Error> {
    let blocking = found.agent.startup_script_behavior == "blocking";
    if wait == Wait::No || (wait == Wait::Auto && !blocking) {
        return Ok(());
    }
    let agent = found.agent.name.clone();
    let mut state = found.agent.lifecycle_state;
    let mut told = false;
    while matches!(state, LifecycleState::Created | LifecycleState::Starting) {
        if !told {
            told = true;
            report.tell(Event::WaitingForScripts {
                agent: agent.clone(),
            });
        }
        tokio::time::sleep(SCRIPTS_POLL).await;
        state = client.agent(found.agent.id).await?.lifecycle_state;
    }
    match state {
        LifecycleState::StartError | LifecycleState::StartTimeout => {
            report.tell(Event::ScriptsFailed { agent });
            Ok(())
        }
        state if state.is_ending() => Err(Error::AgentEnding {
            agent,
            state: state.to_string().replace('_', " "),
        }),
        _ => Ok(()),
    }
}
