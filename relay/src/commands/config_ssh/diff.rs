//! The difference of two texts, in the unified format that `patch` reads.

use std::fmt::Write;

/// Lines shown around a change.
const CONTEXT: usize = 3;

/// What turns `old` into `new`; empty when they are the same. The names are those of the files.
pub(super) fn unified(name: &str, old: &[u8], new: &[u8]) -> String {
    let (old, new) = (lines(old), lines(new));
    let same = |(a, b): &(&&[u8], &&[u8])| a == b;
    let head = old.iter().zip(&new).take_while(same).count();
    let rest = old.len().min(new.len()) - head;
    let backwards = old.iter().rev().zip(new.iter().rev());
    let tail = backwards.take(rest).take_while(same).count();
    let (old_end, new_end) = (old.len() - tail, new.len() - tail);
    if head == old_end && head == new_end {
        return String::new();
    }
    let from = head.saturating_sub(CONTEXT);
    let until = tail.min(CONTEXT);
    let (old_count, new_count) = (old_end + until - from, new_end + until - from);
    let first = |count| if count == 0 { from } else { from + 1 };
    let mut text = format!(
        "--- {name}\n+++ {name}\n@@ -{},{old_count} +{},{new_count} @@\n",
        first(old_count),
        first(new_count)
    );
    let mut show = |sign: char, line: &[u8]| {
        let shown = String::from_utf8_lossy(line);
        // Writing to a string does not fail.
        let _ = match shown.strip_suffix('\n') {
            Some(line) => writeln!(text, "{sign}{line}"),
            None => write!(text, "{sign}{shown}\n\\ No newline at end of file\n"),
        };
    };
    old[from..head].iter().for_each(|line| show(' ', line));
    changes(&old[head..old_end], &new[head..new_end], &mut show);
    old[old_end..old_end + until]
        .iter()
        .for_each(|line| show(' ', line));
    text
}

fn lines(text: &[u8]) -> Vec<&[u8]> {
    text.split_inclusive(|byte| *byte == b'\n').collect()
}

/// Shows two runs of lines, by their longest common subsequence.
fn changes(old: &[&[u8]], new: &[&[u8]], show: &mut impl FnMut(char, &[u8])) {
    // common[i][j]: how many lines the runs from i and j on have in common.
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = match old[i] == new[j] {
                true => common[i + 1][j + 1] + 1,
                false => common[i + 1][j].max(common[i][j + 1]),
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            show(' ', old[i]);
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            show('-', old[i]);
            i += 1;
        } else {
            show('+', new[j]);
            j += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What `patch` makes of it: the changed lines and their context, put in place.
    fn apply(old: &[u8], diff: &str) -> Vec<u8> {
        if diff.is_empty() {
            return old.to_vec();
        }
        let old = lines(old);
        let mut hunk = diff.lines().skip(2).peekable();
        let numbers = hunk.next().unwrap();
        let first: usize = numbers[4..].split(',').next().unwrap().parse().unwrap();
        let mut new: Vec<u8> = old[..first.saturating_sub(1)].concat();
        let mut at = first.saturating_sub(1);
        while let Some(line) = hunk.next() {
            let (sign, body) = line.split_at(1);
            let unfinished = hunk.next_if(|line| line.starts_with('\\')).is_some();
            let line = [body, if unfinished { "" } else { "\n" }].concat();
            if sign != "+" {
                assert_eq!(old[at], line.as_bytes());
                at += 1;
            }
            if sign != "-" {
                new.extend_from_slice(line.as_bytes());
            }
        }
        new.extend_from_slice(&old[at..].concat());
        new
    }

    fn text() -> impl Strategy<Value = String> {
        (vec("[abc]{0,2}", 0..12), any::<bool>()).prop_map(|(lines, finished)| {
            let text = lines.join("\n");
            if finished && !text.is_empty() {
                text + "\n"
            } else {
                text
            }
        })
    }

    proptest! {
        #[test]
        fn a_difference_turns_one_text_into_the_other(old in text(), new in text()) {
            let diff = unified("x", old.as_bytes(), new.as_bytes());
            prop_assert_eq!(diff.is_empty(), old == new);
            prop_assert_eq!(apply(old.as_bytes(), &diff), new.as_bytes());
        }
    }

    #[test]
    fn a_change_is_shown_with_what_is_around_it() {
        let old = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
        let new = "1\n2\n3\n4\n5\nsix\n7\n8\n9\n";
        assert_eq!(
            unified("config", old.as_bytes(), new.as_bytes()),
            "--- config\n+++ config\n@@ -3,7 +3,7 @@\n 3\n 4\n 5\n-6\n+six\n 7\n 8\n 9\n"
        );
    }
}
