//! One channel: which bundle has which sequence, what is missing, and whose turn it is.

use std::collections::{BTreeMap, BTreeSet};

use checkvalve_protocol::id::BundleId;
use serde::{Deserialize, Serialize};

use super::{Entry, State};

/// The order of a channel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Channel {
    slots: BTreeMap<u64, BundleId>,
    /// Sequences given up without anything known of them.
    rejected: BTreeSet<u64>,
    /// The first sequence that is missed if it does not come; None: nothing was on the wire yet.
    baseline: Option<u64>,
    /// The last sequence that went to the hook: earlier ones may not any more.
    passed: u64,
    /// All sequences up to this one are over and forgotten.
    floor: u64,
    /// The newest sequence that the sender has spoken of.
    newest: u64,
    /// The highest sequence whose transmission has begun.
    begun: u64,
    /// Since when a missing sequence holds up others, in Unix milliseconds.
    missing_since: BTreeMap<u64, u64>,
    /// How many slots only beacons vouch for.
    pub(super) heard_only: usize,
}

/// What a channel has to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// This bundle's hook.
    Run(BundleId),
    /// Nothing before this moment, in Unix milliseconds.
    Wait(u64),
    /// Nothing before something becomes of this sequence.
    Blocked(u64),
    /// Nothing.
    Idle,
}

/// What of a channel is written down; the slots follow from the entries.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Saved {
    baseline: Option<u64>,
    passed: u64,
    floor: u64,
    newest: u64,
    begun: u64,
    rejected: Vec<u64>,
}

impl Channel {
    /// The bundle that has a sequence.
    #[must_use]
    pub fn slot(&self, sequence: u64) -> Option<&BundleId> {
        self.slots.get(&sequence)
    }

