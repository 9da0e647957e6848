//! `relay config-ssh`: makes workspaces hosts of this machine's OpenSSH.

mod block;
mod choices;
mod diff;
mod file;
mod section;

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::builder::BoolishValueParser;
use relay_wire::rest::SshConfig;

use self::block::Parts;
use self::choices::Choices;
use self::file::Config;
use super::block_on;
use crate::cli::{Global, environment, list};
use crate::output;

const EXAMPLES: &str = "\
Examples:
  relay config-ssh --dry-run                       what would be changed
  relay config-ssh                                 then `ssh coder.dev`, `ssh dev.coder`
  relay config-ssh -o ForwardAgent=yes             with an option for every workspace
  relay config-ssh --remove                        undo it";

/// Flags of `relay config-ssh`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Option of OpenSSH for every workspace, as NAME=VALUE; may be repeated
    /// [env: CODER_SSH_CONFIG_OPTS=]
    #[arg(short = 'o', long, value_name = "OPTION")]
    ssh_option: Vec<String>,
    /// Print what would be changed and stop
    #[arg(short = 'n', long, env = "CODER_SSH_DRY_RUN", hide_env_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true
    )]
    #[arg(value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    dry_run: bool,
    /// Use the options of the last time, which the file remembers
    #[arg(long, env = "CODER_SSH_USE_PREVIOUS_OPTIONS", hide_env_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true
    )]
    #[arg(value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    use_previous_options: bool,
    /// The file to change
    #[arg(long, env = "CODER_SSH_CONFIG_FILE", hide_env_values = true)]
    #[arg(default_value = "~/.ssh/config", value_name = "FILE")]
    ssh_config_file: PathBuf,
    /// What host names start with [default: the deployment's, `coder.`]; empty for no such names
    #[arg(long, env = "CODER_CONFIGSSH_SSH_HOST_PREFIX", hide_env_values = true)]
    #[arg(value_name = "PREFIX")]
    ssh_host_prefix: Option<String>,
    /// What host names end with [default: the deployment's, `coder`]; empty for no such names
    #[arg(long, env = "CODER_CONFIGSSH_HOSTNAME_SUFFIX", hide_env_values = true)]
    #[arg(value_name = "SUFFIX")]
    hostname_suffix: Option<String>,
    /// Whether to wait for start-up scripts: yes, no or auto
    #[arg(long, env = "CODER_CONFIGSSH_WAIT", hide_env_values = true)]
    #[arg(default_value = "auto", value_parser = wait, value_name = "WHEN")]
    wait: String,
    /// Do not start a stopped workspace
    #[arg(
        long,
        env = "CODER_CONFIGSSH_DISABLE_AUTOSTART",
        hide_env_values = true
    )]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true
    )]
    #[arg(value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    disable_autostart: bool,
    /// Name each workspace that there is now, in place of a pattern
    #[arg(long, env = "CODER_CONFIGSSH_NO_WILDCARD", hide_env_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_value = "false")]
    #[arg(
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true
    )]
    #[arg(value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    no_wildcard: bool,
    /// The program that OpenSSH runs, as an absolute path [default: this one]
    #[arg(long, env = "CODER_SSH_CONFIG_BINARY_PATH", hide_env_values = true)]
    #[arg(value_name = "FILE")]
    coder_binary_path: Option<PathBuf>,
    /// Take out what an earlier run has put in
    #[arg(long, conflicts_with = "use_previous_options")]
    remove: bool,
    /// Ask nothing
    #[arg(short, long)]
    yes: bool,
    /// Leave out the commands that lead to the workspaces
    #[arg(long, hide = true)]
    skip_proxy_command: bool,
    /// Accepted for Coder's scripts, without effect: paths of this system are Unix's
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true)]
    #[arg(env = "CODER_CONFIGSSH_UNIX_FILEPATHS", hide_env_values = true)]
    #[arg(default_missing_value = "true", value_parser = BoolishValueParser::new())]
    force_unix_filepaths: Option<bool>,
}

fn wait(text: &str) -> Result<String, String> {
    super::ssh::wait(text).map(|_| text.to_owned())
}

/// Runs the command.
pub(crate) fn run(args: Args, global: &Global) -> Result<()> {
    let config = Config::read(&home(&args.ssh_config_file)?)?;
    let shown = config.path().display().to_string();
    let in_file = || format!("cannot change {shown}");
    let cut = section::cut(config.bytes()).with_context(in_file)?;
    let (new, host) = if args.remove {
        (section::remove(config.bytes()).with_context(in_file)?, None)
    } else {
        let choices = choose(&args, global, cut.section)?;
        let parts = parts(&args, global, choices)?;
        for name in parts.refused() {
            output::notice(format_args!(
                "warning: the deployment's option {name} is left out: it may not be set from there"
            ));
        }
        let section = parts.section()?;
        let new = section::put(config.bytes(), &section).with_context(in_file)?;
        (new, Some(example(&parts)))
    };
    let changes = diff::unified(&shown, config.bytes(), &new);
    if changes.is_empty() {
        output::notice(format_args!("{shown} is as it should be"));
        return Ok(());
    }
    if args.dry_run {
        return output::result(changes.trim_end_matches('\n'));
    }
    if !args.yes {
        output::notice(changes.trim_end_matches('\n'));
        ensure!(ask("Make these changes?")?, "{shown} was left as it is");
    }
    config.write(&new)?;
    output::notice(format_args!("{shown} is changed"));
    if let Some(host) = host {
        output::notice(format_args!("Try: ssh {host}"));
    }
    Ok(())
}

