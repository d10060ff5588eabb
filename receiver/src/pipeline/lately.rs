//! What was dropped over the last seconds: what comes now, and not what came since the start.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use checkvalve_protocol::receive::Drops;

/// How far back it looks, in milliseconds.
const SPAN_MS: u64 = 10_000;
/// How often it looks, in milliseconds.
const STEP_MS: u64 = 1_000;

/// Counts of a while ago, the oldest first.
#[derive(Default)]
pub(super) struct Lately(Mutex<VecDeque<(u64, Drops)>>);

impl Lately {
    /// Takes what was counted until now; `now_ms` is monotonic.
    pub(super) fn add(&self, now_ms: u64, drops: Drops) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.back().is_some_and(|(last, _)| now_ms < last + STEP_MS) {
            return;
        }
        all.push_back((now_ms, drops));
        while all.front().is_some_and(|(first, _)| first + SPAN_MS < now_ms) {
            all.pop_front();
        }
    }

    /// How many of each reason came since then, in the order of [`Drops::iter`].
    pub(super) fn since(&self, drops: &Drops) -> Drops {
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).front().map(|(_, drops)| *drops);
        let mut since = Drops::default();
        for ((reason, now), (_, before)) in drops.iter().zip(before.unwrap_or_default().iter()) {
            since.add_many(reason, now.saturating_sub(before));
        }
        since
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use checkvalve_protocol::receive::DropReason;

    #[test]
    fn what_came_long_ago_does_not_count() {
        let lately = Lately::default();
        let mut drops = Drops::default();
        drops.add_many(DropReason::Key, 7);
        assert_eq!(lately.since(&drops).get(DropReason::Key), 7, "all of it is new");
        for second in 0..30 {
            lately.add(second * 1_000, drops);
            drops.add(DropReason::Mode);
        }
        let since = lately.since(&drops);
        assert_eq!((since.get(DropReason::Key), since.get(DropReason::Mode)), (0, 11));
    }
}
