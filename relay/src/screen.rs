//! The lines at the foot of the terminal that are drawn anew while the command runs, and how other
//! lines of stderr get above them.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What stands at the foot now.
static FOOT: Mutex<Foot> = Mutex::new(Foot {
    lines: Vec::new(),
    over: false,
});

struct Foot {
    lines: Vec<String>,
    /// Nothing is drawn any more.
    over: bool,
}

/// Whether lines can be drawn anew: stderr is a terminal that can move its cursor.
pub(crate) fn is_live() -> bool {
    let term = std::env::var("TERM").unwrap_or_default();
    io::stderr().is_terminal() && !term.is_empty() && term != "dumb"
}

/// Columns and lines of the terminal.
pub(crate) fn size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(io::stderr().as_fd()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (80, 24),
    }
}

/// Puts these lines at the foot, in place of those that were there.
pub(crate) fn show(lines: Vec<String>) {
    let mut foot = foot();
    if foot.over {
        return;
    }
    let text = replaced(foot.lines.len(), "", &lines);
    foot.lines = lines;
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Leaves the foot as it is, for good; what comes now is below it.
pub(crate) fn release() {
    let mut foot = foot();
    foot.lines.clear();
    foot.over = true;
}

/// Writes whole lines to stderr, above the foot. A closed stderr is nobody's error.
pub(crate) fn print(text: &str) {
    let foot = foot();
    let text = replaced(foot.lines.len(), text, &foot.lines);
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

fn foot() -> MutexGuard<'static, Foot> {
    FOOT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a terminal is sent: over `old` lines of the foot go `above` and a new foot.
fn replaced(old: usize, above: &str, foot: &[String]) -> String {
    let mut text = String::new();
    if old > 0 {
        text.push_str(&format!("\r\x1b[{old}A\x1b[J"));
    }
    text.push_str(above);
    for line in foot {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Where logs go.
pub(crate) struct Logs;

impl Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        print(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_above_the_foot_and_without_one_as_they_are() {
        assert_eq!(replaced(0, "a\n", &[]), "a\n");
        let foot = ["x".to_owned(), "y".to_owned()];
        assert_eq!(replaced(0, "", &foot), "x\ny\n");
        assert_eq!(replaced(2, "a\n", &foot), "\r\x1b[2A\x1b[Ja\nx\ny\n");
    }
}
