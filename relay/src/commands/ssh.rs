//! `relay ssh`: a shell or a command in a workspace, or the bytes of somebody else's SSH.

mod console;
mod network;
mod terminal;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::builder::BoolishValueParser;
use nix::sys::signal::Signal as UnixSignal;
use relay_forward::event::{Event, Reporter};
use relay_forward::ssh::{self, Exit, Link, Plan, Signal, Wait};
use relay_forward::{Error, Monitor, Options};
use relay_tunnel::stack::NetHelper;
use relay_wire::names::{WorkspaceName, normalize_ssh, ssh_host};
use relay_wire::remote_forward::RemoteForward;

use self::console::Lost;
use self::terminal::Restore;
use super::block_on;
use super::tunnel::{AutostartArgs, TunnelArgs};
use crate::cli::{Global, environment, list};
use crate::duration;
use crate::output;
use crate::status::{self, Forwards};

const EXAMPLES: &str = "\
Examples:
  relay ssh dev                              a shell in workspace `dev`
  relay ssh dev -- make test                 a command; its exit status becomes relay's
  relay ssh dev -R 8222:localhost:22         port 8222 of the workspace leads to port 22 of this machine
  relay ssh dev -A -e LANG=C                 with this machine's SSH agent, and a variable
  relay config-ssh                           then `ssh coder.dev`, `ssh -L`, scp, sftp and rsync work";

/// The status of a session whose connection broke, as OpenSSH has it.
const LOST: u8 = 255;

/// Flags of `relay ssh`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// `[owner/]workspace[.agent]`, `owner--workspace--agent`, `agent.workspace.owner`
    #[arg(value_name = "WORKSPACE")]
    workspace: String,
    /// What to run there instead of a shell
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    command: Vec<String>,
    /// Join standard input and output to the workspace's SSH server: for a `ProxyCommand`
    #[arg(long, env = "CODER_SSH_STDIO", hide_env_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true
    )]
    #[arg(value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    stdio: bool,
    /// What WORKSPACE starts with when it is the name of a host, such as `coder.`
    #[arg(long, env = "CODER_SSH_SSH_HOST_PREFIX", hide_env_values = true)]
    #[arg(default_value = "", hide_default_value = true, value_name = "PREFIX")]
    ssh_host_prefix: String,
    /// What WORKSPACE ends with, after a dot, when it is the name of a host, such as `coder`
    #[arg(long, env = "CODER_SSH_HOSTNAME_SUFFIX", hide_env_values = true)]
    #[arg(default_value = "", hide_default_value = true, value_name = "SUFFIX")]
    hostname_suffix: String,
    /// Let a port of the workspace lead to one from here: REMOTE_PORT:LOCAL_HOST:LOCAL_PORT, or a
    /// socket: /REMOTE.sock:/LOCAL.sock; may be repeated [env: CODER_SSH_REMOTE_FORWARD=]
    #[arg(short = 'R', long, value_name = "FORWARD")]
    remote_forward: Vec<String>,
    /// Let the workspace use this machine's SSH agent
    #[arg(
        short = 'A',
        long,
        env = "CODER_SSH_FORWARD_AGENT",
        hide_env_values = true
    )]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true
    )]
    #[arg(value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    forward_agent: bool,
    /// Socket of that agent [default: $SSH_AUTH_SOCK]
    #[arg(long, env = "CODER_SSH_IDENTITY_AGENT", hide_env_values = true)]
    #[arg(value_name = "SOCKET")]
    identity_agent: Option<PathBuf>,
    /// Set a variable in the session, as NAME=VALUE; may be repeated [env: CODER_SSH_ENV=]
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Make a terminal there, for a command too
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true
    )]
    #[arg(value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    tty: bool,
    /// Whether to wait for the workspace's start-up scripts: yes, no, or auto, as its template says
    #[arg(long, env = "CODER_SSH_WAIT", hide_env_values = true)]
    #[arg(default_value = "auto", value_parser = wait, value_name = "WHEN")]
    wait: Wait,
    /// The same as `--wait no`
    #[arg(long, env = "CODER_SSH_NO_WAIT", hide = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(default_missing_value = "true", value_parser = BoolishValueParser::new())]
    no_wait: bool,
    #[command(flatten)]
    autostart: AutostartArgs,
    /// What the deployment is told that the workspace is used for: ssh, vscode, jetbrains, or
    /// disable
    #[arg(long, env = "CODER_SSH_USAGE_APP", hide = true, default_value = "ssh")]
    usage_app: String,
    /// Folder for a file that says every few seconds what the way is like, as JSON, for editors: it is
    /// named by the id of the process that started this one, such as `ssh`
    #[arg(long, value_name = "DIR")]
    network_info_dir: Option<PathBuf>,
    /// How often that file is written, such as 5s
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = network::interval)]
    network_info_interval: Duration,
    /// Not there; the error says what takes its place
    #[arg(short = 'G', long, env = "CODER_SSH_FORWARD_GPG", hide = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(default_missing_value = "true", value_parser = BoolishValueParser::new())]
    forward_gpg: bool,
    /// Not there; the error says what takes its place
    #[arg(short, long, hide = true, value_name = "NAME")]
    container: Option<String>,
    /// Not there; the error says what takes its place
    #[arg(long, hide = true, value_name = "USER")]
    container_user: Option<String>,
    /// Accepted for Coder's scripts: relay hears of a workspace's end and does not ask for it
    #[arg(long, env = "CODER_WORKSPACE_POLL_INTERVAL", hide = true)]
    #[arg(value_name = "TIME", value_parser = duration::parse)]
    workspace_poll_interval: Option<Duration>,
    /// Folder for a log of this run in detail
    #[arg(short, long, env = "CODER_SSH_LOG_DIR", hide_env_values = true)]
    #[arg(value_name = "DIR")]
    pub(crate) log_dir: Option<PathBuf>,
    /// Accepted for Coder's scripts: every run of relay has a tunnel of its own
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = BoolishValueParser::new())]
    force_new_tunnel: Option<bool>,
    #[command(flatten)]
    tunnel: TunnelArgs,
}

