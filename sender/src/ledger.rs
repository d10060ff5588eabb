//! What the sender knows and must not forget: which bundles there are, which sequences and ESIs are used up, which epoch
//! it is, which number the session has.
//!
//! One journal; every record is the whole new state of one thing, the last one counts, so that replaying is reading.
//! Whatever must not be used twice (a sequence, ESIs, a session's number) is durable before it is used.
//!
//! The layouts of the records, and how older ones are read, are in `ledger/record.rs`.

mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use checkvalve_host::disk::Disk;
use checkvalve_host::exit::Exit;
use checkvalve_host::journal::{CorruptRange, Journal, JournalError, Sync};
use checkvalve_protocol::beacon::Epoch;
use checkvalve_protocol::codec;
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::limits::MAX_SEQUENCE;

pub use record::{BundleRecord, Resend, State};
use record::{Change, Line};

/// Bundles that are over (not held any more) and still remembered, in a channel.
const REMEMBERED: usize = 1_000;
/// Records that may be superseded before the journal is rewritten.
const SUPERSEDED: usize = 2_000;
/// The latest that the ledger's clock is believed to be, in milliseconds: at the end of its numbers everything would be due.
const MAX_UPTIME_MS: u64 = 1 << 53;

/// The ledger.
pub struct Ledger {
    journal: Journal,
    lines: usize,
    epoch: Option<Epoch>,
    /// Of the newest session of this epoch.
    session_number: u64,
    uptime_ms: u64,
    channels: BTreeMap<ChannelName, Channel>,
    bundles: BTreeMap<BundleId, BundleRecord>,
}

/// What was wrong with the journal when it was opened.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Ranges of the file that hold no valid record.
    pub corrupt: Vec<CorruptRange>,
    /// Records that this program does not understand.
    pub unknown: usize,
    /// Whether there was no journal, or an empty one.
    pub empty: bool,
}

impl Damage {
    /// Whether anything was lost.
    #[must_use]
    pub fn is_real(&self) -> bool {
        !self.corrupt.is_empty() || self.unknown > 0
    }
}

#[derive(Default)]
struct Channel {
    last: u64,
    by_sequence: BTreeMap<u64, BundleId>,
    /// Refused before they had a sequence.
    unnumbered: BTreeSet<BundleId>,
}

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The journal cannot be opened or written to.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// An epoch has no more numbers for sessions.
    #[error(
        "sessions of this epoch are used up, {MAX_SEQUENCE} is the last; `checkvalve-sender adopt` begins another epoch"
    )]
    Sessions,
}

impl LedgerError {
    /// What a program exits with for it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Journal(error) => error.exit(),
            Self::Sessions => Exit::IoErr,
        }
    }
}

impl Ledger {
    /// Opens the journal at `path`, creating it if it is missing, and says what of it was lost. One of an older version is rewritten.
    /// Errors: [`LedgerError::Journal`].
    pub fn open(disk: &Arc<dyn Disk>, path: &Path) -> Result<(Self, Damage), LedgerError> {
        let (journal, recovered) = Journal::open(disk, path, record::SCHEMA)?;
        let mut ledger = Self {
            journal,
            lines: recovered.records.len(),
            epoch: None,
            session_number: 0,
            uptime_ms: 0,
            channels: BTreeMap::new(),
            bundles: BTreeMap::new(),
        };
        let mut damage = Damage { corrupt: recovered.corrupt, unknown: 0, empty: recovered.records.is_empty() };
        for bytes in &recovered.records {
            match record::decode(recovered.version, bytes) {
                Ok(line) => ledger.apply(line),
                Err(_) => damage.unknown += 1,
            }
        }
        // A damaged one shows that it was until its owner has mended it and rewrites it.
        if ledger.journal.is_older() && !damage.is_real() {
            ledger.rewrite()?;
        }
        Ok((ledger, damage))
    }

    /// The newest epoch. None: none has begun.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// Begins an epoch, durably. Does nothing if it is not newer than the present one. Errors: [`LedgerError::Journal`].
    pub fn begin_epoch(&mut self, epoch: Epoch) -> Result<(), LedgerError> {
        self.write(vec![Change::Epoch(epoch)], Sync::Yes)
    }

    /// Begins a session and gives its number: 1 in a new epoch, then always one more.
    /// Errors: [`LedgerError::Journal`], the number is then not used; [`LedgerError::Sessions`].
    pub fn begin_session(&mut self) -> Result<u64, LedgerError> {
        let number = next(self.session_number).ok_or(LedgerError::Sessions)?;
        self.write(vec![Change::Session(number)], Sync::Yes)?;
        Ok(number)
    }

