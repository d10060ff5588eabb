//! The rules of an announce, in one walk along its entries.

use super::{Announce, EntryError, EntryKind, EntryRef, ManifestError};
use crate::limits::{MAX_ENTRIES, MAX_SEQUENCE, MAX_TRANSFER_LENGTH};
use crate::partition::Oti;
use crate::path::PathRef;

const NANOS_PER_SEC: u32 = 1_000_000_000;

pub(super) fn check(announce: &Announce) -> Result<(), ManifestError> {
    if announce.sequence == 0 {
        return Err(ManifestError::SequenceZero);
    }
    if announce.sequence > MAX_SEQUENCE {
        return Err(ManifestError::SequenceTooLarge(announce.sequence));
    }
    if announce.entries.len() > MAX_ENTRIES {
        return Err(ManifestError::TooManyEntries);
    }
    let root = announce.entries.first().ok_or(ManifestError::NoEntries)?;
    if root.path.as_bytes() != announce.name || root.path.parent_bytes().is_some() {
        return Err(ManifestError::Name);
    }
    let mut walk = Walk::default();
    let mut data_len: u64 = 0;
    for (index, entry) in announce.entries.iter().enumerate() {
        let placed = check_alone(entry).and_then(|()| walk.place(entry));
        placed.map_err(|error| ManifestError::Entry { index, error })?;
        if let EntryKind::File { size, .. } = entry.kind {
            data_len = data_len.checked_add(size).ok_or(ManifestError::DataTooLong)?;
        }
    }
    if data_len > MAX_TRANSFER_LENGTH {
        return Err(ManifestError::DataTooLong);
    }
    Oti::new(data_len.max(1), announce.symbol_size, announce.block_symbols)?;
    Ok(())
}

/// What an entry says of itself.
fn check_alone(entry: EntryRef<'_>) -> Result<(), EntryError> {
    if entry.mtime.nanos >= NANOS_PER_SEC {
        return Err(EntryError::Nanos(entry.mtime.nanos));
    }
    match entry.kind {
        EntryKind::File { mode, .. } | EntryKind::Directory { mode } if mode & !0o777 != 0 => {
            Err(EntryError::Mode(mode))
        }
        EntryKind::File { .. } | EntryKind::Directory { .. } => Ok(()),
        EntryKind::Symlink { target } => target.check_for(entry.path).map_err(EntryError::Target),
    }
}

/// A walk of the tree. Strict order makes duplicates neighbours and keeps what is in a directory right behind it, so that
/// the directories above the last entry are all there is to remember.
#[derive(Default)]
struct Walk<'a> {
    above: Vec<PathRef<'a>>,
    last: Option<EntryRef<'a>>,
}

impl<'a> Walk<'a> {
    fn place(&mut self, entry: EntryRef<'a>) -> Result<(), EntryError> {
        if let Some(last) = self.last {
            self.follow(last, entry)?;
        }
        if matches!(entry.kind, EntryKind::Directory { .. }) {
            self.above.push(entry.path);
        }
        self.last = Some(entry);
        Ok(())
    }

    fn follow(&mut self, last: EntryRef<'_>, entry: EntryRef<'_>) -> Result<(), EntryError> {
        if entry.path.root() != last.path.root() {
            return Err(EntryError::OtherRoot);
        }
        match entry.path.cmp(&last.path) {
            std::cmp::Ordering::Less => return Err(EntryError::Order),
            std::cmp::Ordering::Equal => return Err(EntryError::Duplicate),
            std::cmp::Ordering::Greater => {}
        }
        match last.kind {
            EntryKind::File { .. } if last.path.is_ancestor_of(entry.path) => return Err(EntryError::InsideFile),
            EntryKind::Symlink { .. } if last.path.is_ancestor_of(entry.path) => {
                return Err(EntryError::ThroughSymlink);
            }
            _ => {}
        }
        while self.above.pop_if(|above| !above.is_ancestor_of(entry.path)).is_some() {}
        let parent = self.above.last().map(|above| above.as_bytes());
        if parent == entry.path.parent_bytes() { Ok(()) } else { Err(EntryError::ParentMissing) }
    }
}
