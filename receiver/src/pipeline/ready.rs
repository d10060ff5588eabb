//! Blocks that are complete, on their way to who stores them: in the order of the object, so that each is hashed from its
//! buffer. Where symbols are lost blocks are complete in another order, and what is stored before its turn has to be read back.
//!
//! A block that comes before its turn waits for those before it, but not for long, and only while few wait: those may never come.

use std::collections::VecDeque;
use std::time::Duration;

use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::time::Time;
use checkvalve_protocol::wire::ObjectKind;

/// How long a block waits for its turn. Where blocks share the wire, one is complete every 0.6 ms at 5 Gbit/s.
const PATIENCE: Duration = Duration::from_millis(20);
/// Blocks that wait at most; then the first of them has its turn.
const MOST: usize = 16;
/// Bundles whose turn is known; the one that had a block longest ago is forgotten.
const BUNDLES: usize = 8;

/// Which block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub bundle: BundleId,
    pub kind: ObjectKind,
    pub sbn: u32,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<T> {
    /// This one has its turn.
    Take(T),
    /// None has, for so long; forever where none is here.
    Wait(Duration),
}

/// Blocks that are complete, in the order in which they came to be so.
pub(super) struct Ready<T> {
    blocks: VecDeque<(Time, Place, T)>,
    /// Of each bundle, the SBN after the highest that had its turn. The one that had one last comes last.
    turns: VecDeque<(BundleId, u32)>,
}

impl<T> Default for Ready<T> {
    fn default() -> Self {
        Self { blocks: VecDeque::new(), turns: VecDeque::new() }
    }
}

impl<T> Ready<T> {
    /// A block is complete at `now`.
    pub(super) fn push(&mut self, now: Time, place: Place, block: T) {
        self.blocks.push_back((now, place, block));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// The block whose turn it is. `hurry`: order matters less than to have them gone.
    pub(super) fn next(&mut self, now: Time, hurry: bool) -> Next<T> {
        let Some((since, _, _)) = self.blocks.front() else { return Next::Wait(Duration::MAX) };
        let waited = now.since(*since);
        let first = (0..self.blocks.len()).find(|&at| self.is_next(at));
        let at = match first {
            Some(at) => at,
            None if hurry || waited >= PATIENCE || self.blocks.len() > MOST => self.lowest(0),
            None => return Next::Wait(PATIENCE.saturating_sub(waited)),
        };
        self.take(at)
    }

    /// Whether the block at `at` need not wait for another.
    fn is_next(&self, at: usize) -> bool {
        let (_, place, _) = &self.blocks[at];
        if place.kind != ObjectKind::Data {
            return true;
        }
        match self.turns.iter().find(|(bundle, _)| *bundle == place.bundle) {
            Some((_, next)) => place.sbn <= *next,
            // The first to come: where a bundle begins depends on what is here of it already.
            None => true,
        }
    }

    /// Of the bundle that the block at `at` is of, the first block of the data.
    fn lowest(&self, at: usize) -> usize {
        let bundle = self.blocks[at].1.bundle;
        let same =
            self.blocks.iter().enumerate().filter(|(_, (_, p, _))| p.bundle == bundle && p.kind == ObjectKind::Data);
        same.min_by_key(|(_, (_, place, _))| place.sbn).map_or(at, |(at, _)| at)
    }

    fn take(&mut self, at: usize) -> Next<T> {
        let Some((_, place, block)) = self.blocks.remove(at) else { return Next::Wait(Duration::ZERO) };
        if place.kind == ObjectKind::Data {
            let known = self.turns.iter().position(|(bundle, _)| *bundle == place.bundle);
            let before = known.and_then(|at| self.turns.remove(at)).map_or(0, |(_, next)| next);
            if self.turns.len() >= BUNDLES {
                self.turns.pop_front();
            }
            self.turns.push_back((place.bundle, before.max(place.sbn.saturating_add(1))));
        }
        Next::Take(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time(ms * 1_000_000)
    }

    fn push(ready: &mut Ready<(u64, u32)>, ms: u64, bundle: u64, sbn: u32) {
        ready.push(at(ms), Place { bundle: BundleId(bundle), kind: ObjectKind::Data, sbn }, (bundle, sbn));
    }

    /// The SBNs that have their turn at `ms`.
    fn taken(ready: &mut Ready<(u64, u32)>, ms: u64) -> Vec<(u64, u32)> {
        let next = || match ready.next(at(ms), false) {
            Next::Take(block) => Some(block),
            Next::Wait(_) => None,
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn in_order_none_waits() {
        let mut ready = Ready::default();
        for sbn in 5..9 {
            push(&mut ready, 0, 1, sbn);
            assert_eq!(taken(&mut ready, 0), [(1, sbn)]);
        }
    }

    #[test]
    fn one_that_comes_before_its_turn_waits_for_those_before_it() {
        let mut ready = Ready::default();
        push(&mut ready, 0, 1, 0);
        assert_eq!(taken(&mut ready, 0), [(1, 0)]);
        push(&mut ready, 1, 1, 3);
        push(&mut ready, 2, 1, 2);
        assert_eq!(taken(&mut ready, 2), []);
        assert_eq!(ready.next(at(2), false), Next::Wait(Duration::from_millis(19)));
        push(&mut ready, 3, 1, 1);
        assert_eq!(taken(&mut ready, 3), [(1, 1), (1, 2), (1, 3)]);
    }

    #[test]
    fn what_never_comes_is_not_waited_for_long() {
        let mut ready = Ready::default();
        push(&mut ready, 0, 1, 0);
        taken(&mut ready, 0);
        push(&mut ready, 10, 1, 4);
        push(&mut ready, 11, 1, 2);
        push(&mut ready, 12, 1, 3);
        assert_eq!(taken(&mut ready, 29), []);
        assert_eq!(taken(&mut ready, 30), [(1, 2), (1, 3), (1, 4)], "in their order all the same");
        // Late, it does not wait.
        push(&mut ready, 31, 1, 1);
        assert_eq!(taken(&mut ready, 31), [(1, 1)]);
    }

    #[test]
    fn many_do_not_wait_nor_who_is_in_a_hurry() {
        let mut ready = Ready::default();
        push(&mut ready, 0, 1, 0);
        taken(&mut ready, 0);
        for sbn in (2..20).rev() {
            push(&mut ready, 0, 1, sbn);
        }
        assert_eq!(taken(&mut ready, 0).len(), 18, "the first goes, and then the others are in order");
        push(&mut ready, 0, 1, 40);
        assert_eq!(taken(&mut ready, 0), []);
        assert_eq!(ready.next(at(0), true), Next::Take((1, 40)));
    }

    #[test]
    fn a_bundle_does_not_wait_for_another() {
        let mut ready = Ready::default();
        push(&mut ready, 0, 1, 0);
        taken(&mut ready, 0);
        push(&mut ready, 0, 1, 2);
        push(&mut ready, 0, 2, 0);
        ready.push(at(0), Place { bundle: BundleId(1), kind: ObjectKind::Hashes, sbn: 9 }, (1, 9));
        assert_eq!(taken(&mut ready, 0), [(2, 0), (1, 9)]);
        assert_eq!(ready.next(at(0), true), Next::Take((1, 2)));
        // Of more bundles than are remembered, each begins where it will.
        for bundle in 3..20 {
            push(&mut ready, 0, bundle, 7);
            assert_eq!(taken(&mut ready, 0), [(bundle, 7)]);
        }
        assert_eq!(ready.turns.len(), BUNDLES);
    }
}
