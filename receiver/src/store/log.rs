//! Which bytes of which bundle are stored: one journal for all of staging, appended to without waiting for the disk.
//!
//! After a crash of the daemon every record counts, for what was written is in the kernel's hands. After a crash of the
//! machine (another boot id) only those count that a checkpoint covers: one is written after the file system was synced.
//!
//! The layouts of the records, and how older ones are read, are in `log/record.rs`.

mod record;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use checkvalve_host::disk::Disk;
use checkvalve_host::journal::{Journal, JournalError, Sync};
use checkvalve_protocol::codec;
use checkvalve_protocol::id::BundleId;

use crate::ranges::Ranges;
use record::{Record, SCHEMA, decode};

/// Which run of the kernel this is: the bytes of `/proc/sys/kernel/random/boot_id`.
pub type BootId = [u8; 16];

/// The journal is rewritten when it is longer than this, in bytes, and twice as long as after its last rewrite.
const REWRITE_AT: u64 = 32 << 20;
/// Where staging is empty it is rewritten when it is this long.
const GROWN: u64 = 256 << 10;

/// What of a bundle is stored, as ranges of bytes of its data object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Length of the data object, once known.
    pub length: Option<u64>,
    /// All that is stored.
    pub all: Ranges,
    /// The part of it that is not in its files yet but in the flat file `data`.
    pub flat: Ranges,
    /// What a power cut would leave of `all`.
    pub synced: Ranges,
    /// What a power cut would leave of `flat`.
    pub synced_flat: Ranges,
}

/// The open journal.
pub struct Log {
    journal: Journal,
    /// Records since the beginning of the file.
    records: u64,
    rewrites: u64,
    /// That a sync failed could not be written down.
    unsaid: bool,
    /// A sync failed since the kernel was started.
    failed: bool,
    /// Its length after the last rewrite, in bytes.
    compact: u64,
}

impl Stored {
    /// Bytes are stored, in the flat file or in their places.
    pub fn add(&mut self, range: Range<u64>, flat: bool) {
        self.all.insert(range.clone());
        if flat {
            self.flat.insert(range);
        } else {
            self.flat.remove(range);
        }
    }

    /// Bytes are not stored any more.
    pub fn remove(&mut self, range: &Range<u64>) {
        for ranges in [&mut self.all, &mut self.flat, &mut self.synced, &mut self.synced_flat] {
            ranges.remove(range.clone());
        }
    }

    /// Everything stored would survive a power cut.
    pub fn set_synced(&mut self, as_of: &Self) {
        self.synced = as_of.all.clone();
        self.synced_flat = as_of.flat.clone();
    }

    /// Back to what a power cut would leave.
    pub fn back_to_synced(&mut self) {
        self.all = self.synced.clone();
        self.flat = self.synced_flat.clone();
    }

    /// What a power cut would not leave as it is.
    #[must_use]
    pub fn unsynced(&self) -> Ranges {
        let new = self.all.iter().flat_map(|range| self.synced.gaps(range));
        // What moved from the flat file to its files, or was sent again into the flat file.
        let (to, from) = (&self.synced_flat, &self.flat);
        let moved = to.iter().flat_map(|range| from.gaps(range)).chain(from.iter().flat_map(|range| to.gaps(range)));
        new.chain(moved).collect()
    }

    /// Whether anything is in the flat file, or a power cut would leave something there.
    #[must_use]
    pub fn needs_flat(&self) -> bool {
        !self.flat.is_empty() || !self.synced_flat.is_empty()
    }

    /// Whether all of the data object is stored.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.length.is_some_and(|length| self.all.len() == length)
    }
}

