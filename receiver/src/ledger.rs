//! What became of every bundle: the truth that survives restarts, and the order of installation.
//!
//! This part never touches a disk: it changes in memory and notes what changed; [`file::LedgerFile`] writes that down.
//! Whoever changes something that must not be forgotten saves before acting on it.

pub mod channel;
mod entry;
pub mod file;

use std::collections::{BTreeMap, BTreeSet, HashMap};

pub use channel::{Channel, Next};
use checkvalve_protocol::id::{BundleId, ChannelName, KeyId};
use checkvalve_protocol::limits::MAX_CHANNELS;
pub use entry::{Announced, Conflict, Entry, Heard, Signer, Standing, State};

/// Ended bundles that are remembered per channel; of older ones only that their sequences are over.
pub const HISTORY: usize = 10_000;
/// Bundles per channel of which nothing but beacons told that are remembered by name.
pub const HEARD_ONLY: usize = 4_096;
/// Bundles without a trusted signature that are remembered (and kept in quarantine).
pub const UNTRUSTED: usize = 256;

/// All bundles and channels.
#[derive(Default)]
pub struct Ledger {
    entries: HashMap<BundleId, Entry>,
    channels: BTreeMap<ChannelName, Channel>,
    /// Those still to be received.
    open: BTreeSet<BundleId>,
    changed: BTreeSet<BundleId>,
    changed_channels: BTreeSet<ChannelName>,
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

    /// The bundles still to be received.
    #[must_use]
    pub fn open(&self) -> Vec<BundleId> {
        self.open.iter().copied().collect()
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
        let entry = self.entries.get_mut(&id)?;
        let before = entry.clone();
        change(entry);
        if *entry != before {
            if entry.state != before.state {
                entry.changed_ms = now_ms;
            }
            if entry.state.is_open() {
                self.open.insert(id);
            } else {
                self.open.remove(&id);
            }
            self.changed.insert(id);
        }
        self.entries.get(&id)
    }

    /// Data of a bundle arrived; nothing else need be known of it.
    pub fn seen(&mut self, id: BundleId, now_ms: u64) {
        if !self.entries.contains_key(&id) {
            self.insert(Entry::new(id, now_ms));
        }
    }

    /// What is known of a bundle from elsewhere, after the ledger was damaged. False: its sequence is forgotten, or another's.
    pub fn relearn(&mut self, entry: Entry) -> bool {
        let (id, sequence) = (entry.id, entry.sequence);
        let Some(name) = entry.channel.clone().filter(|name| self.ensure_channel(name)) else { return false };
        let holder = self.at(&name, sequence).filter(|holder| holder.id != id).map(|holder| holder.standing);
        let is_over = self.channels.get(&name).is_some_and(|channel| channel.is_over(sequence));
        if is_over || holder == Some(Standing::Signed) {
            return false;
        }
        self.change_channel(&name, |channel| channel.relearn(sequence));
        self.release(id, &name, sequence);
        self.entries.remove(&id);
        self.open.remove(&id);
        self.insert(entry);
        self.take_slot(id, &name, sequence);
        true
    }

