//! Everything the sender knows about bundles: one map, with one [`Record`] per bundle.
//!
//! A record holds the bundle's durable state (as in the [`Ledger`]), any newer state that the disk has not taken yet, how far the
//! bundle is on its way to the wire, and what happens to its content. An index answers questions about all bundles: which is due,
//! which sequences exist, which must be saved again. The index is derived from the records: every change goes through
//! [`Bundles::change`], and `assert_consistent` rebuilds the index and compares.

mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use checkvalve_host::disk::Disk;
use checkvalve_host::journal::Sync;
use checkvalve_protocol::beacon::Epoch;
use checkvalve_protocol::id::{BundleId, ChannelName};

pub(crate) use self::record::Announced;
use self::record::{ChannelKey, Key};
pub use self::record::{Claim, Content, Due, Kind, Ready, Record, Restoring, Stage, Submitted, Withdrawal};
use crate::ledger::{self, BundleRecord, Change, Damage, Ledger, LedgerError};

/// How many finished bundles (no longer held) are remembered per channel.
const REMEMBERED: usize = 1_000;
/// How many superseded records the journal may hold before it is rewritten.
const SUPERSEDED: usize = 2_000;

const FIRST: BundleId = BundleId(0);
const LAST: BundleId = BundleId(u64::MAX);

/// All bundles and channels.
pub struct Bundles {
    ledger: Ledger,
    records: BTreeMap<BundleId, Record>,
    channels: BTreeMap<ChannelName, Channel>,
    index: BTreeSet<Key>,
    /// Claims so far.
    claims: u64,
}

#[derive(Default, PartialEq, Debug)]
struct Channel {
    /// The newest sequence that the channel has given out.
    last: u64,
    index: BTreeSet<ChannelKey>,
}

impl Bundles {
    /// Opens the ledger at `path`, creating it if it is missing, and reports damage. Rewrites an undamaged older version.
    /// Errors: [`LedgerError::Journal`].
    pub fn open(disk: &Arc<dyn Disk>, path: &Path) -> Result<(Self, Damage), LedgerError> {
        let (ledger, changes, damage) = Ledger::open(disk, path)?;
        let mut bundles =
            Self { ledger, records: BTreeMap::new(), channels: BTreeMap::new(), index: BTreeSet::new(), claims: 0 };
        changes.into_iter().for_each(|change| bundles.apply(change));
        // A damaged ledger must still show its damage until the caller has repaired and rewritten it.
        if bundles.ledger.is_older() && !damage.is_real() {
            bundles.rewrite()?;
        }
        Ok((bundles, damage))
    }

