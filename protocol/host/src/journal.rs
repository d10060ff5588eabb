//! Append-only journals that survive a power cut at any byte, and report what a bad disk has damaged.
//!
//! A file is a header of 32 bytes and then records: length `u32` little-endian, CRC-32 (IEEE) `u32` little-endian, payload.
//! The CRC covers the first 16 bytes of the header, the record's offset in the file (`u64` little-endian), the length and
//! the payload. So a record is valid only in its own place and under its own version, and zeros are never a record.
//!
//! | bytes of the header | what |
//! | --- | --- |
//! | 0..8 | `CVJRNL`, the version of the container (2), and the same version inverted |
//! | 8..14 | what the records are: the name of their [`Schema`] |
//! | 14..16 | the version of the records, and the same version inverted |
//! | 16..28 | the version of the program that wrote the file, for people, padded with zeros; later containers keep this field |
//! | 28..32 | CRC-32 of bytes 0..28, little-endian |
//!
//! Container 1 had only the first 8 bytes, without a CRC; its records have version 1. All records of a file have the same
//! version. A file of an older version can be read, but takes no records before its owner has rewritten it in the current
//! version. A file of a newer version is refused and left alone.
//!
//! The first append after opening a journal cuts off a torn tail. Damage in the middle is skipped and reported, and stays
//! until [`Journal::rewrite`].

mod header;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use header::Schema;
use header::{Found, HEADER, Layout};

use crate::disk::{Disk, DiskFile, read_to_end, write_atomic};
use crate::exit::Exit;
use crate::version::Newer;

/// The most bytes in a record. Anything longer belongs in a file of its own that a record names.
pub const MAX_RECORD: usize = 1 << 20;
/// The most bytes in a journal. Its owner should rewrite it long before.
pub const MAX_JOURNAL: u64 = 1 << 30;

const FRAME: usize = 8;
const MODE: u32 = 0o600;

/// An open journal. Each path may be open only once at a time.
pub struct Journal {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    schema: Schema,
    /// The layout of new records. It differs from that of an older file until that is rewritten.
    layout: Layout,
    file: Box<dyn DiskFile>,
    /// Where the next record goes.
    end: u64,
    state: State,
}

/// What a journal held when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Version of the records, from 1 up to that of the schema.
    pub version: u8,
    /// Payloads, oldest first.
    pub records: Vec<Vec<u8>>,
    /// How many bytes at the end are torn: a record that was being written when the power failed, or a damaged last record.
    pub torn_bytes: u64,
    /// Damaged ranges before the last good record. Their content is lost. They stay until the journal is rewritten.
    pub corrupt: Vec<CorruptRange>,
}

/// A range of a journal that holds no valid record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CorruptRange {
    /// Offset in the file in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Whether an append waits for the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// The record and all before it are durable when the append returns.
    Yes,
    /// Until the next append that waits, or [`Journal::sync`], a power cut may lose the record.
    No,
}

/// Why a journal cannot be opened or written to.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file is not a journal. It is left as it is.
    #[error("{path}: not a journal; move the file away")]
    NotAJournal {
        /// The file.
        path: PathBuf,
    },
    /// The file is a journal with other records. It is left as it is.
    #[error("{path}: a journal of \"{found}\", not of \"{wanted}\"; move the file away")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// A newer version of this program wrote the file. It is left as it is.
    #[error(transparent)]
    Newer(#[from] Newer),
    /// The journal has records of an older version. It takes no records before [`Journal::rewrite`].
    #[error("{path}: has records of an older version; rewrite it")]
    Older {
        /// The file.
        path: PathBuf,
    },
    /// A record is longer than [`MAX_RECORD`]. The journal is unchanged.
    #[error("a record of {len} bytes does not fit in a journal")]
    RecordTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The journal would become longer than [`MAX_JOURNAL`]. It is unchanged.
    #[error("{path}: full; rewrite it")]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// A sync failed earlier, or the file was removed, so nobody knows what is durable. Only [`Journal::rewrite`] repairs that.
    #[error("{path}: what is durable is unknown since a sync failed or the file was removed; rewrite it")]
    Broken {
        /// The file.
        path: PathBuf,
    },
    /// The disk reported an error. After a failed append without a sync, the journal is unchanged, and the append may be retried.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the disk said.
        error: io::Error,
    },
}

