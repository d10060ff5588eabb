//! What the sender knows and must not forget: which bundles there are, which sequences and ESIs are used up, which epoch
//! it is, which number the session has.
//!
//! One journal; every record is the whole new state of one thing, the last one counts, so that replaying is reading.
//! Whatever must not be used twice (a sequence, ESIs, a session's number) is durable before it is used.
//!
//! The layouts of the records, and how older ones are read, are in `ledger/record.rs`.

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

/// The highest clock value that is accepted from a journal, in milliseconds: near the end of its numbers everything would be due.
const MAX_UPTIME_MS: u64 = 1 << 53;

/// The journal, and what of it is about no single bundle. What it says of bundles and channels is kept by
/// [`Bundles`](crate::bundles::Bundles), and given back whenever the journal is written anew.
pub struct Ledger {
    journal: Journal,
    lines: usize,
    epoch: Option<Epoch>,
    /// Of the newest session of this epoch.
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
    /// Opens the journal at `path`, creating it if it is missing. Gives what it says of bundles and channels, oldest first, and
    /// what of it was lost. Errors: [`LedgerError::Journal`].
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

    /// The number of the next session: 1 in a new epoch, then always one more. Errors: [`LedgerError::Sessions`].
    pub fn next_session(&self) -> Result<u64, LedgerError> {
        next(self.session_number).ok_or(LedgerError::Sessions)
    }

    /// Milliseconds that daemons have run on this ledger: a clock that no administrator sets. See [`Ledger::run_for`].
    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        self.uptime_ms
    }

    /// Lets `ms` milliseconds pass on the ledger's clock. Every record carries the time, so that it is durable with them.
    pub fn run_for(&mut self, ms: u64) {
        self.uptime_ms = self.uptime_ms.saturating_add(ms);
    }

    /// Whether the journal is of an older version: nothing is added to it before it is rewritten.
    #[must_use]
    pub fn is_older(&self) -> bool {
        self.journal.is_older()
    }

    /// Records in the journal, those that others superseded with them.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// Writes changes down, durable when this returns with `Sync::Yes`. `all` gives what the journal is to say of bundles and
    /// channels apart from these changes, if it has to be written anew.
    ///
    /// Errors: [`LedgerError::Journal`]; then nothing changed (after a failed sync, the changes may come back after a crash).
    pub fn write(
        &mut self,
        changes: &[Change],
        sync: Sync,
        all: impl FnOnce() -> Vec<Change>,
    ) -> Result<(), LedgerError> {
        let lines: Vec<_> = changes.iter().map(|change| self.encode(change.clone())).collect();
        match self.journal.append_all(&lines, sync) {
            // Since a sync failed, because it is full or older: a new file helps, if the disk does.
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

    /// Writes the journal anew: the epoch, the session, and what is known of channels and bundles. Mends a damaged one.
    /// Errors: [`LedgerError::Journal`].
    pub fn rewrite(&mut self, all: Vec<Change>) -> Result<(), LedgerError> {
        // The epoch first: what comes before it is not of it.
        let epoch = self.epoch.map(Change::Epoch).into_iter();
        let changes = epoch.chain([Change::Session(self.session_number)]).chain(all);
        let lines: Vec<_> = changes.map(|change| self.encode(change)).collect();
        self.journal.rewrite(&lines)?;
        self.lines = lines.len();
        Ok(())
    }

    /// As [`Ledger::rewrite`], with a new epoch. Errors: [`LedgerError::Journal`]. The epoch is then not what is on the disk: drop
    /// this ledger.
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

/// The number after one that is given out. None: it was the last.
pub(crate) fn next(number: u64) -> Option<u64> {
    number.checked_add(1).filter(|next| *next <= MAX_SEQUENCE)
}
