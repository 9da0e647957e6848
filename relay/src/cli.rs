//! The command line: the list of commands, Coder's global flags, and how mistakes are reported.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::builder::BoolishValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};
use relay_control::config::{ConfigDir, parse_url};
use relay_control::rest::{Access, Client};
use relay_tunnel::dial::TlsOptions;
use relay_wire::spec::read_list;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::commands;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  relay demo                                      see it work on this machine
  relay login https://relay.example.com           sign in once
  relay port-forward dev --tcp 8080:8000          reach port 8000 of workspace `dev` on localhost:8080
  relay server                                    run a control plane
  relay agent --url URL --token TOKEN             make this machine a workspace";

/// Port forwarding for remote workspaces, over WireGuard.
#[derive(Parser)]
#[command(name = "relay", bin_name = "relay", version, after_help = EXAMPLES)]
#[command(
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = false
)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make ports of a workspace appear on this machine.
    #[command(visible_alias = "tunnel")]
    PortForward(Box<commands::port_forward::Args>),
    /// Sign in to a deployment and remember the session.
    Login(commands::login::Args),
    /// Forget the remembered session.
    Logout(commands::login::LogoutArgs),
    /// List workspaces.
    #[command(visible_alias = "ls")]
    List(commands::list::Args),
    /// Open a shell in a workspace, or run a command there.
    Ssh(Box<commands::ssh::Args>),
    /// Make workspaces hosts of this machine's OpenSSH.
    ConfigSsh(Box<commands::config_ssh::Args>),
    /// Ask about Coder's VPN.
    #[command(hide = true)]
    Connect(commands::connect::Args),
    /// Measure the way to a workspace: direct or relayed, why, and how long it takes.
    Ping(commands::ping::Args),
    /// Reach hosts behind any WireGuard peer: no control plane, no root.
    Wg(commands::wg::Args),
    /// List the forwards and sessions that run on this machine, with their paths.
    Status(commands::status::Args),
    /// Find out what this machine and its network let relay do.
    Netcheck(commands::netcheck::Args),
    /// Measure how fast bytes go to or from a workspace.
    Speedtest(commands::speedtest::Args),
    /// Run the workspace's end of the tunnel.
    Agent(commands::agent::Args),
    /// Run the control plane, or manage its users and workspaces.
    Server(Box<commands::server::Args>),
    /// Run server, agent and forward on this machine and show that they work.
    Demo(commands::demo::Args),
    /// Print the script that completes commands and flags in a shell.
    Completion(commands::manual::CompletionArgs),
    /// Write a manual page of each command.
    #[command(hide = true)]
    Manual(commands::manual::Args),
    /// Measure relay's routes beside OpenSSH and plain loopback on this machine.
    Bench(commands::bench::Args),
}