    /// A trusted announce arrived. Errors: it is not accepted, and nothing changed.
    pub fn announced(&mut self, a: Announced, now_ms: u64) -> Result<(), Conflict> {
        let over = || Conflict::Over { channel: a.channel.clone(), sequence: a.sequence };
        if let Some(entry) = self.entries.get(&a.id) {
            if entry.announce.is_some_and(|digest| digest != a.digest) {
                return Err(Conflict::OtherAnnounce);
            }
            if entry.state.is_over() {
                return Err(over());
            }
        }
        if !self.channels.contains_key(&a.channel) && self.channels.len() >= MAX_CHANNELS {
            return Err(Conflict::Channels);
        }
        if let Some(holder) = self.at(&a.channel, a.sequence)
            && holder.id != a.id
            && holder.standing == Standing::Signed
        {
            return Err(Conflict::SequenceTaken { channel: a.channel, sequence: a.sequence, holder: holder.id });
        }
        let channel = self.channels.entry(a.channel.clone()).or_default();
        if channel.is_over(a.sequence) {
            return Err(over());
        }
        channel.on_wire(a.sequence);
        self.changed_channels.insert(a.channel.clone());
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
        });
        self.take_slot(a.id, &a.channel, a.sequence);
        Ok(())
    }

    /// Writes down an untrusted bundle that went to quarantine: what it claims never takes the place of anything
    /// better. False: [`UNTRUSTED`] of them are remembered already, and nothing changed.
    pub fn claimed(&mut self, mut entry: Entry) -> bool {
        match self.entries.get(&entry.id).map(|old| old.standing) {
            Some(Standing::Signed) => return false,
            Some(Standing::Claimed) => {}
            _ if self.entries.values().filter(|e| e.standing == Standing::Claimed).count() >= UNTRUSTED => {
                return false;
            }
            _ => {}
        }
        if let Some(old) = self.entries.get(&entry.id)
            && old.standing == Standing::Heard
            && old.channel.is_some()
        {
            (entry.channel, entry.sequence) = (old.channel.clone(), old.sequence);
        }
        entry.standing = Standing::Claimed;
        let (id, sequence) = (entry.id, entry.sequence);
        let channel = entry.channel.clone();
        self.insert(entry);
        if let Some(channel) = channel
            && self.channels.contains_key(&channel)
            && self.at(&channel, sequence).is_none()
        {
            self.take_slot(id, &channel, sequence);
        }
        true
    }

    /// Forgives bundles that were quarantined because `key` was not trusted: they may come again.
    pub fn trusted(&mut self, key: KeyId, now_ms: u64) {
        let forgiven: Vec<BundleId> =
            self.entries.values().filter(|e| e.untrusted == Some(key)).map(|e| e.id).collect();
        for id in forgiven {
            self.change(id, now_ms, |entry| {
                entry.untrusted = None;
                entry.standing = Standing::Heard;
                entry.state = State::Missing;
                entry.reason = Some(format!("key {key} is trusted now: to be sent again"));
            });
        }
    }

    /// Gives up a sequence of which not even the bundle's id is known. False: it is known, or over.
    pub fn reject_unknown(&mut self, name: &ChannelName, sequence: u64) -> bool {
        let Some(channel) = self.channels.get_mut(name) else { return false };
        if channel.slot(sequence).is_some() || !channel.is_expected(sequence) || sequence > channel.newest() {
            return false;
        }
        channel.reject(sequence);
        self.changed_channels.insert(name.clone());
        true
    }

    /// Changes a channel. None: there is no such channel.
    pub fn change_channel<T>(&mut self, name: &ChannelName, change: impl FnOnce(&mut Channel) -> T) -> Option<T> {
        let channel = self.channels.get_mut(name)?;
        let before = channel.clone();
        let answer = change(channel);
        if *channel != before {
            self.changed_channels.insert(name.clone());
        }
        Some(answer)
    }

    /// The clock was set back to `now_ms`: what was noted later was not.
    pub fn clock_went_back(&mut self, now_ms: u64) {
        for entry in self.entries.values_mut() {
            let times = [&mut entry.first_ms, &mut entry.changed_ms, &mut entry.not_before_ms];
            if times.iter().any(|time| **time > now_ms) {
                times.into_iter().for_each(|time| *time = now_ms.min(*time));
                self.changed.insert(entry.id);
            }
        }
        self.channels.values_mut().for_each(|channel| channel.clock_went_back(now_ms));
    }

    /// Makes sure that a channel exists. False: there are [`MAX_CHANNELS`] already.
    pub fn ensure_channel(&mut self, name: &ChannelName) -> bool {
        if !self.channels.contains_key(name) {
            if self.channels.len() >= MAX_CHANNELS {
                return false;
            }
            self.channels.insert(name.clone(), Channel::default());
            self.changed_channels.insert(name.clone());
        }
        true
    }

    /// What a beacon says of one bundle. `on_wire`: it is being transmitted now.
    pub fn heard(&mut self, name: &ChannelName, heard: Heard, now_ms: u64) {
        let Some(channel) = self.channels.get(name) else { return };
        if channel.is_over(heard.sequence) {
            return;
        }
        let holder = channel.slot(heard.sequence).copied();
        let known = self.entries.get(&heard.id);
        let expected = channel.is_expected(heard.sequence) || heard.on_wire;
        if known.is_none() && (!expected || channel.heard_only >= HEARD_ONLY) {
            return;
        }
        if holder.is_some_and(|id| id != heard.id)
            || known.is_some_and(|e| e.channel.is_some() && e.sequence != heard.sequence)
        {
            return; // a signed announce, or the first beacon, said otherwise
        }
        self.seen(heard.id, now_ms);
        let takes = holder.is_none();
        self.change(heard.id, now_ms, |entry| {
            if entry.channel.is_none() {
                entry.channel = Some(name.clone());
                entry.sequence = heard.sequence;
            }
            if entry.standing != Standing::Signed {
                entry.bytes = heard.bytes;
                if !heard.name.is_empty() {
                    entry.name = heard.name;
                }
            }
            if entry.state.is_open() {
                entry.sent = heard.sent;
                if heard.withdrawn {
                    entry.state = State::Withdrawn;
                    entry.reason = Some("withdrawn by the sender".into());
                }
            }
        });
        if takes {
            self.take_slot(heard.id, name, heard.sequence);
        }
    }

    /// Whose turn it is in a channel; `wait_ms` as in [`Channel::next`].
    pub fn next(&mut self, name: &ChannelName, now_ms: u64, wait_ms: Option<u64>) -> Next {
        let entries = &self.entries;
        let Some(channel) = self.channels.get_mut(name) else { return Next::Idle };
        channel.next(|id| entries.get(&id), now_ms, wait_ms)
    }

    /// Forgets a bundle as if it had never been heard of.
    pub fn forget(&mut self, id: BundleId) {
        if let Some(entry) = self.entries.remove(&id) {
            if let Some(channel) = entry.channel.and_then(|name| self.channels.get_mut(&name)) {
                channel.clear_slot(entry.sequence, id);
            }
            self.open.remove(&id);
            self.changed.insert(id);
        }
    }

    /// Forgets ended bundles beyond [`HISTORY`]; gives the forgotten ones.
    pub fn prune(&mut self) -> Vec<Entry> {
        let mut gone = Vec::new();
        let names: Vec<ChannelName> = self.channels.keys().cloned().collect();
        for name in names {
            while let Some(channel) = self.channels.get_mut(&name) {
                let Some((sequence, id)) = channel.oldest_beyond(HISTORY) else { break };
                let passed = channel.passed();
                let ended = |e: &Entry| e.state.is_over() || e.state == State::Complete && sequence <= passed;
                if !self.entries.get(&id).is_none_or(ended) {
                    break;
                }
                channel.raise_floor(sequence);
                self.changed_channels.insert(name.clone());
                self.changed.insert(id);
                gone.extend(self.entries.remove(&id));
            }
        }
        gone
    }

    fn insert(&mut self, entry: Entry) {
        let id = entry.id;
        if entry.state.is_open() {
            self.open.insert(id);
        } else {
            self.open.remove(&id);
        }
        self.changed.insert(id);
        self.entries.insert(id, entry);
    }

    /// Takes `id` out of a slot other than this, and whatever else is in this one out of it.
    fn release(&mut self, id: BundleId, channel: &ChannelName, sequence: u64) {
        if let Some(old) = self.entries.get(&id)
            && let Some(name) = old.channel.clone()
            && (name != *channel || old.sequence != sequence)
            && let Some(slots) = self.channels.get_mut(&name)
        {
            slots.clear_slot(old.sequence, id);
        }
        if let Some(holder) = self.at(channel, sequence)
            && holder.id != id
            && holder.standing == Standing::Heard
        {
            self.forget(holder.id);
        }
    }

    fn take_slot(&mut self, id: BundleId, name: &ChannelName, sequence: u64) {
        let Some(channel) = self.channels.get_mut(name) else { return };
        channel.set_slot(sequence, id);
        channel.heard_only = channel
            .slots()
            .filter(|(_, id)| self.entries.get(id).is_some_and(|e| e.standing == Standing::Heard))
            .count();
    }
}

#[cfg(test)]
mod tests;
