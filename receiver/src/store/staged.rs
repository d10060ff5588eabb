//! One bundle in staging.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use checkvalve_host::disk::{Disk, DiskFile, read_all};
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::limits::MAX_MANIFEST_LEN;
use checkvalve_protocol::manifest::Announce;
use checkvalve_protocol::partition::Oti;
use checkvalve_protocol::wire::ObjectKind;

use super::account::{Account, Item};
use super::assembly::Assembly;
use super::hashing::Hashing;
use super::log::Stored;
use super::open::Group;
use super::parked::Parked;
use super::space::{Cost, PAGE};
use super::tree::Tree;
use crate::ranges::Ranges;

/// File with the OTI of the data object. Its version is that of the journal, as of all files in staging.
const OTI: &str = "oti";
/// Its length in bytes.
const OTI_LEN: u64 = 12;
/// As which the flat file is open.
pub(super) const FLAT: u32 = 0;

/// A bundle's bytes in staging, and what is known of them. Shared between threads.
///
/// Locks are taken in the order of the fields, and `blocks` is never held while the disk is waited for.
pub struct Staged {
    /// The bundle.
    pub id: BundleId,
    dir: PathBuf,
    /// Held by whoever moves the bundle on: one at a time.
    pub advancing: Mutex<()>,
    /// Announce and hashes that come in several blocks.
    pub(super) assembly: Mutex<Assembly>,
    pub(super) place: RwLock<Place>,
    /// Its files that are open, those of the tree excepted.
    pub(super) open: Group,
    pub(super) hashing: Mutex<Hashing>,
    pub(super) parked: Parked,
    pub(super) blocks: Mutex<Blocks>,
    /// Of its data object.
    oti: Mutex<Option<Oti>>,
    pub(super) account: Account,
}

/// Where a bundle's bytes go.
pub(super) enum Place {
    /// Nothing is on the disk yet.
    New,
    /// Into one file, until the announce says which files there are.
    Flat,
    /// Into its files; where a block is of many, into the flat file first.
    Tree(Arc<Tree>),
    /// On the disk but not in memory. With the digest of the announce, if it had come.
    Asleep(Option<[u8; 32]>),
    /// Removed, or about to be.
    Gone,
}

/// Which bytes of the data object are stored.
#[derive(Default)]
pub(super) struct Blocks {
    pub stored: Stored,
    /// Being written.
    pub claimed: Ranges,
    /// In the flat file although it moved to its files: until the flat file is cut.
    pub moved: Ranges,
    /// Rises whenever something is not stored any more.
    pub losses: u64,
    /// How many syncs had failed when all of it was read from the device. None: it was not, or what came since was not.
    pub read_again: Option<u64>,
    /// What the last run of the daemon wrote and did not see synced. A sync of it may have failed, which the kernel tells only once.
    pub unseen: Ranges,
    /// Some of `unseen` was not written again yet.
    pub is_unwritten: bool,
}