impl Cli {
    /// Runs the chosen command to its end, and says with which status to exit.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let global = &self.global;
        let ended = match self.command {
            Command::Ssh(args) => return commands::ssh::run(*args, global),
            Command::Connect(args) => return Ok(commands::connect::run(&args)),
            Command::ConfigSsh(args) => commands::config_ssh::run(*args, global),
            Command::PortForward(args) => commands::port_forward::run(*args, global),
            Command::Login(args) => commands::login::run(args, global),
            Command::Logout(args) => commands::login::logout(args, global),
            Command::List(args) => commands::list::run(args, global),
            Command::Ping(args) => commands::ping::run(args, global),
            Command::Wg(args) => commands::wg::run(args),
            Command::Status(args) => commands::status::run(&args),
            Command::Netcheck(args) => commands::netcheck::run(&args, global),
            Command::Speedtest(args) => commands::speedtest::run(args, global),
            Command::Agent(args) => commands::agent::run(args, global),
            Command::Server(args) => commands::server::run(*args, global),
            Command::Demo(args) => commands::demo::run(args, global),
            Command::Completion(args) => commands::manual::completion(args),
            Command::Manual(args) => commands::manual::run(args),
            Command::Bench(args) => commands::bench::run(args, global),
        };
        ended.map(|()| ExitCode::SUCCESS)
    }

    /// Sends logs to stderr. `RELAY_LOG` (the usual filter syntax) wins over `--verbose`.
    pub(crate) fn start_logging(&self) {
        let service = matches!(self.command, Command::Agent(_) | Command::Server(_));
        let level = match (self.global.verbose, service) {
            (true, _) => "debug",
            // boringtun warns of every handshake that is repeated; relay says what matters of it.
            (false, true) => "info,boringtun=off",
            (false, false) => "warn,boringtun=off",
        };
        let filter = EnvFilter::try_from_env("RELAY_LOG").unwrap_or_else(|_| EnvFilter::new(level));
        let colors = std::io::IsTerminal::is_terminal(&std::io::stderr())
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let stderr = tracing_subscriber::fmt::layer()
            .with_writer(|| crate::screen::Logs)
            .with_target(self.global.verbose)
            .with_ansi(colors)
            .with_filter(filter);
        let file = self.log_file().map(|file| {
            tracing_subscriber::fmt::layer()
                .with_writer(Arc::new(file))
                .with_ansi(false)
                .with_filter(EnvFilter::new("debug"))
        });
        tracing_subscriber::registry()
            .with(stderr)
            .with(file)
            .init();
    }

    /// The log that was asked for besides. A folder that cannot be written to is said, and no more.
    fn log_file(&self) -> Option<File> {
        let Command::Ssh(args) = &self.command else {
            return None;
        };
        let folder = args.log_dir.as_ref()?;
        let path = folder.join(format!("coder-ssh-{}.log", std::process::id()));
        match File::options()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
        {
            Ok(file) => Some(file),
            Err(error) => {
                output::notice(format_args!(
                    "warning: no log in {}: {error}",
                    path.display()
                ));
                None
            }
        }
    }
}

/// Flags that every command takes, before or after its name. They are Coder's.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// URL of the deployment [env: CODER_URL=]
    // Read from the environment by `url()`, because `relay agent --url` has a variable of its own.
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    /// Session token to sign requests with [env: CODER_SESSION_TOKEN=]
    #[arg(long, global = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Log in detail, on stderr
    #[arg(
        short,
        long,
        global = true,
        env = "CODER_VERBOSE",
        hide_env_values = true
    )]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true
    )]
    #[arg(value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    pub(crate) verbose: bool,
    /// Use relays only, never a direct path
    #[arg(long, alias = "disable-direct", global = true, hide_env_values = true)]
    #[arg(env = "CODER_DISABLE_DIRECT_CONNECTIONS")]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true
    )]
    #[arg(value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    pub(crate) disable_direct_connections: bool,
    /// Directory of the remembered session [default: ~/.config/coderv2]
    #[arg(long, global = true, env = "CODER_CONFIG_DIR", value_name = "DIR")]
    #[arg(hide_env_values = true)]
    pub(crate) global_config: Option<PathBuf>,
    /// Extra HTTP header for every request, as `Name=value`; may be repeated
    #[arg(long, global = true, env = "CODER_HEADER", value_name = "NAME=VALUE")]
    #[arg(hide_env_values = true, value_delimiter = ',')]
    header: Vec<String>,
    /// PEM file with certificate authorities to trust besides the system's
    #[arg(
        long,
        global = true,
        env = "CODER_CLIENT_TLS_CA_FILE",
        value_name = "FILE"
    )]
    #[arg(hide_env_values = true)]
    pub(crate) client_tls_ca_file: Option<PathBuf>,
    /// PEM file with the client's certificate
    #[arg(
        long,
        global = true,
        env = "CODER_CLIENT_TLS_CERT_FILE",
        value_name = "FILE"
    )]
    #[arg(hide_env_values = true, hide = true)]
    pub(crate) client_tls_cert_file: Option<PathBuf>,
    /// PEM file with the key of the client's certificate
    #[arg(
        long,
        global = true,
        env = "CODER_CLIENT_TLS_KEY_FILE",
        value_name = "FILE"
    )]
    #[arg(hide_env_values = true, hide = true)]
    pub(crate) client_tls_key_file: Option<PathBuf>,
    /// Accepted for Coder's scripts, without effect: relay sends no telemetry
    #[arg(long, global = true, hide = true, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = BoolishValueParser::new())]
    disable_network_telemetry: Option<bool>,
    /// Accepted for Coder's scripts, without effect: relay has no version warning
    #[arg(long, global = true, hide = true, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = BoolishValueParser::new())]
    no_version_warning: Option<bool>,
    /// Accepted for Coder's scripts, without effect: relay has no feature warning
    #[arg(long, global = true, hide = true, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = BoolishValueParser::new())]
    no_feature_warning: Option<bool>,
    /// Accepted for Coder's scripts, without effect: sessions are files on this system
    #[arg(long, global = true, hide = true, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = BoolishValueParser::new())]
    use_keyring: Option<bool>,
    /// Accepted for Coder's scripts, without effect: relay does not ask what its terminal is
    #[arg(long, global = true, hide = true, num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = BoolishValueParser::new())]
    force_tty: Option<bool>,
}