    /// The newest epoch. None: none has begun.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.ledger.epoch()
    }

    /// Begins an epoch, durably. Does nothing if it is not newer than the present one. Errors: [`LedgerError::Journal`].
    pub fn begin_epoch(&mut self, epoch: Epoch) -> Result<(), LedgerError> {
        self.write(vec![Change::Epoch(epoch)], Sync::Yes)
    }

    /// Begins a session and returns its number: 1 for the first session of an epoch, then one more each time.
    /// Errors: [`LedgerError::Journal`] (the number is then still unused), [`LedgerError::Sessions`].
    pub fn begin_session(&mut self) -> Result<u64, LedgerError> {
        let number = self.ledger.next_session()?;
        self.write(vec![Change::Session(number)], Sync::Yes)?;
        Ok(number)
    }

    /// The sequence for the channel's next bundle. Calling this does not use it up. None: all sequences are used up.
    #[must_use]
    pub fn next_sequence(&self, channel: &ChannelName) -> Option<u64> {
        ledger::next(self.last_sequence(channel))
    }

    /// The newest sequence that a channel has given out; 0 before the first.
    #[must_use]
    pub fn last_sequence(&self, channel: &ChannelName) -> u64 {
        self.channels.get(channel).map_or(0, |c| c.last)
    }

    /// Never gives out a sequence up to `last` in `channel` again.
    #[cfg(test)]
    pub(crate) fn skip_to(&mut self, channel: &ChannelName, last: u64) -> Result<(), LedgerError> {
        self.write(vec![Change::Channel { name: channel.clone(), last }], Sync::Yes)
    }

    /// The ledger's clock: see [`Ledger::uptime_ms`].
    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        self.ledger.uptime_ms()
    }

    /// The time on that clock `ms` milliseconds from now.
    #[must_use]
    pub fn after(&self, ms: u64) -> u64 {
        self.uptime_ms().saturating_add(ms)
    }

    /// Advances that clock by `ms` milliseconds.
    pub fn run_for(&mut self, ms: u64) {
        self.ledger.run_for(ms);
    }

    /// Records the current time, for when nothing else has been written for a while. Errors: [`LedgerError::Journal`].
    pub fn write_uptime(&mut self) -> Result<(), LedgerError> {
        self.write(vec![Change::Uptime], Sync::No)
    }

    /// Everything known about a bundle.
    #[must_use]
    pub fn record(&self, id: BundleId) -> Option<&Record> {
        self.records.get(&id)
    }

    /// All records.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// A bundle's latest state, even if the disk has not taken it yet. None: the bundle is unknown, or only claimed.
    #[must_use]
    pub fn get(&self, id: BundleId) -> Option<&BundleRecord> {
        self.records.get(&id)?.latest()
    }

    /// The latest state of every bundle, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &BundleRecord> {
        self.records.values().filter_map(Record::latest)
    }

    /// The bundle that has a sequence in a channel.
    #[must_use]
    pub fn by_sequence(&self, channel: &ChannelName, sequence: u64) -> Option<&BundleRecord> {
        let all = ChannelKey::Sequence(sequence, FIRST)..=ChannelKey::Sequence(sequence, LAST);
        self.channel_ids(channel, all).next_back().and_then(|id| self.get(id))
    }

    /// The bundles of a channel that have a sequence, newest first.
    pub fn newest(&self, channel: &ChannelName) -> impl Iterator<Item = &BundleRecord> {
        let all = ChannelKey::Sequence(0, FIRST)..=ChannelKey::Sequence(u64::MAX, LAST);
        self.channel_ids(channel, all).rev().filter_map(|id| self.get(id))
    }

    /// Channels that have given out a sequence, or have a bundle.
    pub fn channels(&self) -> impl Iterator<Item = &ChannelName> {
        self.channels.keys()
    }

    /// Sets a bundle's state. With `Sync::Yes` the state is durable when this returns.
    /// Errors: [`LedgerError::Journal`]; the bundle then keeps its old state (after a failed sync, the new state may reappear
    /// after a crash).
    pub fn put(&mut self, bundle: BundleRecord, sync: Sync) -> Result<(), LedgerError> {
        self.put_all(vec![bundle], sync)
    }

    /// The same for several bundles at once: all of them change, or none.
    pub fn put_all(&mut self, bundles: Vec<BundleRecord>, sync: Sync) -> Result<(), LedgerError> {
        self.write(bundles.into_iter().map(|bundle| Change::Bundle(Box::new(bundle))).collect(), sync)
    }

    /// Keeps a state that the disk refused. It must be put again, and the bundle is not sent until it has been.
    pub fn remember_unsaved(&mut self, bundle: BundleRecord) {
        let id = bundle.id;
        self.ensure(id, &bundle);
        self.change(id, |record| record.set_unsaved(bundle));
    }

    /// Adds a claim, which waits to be planned after all earlier claims.
    pub fn claimed(&mut self, mut claim: Claim) {
        self.claims += 1;
        claim.turn = self.claims;
        let id = claim.home.id();
        let replaced = self.records.insert(id, Record::claimed(claim));
        assert!(replaced.is_none(), "an id is given once");
        self.enter(id);
    }

    /// The channel's oldest claim that waits to be planned. None while another of the channel's claims is being planned.
    #[must_use]
    pub fn next_claim(&self, channel: &ChannelName) -> Option<&Claim> {
        let index = &self.channels.get(channel)?.index;
        if index.range(ChannelKey::Planning(FIRST)..=ChannelKey::Planning(LAST)).next().is_some() {
            return None;
        }
        let first = index.range(ChannelKey::Claimed(0, FIRST)..=ChannelKey::Claimed(u64::MAX, LAST)).next()?;
        self.records.get(&first.id())?.claim()
    }

    /// Sets a bundle's stage and returns the old one. None: there is no such bundle.
    pub fn set_stage(&mut self, id: BundleId, stage: Stage) -> Option<Stage> {
        self.change(id, |record| record.set_stage(stage))
    }

    /// Takes a bundle's job back when it has ended. None: the pipeline has no job of this bundle.
    pub fn take_submitted(&mut self, id: BundleId) -> Option<Submitted> {
        match self.records.get(&id)?.stage() {
            Stage::Submitted(_) => match self.set_stage(id, Stage::Idle) {
                Some(Stage::Submitted(submitted)) => Some(submitted),
                _ => None,
            },
            _ => None,
        }
    }

    /// Sets what happens to a bundle's content.
    pub fn set_content(&mut self, id: BundleId, content: Content) {
        self.change(id, |record| record.set_content(content));
    }

    /// Sets the state of restoring a bundle.
    pub fn set_restoring(&mut self, id: BundleId, restoring: Restoring) {
        self.change(id, |record| record.set_restoring(restoring));
    }

    /// Postpones a bundle's next transmission until `until_ms`.
    pub fn wait(&mut self, id: BundleId, until_ms: u64) {
        self.change(id, |record| record.set_wait(Some(until_ms)));
    }

    /// Ends the waits that are over at `now_ms`.
    pub fn end_waits(&mut self, now_ms: u64) {
        let over = self.index.range(Key::Wait(0, FIRST)..=Key::Wait(now_ms, LAST)).map(Key::id);
        for id in over.collect::<Vec<_>>() {
            self.change(id, |record| record.set_wait(None));
        }
    }

    /// When the next wait ends.
    #[must_use]
    pub fn next_wait_ms(&self) -> Option<u64> {
        match self.index.range(Key::Wait(0, FIRST)..=Key::Wait(u64::MAX, LAST)).next() {
            Some(Key::Wait(until, _)) => Some(*until),
            _ => None,
        }
    }

    /// The channel's next bundle to send, whether it is due already or not.
    #[must_use]
    pub fn next_due(&self, channel: &ChannelName) -> Option<Due> {
        let all = ChannelKey::Due(Due::FIRST)..=ChannelKey::Due(Due::LAST);
        match self.channels.get(channel)?.index.range(all).next() {
            Some(ChannelKey::Due(due)) => Some(*due),
            _ => None,
        }
    }

    /// How many bundles of a channel are being loaded or are in the pipeline.
    #[must_use]
    pub fn under_way(&self, channel: &ChannelName) -> usize {
        self.channel_ids(channel, ChannelKey::UnderWay(FIRST)..=ChannelKey::UnderWay(LAST)).count()
    }

    /// Bundles whose job has not been seen on the wire yet.
    #[must_use]
    pub fn waiting(&self) -> Vec<BundleId> {
        self.ids(Key::Waiting(FIRST)..=Key::Waiting(LAST)).collect()
    }

    /// Notes that a bundle's job was seen on the wire.
    pub fn begun(&mut self, id: BundleId) {
        self.change(id, Record::set_begun);
    }

    /// Bundles that wait for nothing but their turn.
    pub fn ready(&self) -> impl DoubleEndedIterator<Item = (BundleId, &Ready)> {
        let ids = self.ids(Key::Ready(FIRST)..=Key::Ready(LAST));
        ids.filter_map(|id| Some((id, self.records.get(&id)?.ready()?)))
    }

    /// The latest states that the disk has not taken yet.
    #[must_use]
    pub fn unsaved(&self) -> Vec<BundleRecord> {
        let ids = self.ids(Key::Unsaved(FIRST)..=Key::Unsaved(LAST));
        ids.filter_map(|id| self.records.get(&id)?.unsaved().cloned()).collect()
    }

    /// Bundles to withdraw on the wire. Their failure is in the ledger already.
    #[must_use]
    pub fn withdrawing(&self) -> Vec<BundleId> {
        self.ids(Key::Withdrawing(FIRST)..=Key::Withdrawing(LAST)).collect()
    }

    /// Bundles whose content is to be moved to `.failed`.
    #[must_use]
    pub fn failing(&self) -> Vec<BundleId> {
        self.ids(Key::Failing(FIRST)..=Key::Failing(LAST)).collect()
    }

    /// At most `most` bundles whose leftover content is to be removed.
    #[must_use]
    pub fn leftover(&self, most: usize) -> Vec<BundleId> {
        self.ids(Key::Leftover(FIRST)..=Key::Leftover(LAST)).take(most).collect()
    }

    /// Whether the content of any bundle is being removed.
    #[must_use]
    pub fn is_removing(&self) -> bool {
        self.ids(Key::Removing(FIRST)..=Key::Removing(LAST)).next().is_some()
    }

    /// Bundles whose content may be dropped, the longest retained first.
    pub fn releasable(&self) -> impl Iterator<Item = &BundleRecord> {
        let all = Key::Releasable(0, 0, FIRST)..=Key::Releasable(u64::MAX, u64::MAX, LAST);
        self.ids(all).filter_map(|id| self.get(id))
    }

    /// Adds a bundle in memory only. The next [`Bundles::begin_anew`] or [`Bundles::rewrite`] makes it durable.
    pub fn remember(&mut self, bundle: BundleRecord) {
        self.apply(Change::Bundle(Box::new(bundle)));
    }

    /// Starts over from changed state: begins `epoch`, marks each channel's sequences up to `last` as used, and forgets bundles,
    /// whose sequences stay used up. When this returns, either all of this is durable or none of it.
    ///
    /// Errors: [`LedgerError::Journal`]. The state in memory then differs from the disk: drop this object.
    pub fn begin_anew(
        &mut self,
        epoch: Epoch,
        last: &BTreeMap<ChannelName, u64>,
        forgotten: &[BundleId],
    ) -> Result<(), LedgerError> {
        let last = last.iter().map(|(name, &last)| Change::Channel { name: name.clone(), last });
        let changes: Vec<_> = last.chain(forgotten.iter().copied().map(Change::Forget)).collect();
        changes.into_iter().for_each(|change| self.apply(change));
        let all = all(&self.channels, &self.records);
        self.ledger.begin_anew(epoch, all)
    }

    /// Forgets the oldest finished bundles, and rewrites the journal when most of its records are superseded.
    /// Errors: [`LedgerError::Journal`]; nothing is lost then.
    pub fn tidy(&mut self) -> Result<(), LedgerError> {
        let forgotten = self.forgettable();
        if !forgotten.is_empty() {
            self.write(forgotten.into_iter().map(Change::Forget).collect(), Sync::No)?;
        }
        let live = self.records.len() + self.channels.len() + 2;
        if self.ledger.lines() > 2 * live + SUPERSEDED { self.rewrite() } else { Ok(()) }
    }

    /// Rewrites the journal from the state in memory, which also repairs a damaged journal. Errors: [`LedgerError::Journal`].
    pub fn rewrite(&mut self) -> Result<(), LedgerError> {
        let all = all(&self.channels, &self.records);
        self.ledger.rewrite(all)
    }

    /// Rebuilds the index from the records and panics if it differs from the current one.
    pub fn assert_consistent(&self) {
        let mut index = BTreeSet::new();
        let mut channels: BTreeMap<&ChannelName, BTreeSet<ChannelKey>> = BTreeMap::new();
        for (id, record) in &self.records {
            assert!(!record.is_nothing(), "bundle {id} has an empty record");
            let (of_channel, of_all) = record.keys(*id);
            channels.entry(record.channel()).or_default().extend(of_channel);
            index.extend(of_all);
        }
        assert_eq!(self.index, index);
        for (name, channel) in &self.channels {
            assert_eq!(channel.index, channels.remove(name).unwrap_or_default(), "channel {name}");
        }
        assert!(channels.is_empty(), "{channels:?}");
    }

    fn write(&mut self, changes: Vec<Change>, sync: Sync) -> Result<(), LedgerError> {
        self.ledger.write(&changes, sync, || all(&self.channels, &self.records))?;
        changes.into_iter().for_each(|change| self.apply(change));
        Ok(())
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Session(_) | Change::Epoch(_) | Change::Uptime => {}
            Change::Channel { name, last } => {
                let channel = self.channels.entry(name).or_default();
                channel.last = channel.last.max(last);
            }
            Change::Bundle(bundle) => {
                let channel = self.channels.entry(bundle.channel.clone()).or_default();
                channel.last = channel.last.max(bundle.sequence.unwrap_or_default());
                let id = bundle.id;
                self.ensure(id, &bundle);
                self.change(id, |record| record.set_saved(Some(*bundle)));
            }
            Change::Forget(id) => drop(self.change(id, |record| record.set_saved(None))),
        }
    }

    fn ensure(&mut self, id: BundleId, bundle: &BundleRecord) {
        self.records.entry(id).or_insert_with(|| Record::new(bundle.channel.clone()));
    }

    /// Changes a record and updates the index. All changes go through here. None: there is no such bundle.
    fn change<T>(&mut self, id: BundleId, change: impl FnOnce(&mut Record) -> T) -> Option<T> {
        let record = self.records.get_mut(&id)?;
        let (old_channel, old) = record.keys(id);
        let answer = change(record);
        let channel = self.channels.entry(record.channel().clone()).or_default();
        for key in old_channel {
            channel.index.remove(&key);
        }
        for key in old {
            self.index.remove(&key);
        }
        if record.is_nothing() {
            self.records.remove(&id);
        } else {
            self.enter(id);
        }
        Some(answer)
    }

    fn enter(&mut self, id: BundleId) {
        let Some(record) = self.records.get(&id) else { return };
        let (of_channel, of_all) = record.keys(id);
        self.channels.entry(record.channel().clone()).or_default().index.extend(of_channel);
        self.index.extend(of_all);
    }

    fn channel_ids(
        &self,
        channel: &ChannelName,
        keys: RangeInclusive<ChannelKey>,
    ) -> impl DoubleEndedIterator<Item = BundleId> {
        let index = self.channels.get(channel).map(|channel| &channel.index);
        index.into_iter().flat_map(move |index| index.range(keys.clone())).map(ChannelKey::id)
    }

    fn ids(&self, keys: RangeInclusive<Key>) -> impl DoubleEndedIterator<Item = BundleId> {
        self.index.range(keys).map(Key::id)
    }

    fn forgettable(&self) -> Vec<BundleId> {
        let mut ids = Vec::new();
        let over = |id: &BundleId| self.records.get(id).is_some_and(Record::is_over);
        for name in self.channels.keys() {
            let numbered = ChannelKey::Sequence(0, FIRST)..=ChannelKey::Sequence(u64::MAX, LAST);
            let refused = ChannelKey::Refused(0, FIRST)..=ChannelKey::Refused(u64::MAX, LAST);
            for keys in [numbered, refused] {
                let over: Vec<_> = self.channel_ids(name, keys).filter(over).collect();
                ids.extend(over.iter().take(over.len().saturating_sub(REMEMBERED)));
            }
        }
        ids
    }
}

/// What a rewritten journal says about channels and bundles.
fn all(channels: &BTreeMap<ChannelName, Channel>, records: &BTreeMap<BundleId, Record>) -> Vec<Change> {
    let channels = channels.iter().map(|(name, c)| Change::Channel { name: name.clone(), last: c.last });
    let bundles = records.values().filter_map(Record::saved).map(|b| Change::Bundle(Box::new(b.clone())));
    channels.chain(bundles).collect()
}

#[cfg(test)]
mod tests;