impl Staged {
    pub(super) fn new(id: BundleId, dir: PathBuf, place: Place, stored: Stored, account: Account, open: Group) -> Self {
        let unseen = stored.unsynced();
        let is_unwritten = !unseen.is_empty();
        let blocks = Mutex::new(Blocks { stored, unseen, is_unwritten, ..Blocks::default() });
        Self {
            id,
            dir,
            advancing: Mutex::default(),
            assembly: Mutex::default(),
            place: RwLock::new(place),
            open,
            hashing: Mutex::default(),
            parked: Parked::default(),
            blocks,
            oti: Mutex::default(),
            account,
        }
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where its published form grows.
    #[must_use]
    pub fn out(&self) -> PathBuf {
        self.dir.join("out")
    }

    /// Where symbols of unfinished blocks are kept.
    #[must_use]
    pub fn parked_dir(&self) -> PathBuf {
        self.dir.join("parked")
    }

    /// Where the signed object of that kind is kept, once whole.
    #[must_use]
    pub fn object(&self, kind: ObjectKind) -> PathBuf {
        self.dir.join(match kind {
            ObjectKind::Announce => "announce",
            ObjectKind::Hashes => "hashes",
            ObjectKind::Data => "data",
        })
    }

    /// What was announced, if it is in memory.
    #[must_use]
    pub fn announce_in_memory(&self) -> Option<Arc<Announce>> {
        match &*self.read_place() {
            Place::Tree(tree) => Some(Arc::clone(tree.announce())),
            _ => None,
        }
    }

    /// OTI of its data object, if something came of it and it has several blocks.
    #[must_use]
    pub fn oti(&self) -> Option<Oti> {
        let oti = (*self.lock_oti())?;
        let length = self.blocks().stored.length;
        length.is_none_or(|length| length == oti.transfer_length()).then_some(oti)
    }

    /// Keeps the OTI of a data object of several blocks in a file, not durably: F (u64), T and B (u16), big endian.
    pub(super) fn keep_oti(&self, disk: &dyn Disk, kind: ObjectKind, oti: &Oti) -> io::Result<()> {
        let mut kept = self.lock_oti();
        if kind != ObjectKind::Data || oti.blocks() < 2 || *kept == Some(*oti) {
            return Ok(());
        }
        self.create_dir(disk)?;
        self.account.charge(Item::Oti, Cost::file(OTI_LEN))?;
        let path = self.dir.join(OTI);
        match disk.remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut bytes = oti.transfer_length().to_be_bytes().to_vec();
        bytes.extend(oti.symbol_size().to_be_bytes());
        bytes.extend(oti.max_block_symbols().to_be_bytes());
        disk.create_new(&path, 0o600)?.write_all_at(&bytes, 0)?;
        *kept = Some(*oti);
        Ok(())
    }

    /// Counts what an earlier run left of it, and removes what nobody goes on with.
    pub(super) fn find(&self, disk: &dyn Disk) -> io::Result<()> {
        for name in disk.read_dir(&self.dir)? {
            let path = self.dir.join(&name);
            let (item, cost) = match name.to_str() {
                Some(OTI) => (Item::Oti, Cost::file(OTI_LEN)),
                Some("announce") => (Item::Announce, Cost::file(disk.lstat(&path)?.size)),
                Some("hashes") => (Item::Hashes, Cost::file(disk.lstat(&path)?.size)),
                // A block was being written to it when the process ended, or all of it has moved, and a checkpoint covers that.
                Some("data") if !self.blocks().stored.needs_flat() => {
                    disk.remove_file(&path)?;
                    continue;
                }
                Some("data") => (Item::Data, Cost::files(1)),
                // How many entries there are its announce says, once it is adopted again.
                Some("out") => (Item::Out, Cost::files(1)),
                Some("parked") => {
                    self.parked.find(disk, &path)?;
                    (Item::Parked, self.parked.cost())
                }
                _ => {
                    disk.remove_tree(&path)?;
                    continue;
                }
            };
            self.account.set(item, || cost);
        }
        self.account.set(Item::Dir, || Cost::files(1));
        self.recount(&self.blocks());
        self.find_oti(disk);
        Ok(())
    }

    /// After a restart. Without it, or if a power cut tore it, tickets ask for all of the data.
    fn find_oti(&self, disk: &dyn Disk) {
        let Ok(bytes) = read_all(disk, &self.dir.join(OTI), OTI_LEN) else { return };
        let Ok([a, b, c, d, e, f, g, h, t0, t1, b0, b1]) = <[u8; 12]>::try_from(bytes) else { return };
        let length = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let oti = Oti::new(length, u16::from_be_bytes([t0, t1]), u16::from_be_bytes([b0, b1]));
        *self.lock_oti() = oti.ok();
    }

    fn lock_oti(&self) -> MutexGuard<'_, Option<Oti>> {
        self.oti.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is stored.
    #[must_use]
    pub fn stored(&self) -> Stored {
        self.blocks().stored.clone()
    }

    /// Length of the data object, if known, and how much of it is stored, in bytes.
    #[must_use]
    pub fn fill(&self) -> (Option<u64>, u64) {
        let blocks = self.blocks();
        (blocks.stored.length, blocks.stored.all.len())
    }

    /// The channel that a trusted key signed it for. None: nobody did, as far as staging was told.
    #[must_use]
    pub fn channel(&self) -> Option<ChannelName> {
        self.account.channel()
    }

    /// What it takes of [`Space`](super::space::Space).
    #[must_use]
    pub fn cost(&self) -> Cost {
        self.account.total()
    }

    /// Counts what is stored, after that has changed. The caller holds `blocks`.
    pub(super) fn recount(&self, blocks: &Blocks) {
        self.account.set(Item::Content, || blocks.cost());
    }

    /// How often something of it was lost or given up.
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.blocks().losses
    }

