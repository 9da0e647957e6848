//! Session channels: a shell, a program or a subsystem (RFC 4254 §6).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

use super::channel::{Channel, Reader, Writer};
use super::environment::{self, Account, Environment};
use super::forward::{AGENT, Listening};
use super::process::pty::{self, Asked, Pty};
use super::process::{self, Group, Program, Running};
use super::proto::codec::{self, Put};
use super::proto::mux::Request;
use super::{Peer, Server, sftp};

/// The longest that all of a client's variables may be, bytes.
const VARIABLES: usize = 128 << 10;
/// What is read of a program at a time, bytes.
const CHUNK: usize = 64 << 10;
/// After a program's end its terminal is read until nothing comes for so long.
const QUIET: Duration = Duration::from_millis(50);
/// The status when no program could be started, as a shell has it.
const CANNOT_START: u32 = 127;
/// Programs that are refused where no files may be moved, and the status they then end with.
const MOVERS: [&str; 5] = ["nc", "rsync", "scp", "sftp", "sftp-server"];
const REFUSED: u32 = 65;
const MOVING_BLOCKED: &str =
    "File transfer is blocked: this workspace's agent runs with --block-file-transfer.\n";

/// What a client asks for before it names a program.
#[derive(Default)]
struct Wanted {
    terminal: Option<Asked>,
    variables: Vec<(String, String)>,
    length: usize,
    agent: Option<Agent>,
}

/// The socket at which programs find the client's keys, in a directory of its own.
struct Agent {
    _listening: Listening,
    directory: Directory,
}

struct Directory(std::path::PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Serves a session to its end.
pub(super) async fn serve(channel: Channel, server: Arc<Server>, peer: Arc<Peer>) {
    let channel = Arc::new(channel);
    let mut wanted = Wanted::default();
    while let Some(request) = channel.request().await {
        let session = Session {
            channel: Arc::clone(&channel),
            server: &server,
            peer: &peer,
        };
        let known = match request.kind.as_str() {
            "shell" => return session.run(&request, None, wanted).await,
            "exec" => match command(&request) {
                Some(command) => return session.run(&request, Some(command), wanted).await,
                None => false,
            },
            "subsystem" if is_sftp(&request) => return session.files(&request).await,
            "pty-req" => {
                wanted.terminal = Asked::parse(&request.data);
                wanted.terminal.is_some()
            }
            "window-change" => wanted.resize(&request),
            "env" => wanted.variable(&request),
            "auth-agent-req@openssh.com" => wanted.agent(&channel),
            _ => false,
        };
        channel.reply(&request, known);
    }
}

fn is_sftp(request: &Request) -> bool {
    codec::Reader::new(&request.data)
        .string()
        .is_ok_and(|name| name == b"sftp")
}

fn command(request: &Request) -> Option<OsString> {
    let command = codec::Reader::new(&request.data).string().ok()?;
    (!command.contains(&0)).then(|| OsString::from_vec(command.to_vec()))
}

impl Wanted {
    fn resize(&mut self, request: &Request) -> bool {
        match (&mut self.terminal, pty::size(&request.data)) {
            (Some(terminal), Some(size)) => {
                terminal.resize(size);
                true
            }
            _ => false,
        }
    }

    fn variable(&mut self, request: &Request) -> bool {
        let mut reader = codec::Reader::new(&request.data);
        let (Ok(name), Ok(value)) = (reader.text(), reader.text()) else {
            return false;
        };
        self.length += name.len() + value.len();
        if self.length > VARIABLES {
            return false;
        }
        self.variables.push((name.to_owned(), value.to_owned()));
        true
    }

    /// Opens a socket for programs that ask for the client's keys.
    fn agent(&mut self, channel: &Channel) -> bool {
        let opened = || {
            let name = format!("relay-ssh-{:016x}", rand::random::<u64>());
            let directory = Directory(std::env::temp_dir().join(name));
            let socket = directory.0.join("agent");
            // The directory is made for this user alone.
            let listening = Listening::on_unix(&socket, AGENT, channel.link())?;
            Ok::<_, std::io::Error>(Agent {
                _listening: listening,
                directory,
            })
        };
        match opened() {
            Ok(agent) => self.agent = Some(agent),
            Err(error) => tracing::debug!(%error, "cannot forward a client's keys"),
        }
        self.agent.is_some()
    }
}

struct Session<'a> {
    channel: Arc<Channel>,
    server: &'a Server,
    peer: &'a Peer,
}

