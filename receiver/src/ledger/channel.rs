//! One channel: which bundle has which sequence, which sequences are missing, and whose turn it is.

use std::collections::BTreeMap;
use std::ops::{RangeBounds, RangeInclusive};

use checkvalve_protocol::id::{BundleId, KeyId};
use checkvalve_protocol::limits::MAX_JUMP;
use serde::{Deserialize, Serialize};

use super::{Entry, State};
use crate::ranges::Ranges;

/// The sequences of a channel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Channel {
    /// The bundles that claim each sequence. Once one of them is published, it comes first.
    slots: BTreeMap<u64, Vec<BundleId>>,
    /// Sequences above `floor` that are over and have no known bundle: given up, or forgotten while an older one is open.
    over: Ranges,
    /// The first expected sequence. Earlier ones are never missing. None: nothing is expected yet.
    baseline: Option<u64>,
    /// The last sequence that went to the hook. Earlier ones may no longer go there.
    passed: u64,
    /// Every sequence up to this one is over and forgotten.
    floor: u64,
    /// The newest sequence that the sender has mentioned.
    newest: u64,
    /// The highest sequence whose transmission has begun.
    begun: u64,
    /// When each missing sequence began to hold up later ones, in Unix milliseconds.
    missing_since: BTreeMap<u64, u64>,
    /// How many sequences were left after the last complete pruning.
    kept: usize,
    /// Its hook runs.
    running: bool,
    /// See [`Channel::opened_by`].
    opened_by: Option<KeyId>,
}

/// What a channel has to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Run the hook for this bundle.
    Run(BundleId),
    /// Wait until this time, in Unix milliseconds.
    Wait(u64),
    /// Wait until this sequence arrives or is given up.
    Blocked(u64),
    /// Nothing.
    Idle,
}

/// The saved state of a channel, in this layout (`ledger/record.rs` says how it may change). The slots follow from the entries.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Saved {
    pub(super) baseline: Option<u64>,
    pub(super) passed: u64,
    pub(super) floor: u64,
    pub(super) newest: u64,
    pub(super) begun: u64,
    /// First and last of each range of `over`.
    pub(super) rejected: Vec<(u64, u64)>,
    pub(super) opened_by: Option<KeyId>,
}

impl Channel {
    /// The key whose bundle made it. None: the config names it, or it is not known.
    pub(super) fn opened_by(&self) -> Option<KeyId> {
        self.opened_by
    }

    /// Notes the key whose bundle made it.
    pub(super) fn open(&mut self, key: Option<KeyId>) {
        self.opened_by = key;
    }

    /// The bundle that has a sequence, or is the first to claim it.
    #[must_use]
    pub fn slot(&self, sequence: u64) -> Option<&BundleId> {
        self.slots.get(&sequence)?.first()
    }

    /// All bundles that claim a sequence.
    #[must_use]
    pub fn claims(&self, sequence: u64) -> &[BundleId] {
        self.slots.get(&sequence).map(Vec::as_slice).unwrap_or_default()
    }

