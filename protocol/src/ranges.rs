//! A set of numbers, stored as ranges: its size depends on its gaps, not on how many numbers it has.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::{Add, Range, Sub};

/// The number types that a set can hold: `u32` and `u64`.
pub trait Number: Copy + Ord + Add<Output = Self> + Sub<Output = Self> + Into<u64> {
    /// 1.
    const ONE: Self;
    /// The highest number. No set contains it, because a range ends one past its last number.
    const MAX: Self;
}

impl Number for u32 {
    const ONE: Self = 1;
    const MAX: Self = Self::MAX;
}

impl Number for u64 {
    const ONE: Self = 1;
    const MAX: Self = Self::MAX;
}

/// A value that is summed over the ranges of a set.
pub trait Measure<T> {
    /// The value of one range, which is not empty.
    fn of(range: &Range<T>) -> u64;
}

/// Measures nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nothing;

impl<T> Measure<T> for Nothing {
    fn of(_: &Range<T>) -> u64 {
        0
    }
}

/// A set of numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet<T, M = Nothing> {
    /// First number → one past the last. Ranges neither touch nor overlap.
    ranges: BTreeMap<T, T>,
    len: u64,
    measured: u64,
    measure: PhantomData<M>,
}

impl<T, M> Default for RangeSet<T, M> {
    fn default() -> Self {
        Self { ranges: BTreeMap::new(), len: 0, measured: 0, measure: PhantomData }
    }
}

impl<T: Number, M: Measure<T>> RangeSet<T, M> {
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

    /// How many ranges the set needs.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ranges.len()
    }

    /// The sum of the measure `M` over all ranges.
    #[must_use]
    pub fn measured(&self) -> u64 {
        self.measured
    }

    /// Whether a number is in the set.
    #[must_use]
    pub fn contains(&self, number: T) -> bool {
        self.end_of(number).is_some()
    }

    /// Whether every number of `range` is in the set. True for an empty range.
    #[must_use]
    pub fn covers(&self, range: Range<T>) -> bool {
        range.is_empty() || self.end_of(range.start).is_some_and(|end| end >= range.end)
    }

    /// One past the last number of the range that contains `at`. None: `at` is not in the set.
    #[must_use]
    pub fn end_of(&self, at: T) -> Option<T> {
        let (_, &end) = self.ranges.range(..=at).next_back()?;
        (at < end).then_some(end)
    }

    /// The last range of the set.
    #[must_use]
    pub fn last(&self) -> Option<Range<T>> {
        self.ranges.last_key_value().map(|(&start, &end)| start..end)
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<T>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    /// Adds a number. False: it was there already, or is [`Number::MAX`].
    pub fn add(&mut self, number: T) -> bool {
        let is_new = number < T::MAX && !self.contains(number);
        if is_new {
            self.insert(number..number + T::ONE);
        }
        is_new
    }

    /// Removes a number. False: it was not there.
    pub fn take(&mut self, number: T) -> bool {
        let is_there = self.contains(number);
        if is_there {
            self.remove(number..number + T::ONE);
        }
        is_there
    }

    /// Adds a range.
    pub fn insert(&mut self, range: Range<T>) {
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

    /// Removes a range.
    pub fn remove(&mut self, range: Range<T>) {
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

    /// The parts of `range` that are in the set, in order.
    #[must_use]
    pub fn within(&self, range: Range<T>) -> Vec<Range<T>> {
        let parts = self.touching(&range).map(|(s, e)| s.max(range.start)..e.min(range.end));
        parts.filter(|part| !part.is_empty()).collect()
    }

    /// The parts of `range` that are not in the set, in order.
    #[must_use]
    pub fn gaps(&self, range: Range<T>) -> Vec<Range<T>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        for (start, end) in self.touching(&range) {
            if at < start {
                gaps.push(at..start);
            }
            at = at.max(end);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// The ranges that begin before the end of `range`, starting with the last one that begins at or before its start.
    fn touching(&self, range: &Range<T>) -> impl Iterator<Item = (T, T)> + '_ {
        let from = self.ranges.range(..=range.start).next_back().map_or(range.start, |(&start, _)| start);
        let end = range.end;
        self.ranges.range(from..).map(|(&s, &e)| (s, e)).take_while(move |(s, _)| *s < end)
    }

    fn put_range(&mut self, start: T, end: T) {
        self.ranges.insert(start, end);
        self.len += (end - start).into();
        self.measured += M::of(&(start..end));
    }

    fn drop_range(&mut self, start: T, end: T) {
        self.ranges.remove(&start);
        self.len -= (end - start).into();
        self.measured -= M::of(&(start..end));
    }
}

impl<T: Number, M: Measure<T>> FromIterator<Range<T>> for RangeSet<T, M> {
    fn from_iter<I: IntoIterator<Item = Range<T>>>(ranges: I) -> Self {
        let mut set = Self::new();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod tests;
