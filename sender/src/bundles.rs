//! All that the sender knows of bundles: one [`Record`] each, in one map.
//!
//! A record holds what is durable of a bundle (as in the [`Ledger`]), what the disk has not taken yet, how far it is on its way to the
//! wire, and what is to become of its content. Whatever is asked of all bundles at once (which is due, which sequences there are,
//! which are to be saved again) is answered by an index, which follows from the records: every change goes through
//! [`Bundles::change`], and `assert_consistent` makes the index anew and compares.

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

/// Bundles that are over (not held any more) and still remembered, in a channel.
const REMEMBERED: usize = 1_000;
/// Records that may be superseded before the journal is rewritten.
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
    /// The newest sequence that it has given out.
    last: u64,
    index: BTreeSet<ChannelKey>,
}

impl Bundles {
    /// Opens the ledger at `path`, creating it if it is missing, and says what of it was lost. One of an older version is rewritten.
    /// Errors: [`LedgerError::Journal`].
    pub fn open(disk: &Arc<dyn Disk>, path: &Path) -> Result<(Self, Damage), LedgerError> {
        let (ledger, changes, damage) = Ledger::open(disk, path)?;
        let mut bundles =
            Self { ledger, records: BTreeMap::new(), channels: BTreeMap::new(), index: BTreeSet::new(), claims: 0 };
        changes.into_iter().for_each(|change| bundles.apply(change));
        // A damaged one shows that it was until its owner has mended it and rewrites it.
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

    /// Begins a session and gives its number: 1 in a new epoch, then always one more.
    /// Errors: [`LedgerError::Journal`], the number is then not used; [`LedgerError::Sessions`].
    pub fn begin_session(&mut self) -> Result<u64, LedgerError> {
        let number = self.ledger.next_session()?;
        self.write(vec![Change::Session(number)], Sync::Yes)?;
        Ok(number)
    }

    /// The sequence that the next bundle of a channel will have, if it takes it. None: the last there is was given out.
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

    /// When it will be `ms` milliseconds later on that clock.
    #[must_use]
    pub fn after(&self, ms: u64) -> u64 {
        self.uptime_ms().saturating_add(ms)
    }

    /// Lets `ms` milliseconds pass on that clock.
    pub fn run_for(&mut self, ms: u64) {
        self.ledger.run_for(ms);
    }

    /// Writes the time down, when nothing else was for long. Errors: [`LedgerError::Journal`].
    pub fn write_uptime(&mut self) -> Result<(), LedgerError> {
        self.write(vec![Change::Uptime], Sync::No)
    }

    /// All that is known of a bundle.
    #[must_use]
    pub fn record(&self, id: BundleId) -> Option<&Record> {
        self.records.get(&id)
    }

    /// All of them.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// A bundle as it is, also where the disk has not taken that yet. None: it is not known, or only claimed.
    #[must_use]
    pub fn get(&self, id: BundleId) -> Option<&BundleRecord> {
        self.records.get(&id)?.latest()
    }

    /// The same of all bundles, in no order that means anything.
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

    /// Sets what is known of a bundle. Durable when this returns with `Sync::Yes`.
    /// Errors: [`LedgerError::Journal`]; the bundle is then known as before (after a failed sync, the new state may come back
    /// after a crash).
    pub fn put(&mut self, bundle: BundleRecord, sync: Sync) -> Result<(), LedgerError> {
        self.put_all(vec![bundle], sync)
    }

    /// The same for several at once: all, or none.
    pub fn put_all(&mut self, bundles: Vec<BundleRecord>, sync: Sync) -> Result<(), LedgerError> {
        self.write(bundles.into_iter().map(|bundle| Change::Bundle(Box::new(bundle))).collect(), sync)
    }

    /// What happened to a bundle anyway, although the disk does not take it: it is to be put again. Until then the bundle rests.
    pub fn remember_unsaved(&mut self, bundle: BundleRecord) {
        let id = bundle.id;
        self.ensure(id, &bundle);
        self.change(id, |record| record.set_unsaved(bundle));
    }

    /// Something was claimed: it waits to be planned, after all others.
    pub fn claimed(&mut self, mut claim: Claim) {
        self.claims += 1;
        claim.turn = self.claims;
        let id = claim.home.id();
        let replaced = self.records.insert(id, Record::claimed(claim));
        assert!(replaced.is_none(), "an id is given once");
        self.enter(id);
    }

    /// The oldest claim of a channel that waits to be planned, unless one is being planned.
    #[must_use]
    pub fn next_claim(&self, channel: &ChannelName) -> Option<&Claim> {
        let index = &self.channels.get(channel)?.index;
        if index.range(ChannelKey::Planning(FIRST)..=ChannelKey::Planning(LAST)).next().is_some() {
            return None;
        }
        let first = index.range(ChannelKey::Claimed(0, FIRST)..=ChannelKey::Claimed(u64::MAX, LAST)).next()?;
        self.records.get(&first.id())?.claim()
    }

    /// Sets how far a bundle is on its way, and gives how far it was. None: there is no such bundle.
    pub fn set_stage(&mut self, id: BundleId, stage: Stage) -> Option<Stage> {
        self.change(id, |record| record.set_stage(stage))
    }

    /// A job ended. None: the pipeline has none of this bundle.
    pub fn take_submitted(&mut self, id: BundleId) -> Option<Submitted> {
        match self.records.get(&id)?.stage() {
            Stage::Submitted(_) => match self.set_stage(id, Stage::Idle) {
                Some(Stage::Submitted(submitted)) => Some(submitted),
                _ => None,
            },
            _ => None,
        }
    }

    /// Sets what is to become of a bundle's content.
    pub fn set_content(&mut self, id: BundleId, content: Content) {
        self.change(id, |record| record.set_content(content));
    }

    /// Sets what came of taking a bundle back.
    pub fn set_restoring(&mut self, id: BundleId, restoring: Restoring) {
        self.change(id, |record| record.set_restoring(restoring));
    }

    /// A bundle rests until then.
    pub fn wait(&mut self, id: BundleId, until_ms: u64) {
        self.change(id, |record| record.set_wait(Some(until_ms)));
    }

    /// Bundles that rested until now may go on.
    pub fn end_waits(&mut self, now_ms: u64) {
        let over = self.index.range(Key::Wait(0, FIRST)..=Key::Wait(now_ms, LAST)).map(Key::id);
        for id in over.collect::<Vec<_>>() {
            self.change(id, |record| record.set_wait(None));
        }
    }

    /// Until when the next one rests.
    #[must_use]
    pub fn next_wait_ms(&self) -> Option<u64> {
        match self.index.range(Key::Wait(0, FIRST)..=Key::Wait(u64::MAX, LAST)).next() {
            Some(Key::Wait(until, _)) => Some(*until),
            _ => None,
        }
    }

    /// What of a channel is to be sent next, due already or not.
    #[must_use]
    pub fn next_due(&self, channel: &ChannelName) -> Option<Due> {
        let all = ChannelKey::Due(Due::FIRST)..=ChannelKey::Due(Due::LAST);
        match self.channels.get(channel)?.index.range(all).next() {
            Some(ChannelKey::Due(due)) => Some(*due),
            _ => None,
        }
    }

    /// Bundles of a channel on their way to the pipeline or in it.
    #[must_use]
    pub fn under_way(&self, channel: &ChannelName) -> usize {
        self.channel_ids(channel, ChannelKey::UnderWay(FIRST)..=ChannelKey::UnderWay(LAST)).count()
    }

    /// Jobs that were not seen on the wire yet.
    #[must_use]
    pub fn waiting(&self) -> Vec<BundleId> {
        self.ids(Key::Waiting(FIRST)..=Key::Waiting(LAST)).collect()
    }

    /// A job was seen on the wire.
    pub fn begun(&mut self, id: BundleId) {
        self.change(id, Record::set_begun);
    }

    /// Bundles that wait for nothing but their turn.
    pub fn ready(&self) -> impl DoubleEndedIterator<Item = (BundleId, &Ready)> {
        let ids = self.ids(Key::Ready(FIRST)..=Key::Ready(LAST));
        ids.filter_map(|id| Some((id, self.records.get(&id)?.ready()?)))
    }

    /// Those whose state the disk has not taken.
    #[must_use]
    pub fn unsaved(&self) -> Vec<BundleRecord> {
        let ids = self.ids(Key::Unsaved(FIRST)..=Key::Unsaved(LAST));
        ids.filter_map(|id| self.records.get(&id)?.unsaved().cloned()).collect()
    }

    /// Bundles to withdraw on the wire whose failure is in the ledger already.
    #[must_use]
    pub fn withdrawing(&self) -> Vec<BundleId> {
        self.ids(Key::Withdrawing(FIRST)..=Key::Withdrawing(LAST)).collect()
    }

    /// Those whose content is to be moved to `.failed`.
    #[must_use]
    pub fn failing(&self) -> Vec<BundleId> {
        self.ids(Key::Failing(FIRST)..=Key::Failing(LAST)).collect()
    }

    /// Those of which something is left that is to be removed, at most `most`.
    #[must_use]
    pub fn leftover(&self, most: usize) -> Vec<BundleId> {
        self.ids(Key::Leftover(FIRST)..=Key::Leftover(LAST)).take(most).collect()
    }

    /// Whether the content of any is being removed.
    #[must_use]
    pub fn is_removing(&self) -> bool {
        self.ids(Key::Removing(FIRST)..=Key::Removing(LAST)).next().is_some()
    }

    /// Those that may be let go, the longest retained first.
    pub fn releasable(&self) -> impl Iterator<Item = &BundleRecord> {
        let all = Key::Releasable(0, 0, FIRST)..=Key::Releasable(u64::MAX, u64::MAX, LAST);
        self.ids(all).filter_map(|id| self.get(id))
    }

    /// Takes a bundle in without writing it down: for what the next [`Bundles::begin_anew`] or [`Bundles::rewrite`] makes durable.
    pub fn remember(&mut self, bundle: BundleRecord) {
        self.apply(Change::Bundle(Box::new(bundle)));
    }

    /// Goes on as another state: begins `epoch`, gives out none of the sequences up to `last` of each channel again, and forgets
    /// some bundles, whose sequences stay used up. All of it is durable when this returns, or none.
    ///
    /// Errors: [`LedgerError::Journal`]. What is known here is then not what is on the disk: drop it.
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

    /// Forgets the oldest bundles that are over, and rewrites the journal when most of it is superseded.
    /// Errors: [`LedgerError::Journal`]; nothing is lost then.
    pub fn tidy(&mut self) -> Result<(), LedgerError> {
        let forgotten = self.forgettable();
        if !forgotten.is_empty() {
            self.write(forgotten.into_iter().map(Change::Forget).collect(), Sync::No)?;
        }
        let live = self.records.len() + self.channels.len() + 2;
        if self.ledger.lines() > 2 * live + SUPERSEDED { self.rewrite() } else { Ok(()) }
    }

    /// Writes the journal anew from what is known. Mends a damaged one. Errors: [`LedgerError::Journal`].
    pub fn rewrite(&mut self) -> Result<(), LedgerError> {
        let all = all(&self.channels, &self.records);
        self.ledger.rewrite(all)
    }

    /// Makes the index anew from the records. Panics if it is another than what is kept.
    pub fn assert_consistent(&self) {
        let mut index = BTreeSet::new();
        let mut channels: BTreeMap<&ChannelName, BTreeSet<ChannelKey>> = BTreeMap::new();
        for (id, record) in &self.records {
            assert!(!record.is_nothing(), "bundle {id} is kept and nothing is known of it");
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

    /// Changes a record, and the index with it. None: there is no such bundle. The one way to change any.
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

/// What a journal says that is written anew.
fn all(channels: &BTreeMap<ChannelName, Channel>, records: &BTreeMap<BundleId, Record>) -> Vec<Change> {
    let channels = channels.iter().map(|(name, c)| Change::Channel { name: name.clone(), last: c.last });
    let bundles = records.values().filter_map(Record::saved).map(|b| Change::Bundle(Box::new(b.clone())));
    channels.chain(bundles).collect()
}

#[cfg(test)]
mod tests;