    /// Each sequence in a range with each bundle that claims it, in order.
    pub fn slots(&self, range: impl RangeBounds<u64>) -> impl DoubleEndedIterator<Item = (u64, BundleId)> + '_ {
        self.slots.range(range).flat_map(|(&sequence, ids)| ids.iter().map(move |&id| (sequence, id)))
    }

    /// All sequences that have a known bundle, in order, with all bundles that claim them.
    pub(super) fn all_claims(&self) -> impl Iterator<Item = (u64, &[BundleId])> {
        self.slots.iter().map(|(&sequence, ids)| (sequence, ids.as_slice()))
    }

    /// How many sequences have a known bundle.
    pub(super) fn known(&self) -> usize {
        self.slots.len()
    }

    /// How many sequences were left after the last complete pruning.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    /// Notes that pruning is complete.
    pub(super) fn keep(&mut self) {
        self.kept = self.slots.len();
    }

    #[cfg(test)]
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// How many ranges of sequences above the floor are over.
    pub(super) fn ranges(&self) -> usize {
        self.over.count()
    }

    /// The newest sequence that the sender has mentioned; 0: none.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// The last sequence that went to the hook; 0: none.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// The first expected sequence.
    #[must_use]
    pub fn baseline(&self) -> Option<u64> {
        self.baseline
    }

    /// Whether a sequence was given up, or is old and forgotten.
    #[must_use]
    pub fn is_over(&self, sequence: u64) -> bool {
        sequence <= self.floor || self.over.covers(sequence..sequence.saturating_add(1))
    }

    /// Whether a sequence is missing if it does not arrive.
    #[must_use]
    pub fn is_expected(&self, sequence: u64) -> bool {
        self.baseline.is_some_and(|baseline| sequence >= baseline) && !self.is_over(sequence)
    }

    /// Notes that the sender has mentioned sequences up to `newest`. If no sequence is expected yet, those from `first_pending`
    /// on are expected from now on (None: those after `newest`).
    pub fn hear(&mut self, newest: u64, first_pending: Option<u64>) {
        self.newest = self.newest.max(newest);
        if self.baseline.is_none() {
            self.baseline = Some(first_pending.unwrap_or(newest.saturating_add(1)));
        }
    }

    /// Notes that a sequence is, or was, on the wire.
    pub fn on_wire(&mut self, sequence: u64) {
        self.begun(sequence);
        if self.baseline.is_none() {
            self.baseline = Some(sequence);
        }
    }

    /// Notes that a sequence was on the wire before the ledger was damaged: sequences from it on are expected.
    pub(super) fn relearn(&mut self, sequence: u64) {
        self.begun(sequence);
        self.baseline = Some(self.baseline.map_or(sequence, |baseline| baseline.min(sequence)));
    }

    /// Whether a sequence is implausibly far above the newest.
    #[must_use]
    pub fn is_jump(&self, sequence: u64) -> bool {
        self.newest > 0 && sequence > self.newest.saturating_add(MAX_JUMP)
    }

    /// Notes that an operator confirms sequences up to this one.
    pub(super) fn allow(&mut self, sequence: u64) {
        self.newest = self.newest.max(sequence);
    }

    /// Notes that the transmission of a sequence has begun at some time.
    pub fn begun(&mut self, sequence: u64) {
        self.newest = self.newest.max(sequence);
        self.begun = self.begun.max(sequence);
    }

    /// Notes that a sequence goes to the hook (or would, if there were one).
    pub fn pass(&mut self, sequence: u64) {
        self.passed = self.passed.max(sequence);
        self.missing_since = self.missing_since.split_off(&self.passed);
    }

    /// Handles a clock that was set back to `now_ms`.
    pub(super) fn clock_went_back(&mut self, now_ms: u64) {
        self.missing_since.values_mut().for_each(|since| *since = now_ms.min(*since));
    }

    /// Gives up the sequences in a range that have no known bundle, and returns the last of them.
    pub fn reject(&mut self, sequences: RangeInclusive<u64>) -> Option<u64> {
        let gaps = self.gaps(*sequences.start(), usize::MAX);
        let gaps = gaps.into_iter().filter(|(first, _)| first <= sequences.end());
        let gaps: Vec<_> = gaps.map(|(first, last)| first..last.min(*sequences.end()).saturating_add(1)).collect();
        gaps.iter().for_each(|gap| self.over.insert(gap.clone()));
        gaps.last().map(|gap| gap.end.saturating_sub(1))
    }

    /// Gives up the sequences in a range that have no known bundle, even those that were never transmitted.
    pub fn give_up(&mut self, sequences: &RangeInclusive<u64>) {
        self.over.insert(*sequences.start()..sequences.end().saturating_add(1));
        for (&known, _) in self.slots.range(sequences.clone()) {
            self.over.remove(known..known.saturating_add(1));
        }
    }

    /// Whether its hook runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running
    }

    pub(super) fn set_running(&mut self, running: bool) {
        self.running = running;
    }

    /// Gives a failed bundle another turn.
    pub fn turn_back(&mut self, sequence: u64) {
        self.passed = self.passed.min(sequence);
    }

    /// The first `most` ranges, from sequence `from` on, of sequences that were transmitted and have no known bundle.
    #[must_use]
    pub fn gaps(&self, from: u64, most: usize) -> Vec<(u64, u64)> {
        let Some(baseline) = self.baseline else { return Vec::new() };
        let mut at = from.max(baseline).max(self.floor.saturating_add(1));
        if at > self.begun {
            return Vec::new();
        }
        let end = self.begun.saturating_add(1);
        let mut known: Vec<(u64, u64)> = self.slots.range(at..end).map(|(&n, _)| (n, n.saturating_add(1))).collect();
        known.extend(self.over.within(at..end).into_iter().map(|range| (range.start, range.end)));
        known.sort_unstable();
        known.push((end, end));
        let mut gaps = Vec::new();
        for (first, after) in known {
            if gaps.len() >= most {
                break;
            }
            if at < first {
                gaps.push((at, first.saturating_sub(1)));
            }
            at = at.max(after);
        }
        gaps
    }

    /// Whose turn it is. `entry` looks a bundle up. `wait_ms` is how long to wait for a missing bundle (None: for ever).
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
        for (&sequence, ids) in self.slots.range(first..) {
            while let Some(&&(start, _)) = gaps.peek().filter(|gap| gap.0 < sequence) {
                gaps.next();
                if waits(*self.missing_since.entry(start).or_insert(now_ms)) {
                    return Next::Blocked(start);
                }
            }
            let entries = || ids.iter().filter_map(|&id| entry(id));
            if let Some(whole) = entries().find(|e| matches!(e.state(), State::Complete | State::Installing)) {
                let later = whole.state() == State::Installing && whole.not_before_ms > now_ms;
                return if later { Next::Wait(whole.not_before_ms) } else { Next::Run(whole.id) };
            }
            if entries().any(|e| e.is_published()) {
                continue; // the other bundles that claim the sequence will not get it
            }
            let holds_up = |e: &Entry| match e.state() {
                State::Receiving => true,
                State::Incomplete | State::Missing => waits(e.changed_ms),
                _ => false,
            };
            if entries().any(holds_up) {
                return Next::Blocked(sequence);
            }
        }
        Next::Idle
    }

    /// The state to save.
    #[must_use]
    pub fn to_saved(&self) -> Saved {
        Saved {
            baseline: self.baseline,
            passed: self.passed,
            floor: self.floor,
            newest: self.newest,
            begun: self.begun,
            rejected: self.over.iter().map(|range| (range.start, range.end.saturating_sub(1))).collect(),
            opened_by: self.opened_by,
        }
    }

    /// Restores a channel from its saved state, without slots.
    #[must_use]
    pub fn from_saved(saved: Saved) -> Self {
        Self {
            baseline: saved.baseline,
            passed: saved.passed,
            floor: saved.floor,
            newest: saved.newest,
            begun: saved.begun,
            over: saved.rejected.into_iter().map(|(first, last)| first..last.saturating_add(1)).collect(),
            opened_by: saved.opened_by,
            ..Self::default()
        }
    }

    pub(super) fn set_slot(&mut self, sequence: u64, id: BundleId) {
        let ids = self.slots.entry(sequence).or_default();
        if !ids.contains(&id) {
            ids.push(id);
        }
        self.newest = self.newest.max(sequence);
    }

    /// Puts the bundle first, because it has won the sequence.
    pub(super) fn win_slot(&mut self, sequence: u64, id: BundleId) {
        let ids = self.slots.entry(sequence).or_default();
        ids.retain(|other| *other != id);
        ids.insert(0, id);
    }

    pub(super) fn clear_slot(&mut self, sequence: u64, id: BundleId) {
        if let Some(ids) = self.slots.get_mut(&sequence) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.slots.remove(&sequence);
            }
        }
    }

    /// Forgets a sequence, and the missing ones just before it: all of them are over. Returns the bundles that claimed it.
    pub(super) fn forget(&mut self, sequence: u64) -> Vec<BundleId> {
        let ids = self.slots.remove(&sequence).unwrap_or_default();
        let before = self.slots.range(..sequence).next_back().map(|(&known, _)| known);
        // Back to the next older known sequence. Earlier calls handled what is older than that, or it is still remembered.
        let first = before.unwrap_or(self.floor).max(self.floor).saturating_add(1);
        self.over.insert(first..sequence.saturating_add(1));
        if let Some(end) = self.over.end_of(self.floor.saturating_add(1)) {
            self.floor = end.saturating_sub(1);
            self.over.remove(0..end);
        }
        ids
    }
}
