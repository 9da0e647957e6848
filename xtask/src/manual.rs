//! `cargo xtask completions`: manual pages and completion scripts, laid out as packages install them
//! below `/usr/share`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run::{cargo, checked, say, target_dir};

/// Shells, and where each looks for the script of a program that is called relay.
const SCRIPTS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/relay"),
    ("zsh", "zsh/site-functions/_relay"),
    ("fish", "fish/vendor_completions.d/relay.fish"),
];

/// Builds relay and asks it for all of them.
pub(crate) fn run(dir: Option<PathBuf>) -> Result<()> {
    let target = target_dir()?;
    let dir = dir.unwrap_or_else(|| target.join("manual"));
    checked(&mut cargo(&["build", "-q", "-p", "relay"]))?;
    let relay = target.join("debug/relay");
    checked(Command::new(&relay).arg("manual").arg(dir.join("man/man1")))?;
    for (shell, place) in SCRIPTS {
        let output = Command::new(&relay)
            .args(["completion", shell])
            .output()
            .with_context(|| format!("cannot start {}", relay.display()))?;
        ensure!(output.status.success(), "`relay completion {shell}` failed");
        let file = dir.join(place);
        let folder = file.parent().unwrap_or(&dir);
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::write(&file, output.stdout)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    say(format_args!("written below {}", dir.display()));
    Ok(())
}
