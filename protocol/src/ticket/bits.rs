//! Bits in a row, the most significant of each value first, and integers of which small ones are short.

/// Bits on their way out; a label for each field if somebody wants to read along.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bits: Vec<bool>,
    labels: Option<Vec<(usize, String)>>,
}

impl Writer {
    /// Keeps what [`Writer::label`] says.
    pub(super) fn labelled() -> Self {
        Self { bits: Vec::new(), labels: Some(Vec::new()) }
    }

    /// Says what the bits since the last label mean.
    pub(super) fn label(&mut self, what: impl FnOnce() -> String) {
        if let Some(labels) = &mut self.labels {
            labels.push((self.bits.len(), what()));
        }
    }

    /// The lowest `width` bits of `value`, at most 64.
    pub(super) fn put(&mut self, value: u64, width: u32) {
        self.bits.extend((0..width).rev().map(|bit| value.checked_shr(bit).is_some_and(|v| v & 1 == 1)));
    }

    /// Exp-Golomb code of order `order`: see `SPEC.md`. `value` is not 2⁶⁴ − 1 when the order is 0.
    pub(super) fn put_golomb(&mut self, value: u64, order: u32) {
        let high = value.checked_shr(order).unwrap_or(0).saturating_add(1);
        self.put(0, high.ilog2());
        self.put(high, high.ilog2().saturating_add(1));
        self.put(value, order);
    }

    /// The bits, and the labels with the number of bits up to each.
    pub(super) fn finish(self) -> (Vec<bool>, Vec<(usize, String)>) {
        (self.bits, self.labels.unwrap_or_default())
    }
}

/// How many bits [`Writer::put_golomb`] writes.
pub(super) fn golomb_len(value: u64, order: u32) -> u64 {
    let high = value.checked_shr(order).unwrap_or(0).saturating_add(1);
    u64::from(high.ilog2()).saturating_mul(2).saturating_add(1).saturating_add(order.into())
}

/// The order from 0 to `highest` with which these values take the fewest bits; the lowest of those.
pub(super) fn best_order(values: &[u64], highest: u32) -> u32 {
    let len = |order: &u32| values.iter().fold(0_u64, |sum, &value| sum.saturating_add(golomb_len(value, *order)));
    (0..=highest).min_by_key(len).unwrap_or(0)
}

/// Bits on their way in. Everything is `None` once they are at their end.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bits: &'a [bool],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bits: &'a [bool]) -> Self {
        Self { bits }
    }

    /// How many bits are left.
    pub(super) fn left(&self) -> usize {
        self.bits.len()
    }

    /// A value of `width` bits, at most 64.
    pub(super) fn get(&mut self, width: u32) -> Option<u64> {
        let (taken, rest) = self.bits.split_at_checked(usize::try_from(width).ok()?)?;
        self.bits = rest;
        Some(taken.iter().fold(0, |value, &bit| value << 1 | u64::from(bit)))
    }

    /// What [`Writer::put_golomb`] wrote.
    pub(super) fn get_golomb(&mut self, order: u32) -> Option<u64> {
        let zeros = self.bits.iter().position(|&bit| bit)?;
        let width = u32::try_from(zeros).ok().filter(|&zeros| zeros < 64)?;
        self.get(width)?;
        let high = self.get(width.checked_add(1)?)?.checked_sub(1)?;
        let low = self.get(order)?;
        // The order's bits of `high` must be free for `low`.
        let shifted = high.checked_shl(order)?;
        (shifted.checked_shr(order)? == high).then_some(shifted | low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_as_written() {
        let values = [0, 1, 2, 3, 7, 8, 250, 1_000, u64::from(u32::MAX), u64::MAX / 2, u64::MAX - 1];
        for order in 0..=31 {
            let mut writer = Writer::default();
            values.iter().for_each(|&value| writer.put_golomb(value, order));
            let (bits, _) = writer.finish();
            let expected: u64 = values.iter().map(|&value| golomb_len(value, order)).sum();
            assert_eq!(bits.len() as u64, expected);
            let mut reader = Reader::new(&bits);
            assert!(values.iter().all(|&value| reader.get_golomb(order) == Some(value)));
            assert_eq!((reader.left(), reader.get(1), reader.get(0)), (0, None, Some(0)));
        }
    }

    #[test]
    fn codes_are_as_specified() {
        let code = |value, order| {
            let mut writer = Writer::default();
            writer.put_golomb(value, order);
            writer.finish().0.iter().map(|&bit| if bit { '1' } else { '0' }).collect::<String>()
        };
        let cases = [(0, 0, "1"), (1, 0, "010"), (2, 0, "011"), (3, 0, "00100"), (5, 2, "01001"), (3, 2, "111")];
        for (value, order, bits) in cases {
            assert_eq!(code(value, order), bits, "{value} {order}");
        }
    }

    #[test]
    fn bits_that_are_no_number() {
        assert_eq!(Reader::new(&[false; 200]).get_golomb(0), None);
        assert_eq!(Reader::new(&[]).get_golomb(5), None);
        let mut huge = vec![false; 63];
        huge.extend([true; 64 + 31]);
        assert_eq!(Reader::new(&huge).get_golomb(31), None, "does not fit 64 bits");
        assert_eq!(Reader::new(&huge).get_golomb(0), Some(u64::MAX - 1));
    }
}
