//! The entries, and counts of them, so that handling an arrival does not take a search through all entries.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use checkvalve_protocol::id::{BundleId, ChannelName, KeyId};

use super::{Entry, Standing, State};

/// All entries by bundle. Every change goes through [`Entries::insert`], [`Entries::remove`] and [`Entries::change`].
#[derive(Default)]
pub(super) struct Entries {
    by_id: BTreeMap<BundleId, Entry>,
    counts: Counts,
}

/// Sets and counts that are derived from the entries.
#[derive(Default, PartialEq, Eq, Debug)]
struct Counts {
    /// Bundles that still have to be received.
    open: BTreeSet<BundleId>,
    /// Announced open bundles, by channel.
    announced: Tally<ChannelName>,
    /// Open bundles that are known from beacons only, by channel.
    heard: Tally<ChannelName>,
    states: Tally<State>,
    /// Held bundles, by key.
    held: Tally<Option<KeyId>>,
    /// Bundles in quarantine without an accepted announce.
    refused: Tally<()>,
    /// Bundles by channel and sequence.
    numbers: BTreeMap<ChannelName, Tally<u64>>,
    /// Published bundles, sorted by when their state changed.
    published: BTreeSet<(u64, BundleId)>,
}

/// Counts by key. A count of zero is not stored.
#[derive(PartialEq, Eq, Debug)]
struct Tally<K: Eq + Hash>(HashMap<K, usize>);

impl<K: Eq + Hash> Default for Tally<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash + Clone> Tally<K> {
    fn of(&self, key: &K) -> usize {
        self.0.get(key).copied().unwrap_or(0)
    }

    fn count(&mut self, key: &K, is_there: bool) {
        if is_there {
            match self.0.get_mut(key) {
                Some(count) => *count += 1,
                None => drop(self.0.insert(key.clone(), 1)),
            }
            return;
        }
        let count = self.0.get_mut(key).expect("a removed key was counted");
        *count -= 1;
        if *count == 0 {
            self.0.remove(key);
        }
    }
}

impl Counts {
    /// Adds an entry to the counts, or removes it from them.
    fn count(&mut self, entry: &Entry, is_there: bool) {
        fn put<T: Ord>(set: &mut BTreeSet<T>, value: T, is_there: bool) {
            let changed = if is_there { set.insert(value) } else { set.remove(&value) };
            assert!(changed, "an entry is counted once");
        }
        let signed = entry.standing == Standing::Signed;
        self.states.count(&entry.state(), is_there);
        if entry.state().is_open() {
            put(&mut self.open, entry.id, is_there);
            if let Some(channel) = &entry.channel {
                let of = if signed { &mut self.announced } else { &mut self.heard };
                of.count(channel, is_there);
            }
        }
        let key = entry.signer.as_ref().map(|signer| signer.key);
        if entry.state() == State::Held {
            self.held.count(&key, is_there);
        }
        if entry.state() == State::Quarantined && entry.announce.is_none() {
            self.refused.count(&(), is_there);
        }
        if let Some(channel) = &entry.channel {
            if !self.numbers.contains_key(channel) {
                self.numbers.insert(channel.clone(), Tally::default());
            }
            let numbers = self.numbers.get_mut(channel).expect("the tally was just inserted");
            numbers.count(&entry.sequence, is_there);
            if numbers.0.is_empty() {
                self.numbers.remove(channel);
            }
        }
        if entry.is_published() {
            put(&mut self.published, (entry.changed_ms, entry.id), is_there);
        }
    }
}

impl Entries {
    pub(super) fn get(&self, id: &BundleId) -> Option<&Entry> {
        self.by_id.get(id)
    }

    pub(super) fn contains_key(&self, id: &BundleId) -> bool {
        self.by_id.contains_key(id)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Entry> {
        self.by_id.values()
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        self.remove(&entry.id);
        self.counts.count(&entry, true);
        self.by_id.insert(entry.id, entry);
    }

    pub(super) fn remove(&mut self, id: &BundleId) -> Option<Entry> {
        let entry = self.by_id.remove(id)?;
        self.counts.count(&entry, false);
        Some(entry)
    }

    /// Changes an entry and returns whether it now differs. None: there is no such entry.
    pub(super) fn change(&mut self, id: &BundleId, change: impl FnOnce(&mut Entry)) -> Option<bool> {
        let entry = self.by_id.get_mut(id)?;
        let before = entry.clone();
        change(entry);
        assert_eq!(entry.id, before.id, "a change keeps the bundle's id");
        let changed = *entry != before;
        if changed {
            self.counts.count(&before, false);
            self.counts.count(entry, true);
        }
        Some(changed)
    }

    /// The bundles that still have to be received.
    pub(super) fn open(&self) -> impl Iterator<Item = BundleId> {
        self.counts.open.iter().copied()
    }

    /// How many announced bundles of a channel still have to be received.
    pub(super) fn announced(&self, channel: &ChannelName) -> usize {
        self.counts.announced.of(channel)
    }

    /// How many bundles of a channel still have to be received and are known from beacons only.
    pub(super) fn heard(&self, channel: &ChannelName) -> usize {
        self.counts.heard.of(channel)
    }

    pub(super) fn in_state(&self, state: State) -> usize {
        self.counts.states.of(&state)
    }

    /// How many bundles of a key are held.
    pub(super) fn held(&self, key: Option<KeyId>) -> usize {
        self.counts.held.of(&key)
    }

    /// How many bundles are in quarantine without an accepted announce.
    pub(super) fn refused(&self) -> usize {
        self.counts.refused.of(&())
    }

    /// How many bundles have a sequence, with or without a place in the channel.
    pub(super) fn of_number(&self, channel: &ChannelName, sequence: u64) -> usize {
        self.counts.numbers.get(channel).map_or(0, |numbers| numbers.of(&sequence))
    }

    /// The bundle in the inbox whose state changed last.
    pub(super) fn newest_published(&self) -> Option<&Entry> {
        self.get(&self.counts.published.last()?.1)
    }

    /// Asserts that the counts match a recount of all entries.
    #[cfg(test)]
    pub(super) fn assert_counted(&self) {
        let mut counts = Counts::default();
        self.by_id.values().for_each(|entry| counts.count(entry, true));
        assert_eq!(self.counts, counts);
    }
}