/// Reads `--wait`.
pub(super) fn wait(text: &str) -> Result<Wait, String> {
    match text {
        "auto" => Ok(Wait::Auto),
        "yes" => Ok(Wait::Yes),
        "no" => Ok(Wait::No),
        _ => Err("use yes, no or auto".to_owned()),
    }
}

/// Runs the command.
pub(crate) fn run(args: Args, global: &Global) -> Result<ExitCode> {
    refuse(&args)?;
    if args.stdio {
        return stdio(args, global);
    }
    let plan = plan(&args)?;
    let name = name(&args)?;
    let lost = Lost::default();
    let raw = plan.terminal.is_some() && terminal::is_input();
    let monitor = Monitor::default();
    let link = link(&args, name, global, reporter(raw, &lost), &monitor)?;
    terminal::restore_on_panic();
    let restore = Restore;
    let ended = block_on(async {
        let (console, flushed) = console::open(raw, &lost)?;
        let _published = publish(monitor);
        let ended = ssh::session(link, plan, console).await;
        flushed.wait().await;
        Ok(ended)
    });
    drop(restore);
    status(ended?)
}

/// What Coder's command has and this one has not is an error that says how it is done.
fn refuse(args: &Args) -> Result<()> {
    ensure!(
        !args.forward_gpg,
        "--forward-gpg is not there; forward GnuPG's socket instead: -R \
         /REMOTE/S.gpg-agent:\"$(gpgconf --list-dirs agent-extra-socket)\", where `gpgconf --list-dirs \
         agent-socket` in the workspace says the first"
    );
    if let Some(name) = &args.container {
        let workspace = &args.workspace;
        let user = args.container_user.as_ref();
        let user = user.map_or_else(String::new, |user| format!(" -u {user}"));
        bail!(
            "--container is not there; run a shell in it instead: relay ssh {workspace} -t -- docker exec \
             -it{user} {name} sh"
        );
    }
    ensure!(
        args.container_user.is_none(),
        "--container-user goes with --container, which is not there"
    );
    Ok(())
}

fn stdio(args: Args, global: &Global) -> Result<ExitCode> {
    ensure!(
        args.remote_forward.is_empty() && environment("CODER_SSH_REMOTE_FORWARD").is_none(),
        "--remote-forward does not go with --stdio: give -R to the ssh that runs this command"
    );
    ensure!(
        args.command.is_empty(),
        "--stdio takes no command: give it to the ssh that runs this one"
    );
    let name = name(&args)?;
    let monitor = Monitor::default();
    let report = reporter(false, &Lost::default());
    let link = link(&args, name, global, report, &monitor)?;
    let ended = block_on(async {
        let _published = publish(monitor);
        let signals = console::signals()?;
        Ok(ssh::stdio(link, signals).await?)
    })?;
    match ended {
        // OpenSSH ends its ProxyCommand by a signal, and by closing its end.
        Exit::Status(_) | Exit::Interrupted(_) | Exit::OutputClosed => Ok(ExitCode::SUCCESS),
        Exit::Signal(_) => Ok(ExitCode::FAILURE),
    }
}

/// The workspace, from whichever way to write it.
fn name(args: &Args) -> Result<WorkspaceName> {
    let host = ssh_host(
        &args.workspace,
        &args.ssh_host_prefix,
        &args.hostname_suffix,
    );
    Ok(normalize_ssh(host).parse()?)
}

