//! The header of a journal's file, and the version of the records that it implies.

use std::path::Path;

use super::{JournalError, next_record, record};
use crate::version::{Newer, PROGRAM};

/// Length of the header in bytes.
pub(super) const HEADER: usize = 32;
/// The version of the container: header and frames.
const CONTAINER: u8 = 2;
/// How many bytes of the header each record's checksum covers.
const SEALED: usize = 16;
const PROGRAM_AT: std::ops::Range<usize> = SEALED..28;
/// A header that differs from ours in more bytes than this is not ours, rather than damaged.
const MOST_DAMAGED: usize = 2;

/// The kind of records in a journal, and their version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schema {
    name: [u8; 6],
    version: u8,
}

/// How a file's records are framed, and which version they have.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// Version of the records.
    pub(super) version: u8,
    /// Where the first record is.
    pub(super) start: usize,
    /// Hashes the part of the header that every record's checksum covers.
    pub(super) hasher: crc32fast::Hasher,
    is_present: bool,
}

/// The state of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Whole,
    /// The power failed before the header, or anything else, was written.
    Unfinished,
    /// The header is damaged, but its records were found, or it has none.
    Damaged,
}

impl Schema {
    /// Records called `name`. This program writes `version` and reads all versions from 1 to that.
    ///
    /// # Panics
    /// If `version` is 0 or `name` is not ASCII.
    #[must_use]
    pub const fn new(name: &[u8; 6], version: u8) -> Self {
        assert!(version > 0, "versions begin at 1");
        assert!(name.is_ascii(), "a name is ASCII");
        Self { name: *name, version }
    }

    /// The version that this program writes.
    #[must_use]
    pub const fn version(self) -> u8 {
        self.version
    }

    /// The header for records of a version.
    fn header_of(self, version: u8) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&magic(CONTAINER));
        bytes[8..14].copy_from_slice(&self.name);
        bytes[14..SEALED].copy_from_slice(&[version, !version]);
        let program = &PROGRAM.as_bytes()[..PROGRAM.len().min(PROGRAM_AT.len())];
        bytes[PROGRAM_AT][..program.len()].copy_from_slice(program);
        let crc = crc32fast::hash(&bytes[..PROGRAM_AT.end]);
        bytes[PROGRAM_AT.end..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header that this program writes.
    pub(super) fn header(self) -> [u8; HEADER] {
        self.header_of(self.version)
    }

    /// The layout that this program writes.
    pub(super) fn layout(self) -> Layout {
        self.layout_of(self.version)
    }

    fn layout_of(self, version: u8) -> Layout {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.header_of(version)[..SEALED]);
        Layout { version, start: HEADER, hasher, is_present: version == self.version }
    }

    /// Whether this program cannot read a version of the records.
    fn is_newer(self, version: u8) -> bool {
        !(1..=self.version).contains(&version)
    }

    fn newer(self, path: &Path, bytes: &[u8], version: u8) -> JournalError {
        newer(path, bytes, "records", version, self.version)
    }
}

impl Layout {
    /// The layout of container 1: a header of 8 bytes and records of version 1.
    fn first() -> Self {
        Self { version: 1, start: 8, hasher: crc32fast::Hasher::new(), is_present: false }
    }

    /// Whether this program writes this layout.
    pub(super) fn is_present(&self) -> bool {
        self.is_present
    }
}

/// Finds out how to read a file's records. Errors: [`JournalError::NotAJournal`], [`JournalError::Foreign`],
/// [`JournalError::Newer`].
pub(super) fn read(bytes: &[u8], path: &Path, schema: Schema) -> Result<(Layout, Found), JournalError> {
    // A power cut left the file too short, or left only zeros.
    let is_short = magic(CONTAINER).starts_with(bytes) || magic(1).starts_with(bytes) && bytes.len() < 8;
    if is_short || bytes.iter().all(|&byte| byte == 0) {
        return Ok((schema.layout(), Found::Unfinished));
    }
    match container(bytes) {
        Some(1) => return Ok((Layout::first(), Found::Whole)),
        Some(CONTAINER) if bytes.len() < HEADER => return Ok((schema.layout(), Found::Unfinished)),
        Some(CONTAINER) if is_whole(bytes) => {
            let version = bytes[14];
            if bytes[8..14] != schema.name {
                let text = |name: &[u8]| name.escape_ascii().to_string();
                let (found, wanted) = (text(&bytes[8..14]), text(&schema.name));
                return Err(JournalError::Foreign { path: path.to_owned(), found, wanted });
            }
            if schema.is_newer(version) {
                return Err(schema.newer(path, bytes, version));
            }
            return Ok((schema.layout_of(version), Found::Whole));
        }
        Some(version) if version > CONTAINER => return Err(newer(path, bytes, "a journal", version, CONTAINER)),
        _ => {}
    }
    Ok((find(bytes, path, schema)?, Found::Damaged))
}

