//! Reads a planned bundle's data object: the contents of its files one after the other.

use std::path::PathBuf;
use std::sync::Arc;

use checkvalve_host::disk::{Disk, DiskFile};
use checkvalve_protocol::manifest::FileSpan;

use super::{FileFingerprint, Plan, ReadError, Shown};

/// Reads all of it once, from the beginning, and hashes every file as it goes.
pub struct Reader {
    files: Files,
    /// The file to go on with: its number among the regular files.
    next: usize,
    open: Option<Open>,
    hashes: Vec<[u8; 32]>,
    expected: Option<Arc<Vec<[u8; 32]>>>,
}

struct Open {
    file: Box<dyn DiskFile>,
    done: u64,
    hasher: blake3::Hasher,
}

impl Reader {
    /// Reads what `plan` says is below `root`, which is the directory that the bundle's name is in.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, plan: Arc<Plan>, root: PathBuf) -> Self {
        let files = Files::new(disk, plan, root);
        Self { files, next: 0, open: None, hashes: Vec::new(), expected: None }
    }

    /// Makes reading a file fail with [`ReadError::Different`] if its hash is not the one it had before. `hashes`: one
    /// for each regular file, in order.
    #[must_use]
    pub fn expecting(mut self, hashes: Arc<Vec<[u8; 32]>>) -> Self {
        self.expected = Some(hashes);
        self
    }

    /// Fills `buf` with the bytes that come next, whichever files they are in; gives their number, which is less than
    /// `buf.len()` only at the end of the object. A file's bytes are checked when its last one was read, so an error may
    /// come after some of them were given.
    ///
    /// Errors: [`ReadError`]; what is in `buf` is then without meaning, and so is every later call.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<usize, ReadError> {
        self.files.check_whole()?;
        let mut filled = 0;
        while self.next < self.files.len() {
            if self.open.is_none() {
                let file = self.files.open(self.next)?;
                self.open = Some(Open { file, done: 0, hasher: blake3::Hasher::new() });
            }
            let Some(open) = &mut self.open else { break };
            let size = self.files.spans[self.next].size;
            let rest = &mut buf[filled..];
            let want = usize::try_from(size - open.done).unwrap_or(usize::MAX).min(rest.len());
            if want == 0 && open.done < size {
                return Ok(filled);
            }
            let got = &mut rest[..want];
            self.files.read_exact(self.next, open.file.as_ref(), got, open.done)?;
            open.hasher.update(got);
            open.done += want as u64;
            filled += want;
            if open.done == size {
                self.close()?;
            }
        }
        Ok(filled)
    }

    /// The BLAKE3 of each regular file in the order of the announce, once [`Reader::read`] has come to the end.
    /// Errors: [`ReadError::Unfinished`] if it has not; and those of [`Reader::read`] where only empty files were left.
    pub fn finish(mut self) -> Result<Vec<[u8; 32]>, ReadError> {
        match self.read(&mut [])? {
            0 if self.next == self.files.len() => Ok(self.hashes),
            _ => Err(ReadError::Unfinished),
        }
    }

    fn close(&mut self) -> Result<(), ReadError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        self.files.unchanged(self.next, open.file.as_ref())?;
        let hash = open.hasher.finalize().into();
        if self.expected.as_ref().is_some_and(|expected| expected.get(self.next) != Some(&hash)) {
            return Err(ReadError::Different { path: self.files.shown(self.next) });
        }
        self.hashes.push(hash);
        self.next += 1;
        Ok(())
    }
}

/// Reads parts of the data object, in any order and without hashing: for sending some blocks again.
pub struct SpotReader {
    files: Files,
    last: Option<(usize, Box<dyn DiskFile>)>,
}

impl SpotReader {
    /// As [`Reader::new`].
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, plan: Arc<Plan>, root: PathBuf) -> Self {
        Self { files: Files::new(disk, plan, root), last: None }
    }

    /// Fills `buf` with the bytes of the data object from `offset` on; gives their number, which is less than `buf.len()`
    /// only at the end of the object. Each file touched is checked before and after to be the one that was planned.
    /// Errors: [`ReadError`].
    pub fn read_at(&mut self, buf: &mut [u8], offset: u64) -> Result<usize, ReadError> {
        self.files.check_whole()?;
        let mut filled = 0;
        // The first file that ends behind `offset`.
        let mut index = self.files.spans.partition_point(|span| span.offset + span.size <= offset);
        while filled < buf.len() && index < self.files.len() {
            let FileSpan { offset: start, size, .. } = self.files.spans[index];
            let from = (offset + filled as u64).saturating_sub(start);
            let want = usize::try_from(size - from).unwrap_or(usize::MAX).min(buf.len() - filled);
            if want > 0 {
                let file = match self.last.take() {
                    Some((last, file)) if last == index => file,
                    _ => self.files.open(index)?,
                };
                self.files.read_exact(index, file.as_ref(), &mut buf[filled..filled + want], from)?;
                self.files.unchanged(index, file.as_ref())?;
                self.last = Some((index, file));
            }
            filled += want;
            index += 1;
        }
        Ok(filled)
    }
}

struct Files {
    disk: Arc<dyn Disk>,
    plan: Arc<Plan>,
    root: PathBuf,
    spans: Vec<FileSpan>,
}

impl Files {
    fn new(disk: Arc<dyn Disk>, plan: Arc<Plan>, root: PathBuf) -> Self {
        let spans = plan.announce.files().collect();
        Self { disk, plan, root, spans }
    }

    fn len(&self) -> usize {
        self.spans.len()
    }

    fn check_whole(&self) -> Result<(), ReadError> {
        match &self.plan.broken {
            Some(reason) => Err(ReadError::Broken(reason.clone())),
            None => Ok(()),
        }
    }

    fn open(&self, index: usize) -> Result<Box<dyn DiskFile>, ReadError> {
        let path = self.path(index);
        let file = self.disk.open_read(&self.root.join(path)).map_err(|e| self.failed(index, &e))?;
        self.unchanged(index, file.as_ref())?;
        Ok(file)
    }

    fn read_exact(&self, index: usize, file: &dyn DiskFile, mut buf: &mut [u8], mut at: u64) -> Result<(), ReadError> {
        while !buf.is_empty() {
            match file.read_at(buf, at) {
                Ok(0) => return Err(ReadError::Changed { path: self.shown(index), what: "it shrank" }),
                Ok(n) => {
                    buf = &mut buf[n..];
                    at += n as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed(index, &e)),
            }
        }
        Ok(())
    }

    fn unchanged(&self, index: usize, file: &dyn DiskFile) -> Result<(), ReadError> {
        let meta = file.meta().map_err(|e| self.failed(index, &e))?;
        let planned: &FileFingerprint = &self.plan.files[index];
        match planned.difference(&meta) {
            Some(what) => Err(ReadError::Changed { path: self.shown(index), what }),
            None => Ok(()),
        }
    }

    fn path(&self, index: usize) -> &std::path::Path {
        self.plan.announce.entries.at(self.spans[index].entry).path.as_path()
    }

    fn shown(&self, index: usize) -> Shown {
        Shown::path(self.path(index))
    }

    fn failed(&self, index: usize, error: &std::io::Error) -> ReadError {
        ReadError::io(self.path(index).as_os_str().as_encoded_bytes(), error)
    }
}
