//! The state that the sender must not forget: which bundles exist, which sequences and ESIs are used up, the current epoch,
//! and the session number.
//!
//! It is one journal. Every record holds the complete new state of one thing and replaces its earlier records.
//! Anything that must not be used twice (a sequence, ESIs, a session number) is made durable before it is used.
//!
//! `ledger/record.rs` defines the record layouts and how older ones are read.

mod record;

use std::path::Path;
use std::sync::Arc;

use checkvalve_host::disk::Disk;
use checkvalve_host::exit::Exit;
use checkvalve_host::journal::{CorruptRange, Journal, JournalError, Sync};
use checkvalve_protocol::beacon::Epoch;
use checkvalve_protocol::codec;
use checkvalve_protocol::limits::MAX_SEQUENCE;

use record::Line;
pub use record::{BundleRecord, Change, Resend, State};

/// The highest clock value that is accepted from a journal, in milliseconds. Close to `u64::MAX` everything would be due.
const MAX_UPTIME_MS: u64 = 1 << 53;

/// The journal, and the state in it that belongs to no single bundle. [`Bundles`](crate::bundles::Bundles) keeps the state of
/// bundles and channels, and passes it back in whenever the journal is rewritten.
pub struct Ledger {
    journal: Journal,
    lines: usize,
    epoch: Option<Epoch>,
    /// The number of this epoch's newest session.
    session_number: u64,
    uptime_ms: u64,
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
    /// The program's exit code for this error.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Journal(error) => error.exit(),
            Self::Sessions => Exit::IoErr,
        }
    }
}

impl Ledger {
    /// Opens the journal at `path`, creating it if it is missing. Returns its changes, oldest first, and the damage found.
    /// Errors: [`LedgerError::Journal`].
    pub fn open(disk: &Arc<dyn Disk>, path: &Path) -> Result<(Self, Vec<Change>, Damage), LedgerError> {
        let (journal, recovered) = Journal::open(disk, path, record::SCHEMA)?;
        let lines = recovered.records.len();
        let mut ledger = Self { journal, lines, epoch: None, session_number: 0, uptime_ms: 0 };
        let mut damage = Damage { corrupt: recovered.corrupt, unknown: 0, empty: recovered.records.is_empty() };
        let mut changes = Vec::new();
        for bytes in &recovered.records {
            match record::decode(recovered.version, bytes) {
                Ok(Line { uptime_ms, change }) => {
                    ledger.uptime_ms = ledger.uptime_ms.max(uptime_ms.min(MAX_UPTIME_MS));
                    ledger.apply(&change);
                    changes.push(change);
                }
                Err(_) => damage.unknown += 1,
            }
        }
        Ok((ledger, changes, damage))
    }

    /// The newest epoch. None: none has begun.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// The number for the next session: 1 for the first session of an epoch, then one more each time.
    /// Errors: [`LedgerError::Sessions`].
    pub fn next_session(&self) -> Result<u64, LedgerError> {
        next(self.session_number).ok_or(LedgerError::Sessions)
    }

    /// How many milliseconds daemons have run on this ledger: a clock that no administrator sets. See [`Ledger::run_for`].
    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        self.uptime_ms
    }

    /// Advances the ledger's clock by `ms` milliseconds. Every record carries the time and so makes it durable.
    pub fn run_for(&mut self, ms: u64) {
        self.uptime_ms = self.uptime_ms.saturating_add(ms);
    }

    /// Whether the journal has an older version. It must be rewritten before anything is added to it.
    #[must_use]
    pub fn is_older(&self) -> bool {
        self.journal.is_older()
    }

    /// How many records the journal has, including superseded ones.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// Writes changes to the journal. With `Sync::Yes` they are durable when this returns. `all` gives the state of bundles and
    /// channels before these changes, in case the journal has to be rewritten.
    ///
    /// Errors: [`LedgerError::Journal`]; nothing has changed then (after a failed sync, the changes may reappear after a crash).
    pub fn write(
        &mut self,
        changes: &[Change],
        sync: Sync,
        all: impl FnOnce() -> Vec<Change>,
    ) -> Result<(), LedgerError> {
        let lines: Vec<_> = changes.iter().map(|change| self.encode(change.clone())).collect();
        match self.journal.append_all(&lines, sync) {
            // A sync failed earlier, or the journal is full or older. A new file helps, if the disk accepts one.
            Err(error) if error.wants_rewrite() => {
                self.rewrite(all())?;
                self.journal.append_all(&lines, sync)?;
            }
            other => other?,
        }
        self.lines += lines.len();
        changes.iter().for_each(|change| self.apply(change));
        Ok(())
    }

    /// Rewrites the journal: the epoch, the session, and the state of channels and bundles in `all`. This also repairs a damaged
    /// journal. Errors: [`LedgerError::Journal`].
    pub fn rewrite(&mut self, all: Vec<Change>) -> Result<(), LedgerError> {
        // The epoch comes first, because it resets the session number.
        let epoch = self.epoch.map(Change::Epoch).into_iter();
        let changes = epoch.chain([Change::Session(self.session_number)]).chain(all);
        let lines: Vec<_> = changes.map(|change| self.encode(change)).collect();
        self.journal.rewrite(&lines)?;
        self.lines = lines.len();
        Ok(())
    }

    /// Like [`Ledger::rewrite`], but begins a new epoch. Errors: [`LedgerError::Journal`]. The epoch in memory then differs from
    /// the disk: drop this ledger.
    pub fn begin_anew(&mut self, epoch: Epoch, all: Vec<Change>) -> Result<(), LedgerError> {
        self.apply(&Change::Epoch(epoch));
        self.rewrite(all)
    }

    fn encode(&self, change: Change) -> Vec<u8> {
        codec::encode(&Line { uptime_ms: self.uptime_ms, change })
    }

    fn apply(&mut self, change: &Change) {
        match *change {
            Change::Session(number) => self.session_number = self.session_number.max(number),
            Change::Epoch(epoch) if self.epoch.is_none_or(|old| old.number < epoch.number) => {
                (self.epoch, self.session_number) = (Some(epoch), 0);
            }
            _ => {}
        }
    }
}

/// The number after `number`. None: `number` was the last.
pub(crate) fn next(number: u64) -> Option<u64> {
    number.checked_add(1).filter(|next| *next <= MAX_SEQUENCE)
}