impl Session<'_> {
    /// Starts a shell or a command in a shell, and stays with it to its end.
    async fn run(self, request: &Request, command: Option<OsString>, wanted: Wanted) {
        let blocked = self.server.options.block_file_transfer;
        if blocked && command.as_ref().is_some_and(moves_files) {
            self.channel.reply(request, true);
            return self.fail(MOVING_BLOCKED, REFUSED).await;
        }
        let Ok(account) = Account::own().await else {
            return;
        };
        let workspace = &self.server.workspace;
        let mut environment = Environment::new(workspace, &account, self.peer);
        for (name, value) in &wanted.variables {
            environment.set(name, value);
        }
        if let Some(agent) = &wanted.agent {
            environment.set("SSH_AUTH_SOCK", agent.directory.0.join("agent"));
        }
        let mut terminal = None;
        if let Some(asked) = &wanted.terminal {
            match pty::open(asked) {
                Ok((ours, theirs, path)) => {
                    environment.set("TERM", &asked.term);
                    environment.set("SSH_TTY", path);
                    terminal = Some((ours, theirs));
                }
                Err(error) => {
                    self.channel.reply(request, true);
                    let text = format!("no terminal can be opened: {error}\n");
                    return self.fail(&text, CANNOT_START).await;
                }
            }
        }
        let shell = account.shell.file_name().unwrap_or_default();
        let (name, arguments) = match command {
            Some(command) => (shell.to_owned(), vec!["-c".into(), command]),
            // A dash in front makes it a login shell.
            None => (
                [OsString::from("-"), shell.to_owned()]
                    .into_iter()
                    .collect(),
                Vec::new(),
            ),
        };
        let program = Program {
            name,
            arguments,
            environment: environment.into_list(),
            directory: environment::directory(workspace, &account),
            path: account.shell,
        };
        let (ours, theirs) = terminal.unzip();
        match process::start(program, theirs).await {
            Ok(running) => {
                self.channel.reply(request, true);
                self.attend(running, ours).await;
            }
            Err(error) => {
                self.channel.reply(request, true);
                let text = format!("the login shell cannot be started: {error}\n");
                self.fail(&text, CANNOT_START).await;
            }
        }
    }

    /// Serves files, until the client has no more to ask for.
    async fn files(self, request: &Request) {
        self.channel.reply(request, true);
        if self.server.options.block_file_transfer {
            return self.fail(MOVING_BLOCKED, REFUSED).await;
        }
        let (input, output) = self.channel.split();
        let serving = async { sftp::serve(input, output, Account::own().await?.home).await };
        let served = tokio::select! {
            served = serving => served,
            () = self.channel.closed() => return,
        };
        if let Err(error) = &served {
            tracing::debug!(%error, "a client's session with files ended");
        }
        self.exit_status(u32::from(served.is_err()));
    }

    /// Says why there is no program.
    async fn fail(&self, text: &str, status: u32) {
        let mut stderr = self.channel.writer(true);
        let _ = stderr.write_all(text.as_bytes()).await;
        self.exit_status(status);
    }

    fn exit_status(&self, status: u32) {
        self.channel.say_last("exit-status", &status.to_be_bytes());
    }

    /// Carries what is between a program and the client, until the program has ended or the client
    /// has gone; then it is hung up.
    async fn attend(&self, mut running: Running, terminal: Option<Pty>) {
        let (input, output) = self.channel.split();
        let group = running.group();
        let window = terminal.clone();
        let ended = async {
            match terminal {
                Some(terminal) => on_terminal(&mut running, terminal, input, output).await,
                None => {
                    let stderr = self.channel.writer(true);
                    on_pipes(&mut running, input, output, stderr).await
                }
            }
        };
        let status = tokio::select! {
            status = ended => status,
            () = self.obey(window.as_ref(), &group) => return,
        };
        match status {
            Ok(status) => self.tell(status),
            Err(error) => tracing::debug!(%error, "how a program ended is not known"),
        }
    }

    /// Does what the client asks for while a program runs, until the channel is closed.
    async fn obey(&self, window: Option<&Pty>, group: &Group) {
        while let Some(request) = self.channel.request().await {
            let done = match request.kind.as_str() {
                "window-change" => match (window, pty::size(&request.data)) {
                    (Some(window), Some(size)) => {
                        window.resize(size);
                        true
                    }
                    _ => false,
                },
                "signal" => {
                    let name = codec::Reader::new(&request.data).text().unwrap_or_default();
                    let signal = SIGNALS.iter().find(|(known, _)| *known == name);
                    signal.is_some_and(|(_, signal)| group.signal(*signal))
                }
                _ => false,
            };
            self.channel.reply(&request, done);
        }
    }

    /// Says how a program ended (RFC 4254 §6.10).
    fn tell(&self, status: ExitStatus) {
        let signal = status.signal().unwrap_or_default();
        let known = SIGNALS.iter().find(|(_, known)| known.as_raw() == signal);
        match (status.code(), known) {
            (Some(code), _) => self.exit_status(code.cast_unsigned()),
            (None, Some((name, _))) => {
                let mut data = Vec::new();
                data.put_string(name).put_bool(status.core_dumped());
                data.put_string("").put_string("");
                self.channel.say_last("exit-signal", &data);
            }
            // One that has no name in SSH, told as a shell tells it.
            (None, None) => self.exit_status(128 + signal.cast_unsigned()),
        }
    }
}

