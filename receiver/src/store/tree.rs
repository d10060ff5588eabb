//! The files of a bundle in staging: where each byte of the data object belongs.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use checkvalve_host::disk::{Disk, DiskFile};
use checkvalve_protocol::manifest::{Announce, EntryKind};

use super::SLICE;
use super::open::Group;

/// Writes of so many bytes to one file are sent to the device at once, so that a later sync finds little to do.
const WRITEBACK: usize = 128 << 10;
/// Longest path that the kernel takes (`PATH_MAX` less the NUL).
const MAX_HOST_PATH: usize = 4_095;

/// One regular file of the bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it begins in the data object.
    pub offset: u64,
    /// Its length in bytes, which may be 0.
    pub size: u64,
    /// Its index among the announce's entries.
    pub entry: u32,
}

/// The regular files of a bundle in the order of their bytes: 12 bytes of memory each.
pub struct Files {
    /// Where each begins in the data object, and the length of that.
    offsets: Vec<u64>,
    /// The index of each among the announce's entries.
    entries: Vec<u32>,
}

/// The files of one bundle.
pub struct Tree {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    announce: Arc<Announce>,
    files: Files,
    open: Group,
    /// One bit a file: it is whole and has its mode and time.
    finished: Vec<AtomicU64>,
}

impl Span {
    /// One past its last byte in the data object.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.size
    }
}

impl Files {
    /// Of an announce that was checked.
    #[must_use]
    pub fn new(announce: &Announce) -> Self {
        let count = announce.files().count();
        let (mut offsets, mut entries) = (Vec::with_capacity(count + 1), Vec::with_capacity(count));
        let mut end = 0;
        for file in announce.files() {
            offsets.push(file.offset);
            entries.push(u32::try_from(file.entry).unwrap_or(u32::MAX));
            end = file.offset + file.size;
        }
        offsets.push(end);
        Self { offsets, entries }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// File `index`. None: there are not that many.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Span> {
        let (&entry, &offset) = (self.entries.get(index)?, self.offsets.get(index)?);
        Some(Span { offset, size: self.offsets.get(index + 1)? - offset, entry })
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Span> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// The index of the first file that ends after `offset`.
    #[must_use]
    pub fn at(&self, offset: u64) -> usize {
        self.offsets.get(1..).unwrap_or_default().partition_point(|&end| end <= offset)
    }

    /// How many files begin before `offset`.
    fn before(&self, offset: u64) -> usize {
        self.offsets.get(..self.len()).unwrap_or_default().partition_point(|&begin| begin < offset)
    }
}

impl Tree {
    /// The files of `announce` below `root`, which are open in `open`. Touches no disk.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, root: PathBuf, announce: Arc<Announce>, open: Group) -> Self {
        let files = Files::new(&announce);
        let finished = (0..files.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { disk, root, announce, files, open, finished }
    }

