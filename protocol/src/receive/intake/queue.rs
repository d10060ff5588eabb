//! Blocks that are complete, on their way to who stores them: in the order of the object, so that each is hashed from its
//! buffer. Where symbols are lost blocks are complete in another order, and what is stored before its turn has to be read back.
//!
//! A block that comes before its turn waits for those before it, but not for long, and only while few wait: those may never come.

use std::collections::VecDeque;
use std::time::Duration;

use crate::id::BundleId;
use crate::time::Time;
use crate::wire::ObjectKind;

/// How long a block waits for its turn. Where blocks share the wire, one is complete every 0.6 ms at 5 Gbit/s.
const PATIENCE: Duration = Duration::from_millis(20);
/// Blocks that wait at most; then the first of them has its turn.
const MOST: usize = 16;
/// Bundles whose turn is known; the one that had a block longest ago is forgotten.
const BUNDLES: usize = 8;

/// Which block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockKey {
    pub bundle: BundleId,
    pub kind: ObjectKind,
    pub sbn: u32,
}

/// Whose turn it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn<T> {
    /// This one's.
    Take(T),
    /// Nobody's, for so long; forever where none is here.
    Wait(Duration),
}

/// Blocks that are complete, in the order in which they came to be so.
pub(super) struct StoreQueue<T> {
    blocks: VecDeque<(Time, BlockKey, T)>,
    /// Of each bundle, the SBN after the highest that had its turn. The one that had one last comes last.
    turns: VecDeque<(BundleId, u32)>,
}

impl<T> Default for StoreQueue<T> {
    fn default() -> Self {
        Self { blocks: VecDeque::new(), turns: VecDeque::new() }
    }
}

impl<T> StoreQueue<T> {
    /// A block is complete at `now`.
    pub(super) fn push(&mut self, now: Time, key: BlockKey, block: T) {
        self.blocks.push_back((now, key, block));
    }

    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// The block whose turn it is. `hurry`: order matters less than to have them gone.
    pub(super) fn next(&mut self, now: Time, hurry: bool) -> Turn<T> {
        let Some((since, _, _)) = self.blocks.front() else { return Turn::Wait(Duration::MAX) };
        let waited = now.since(*since);
        let first = (0..self.blocks.len()).find(|&at| self.is_next(at));
        let at = match first {
            Some(at) => at,
            None if hurry || waited >= PATIENCE || self.blocks.len() > MOST => self.lowest(0),
            None => return Turn::Wait(PATIENCE.saturating_sub(waited)),
        };
        self.take(at)
    }

    /// Whether the block at `at` need not wait for another.
    fn is_next(&self, at: usize) -> bool {
        let (_, key, _) = &self.blocks[at];
        if key.kind != ObjectKind::Data {
            return true;
        }
        match self.turns.iter().find(|(bundle, _)| *bundle == key.bundle) {
            Some((_, next)) => key.sbn <= *next,
            // The first to come: where a bundle begins depends on what is here of it already.
            None => true,
        }
    }

    /// Where the lowest data block of a bundle is in the queue: of the bundle that the block at `at` belongs to.
    fn lowest(&self, at: usize) -> usize {
        let bundle = self.blocks[at].1.bundle;
        let same = self
            .blocks
            .iter()
            .enumerate()
            .filter(|(_, (_, key, _))| key.bundle == bundle && key.kind == ObjectKind::Data);
        same.min_by_key(|(_, (_, key, _))| key.sbn).map_or(at, |(at, _)| at)
    }

