//! Terminal modes as SSH encodes them (RFC 4254 §8; IUTF8: RFC 8160). One end writes down what its
//! terminal does, the other makes a terminal do the same.

use rustix::termios::{
    ControlModes, InputModes, LocalModes, OutputModes, SpecialCodeIndex, Termios,
};

/// Ends the list.
const END: u8 = 0;
/// Opcodes from here on are not defined, and end the list too.
const UNDEFINED: u8 = 160;
/// A control character that is switched off.
const DISABLED: u32 = 255;

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

const CS7: u8 = 90;
const CS8: u8 = 91;
const PARENB: u8 = 92;
const PARODD: u8 = 93;
const INPUT_SPEED: u8 = 128;
const OUTPUT_SPEED: u8 = 129;

/// The opcodes that describe a terminal, each with its value.
pub fn describe(modes: &Termios) -> Vec<(u8, u32)> {
    let character = |(code, index): &(u8, SpecialCodeIndex)| {
        let value = modes.special_codes[*index];
        (*code, if value == 0 { DISABLED } else { value.into() })
    };
    let input = |(code, flag): &(u8, InputModes)| (*code, modes.input_modes.contains(*flag).into());
    let local = |(code, flag): &(u8, LocalModes)| (*code, modes.local_modes.contains(*flag).into());
    let out = |(code, flag): &(u8, OutputModes)| (*code, modes.output_modes.contains(*flag).into());
    let control = |flag| u32::from(modes.control_modes.contains(flag));
    let size = modes.control_modes & ControlModes::CSIZE;
    let mut described: Vec<(u8, u32)> = CHARACTERS.iter().map(character).collect();
    described.extend(INPUT.iter().map(input));
    described.extend(LOCAL.iter().map(local));
    described.extend(OUTPUT.iter().map(out));
    described.extend([
        (CS7, (size == ControlModes::CS7).into()),
        (CS8, (size == ControlModes::CS8).into()),
        (PARENB, control(ControlModes::PARENB)),
        (PARODD, control(ControlModes::PARODD)),
        (INPUT_SPEED, modes.input_speed()),
        (OUTPUT_SPEED, modes.output_speed()),
    ]);
    described
}

/// Changes `modes` to what an encoded list says, as far as it is known here. Character size, parity
/// and speed mean nothing to a pseudo-terminal and are left alone.
pub fn apply(encoded: &[u8], modes: &mut Termios) {
    let mut rest = encoded;
    while let Some((opcode, after)) = rest.split_first()
        && (END + 1..UNDEFINED).contains(opcode)
        && let Some((value, after)) = after.split_first_chunk()
    {
        set(modes, *opcode, u32::from_be_bytes(*value));
        rest = after;
    }
}

fn set(modes: &mut Termios, opcode: u8, value: u32) {
    let on = value != 0;
    if let Some((_, index)) = CHARACTERS.iter().find(|(code, _)| *code == opcode) {
        let character = if value == DISABLED { 0 } else { value };
        modes.special_codes[*index] = u8::try_from(character).unwrap_or(0);
    } else if let Some((_, flag)) = INPUT.iter().find(|(code, _)| *code == opcode) {
        modes.input_modes.set(*flag, on);
    } else if let Some((_, flag)) = LOCAL.iter().find(|(code, _)| *code == opcode) {
        modes.local_modes.set(*flag, on);
    } else if let Some((_, flag)) = OUTPUT.iter().find(|(code, _)| *code == opcode) {
        modes.output_modes.set(*flag, on);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(modes: &[(u8, u32)]) -> Vec<u8> {
        let mut encoded = Vec::with_capacity(5 * modes.len() + 1);
        for (opcode, value) in modes {
            encoded.push(*opcode);
            encoded.extend_from_slice(&value.to_be_bytes());
        }
        encoded.push(END);
        encoded
    }

    fn terminal() -> Termios {
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        rustix::termios::tcgetattr(rustix::pty::openpt(flags).unwrap()).unwrap()
    }

    #[test]
    fn a_terminal_is_described_by_what_it_does() {
        let mut modes = terminal();
        modes.local_modes.remove(LocalModes::ECHO);
        modes.local_modes.insert(LocalModes::ICANON);
        modes.special_codes[SpecialCodeIndex::VINTR] = 7;
        modes.special_codes[SpecialCodeIndex::VEOL] = 0;
        let described = describe(&modes);
        for expected in [(53, 0), (51, 1), (1, 7), (6, DISABLED), (91, 1)] {
            assert!(described.contains(&expected), "{expected:?}: {described:?}");
        }
    }

    #[test]
    fn the_other_end_does_the_same() {
        let mut ours = terminal();
        ours.input_modes.toggle(InputModes::all() & INPUT[8].1);
        ours.local_modes.toggle(LocalModes::ECHO | LocalModes::ISIG);
        ours.output_modes.toggle(OutputModes::ONLCR);
        ours.special_codes[SpecialCodeIndex::VQUIT] = 200;
        ours.special_codes[SpecialCodeIndex::VSUSP] = 0;
        let mut theirs = terminal();
        apply(&encode(&describe(&ours)), &mut theirs);
        assert_eq!(describe(&theirs), describe(&ours));
    }

    #[test]
    fn a_list_ends_where_it_says_or_breaks_off() {
        let echo_off = encode(&[(53, 0)]);
        let before = describe(&terminal());
        for list in [
            &[][..],
            &[END, 53, 0, 0, 0, 0],
            &[UNDEFINED, 0, 0, 0, 0, 53, 0, 0, 0, 0],
            &echo_off[..4],
        ] {
            let mut modes = terminal();
            apply(list, &mut modes);
            assert_eq!(describe(&modes), before, "{list:?}");
        }
        let mut modes = terminal();
        apply(&[&[80, 0, 0, 0, 1][..], &echo_off].concat(), &mut modes);
        assert!(
            !modes.local_modes.contains(LocalModes::ECHO),
            "80 is skipped"
        );
    }
}
