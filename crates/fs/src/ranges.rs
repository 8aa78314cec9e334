//! Sets of byte ranges.

use std::collections::BTreeMap;

/// A set of disjoint, non-adjacent, non-empty ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RangeSet {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds `[start, end)`, merging it with what it touches.
    pub(crate) fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut start, mut end) = (start, end);
        if let Some((&before, &before_end)) = self.ranges.range(..=start).next_back()
            && before_end >= start
        {
            start = before;
            end = end.max(before_end);
            self.ranges.remove(&before);
        }
        while let Some((&next, &next_end)) = self.ranges.range(start..=end).next() {
            end = end.max(next_end);
            self.ranges.remove(&next);
        }
        self.ranges.insert(start, end);
    }

    /// Takes everything from `start` on out of the set.
    pub(crate) fn truncate(&mut self, start: u64) {
        self.ranges.split_off(&start);
        if let Some(mut last) = self.ranges.last_entry()
            && *last.get() > start
        {
            *last.get_mut() = start;
        }
    }

    /// The ranges, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(&start, &end)| (start, end))
    }

    /// Whether `offset` is in the set, and where that stops being so.
    pub(crate) fn run_at(&self, offset: u64) -> (bool, u64) {
        if let Some((_, &end)) = self.ranges.range(..=offset).next_back()
            && end > offset
        {
            return (true, end);
        }
        let next = self.ranges.range(offset..).next().map_or(u64::MAX, |(&start, _)| start);
        (false, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_bitmap(
            steps in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..64), 1..40),
        ) {
            let mut set = RangeSet::default();
            let mut bits = [false; 64];
            for (insert, a, b) in steps {
                if insert {
                    set.insert(a, b);
                    for bit in a..b { bits[usize::try_from(bit).unwrap()] = true; }
                } else {
                    set.truncate(a);
                    for bit in a..64 { bits[usize::try_from(bit).unwrap()] = false; }
                }
            }
            for (index, bit) in bits.iter().enumerate() {
                let (inside, until) = set.run_at(index as u64);
                prop_assert_eq!(inside, *bit);
                let until = 64.min(usize::try_from(until).unwrap_or(64));
                prop_assert!(bits[index..until].iter().all(|later| later == bit));
            }
            let ranges: Vec<_> = set.iter().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
        }
    }
}
