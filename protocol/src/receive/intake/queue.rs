//! Blocks that are complete, on their way to who stores them: in the order of the object, so that each is hashed from its
//! buffer. Where symbols are lost blocks are complete in another order, and what is stored before its turn has to be read back.
//!
//! A block that comes before its turn waits for those before it, but not for long, and only while few wait: those may never come.
//!
//! Keys take turns: however many blocks of one key's bundles wait, those of another's wait for one of them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use crate::id::{BundleId, KeyTag};
use crate::time::Time;
use crate::wire::ObjectKind;

/// How long a block waits for its turn. Where blocks share the wire, one is complete every 0.6 ms at 5 Gbit/s.
const PATIENCE: Duration = Duration::from_millis(20);
/// Blocks that wait at most; then the first of them has its turn. No more are looked at.
const MOST: usize = 16;
/// Keys whose bundles' turns are remembered while nothing of them waits.
const KEYS: usize = 16;
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

/// The queue of each key, by whose turn it is.
pub(super) struct StoreQueues<T> {
    /// None: of bundles that nobody signed for.
    of: BTreeMap<Option<KeyTag>, StoreQueue<T>>,
    /// Who had a turn last.
    last: Option<KeyTag>,
    len: usize,
}

impl<T> Default for StoreQueues<T> {
    fn default() -> Self {
        Self { of: BTreeMap::new(), last: None, len: 0 }
    }
}

impl<T> StoreQueues<T> {
    /// A block of a bundle of this signer is complete at `now`.
    pub(super) fn push(&mut self, now: Time, signer: Option<KeyTag>, key: BlockKey, block: T) {
        if !self.of.contains_key(&signer) && self.of.len() >= KEYS {
            self.of.retain(|_, queue| queue.len() > 0);
        }
        self.of.entry(signer).or_default().push(now, key, block);
        self.len += 1;
    }

    /// Blocks that wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The block whose turn it is: of the signer after the one that had a turn last, if one of its own has its turn.
    pub(super) fn next(&mut self, now: Time, hurry: bool) -> Turn<T> {
        let mut wait = Duration::MAX;
        let after = (Bound::Excluded(self.last), Bound::Unbounded);
        let before = (Bound::Unbounded, Bound::Included(self.last));
        for signers in [after, before] {
            for (&signer, queue) in self.of.range_mut(signers) {
                match queue.next(now, hurry) {
                    Turn::Take(block) => {
                        (self.last, self.len) = (signer, self.len - 1);
                        return Turn::Take(block);
                    }
                    Turn::Wait(its) => wait = wait.min(its),
                }
            }
        }
        Turn::Wait(wait)
    }
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
        let first = (0..self.blocks.len().min(MOST + 1)).find(|&at| self.is_next(at));
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
            .take(MOST + 1)
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
    fn keys_take_turns_however_much_of_one_waits() {
        let mut queues = StoreQueues::default();
        let push = |queues: &mut StoreQueues<(u64, u32)>, key: u32, sbn: u32| {
            let bundle = u64::from(key) << 8;
            let place = BlockKey { bundle: BundleId(bundle), kind: ObjectKind::Data, sbn };
            queues.push(at(0), Some(BundleId(key.into()).tag()), place, (bundle, sbn));
        };
        // Any order but their own.
        (0..50_000).for_each(|n| push(&mut queues, 1, n * 7_919 % 50_000));
        let next = |queues: &mut StoreQueues<(u64, u32)>| match queues.next(at(0), false) {
            Turn::Take((bundle, _)) => bundle >> 8,
            Turn::Wait(wait) => panic!("{wait:?}"),
        };
        assert_eq!([next(&mut queues), next(&mut queues)], [1, 1]);
        (0..3).for_each(|sbn| push(&mut queues, 2, sbn));
        assert_eq!(std::array::from_fn(|_| next(&mut queues)), [2, 1, 2, 1, 2, 1, 1]);
        assert_eq!(queues.len(), 50_000 + 3 - 2 - 7);
        // Those of whom nothing waits are forgotten when there are too many.
        for key in 10..100 {
            push(&mut queues, key, 0);
            while queues.of[&Some(BundleId(key.into()).tag())].len() > 0 {
                next(&mut queues);
            }
        }
        assert!(queues.of.len() <= KEYS, "{}", queues.of.len());
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
