//! What became of every bundle: the truth that survives restarts, and the order of installation.
//!
//! This part never touches a disk: it changes in memory and notes what changed; [`file::LedgerFile`] writes that down.
//! Whoever changes something that must not be forgotten saves before acting on it.

mod arrival;
pub mod channel;
mod entries;
mod entry;
pub mod file;
mod held;
mod prune;
pub mod reception;
mod record;
mod transitions;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

pub use channel::{Channel, Next};
use checkvalve_protocol::beacon::Beacon;
use checkvalve_protocol::beacon::order::{Known, Order};
use checkvalve_protocol::id::{BundleId, ChannelName, KeyId};
use checkvalve_protocol::limits::{MAX_CHANNELS, MAX_TRANSFER_LENGTH};
use entries::Entries;
pub use entry::{Announced, Conflict, Entry, Heard, Hold, Signer, Standing, State};
pub use prune::HISTORY;
pub use reception::{Live, Reception};
pub use turns::Unchanged;

/// Bundles of a channel that are still to be received and that only beacons have named.
pub const HEARD_ONLY: usize = 4_096;
/// Bundles that are remembered (and kept in quarantine) of which nothing counted.
pub const REFUSED: usize = 1_000;
/// Bundles that are held.
pub const HELD: usize = 256;
/// How often the counters of senders are written down, in milliseconds.
const COUNTED_MS: u64 = 60_000;
/// Announced bundles that may claim one sequence.
const MOST_CLAIMS: usize = 8;
/// Channels that the config does not name, of one key.
const CHANNELS_OF_KEY: usize = 16;
/// Announced bundles of one channel that are under way.
pub const MOST_OPEN: usize = 4_096;