    /// All sequences that a bundle is known for, in order.
    pub fn slots(&self) -> impl DoubleEndedIterator<Item = (u64, BundleId)> + '_ {
        self.slots.iter().map(|(&sequence, &id)| (sequence, id))
    }

    /// The newest sequence that the sender has spoken of; 0: none.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// The last sequence that went to the hook; 0: none.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// The first sequence that is missed if it does not come.
    #[must_use]
    pub fn baseline(&self) -> Option<u64> {
        self.baseline
    }

    /// Whether a sequence was given up, or is so old that it is forgotten.
    #[must_use]
    pub fn is_over(&self, sequence: u64) -> bool {
        sequence <= self.floor || self.rejected.contains(&sequence)
    }

    /// Whether a sequence is missed if it does not come.
    #[must_use]
    pub fn is_expected(&self, sequence: u64) -> bool {
        self.baseline.is_some_and(|baseline| sequence >= baseline) && !self.is_over(sequence)
    }

    /// The sender has spoken of sequences up to `newest`. If it is the first time and nothing was on the wire yet,
    /// what begins at `first_pending` is expected from now on.
    pub fn hear(&mut self, newest: u64, first_pending: Option<u64>) {
        self.newest = self.newest.max(newest);
        if self.baseline.is_none() {
            self.baseline = Some(first_pending.unwrap_or(newest.saturating_add(1)));
        }
    }

    /// A sequence is, or was, on the wire.
    pub fn on_wire(&mut self, sequence: u64) {
        self.begun(sequence);
        if self.baseline.is_none() {
            self.baseline = Some(sequence);
        }
    }

    /// A sequence was on the wire before what is known of this channel: it was expected from there on.
    pub(super) fn relearn(&mut self, sequence: u64) {
        self.begun(sequence);
        self.baseline = Some(self.baseline.map_or(sequence, |baseline| baseline.min(sequence)));
    }

    /// The transmission of a sequence has begun, at whatever time.
    pub fn begun(&mut self, sequence: u64) {
        self.newest = self.newest.max(sequence);
        self.begun = self.begun.max(sequence);
    }

    /// A sequence goes to the hook (or would, if there were one).
    pub fn pass(&mut self, sequence: u64) {
        self.passed = self.passed.max(sequence);
        self.missing_since = self.missing_since.split_off(&self.passed);
    }

    /// The clock was set back to `now_ms`.
    pub(super) fn clock_went_back(&mut self, now_ms: u64) {
        self.missing_since.values_mut().for_each(|since| *since = now_ms.min(*since));
    }

    /// Gives up a sequence of which nothing is known.
    pub fn reject(&mut self, sequence: u64) {
        self.rejected.insert(sequence);
    }

    /// The ranges of sequences that were transmitted and of which nothing at all is known, from sequence `from` on, the
    /// first `most` of them.
    #[must_use]
    pub fn gaps(&self, from: u64, most: usize) -> Vec<(u64, u64)> {
        let Some(baseline) = self.baseline else { return Vec::new() };
        let mut at = from.max(baseline).max(self.floor.saturating_add(1));
        if at > self.begun {
            return Vec::new();
        }
        let mut known: Vec<u64> = self.slots.range(at..=self.begun).map(|(&sequence, _)| sequence).collect();
        known.extend(self.rejected.range(at..=self.begun));
        known.sort_unstable();
        known.push(self.begun.saturating_add(1));
        let mut gaps = Vec::new();
        for sequence in known {
            if gaps.len() >= most {
                break;
            }
            if at < sequence {
                gaps.push((at, sequence - 1));
            }
            at = at.max(sequence.saturating_add(1));
        }
        gaps
    }

    /// Whose turn it is. `entry` finds a bundle; `wait_ms` is how long a missing one is waited for (None: for ever).
    pub fn next<'a>(
        &mut self,
        entry: impl Fn(BundleId) -> Option<&'a Entry>,
        now_ms: u64,
        wait_ms: Option<u64>,
    ) -> Next {
        let waits = |since: u64| wait_ms.is_none_or(|wait| since.saturating_add(wait) > now_ms);
        let first = self.passed.max(self.floor.saturating_add(1));
        let gaps = self.gaps(first, usize::MAX);
        let mut gaps = gaps.iter().peekable();
        for (&sequence, &id) in self.slots.range(first..) {
            while let Some(&&(start, _)) = gaps.peek().filter(|gap| gap.0 < sequence) {
                gaps.next();
                if waits(*self.missing_since.entry(start).or_insert(now_ms)) {
                    return Next::Blocked(start);
                }
            }
            let Some(entry) = entry(id) else { continue };
            match entry.state {
                State::Complete => return Next::Run(id),
                State::Installing if entry.not_before_ms > now_ms => return Next::Wait(entry.not_before_ms),
                State::Installing => return Next::Run(id),
                State::Receiving => return Next::Blocked(sequence),
                State::Incomplete | State::Missing if waits(entry.changed_ms) => return Next::Blocked(sequence),
                _ => {}
            }
        }
        Next::Idle
    }

    /// What is written down.
    #[must_use]
    pub fn to_saved(&self) -> Saved {
        Saved {
            baseline: self.baseline,
            passed: self.passed,
            floor: self.floor,
            newest: self.newest,
            begun: self.begun,
            rejected: self.rejected.iter().copied().collect(),
        }
    }

    /// From what was written down, without slots.
    #[must_use]
    pub fn from_saved(saved: Saved) -> Self {
        Self {
            baseline: saved.baseline,
            passed: saved.passed,
            floor: saved.floor,
            newest: saved.newest,
            begun: saved.begun,
            rejected: saved.rejected.into_iter().collect(),
            ..Self::default()
        }
    }

    pub(super) fn set_slot(&mut self, sequence: u64, id: BundleId) {
        self.slots.insert(sequence, id);
        self.newest = self.newest.max(sequence);
    }

    pub(super) fn clear_slot(&mut self, sequence: u64, id: BundleId) {
        if self.slots.get(&sequence) == Some(&id) {
            self.slots.remove(&sequence);
        }
    }

    /// The oldest slot if there are more than `most`.
    pub(super) fn oldest_beyond(&self, most: usize) -> Option<(u64, BundleId)> {
        if self.slots.len() <= most {
            return None;
        }
        self.slots.first_key_value().map(|(&sequence, &id)| (sequence, id))
    }

    pub(super) fn raise_floor(&mut self, sequence: u64) {
        self.floor = self.floor.max(sequence);
        self.slots = self.slots.split_off(&self.floor.saturating_add(1));
        self.rejected = self.rejected.split_off(&self.floor.saturating_add(1));
    }
}
