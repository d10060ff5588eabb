//! Staging: bundles that are not whole yet.
//!
//! 1. A block is claimed, so that no byte is written twice.
//! 2. If it continues what is hashed, it is hashed from its buffer.
//! 3. It is written to the files it belongs to, or to one flat file while the announce is not known, or if many files begin in
//!    it: making files may take longer than the wire waits.
//! 4. The journal says so, without waiting for the disk.
//! 5. What can be hashed now is read back, a little at a time, and what is in the flat file moves to its files.
//!
//! Nothing in staging is ever visible in the inbox; [`crate::inbox`] moves out what is proven.

mod account;
mod adopt;
mod assembly;
mod discard;
mod durable;
pub mod hashing;
pub mod log;
pub mod open;
mod parked;
pub mod space;
pub mod staged;
pub mod syncs;
pub mod tree;
mod write;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use checkvalve_host::disk::{Disk, read_all};
use checkvalve_host::journal::JournalError;
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::partition::{BlockSet, Oti};
use checkvalve_protocol::receive::ReceivedBlock;
use checkvalve_protocol::wire::ObjectKind;

use crate::sink::StoreError;
use account::{Account, Item, Reserved};
use log::{BootId, Log, Stored};
use open::OpenFiles;
use space::{Bound, Cost, PAGE, Share, Space};
use staged::Place;
pub use staged::Staged;
use tree::Tree;

/// The name of the journal.
const JOURNAL: &str = "journal";
/// Bytes that are read or moved at a time.
const SLICE: u64 = 256 << 10;
/// The `crowd` of [`Store::open`] for real disks: files of 40 KB on average. Most disks take longer to create such
/// files than to write their bytes.
pub const CROWD: usize = 8;
/// Files that stay open between blocks, until [`Store::keep_open`] says another number.
const OPEN_FILES: usize = 256;

/// All of staging.
pub struct Store {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    boot: BootId,
    bundles: RwLock<BTreeMap<BundleId, Arc<Staged>>>,
    /// Taken before any bundle's `blocks`.
    log: Mutex<Log>,
    space: Arc<Space>,
    open: Arc<OpenFiles>,
    /// Bytes of data objects that were stored since this run began.
    written: AtomicU64,
    /// A block in which so many files begin goes to the flat file first.
    crowd: usize,
    /// Syncs under way.
    pub syncs: syncs::Syncs,
    /// Syncs that failed, in this run and in those before it as far as the journal tells.
    failed_syncs: AtomicU64,
}

