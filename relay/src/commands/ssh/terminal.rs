//! The terminal of a session: its size and modes, and the raw mode, which is ended on every way out.

use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::Signal;
use relay_forward::ssh::{Size, Terminal};
use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios,
    tcgetattr, tcgetwinsize, tcsetattr,
};

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
        modes: tcgetattr(io::stdin()).map_or_else(|_| Vec::new(), |modes| encode(&modes)),
    }
}

/// A signal by its name without `SIG`.
pub(super) fn signal(name: &str) -> Option<Signal> {
    Signal::from_str(&format!("SIG{name}")).ok()
}

/// A special character that is not used (RFC 4254 §8).
const UNUSED: u32 = 255;

/// Opcodes of RFC 4254 §8 with the values of `modes`.
fn encode(modes: &Termios) -> Vec<(u8, u32)> {
    let character = |(code, index): &(u8, SpecialCodeIndex)| {
        let value = modes.special_codes[*index];
        (*code, if value == 0 { UNUSED } else { value.into() })
    };
    let input = |(code, flag): &(u8, InputModes)| (*code, modes.input_modes.contains(*flag).into());
    let local = |(code, flag): &(u8, LocalModes)| (*code, modes.local_modes.contains(*flag).into());
    let out = |(code, flag): &(u8, OutputModes)| (*code, modes.output_modes.contains(*flag).into());
    let size = modes.control_modes & ControlModes::CSIZE;
    let mut encoded: Vec<(u8, u32)> = CHARACTERS.iter().map(character).collect();
    encoded.extend(INPUT.iter().map(input));
    encoded.extend(LOCAL.iter().map(local));
    encoded.extend(OUTPUT.iter().map(out));
    encoded.extend([
        (90, (size == ControlModes::CS7).into()),
        (91, (size == ControlModes::CS8).into()),
        (
            92,
            modes.control_modes.contains(ControlModes::PARENB).into(),
        ),
        (
            93,
            modes.control_modes.contains(ControlModes::PARODD).into(),
        ),
        (128, modes.input_speed()),
        (129, modes.output_speed()),
    ]);
    encoded
}

const CHARACTERS: [(u8, SpecialCodeIndex); 14] = [
    (1, SpecialCodeIndex::VINTR),
    (2, SpecialCodeIndex::VQUIT),
    (3, SpecialCodeIndex::VERASE),
    (4, SpecialCodeIndex::VKILL),
    (5, SpecialCodeIndex::VEOF),
    (6, SpecialCodeIndex::VEOL),
    (7, SpecialCodeIndex::VEOL2),
    (8, SpecialCodeIndex::VSTART),
    (9, SpecialCodeIndex::VSTOP),
    (10, SpecialCodeIndex::VSUSP),
    (12, SpecialCodeIndex::VREPRINT),
    (13, SpecialCodeIndex::VWERASE),
    (14, SpecialCodeIndex::VLNEXT),
    (18, SpecialCodeIndex::VDISCARD),
];

const INPUT: [(u8, InputModes); 13] = [
    (30, InputModes::IGNPAR),
    (31, InputModes::PARMRK),
    (32, InputModes::INPCK),
    (33, InputModes::ISTRIP),
    (34, InputModes::INLCR),
    (35, InputModes::IGNCR),
    (36, InputModes::ICRNL),
    (37, InputModes::IUCLC),
    (38, InputModes::IXON),
    (39, InputModes::IXANY),
    (40, InputModes::IXOFF),
    (41, InputModes::IMAXBEL),
    (42, InputModes::IUTF8),
];

const LOCAL: [(u8, LocalModes); 13] = [
    (50, LocalModes::ISIG),
    (51, LocalModes::ICANON),
    (52, LocalModes::XCASE),
    (53, LocalModes::ECHO),
    (54, LocalModes::ECHOE),
    (55, LocalModes::ECHOK),
    (56, LocalModes::ECHONL),
    (57, LocalModes::NOFLSH),
    (58, LocalModes::TOSTOP),
    (59, LocalModes::IEXTEN),
    (60, LocalModes::ECHOCTL),
    (61, LocalModes::ECHOKE),
    (62, LocalModes::PENDIN),
];

const OUTPUT: [(u8, OutputModes); 6] = [
    (70, OutputModes::OPOST),
    (71, OutputModes::OLCUC),
    (72, OutputModes::ONLCR),
    (73, OutputModes::OCRNL),
    (74, OutputModes::ONOCR),
    (75, OutputModes::ONLRET),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name() {
        assert_eq!(signal("TERM"), Some(Signal::SIGTERM));
        assert_eq!(signal("KILL"), Some(Signal::SIGKILL));
        assert_eq!(signal("NONSENSE"), None);
    }

    #[test]
    fn a_terminal_is_described_by_what_it_does() {
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        let pty = rustix::pty::openpt(flags).unwrap();
        let mut modes = tcgetattr(&pty).unwrap();
        modes.local_modes.remove(LocalModes::ECHO);
        modes.local_modes.insert(LocalModes::ICANON);
        modes.special_codes[SpecialCodeIndex::VINTR] = 7;
        modes.special_codes[SpecialCodeIndex::VEOL] = 0;
        let encoded = encode(&modes);
        for expected in [(53, 0), (51, 1), (1, 7), (6, UNUSED), (91, 1)] {
            assert!(encoded.contains(&expected), "{expected:?}: {encoded:?}");
        }
    }
}