    fn take(&mut self, at: usize) -> Turn<T> {
        let Some((_, key, block)) = self.blocks.remove(at) else { return Turn::Wait(Duration::ZERO) };
        if key.kind == ObjectKind::Data {
            let known = self.turns.iter().position(|(bundle, _)| *bundle == key.bundle);
            let before = known.and_then(|at| self.turns.remove(at)).map_or(0, |(_, next)| next);
            if self.turns.len() >= BUNDLES {
                self.turns.pop_front();
            }
            self.turns.push_back((key.bundle, before.max(key.sbn.saturating_add(1))));
        }
        Turn::Take(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time(ms * 1_000_000)
    }

    fn push(queue: &mut StoreQueue<(u64, u32)>, ms: u64, bundle: u64, sbn: u32) {
        queue.push(at(ms), BlockKey { bundle: BundleId(bundle), kind: ObjectKind::Data, sbn }, (bundle, sbn));
    }

    /// The SBNs that have their turn at `ms`.
    fn taken(queue: &mut StoreQueue<(u64, u32)>, ms: u64) -> Vec<(u64, u32)> {
        let next = || match queue.next(at(ms), false) {
            Turn::Take(block) => Some(block),
            Turn::Wait(_) => None,
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn in_order_none_waits() {
        let mut queue = StoreQueue::default();
        for sbn in 5..9 {
            push(&mut queue, 0, 1, sbn);
            assert_eq!(taken(&mut queue, 0), [(1, sbn)]);
        }
    }

    #[test]
    fn one_that_comes_before_its_turn_waits_for_those_before_it() {
        let mut queue = StoreQueue::default();
        push(&mut queue, 0, 1, 0);
        assert_eq!(taken(&mut queue, 0), [(1, 0)]);
        push(&mut queue, 1, 1, 3);
        push(&mut queue, 2, 1, 2);
        assert_eq!(taken(&mut queue, 2), []);
        assert_eq!(queue.next(at(2), false), Turn::Wait(Duration::from_millis(19)));
        push(&mut queue, 3, 1, 1);
        assert_eq!(taken(&mut queue, 3), [(1, 1), (1, 2), (1, 3)]);
    }

    #[test]
    fn what_never_comes_is_not_waited_for_long() {
        let mut queue = StoreQueue::default();
        push(&mut queue, 0, 1, 0);
        taken(&mut queue, 0);
        push(&mut queue, 10, 1, 4);
        push(&mut queue, 11, 1, 2);
        push(&mut queue, 12, 1, 3);
        assert_eq!(taken(&mut queue, 29), []);
        assert_eq!(taken(&mut queue, 30), [(1, 2), (1, 3), (1, 4)], "in their order all the same");
        // Late, it does not wait.
        push(&mut queue, 31, 1, 1);
        assert_eq!(taken(&mut queue, 31), [(1, 1)]);
    }

    #[test]
    fn many_do_not_wait_nor_who_is_in_a_hurry() {
        let mut queue = StoreQueue::default();
        push(&mut queue, 0, 1, 0);
        taken(&mut queue, 0);
        for sbn in (2..20).rev() {
            push(&mut queue, 0, 1, sbn);
        }
        assert_eq!(taken(&mut queue, 0).len(), 18, "the first goes, and then the others are in order");
        push(&mut queue, 0, 1, 40);
        assert_eq!(taken(&mut queue, 0), []);
        assert_eq!(queue.next(at(0), true), Turn::Take((1, 40)));
    }

    #[test]
    fn a_bundle_does_not_wait_for_another() {
        let mut queue = StoreQueue::default();
        push(&mut queue, 0, 1, 0);
        taken(&mut queue, 0);
        push(&mut queue, 0, 1, 2);
        push(&mut queue, 0, 2, 0);
        queue.push(at(0), BlockKey { bundle: BundleId(1), kind: ObjectKind::Hashes, sbn: 9 }, (1, 9));
        assert_eq!(taken(&mut queue, 0), [(2, 0), (1, 9)]);
        assert_eq!(queue.next(at(0), true), Turn::Take((1, 2)));
        // Of more bundles than are remembered, each begins where it will.
        for bundle in 3..20 {
            push(&mut queue, 0, bundle, 7);
            assert_eq!(taken(&mut queue, 0), [(bundle, 7)]);
        }
        assert_eq!(queue.turns.len(), BUNDLES);
    }
}
