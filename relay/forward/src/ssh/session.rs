//! A shell or a command in the workspace.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use relay_wire::remote_forward::{REMOTE_BIND, RemoteForward};
use russh::client::{self, Config, Handle, Msg};
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Disconnect, Pty, Sig};
use russh::{Error as Ssh, SshId};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use super::handler::Handler;
use super::{Exit, Output, Plan, Signal, Size, Terminal, next};
use crate::Error;
use crate::event::{Event, Reporter};

/// Whom the server is told that it talks to; it does not matter.
const USER: &str = "relay";
/// How long a command may take to end after a signal, and the connection to be closed.
const GRACE: Duration = Duration::from_secs(5);
const GOODBYE: Duration = Duration::from_secs(1);
/// Extended data that is standard error (RFC 4254 §5.2).
const STDERR: u32 = 1;

/// A [`Console`](super::Console) whose signals are borrowed.
pub(super) struct Ends<'a> {
    pub(super) input: mpsc::Receiver<Bytes>,
    pub(super) output: mpsc::Sender<Output>,
    pub(super) sizes: watch::Receiver<Size>,
    pub(super) signals: &'a mut mpsc::Receiver<Signal>,
}

/// Runs a session on a connection to an SSH server.
pub(super) async fn run(
    stream: TcpStream,
    plan: Plan,
    ends: Ends<'_>,
    report: Reporter,
) -> Result<Exit, Error> {
    // Keystrokes must not wait for one another.
    let _ = stream.set_nodelay(true);
    let Ends {
        input,
        output,
        sizes,
        signals,
    } = ends;
    let connecting = async {
        let handle = greet(stream, &plan, &report).await?;
        for forward in &plan.forwards {
            listen(&handle, forward).await?;
        }
        let channel = handle.channel_open_session().await.map_err(lost)?;
        Ok::<_, Error>((handle, channel))
    };
    let (handle, channel) = tokio::select! {
        biased;
        signal = next(signals) => return Ok(Exit::Interrupted(signal)),
        connected = connecting => connected?,
    };
    report.tell(Event::Ready);
    let terminal = plan.terminal.is_some();
    let (read, write) = channel.split();
    let working = async {
        let asked = ask(&write, plan).await.map_err(lost)?;
        tokio::select! {
            biased;
            exit = receive(read, output, asked, &report) => exit,
            exit = control(&write, terminal, sizes, signals) => Ok(exit),
            never = feed(&write, input) => match never {},
        }
    };
    let exit = working.await;
    // The server closes the session by itself when the connection ends.
    let goodbye = handle.disconnect(Disconnect::ByApplication, "", "");
    let _ = tokio::time::timeout(GOODBYE, goodbye).await;
    exit
}

/// The handshake. The server asks for no authentication: the tunnel was that.
async fn greet(
    stream: TcpStream,
    plan: &Plan,
    report: &Reporter,
) -> Result<Handle<Handler>, Error> {
    let config = Config {
        client_id: SshId::Standard(concat!("SSH-2.0-relay_", env!("CARGO_PKG_VERSION")).into()),
        ..Config::default()
    };
    let handler = Handler {
        forwards: Arc::from(plan.forwards.clone()),
        agent: plan.agent.clone(),
        report: report.clone(),
    };
    let connected = client::connect_stream(Arc::new(config), stream, handler).await;
    let mut handle = connected.map_err(lost)?;
    let answer = handle.authenticate_none(USER).await.map_err(lost)?;
    match answer.success() {
        true => Ok(handle),
        false => Err(Error::SshRefused("to talk without a password".to_owned())),
    }
}

/// Makes the server listen for connections that lead back.
async fn listen(handle: &Handle<Handler>, forward: &RemoteForward) -> Result<(), Error> {
    let listening = match forward {
        RemoteForward::Tcp { remote, .. } => {
            let bind = REMOTE_BIND.to_string();
            handle
                .tcpip_forward(bind, u32::from(*remote))
                .await
                .map(drop)
        }
        RemoteForward::Unix { remote, .. } => handle.streamlocal_forward(remote.clone()).await,
    };
    listening.map_err(|error| match error {
        Ssh::RequestDenied => Error::SshRefused(format!(
            "to listen for {forward}: the port is taken there, or reverse forwarding is blocked"
        )),
        error => lost(error),
    })
}

/// What was asked of the server, in the order in which it will answer.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Variable(String),
    Agent,
    Terminal,
    Command,
}

