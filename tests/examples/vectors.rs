//! `cargo xtask vectors [DIR] [--known-only]`: every vector file of a folder through the real code.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use relay_lab::vectors;

fn main() -> ExitCode {
    let mut known_only = false;
    let mut folder = vectors::own_copy();
    for argument in std::env::args_os().skip(1) {
        match argument.to_str() {
            Some("--known-only") => known_only = true,
            _ => folder = PathBuf::from(argument),
        }
    }
    match run(&folder, known_only) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("error: {}: {error}", folder.display()));
            ExitCode::FAILURE
        }
    }
}

/// Whether everything holds.
fn run(folder: &std::path::Path, known_only: bool) -> anyhow::Result<bool> {
    let mut fine = true;
    for path in vectors::files(folder)? {
        let shown = path.strip_prefix(folder).unwrap_or(&path).display();
        let Some(outcome) = vectors::run(&path)? else {
            say(&format!("{shown} nothing runs this file"));
            fine &= known_only;
            continue;
        };
        say(&format!("{shown} {}/{}", outcome.passed, outcome.total));
        for (name, reason) in &outcome.failed {
            say(&format!("  FAILED {name}: {reason}"));
        }
        for name in &outcome.left {
            say(&format!("  nothing runs {name}"));
        }
        fine &= outcome.failed.is_empty() && (known_only || outcome.left.is_empty());
    }
    Ok(fine)
}

fn say(text: &str) {
    // A reader that went away is no reason to fail.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