impl Log {
    /// Opens or creates the journal at `path` and gives what is stored of each bundle after whatever happened since. Errors: as
    /// [`Journal::open`].
    pub fn open(
        disk: &Arc<dyn Disk>,
        path: &Path,
        boot: BootId,
    ) -> Result<(Self, BTreeMap<BundleId, Stored>), JournalError> {
        let (journal, recovered) = Journal::open(disk, path, SCHEMA)?;
        if recovered.torn_bytes > 0 || !recovered.corrupt.is_empty() {
            tracing::warn!(
                torn_bytes = recovered.torn_bytes,
                corrupt = recovered.corrupt.len(),
                "staging journal damaged"
            );
        }
        let (mut replay, mut unreadable) = (Replay::default(), Vec::new());
        for bytes in &recovered.records {
            match decode(recovered.version, bytes) {
                Ok(record) => replay.apply(record),
                Err(error) => unreadable.push(error),
            }
        }
        if let Some(error) = unreadable.first() {
            tracing::error!(records = unreadable.len(), first = %error, "staging records cannot be read");
        }
        let failed = replay.unsynced && replay.boot == Some(boot);
        // A damaged middle may have held that something was forgotten, so nothing that is not synced is believed.
        replay.apply(if recovered.corrupt.is_empty() { Record::Boot(boot) } else { Record::Unsynced });
        let stored = replay.stored;
        let mut log = Self { journal, records: 0, rewrites: 0, unsaid: false, failed, compact: 0 };
        log.rewrite(boot, &stored)?;
        Ok((log, stored))
    }

    /// The data object of a bundle is so long.
    pub fn length(&mut self, id: BundleId, length: u64) -> Result<(), JournalError> {
        self.append(Record::Length { id: id.0, length })
    }

    /// Bytes are stored, in the flat file or in their places.
    pub fn stored(&mut self, id: BundleId, range: Range<u64>, flat: bool) -> Result<(), JournalError> {
        let (id, start, end) = (id.0, range.start, range.end);
        self.append(if flat { Record::Flat { id, start, end } } else { Record::Tree { id, start, end } })
    }

    /// Nothing of a bundle is stored any more.
    pub fn forget(&mut self, id: BundleId) -> Result<(), JournalError> {
        self.append(Record::Forget { id: id.0 })
    }

    /// Whether a sync failed since the kernel was started.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// These bytes of a bundle are not stored any more. Durable when this returns. Errors: a part of it may be so.
    pub fn lost(&mut self, id: BundleId, ranges: &[Range<u64>]) -> Result<(), JournalError> {
        for range in ranges {
            self.append(Record::Lost { id: id.0, start: range.start, end: range.end })?;
        }
        self.journal.sync()
    }

    /// Records that a sync failed. Errors: this could not be recorded. Nothing else is recorded before [`Log::rewrite`], and a
    /// restart before that knows only what was not synced.
    pub fn unsynced(&mut self) -> Result<(), JournalError> {
        self.failed = true;
        let written = self.append(Record::Unsynced);
        self.unsaid |= written.is_err();
        written
    }

    /// How many records there are: what [`Log::checkpoint`] wants to know of the moment before the sync.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The file system was synced when there were `records` of them. Durable when this returns.
    pub fn checkpoint(&mut self, records: u64) -> Result<(), JournalError> {
        self.append(Record::Checkpoint { records })?;
        self.journal.sync()
    }

    /// How often it was rewritten: records are counted anew each time.
    #[must_use]
    pub fn rewrites(&self) -> u64 {
        self.rewrites
    }

    /// Whether it takes no records before it is rewritten.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.unsaid || self.journal.is_broken()
    }

    /// Whether it has grown so long that it should be rewritten.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.journal.len() > REWRITE_AT && self.journal.len() / 2 > self.compact
    }

    /// Whether it has grown at all to speak of: it is then too long for a staging that holds nothing.
    #[must_use]
    pub fn has_grown(&self) -> bool {
        self.journal.len() > GROWN
    }

    /// Replaces the journal by one that says the same in fewer records.
    pub fn rewrite(&mut self, boot: BootId, stored: &BTreeMap<BundleId, Stored>) -> Result<(), JournalError> {
        let mut records = vec![Record::Boot(boot)];
        for (&BundleId(id), stored) in stored {
            records.extend(stored.length.map(|length| Record::Length { id, length }));
            ranges(&mut records, id, &stored.synced, &stored.synced_flat);
        }
        records.push(Record::Checkpoint { records: records.len() as u64 });
        // Nothing is before it that is not synced.
        records.extend(self.failed.then_some(Record::Unsynced));
        for (&BundleId(id), stored) in stored {
            if stored.all != stored.synced || stored.flat != stored.synced_flat {
                ranges(&mut records, id, &stored.all, &stored.flat);
            }
        }
        let records: Vec<Vec<u8>> = records.iter().map(codec::encode).collect();
        self.journal.rewrite(&records)?;
        self.records = records.len() as u64;
        self.rewrites += 1;
        self.unsaid = false;
        self.compact = self.journal.len();
        Ok(())
    }

    fn append(&mut self, record: Record) -> Result<(), JournalError> {
        if self.unsaid {
            return Err(JournalError::Broken { path: self.journal.path().to_owned() });
        }
        self.journal.append(&codec::encode(&record), Sync::No)?;
        self.records += 1;
        Ok(())
    }
}