/// Asks for everything at once; the answers come later.
async fn ask(write: &ChannelWriteHalf<Msg>, plan: Plan) -> Result<VecDeque<Asked>, Ssh> {
    let mut asked = VecDeque::new();
    for (name, value) in plan.environment {
        write.set_env(true, name.as_str(), value).await?;
        asked.push_back(Asked::Variable(name));
    }
    if plan.agent.is_some() {
        write.agent_forward(true).await?;
        asked.push_back(Asked::Agent);
    }
    if let Some(Terminal { name, size, modes }) = plan.terminal {
        let Size {
            columns,
            rows,
            width,
            height,
        } = size;
        let modes: Vec<_> = modes.into_iter().filter_map(mode).collect();
        write
            .request_pty(true, &name, columns, rows, width, height, &modes)
            .await?;
        asked.push_back(Asked::Terminal);
    }
    match plan.command {
        Some(command) => write.exec(true, command).await?,
        None => write.request_shell(true).await?,
    }
    asked.push_back(Asked::Command);
    Ok(asked)
}

fn mode((code, value): (u8, u32)) -> Option<(Pty, u32)> {
    Some((Pty::from_u8(code)?, value))
}

/// Takes what the server sends, until the session is closed.
async fn receive(
    mut read: ChannelReadHalf,
    output: mpsc::Sender<Output>,
    mut asked: VecDeque<Asked>,
    report: &Reporter,
) -> Result<Exit, Error> {
    let mut exit = None;
    while let Some(message) = read.wait().await {
        let printed = match message {
            ChannelMsg::Data { data } => Output::Data(data),
            ChannelMsg::ExtendedData { data, ext: STDERR } => Output::Error(data),
            ChannelMsg::ExitStatus { exit_status } => {
                exit = Some(Exit::Status(exit_status));
                continue;
            }
            ChannelMsg::ExitSignal { signal_name, .. } => {
                exit = Some(Exit::Signal(name(signal_name)));
                continue;
            }
            ChannelMsg::Success => {
                asked.pop_front();
                continue;
            }
            ChannelMsg::Failure => {
                refused(asked.pop_front(), report)?;
                continue;
            }
            ChannelMsg::Close => break,
            _ => continue,
        };
        if output.send(printed).await.is_err() {
            return Ok(Exit::OutputClosed);
        }
    }
    exit.ok_or_else(|| Error::SshLost("it ended without an exit status".to_owned()))
}

/// What a refusal means: without its command there is no session, the rest is worth a word.
fn refused(asked: Option<Asked>, report: &Reporter) -> Result<(), Error> {
    let what = match asked {
        Some(Asked::Command) => return Err(Error::SshRefused("to run it".to_owned())),
        Some(Asked::Terminal) => return Err(Error::SshRefused("to make a terminal".to_owned())),
        Some(Asked::Variable(name)) => format!("the variable {name}"),
        Some(Asked::Agent) => "to forward the SSH agent".to_owned(),
        None => return Ok(()),
    };
    report.tell(Event::SshRefused { what });
    Ok(())
}

/// Sends what is typed.
async fn feed(write: &ChannelWriteHalf<Msg>, mut input: mpsc::Receiver<Bytes>) -> Infallible {
    while let Some(bytes) = input.recv().await {
        if write.data_bytes(bytes).await.is_err() {
            break;
        }
    }
    // A connection that broke is told by the other direction.
    let _ = write.eof().await;
    std::future::pending().await
}

/// Passes on changes of the terminal's size, and signals where there is no terminal to do that.
async fn control(
    write: &ChannelWriteHalf<Msg>,
    terminal: bool,
    mut sizes: watch::Receiver<Size>,
    signals: &mut mpsc::Receiver<Signal>,
) -> Exit {
    let resizing = async {
        while sizes.changed().await.is_ok() {
            let size = *sizes.borrow_and_update();
            let Size {
                columns,
                rows,
                width,
                height,
            } = size;
            let _ = write.window_change(columns, rows, width, height).await;
        }
        std::future::pending::<Infallible>().await
    };
    let signalling = async {
        let signal = next(signals).await;
        let passed = match signal {
            Signal::Interrupt => Sig::INT,
            Signal::Quit => Sig::QUIT,
            Signal::Terminate => Sig::TERM,
            Signal::Hangup => return signal,
        };
        if terminal || write.signal(passed).await.is_err() {
            return signal;
        }
        // The command may end by itself, with a status of its own; who asks twice is in a hurry.
        tokio::select! {
            second = next(signals) => second,
            () = tokio::time::sleep(GRACE) => signal,
        }
    };
    tokio::select! {
        never = resizing => match never {},
        signal = signalling => Exit::Interrupted(signal),
    }
}

fn name(signal: Sig) -> String {
    match signal {
        Sig::Custom(name) => name,
        known => format!("{known:?}"),
    }
}

fn lost(error: Ssh) -> Error {
    Error::SshLost(match error {
        Ssh::Disconnect | Ssh::SendError | Ssh::RecvError | Ssh::HUP => {
            "the server closed it".to_owned()
        }
        Ssh::IO(error) => crate::way::reason(&error),
        error => error.to_string(),
    })
}
