//! Several measurements of one thing.

/// The values of several repetitions, in the order in which they were measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series(pub Vec<f64>);

impl Series {
    /// The middle value; of an even number, the mean of the middle two. 0 of none.
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        match (sorted.len(), sorted.len() / 2) {
            (0, _) => 0.0,
            (len, half) if len % 2 == 0 => f64::midpoint(sorted[half - 1], sorted[half]),
            (_, half) => sorted[half],
        }
    }

    /// The smallest value. 0 of none.
    pub fn min(&self) -> f64 {
        self.sorted().first().copied().unwrap_or(0.0)
    }

    /// The largest value. 0 of none.
    pub fn max(&self) -> f64 {
        self.sorted().last().copied().unwrap_or(0.0)
    }

    /// Largest less smallest, as a share of the median; 0 where there is nothing to compare.
    pub fn spread(&self) -> f64 {
        let median = self.median();
        if median == 0.0 { 0.0 } else { (self.max() - self.min()) / median }
    }

    /// The value that `share` (0 to 1) of all are not above, by nearest rank. 0 of none.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a rank")]
    pub fn percentile(&self, share: f64) -> f64 {
        let sorted = self.sorted();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).or(sorted.last()).copied().unwrap_or(0.0)
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_spreads_and_percentiles() {
        let series = Series(vec![3.0, 1.0, 2.0, 10.0]);
        assert_eq!((series.median(), series.min(), series.max()), (2.5, 1.0, 10.0));
        assert_eq!(series.spread(), 3.6);
        assert_eq!(Series(vec![7.0]).median(), 7.0);
        assert_eq!((Series::default().median(), Series::default().spread()), (0.0, 0.0));
        let hundred = Series((1..=100).map(f64::from).collect());
        assert_eq!((hundred.percentile(0.5), hundred.percentile(0.99), hundred.percentile(1.0)), (50.0, 99.0, 100.0));
        assert_eq!(series.percentile(0.0), 1.0);
    }
}