impl Global {
    /// `--url`, or `CODER_URL`.
    pub(crate) fn url(&self) -> Option<String> {
        self.url.clone().or_else(|| environment("CODER_URL"))
    }

    /// `--token`, or `CODER_SESSION_TOKEN`.
    pub(crate) fn token(&self) -> Option<String> {
        self.token
            .clone()
            .or_else(|| environment("CODER_SESSION_TOKEN"))
    }

    /// The directory of the remembered session.
    pub(crate) fn config(&self) -> ConfigDir {
        match &self.global_config {
            Some(path) => ConfigDir::at(path),
            None => ConfigDir::default_for(environment),
        }
    }

    /// TLS settings for the control plane and relays.
    pub(crate) fn tls(&self) -> TlsOptions {
        TlsOptions {
            ca_file: self.client_tls_ca_file.clone(),
            cert_file: self.client_tls_cert_file.clone(),
            key_file: self.client_tls_key_file.clone(),
        }
    }

    /// What to show a deployment besides its URL.
    pub(crate) fn access(&self, token: String) -> anyhow::Result<Access> {
        Ok(Access {
            token,
            headers: self.headers()?,
            tls: self.tls(),
        })
    }

    /// A client of the deployment that flags, environment or the remembered session name.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let config = self.config();
        let url = match self.url() {
            Some(text) => parse_url(&text)?,
            None => config.url()?.ok_or(relay_control::Error::NoUrl)?,
        };
        let token = match self.token() {
            Some(token) => token,
            None => config.token()?.ok_or(relay_control::Error::NoToken)?,
        };
        Ok(Client::new(&url, self.access(token)?))
    }

    /// The extra headers, as they were given.
    pub(crate) fn header_flags(&self) -> impl Iterator<Item = &str> {
        let given = self.header.iter().filter(|text| !text.is_empty());
        given.map(String::as_str)
    }

    /// Flags by which another process finds the same deployment. Secrets are not among them: that
    /// process reads the remembered session.
    pub(crate) fn for_another_process(&self) -> anyhow::Result<Vec<String>> {
        let mut words = Vec::new();
        if let Some(url) = &self.url {
            words.extend(["--url".to_owned(), url.clone()]);
        }
        for (flag, path) in [
            ("--global-config", &self.global_config),
            ("--client-tls-ca-file", &self.client_tls_ca_file),
            ("--client-tls-cert-file", &self.client_tls_cert_file),
            ("--client-tls-key-file", &self.client_tls_key_file),
        ] {
            let Some(path) = path else { continue };
            let path = std::path::absolute(path)?;
            let text = path
                .to_str()
                .filter(|text| !text.contains(char::is_control));
            let text =
                text.with_context(|| format!("{flag} {} is not plain text", path.display()))?;
            words.extend([flag.to_owned(), text.to_owned()]);
        }
        Ok(words)
    }

    /// The extra headers, split at the first `=`.
    pub(crate) fn headers(&self) -> anyhow::Result<Vec<(String, String)>> {
        let split = |text: &str| match text.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() => {
                Ok((name.trim().to_owned(), value.trim().to_owned()))
            }
            _ => anyhow::bail!("--header \"{text}\" is not of the form NAME=VALUE"),
        };
        self.header_flags().map(split).collect()
    }
}

/// An environment variable that is set and not empty.
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// What the environment (one record of CSV) and a flag ask for, the environment first. Values of the
/// flag are taken as they are: there are commas in them.
pub(crate) fn list(variable: &str, flags: &[String]) -> anyhow::Result<Vec<String>> {
    let environment: Vec<String> = environment(variable).into_iter().collect();
    let mut list = read_list(&environment).with_context(|| variable.to_owned())?;
    list.extend_from_slice(flags);
    list.retain(|value| !value.is_empty());
    Ok(list)
}