/// Writes flat ranges last, since a `Tree` record says that its bytes are no longer in the flat file.
fn ranges(records: &mut Vec<Record>, id: u64, all: &Ranges, flat: &Ranges) {
    let tree = all.iter().flat_map(|range| flat.gaps(range));
    records.extend(tree.map(|r| Record::Tree { id, start: r.start, end: r.end }));
    records.extend(flat.iter().map(|r| Record::Flat { id, start: r.start, end: r.end }));
}

#[derive(Default)]
struct Replay {
    stored: BTreeMap<BundleId, Stored>,
    boot: Option<BootId>,
    records: u64,
    /// Records that no checkpoint covers yet: number, bundle, start, end, flat.
    pending: Vec<(u64, BundleId, u64, u64, bool)>,
    /// A sync failed.
    unsynced: bool,
}

impl Replay {
    fn apply(&mut self, record: Record) {
        match record {
            Record::Boot(boot) => {
                if self.boot.is_some_and(|before| before != boot) {
                    self.back_to_synced();
                }
                self.boot = Some(boot);
            }
            Record::Length { id, length } => self.bundle(BundleId(id)).length = Some(length),
            Record::Tree { id, start, end } => self.add(BundleId(id), start, end, false),
            Record::Flat { id, start, end } => self.add(BundleId(id), start, end, true),
            Record::Checkpoint { records } => {
                for (number, id, start, end, flat) in std::mem::take(&mut self.pending) {
                    if number >= records {
                        self.pending.push((number, id, start, end, flat));
                        continue;
                    }
                    let stored = self.bundle(id);
                    stored.synced.insert(start..end);
                    if flat {
                        stored.synced_flat.insert(start..end);
                    } else {
                        stored.synced_flat.remove(start..end);
                    }
                }
            }
            Record::Forget { id } => {
                self.stored.remove(&BundleId(id));
                self.pending.retain(|pending| pending.1.0 != id);
            }
            Record::Unsynced => {
                self.back_to_synced();
                self.unsynced = true;
            }
            Record::Lost { id, start, end } => self.lose(BundleId(id), &(start..end)),
        }
        self.records += 1;
    }

    fn bundle(&mut self, id: BundleId) -> &mut Stored {
        self.stored.entry(id).or_default()
    }

    fn add(&mut self, id: BundleId, start: u64, end: u64, flat: bool) {
        if start >= end {
            return;
        }
        self.bundle(id).add(start..end, flat);
        self.pending.push((self.records, id, start, end, flat));
    }

    fn lose(&mut self, id: BundleId, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.bundle(id).remove(range);
        let pending = std::mem::take(&mut self.pending);
        for (number, of, start, end, flat) in pending {
            let cut =
                if of == id { [start..end.min(range.start), start.max(range.end)..end] } else { [start..end, 0..0] };
            let left = cut.into_iter().filter(|r| !r.is_empty());
            self.pending.extend(left.map(|r| (number, of, r.start, r.end, flat)));
        }
    }

