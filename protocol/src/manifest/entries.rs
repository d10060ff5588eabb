//! The entries of a bundle, of which there may be a million: names end to end, and a record of fixed size for each.

use std::fmt;
use std::ops::Range;

use super::{Entry, EntryKind, Timestamp};
use crate::path::{PathRef, TargetRef};

/// Records of one allocation.
const RECORDS: usize = 1 << 12;
/// Bytes of names of one allocation, where a single entry does not need more.
const NAMES: usize = 1 << 18;

/// Files, directories and symlinks in their order. An entry takes 32 bytes and its path, a symlink its target as well.
///
/// Memory comes in pieces, so that a long list never has to move while it grows.
#[derive(Clone, Default)]
pub struct Entries {
    /// All full but the last.
    records: Vec<Vec<PackedEntry>>,
    /// A path and its target lie in one of them.
    names: Vec<Vec<u8>>,
    len: usize,
}

/// One entry of [`Entries`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// Where it is, the bundle's name first.
    pub path: PathRef<'a>,
    /// When it was last modified.
    pub mtime: Timestamp,
    /// What it is.
    pub kind: EntryKind<TargetRef<'a>>,
}

/// The entries of [`Entries`] in their order.
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    entries: &'a Entries,
    left: Range<usize>,
}

#[derive(Clone, Copy)]
struct PackedEntry {
    secs: i64,
    /// Of a file its size, of a symlink the length of its target, which follows its path.
    size: u64,
    nanos: u32,
    /// Where its path begins in its piece.
    start: u32,
    /// Its piece, and in the highest two bits its kind.
    piece: u32,
    /// At most [`MAX_PATH_LEN`](crate::limits::MAX_PATH_LEN).
    path_len: u16,
    mode: u16,
}

const _: () = assert!(size_of::<PackedEntry>() == 32);

const KIND_SHIFT: u32 = 30;
const FILE: u32 = 0;
const DIRECTORY: u32 = 1;
const SYMLINK: u32 = 2;

impl Entries {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds one at the end.
    pub fn push(&mut self, entry: Entry) {
        self.add(EntryRef::from(&entry));
    }

    /// The same from a view.
    pub fn add(&mut self, entry: EntryRef<'_>) {
        let path = entry.path.as_bytes();
        let (kind, size, mode, target) = match entry.kind {
            EntryKind::File { size, mode } => (FILE, size, mode, [].as_slice()),
            EntryKind::Directory { mode } => (DIRECTORY, 0, mode, [].as_slice()),
            EntryKind::Symlink { target } => (SYMLINK, target.as_bytes().len() as u64, 0, target.as_bytes()),
        };
        let needed = path.len().saturating_add(target.len());
        let names = piece(&mut self.names, NAMES, needed);
        let start = names.len();
        names.extend_from_slice(path);
        names.extend_from_slice(target);
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let record = PackedEntry {
            secs: entry.mtime.secs,
            size,
            nanos: entry.mtime.nanos,
            start: number(start),
            piece: number(self.names.len().saturating_sub(1)) | kind << KIND_SHIFT,
            path_len: u16::try_from(path.len()).unwrap_or(u16::MAX),
            mode,
        };
        piece(&mut self.records, RECORDS, 1).push(record);
        self.len = self.len.saturating_add(1);
    }

    /// Entry `index`. None: there are not that many.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<EntryRef<'_>> {
        let record = self.records.get(index / RECORDS)?.get(index % RECORDS)?;
        let names = self.names.get((record.piece & !(3 << KIND_SHIFT)) as usize)?.get(record.start as usize..)?;
        let (path, rest) = names.split_at_checked(record.path_len.into())?;
        let kind = match record.piece >> KIND_SHIFT {
            FILE => EntryKind::File { size: record.size, mode: record.mode },
            DIRECTORY => EntryKind::Directory { mode: record.mode },
            _ => {
                let target = rest.get(..usize::try_from(record.size).ok()?)?;
                EntryKind::Symlink { target: TargetRef::of_checked(target) }
            }
        };
        let mtime = Timestamp { secs: record.secs, nanos: record.nanos };
        Some(EntryRef { path: PathRef::of_checked(path), mtime, kind })
    }

    /// Entry `index`.
    ///
    /// # Panics
    /// When there are not that many.
    #[must_use]
    pub fn at(&self, index: usize) -> EntryRef<'_> {
        self.get(index).unwrap_or_else(|| panic!("entry {index} of {}", self.len))
    }

    /// The first one.
    #[must_use]
    pub fn first(&self) -> Option<EntryRef<'_>> {
        self.get(0)
    }

    /// The last one.
    #[must_use]
    pub fn last(&self) -> Option<EntryRef<'_>> {
        self.get(self.len.checked_sub(1)?)
    }

    /// All of them in their order.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter { entries: self, left: 0..self.len }
    }
}

