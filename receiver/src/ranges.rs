//! A set of byte offsets, kept as ranges: its size follows its gaps, not the bytes.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of `u64`, as ranges that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// First → one past the last.
    ranges: BTreeMap<u64, u64>,
    len: u64,
    pages: u64,
}

/// Bytes that a disk gives out at a time.
pub const PAGE: u64 = 4_096;

impl Ranges {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many numbers are in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many pages of 4,096 bytes the ranges lie in; one in which several do counts for each.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// How many ranges the set needs.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ranges.len()
    }

    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.drop_range(s, e);
            start = start.min(s);
            end = end.max(e);
        }
        self.put_range(start, end);
    }

    /// Takes a range out.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&s, &e)) = self.ranges.range(..range.end).next_back() {
            if e <= range.start {
                break;
            }
            self.drop_range(s, e);
            if s < range.start {
                self.put_range(s, range.start);
            }
            if range.end < e {
                self.put_range(range.end, e);
            }
        }
    }

    fn put_range(&mut self, start: u64, end: u64) {
        self.ranges.insert(start, end);
        self.len += end - start;
        self.pages += pages(&(start..end));
    }

    fn drop_range(&mut self, start: u64, end: u64) {
        self.ranges.remove(&start);
        self.len -= end - start;
        self.pages -= pages(&(start..end));
    }

    /// Whether every number of `range` is in the set; an empty range is.
    #[must_use]
    pub fn covers(&self, range: Range<u64>) -> bool {
        range.is_empty() || self.end_of(range.start).is_some_and(|end| end >= range.end)
    }

    /// One past the last number of the range that holds `at`. None: `at` is not in the set.
    #[must_use]
    pub fn end_of(&self, at: u64) -> Option<u64> {
        let (_, &end) = self.ranges.range(..=at).next_back()?;
        (at < end).then_some(end)
    }

    /// The last range of the set.
    #[must_use]
    pub fn last(&self) -> Option<Range<u64>> {
        self.ranges.last_key_value().map(|(&s, &e)| s..e)
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&s, &e)| s..e)
    }

    /// The parts of `range` that are in the set, in order.
    #[must_use]
    pub fn within(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let from = self.ranges.range(..=range.start).next_back().map_or(range.start, |(&s, _)| s);
        let cut = self.ranges.range(from..).take_while(|&(&s, _)| s < range.end);
        cut.map(|(&s, &e)| s.max(range.start)..e.min(range.end)).filter(|r| !r.is_empty()).collect()
    }

    /// The parts of `range` that are not in the set, in order.
    #[must_use]
    pub fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        let from = self.ranges.range(..=range.start).next_back().map_or(range.start, |(&s, _)| s);
        for (&s, &e) in self.ranges.range(from..) {
            if s >= range.end {
                break;
            }
            if at < s {
                gaps.push(at..s);
            }
            at = at.max(e);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }
}

/// How many pages of 4,096 bytes a range lies in.
#[must_use]
pub fn pages(range: &Range<u64>) -> u64 {
    if range.is_empty() { 0 } else { range.end.div_ceil(PAGE) - range.start / PAGE }
}

impl FromIterator<Range<u64>> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut set = Self::new();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn agrees_with_a_plain_set() {
        let mut state = 11_u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let (mut set, mut plain) = (Ranges::new(), BTreeSet::new());
        for _ in 0..6_000 {
            let start = next(60);
            let range = start..start + next(9);
            if next(2) == 0 {
                set.insert(range.clone());
                plain.extend(range);
            } else {
                set.remove(range.clone());
                plain.retain(|n| !range.contains(n));
            }
            assert_eq!(set.len(), plain.len() as u64);
            assert_eq!(set.pages(), set.iter().map(|r| pages(&r)).sum::<u64>());
            assert!(set.iter().flatten().eq(plain.iter().copied()));
            let probe = next(60)..next(70);
            let gaps: Vec<u64> = set.gaps(probe.clone()).into_iter().flatten().collect();
            assert!(gaps.iter().copied().eq(probe.clone().filter(|n| !plain.contains(n))), "{probe:?}");
            let inside: Vec<u64> = set.within(probe.clone()).into_iter().flatten().collect();
            assert!(inside.iter().copied().eq(probe.clone().filter(|n| plain.contains(n))), "{probe:?}");
            assert_eq!(set.covers(probe.clone()), probe.clone().all(|n| plain.contains(&n)), "{probe:?}");
            let mut touching = set.iter().zip(set.iter().skip(1));
            assert!(touching.all(|(a, b)| a.end < b.start), "ranges neither touch nor overlap");
        }
    }

    #[test]
    fn pages_are_whole() {
        let set: Ranges = [0..1, 4_095..4_097, 8_192..12_288].into_iter().collect();
        assert_eq!(set.pages(), 1 + 2 + 1);
        assert_eq!((0..9_000).step_by(2).map(|n| n..n + 2).collect::<Ranges>().pages(), 3);
        assert_eq!(pages(&(5..5)), 0);
    }
}
