//! Sets of bytes, and what they cost the disk.

use std::ops::Range;

use checkvalve_protocol::ranges::{Measure, RangeSet};

/// A set of byte offsets, which knows the pages that its ranges lie in; one in which several do counts for each.
pub type Ranges = RangeSet<u64, Pages>;

/// Bytes that a disk gives out at a time.
pub const PAGE: u64 = 4_096;

/// Counts pages of [`PAGE`] bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pages;

impl Measure<u64> for Pages {
    fn of(range: &Range<u64>) -> u64 {
        pages(range)
    }
}

/// How many pages of 4,096 bytes a range lies in.
#[must_use]
pub fn pages(range: &Range<u64>) -> u64 {
    if range.is_empty() { 0 } else { range.end.div_ceil(PAGE) - range.start / PAGE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_whole() {
        let set: Ranges = [0..1, 4_095..4_097, 8_192..12_288].into_iter().collect();
        assert_eq!(set.measured(), 1 + 2 + 1);
        assert_eq!((0..9_000).step_by(2).map(|n| n..n + 2).collect::<Ranges>().measured(), 3);
        assert_eq!(pages(&(5..5)), 0);
    }
}