enum State {
    Good,
    /// A write failed half way, or the tail is torn. Everything after `end` must be cut off before the next write.
    Ragged,
    Broken,
    /// The file is as an older version of the program left it.
    Older,
}

impl JournalError {
    /// Whether [`Journal::rewrite`] repairs it.
    #[must_use]
    pub fn wants_rewrite(&self) -> bool {
        matches!(self, Self::Broken { .. } | Self::Full { .. } | Self::Older { .. })
    }

    /// The program's exit code for this error.
    #[must_use]
    pub fn exit(&self) -> Exit {
        if matches!(self, Self::Newer(_)) { Exit::Config } else { Exit::IoErr }
    }
}

impl Journal {
    /// Opens the journal at `path`. If it is missing, creates it with mode 0600 and makes it durable at once.
    ///
    /// Repairs a damaged header. A torn tail stays until the first append or rewrite, to show that something was lost.
    /// The returned records are durable. A file of an older version stays as it is: see [`Journal::is_older`].
    ///
    /// Errors: [`JournalError::NotAJournal`], [`JournalError::Foreign`] and [`JournalError::Newer`], which leave the file
    /// as it is; [`JournalError::Io`].
    pub fn open(disk: &Arc<dyn Disk>, path: &Path, schema: Schema) -> Result<(Self, Recovered), JournalError> {
        let io = |error| JournalError::Io { path: path.to_owned(), error };
        let file = match disk.open_rw(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write_atomic(disk.as_ref(), path, &schema.header(), MODE).map_err(io)?;
                disk.open_rw(path).map_err(io)?
            }
            other => other.map_err(io)?,
        };
        let bytes = read_to_end(file.as_ref(), MAX_JOURNAL).map_err(io)?;
        let (layout, found) = header::read(&bytes, path, schema)?;
        let (recovered, end) = recover(&bytes, &layout, found);
        // If only the process died, the records may be in the page cache only. The caller acts on them, so make them
        // durable. They are written again first: after a failed sync the kernel calls such pages clean, and later syncs pass
        // over them. Sync the directory too, in case a rewrite was killed before it did.
        match file.write_all_at(&bytes, 0) {
            // Some file systems need room even for bytes that are there already.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                tracing::warn!(path = %path.display(), %error, "the journal cannot be written again");
            }
            written => written.map_err(io)?,
        }
        if layout.is_present() && found != Found::Whole {
            file.write_all_at(&schema.header(), 0).map_err(io)?;
        }
        file.sync_all().map_err(io)?;
        disk.sync_dir(path.parent().unwrap_or(path)).map_err(io)?;
        let state = match layout.is_present() {
            false => State::Older,
            true if recovered.torn_bytes > 0 => State::Ragged,
            true => State::Good,
        };
        let end = end.max(layout.start as u64);
        let layout = schema.layout();
        Ok((Self { disk: Arc::clone(disk), path: path.to_owned(), schema, layout, file, end, state }, recovered))
    }

    /// Appends a record of 1 to [`MAX_RECORD`] bytes. Panics if it is empty.
    ///
    /// If the write fails, the journal is unchanged, and the append may be retried; after a crash, the record may be there
    /// nevertheless. If the sync fails, nobody knows whether the record will be there after a restart, and the journal takes no
    /// more records until it is rewritten. Errors: every [`JournalError`] except those that only [`Journal::open`] returns.
    pub fn append(&mut self, payload: &[u8], sync: Sync) -> Result<(), JournalError> {
        self.append_all(std::slice::from_ref(&payload), sync)
    }

    /// Appends several records with one write and at most one sync. A crash may keep only the first few of them.
    /// Errors: as [`Journal::append`].
    pub fn append_all<P: AsRef<[u8]>>(&mut self, payloads: &[P], sync: Sync) -> Result<(), JournalError> {
        self.usable()?;
        let mut bytes = Vec::with_capacity(payloads.iter().map(|p| p.as_ref().len() + FRAME).sum());
        for payload in payloads {
            frame(&mut bytes, self.end, payload.as_ref(), &self.layout)?;
        }
        let end = self.end + bytes.len() as u64;
        if end > MAX_JOURNAL {
            return Err(JournalError::Full { path: self.path.clone() });
        }
        if let Err(error) = self.file.write_all_at(&bytes, self.end) {
            self.state = State::Ragged;
            drop(self.usable());
            return Err(self.io(error));
        }
        self.end = end;
        if sync == Sync::Yes { self.sync() } else { Ok(()) }
    }

    /// Makes all records durable. Errors: [`JournalError::Broken`], also if the file is no longer in its place;
    /// [`JournalError::Io`], after which the journal is broken.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        self.usable()?;
        if self.is_removed() {
            // Somebody removed the file, so nobody would find its records again.
            tracing::warn!(path = %self.path.display(), "the journal was removed");
            self.state = State::Broken;
            return Err(JournalError::Broken { path: self.path.clone() });
        }
        if let Err(error) = self.file.sync_data() {
            self.state = State::Broken;
            return Err(self.io(error));
        }
        Ok(())
    }

    /// Atomically and durably replaces the content by `records` of the current version. This also repairs a broken journal.
    ///
    /// Errors: [`JournalError::RecordTooLong`], [`JournalError::Full`]; [`JournalError::Io`], after which the old journal stays
    /// in use, or is broken if the file may already have been replaced.
    pub fn rewrite<P: AsRef<[u8]>>(&mut self, records: &[P]) -> Result<(), JournalError> {
        let mut bytes = self.schema.header().to_vec();
        for payload in records {
            frame(&mut bytes, 0, payload.as_ref(), &self.layout)?;
        }
        if bytes.len() as u64 > MAX_JOURNAL {
            return Err(JournalError::Full { path: self.path.clone() });
        }
        let mut replaced = write_atomic(self.disk.as_ref(), &self.path, &bytes, MODE);
        if let (Err(error), Some(parent)) = (&replaced, self.path.parent())
            && error.kind() == io::ErrorKind::NotFound
        {
            replaced = self.disk.create_dir_all(parent, 0o750);
            replaced = replaced.and_then(|()| write_atomic(self.disk.as_ref(), &self.path, &bytes, MODE));
        }
        match replaced.and_then(|()| self.disk.open_rw(&self.path)) {
            Ok(file) => {
                (self.file, self.end, self.state) = (file, bytes.len() as u64, State::Good);
                Ok(())
            }
            Err(error) => {
                if !self.in_place() {
                    self.state = State::Broken;
                }
                Err(self.io(error))
            }
        }
    }

    /// Length of the file in bytes. The owner uses it to decide when to rewrite.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.end
    }

    /// Whether the journal takes no records before it is rewritten: a sync failed, or the file has an older version.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        matches!(self.state, State::Broken | State::Older)
    }

    /// Whether the file has an older version. The owner must rewrite it before anything else.
    #[must_use]
    pub fn is_older(&self) -> bool {
        matches!(self.state, State::Older)
    }

    /// Whether the journal has no records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end <= HEADER as u64
    }

    /// The journal's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that the journal takes records. Cuts off what a failed write left, which would remain behind a shorter record.
    fn usable(&mut self) -> Result<(), JournalError> {
        match self.state {
            State::Good => Ok(()),
            State::Broken => Err(JournalError::Broken { path: self.path.clone() }),
            State::Older => Err(JournalError::Older { path: self.path.clone() }),
            State::Ragged => {
                self.file.set_len(self.end).map_err(|error| self.io(error))?;
                self.state = State::Good;
                Ok(())
            }
        }
    }

    /// Whether the file was removed or replaced. False if the disk does not say.
    fn is_removed(&self) -> bool {
        match self.disk.lstat(&self.path) {
            Err(error) => error.kind() == io::ErrorKind::NotFound,
            Ok(there) => self.file.meta().is_ok_and(|ours| (ours.dev, ours.ino) != (there.dev, there.ino)),
        }
    }

    fn in_place(&self) -> bool {
        let same = |a: crate::disk::Meta, b: crate::disk::Meta| (a.dev, a.ino) == (b.dev, b.ino);
        matches!((self.file.meta(), self.disk.lstat(&self.path)), (Ok(ours), Ok(there)) if same(ours, there))
    }

    fn io(&self, error: io::Error) -> JournalError {
        JournalError::Io { path: self.path.clone(), error }
    }
}

