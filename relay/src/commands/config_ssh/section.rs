//! Where the section is in a file of OpenSSH's configuration, and the file with another one. Bytes
//! in, bytes out: what is outside the section is not read, and stays as it is.

/// The section's first line.
pub(super) const START: &str = "# ------------START-CODER-----------";
/// The section's last line.
pub(super) const END: &str = "# ------------END-CODER------------";

/// A file whose section cannot be told. Lines count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Mistake {
    /// It has no end.
    #[error(
        "the section that starts in line {0} has no line \"{END}\": add it where the section ends"
    )]
    NoEnd(usize),
    /// It has no start.
    #[error(
        "the section that ends in line {0} has no line \"{START}\": add it where the section starts"
    )]
    NoStart(usize),
    /// There are two.
    #[error("a second section starts in line {0}: remove one of them")]
    Second(usize),
}

/// A file, cut at the section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut<'a> {
    /// All before it; the whole file when there is none.
    pub(super) before: &'a [u8],
    /// The section with both of its marker lines.
    pub(super) section: Option<&'a [u8]>,
    /// All after it.
    pub(super) after: &'a [u8],
}

/// Finds the section.
pub(super) fn cut(file: &[u8]) -> Result<Cut<'_>, Mistake> {
    let (mut start, mut end) = (None, None);
    let mut at = 0;
    for (number, line) in file.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let number = number + 1;
        if is(line, START) {
            match (start, end) {
                (None, _) => start = Some((number, at)),
                (Some((first, _)), None) => return Err(Mistake::NoEnd(first)),
                (Some(_), Some(_)) => return Err(Mistake::Second(number)),
            }
        }
        at += line.len();
        if is(line, END) {
            if start.is_none() || end.is_some() {
                return Err(Mistake::NoStart(number));
            }
            end = Some(at);
        }
    }
    match (start, end) {
        (Some((_, start)), Some(end)) => Ok(Cut {
            before: &file[..start],
            section: Some(&file[start..end]),
            after: &file[end..],
        }),
        (Some((number, _)), None) => Err(Mistake::NoEnd(number)),
        (None, _) => Ok(Cut {
            before: file,
            section: None,
            after: &[],
        }),
    }
}

fn is(line: &[u8], marker: &str) -> bool {
    line.trim_ascii_end() == marker.as_bytes()
}

/// The file with this section in place of its own, or at its end when it has none.
pub(super) fn put(file: &[u8], section: &str) -> Result<Vec<u8>, Mistake> {
    let cut = cut(file)?;
    let mut put = cut.before.to_vec();
    if !put.is_empty() && put.last() != Some(&b'\n') {
        put.push(b'\n');
    }
    put.extend_from_slice(section.as_bytes());
    put.extend_from_slice(cut.after);
    Ok(put)
}

/// The file without the section.
pub(super) fn remove(file: &[u8]) -> Result<Vec<u8>, Mistake> {
    let cut = cut(file)?;
    Ok([cut.before, cut.after].concat())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn section(body: &str) -> String {
        format!("{START}\n{body}{END}\n")
    }

    /// Lines that are no markers, with any bytes in them, the last of them perhaps unfinished.
    fn lines() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            vec(any::<u8>(), 0..30),
            Just(b"Host *".to_vec()),
            Just(b"\tForwardAgent yes\r".to_vec()),
            Just(b"# ------------START-CODER---".to_vec()),
            Just(b"  # ------------END-CODER------------".to_vec()),
            Just("# ------------START-CODER----------- nearly".into()),
        ];
        (vec(line, 0..8), any::<bool>()).prop_map(|(lines, finished)| {
            let mut file = Vec::new();
            for mut line in lines {
                line.retain(|byte| *byte != b'\n');
                file.extend_from_slice(&line);
                file.push(b'\n');
            }
            if !finished {
                file.pop();
            }
            file
        })
    }

    proptest! {
        #[test]
        fn what_is_outside_the_section_stays(before in lines(), after in lines(), body in "[ -~\n]{0,40}") {
            prop_assume!(cut(&before).is_ok_and(|cut| cut.section.is_none()));
            prop_assume!(cut(&after).is_ok_and(|cut| cut.section.is_none()));
            let mut before = before;
            if before.last().is_some_and(|byte| *byte != b'\n') {
                before.push(b'\n');
            }
            let (old, new) = (section("old\n"), section(&format!("{body}\n")));
            let file = [&before, old.as_bytes(), &after].concat();
            let expected = [&before, new.as_bytes(), &after].concat();
            prop_assert_eq!(put(&file, &new).unwrap(), expected);
            prop_assert_eq!(remove(&file).unwrap(), [before, after].concat());
        }

        #[test]
        fn to_put_the_same_section_twice_is_to_put_it_once(file in lines(), body in "[ -~\n]{0,40}") {
            let new = section(&format!("{body}\n"));
            let Ok(once) = put(&file, &new) else { return Ok(()); };
            prop_assert_eq!(put(&once, &new).unwrap(), once);
        }

        #[test]
        fn to_remove_undoes_to_put(file in lines()) {
            prop_assume!(cut(&file).is_ok_and(|cut| cut.section.is_none()));
            let mut finished = file.clone();
            if finished.last().is_some_and(|byte| *byte != b'\n') {
                finished.push(b'\n');
            }
            let put = put(&file, &section("Host coder.*\n")).unwrap();
            prop_assert_eq!(remove(&put).unwrap(), finished);
            prop_assert_eq!(remove(&file).unwrap(), file);
        }

        #[test]
        fn any_bytes_are_cut_into_the_same_bytes(file in vec(any::<u8>(), 0..200)) {
            if let Ok(cut) = cut(&file) {
                let whole = [cut.before, cut.section.unwrap_or_default(), cut.after].concat();
                prop_assert_eq!(whole, file);
            }
        }
    }

    #[test]
    fn a_section_that_cannot_be_told_is_refused() {
        let whole = section("x\n");
        for (file, mistake) in [
            (format!("a\n{START}\nb\n"), Mistake::NoEnd(2)),
            (format!("a\n{END}\nb\n"), Mistake::NoStart(2)),
            (format!("{START}\n{START}\n{END}\n"), Mistake::NoEnd(1)),
            (format!("{whole}{END}\n"), Mistake::NoStart(4)),
            (format!("{whole}b\n{whole}"), Mistake::Second(5)),
            (format!("{END}\n{START}\n"), Mistake::NoStart(1)),
        ] {
            assert_eq!(cut(file.as_bytes()), Err(mistake), "{file}");
            assert_eq!(put(file.as_bytes(), &whole), Err(mistake));
            assert_eq!(remove(file.as_bytes()), Err(mistake));
        }
    }

    #[test]
    fn markers_are_found_before_line_ends_of_other_systems_and_at_the_end_of_the_file() {
        let file = format!("a\r\n{START}\r\nx\r\n{END}");
        let cut = cut(file.as_bytes()).unwrap();
        assert_eq!(cut.before, b"a\r\n");
        assert!(cut.after.is_empty());
        let put = put(file.as_bytes(), &section("")).unwrap();
        assert_eq!(put, [b"a\r\n", section("").as_bytes()].concat());
    }
}