    /// The device did not keep what it had: what comes again is to be read from it, too.
    pub fn doubt(&self) {
        self.blocks().read_again = None;
    }

    /// Whether all bytes of the data object are stored.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.blocks().stored.is_whole()
    }

    /// Bytes up to which the data object is hashed.
    #[must_use]
    pub fn hashed(&self) -> u64 {
        self.hashing().next()
    }

    /// Its files, if the announce is known and they are in memory.
    #[must_use]
    pub fn tree(&self) -> Option<Arc<Tree>> {
        match &*self.read_place() {
            Place::Tree(tree) => Some(Arc::clone(tree)),
            _ => None,
        }
    }

    pub(super) fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn hashing(&self) -> MutexGuard<'_, Hashing> {
        self.hashing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether bytes wait to be moved to their files.
    #[must_use]
    pub fn has_to_move(&self) -> bool {
        !self.blocks().stored.flat.is_empty() && matches!(*self.read_place(), Place::Tree(_))
    }

    /// The flat file, opened or created if it is not open. The caller holds the place.
    pub(super) fn open_flat(&self, disk: &dyn Disk) -> io::Result<Arc<dyn DiskFile>> {
        self.open.get(FLAT, || {
            self.account.charge(Item::Data, Cost::files(1))?;
            let path = self.object(ObjectKind::Data);
            // Somebody removed it: a new one would not have what is stored.
            if !self.blocks().stored.flat.is_empty() {
                return disk.open_rw(&path);
            }
            match disk.create_new(&path, 0o600) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => disk.open_rw(&path),
                other => other,
            }
        })
    }

    pub(super) fn read_place(&self) -> RwLockReadGuard<'_, Place> {
        self.place.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The place, brought into memory if it slept and made if it is new.
    pub(super) fn wake(&self, disk: &Arc<dyn Disk>) -> io::Result<RwLockReadGuard<'_, Place>> {
        loop {
            let place = self.read_place();
            if !matches!(*place, Place::New | Place::Asleep(_)) {
                return Ok(place);
            }
            drop(place);
            let mut place = self.place.write().unwrap_or_else(PoisonError::into_inner);
            match &*place {
                Place::New | Place::Asleep(None) => {
                    self.create_dir(disk.as_ref())?;
                    self.open_flat(disk.as_ref())?;
                    *place = Place::Flat;
                }
                Place::Asleep(Some(digest)) => {
                    let bytes = read_all(disk.as_ref(), &self.object(ObjectKind::Announce), MAX_MANIFEST_LEN as u64)?;
                    if blake3::hash(&bytes) != *digest {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    // It was opened with its signature before; only the memory was given back since.
                    let announce = Announce::peek(&bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
                    let tree = Tree::new(Arc::clone(disk), self.out(), Arc::new(announce), self.open.another());
                    *place = Place::Tree(Arc::new(tree));
                }
                _ => {}
            }
        }
    }

    pub(super) fn create_dir(&self, disk: &dyn Disk) -> io::Result<()> {
        self.account.charge(Item::Dir, Cost::files(1))?;
        match disk.create_dir(&self.dir, 0o700) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }
}

impl Blocks {
    /// As [`Cost::range_of_data`] for each range, but that ranges share pages.
    fn cost(&self) -> Cost {
        let ranges = self.stored.all.count() as u64;
        let pages = self.stored.all.measured() + self.moved.measured() + ranges;
        Cost { bytes: pages.saturating_mul(PAGE), ranges, ..Cost::default() }
    }

    /// The parts of `range` that nobody stored or is storing are claimed for the caller.
    pub(super) fn claim(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        let missing = self.stored.all.gaps(range);
        let free: Vec<_> = missing.into_iter().flat_map(|gap| self.claimed.gaps(gap)).collect();
        for range in &free {
            self.claimed.insert(range.clone());
        }
        free
    }

    /// Gives up claims.
    pub(super) fn release(&mut self, ranges: &[Range<u64>]) {
        for range in ranges {
            self.claimed.remove(range.clone());
        }
    }
}
