//! The ledger on disk: a journal of complete entries, each of which replaces its earlier versions. `ledger/record.rs` defines
//! their layouts and how older ones are read.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use checkvalve_host::disk::Disk;
use checkvalve_host::journal::{CorruptRange, Journal, JournalError, Sync};
use checkvalve_protocol::beacon::order::Known;
use checkvalve_protocol::codec;
use checkvalve_protocol::id::{BundleId, ChannelName, KeyId};

use super::record::{Record, SCHEMA, decode};
use super::{Channel, Entry, Ledger, State};

/// The journal is rewritten when it is longer than this, in bytes, and four times as long as after its last rewrite.
const REWRITE_AT: u64 = 4 << 20;

/// A ledger and its journal. Changing the ledger never waits for the disk; saving it does.
pub struct LedgerFile {
    ledger: Mutex<Ledger>,
    /// When both locks are needed, this one is taken first.
    journal: Mutex<Kept>,
    /// It could not be written when that was tried last, and the log says so.
    is_failing: AtomicBool,
}

struct Kept {
    journal: Journal,
    /// The journal's length after the last rewrite.
    compact: u64,
    /// How many channels have a durable first expected sequence.
    begun: usize,
}

/// The damage found in a ledger.
#[derive(Debug, Default)]
pub struct Damage {
    /// How many bytes at its end hold no whole record.
    pub torn_bytes: u64,
    /// Ranges that hold no record.
    pub corrupt: Vec<CorruptRange>,
    /// How many records are whole but cannot be decoded.
    pub unreadable: usize,
}

impl Damage {
    /// Whether there is any damage.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.torn_bytes > 0 || !self.corrupt.is_empty() || self.unreadable > 0
    }
}

impl LedgerFile {
    /// Opens or creates the ledger at `path`, and rewrites an undamaged one of an older version. The second value is the damage
    /// found, which stays visible until [`LedgerFile::rewrite`]. Errors: as [`Journal::open`] and [`Journal::rewrite`].
    pub fn open(disk: &Arc<dyn Disk>, path: &Path) -> Result<(Self, Damage), JournalError> {
        let (journal, mut recovered) = Journal::open(disk, path, SCHEMA)?;
        let (mut ledger, mut unreadable, mut first) = (Ledger::new(), 0, None);
        for bytes in std::mem::take(&mut recovered.records) {
            match decode(recovered.version, &bytes) {
                Ok(Record::Entry(entry)) => ledger.restore(entry.into()),
                Ok(Record::Forget(id)) => ledger.drop_restored(id),
                Ok(Record::Channel(name, saved)) => {
                    ledger.channels.insert(name, Channel::from_saved(saved));
                }
                Ok(Record::Sender(key, known)) => drop(ledger.senders.insert(key, known)),
                Err(error) => {
                    unreadable += 1;
                    first.get_or_insert(error);
                }
            }
        }
        if let Some(error) = first {
            tracing::error!(records = unreadable, first = %error, path = %path.display(), "ledger records cannot be read");
        }
        ledger.rebuild_slots();
        let mut kept = Kept { journal, compact: 0, begun: ledger.begun_channels() };
        let damage = Damage { torn_bytes: recovered.torn_bytes, corrupt: recovered.corrupt, unreadable };
        if !damage.is_any() && (kept.journal.is_older() || kept.journal.len() > REWRITE_AT) {
            kept.replace(&ledger.all_records())?;
        }
        Ok((Self { ledger: Mutex::new(ledger), journal: Mutex::new(kept), is_failing: AtomicBool::new(false) }, damage))
    }

    /// Locks the ledger to read or change it. Hold the lock briefly: the receive thread waits for it.
    pub fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rewrites the journal from the ledger in memory. Errors: as [`Journal::rewrite`].
    pub fn rewrite(&self) -> Result<(), JournalError> {
        let mut kept = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.lock().all_records();
        kept.replace(&all)
    }

    /// Makes all changes durable. False: that failed, the log says so once until it goes again, and the next save tries again.
    pub fn keep(&self) -> bool {
        let kept = self.save(Sync::Yes);
        if let (false, Err(error)) = (self.is_failing.swap(kept.is_err(), Ordering::Relaxed), &kept) {
            tracing::error!(%error, "ledger cannot be written");
        }
        kept.is_ok()
    }