/// Why staging cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreOpenError {
    /// The disk failed.
    #[error("staging: {0}")]
    Disk(#[from] io::Error),
    /// Its journal cannot be opened.
    #[error("staging: {0}")]
    Journal(#[from] JournalError),
}

impl Store {
    /// Opens or creates staging in `root`, which gets mode 0700. `boot` says which run of the kernel this is. What is of no known
    /// bundle is removed. A block in which `crowd` files begin is stored in one piece first.
    pub fn open(
        disk: Arc<dyn Disk>,
        root: &Path,
        boot: BootId,
        space: Space,
        crowd: usize,
    ) -> Result<Self, StoreOpenError> {
        disk.create_dir_all(root, 0o700)?;
        disk.set_mode(root, 0o700)?;
        let (log, mut known) = Log::open(&disk, &root.join(JOURNAL), boot)?;
        let (space, open) = (Arc::new(space), OpenFiles::new(OPEN_FILES));
        let mut bundles = BTreeMap::new();
        for name in disk.read_dir(root)? {
            let id = name.to_str().and_then(|name| name.parse::<BundleId>().ok());
            let dir = root.join(&name);
            if let Some(id) = id {
                let stored = known.remove(&id).unwrap_or_default();
                space.count_unsigned();
                let account = Account::unsigned(Arc::clone(&space), id.tag());
                let staged = Staged::new(id, dir, Place::Asleep(None), stored, account, open.group());
                staged.find(disk.as_ref())?;
                bundles.insert(id, Arc::new(staged));
            } else if !name.as_encoded_bytes().starts_with(b"journal")
                && !name.as_encoded_bytes().starts_with(b".journal")
            {
                disk.remove_tree(&dir)?;
            }
        }
        space.refresh(disk.free_space(root)?);
        let store = Self {
            disk,
            root: root.to_owned(),
            boot,
            bundles: RwLock::new(bundles),
            failed_syncs: AtomicU64::new(log.has_failed().into()),
            log: Mutex::new(log),
            space,
            open,
            written: AtomicU64::new(0),
            crowd,
            syncs: syncs::Syncs::default(),
        };
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

    /// All bundles in staging, in the order of their ids, so that a simulated run replays.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Staged>> {
        self.bundles.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// A signed object that was kept does not count.
    pub fn drop_object(&self, staged: &Staged, kind: ObjectKind) -> io::Result<()> {
        ignore_missing(self.disk.remove_file(&staged.object(kind)))?;
        let item = if kind == ObjectKind::Announce { Item::Announce } else { Item::Hashes };
        staged.account.set(item, Cost::default);
        Ok(())
    }

    /// A bundle in staging, which begins if it was not there, as one that nobody signed for. None: there are too many of
    /// these. Touches no disk.
    #[must_use]
    pub fn begin(&self, id: BundleId) -> Option<Arc<Staged>> {
        if let Some(staged) = self.get(id) {
            return Some(staged);
        }
        let mut bundles = self.bundles.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(staged) = bundles.get(&id) {
            return Some(Arc::clone(staged));
        }
        self.space.begin_unsigned().then(|| self.make(&mut bundles, id))
    }

    /// The same for a bundle that a trusted key signed for or speaks of, which always finds its place: [`Store::vouch`].
    pub fn begin_signed(&self, id: BundleId, channel: &ChannelName, share: Share) -> Arc<Staged> {
        let staged = self.get(id).unwrap_or_else(|| {
            let mut bundles = self.bundles.write().unwrap_or_else(PoisonError::into_inner);
            bundles.get(&id).cloned().unwrap_or_else(|| {
                self.space.count_unsigned();
                self.make(&mut bundles, id)
            })
        });
        staged.account.vouch(channel, share);
        staged
    }

    /// A trusted key signed for a bundle, or speaks of it: what it takes counts for its channel from now on, whose bundles
    /// may take `share` in all. Nothing happens if it is not in staging. Touches no disk.
    pub fn vouch(&self, id: BundleId, channel: &ChannelName, share: Share) {
        if let Some(staged) = self.get(id) {
            staged.account.vouch(channel, share);
        }
    }

    fn make(&self, bundles: &mut BTreeMap<BundleId, Arc<Staged>>, id: BundleId) -> Arc<Staged> {
        let account = Account::unsigned(Arc::clone(&self.space), id.tag());
        let (dir, open) = (self.root.join(id.to_string()), self.open.group());
        let staged = Arc::new(Staged::new(id, dir, Place::New, Stored::default(), account, open));
        bundles.insert(id, Arc::clone(&staged));
        staged
    }

    /// Whether a bundle may take so many bytes more of its data object, wherever they are. Touches no disk.
    #[must_use]
    pub fn fits(&self, id: BundleId, bytes: u64) -> bool {
        // One page more where it crosses the end of one, and one as in `Cost::range_of_data`.
        let cost = Cost::bytes(bytes.saturating_add(2 * PAGE));
        self.get(id).map_or_else(|| self.space.fits(cost, None), |staged| staged.account.fits(cost))
    }

    /// What keeps a bundle of so many bytes out, or kept something of it out last.
    #[must_use]
    pub fn refused(&self, id: BundleId, bytes: u64) -> Option<Bound> {
        let of_new = || self.space.bound(Cost::bytes(bytes), None);
        self.get(id).map_or_else(of_new, |staged| staged.account.refused(bytes))
    }

    /// What keeps so much more of a bundle out now. Touches no disk.
    #[must_use]
    pub fn bound(&self, id: BundleId, cost: Cost) -> Option<Bound> {
        self.get(id).map_or_else(|| self.space.bound(cost, None), |staged| staged.account.bound(cost))
    }

    /// What of a bundle found no room last.
    #[must_use]
    pub fn refused_cost(&self, id: BundleId) -> Cost {
        self.get(id).map(|staged| staged.account.refused_cost()).unwrap_or_default()
    }

    /// Bytes of data objects that were stored since this run began; what was given up is not taken off.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Keeps so many files open between blocks, of all bundles together.
    pub fn keep_open(&self, files: usize) {
        self.open.limit(files);
    }

    /// Room in staging.
    #[must_use]
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Asks the disk how much is free.
    pub fn refresh_space(&self) -> io::Result<()> {
        self.space.refresh(self.disk.free_space(&self.root)?);
        Ok(())
    }

    /// Whether staging is where it was: its journal has a name.
    pub fn is_there(&self) -> io::Result<bool> {
        self.is_missing(&self.root.join(JOURNAL)).map(|missing| !missing)
    }

    /// Writes down what could not be written while the disk failed, as soon as it can be: a restart relies on it. Begins the journal anew
    /// when there is nothing left in staging.
    pub fn mend(&self) {
        let mut log = self.log();
        if log.has_grown()
            && self.bundles.read().unwrap_or_else(PoisonError::into_inner).is_empty()
            && let Err(error) = self.rewrite(&mut log)
        {
            tracing::debug!(%error, "staging journal");
        }
    }

    /// Makes staging anew after somebody removed it.
    pub fn make_again(&self) -> io::Result<()> {
        self.disk.create_dir_all(&self.root, 0o700)?;
        self.rewrite(&mut self.log())
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

    /// Keeps the symbols of an unfinished block; gives how many of it are kept now. Errors: [`StoreError::NoRoom`] also where
    /// symbols of too many blocks are kept; the block may be dropped then.
    pub fn park(&self, staged: &Staged, block: &ReceivedBlock) -> Result<u32, StoreError> {
        let _room = self.reserve(staged, staged.parked.more(block))?;
        let place = staged.read_place();
        if matches!(*place, Place::Gone) {
            return Err(StoreError::Unwanted);
        }
        staged.create_dir(self.disk.as_ref())?;
        staged.keep_oti(self.disk.as_ref(), block.kind(), &block.oti())?;
        let symbols = staged.parked.keep(self.disk.as_ref(), &staged.parked_dir(), block)?;
        staged.account.set(Item::Parked, || staged.parked.cost());
        Ok(symbols)
    }

    /// Keeps the OTI of a bundle's data object, so that its blocks have numbers after a restart too.
    pub fn keep_oti(&self, staged: &Staged, oti: &Oti) -> io::Result<()> {
        // Removing waits for this, so that no directory comes back.
        let place = staged.read_place();
        if matches!(*place, Place::Gone) {
            return Ok(());
        }
        staged.keep_oti(self.disk.as_ref(), ObjectKind::Data, oti)
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
        if staged.parked.drop_block(self.disk.as_ref(), &dir, kind, oti, sbn) {
            staged.account.set(Item::Parked, || staged.parked.cost());
        }
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
        if oti.blocks() == 1 {
            return Ok(assembly.add(self.disk.as_ref(), staged, kind, oti, sbn, buf)?);
        }
        let offset = oti.block_offset(sbn).ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
        let _room = self.reserve(staged, Cost::files(1) + Cost::range(&(offset..offset + buf.len() as u64)))?;
        let place = staged.read_place();
        if matches!(*place, Place::Gone) {
            return Err(StoreError::Unwanted);
        }
        staged.create_dir(self.disk.as_ref())?;
        let whole = assembly.add(self.disk.as_ref(), staged, kind, oti, sbn, buf);
        let item = if kind == ObjectKind::Announce { Item::AnnouncePart } else { Item::HashesPart };
        staged.account.set(item, || assembly.cost(kind));
        Ok(whole?)
    }

    /// Keeps a signed object beside the data, so that a restart finds it. Not durable.
    pub fn keep_object(&self, staged: &Staged, kind: ObjectKind, bytes: &[u8]) -> Result<(), StoreError> {
        // Removing waits for this, so that no directory comes back.
        let place = staged.read_place();
        if matches!(*place, Place::Gone) {
            return Err(StoreError::Unwanted);
        }
        staged.create_dir(self.disk.as_ref())?;
        self.put(staged, kind, bytes)
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
        if matches!(*place, Place::Tree(_) if announce.is_some()) || matches!(*place, Place::Flat) {
            *place = Place::Asleep(announce);
            staged.open.close_all();
            *staged.hashing() = hashing::Hashing::default();
        }
    }

    /// Removes a bundle from staging. Errors: of the disk; it is forgotten all the same, and removed at the next start.
    pub fn remove(&self, id: BundleId) -> io::Result<()> {
        let Some(staged) = self.bundles.write().unwrap_or_else(PoisonError::into_inner).remove(&id) else {
            return Ok(());
        };
        *staged.place.write().unwrap_or_else(PoisonError::into_inner) = Place::Gone;
        staged.open.close_all();
        let forgotten = self.log().forget(id);
        let removed = ignore_missing(self.disk.remove_tree(staged.dir()));
        // It takes room until it is gone.
        staged.account.close();
        removed?;
        forgotten.map_err(io::Error::other)
    }

    fn rewrite(&self, log: &mut Log) -> io::Result<()> {
        let stored: BTreeMap<BundleId, Stored> = self.all().into_iter().map(|s| (s.id, s.stored())).collect();
        log.rewrite(self.boot, &stored).map_err(io::Error::other)
    }

    /// Writes a signed object anew, not durably.
    fn put(&self, staged: &Staged, kind: ObjectKind, bytes: &[u8]) -> Result<(), StoreError> {
        let item = if kind == ObjectKind::Announce { Item::Announce } else { Item::Hashes };
        self.charge(staged, item, Cost::file(bytes.len() as u64))?;
        let path = staged.object(kind);
        ignore_missing(self.disk.remove_file(&path))?;
        Ok(self.disk.create_new(&path, 0o600)?.write_all_at(bytes, 0)?)
    }

    /// Something of a bundle costs so much now. If there is no room, the disk is asked what it has.
    fn charge(&self, staged: &Staged, item: Item, cost: Cost) -> Result<(), StoreError> {
        if staged.account.charge(item, cost).is_err() {
            self.refresh_space()?;
            staged.account.charge(item, cost)?;
        }
        Ok(())
    }

    /// Room for what is to be written, likewise.
    fn reserve<'a>(&self, staged: &'a Staged, cost: Cost) -> Result<Reserved<'a>, StoreError> {
        if let Ok(room) = staged.account.reserve(cost) {
            return Ok(room);
        }
        self.refresh_space()?;
        Ok(staged.account.reserve(cost)?)
    }

    fn is_missing(&self, path: &Path) -> io::Result<bool> {
        match self.disk.lstat(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            other => other.map(|_| false),
        }
    }

    /// The journal, in which a sync that failed is mended as soon as the disk allows it.
    fn log(&self) -> MutexGuard<'_, Log> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.is_broken()
            && let Err(error) = self.rewrite(&mut log)
        {
            // Whoever needs it is told, and says so; this is tried for each block.
            tracing::debug!(%error, "staging journal");
        }
        log
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
