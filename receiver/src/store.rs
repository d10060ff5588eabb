//! Staging: bundles that are not whole yet.
//!
//! 1. A block is claimed, so that no byte is written twice.
//! 2. If it continues what is hashed, it is hashed from its buffer.
//! 3. It is written to the files it belongs to, or to one flat file while the announce is not known.
//! 4. The journal says so, without waiting for the disk.
//! 5. What can be hashed now is read back, a little at a time.
//!
//! Nothing in staging is ever visible in the inbox; [`crate::inbox`] moves out what is proven.

mod assembly;
pub mod hashing;
pub mod log;
mod parked;
pub mod space;
pub mod staged;
pub mod tree;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use checkvalve_host::disk::{Disk, read_all};
use checkvalve_host::journal::JournalError;
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::manifest::Announce;
use checkvalve_protocol::partition::{BlockSet, Oti};
use checkvalve_protocol::receive::ReceivedBlock;
use checkvalve_protocol::wire::ObjectKind;

use crate::sink::StoreError;
use log::{BootId, Log, Stored};
use space::Space;
use staged::Place;
pub use staged::Staged;
use tree::{Tree, read_exact};

/// Bytes that are read back for hashing after a block was written; the rest is left to [`Store::catch_up`].
const READ_BACK: u64 = 1 << 20;
/// Bytes that are read or moved at a time.
const SLICE: u64 = 256 << 10;
/// Bytes that move from the flat file to their places between two checkpoints.
const MOVE: u64 = 256 << 20;
/// Ranges of a bundle's data that are kept apart at most: each costs memory.
const MAX_RANGES: usize = 1 << 20;

/// All of staging.
pub struct Store {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    boot: BootId,
    bundles: RwLock<HashMap<BundleId, Arc<Staged>>>,
    /// Taken before any bundle's `blocks`.
    log: Mutex<Log>,
    space: Space,
}

