//! The terminal of a session: its size and modes, and the raw mode, which is ended on every way out.

use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::Signal;
use relay_forward::ssh::{Size, Terminal};
use relay_wire::terminal;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::cli::environment;
use crate::output;

/// What the terminal was like, while it is raw.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

fn saved() -> MutexGuard<'static, Option<Termios>> {
    SAVED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the raw mode, if there is one, when dropped.
pub(super) struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        restore();
    }
}

/// Ends the raw mode before a panic is printed, too.
pub(super) fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        print(panic);
    }));
}

/// Hands every key to the session, Ctrl-C included. Nothing happens without a terminal.
pub(super) fn make_raw() {
    let stdin = io::stdin();
    if let Ok(modes) = tcgetattr(&stdin) {
        let mut raw = modes.clone();
        raw.make_raw();
        saved().get_or_insert(modes);
        let _ = tcsetattr(&stdin, OptionalActions::Drain, &raw);
    }
}

/// Is raw again, if it was before this process was stopped.
pub(super) fn raw_again() {
    let was_raw = saved().is_some();
    if was_raw {
        make_raw();
    }
}

fn restore() {
    if let Some(modes) = saved().take() {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &modes);
    }
}

/// Prints a line on stderr; a raw terminal does not go back to the left by itself.
pub(super) fn notice(text: impl Display) {
    let raw = saved().is_some();
    match raw {
        true => output::notice(format_args!("\r{text}\r")),
        false => output::notice(text),
    }
}

/// Whether somebody types.
pub(super) fn is_input() -> bool {
    io::stdin().is_terminal()
}

/// The terminal's size; 80 by 24 when there is none.
pub(super) fn size() -> Size {
    let size = tcgetwinsize(io::stdin())
        .or_else(|_| tcgetwinsize(io::stdout()))
        .or_else(|_| tcgetwinsize(io::stderr()));
    match size {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Size {
            columns: size.ws_col.into(),
            rows: size.ws_row.into(),
            width: size.ws_xpixel.into(),
            height: size.ws_ypixel.into(),
        },
        _ => Size {
            columns: 80,
            rows: 24,
            ..Size::default()
        },
    }
}

/// The terminal, as the workspace should imitate it.
pub(super) fn describe() -> Terminal {
    Terminal {
        name: environment("TERM").unwrap_or_else(|| "xterm-256color".to_owned()),
        size: size(),
        modes: tcgetattr(io::stdin())
            .map_or_else(|_| Vec::new(), |modes| terminal::describe(&modes)),
    }
}

/// A signal by its name without `SIG`.
pub(super) fn signal(name: &str) -> Option<Signal> {
    Signal::from_str(&format!("SIG{name}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name() {
        assert_eq!(signal("TERM"), Some(Signal::SIGTERM));
        assert_eq!(signal("KILL"), Some(Signal::SIGKILL));
        assert_eq!(signal("NONSENSE"), None);
    }
}