fn plan(args: &Args) -> Result<Plan> {
    let forwards = list("CODER_SSH_REMOTE_FORWARD", &args.remote_forward)?;
    let forwards = forwards.iter().map(|forward| forward.parse());
    let forwards: Vec<RemoteForward> = forwards.collect::<Result<_, _>>()?;
    let command = (!args.command.is_empty()).then(|| args.command.join(" "));
    let wanted = args.tty || (command.is_none() && terminal::is_input());
    Ok(Plan {
        terminal: wanted.then(terminal::describe),
        command,
        environment: variables(&list("CODER_SSH_ENV", &args.env)?)?,
        forwards,
        agent: agent(args)?,
    })
}

fn variables(env: &[String]) -> Result<Vec<(String, String)>> {
    let split = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => bail!("--env \"{text}\" is not of the form NAME=VALUE"),
    };
    env.iter().map(split).collect()
}

fn agent(args: &Args) -> Result<Option<PathBuf>> {
    if !args.forward_agent {
        return Ok(None);
    }
    let named = args.identity_agent.clone();
    let socket = named.or_else(|| environment("SSH_AUTH_SOCK").map(PathBuf::from));
    let socket = socket.context(
        "--forward-agent finds no SSH agent: start one, set SSH_AUTH_SOCK, or give --identity-agent",
    )?;
    Ok(Some(socket))
}

/// Shows the session in `relay status`.
fn publish(monitor: Monitor) -> Option<status::Published> {
    status::publish("ssh", None, monitor, Arc::new(Forwards::default))
}

fn link(
    args: &Args,
    name: WorkspaceName,
    global: &Global,
    report: Reporter,
    monitor: &Monitor,
) -> Result<Link> {
    let client = global.client()?;
    // Before any thread exists: the helper is forked.
    let helper = NetHelper::spawn()?;
    let options = Options {
        autostart: args.autostart.allowed(),
        direct: !global.disable_direct_connections,
        stack: args.tunnel.stack,
        max_mtu: args.tunnel.max_mtu,
        offloads: args.tunnel.offloads(),
        busy_poll: args.tunnel.busy_poll(),
        same_host: false,
        monitor: monitor.clone(),
        ..Options::new(client, name)
    };
    let wait = if args.no_wait { Wait::No } else { args.wait };
    let usage = Some(args.usage_app.clone()).filter(|app| app != "disable");
    let network = match &args.network_info_dir {
        Some(folder) => Some(network::watch(folder, args.network_info_interval)?),
        None => None,
    };
    Ok(Link {
        options,
        helper,
        report,
        wait,
        usage,
        network,
    })
}

/// Tells what a person waits for, and remembers whether the agent is away. With `raw`, the terminal
/// becomes the session's own as soon as there is one; until then Ctrl-C ends the command.
fn reporter(raw: bool, lost: &Lost) -> Reporter {
    let lost = lost.clone();
    Reporter::new(move |event| match event {
        Event::Ready if raw => terminal::make_raw(),
        Event::Ready | Event::Path(_) => tracing::debug!("{event}"),
        Event::AgentLost => {
            lost.set(true);
            match raw {
                true => terminal::notice(format_args!("{event}; Ctrl-C ends the session")),
                false => terminal::notice(event),
            }
        }
        event => {
            if *event == Event::AgentBack {
                lost.set(false);
            }
            terminal::notice(event);
        }
    })
}

/// The exit status that tells how the session ended.
fn status(ended: Result<Exit, Error>) -> Result<ExitCode> {
    let signalled =
        |signal: UnixSignal| ExitCode::from(u8::try_from(128 + signal as i32).unwrap_or(LOST));
    match ended {
        Ok(Exit::Status(status)) => Ok(ExitCode::from(u8::try_from(status).unwrap_or(LOST))),
        Ok(Exit::Signal(name)) => {
            output::notice(format_args!("The command was ended by signal {name}"));
            Ok(terminal::signal(&name).map_or(ExitCode::from(LOST), signalled))
        }
        Ok(Exit::Interrupted(signal)) => Ok(signalled(match signal {
            Signal::Interrupt => UnixSignal::SIGINT,
            Signal::Quit => UnixSignal::SIGQUIT,
            Signal::Terminate => UnixSignal::SIGTERM,
            Signal::Hangup => UnixSignal::SIGHUP,
        })),
        Ok(Exit::OutputClosed) => Ok(signalled(UnixSignal::SIGPIPE)),
        Err(error @ (Error::SshLost(_) | Error::WorkspaceStopped(_))) => {
            output::error(&error.into());
            Ok(ExitCode::from(LOST))
        }
        Err(error) => Err(error.into()),
    }
}