    fn back_to_synced(&mut self) {
        self.stored.values_mut().for_each(Stored::back_to_synced);
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use checkvalve_host::disk::OsDisk;

    const ONE: BundleId = BundleId(1);

    fn open(disk: &Arc<dyn Disk>, path: &Path, boot: u8) -> (Log, BTreeMap<BundleId, Stored>) {
        let (log, stored) = Log::open(disk, path, [boot; 16]).unwrap();
        (log, stored)
    }

    fn spans(ranges: &Ranges) -> Vec<(u64, u64)> {
        ranges.iter().map(|r| (r.start, r.end)).collect()
    }

    #[test]
    fn a_restart_keeps_all_a_reboot_what_was_synced() {
        let dir = crate::testing::dir();
        let (disk, path): (Arc<dyn Disk>, _) = (Arc::new(OsDisk), dir.path().join("log"));
        let (mut log, stored) = open(&disk, &path, 1);
        assert!(stored.is_empty());
        log.length(ONE, 100).unwrap();
        log.stored(ONE, 0..10, true).unwrap();
        log.stored(ONE, 20..30, false).unwrap();
        let before_sync = log.records();
        log.stored(ONE, 30..40, false).unwrap();
        log.checkpoint(before_sync).unwrap();
        log.stored(ONE, 0..10, false).unwrap();
        drop(log);
        for _ in 0..2 {
            let (_, stored) = open(&disk, &path, 1);
            let one = &stored[&ONE];
            assert_eq!((one.length, spans(&one.all), spans(&one.flat)), (Some(100), vec![(0, 10), (20, 40)], vec![]));
            assert_eq!((spans(&one.synced), spans(&one.synced_flat)), (vec![(0, 10), (20, 30)], vec![(0, 10)]));
        }
        for _ in 0..2 {
            let (_, stored) = open(&disk, &path, 2);
            let one = &stored[&ONE];
            assert_eq!(spans(&one.all), [(0, 10), (20, 30)], "30..40 was stored while the sync ran");
            assert_eq!(spans(&one.flat), [(0, 10)], "had not moved yet as far as the disk knows");
        }
    }

    #[test]
    fn what_is_lost_is_not_synced_later() {
        let dir = crate::testing::dir();
        let (disk, path): (Arc<dyn Disk>, _) = (Arc::new(OsDisk), dir.path().join("log"));
        let (mut log, _) = open(&disk, &path, 1);
        log.stored(ONE, 0..50, false).unwrap();
        let records = log.records();
        log.checkpoint(records).unwrap();
        log.stored(ONE, 50..100, true).unwrap();
        log.stored(BundleId(2), 0..100, false).unwrap();
        let before_sync = log.records();
        log.lost(ONE, &[10..20, 45..70]).unwrap();
        log.stored(ONE, 12..14, false).unwrap();
        log.checkpoint(before_sync).unwrap();
        drop(log);
        let (_, stored) = open(&disk, &path, 1);
        let one = &stored[&ONE];
        assert_eq!(spans(&one.all), [(0, 10), (12, 14), (20, 45), (70, 100)]);
        assert_eq!(spans(&one.synced), [(0, 10), (20, 45), (70, 100)], "12..14 came while the sync ran");
        assert_eq!((spans(&one.flat), spans(&one.synced_flat)), (vec![(70, 100)], vec![(70, 100)]));
        assert_eq!(spans(&stored[&BundleId(2)].synced), [(0, 100)]);
        let (_, stored) = open(&disk, &path, 2);
        assert_eq!(spans(&stored[&ONE].all), [(0, 10), (20, 45), (70, 100)]);
    }

    #[test]
    fn what_is_forgotten_stays_forgotten() {
        let dir = crate::testing::dir();
        let (disk, path): (Arc<dyn Disk>, _) = (Arc::new(OsDisk), dir.path().join("log"));
        let (mut log, _) = open(&disk, &path, 1);
        log.stored(ONE, 0..10, false).unwrap();
        log.stored(BundleId(2), 0..10, false).unwrap();
        log.forget(ONE).unwrap();
        let records = log.records();
        log.checkpoint(records).unwrap();
        log.stored(BundleId(2), 10..20, false).unwrap();
        log.unsynced().unwrap();
        drop(log);
        let (_, stored) = open(&disk, &path, 1);
        assert_eq!(stored.keys().copied().collect::<Vec<_>>(), [BundleId(2)]);
        assert_eq!(spans(&stored[&BundleId(2)].all), [(0, 10)]);
    }
}
