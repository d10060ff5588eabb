//! Bytes of the data object: into their files, and hashed in their order.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::space::Cost;
use super::staged::Place;
use super::tree::Tree;
use super::{SLICE, Staged, Store, journal_error};
use crate::sink::StoreError;

/// Bytes that are read back for hashing after a block was written; the rest is left to [`Store::catch_up`].
const READ_BACK: u64 = 1 << 20;

impl Store {
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

    /// Reads back and hashes up to `limit` bytes of what is stored. True: all of the data object is in its files, and hashed.
    pub fn catch_up(&self, staged: &Staged, limit: u64) -> Result<bool, StoreError> {
        let Some(tree) = self.tree(staged)? else { return Ok(false) };
        self.hash_on(staged, &tree, limit)?;
        // A block in sequence is hashed before it is written, so fully hashed does not mean fully stored.
        let in_place = {
            let stored = &staged.blocks().stored;
            stored.is_whole() && stored.flat.is_empty()
        };
        Ok(in_place && staged.fill().0 == Some(staged.hashed()))
    }

    /// The files whose hash is not the one that was signed, by their index. None: not all of the data object is hashed, or
    /// there are not as many files.
    #[must_use]
    pub fn differing(&self, staged: &Staged, tree: &Tree, signed: &[[u8; 32]]) -> Option<Vec<usize>> {
        let mut hashing = staged.hashing();
        let found = hashing.finish(tree.files()).filter(|found| found.len() == signed.len())?;
        let differs = found.iter().zip(signed).enumerate().filter(|(_, (found, signed))| found != signed);
        Some(differs.map(|(index, _)| index).collect())
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
        let cost = claimed.iter().map(Cost::range_of_data).sum::<Cost>();
        let _room = self.reserve(staged, cost)?;
        let before = (self.failed_syncs.load(Ordering::Relaxed), staged.losses());
        let place = staged.wake(&self.disk)?;
        let part = |range: &Range<u64>| &buf[(range.start - offset) as usize..(range.end - offset) as usize];
        let mut flat = true;
        let tree = match &*place {
            Place::Gone | Place::New | Place::Asleep(_) => return Err(StoreError::Unwanted),
            Place::Flat => {
                let file = staged.open_flat(self.disk.as_ref())?;
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
                // Creating thousands of files takes longer than the wire waits; one write to the flat file does not.
                let crowded = tree.files_in(&(offset..offset + buf.len() as u64)) >= self.crowd;
                // Both the flat file and the files need room until the former is cut.
                let in_flat = staged.blocks().stored.flat.len();
                flat = crowded && staged.account.fits(Cost::bytes(in_flat + bytes));
                let written = match flat {
                    true => staged.open_flat(self.disk.as_ref()).and_then(|file| {
                        claimed.iter().try_for_each(|range| file.write_all_at(part(range), range.start))
                    }),
                    false => claimed.iter().try_for_each(|range| tree.write(range.start, part(range))),
                };
                if let Err(error) = written {
                    staged.hashing().rewind(tree.files(), offset);
                    return Err(error.into());
                }
                Some(Arc::clone(tree))
            }
        };
        let noted = self.note(staged, length, claimed, flat, before);
        if let (Err(_), Some(tree)) = (&noted, &tree) {
            staged.hashing().rewind(tree.files(), offset);
        }
        noted?;
        self.written.fetch_add(bytes, Ordering::Relaxed);
        Ok(tree)
    }

    /// Writes down that `claimed` is stored. `before`: failed syncs and losses when the writing began. What was written before one of them
    /// is given up with the rest.
    fn note(
        &self,
        staged: &Staged,
        length: u64,
        claimed: &[Range<u64>],
        flat: bool,
        before: (u64, u64),
    ) -> Result<(), StoreError> {
        let mut log = self.log();
        if self.failed_syncs.load(Ordering::Relaxed) != before.0 {
            return Err(StoreError::Disk(io::Error::other("a sync failed while it was written")));
        }
        if staged.losses() != before.1 {
            return Err(StoreError::Disk(io::Error::other("what was stored of it was given up while it was written")));
        }
        match staged.fill().0 {
            None => log.length(staged.id, length).map_err(journal_error)?,
            // Another block said another length while this one was written.
            Some(known) if known != length => return Err(StoreError::Unwanted),
            Some(_) => {}
        }
        for range in claimed {
            log.stored(staged.id, range.clone(), flat).map_err(journal_error)?;
        }
        let mut blocks = staged.blocks();
        blocks.stored.length = Some(length);
        for range in claimed {
            blocks.stored.add(range.clone(), flat);
        }
        blocks.release(claimed);
        staged.recount(&blocks);
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
}