fn checksum(offset: u64, payload: &[u8], layout: &Layout) -> u32 {
    let mut hasher = layout.hasher.clone();
    hasher.update(&offset.to_le_bytes());
    hasher.update(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// Appends a record to `bytes`, which start at offset `base` of the file.
fn frame(bytes: &mut Vec<u8>, base: u64, payload: &[u8], layout: &Layout) -> Result<(), JournalError> {
    assert!(!payload.is_empty(), "a record of a journal is never empty: zeros on the disk would look like it");
    let too_long = || JournalError::RecordTooLong { len: payload.len() };
    let len = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_RECORD).ok_or_else(too_long)?;
    let offset = base + bytes.len() as u64;
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&checksum(offset, payload, layout).to_le_bytes());
    bytes.extend_from_slice(payload);
    Ok(())
}

/// The payload of the record at `at`, if a valid one begins there.
fn record<'a>(bytes: &'a [u8], at: usize, layout: &Layout) -> Option<&'a [u8]> {
    let payload = bytes.get(at + FRAME..at + FRAME + claimed_len(bytes, at)?)?;
    let crc = u32::from_le_bytes(bytes.get(at + 4..at + FRAME)?.try_into().ok()?);
    (crc == checksum(at as u64, payload, layout)).then_some(payload)
}