    /// Creates the directories, those that are there already excepted. True: not even the outermost was there. Errors: of
    /// the disk; `InvalidFilename` if a path is longer than this host takes.
    pub fn create_directories(&self) -> io::Result<bool> {
        let made_now = match self.disk.create_dir(&self.root, 0o700) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            other => other.map(|()| true)?,
        };
        let mut path = PathBuf::new();
        for entry in &self.announce.entries {
            if self.root.as_os_str().len() + 1 + entry.path.as_bytes().len() > MAX_HOST_PATH {
                return Err(io::ErrorKind::InvalidFilename.into());
            }
            if let EntryKind::Directory { .. } = entry.kind {
                path.clear();
                path.push(&self.root);
                path.push(entry.path.as_path());
                match self.disk.create_dir(&path, 0o700) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.disk.set_mode(&path, 0o700)?,
                    other => other?,
                }
            }
        }
        Ok(made_now)
    }

    /// Writes bytes of the data object from `offset` on to the files they belong to, which are created as needed. Any
    /// part may have been written when it fails.
    pub fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        match self.write_files(offset, buf) {
            // All was there once, and directories have their modes; then a sync failed.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.create_directories()?;
                self.write_files(offset, buf)
            }
            other => other,
        }
    }

    fn write_files(&self, mut offset: u64, mut buf: &[u8]) -> io::Result<()> {
        let mut path = PathBuf::new();
        let mut index = self.file_at(offset);
        while !buf.is_empty() {
            let Some(span) = self.files.get(index) else { return Err(io::ErrorKind::InvalidInput.into()) };
            let len = usize::try_from(span.end() - offset).unwrap_or(usize::MAX).min(buf.len());
            let (part, rest) = buf.split_at(len);
            // Written again, after a fault or in other pieces, it has neither mode nor time.
            self.finished[index / 64].fetch_and(!(1 << (index % 64)), Ordering::Relaxed);
            if span.offset == offset && span.size == len as u64 {
                if len > 0 {
                    self.write_whole(index, span, part, &mut path)?;
                }
            } else {
                let handle = self.open_file(index, span)?;
                handle.write_all_at(part, offset - span.offset)?;
                if len >= WRITEBACK {
                    handle.start_writeback(offset - span.offset, len as u64)?;
                }
            }
            (offset, buf, index) = (offset + len as u64, rest, index + 1);
        }
        Ok(())
    }

    /// Reads bytes of the data object that were written. Errors: `UnexpectedEof` if they are not all there.
    pub fn read(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        let mut index = self.file_at(offset);
        while !buf.is_empty() {
            let Some(span) = self.files.get(index) else { return Err(io::ErrorKind::InvalidInput.into()) };
            let len = usize::try_from(span.end() - offset).unwrap_or(usize::MAX).min(buf.len());
            let (part, rest) = buf.split_at_mut(len);
            if len > 0 {
                if span.size == len as u64 || self.is_finished(index) {
                    // Not through the files that are open to be written: opening it so would take its mode away.
                    read_exact(self.open_to_read(index, span)?.as_ref(), part, offset - span.offset)?;
                } else {
                    read_exact(self.open_file(index, span)?.as_ref(), part, offset - span.offset)?;
                }
            }
            (offset, buf, index) = (offset + len as u64, rest, index + 1);
        }
        Ok(())
    }

    /// Writes what is there once more.
    pub fn write_again(&self, range: &Range<u64>) -> io::Result<()> {
        for index in self.files_within(range) {
            let Some(span) = self.files.get(index) else { continue };
            let file = self.open_file(index, span)?;
            self.unfinish(index);
            let (start, end) = (range.start.max(span.offset) - span.offset, range.end.min(span.end()) - span.offset);
            copy_onto_itself(file.as_ref(), &(start..end))?;
        }
        Ok(())
    }

    /// Lets what is on the device leave the cache, so that it is read from there next.
    pub fn drop_cached(&self) -> io::Result<()> {
        let mut filled = self.files.iter().enumerate().filter(|(_, span)| span.size > 0);
        filled.try_for_each(|(index, span)| self.open_to_read(index, span)?.start_writeback(0, 0))
    }

    /// Removes a file whose contents are wrong. Nobody writes to it meanwhile. Errors: it is there as before.
    pub fn discard(&self, index: usize) -> io::Result<()> {
        let Some(span) = self.files.get(index) else { return Ok(()) };
        self.open.close(number(index));
        self.unfinish(index);
        match self.disk.remove_file(&self.path(span)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Closes what is open.
    pub fn close(&self) {
        self.open.close_all();
    }

    /// The regular files in the order of their bytes.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// What was announced.
    #[must_use]
    pub fn announce(&self) -> &Arc<Announce> {
        &self.announce
    }

    /// The directory that holds the bundle's own name.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The index of the first file that ends after `offset`.
    #[must_use]
    pub fn file_at(&self, offset: u64) -> usize {
        self.files.at(offset)
    }

    /// How many files begin in a range of bytes.
    #[must_use]
    pub fn files_in(&self, range: &Range<u64>) -> usize {
        self.files.before(range.end) - self.files.before(range.start)
    }

    /// The files that have bytes in a range, and no others.
    #[must_use]
    pub fn files_within(&self, range: &Range<u64>) -> Vec<usize> {
        let inside =
            (self.file_at(range.start)..).take_while(|&at| self.files.get(at).is_some_and(|s| s.offset < range.end));
        inside.filter(|&at| self.files.get(at).is_some_and(|s| s.size > 0)).collect()
    }

    /// Whether file `index` is whole with its mode and time, as far as this process knows.
    #[must_use]
    pub fn is_finished(&self, index: usize) -> bool {
        self.finished.get(index / 64).is_some_and(|word| word.load(Ordering::Relaxed) >> (index % 64) & 1 == 1)
    }

    /// It is to be given its mode and time again.
    fn unfinish(&self, index: usize) {
        self.finished[index / 64].fetch_and(!(1 << (index % 64)), Ordering::Relaxed);
    }

    /// The only file with any bytes, if there is but one.
    #[must_use]
    pub fn sole_file(&self) -> Option<PathBuf> {
        let mut filled = self.files.iter().filter(|span| span.size > 0);
        match (filled.next(), filled.next()) {
            (Some(span), None) => Some(self.path(span)),
            _ => None,
        }
    }

    fn path(&self, span: Span) -> PathBuf {
        let mut path = PathBuf::new();
        self.path_into(span, &mut path);
        path
    }

    fn path_into(&self, span: Span, path: &mut PathBuf) {
        path.clear();
        path.push(&self.root);
        path.push(self.announce.entries.at(span.entry as usize).path.as_path());
    }

    /// A file whose every byte is at hand: created, written and given its mode and time in one go.
    fn write_whole(&self, index: usize, span: Span, bytes: &[u8], path: &mut PathBuf) -> io::Result<()> {
        self.path_into(span, path);
        let entry = self.announce.entries.at(span.entry as usize);
        let EntryKind::File { mode, .. } = entry.kind else { unreachable!("spans are of files") };
        let file = match self.disk.create_new(path, u32::from(mode)) {
            // An earlier attempt left it; its mode may forbid opening it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.open.close(number(index));
                self.disk.remove_file(path)?;
                self.disk.create_new(path, u32::from(mode))?
            }
            other => other?,
        };
        file.write_all_at(bytes, 0)?;
        if bytes.len() >= WRITEBACK {
            file.start_writeback(0, bytes.len() as u64)?;
        }
        file.set_mtime(entry.mtime.secs, entry.mtime.nanos)?;
        self.finished[index / 64].fetch_or(1 << (index % 64), Ordering::Relaxed);
        Ok(())
    }

    /// A file that has its mode already, which may forbid reading it: then it is not finished any more.
    fn open_to_read(&self, index: usize, span: Span) -> io::Result<Box<dyn DiskFile>> {
        let path = self.path(span);
        match self.disk.open_read(&path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.create_directories()?;
                self.disk.set_mode(&path, 0o600)?;
                self.unfinish(index);
                self.disk.open_read(&path)
            }
            opened => opened,
        }
    }

    /// The open file, opened or created if it is not open.
    fn open_file(&self, index: usize, span: Span) -> io::Result<Arc<dyn DiskFile>> {
        self.open.get(number(index), || {
            let path = self.path(span);
            match self.disk.create_new(&path, 0o600) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.disk.set_mode(&path, 0o600)?;
                    self.disk.open_rw(&path)
                }
                other => other,
            }
        })
    }
}

/// As which a file is open.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// Writes what is in a range of a file to the same place.
pub(super) fn copy_onto_itself(file: &dyn DiskFile, range: &Range<u64>) -> io::Result<()> {
    let mut buf = vec![0; SLICE as usize];
    for at in range.clone().step_by(SLICE as usize) {
        let part = &mut buf[..SLICE.min(range.end - at) as usize];
        read_exact(file, part, at)?;
        file.write_all_at(part, at)?;
    }
    Ok(())
}

/// Fills `buf` from `offset`. Errors: `UnexpectedEof` if the file ends before.
pub fn read_exact(file: &dyn DiskFile, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.read_at(buf, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}
