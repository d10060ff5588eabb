//! How long disk operations take.

use crate::rng::Rng;

/// How fast a machine's disk is at the moment.
#[derive(Clone, Copy, Default)]
pub(super) struct Pace {
    /// Nothing that waits for the disk makes progress.
    pub(super) still: bool,
    /// How many of 1,000 operations take long, while others continue.
    pub(super) late: u32,
}

impl Pace {
    /// How long to delay an operation, in nanoseconds: not at all, or by one millisecond to half a minute.
    pub(super) fn delay(self, rng: &mut Rng) -> Option<u64> {
        if self.late == 0 || !rng.chance(self.late) {
            return None;
        }
        let least = 1_000_000 << rng.below(15);
        Some(least + rng.below(least))
    }
}