/// A path in which `~` is the home directory.
fn home(path: &std::path::Path) -> Result<PathBuf> {
    let Ok(rest) = path.strip_prefix("~") else {
        return Ok(path.to_owned());
    };
    let home = environment("HOME").context("HOME is not set; give --ssh-config-file in full")?;
    Ok(PathBuf::from(home).join(rest))
}

/// What the flags say, or what the section remembers.
fn choose(args: &Args, global: &Global, section: Option<&[u8]>) -> Result<Choices> {
    let given = Choices {
        wait: Some(args.wait.clone()).filter(|wait| wait != "auto"),
        prefix: args.ssh_host_prefix.clone(),
        suffix: args.hostname_suffix.clone(),
        disable_autostart: args.disable_autostart,
        no_wildcard: args.no_wildcard,
        options: list("CODER_SSH_CONFIG_OPTS", &args.ssh_option)?,
        headers: global.header_flags().map(str::to_owned).collect(),
    };
    let Some(section) = section else {
        return Ok(given);
    };
    let (previous, unknown) = Choices::recall(section);
    for name in unknown {
        output::notice(format_args!(
            "warning: the remembered option {name} means nothing here and is dropped"
        ));
    }
    if previous == given || args.yes || args.dry_run {
        return Ok(if args.use_previous_options {
            previous
        } else {
            given
        });
    }
    if args.use_previous_options {
        return Ok(previous);
    }
    let (old, new) = (previous.remember(), given.remember());
    output::notice("The options are others than the last time:");
    let changes = diff::unified("options", old.as_bytes(), new.as_bytes());
    changes.lines().skip(3).for_each(output::notice);
    let new = ask("Use the new ones?")?;
    Ok(if new { given } else { previous })
}

/// Asks a question that an empty line answers with yes.
fn ask(question: &str) -> Result<bool> {
    let stdin = std::io::stdin();
    output::notice(format_args!("{question} [Y/n]"));
    let mut answer = String::new();
    let read = stdin.lock().read_line(&mut answer)?;
    if read == 0 {
        let tip = match stdin.is_terminal() {
            true => "",
            false => "; with --yes nothing is asked",
        };
        bail!("nobody answered, and nothing was changed{tip}");
    }
    match answer.trim().to_ascii_lowercase().as_str() {
        "" | "y" | "yes" => Ok(true),
        _ => Ok(false),
    }
}

fn parts(args: &Args, global: &Global, choices: Choices) -> Result<Parts> {
    let client = global.client()?;
    let (deployment, hosts) = block_on(async {
        let deployment = client.ssh_config().await?;
        let hosts = match choices.no_wildcard {
            true => Some(client.workspaces("owner:me").await?),
            false => None,
        };
        Ok((deployment, hosts))
    })?;
    let SshConfig {
        hostname_prefix,
        hostname_suffix,
        ssh_config_options,
    } = deployment;
    let suffix = choices.suffix.clone().unwrap_or(hostname_suffix);
    let binary = match &args.coder_binary_path {
        Some(path) => path.clone(),
        None => std::env::current_exe().context("cannot find this program's own path")?,
    };
    Ok(Parts {
        binary,
        global: global.for_another_process()?,
        prefix: choices.prefix.clone().unwrap_or(hostname_prefix),
        suffix: suffix.trim_start_matches('.').to_owned(),
        choices,
        deployment: ssh_config_options,
        hosts: hosts.map(|workspaces| workspaces.iter().flat_map(names).collect()),
        skip_proxy_command: args.skip_proxy_command,
    })
}

/// A workspace's names as a host: its own where one agent is meant, and each agent's.
fn names(workspace: &relay_wire::rest::Workspace) -> Vec<String> {
    let agents: Vec<_> = workspace.agents().map(|agent| &agent.name).collect();
    let mut names = Vec::new();
    if agents.len() == 1 {
        names.push(workspace.name.clone());
    }
    names.extend(
        agents
            .iter()
            .map(|agent| format!("{}.{agent}", workspace.name)),
    );
    names
}

fn example(parts: &Parts) -> String {
    match (parts.prefix.is_empty(), &parts.suffix) {
        (false, _) => format!("{}WORKSPACE", parts.prefix),
        (true, suffix) => format!("WORKSPACE.{suffix}"),
    }
}
