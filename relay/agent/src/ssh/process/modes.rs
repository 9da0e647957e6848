//! A client's terminal modes (RFC 4254 §8), and IUTF8 (RFC 8160).

use std::io;
use std::os::fd::BorrowedFd;

use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, tcgetattr,
    tcsetattr,
};

use crate::ssh::proto::codec::Reader;

/// Control characters by opcode.
const CHARACTERS: [(u8, SpecialCodeIndex); 15] = [
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
    (16, SpecialCodeIndex::VSWTC),
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

const LOCAL: [(u8, LocalModes); 12] = [
    (50, LocalModes::ISIG),
    (51, LocalModes::ICANON),
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

/// Opcodes from here on are not defined, and end the list.
const UNDEFINED: u8 = 160;
/// A control character that is switched off.
const DISABLED: u32 = 255;

/// Sets a terminal to the modes of a client, as far as they are known here.
pub(super) fn apply(terminal: BorrowedFd<'_>, modes: &[u8]) -> io::Result<()> {
    let mut termios = tcgetattr(terminal)?;
    let mut reader = Reader::new(modes);
    while let Ok(opcode) = reader.byte() {
        if opcode == 0 || opcode >= UNDEFINED {
            break;
        }
        let Ok(value) = reader.u32() else {
            break;
        };
        set(&mut termios, opcode, value);
    }
    Ok(tcsetattr(terminal, OptionalActions::Now, &termios)?)
}

fn set(termios: &mut Termios, opcode: u8, value: u32) {
    let on = value != 0;
    if let Some((_, index)) = CHARACTERS.iter().find(|(code, _)| *code == opcode) {
        let character = if value == DISABLED { 0 } else { value };
        termios.special_codes[*index] = u8::try_from(character).unwrap_or(0);
    } else if let Some((_, flag)) = INPUT.iter().find(|(code, _)| *code == opcode) {
        termios.input_modes.set(*flag, on);
    } else if let Some((_, flag)) = LOCAL.iter().find(|(code, _)| *code == opcode) {
        termios.local_modes.set(*flag, on);
    } else if let Some((_, flag)) = OUTPUT.iter().find(|(code, _)| *code == opcode) {
        termios.output_modes.set(*flag, on);
    }
    // Character size, parity and speed (90 and above) mean nothing to a pseudo-terminal.
}
