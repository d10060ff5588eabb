//! How long a disk takes.

use crate::rng::Rng;

/// How a machine's disk is at the moment.
#[derive(Clone, Copy, Default)]
pub(super) struct Pace {
    /// Nothing that waits for it goes on.
    pub(super) still: bool,
    /// Of 1,000 operations so many take long, while others go on.
    pub(super) late: u32,
}

impl Pace {
    /// How many nanoseconds an operation takes: nothing, or one millisecond to half a minute.
    pub(super) fn delay(self, rng: &mut Rng) -> Option<u64> {
        if self.late == 0 || !rng.chance(self.late) {
            return None;
        }
        let least = 1_000_000 << rng.below(15);
        Some(least + rng.below(least))
    }
}