/// The last piece, or a new one if that has no room for `needed` more. Only the first grows by and by.
fn piece<T>(pieces: &mut Vec<Vec<T>>, most: usize, needed: usize) -> &mut Vec<T> {
    let has_room = pieces.last().is_some_and(|last| last.len().saturating_add(needed) <= most);
    if !has_room {
        let capacity = if pieces.is_empty() { 0 } else { most.max(needed) };
        pieces.push(Vec::with_capacity(capacity));
    }
    let last = pieces.len().saturating_sub(1);
    match pieces.get_mut(last) {
        Some(piece) => piece,
        None => unreachable!("one was pushed"),
    }
}

impl EntryRef<'_> {
    /// An entry of its own.
    #[must_use]
    pub fn to_entry(self) -> Entry {
        let kind = match self.kind {
            EntryKind::File { size, mode } => EntryKind::File { size, mode },
            EntryKind::Directory { mode } => EntryKind::Directory { mode },
            EntryKind::Symlink { target } => EntryKind::Symlink { target: target.to_target() },
        };
        Entry { path: self.path.to_path(), mtime: self.mtime, kind }
    }
}

impl<'a> From<&'a Entry> for EntryRef<'a> {
    fn from(entry: &'a Entry) -> Self {
        let kind = match &entry.kind {
            EntryKind::File { size, mode } => EntryKind::File { size: *size, mode: *mode },
            EntryKind::Directory { mode } => EntryKind::Directory { mode: *mode },
            EntryKind::Symlink { target } => EntryKind::Symlink { target: target.view() },
        };
        Self { path: entry.path.view(), mtime: entry.mtime, kind }
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = EntryRef<'a>;

    fn next(&mut self) -> Option<EntryRef<'a>> {
        self.entries.get(self.left.next()?)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.left.size_hint()
    }
}

impl DoubleEndedIterator for Iter<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.entries.get(self.left.next_back()?)
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl<'a> IntoIterator for &'a Entries {
    type Item = EntryRef<'a>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl Extend<Entry> for Entries {
    fn extend<I: IntoIterator<Item = Entry>>(&mut self, entries: I) {
        entries.into_iter().for_each(|entry| self.push(entry));
    }
}

impl FromIterator<Entry> for Entries {
    fn from_iter<I: IntoIterator<Item = Entry>>(list: I) -> Self {
        let mut entries = Self::new();
        entries.extend(list);
        entries
    }
}

impl From<Vec<Entry>> for Entries {
    fn from(list: Vec<Entry>) -> Self {
        list.into_iter().collect()
    }
}

impl PartialEq for Entries {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Entries {}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
mod tests {
    use super::*;
    use crate::path::{LinkTarget, SafePath};

    /// Entries of all kinds, over several pieces of records and of names.
    fn many() -> Vec<Entry> {
        let entry = |n: usize| {
            let path = SafePath::new(format!("t/{n:06}{}", "x".repeat(n % 200))).unwrap();
            let kind = match n % 3 {
                0 => EntryKind::File { size: n as u64 * 1_000_003, mode: 0o644 },
                1 => EntryKind::Directory { mode: u16::MAX },
                _ => EntryKind::Symlink {
                    target: LinkTarget::new(&path, format!("{n}/{}", "y".repeat(n % 77))).unwrap(),
                },
            };
            Entry { path, mtime: Timestamp { secs: -(n as i64), nanos: u32::MAX - n as u32 }, kind }
        };
        (0..3 * RECORDS + 5).map(entry).collect()
    }

    #[test]
    fn what_goes_in_comes_out() {
        let list = many();
        let entries: Entries = list.iter().cloned().collect();
        assert_eq!(entries.len(), list.len());
        assert!(entries.iter().map(EntryRef::to_entry).eq(list.iter().cloned()));
        assert!(entries.iter().rev().map(EntryRef::to_entry).eq(list.iter().rev().cloned()));
        assert!(list.iter().enumerate().all(|(at, entry)| entries.at(at) == EntryRef::from(entry)));
        assert_eq!((entries.get(list.len()), entries.last()), (None, Some(EntryRef::from(list.last().unwrap()))));
        assert!(entries.records.len() == 4 && entries.names.len() > 4);
        let mut other = Entries::from(list);
        assert!(other == entries);
        other.add(entries.at(0));
        assert!(other != entries);
        assert_eq!((Entries::new().first(), Entries::new().last(), Entries::new().is_empty()), (None, None, true));
    }

    #[test]
    fn the_longest_names_have_room() {
        let path = SafePath::new(vec!["n".repeat(254); 16].join("/") + "/" + &"x".repeat(15)).unwrap();
        let target = LinkTarget::new(&path, "y".repeat(4_095)).unwrap();
        let kind = EntryKind::Symlink { target };
        let list = vec![Entry { path, mtime: Timestamp { secs: 0, nanos: 0 }, kind }; 200];
        assert!(Entries::from(list.clone()).iter().map(EntryRef::to_entry).eq(list));
    }
}
