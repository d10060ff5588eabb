//! What the link lost lately, in sixteen steps.

use std::fmt;

/// The share of datagrams that the link lost when a ticket was made, rounded up to one of few steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loss(u8);

/// Parts in a million, of the codes from 1 to 14; 15 is more than the last, 0 is unknown.
const STEPS: [u32; 14] =
    [0, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 50_000, 70_000, 100_000, 150_000, 200_000, 300_000, 500_000];

impl Loss {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self(0);

    /// So many datagrams of so many that were sent did not come. Unknown when none was sent.
    #[must_use]
    pub fn of(lost: u64, sent: u64) -> Self {
        if sent == 0 {
            return Self::UNKNOWN;
        }
        let (lost, sent) = (u128::from(lost).saturating_mul(1_000_000), u128::from(sent));
        let step = STEPS.iter().position(|&ppm| lost <= sent.saturating_mul(ppm.into())).unwrap_or(STEPS.len());
        Self(u8::try_from(step.saturating_add(1)).unwrap_or(15))
    }

    /// The most that was lost, in parts in a million: 1,000,000 when more than half was. `None`: unknown.
    #[must_use]
    pub fn at_most_ppm(self) -> Option<u32> {
        let step = self.0.checked_sub(1)?;
        Some(STEPS.get(usize::from(step)).copied().unwrap_or(1_000_000))
    }

    /// The code in a ticket, 0 to 15.
    pub(super) fn code(self) -> u64 {
        self.0.into()
    }

    pub(super) fn from_code(code: u64) -> Option<Self> {
        u8::try_from(code).ok().filter(|&code| code < 16).map(Self)
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at_most_ppm() {
            None => f.write_str("unknown"),
            Some(0) => f.write_str("none"),
            Some(1_000_000) => f.write_str("more than 50 %"),
            Some(ppm) if ppm < 10_000 => write!(f, "at most 0.{} %", ppm / 1_000),
            Some(ppm) => write!(f, "at most {} %", ppm / 10_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_is_rounded_up() {
        for (lost, sent, shown) in [
            (0, 0, "unknown"),
            (0, 9, "none"),
            (1, 1_000_000, "at most 0.1 %"),
            (1, 1_000, "at most 0.1 %"),
            (1_001, 1_000_000, "at most 0.2 %"),
            (3, 100, "at most 3 %"),
            (1, 2, "at most 50 %"),
            (6, 10, "more than 50 %"),
            (u64::MAX, 1, "more than 50 %"),
        ] {
            assert_eq!(Loss::of(lost, sent).to_string(), shown, "{lost} of {sent}");
        }
        for code in 0..16 {
            assert_eq!(Loss::from_code(code).unwrap().code(), code);
        }
        assert_eq!(Loss::from_code(16), None);
    }
}