/// All bundles and channels.
pub struct Ledger {
    entries: Entries,
    channels: BTreeMap<ChannelName, Channel>,
    /// Channels that the config names.
    configured: BTreeSet<ChannelName>,
    /// Channels of which only beacons tell, and which the config does not name: not written down.
    heard_of: BTreeSet<ChannelName>,
    changed: BTreeSet<BundleId>,
    changed_channels: BTreeSet<ChannelName>,
    /// What is known of the sender that has a key.
    senders: BTreeMap<KeyId, Known>,
    changed_senders: BTreeSet<KeyId>,
    /// When the counters of senders were written down last, in Unix milliseconds.
    counted_ms: u64,
    /// Bundles while they are received.
    pub reception: Reception,
    /// Bundles whose hook must not start now.
    suspended: BTreeSet<BundleId>,
    /// [`HISTORY`], except in tests.
    history: usize,
    /// Forgotten because another bundle was announced for their sequence: [`Ledger::prune`] gives them.
    released: Vec<Entry>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            entries: Entries::default(),
            channels: BTreeMap::new(),
            configured: BTreeSet::new(),
            heard_of: BTreeSet::new(),
            changed: BTreeSet::new(),
            changed_channels: BTreeSet::new(),
            senders: BTreeMap::new(),
            changed_senders: BTreeSet::new(),
            counted_ms: 0,
            suspended: BTreeSet::new(),
            history: HISTORY,
            released: Vec::new(),
            reception: Reception::default(),
        }
    }
}

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A bundle.
    #[must_use]
    pub fn entry(&self, id: BundleId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// All bundles, in no order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// One line about all bundles.
    #[must_use]
    pub fn summary(&self) -> String {
        let [receiving, incomplete, missing] =
            [State::Receiving, State::Incomplete, State::Missing].map(|state| self.entries.in_state(state));
        let newest = self.entries.newest_published();
        let newest = newest.and_then(|entry| Some(format!("{}/{}", entry.channel.as_ref()?, entry.sequence)));
        let newest = newest.unwrap_or_else(|| "none".to_owned());
        format!("{receiving} receiving, {incomplete} incomplete, {missing} missing; last in the inbox: {newest}")
    }

    /// How many bundles have, or claim, a sequence of a channel.
    #[must_use]
    pub fn of_number(&self, channel: &ChannelName, sequence: u64) -> usize {
        self.entries.of_number(channel, sequence)
    }

    /// The bundles still to be received.
    #[must_use]
    pub fn open(&self) -> Vec<BundleId> {
        self.entries.open().collect()
    }

    /// A channel.
    #[must_use]
    pub fn channel(&self, name: &ChannelName) -> Option<&Channel> {
        self.channels.get(name)
    }

    /// All channels, by name.
    pub fn channels(&self) -> impl Iterator<Item = (&ChannelName, &Channel)> {
        self.channels.iter()
    }

    /// The bundle that has a sequence of a channel.
    #[must_use]
    pub fn at(&self, channel: &ChannelName, sequence: u64) -> Option<&Entry> {
        self.entries.get(self.channels.get(channel)?.slot(sequence)?)
    }

    /// Changes an entry. None: there is no such bundle.
    pub fn change(&mut self, id: BundleId, now_ms: u64, change: impl FnOnce(&mut Entry)) -> Option<&Entry> {
        let changed = self.entries.change(&id, |entry| {
            let before = entry.state();
            change(entry);
            if entry.state() != before {
                entry.changed_ms = now_ms;
            }
        })?;
        if changed {
            self.changed.insert(id);
        }
        self.entries.get(&id)
    }

    /// A bundle is known; nothing else need be known of it.
    pub fn seen(&mut self, id: BundleId, now_ms: u64) {
        if !self.entries.contains_key(&id) {
            self.insert(Entry::new(id, now_ms));
        }
    }

    /// What is known of a bundle from elsewhere, after the ledger was damaged. False: its sequence is forgotten, or another's.
    pub fn relearn(&mut self, entry: Entry) -> bool {
        let (id, sequence) = (entry.id, entry.sequence);
        let key = entry.signer.as_ref().map(|signer| signer.key);
        let Some(name) = entry.channel.clone().filter(|name| self.open_channel(name, key)) else { return false };
        let holder = self.at(&name, sequence).filter(|holder| holder.id != id).map(|holder| holder.standing);
        let is_over = self.channels.get(&name).is_some_and(|channel| channel.is_over(sequence));
        if is_over || holder == Some(Standing::Signed) {
            return false;
        }
        self.change_channel(&name, |channel| channel.relearn(sequence));
        self.release(id, &name, sequence);
        self.insert(entry);
        self.take_slot(id, &name, sequence);
        true
    }

    /// An announce that counts arrived. Errors: it is not accepted, and nothing changed.
    pub fn announced(&mut self, a: Announced, now_ms: u64) -> Result<(), Conflict> {
        let over = || Conflict::Over { channel: a.channel.clone(), sequence: a.sequence };
        if let Some(entry) = self.entries.get(&a.id) {
            if entry.announce.is_some_and(|digest| digest != a.digest) {
                return Err(Conflict::OtherAnnounce);
            }
            if entry.state().is_over() {
                return Err(over());
            }
        }
        if let Some(channel) = self.channels.get(&a.channel) {
            if channel.is_over(a.sequence) {
                return Err(over());
            }
            if channel.is_jump(a.sequence) {
                let newest = channel.newest();
                return Err(Conflict::Jump { channel: a.channel, sequence: a.sequence, newest });
            }
            let others = channel.claims(a.sequence).iter().filter(|id| **id != a.id);
            let signed = others.filter_map(|id| self.entries.get(id)).filter(|e| e.standing == Standing::Signed);
            let signed: Vec<&Entry> = signed.collect();
            // An operator gave it its place, or it had it before.
            let placed = channel.claims(a.sequence).contains(&a.id);
            let full = signed.get(MOST_CLAIMS - 1).filter(|_| !placed);
            let taken = signed.iter().find(|e| e.is_published()).or(full);
            if let Some(holder) = taken.map(|e| e.id) {
                return Err(Conflict::SequenceTaken { channel: a.channel, sequence: a.sequence, holder });
            }
        }
        let is_known = self.entries.get(&a.id).is_some_and(|entry| entry.standing == Standing::Signed);
        if !is_known && self.entries.announced(&a.channel) >= MOST_OPEN {
            return Err(Conflict::Crowded);
        }
        if self.has_many_channels(a.signer.key, &a.channel) || !self.open_channel(&a.channel, Some(a.signer.key)) {
            return Err(Conflict::Channels);
        }
        self.change_channel(&a.channel, |channel| channel.on_wire(a.sequence));
        self.release(a.id, &a.channel, a.sequence);
        self.seen(a.id, now_ms);
        self.change(a.id, now_ms, |entry| {
            entry.channel = Some(a.channel.clone());
            entry.sequence = a.sequence;
            entry.name = a.name;
            entry.bytes = a.bytes;
            entry.standing = Standing::Signed;
            entry.signer = Some(a.signer);
            entry.announce = Some(a.digest);
            entry.hold = None;
            if entry.state() == State::Held {
                entry.receive(None);
            }
        });
        self.take_slot(a.id, &a.channel, a.sequence);
        Ok(())
    }

    /// Whether a channel would be one too many of those that the config does not name, for its key: others find theirs, too.
    fn has_many_channels(&self, key: KeyId, name: &ChannelName) -> bool {
        let by_key = |(name, channel): &(&ChannelName, &Channel)| {
            channel.opened_by() == Some(key) && !self.configured.contains(*name)
        };
        !self.configured.contains(name)
            && !self.is_open(name)
            && self.channels.iter().filter(by_key).count() >= CHANNELS_OF_KEY
    }

    /// Gives a complete bundle its sequence, so that it may be published. Errors: another bundle of that sequence,
    /// which is published already.
    pub fn win(&mut self, id: BundleId) -> Result<(), BundleId> {
        let Some(entry) = self.entries.get(&id) else { return Ok(()) };
        let (Some(name), sequence) = (entry.channel.clone(), entry.sequence) else { return Ok(()) };
        let Some(channel) = self.channels.get_mut(&name) else { return Ok(()) };
        let others = channel.claims(sequence).iter().filter(|other| **other != id);
        if let Some(holder) = others.filter_map(|id| self.entries.get(id)).find(|e| e.is_published()) {
            return Err(holder.id);
        }
        channel.win_slot(sequence, id);
        Ok(())
    }

    /// Another bundle that was announced for the same sequence, if one is whole or still to come.
    #[must_use]
    pub fn rival(&self, id: BundleId) -> Option<BundleId> {
        let entry = self.entries.get(&id)?;
        let claims = self.channels.get(entry.channel.as_ref()?)?.claims(entry.sequence);
        claims.iter().find(|other| **other != id && self.entries.contains_key(other)).copied()
    }

    /// Gives a bundle its place in its channel again, after an operator decided that it may have it.
    pub fn place(&mut self, id: BundleId) {
        let Some(entry) = self.entries.get(&id) else { return };
        let (Some(name), sequence) = (entry.channel.clone(), entry.sequence) else { return };
        if sequence > 0 && self.is_near(&name, sequence) {
            self.change_channel(&name, |channel| channel.begun(sequence));
            self.take_slot(id, &name, sequence);
        }
    }

    /// An operator says that sequences of a channel up to this one are in use.
    pub fn allow(&mut self, name: &ChannelName, sequence: u64) {
        self.change_channel(name, |channel| channel.allow(sequence));
    }

    /// Whether a sequence is one that a channel which exists may have.
    pub(super) fn is_near(&self, name: &ChannelName, sequence: u64) -> bool {
        self.channels.get(name).is_some_and(|channel| !channel.is_jump(sequence) && !channel.is_over(sequence))
    }

    /// Gives up those sequences of which not even the bundle's id is known. Gives the last of them.
    pub fn reject_unknown(&mut self, name: &ChannelName, sequences: RangeInclusive<u64>) -> Option<u64> {
        self.change_channel(name, |channel| channel.reject(sequences)).flatten()
    }

    /// Changes a channel. None: there is no such channel.
    pub fn change_channel<T>(&mut self, name: &ChannelName, change: impl FnOnce(&mut Channel) -> T) -> Option<T> {
        let channel = self.channels.get_mut(name)?;
        let before = channel.to_saved();
        let answer = change(channel);
        if channel.to_saved() != before {
            self.changed_channels.insert(name.clone());
        }
        Some(answer)
    }

    /// The clock was set back to `now_ms`: what was noted later was not.
    pub fn clock_went_back(&mut self, now_ms: u64) {
        let ids: Vec<BundleId> = self.entries.values().map(|entry| entry.id).collect();
        for id in ids {
            let changed = self.entries.change(&id, |entry| {
                let times = [&mut entry.first_ms, &mut entry.changed_ms, &mut entry.not_before_ms];
                times.into_iter().for_each(|time| *time = now_ms.min(*time));
            });
            if changed == Some(true) {
                self.changed.insert(id);
            }
        }
        self.channels.values_mut().for_each(|channel| channel.clock_went_back(now_ms));
        self.reception.clock_went_back(now_ms);
    }

    /// Names the channels of the config: they always have their place.
    pub fn configure(&mut self, names: impl IntoIterator<Item = ChannelName>) {
        self.configured = names.into_iter().collect();
        for name in self.configured.clone() {
            self.channels.entry(name).or_default();
        }
    }

    /// Makes sure that a channel exists, for a bundle that this key announced. False: there are [`MAX_CHANNELS`] already that the
    /// config does not name.
    pub fn open_channel(&mut self, name: &ChannelName, key: Option<KeyId>) -> bool {
        if self.is_open(name) {
            return true;
        }
        let configured = self.configured.contains(name);
        let open = self.channels.keys().filter(|name| !self.configured.contains(*name) && self.is_open(name));
        if !configured && open.count() >= MAX_CHANNELS {
            return false;
        }
        self.heard_of.remove(name);
        self.channels.entry(name.clone()).or_default().open(key.filter(|_| !configured));
        self.changed_channels.insert(name.clone());
        true
    }

    /// Makes sure that a channel exists, for what a beacon says. False: there are [`MAX_CHANNELS`] already of which only beacons
    /// tell. Nothing of it is written down.
    pub fn hear_of_channel(&mut self, name: &ChannelName) -> bool {
        if self.channels.contains_key(name) {
            return true;
        }
        if self.heard_of.len() >= MAX_CHANNELS {
            return false;
        }
        self.heard_of.insert(name.clone());
        self.channels.entry(name.clone()).or_default();
        true
    }

    /// Whether a channel exists for more than what beacons say.
    fn is_open(&self, name: &ChannelName) -> bool {
        self.channels.contains_key(name) && !self.heard_of.contains(name)
    }

    /// Takes a beacon that a trusted key signed, and says what it is. Its session and epoch are to be made durable at once, its
    /// counter now and then: until it is, a beacon of the last minute may be news again after a crash.
    pub fn hear(&mut self, signer: KeyId, beacon: &Beacon, now_ms: u64) -> Order {
        let order = match self.senders.get_mut(&signer) {
            Some(known) => known.take(beacon),
            None => {
                self.senders.insert(signer, Known::first(beacon));
                Order::NewSession
            }
        };
        let due = self.counted_ms.abs_diff(now_ms) >= COUNTED_MS;
        if matches!(order, Order::NewSession | Order::NewEpoch) || due && order != Order::Repeated {
            self.changed_senders.insert(signer);
            if due {
                self.counted_ms = now_ms;
                self.keep_counters();
            }
        }
        order
    }

    /// What is known of the sender that has a key.
    #[must_use]
    pub fn sender(&self, key: KeyId) -> Option<&Known> {
        self.senders.get(&key)
    }

    /// All that is known of senders is written down at the next save.
    pub fn keep_counters(&mut self) {
        self.changed_senders.extend(self.senders.keys().copied());
    }

    /// Whether nothing but beacons tells of a channel, which the config does not name.
    #[must_use]
    pub fn is_heard_of(&self, name: &ChannelName) -> bool {
        self.heard_of.contains(name)
    }

    /// What a beacon says of one bundle. `on_wire`: it is being transmitted now.
    pub fn heard(&mut self, name: &ChannelName, heard: Heard, now_ms: u64) {
        let Some(channel) = self.channels.get(name).filter(|_| !self.heard_of.contains(name)) else { return };
        if channel.is_over(heard.sequence) || channel.is_jump(heard.sequence) {
            return;
        }
        let holder = channel.slot(heard.sequence).copied();
        let known = self.entries.get(&heard.id);
        let expected = channel.is_expected(heard.sequence) || heard.on_wire;
        if known.is_none() && (!expected || holder.is_some() || self.entries.heard(name) >= HEARD_ONLY) {
            return;
        }
        let elsewhere = |e: &Entry| e.channel.as_ref().is_some_and(|c| c != name || e.sequence != heard.sequence);
        if holder.is_some_and(|id| id != heard.id) || known.is_some_and(elsewhere) {
            return; // an announce, or the first beacon, said otherwise
        }
        self.seen(heard.id, now_ms);
        let (takes, is_publishing) = (holder.is_none(), self.is_publishing(heard.id));
        self.change(heard.id, now_ms, |entry| {
            if entry.channel.is_none() {
                entry.channel = Some(name.clone());
                entry.sequence = heard.sequence;
            }
            if entry.standing != Standing::Signed {
                entry.signer = Some(heard.signer);
                entry.bytes = heard.bytes.min(MAX_TRANSFER_LENGTH);
                if !heard.name.is_empty() {
                    entry.name = heard.name;
                }
            }
            if entry.state().is_open() {
                entry.sent = heard.sent;
                if heard.withdrawn && !is_publishing {
                    entry.withdraw(Some("withdrawn by the sender".into()));
                }
            }
        });
        if takes {
            self.take_slot(heard.id, name, heard.sequence);
        }
    }

    /// Forgets a bundle as if it had never been heard of.
    pub fn forget(&mut self, id: BundleId) {
        if let Some(entry) = self.entries.remove(&id) {
            if let Some(channel) = entry.channel.and_then(|name| self.channels.get_mut(&name)) {
                channel.clear_slot(entry.sequence, id);
            }
            self.changed.insert(id);
        }
    }

    fn insert(&mut self, entry: Entry) {
        self.changed.insert(entry.id);
        self.entries.insert(entry);
    }

    /// Removes `id` from any other slot, and forgets the bundles in this slot that only beacons have named.
    fn release(&mut self, id: BundleId, channel: &ChannelName, sequence: u64) {
        if let Some(old) = self.entries.get(&id)
            && let Some(name) = old.channel.clone()
            && (name != *channel || old.sequence != sequence)
            && let Some(slots) = self.channels.get_mut(&name)
        {
            slots.clear_slot(old.sequence, id);
        }
        let heard = |id: &BundleId| self.entries.get(id).is_some_and(|e| e.standing == Standing::Heard);
        let claims = self.channels.get(channel).map(|c| c.claims(sequence).to_vec()).unwrap_or_default();
        for other in claims.into_iter().filter(|other| *other != id && heard(other)).collect::<Vec<_>>() {
            // What was refused has files.
            self.released.extend(self.entries.get(&other).filter(|e| !e.state().is_open()).cloned());
            self.forget(other);
        }
    }

    fn take_slot(&mut self, id: BundleId, name: &ChannelName, sequence: u64) {
        let Some(channel) = self.channels.get_mut(name) else { return };
        channel.set_slot(sequence, id);
        self.changed_channels.insert(name.clone());
    }
}

#[cfg(test)]
mod tests;
