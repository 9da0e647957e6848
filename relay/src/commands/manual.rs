//! `relay completion`, and the manual pages: what the command line says of itself, for shells and
//! for man(1).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _, ValueHint};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::Cli;
use crate::output;

/// Flags of `relay completion`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  relay completion bash > ~/.local/share/bash-completion/completions/relay
  relay completion zsh > ~/.zfunc/_relay          with ~/.zfunc in fpath
  relay completion fish > ~/.config/fish/completions/relay.fish")]
pub(crate) struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Flags of `relay manual`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder for the pages; it is made if need be
    #[arg(value_hint = ValueHint::DirPath)]
    folder: PathBuf,
}

/// Prints the completion script of a shell.
pub(crate) fn completion(args: CompletionArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "relay", &mut script);
    output::result(String::from_utf8_lossy(&script).trim_end())
}

/// Writes `relay.1`, `relay-port-forward.1` and so on.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let folder = &args.folder;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut relay = Cli::command();
    relay.build();
    pages(&relay, "relay", folder)
}

fn pages(command: &Command, name: &str, folder: &Path) -> anyhow::Result<()> {
    let file = folder.join(format!("{name}.1"));
    let mut page = Vec::new();
    Man::new(command.clone())
        .title(name.to_uppercase())
        .render(&mut page)
        .and_then(|()| fs::write(&file, page))
        .with_context(|| format!("cannot write {}", file.display()))?;
    for part in command.get_subcommands() {
        if !part.is_hide_set() && part.get_name() != "help" {
            pages(part, &format!("{name}-{}", part.get_name()), folder)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_that_names_its_flags() {
        let folder = tempfile::tempdir().unwrap();
        run(Args {
            folder: folder.path().join("man"),
        })
        .unwrap();
        let read = |name| fs::read_to_string(folder.path().join("man").join(name)).unwrap();
        assert!(read("relay-port-forward.1").contains("\\-\\-tcp"));
        assert!(read("relay.1").contains("relay\\-port\\-forward(1)"));
        read("relay-server-workspace-create.1");
    }

    #[test]
    fn scripts_know_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "relay", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("port-forward"), "{shell}");
        }
    }
}
