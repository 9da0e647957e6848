//! What the commands print: results on stdout, everything meant for a person's eye on stderr.

use std::io::{self, Write};

/// Prints one line on stderr. A closed stderr is nobody's error.
pub(crate) fn notice(text: impl std::fmt::Display) {
    crate::screen::print(&format!("{text}\n"));
}

/// Prints an error as one line: the outermost sentence first, its causes after it.
pub(crate) fn error(error: &anyhow::Error) {
    notice(format_args!("error: {}", one_line(&sentence(error))));
}

/// An error with those of its causes that it does not tell itself.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Writes a result to stdout. A reader that went away (`| head`) is a normal end.
pub(crate) fn result(text: impl std::fmt::Display) -> anyhow::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("cannot write to standard output"))
        }
        _ => Ok(()),
    }
}

/// Prints a value as indented JSON on stdout.
pub(crate) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    result(serde_json::to_string_pretty(value)?)
}

/// Joins lines with spaces, so that text of other programs cannot break the one-line rule.
pub(crate) fn one_line(text: &str) -> String {
    text.split('\n')
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// How a command prints its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON document.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let cause = anyhow::anyhow!("no route");
        assert_eq!(
            sentence(&cause.context("cannot reach it")),
            "cannot reach it: no route"
        );
        let cause = anyhow::anyhow!("no route");
        assert_eq!(
            sentence(&cause.context("cannot reach it: no route")),
            "cannot reach it: no route"
        );
    }

    #[test]
    fn many_lines_become_one() {
        assert_eq!(one_line("a\n  b\n\nc \n"), "a b c");
    }
}