/// Signals by their names in SSH (RFC 4254 §6.10).
const SIGNALS: [(&str, Signal); 13] = [
    ("ABRT", Signal::ABORT),
    ("ALRM", Signal::ALARM),
    ("FPE", Signal::FPE),
    ("HUP", Signal::HUP),
    ("ILL", Signal::ILL),
    ("INT", Signal::INT),
    ("KILL", Signal::KILL),
    ("PIPE", Signal::PIPE),
    ("QUIT", Signal::QUIT),
    ("SEGV", Signal::SEGV),
    ("TERM", Signal::TERM),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
];

/// Whether a command is one of those that move files. Whoever has a shell finds other ways; this
/// keeps the usual ones closed.
fn moves_files(command: &OsString) -> bool {
    let first = command.as_bytes().split(u8::is_ascii_whitespace);
    let first = first.into_iter().find(|word| !word.is_empty());
    let name = first.and_then(|word| word.rsplit(|byte| *byte == b'/').next());
    name.is_some_and(|name| MOVERS.iter().any(|mover| mover.as_bytes() == name))
}

/// A program on pipes has ended when it has, and when nothing has its output open any more.
async fn on_pipes(
    running: &mut Running,
    input: Reader,
    mut output: Writer,
    mut stderr: Writer,
) -> io::Result<ExitStatus> {
    let (stdin, out, err) = (
        running.stdin.take(),
        running.stdout.take(),
        running.stderr.take(),
    );
    let done = async {
        let (status, (), ()) = tokio::join!(
            running.wait(),
            carry(out, &mut output),
            carry(err, &mut stderr)
        );
        status
    };
    tokio::select! {
        status = done => status,
        () = feed(input, stdin) => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// Carries all that a program writes to the client.
async fn carry(from: Option<impl AsyncRead + Unpin>, to: &mut Writer) {
    if let Some(from) = from {
        let mut from = BufReader::with_capacity(CHUNK, from);
        // It fails when the client has closed the channel, and that is seen elsewhere.
        let _ = tokio::io::copy_buf(&mut from, to).await;
    }
}

/// Feeds a program with what the client sends. What it does not want is dropped; never ends.
async fn feed(mut input: Reader, program: Option<impl AsyncWrite + Unpin>) {
    if let Some(mut program) = program {
        let fed = tokio::io::copy_buf(&mut input, &mut program).await;
        drop(program);
        if fed.is_err() {
            let _ = tokio::io::copy_buf(&mut input, &mut tokio::io::sink()).await;
        }
    }
    std::future::pending().await
}

/// A program on a terminal has ended when it has: what else is on the terminal is hung up.
async fn on_terminal(
    running: &mut Running,
    mut terminal: Pty,
    input: Reader,
    mut output: Writer,
) -> io::Result<ExitStatus> {
    let typed = terminal.clone();
    let done = async {
        let mut buffer = vec![0; CHUNK];
        let status = loop {
            let count = tokio::select! {
                status = running.wait() => break status?,
                count = terminal.read(&mut buffer) => count.unwrap_or(0),
            };
            if count == 0 || output.write_all(&buffer[..count]).await.is_err() {
                break running.wait().await?;
            }
        };
        // What it wrote last may come a little after its end.
        while let Ok(Ok(count @ 1..)) =
            tokio::time::timeout(QUIET, terminal.read(&mut buffer)).await
        {
            if output.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
        Ok(status)
    };
    tokio::select! {
        status = done => status,
        () = feed(input, Some(typed)) => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

#[cfg(test)]
mod tests;
