//! The announce comes, perhaps after some of the data: what is in the flat file goes to the files it belongs to.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use checkvalve_host::disk::DiskFile;
use checkvalve_protocol::manifest::Announce;
use checkvalve_protocol::wire::ObjectKind;

use super::account::Item;
use super::hashing::Hashing;
use super::log::Stored;
use super::space::Cost;
use super::staged::{FLAT, Place};
use super::tree::{Tree, read_exact};
use super::{SLICE, Staged, Store, ignore_missing, journal_error};
use crate::ranges::Ranges;
use crate::sink::StoreError;

/// Bytes that move from the flat file to their places in one go; then others have their turn.
const MOVE: u64 = 16 << 20;
/// The flat file is cut when so many bytes of it have moved, or all.
const CUT: u64 = 256 << 20;

impl Store {
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
        let made = Cost::files(announce.entries.len() as u64 + 1);
        if self.is_missing(&staged.out())? {
            self.charge(staged, Item::Out, made)?;
        } else {
            staged.account.set(Item::Out, || made); // made before a restart
        }
        let tree = Tree::new(Arc::clone(&self.disk), staged.out(), announce, self.open.group());
        let made_now = tree.create_directories()?;
        if made_now && staged.stored().all.len() > staged.stored().flat.len() {
            self.clear(staged)?; // somebody took its files away
        }
        self.put(staged, ObjectKind::Announce, bytes)?;
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

    /// Moves bytes from the flat file to their places, some megabytes at most. False: there is nothing to move.
    pub fn move_flat(&self, staged: &Staged) -> Result<bool, StoreError> {
        let Some(tree) = self.tree(staged)? else { return Ok(false) };
        let (is_moved, is_needed) = {
            let stored = &staged.blocks().stored;
            (stored.flat.is_empty(), stored.needs_flat())
        };
        if is_moved && !is_needed {
            return Ok(false);
        }
        let data = match self.disk.open_rw(&staged.object(ObjectKind::Data)) {
            // It is the only file now.
            Err(error) if is_moved && error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        if is_moved {
            self.cut_flat(staged, data.as_ref())?;
            return Ok(false);
        }
        let mut buf = vec![0; SLICE as usize];
        let mut moved = 0;
        // From the end, so that the flat file can be cut as it empties.
        while moved < MOVE {
            let Some(range) = staged.blocks().stored.flat.last() else { break };
            let start = range.end.saturating_sub(SLICE).max(range.start);
            let buf = &mut buf[..(range.end - start) as usize];
            let before = self.failed_syncs.load(Ordering::Relaxed);
            // Removing waits for each part, and no file is made in what is being removed.
            let place = staged.read_place();
            if !matches!(*place, Place::Tree(_)) {
                return Ok(false);
            }
            read_exact(data.as_ref(), buf, start)?;
            tree.write(start, buf)?;
            self.moved(staged, start..range.end, Some(before))?;
            moved += buf.len() as u64;
        }
        self.cut_flat(staged, data.as_ref())?;
        Ok(true)
    }

    /// Gives back what the flat file takes beyond what is still in it.
    fn cut_flat(&self, staged: &Staged, data: &dyn DiskFile) -> Result<(), StoreError> {
        let end = |ranges: &Ranges| ranges.last().map_or(0, |range| range.end);
        let left = end(&staged.blocks().stored.flat);
        // What moved takes room twice until then.
        let crowded = !staged.account.fits(Cost::bytes(MOVE));
        if left > 0 && !crowded && data.len()?.saturating_sub(left) < CUT {
            return Ok(());
        }
        if end(&staged.blocks().stored.synced_flat) > left {
            // Only what is safe in its place may go from the flat file.
            self.checkpoint()?;
        }
        // Whoever writes to it holds the place until that is noted.
        let _nobody_writes = staged.place.write().unwrap_or_else(PoisonError::into_inner);
        let (left, synced) = {
            let blocks = staged.blocks();
            (end(&blocks.stored.flat), end(&blocks.stored.synced_flat))
        };
        if synced > left {
            return Ok(()); // a checkpoint in between counts on it; the next one does not
        }
        if left > 0 {
            data.set_len(left)?;
            let mut blocks = staged.blocks();
            blocks.moved.remove(left..u64::MAX);
            staged.recount(&blocks);
            return Ok(());
        }
        self.remove_flat(staged)
    }

    /// Nothing is in the flat file, and nobody writes to it.
    fn remove_flat(&self, staged: &Staged) -> Result<(), StoreError> {
        staged.open.close(FLAT);
        ignore_missing(self.disk.remove_file(&staged.object(ObjectKind::Data)))?;
        staged.account.set(Item::Data, Cost::default);
        let mut blocks = staged.blocks();
        blocks.moved = Ranges::new();
        staged.recount(&blocks);
        Ok(())
    }

    /// Records that the flat bytes of `range` are in their files. `copied`: given if they are still in the flat file as
    /// well; holds the number of failed syncs when copying began.
    fn moved(&self, staged: &Staged, range: Range<u64>, copied: Option<u64>) -> Result<(), StoreError> {
        let mut log = self.log();
        if copied.is_some_and(|before| before != self.failed_syncs.load(Ordering::Relaxed)) {
            return Err(StoreError::Disk(io::Error::other("a sync failed while it was moved")));
        }
        let mut blocks = staged.blocks();
        for part in blocks.stored.flat.within(range) {
            log.stored(staged.id, part.clone(), false).map_err(journal_error)?;
            if copied.is_some() {
                blocks.moved.insert(part.clone());
            }
            blocks.stored.add(part, false);
        }
        staged.recount(&blocks);
        Ok(())
    }

    /// What becomes of the flat file now that the files are known: the only file takes its place as it is, of several
    /// [`Store::move_flat`] moves the bytes.
    fn settle_flat(&self, staged: &Staged, tree: &Tree, length: u64) -> Result<(), StoreError> {
        let data = staged.object(ObjectKind::Data);
        if staged.blocks().stored.flat.is_empty() {
            // A power cut would leave only what is in it, until the next checkpoint: then it is cut.
            return if staged.blocks().stored.needs_flat() { Ok(()) } else { self.remove_flat(staged) };
        }
        staged.open.close(FLAT);
        let exists = |path: &Path| self.is_missing(path).map(|missing| !missing);
        match (exists(&data)?, tree.sole_file()) {
            (true, Some(file)) => {
                // What somebody sent of a longer object, or of a block that is not stored, is no part of it.
                let flat = self.disk.open_rw(&data)?;
                if flat.len()? > length {
                    flat.set_len(length)?;
                }
                self.disk.rename(&data, &file)?;
            }
            (true, None) => return Ok(()),
            // A crash came between the rename and the journal.
            (false, Some(file)) if exists(&file)? => {}
            (false, _) => return self.clear(staged),
        }
        staged.account.set(Item::Data, Cost::default);
        self.moved(staged, 0..length, None)
    }

    /// Nothing of the data is stored any more. The caller holds the place.
    fn clear(&self, staged: &Staged) -> Result<(), StoreError> {
        let mut log = self.log();
        log.forget(staged.id).map_err(journal_error)?;
        let mut blocks = staged.blocks();
        (blocks.stored, blocks.losses) = (Stored::default(), blocks.losses + 1);
        staged.recount(&blocks);
        drop((blocks, log));
        *staged.hashing() = Hashing::default();
        // Nothing of it counts any more, so that it must not stay.
        self.remove_flat(staged)
    }
}
