//! Which messages of a session were there already (RFC 6479).

const WORDS: usize = 128;
const WORD: u64 = u64::BITS as u64;
/// Counters that the window tells apart; a word less of them may overtake each other.
const BITS: u64 = WORDS as u64 * WORD;

/// The counters so far, as far as they are told apart.
pub(super) struct Window {
    /// One more than the greatest so far.
    next: u64,
    seen: [u64; WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self {
            next: 0,
            seen: [0; WORDS],
        }
    }
}

impl Window {
    /// How far a message may be behind the newest.
    const LATEST: u64 = BITS - WORD;

    pub(super) fn is_new(&self, counter: u64) -> bool {
        if counter >= self.next {
            return true;
        }
        let (word, bit) = Self::place(counter);
        self.next - counter <= Self::LATEST && self.seen[word] & bit == 0
    }

    /// Takes note of a counter that is new.
    pub(super) fn note(&mut self, counter: u64) {
        if counter >= self.next {
            let (first, last) = (self.next.div_ceil(WORD), counter / WORD);
            for word in first..=last.min(first.saturating_add(WORDS as u64 - 1)) {
                self.seen[(word % WORDS as u64) as usize] = 0;
            }
            self.next = counter + 1;
        }
        let (word, bit) = Self::place(counter);
        self.seen[word] |= bit;
    }

    fn place(counter: u64) -> (usize, u64) {
        let word = counter / WORD % WORDS as u64;
        (word as usize, 1 << (counter % WORD))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn takes(window: &mut Window, counter: u64) -> bool {
        let is_new = window.is_new(counter);
        if is_new {
            window.note(counter);
        }
        is_new
    }

    #[test]
    fn messages_may_overtake_each_other_by_8000_and_none_is_taken_twice() {
        let mut window = Window::default();
        assert!(takes(&mut window, 9_000));
        for counter in 9_001 - Window::LATEST..9_000 {
            assert!(takes(&mut window, counter), "{counter}");
            assert!(!takes(&mut window, counter), "{counter}");
        }
        assert!(!takes(&mut window, 9_000 - Window::LATEST));
        const { assert!(Window::LATEST > 8_000) };
    }

    #[test]
    fn a_leap_forgets_what_was() {
        let mut window = Window::default();
        for counter in [0, 63, 64, 8_191, 8_192, 1 << 40, u64::MAX - (1 << 14)] {
            assert!(takes(&mut window, counter), "{counter}");
            assert!(!takes(&mut window, counter), "{counter}");
        }
        assert!(takes(&mut window, u64::MAX - (1 << 14) - 5));
        assert!(!takes(&mut window, 1 << 40));
    }

    proptest! {
        #[test]
        fn it_takes_what_a_set_of_the_newest_would(
            steps in proptest::collection::vec((0..4u8, 0..9_000u64), 1..400)
        ) {
            let mut window = Window::default();
            let mut seen = std::collections::HashSet::new();
            let mut next = 0;
            for (kind, step) in steps {
                let counter = match kind {
                    0 => next + step,
                    1 => next + step % 70,
                    _ => u64::saturating_sub(next, step),
                };
                let is_near = counter >= next || next - counter <= Window::LATEST;
                let wanted = is_near && seen.insert(counter);
                prop_assert_eq!(takes(&mut window, counter), wanted, "{} at {}", counter, next);
                next = next.max(counter + 1);
            }
        }
    }
}