/// The layout of a file with a damaged header: the one under which records are valid in their places.
fn find(bytes: &[u8], path: &Path, schema: Schema) -> Result<Layout, JournalError> {
    // Try the versions that the two version bytes claim first, then those that this program knows.
    let claims: Vec<u8> = bytes.get(14..SEALED).map_or(Vec::new(), |pair| vec![pair[0], !pair[1]]);
    let claimed = claims.iter().copied().filter(|&version| schema.is_newer(version) && version > 0);
    let known = (1..=schema.version).rev();
    let layouts: Vec<Layout> =
        claimed.chain(known).map(|version| schema.layout_of(version)).chain([Layout::first()]).collect();
    let begins = |layout: &&Layout| record(bytes, layout.start, layout).is_some();
    let holds = |layout: &&Layout| next_record(bytes, layout.start, layout).is_some();
    let found = layouts.iter().find(begins).or_else(|| layouts.iter().find(holds));
    let differing = |other: &[u8]| {
        let same = bytes.iter().zip(other).filter(|(byte, ours)| byte == ours).count();
        other.len().min(bytes.len().max(8)) - same
    };
    let version = match (found, claims.as_slice()) {
        (Some(layout), _) => layout.version,
        // Without any record, both version bytes must agree.
        (None, [a, b]) if a == b && *a > 0 => *a,
        _ => schema.version,
    };
    // Container 1 does not name its schema. It counts as ours only if it is empty.
    let is_empty = bytes.len() < HEADER && differing(&magic(1)) <= MOST_DAMAGED;
    let is_ours = is_empty || differing(&schema.header_of(version)[..SEALED]) <= MOST_DAMAGED;
    match found {
        // Records that are valid in their places make the file ours, however damaged the header is.
        Some(layout) if !schema.is_newer(version) => Ok(layout.clone()),
        None if is_ours && !schema.is_newer(version) => Ok(schema.layout()),
        Some(_) => Err(schema.newer(path, bytes, version)),
        None if is_ours => Err(schema.newer(path, bytes, version)),
        None => Err(JournalError::NotAJournal { path: path.to_owned() }),
    }
}

pub(super) const fn magic(container: u8) -> [u8; 8] {
    [b'C', b'V', b'J', b'R', b'N', b'L', container, !container]
}

/// The version of the container, if the file states one.
fn container(bytes: &[u8]) -> Option<u8> {
    bytes.get(6).copied().filter(|&version| bytes.starts_with(&magic(version)))
}

fn is_whole(bytes: &[u8]) -> bool {
    let crc = bytes.get(PROGRAM_AT.end..HEADER).and_then(|crc| crc.try_into().ok()).map(u32::from_le_bytes);
    crc == Some(crc32fast::hash(&bytes[..PROGRAM_AT.end])) && bytes[15] == !bytes[14]
}

/// The error for a newer version. Later containers keep the program's version in the same place.
fn newer(path: &Path, bytes: &[u8], what: &'static str, version: u8, known: u8) -> JournalError {
    let program = bytes.get(PROGRAM_AT).unwrap_or_default();
    let program = program.split(|&byte| byte == 0).next().unwrap_or_default();
    let program =
        if program.iter().all(u8::is_ascii_graphic) { String::from_utf8_lossy(program).into() } else { String::new() };
    let (version, known) = (version.into(), known.into());
    JournalError::Newer(Newer { path: path.to_owned(), program, what, version, known })
}