/// Why staging cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk failed.
    #[error("staging: {0}")]
    Disk(#[from] io::Error),
    /// Its journal cannot be opened.
    #[error("staging: {0}")]
    Journal(#[from] JournalError),
}

impl Store {
    /// Opens or creates staging in `root`, which gets mode 0700. `boot` says which run of the kernel this is; `reserve`
    /// and `quota` as in [`Space::new`]. What is of no known bundle is removed.
    pub fn open(disk: Arc<dyn Disk>, root: &Path, boot: BootId, reserve: u64, quota: u64) -> Result<Self, OpenError> {
        disk.create_dir_all(root, 0o700)?;
        disk.set_mode(root, 0o700)?;
        let (log, mut known) = Log::open(&disk, &root.join("journal"), boot)?;
        let space = Space::new(reserve, quota);
        let mut bundles = HashMap::new();
        for name in disk.read_dir(root)? {
            let id = name.to_str().and_then(|name| name.parse::<BundleId>().ok());
            let dir = root.join(&name);
            if let Some(id) = id {
                let stored = known.remove(&id).unwrap_or_default();
                space.take(stored.all.len());
                let staged = Staged::new(id, dir, Place::Asleep(None), stored);
                space.take(staged.parked.find(disk.as_ref(), &staged.parked_dir())?);
                bundles.insert(id, Arc::new(staged));
            } else if !name.as_encoded_bytes().starts_with(b"journal")
                && !name.as_encoded_bytes().starts_with(b".journal")
            {
                disk.remove_tree(&dir)?;
            }
        }
        space.refresh(disk.free_space(root)?);
        let store =
            Self { disk, root: root.to_owned(), boot, bundles: RwLock::new(bundles), log: Mutex::new(log), space };
        for id in known.into_keys() {
            store.log().forget(id)?;
        }
        Ok(store)
    }

    /// A bundle in staging.
    #[must_use]
    pub fn get(&self, id: BundleId) -> Option<Arc<Staged>> {
        self.bundles.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// All bundles in staging, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Staged>> {
        self.bundles.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// A bundle in staging, which begins if it was not there. Touches no disk.
    #[must_use]
    pub fn begin(&self, id: BundleId) -> Arc<Staged> {
        if let Some(staged) = self.get(id) {
            return staged;
        }
        let mut bundles = self.bundles.write().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Staged::new(id, self.root.join(id.to_string()), Place::New, Stored::default()));
        Arc::clone(bundles.entry(id).or_insert_with(new))
    }

    /// Room in staging.
    #[must_use]
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Asks the disk how much is free.
    pub fn refresh_space(&self) {
        match self.disk.free_space(&self.root) {
            Ok(free) => self.space.refresh(free),
            Err(error) => tracing::warn!(%error, "free space of staging is unknown"),
        }
    }

    /// The SBNs of an object that need not come again. Touches no disk and waits for nobody who does.
    #[must_use]
    pub fn have(&self, id: BundleId, kind: ObjectKind, oti: &Oti) -> BlockSet {
        let Some(staged) = self.get(id) else { return BlockSet::new() };
        if kind != ObjectKind::Data {
            return staged.assembly.try_lock().map(|a| a.have(kind, oti)).unwrap_or_default();
        }
        let blocks = staged.blocks();
        blocks.stored.all.iter().filter_map(|range| whole_blocks(oti, &range)).collect()
    }

    /// Keeps the symbols of an unfinished block; gives how many of it are kept now.
    pub fn park(&self, staged: &Staged, block: &ReceivedBlock) -> Result<u32, StoreError> {
        let bytes = u64::from(block.received()) * u64::from(block.oti().symbol_size());
        if !self.space.fits(bytes) {
            return Err(StoreError::NoRoom);
        }
        let place = staged.read_place();
        if matches!(*place, Place::Gone) {
            return Err(StoreError::Unwanted);
        }
        staged.create_dir(self.disk.as_ref())?;
        let (symbols, bytes) = staged.parked.keep(self.disk.as_ref(), &staged.parked_dir(), block)?;
        self.space.take(bytes);
        Ok(symbols)
    }

    /// Adds to a block what is kept of it.
    pub fn unpark(&self, staged: &Staged, block: &mut ReceivedBlock) -> io::Result<()> {
        staged.parked.give(self.disk.as_ref(), &staged.parked_dir(), block)
    }

    /// Of which blocks of an object symbols are kept, and how many. Touches no disk.
    #[must_use]
    pub fn parked(&self, id: BundleId, kind: ObjectKind, oti: &Oti) -> Vec<(u32, u32)> {
        self.get(id).map(|staged| staged.parked.of(kind, oti)).unwrap_or_default()
    }

    /// A block is stored, and its symbols need not be kept any more.
    pub fn drop_parked(&self, staged: &Staged, kind: ObjectKind, oti: &Oti, sbn: u32) {
        let dir = staged.parked_dir();
        self.space.give_back(staged.parked.drop_block(self.disk.as_ref(), &dir, kind, oti, sbn));
    }

    /// A block of an announce or of hashes; gives the object once it is whole.
    pub fn assemble(
        &self,
        staged: &Staged,
        kind: ObjectKind,
        oti: &Oti,
        sbn: u32,
        buf: &[u8],
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let mut assembly = staged.assembly.lock().unwrap_or_else(PoisonError::into_inner);
        if oti.blocks() > 1 {
            if !self.space.fits(buf.len() as u64) {
                return Err(StoreError::NoRoom);
            }
            staged.create_dir(self.disk.as_ref())?;
        }
        assembly.add(self.disk.as_ref(), staged.dir(), kind, oti, sbn, buf).map_err(StoreError::from)
    }

    /// Bytes of the data object, `length` bytes long, from `offset` on. Errors: none of them counts as stored.
    pub fn write(&self, staged: &Staged, length: u64, offset: u64, buf: &[u8]) -> Result<(), StoreError> {
        let range = offset..offset + buf.len() as u64;
        let claimed = {
            let mut blocks = staged.blocks();
            if blocks.stored.length.is_some_and(|known| known != length) || range.end > length {
                return Err(StoreError::Unwanted);
            }
            if blocks.stored.all.covers(range.clone()) {
                return Ok(());
            }
            if blocks.stored.all.count() >= MAX_RANGES {
                return Err(StoreError::NoRoom);
            }
            blocks.claim(range.clone())
        };
        let bytes = claimed.iter().map(|r| r.end - r.start).sum::<u64>();
        let stored = self.write_claimed(staged, length, offset, buf, &claimed, bytes);
        if stored.is_err() {
            staged.blocks().release(&claimed);
        }
        let tree = stored?;
        if let Some(tree) = tree {
            if claimed == [range] {
                let mut hashing = staged.hashing();
                if hashing.next() == offset {
                    hashing.feed(tree.files(), buf);
                }
            }
            self.hash_on(staged, &tree, READ_BACK)?;
        }
        // Bytes that another thread is writing at this moment are that thread's to answer for.
        if bytes < buf.len() as u64 && !staged.blocks().stored.all.covers(offset..offset + buf.len() as u64) {
            return Err(StoreError::Unwanted);
        }
        Ok(())
    }

    /// The announce is known: from now on bytes go to their files. `bytes` is the signed announce. Errors: as before.
    pub fn adopt(&self, staged: &Staged, announce: Arc<Announce>, bytes: &[u8]) -> Result<(), StoreError> {
        let mut place = staged.place.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(*place, Place::Gone) {
            return Err(StoreError::Unwanted);
        }
        if matches!(*place, Place::Tree(_) | Place::Asleep(Some(_))) {
            return Ok(());
        }
        let length = announce.data_len();
        if staged.fill().0.is_some_and(|known| known != length) {
            self.clear(staged)?;
        }
        staged.create_dir(self.disk.as_ref())?;
        let tree = Tree::new(Arc::clone(&self.disk), staged.out(), announce);
        let made_now = tree.create_directories()?;
        if made_now && staged.stored().all.len() > staged.stored().flat.len() {
            self.clear(staged)?; // somebody took its files away
        }
        self.put(&staged.object(ObjectKind::Announce), bytes)?;
        self.settle_flat(staged, &tree, length)?;
        {
            let mut log = self.log();
            let mut blocks = staged.blocks();
            if blocks.stored.length.is_none() {
                log.length(staged.id, length).map_err(journal_error)?;
                blocks.stored.length = Some(length);
            }
        }
        *place = Place::Tree(Arc::new(tree));
        Ok(())
    }

    /// Keeps a signed object beside the data, so that a restart finds it. Not durable.
    pub fn keep_object(&self, staged: &Staged, kind: ObjectKind, bytes: &[u8]) -> io::Result<()> {
        staged.create_dir(self.disk.as_ref())?;
        self.put(&staged.object(kind), bytes)
    }

    /// A signed object that was kept. None: there is none.
    pub fn object(&self, staged: &Staged, kind: ObjectKind, limit: u64) -> io::Result<Option<Vec<u8>>> {
        match read_all(self.disk.as_ref(), &staged.object(kind), limit) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// A bundle's files, read back into memory if need be. None: the announce is not known.
    pub fn tree(&self, staged: &Staged) -> io::Result<Option<Arc<Tree>>> {
        Ok(match &*staged.wake(&self.disk)? {
            Place::Tree(tree) => Some(Arc::clone(tree)),
            _ => None,
        })
    }

    /// Gives back the memory that a bundle takes while nothing comes for it.
    pub fn sleep(&self, staged: &Staged, announce: Option<[u8; 32]>) {
        let Ok(mut place) = staged.place.try_write() else { return };
        if matches!(*place, Place::Tree(_) if announce.is_some()) || matches!(*place, Place::Flat(_)) {
            *place = Place::Asleep(announce);
            *staged.hashing() = hashing::Hashing::default();
        }
    }

    /// Moves bytes from the flat file to their places, some hundred megabytes at most. False: there is nothing to move.
    pub fn move_flat(&self, staged: &Staged) -> Result<bool, StoreError> {
        let Some(tree) = self.tree(staged)? else { return Ok(false) };
        if staged.blocks().stored.flat.is_empty() {
            return Ok(false);
        }
        let path = staged.object(ObjectKind::Data);
        let data = self.disk.open_rw(&path)?;
        let mut buf = vec![0; SLICE as usize];
        let mut moved = 0;
        // From the end, so that the flat file can be cut as it empties.
        while moved < MOVE {
            let Some(range) = staged.blocks().stored.flat.last() else { break };
            let start = range.end.saturating_sub(SLICE).max(range.start);
            let buf = &mut buf[..(range.end - start) as usize];
            read_exact(data.as_ref(), buf, start)?;
            tree.write(start, buf)?;
            self.moved(staged, start..range.end)?;
            moved += buf.len() as u64;
        }
        let (left, was_synced) = {
            let blocks = staged.blocks();
            (blocks.stored.flat.last().map(|r| r.end), !blocks.stored.synced_flat.is_empty())
        };
        if was_synced {
            // Only what is safe in its place may go from the flat file.
            self.checkpoint()?;
        }
        match left {
            Some(end) => data.set_len(end)?,
            None => ignore_missing(self.disk.remove_file(&path))?,
        }
        Ok(true)
    }

    /// Reads back and hashes up to `limit` bytes of what is stored. True: all of the data object is hashed.
    pub fn catch_up(&self, staged: &Staged, limit: u64) -> Result<bool, StoreError> {
        let Some(tree) = self.tree(staged)? else { return Ok(false) };
        self.hash_on(staged, &tree, limit)?;
        Ok(staged.fill().0 == Some(staged.hashed()))
    }

    /// The hash of every file, once all of the data object is hashed.
    #[must_use]
    pub fn digests(&self, staged: &Staged, tree: &Tree) -> Option<Vec<[u8; 32]>> {
        staged.hashing().finish(tree.files()).map(<[_]>::to_vec)
    }

    /// Makes all that is stored survive a power cut. Errors: what was stored since the last time is given up.
    pub fn checkpoint(&self) -> io::Result<()> {
        let before: Vec<(Arc<Staged>, Stored)> = self.all().into_iter().map(|s| (Arc::clone(&s), s.stored())).collect();
        let records = {
            // Whoever is between writing and saying so holds this; what they wrote is counted next time.
            let log = self.log();
            log.records()
        };
        if let Err(error) = self.disk.sync_fs(&self.root) {
            self.give_up_unsynced();
            return Err(error);
        }
        let mut log = self.log();
        log.checkpoint(records).map_err(io::Error::other)?;
        for (staged, stored) in before {
            staged.blocks().stored.set_synced(&stored);
        }
        if log.is_long() {
            self.rewrite(&mut log)?;
        }
        Ok(())
    }

    /// A sync failed: what was stored since the last checkpoint may be lost although it can be read.
    pub fn give_up_unsynced(&self) {
        let mut log = self.log();
        if let Err(error) = log.unsynced() {
            tracing::error!(%error, "staging journal");
        }
        for staged in self.all() {
            let before = {
                let mut blocks = staged.blocks();
                let before = blocks.stored.all.len();
                blocks.stored.back_to_synced();
                before - blocks.stored.all.len()
            };
            self.space.give_back(before);
            *staged.hashing() = hashing::Hashing::default();
        }
    }

    /// Removes a bundle from staging. Errors: of the disk; it is forgotten all the same, and removed at the next start.
    pub fn remove(&self, id: BundleId) -> io::Result<()> {
        let Some(staged) = self.bundles.write().unwrap_or_else(PoisonError::into_inner).remove(&id) else {
            return Ok(());
        };
        *staged.place.write().unwrap_or_else(PoisonError::into_inner) = Place::Gone;
        self.space.give_back(staged.fill().1 + staged.parked.bytes());
        if let Err(error) = self.log().forget(id) {
            tracing::warn!(%error, "staging journal");
        }
        ignore_missing(self.disk.remove_tree(staged.dir()))
    }

    /// Steps 2 to 4. Gives the files if the announce is known.
    fn write_claimed(
        &self,
        staged: &Staged,
        length: u64,
        offset: u64,
        buf: &[u8],
        claimed: &[Range<u64>],
        bytes: u64,
    ) -> Result<Option<Arc<Tree>>, StoreError> {
        if !self.space.fits(bytes) {
            self.refresh_space();
            if !self.space.fits(bytes) {
                return Err(StoreError::NoRoom);
            }
        }
        let place = staged.wake(&self.disk)?;
        let part = |range: &Range<u64>| &buf[(range.start - offset) as usize..(range.end - offset) as usize];
        let tree = match &*place {
            Place::Gone | Place::New | Place::Asleep(_) => return Err(StoreError::Unwanted),
            Place::Flat(file) => {
                for range in claimed {
                    file.write_all_at(part(range), range.start)?;
                    file.start_writeback(range.start, range.end - range.start)?;
                }
                None
            }
            Place::Tree(tree) => {
                let whole = matches!(claimed, [only] if only.end - only.start == buf.len() as u64);
                if whole {
                    let mut hashing = staged.hashing();
                    if hashing.next() == offset {
                        hashing.feed(tree.files(), buf);
                    }
                }
                for range in claimed {
                    if let Err(error) = tree.write(range.start, part(range)) {
                        staged.hashing().rewind(tree.files(), offset);
                        return Err(error.into());
                    }
                }
                Some(Arc::clone(tree))
            }
        };
        let flat = tree.is_none();
        let noted = self.note(staged, length, claimed, flat);
        if let (Err(_), Some(tree)) = (&noted, &tree) {
            staged.hashing().rewind(tree.files(), offset);
        }
        noted.map_err(journal_error)?;
        self.space.take(bytes);
        Ok(tree)
    }

    fn note(&self, staged: &Staged, length: u64, claimed: &[Range<u64>], flat: bool) -> Result<(), JournalError> {
        let mut log = self.log();
        if staged.fill().0.is_none() {
            log.length(staged.id, length)?;
        }
        for range in claimed {
            log.stored(staged.id, range.clone(), flat)?;
        }
        let mut blocks = staged.blocks();
        blocks.stored.length = Some(length);
        for range in claimed {
            blocks.stored.add(range.clone(), flat);
        }
        blocks.release(claimed);
        Ok(())
    }

    /// Flat bytes of `range` are in their places.
    fn moved(&self, staged: &Staged, range: Range<u64>) -> Result<(), StoreError> {
        let mut log = self.log();
        let mut blocks = staged.blocks();
        let moved: Vec<Range<u64>> = {
            let flat = &blocks.stored.flat;
            let parts = flat.iter().map(|r| r.start.max(range.start)..r.end.min(range.end));
            parts.filter(|r| !r.is_empty()).collect()
        };
        for part in moved {
            log.stored(staged.id, part.clone(), false).map_err(journal_error)?;
            blocks.stored.add(part, false);
        }
        Ok(())
    }

    fn hash_on(&self, staged: &Staged, tree: &Tree, limit: u64) -> io::Result<()> {
        let mut hashing = staged.hashing();
        let mut buf = Vec::new();
        let stop = hashing.next().saturating_add(limit);
        loop {
            let next = hashing.next();
            let end = {
                let blocks = staged.blocks();
                let end = blocks.stored.all.end_of(next).map_or(next, |end| end.min(stop));
                // What has not moved to its file yet is not there to be read.
                blocks.stored.flat.gaps(next..end).first().filter(|gap| gap.start == next).map(|gap| gap.end)
            };
            let Some(end) = end else { return Ok(()) };
            buf.resize((end - next).min(SLICE) as usize, 0);
            tree.read(next, &mut buf)?;
            hashing.feed(tree.files(), &buf);
        }
    }

    /// What becomes of the flat file now that the files are known: the only file takes its place as it is, of several
    /// [`Store::move_flat`] moves the bytes.
    fn settle_flat(&self, staged: &Staged, tree: &Tree, length: u64) -> Result<(), StoreError> {
        let data = staged.object(ObjectKind::Data);
        if staged.blocks().stored.flat.is_empty() {
            return Ok(ignore_missing(self.disk.remove_file(&data))?);
        }
        let exists = |path: &Path| match self.disk.lstat(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            other => other.map(|_| true),
        };
        match (exists(&data)?, tree.sole_file()) {
            (true, Some(file)) => self.disk.rename(&data, &file)?,
            (true, None) => return Ok(()),
            // A crash came between the rename and the journal.
            (false, Some(file)) if exists(&file)? => {}
            (false, _) => return self.clear(staged),
        }
        self.moved(staged, 0..length)
    }

    /// Nothing of the data is stored any more. The caller holds the place.
    fn clear(&self, staged: &Staged) -> Result<(), StoreError> {
        let mut log = self.log();
        log.forget(staged.id).map_err(journal_error)?;
        let stored = std::mem::take(&mut staged.blocks().stored);
        drop(log);
        self.space.give_back(stored.all.len());
        *staged.hashing() = hashing::Hashing::default();
        Ok(())
    }

    fn rewrite(&self, log: &mut Log) -> io::Result<()> {
        let stored: BTreeMap<BundleId, Stored> = self.all().into_iter().map(|s| (s.id, s.stored())).collect();
        log.rewrite(self.boot, &stored).map_err(io::Error::other)
    }

    /// Writes a small file anew, not durably.
    fn put(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        ignore_missing(self.disk.remove_file(path))?;
        self.disk.create_new(path, 0o600)?.write_all_at(bytes, 0)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The blocks of `oti` that lie wholly in a range of bytes.
fn whole_blocks(oti: &Oti, range: &Range<u64>) -> Option<Range<u32>> {
    let first = oti.block_of(range.start)?;
    let first = if oti.block_offset(first)? < range.start { first + 1 } else { first };
    let end = if range.end >= oti.transfer_length() { oti.blocks() } else { oti.block_of(range.end)? };
    (first < end).then_some(first..end)
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn journal_error(error: JournalError) -> StoreError {
    match error {
        JournalError::Io { error, .. } => error.into(),
        other => StoreError::Disk(io::Error::other(other)),
    }
}

#[cfg(test)]
mod tests;