    /// Writes the changes since the last call. With [`Sync::Yes`], they and all earlier changes are durable when this returns.
    /// Errors: those of writing the journal; the next save then writes the same changes again.
    pub fn save(&self, sync: Sync) -> Result<(), io::Error> {
        let mut kept = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let (begun, senders, (entries, channels, mut records)) = {
            let mut ledger = self.lock();
            (ledger.begun_channels(), ledger.take_senders(), ledger.take_changed())
        };
        records.extend(senders.iter().map(|(key, known)| codec::encode(&Record::Sender(*key, known.clone()))));
        // A channel's first expected sequence is learned only once. Without it, bundles sent while we are down are never missed.
        let sync = if begun > kept.begun { Sync::Yes } else { sync };
        let saved = kept.write(&records, sync, || self.lock());
        if saved.is_err() {
            let mut ledger = self.lock();
            ledger.changed.extend(entries);
            ledger.changed_channels.extend(channels);
            ledger.changed_senders.extend(senders.into_iter().map(|(key, _)| key));
        } else {
            kept.begun = kept.begun.max(begun);
        }
        saved.map_err(|error| match error {
            JournalError::Io { error, .. } => error,
            other => io::Error::other(other),
        })
    }
}

impl Kept {
    fn write<'a>(
        &mut self,
        records: &[Vec<u8>],
        sync: Sync,
        ledger: impl Fn() -> MutexGuard<'a, Ledger>,
    ) -> Result<(), JournalError> {
        let long = self.journal.len() > REWRITE_AT && self.journal.len() / 4 > self.compact;
        match self.journal.append_all(records, sync) {
            Ok(()) if !long => Ok(()),
            Err(error) if !error.wants_rewrite() => Err(error),
            _ => {
                let all = ledger().all_records();
                self.replace(&all)
            }
        }
    }

    fn replace(&mut self, records: &[Vec<u8>]) -> Result<(), JournalError> {
        self.journal.rewrite(records)?;
        self.compact = self.journal.len();
        Ok(())
    }
}

impl Ledger {
    fn restore(&mut self, entry: Entry) {
        self.insert(entry);
        self.changed.clear();
    }

    fn begun_channels(&self) -> usize {
        let kept = self.channels.iter().filter(|(name, _)| !self.heard_of.contains(*name));
        kept.filter(|(_, channel)| channel.baseline().is_some()).count()
    }

    fn drop_restored(&mut self, id: BundleId) {
        self.entries.remove(&id);
    }

    /// Gives every entry its place in its channel: published entries first, then by ascending standing.
    fn rebuild_slots(&mut self) {
        let placed = |e: &&Entry| e.state() != State::Held && e.sequence > 0;
        let place = |e: &Entry| Some((!e.is_published(), e.standing, e.channel.clone()?, e.sequence, e.id));
        let mut entries: Vec<_> = self.entries.values().filter(placed).filter_map(place).collect();
        entries.sort();
        for (_, _, channel, sequence, id) in entries {
            // As in the previous run, an entry with an implausible sequence gets no place.
            if self.is_near(&channel, sequence) {
                self.take_slot(id, &channel, sequence);
            } else if self.is_forgotten(id, &channel, sequence) {
                self.forget(id);
            }
        }
        // Version 1 did not say who opened a channel.
        for channel in self.channels.values_mut().filter(|channel| channel.opened_by().is_none()) {
            let signer = |(_, id)| Some(self.entries.get(&id)?.signer.as_ref()?.key);
            let first = channel.slots(..).find_map(signer);
            channel.open(first);
        }
        self.changed_channels.clear();
    }

    pub(super) fn take_changed(&mut self) -> (Vec<BundleId>, Vec<ChannelName>, Vec<Vec<u8>>) {
        let entries: Vec<BundleId> = std::mem::take(&mut self.changed).into_iter().collect();
        let channels: Vec<ChannelName> = std::mem::take(&mut self.changed_channels).into_iter().collect();
        let kept = channels.iter().filter(|name| !self.heard_of.contains(*name));
        let mut records: Vec<Vec<u8>> = kept.filter_map(|name| self.channel_record(name)).collect();
        records.extend(entries.iter().map(|id| match self.entries.get(id) {
            Some(entry) => codec::encode(&Record::Entry(entry.into())),
            None => codec::encode(&Record::Forget(*id)),
        }));
        (entries, channels, records)
    }

    fn take_senders(&mut self) -> Vec<(KeyId, Known)> {
        let changed = std::mem::take(&mut self.changed_senders);
        changed.into_iter().filter_map(|key| Some((key, self.senders.get(&key)?.clone()))).collect()
    }

    fn all_records(&self) -> Vec<Vec<u8>> {
        let senders = self.senders.iter().map(|(key, known)| codec::encode(&Record::Sender(*key, known.clone())));
        let kept = self.channels.keys().filter(|name| !self.heard_of.contains(*name));
        let channels = kept.filter_map(|name| self.channel_record(name));
        channels
            .chain(senders)
            .chain(self.entries.values().map(|entry| codec::encode(&Record::Entry(entry.into()))))
            .collect()
    }

    fn channel_record(&self, name: &ChannelName) -> Option<Vec<u8>> {
        let channel = self.channels.get(name)?;
        Some(codec::encode(&Record::Channel(name.clone(), channel.to_saved())))
    }
}