fn claimed_len(bytes: &[u8], at: usize) -> Option<usize> {
    let len = u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize;
    (1..=MAX_RECORD).contains(&len).then_some(len)
}

/// Where the first valid record after the damaged one at `at` begins.
fn next_record(bytes: &[u8], at: usize, layout: &Layout) -> Option<usize> {
    // Most damage leaves the length intact. Trying the place after it first avoids a search inside payloads.
    let after = claimed_len(bytes, at).map(|len| at + FRAME + len);
    after.into_iter().chain(at + 1..bytes.len()).find(|&at| record(bytes, at, layout).is_some())
}

/// Reads all records. Returns them and where the last one ends.
fn recover(bytes: &[u8], layout: &Layout, header: Found) -> (Recovered, u64) {
    let (records, corrupt) = (Vec::new(), Vec::new());
    let mut found = Recovered { version: layout.version, records, torn_bytes: 0, corrupt };
    let mut at = layout.start;
    match header {
        Found::Whole => {}
        Found::Unfinished => {
            found.torn_bytes = bytes.len() as u64;
            return (found, 0);
        }
        Found::Damaged => found.corrupt.push(CorruptRange { offset: 0, len: at.min(bytes.len()) as u64 }),
    }
    while at < bytes.len() {
        if let Some(payload) = record(bytes, at, layout) {
            found.records.push(payload.to_vec());
            at += FRAME + payload.len();
        } else if let Some(next) = next_record(bytes, at, layout) {
            found.corrupt.push(CorruptRange { offset: at as u64, len: (next - at) as u64 });
            at = next;
        } else {
            found.torn_bytes = (bytes.len() - at) as u64;
            break;
        }
    }
    (found, at as u64)
}

#[cfg(test)]
mod tests;
