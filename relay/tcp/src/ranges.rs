//! Sets of positions, kept as ranges that neither touch nor overlap: what arrived out of order, and
//! what the peer said it holds.

use std::collections::BTreeMap;

/// A set of positions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ranges {
    /// Start and end (exclusive) of each range.
    map: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds `start..end` and tells `new` each part of it that was not in the set before, in order.
    pub(crate) fn insert(&mut self, start: u64, end: u64, mut new: impl FnMut(u64, u64)) {
        if start >= end {
            return;
        }
        let (mut low, mut high, mut at) = (start, end, start);
        if let Some((&from, &to)) = self.map.range(..=start).next_back()
            && to >= start
        {
            low = from;
            at = at.max(to);
            if to >= end {
                return;
            }
            high = high.max(to);
        }
        while let Some((&from, &to)) = self.map.range(start..).next() {
            if from > end {
                break;
            }
            if from > at {
                new(at, from);
            }
            at = at.max(to);
            high = high.max(to);
            self.map.remove(&from);
        }
        if at < end {
            new(at, end);
        }
        self.map.insert(low, high);
    }

    /// Takes everything below `position` out of the set.
    pub(crate) fn remove_below(&mut self, position: u64) {
        while let Some((&start, &end)) = self.map.first_key_value() {
            if start >= position {
                return;
            }
            self.map.remove(&start);
            if end > position {
                self.map.insert(position, end);
                return;
            }
        }
    }

    /// Takes out the lowest range if it begins at or below `position`, and returns its end.
    pub(crate) fn take_reaching(&mut self, position: u64) -> Option<u64> {
        let (&start, &end) = self.map.first_key_value()?;
        if start > position {
            return None;
        }
        self.map.remove(&start);
        Some(end)
    }

    /// The range that holds `position`.
    pub(crate) fn around(&self, position: u64) -> Option<(u64, u64)> {
        let (&start, &end) = self.map.range(..=position).next_back()?;
        (end > position).then_some((start, end))
    }

    /// Whether all of `start..end` is in the set.
    pub(crate) fn covers(&self, start: u64, end: u64) -> bool {
        self.around(start).is_some_and(|(_, to)| to >= end)
    }

    /// The ranges from the highest down.
    pub(crate) fn downwards(&self) -> impl Iterator<Item = (u64, u64)> {
        self.map.iter().rev().map(|(&start, &end)| (start, end))
    }

    /// One past the highest position in the set.
    #[cfg(test)]
    pub(crate) fn end(&self) -> Option<u64> {
        self.map.last_key_value().map(|(_, &end)| end)
    }

    /// Number of ranges.
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.map.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn members(ranges: &Ranges) -> BTreeSet<u64> {
        ranges.map.iter().flat_map(|(&a, &b)| a..b).collect()
    }

    proptest! {
        #[test]
        fn ranges_are_a_set(steps in prop::collection::vec((0u64..60, 0u64..20, any::<bool>()), 1..40)) {
            let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
            for (start, length, add) in steps {
                if add {
                    let mut new = BTreeSet::new();
                    ranges.insert(start, start + length, |a, b| new.extend(a..b));
                    let fresh = (start..start + length).filter(|at| !model.contains(at));
                    prop_assert_eq!(new, fresh.collect::<BTreeSet<_>>());
                    model.extend(start..start + length);
                } else {
                    ranges.remove_below(start);
                    model = model.split_off(&start);
                }
                prop_assert_eq!(members(&ranges), model.clone());
                let pairs: Vec<_> = ranges.map.iter().collect();
                prop_assert!(pairs.windows(2).all(|pair| pair[0].1 < pair[1].0));
                prop_assert!(ranges.end() == model.last().map(|last| last + 1));
                let whole = (start..start + length.max(1)).all(|at| model.contains(&at));
                prop_assert_eq!(ranges.covers(start, start + length.max(1)), whole);
            }
        }
    }
}