    /// The sequence that the next bundle of a channel will have, if it takes it. None: [`MAX_SEQUENCE`] was given out.
    #[must_use]
    pub fn next_sequence(&self, channel: &ChannelName) -> Option<u64> {
        next(self.last_sequence(channel))
    }

    /// The newest sequence that a channel has given out; 0 before the first.
    #[must_use]
    pub fn last_sequence(&self, channel: &ChannelName) -> u64 {
        self.channels.get(channel).map_or(0, |c| c.last)
    }

    /// Milliseconds that daemons have run on this ledger: a clock that no administrator sets. See [`Ledger::run_for`].
    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        self.uptime_ms
    }

    /// When it will be `ms` milliseconds later on that clock.
    #[must_use]
    pub fn after(&self, ms: u64) -> u64 {
        self.uptime_ms.saturating_add(ms)
    }

    /// Lets `ms` milliseconds pass on the ledger's clock. Every record carries the time, so that it is durable with them.
    pub fn run_for(&mut self, ms: u64) {
        self.uptime_ms = self.uptime_ms.saturating_add(ms);
    }

    /// Writes the time down, when nothing else was for long. Errors: [`LedgerError::Journal`].
    pub fn write_uptime(&mut self) -> Result<(), LedgerError> {
        self.write(vec![Change::Uptime], Sync::No)
    }

    /// Sets what is known of a bundle. Durable when this returns with `Sync::Yes`.
    /// Errors: [`LedgerError::Journal`]; the bundle is then known as before (after a failed sync, the new state may come back
    /// after a crash).
    pub fn put(&mut self, bundle: BundleRecord, sync: Sync) -> Result<(), LedgerError> {
        self.write(vec![Change::Bundle(Box::new(bundle))], sync)
    }

    /// What is known of a bundle.
    #[must_use]
    pub fn get(&self, id: BundleId) -> Option<&BundleRecord> {
        self.bundles.get(&id)
    }

    /// The bundle that has a sequence in a channel.
    #[must_use]
    pub fn by_sequence(&self, channel: &ChannelName, sequence: u64) -> Option<&BundleRecord> {
        let id = self.channels.get(channel)?.by_sequence.get(&sequence)?;
        self.get(*id)
    }

    /// All bundles, in no order that means anything.
    pub fn bundles(&self) -> impl Iterator<Item = &BundleRecord> {
        self.bundles.values()
    }

    /// Channels that have given out a sequence or refused a bundle.
    pub fn channels(&self) -> impl Iterator<Item = &ChannelName> {
        self.channels.keys()
    }

    /// The bundles of a channel that have a sequence, newest first.
    pub fn newest(&self, channel: &ChannelName) -> impl Iterator<Item = &BundleRecord> {
        let ids = self.channels.get(channel).into_iter().flat_map(|c| c.by_sequence.values().rev());
        ids.filter_map(|id| self.get(*id))
    }

    /// Never gives out a sequence up to `last` in `channel` again: for what is found on the disk when the journal was damaged.
    /// Errors: [`LedgerError::Journal`].
    pub fn skip_to(&mut self, channel: &ChannelName, last: u64) -> Result<(), LedgerError> {
        self.write(vec![Change::Channel { name: channel.clone(), last }], Sync::Yes)
    }

    /// Takes a bundle in without writing it down: for what the next [`Ledger::begin_anew`] or [`Ledger::rewrite`] makes durable.
    pub fn remember(&mut self, bundle: BundleRecord) {
        self.apply(Line { uptime_ms: self.uptime_ms, change: Change::Bundle(Box::new(bundle)) });
    }

    /// Goes on as another state: begins `epoch`, gives out none of the sequences up to `last` of each channel again, and forgets
    /// some bundles, whose sequences stay used up. All of it is durable when this returns, or none.
    ///
    /// Errors: [`LedgerError::Journal`]. What this ledger says is then not what is on the disk: drop it.
    pub fn begin_anew(
        &mut self,
        epoch: Epoch,
        last: &BTreeMap<ChannelName, u64>,
        forgotten: &[BundleId],
    ) -> Result<(), LedgerError> {
        let last = last.iter().map(|(name, &last)| Change::Channel { name: name.clone(), last });
        let forgotten = forgotten.iter().copied().map(Change::Forget);
        for change in std::iter::once(Change::Epoch(epoch)).chain(last).chain(forgotten) {
            self.apply(Line { uptime_ms: self.uptime_ms, change });
        }
        self.rewrite()
    }

    /// Forgets the oldest bundles that are over, and rewrites the journal when most of it is superseded.
    /// Errors: [`LedgerError::Journal`]; nothing is lost then.
    pub fn tidy(&mut self) -> Result<(), LedgerError> {
        let forgotten = self.forgettable();
        if !forgotten.is_empty() {
            self.write(forgotten.into_iter().map(Change::Forget).collect(), Sync::No)?;
        }
        let live = self.bundles.len() + self.channels.len() + 2;
        if self.lines > 2 * live + SUPERSEDED { self.rewrite() } else { Ok(()) }
    }

    /// Writes the journal anew from what is known. Mends a damaged one. Errors: [`LedgerError::Journal`].
    pub fn rewrite(&mut self) -> Result<(), LedgerError> {
        let channels = self.channels.iter().map(|(name, c)| Change::Channel { name: name.clone(), last: c.last });
        let bundles = self.bundles.values().map(|b| Change::Bundle(Box::new(b.clone())));
        // The epoch first: what comes before it is not of it.
        let epoch = self.epoch.map(Change::Epoch).into_iter();
        let changes = epoch.chain([Change::Session(self.session_number)]).chain(channels).chain(bundles);
        let lines: Vec<_> = changes.map(|change| self.encode(change)).collect();
        self.journal.rewrite(&lines)?;
        self.lines = lines.len();
        Ok(())
    }

    fn write(&mut self, changes: Vec<Change>, sync: Sync) -> Result<(), LedgerError> {
        let lines: Vec<_> = changes.iter().map(|change| self.encode(change.clone())).collect();
        match self.journal.append_all(&lines, sync) {
            // Since a sync failed, because it is full or older: a new file helps, if the disk does.
            Err(error) if error.wants_rewrite() => {
                self.rewrite()?;
                self.journal.append_all(&lines, sync)?;
            }
            other => other?,
        }
        self.lines += lines.len();
        let uptime_ms = self.uptime_ms;
        changes.into_iter().for_each(|change| self.apply(Line { uptime_ms, change }));
        Ok(())
    }

    fn encode(&self, change: Change) -> Vec<u8> {
        codec::encode(&Line { uptime_ms: self.uptime_ms, change })
    }

    fn apply(&mut self, line: Line) {
        self.uptime_ms = self.uptime_ms.max(line.uptime_ms.min(MAX_UPTIME_MS));
        match line.change {
            Change::Session(number) => self.session_number = self.session_number.max(number),
            Change::Epoch(epoch) => {
                if self.epoch.is_none_or(|old| old.number < epoch.number) {
                    (self.epoch, self.session_number) = (Some(epoch), 0);
                }
            }
            Change::Uptime => {}
            Change::Channel { name, last } => {
                let channel = self.channels.entry(name).or_default();
                channel.last = channel.last.max(last);
            }
            Change::Bundle(bundle) => {
                let channel = self.channels.entry(bundle.channel.clone()).or_default();
                match bundle.sequence {
                    Some(sequence) => {
                        channel.last = channel.last.max(sequence);
                        channel.by_sequence.insert(sequence, bundle.id);
                    }
                    None => drop(channel.unnumbered.insert(bundle.id)),
                }
                self.bundles.insert(bundle.id, *bundle);
            }
            Change::Forget(id) => {
                let Some(bundle) = self.bundles.remove(&id) else { return };
                let Some(channel) = self.channels.get_mut(&bundle.channel) else { return };
                channel.unnumbered.remove(&id);
                if let Some(sequence) = bundle.sequence {
                    channel.by_sequence.remove(&sequence);
                }
            }
        }
    }

    fn forgettable(&self) -> Vec<BundleId> {
        let mut ids = Vec::new();
        for channel in self.channels.values() {
            let over = |id: &&BundleId| self.bundles.get(id).is_some_and(BundleRecord::is_over);
            let numbered: Vec<_> = channel.by_sequence.values().filter(over).collect();
            let mut refused: Vec<_> = channel.unnumbered.iter().filter_map(|id| self.get(*id)).collect();
            refused.sort_by_key(|b| b.claimed_ms);
            ids.extend(numbered.iter().take(numbered.len().saturating_sub(REMEMBERED)).copied());
            ids.extend(refused.iter().take(refused.len().saturating_sub(REMEMBERED)).map(|b| b.id));
        }
        ids
    }
}

/// The number after one that is given out. None: it was the last.
fn next(number: u64) -> Option<u64> {
    number.checked_add(1).filter(|next| *next <= MAX_SEQUENCE)
}

#[cfg(test)]
mod tests;