/// Prints what is wrong with a command line, as one line, and says with which status to exit:
/// 2 for an unknown flag or command or a missing argument, 1 for a bad value.
pub(crate) fn report_usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return ExitCode::from(2);
        }
        _ => {}
    }
    output::notice(usage_line(error));
    match error.kind() {
        ErrorKind::InvalidValue if is_missing_value(error) => ExitCode::from(2),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation | ErrorKind::InvalidUtf8 => {
            ExitCode::FAILURE
        }
        _ => ExitCode::from(2),
    }
}

/// `--tcp` as the last word: clap calls that an invalid value, people call it a missing argument.
fn is_missing_value(error: &clap::Error) -> bool {
    match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) => value.is_empty(),
        _ => true,
    }
}

/// clap's explanation without its paragraphs about usage; each tip follows a semicolon.
fn usage_line(error: &clap::Error) -> String {
    let text = error.render().to_string().replace("\n  tip:", "\n\n  tip:");
    let paragraphs = text.split("\n\n");
    let kept: Vec<String> = paragraphs
        .filter(|part| !part.starts_with("Usage:") && !part.starts_with("For more information"))
        .map(|part| output::one_line(part).trim_end_matches('.').to_owned())
        .filter(|part| !part.is_empty())
        .collect();
    format!("{} (see --help)", kept.join("; "))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn global(words: &[&str]) -> Global {
        Cli::try_parse_from(words)
            .map(|cli| cli.global)
            .expect("parses")
    }

    #[test]
    fn global_flags_work_before_and_after_the_command() {
        let before = global(&["relay", "--url", "http://a", "-v", "list"]);
        let after = global(&["relay", "list", "--url", "http://a", "--verbose"]);
        for global in [before, after] {
            assert_eq!(global.url().as_deref(), Some("http://a"));
            assert!(global.verbose);
        }
    }

    #[test]
    fn boolean_flags_take_an_explicit_value() {
        assert!(!global(&["relay", "--verbose=false", "list"]).verbose);
        assert!(global(&["relay", "--verbose=true", "list"]).verbose);
        assert!(global(&["relay", "list", "--disable-direct"]).disable_direct_connections);
    }

    #[test]
    fn headers_are_split_at_the_first_equals_sign() {
        let headers = global(&["relay", "--header", "X-A=b=c", "list"]).headers();
        assert_eq!(
            headers.expect("valid"),
            [("X-A".to_owned(), "b=c".to_owned())]
        );
        assert!(
            global(&["relay", "--header", "nonsense", "list"])
                .headers()
                .is_err()
        );
    }

    #[test]
    fn usage_errors_are_one_line_with_the_offending_text() {
        for (words, expected) in [
            (&["relay", "list", "--no-such-flag"][..], "--no-such-flag"),
            (&["relay", "port-forward"][..], "WORKSPACE"),
            (&["relay", "nonsense"][..], "nonsense"),
        ] {
            let Err(error) = Cli::try_parse_from(words) else {
                panic!("{words:?} parsed")
            };
            let line = usage_line(&error);
            assert!(!line.contains('\n') && line.contains(expected), "{line}");
        }
    }

    #[test]
    fn tips_are_set_apart_from_the_mistake_and_from_each_other() {
        for (words, expected) in [
            (
                &["relay", "lis"][..],
                "error: unrecognized subcommand 'lis'; tip: a similar subcommand exists: 'list' (see --help)",
            ),
            (
                &["relay", "list", "--outputt", "json"][..],
                "error: unexpected argument '--outputt' found; tip: a similar argument exists: '--output' (see --help)",
            ),
        ] {
            let error = Cli::try_parse_from(words).err().expect("a mistake");
            assert_eq!(usage_line(&error), expected);
        }
        let text = "a mistake.\n\n  tip: one\n  tip: two";
        let error = Cli::command().error(ErrorKind::UnknownArgument, text);
        let line = usage_line(&error);
        assert_eq!(line, "error: a mistake; tip: one; tip: two (see --help)");
    }
}
