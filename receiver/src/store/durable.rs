//! What of staging would survive a power cut, and what is not believed after a sync has failed.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use checkvalve_host::disk::{is_loss, not_opened};
use checkvalve_protocol::wire::ObjectKind;

use super::log::Stored;
use super::staged::Place;
use super::{SLICE, Staged, Store, hashing, tree};

impl Store {
    /// Makes all that is stored survive a power cut. Errors: what was stored since the last time is given up, if it may be lost
    /// ([`is_loss`]).
    pub fn checkpoint(&self) -> io::Result<()> {
        let (before, mut log, records) = loop {
            let before: Vec<(Arc<Staged>, Stored, u64)> = self.all().into_iter().map(of_now).collect();
            let (rewrites, records) = {
                // Whoever is between writing and saying so holds this; what they wrote is counted next time.
                let log = self.log();
                (log.rewrites(), log.records())
            };
            // Nothing is lost by that.
            self.write_again().map_err(not_opened)?;
            let sync = self.syncs.begin();
            if let Err(error) = self.disk.sync_fs(&self.root) {
                if is_loss(&error) {
                    self.give_up_unsynced();
                }
                return Err(error);
            }
            // If a concurrent sync was told that data is lost, that data does not count as synced.
            sync.good();
            let log = self.log();
            // In a journal that was rewritten meanwhile these records are others.
            if log.rewrites() == rewrites {
                break (before, log, records);
            }
        };
        log.checkpoint(records).map_err(io::Error::other)?;
        for (staged, stored, losses) in before {
            let mut blocks = staged.blocks();
            // What was lost meanwhile may have come again since, and that is not synced.
            if blocks.losses == losses {
                blocks.stored.set_synced(&stored);
            }
        }
        if log.is_long() {
            self.rewrite(&mut log)?;
        }
        Ok(())
    }

    /// A sync failed: what was stored since the last checkpoint may be lost although it can be read.
    pub fn give_up_unsynced(&self) {
        // Lock the log first: whoever records something holds it while checking `failed_syncs`.
        let mut log = self.log();
        self.failed_syncs.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = log.unsynced() {
            tracing::error!(%error, "staging journal");
        }
        for staged in self.all() {
            {
                let mut blocks = staged.blocks();
                blocks.stored.back_to_synced();
                blocks.losses += 1;
                staged.recount(&blocks);
            }
            *staged.hashing() = hashing::Hashing::default();
        }
    }

    /// How many syncs failed; with each, what was stored since the last checkpoint was given up.
    #[must_use]
    pub fn failed_syncs(&self) -> u64 {
        self.failed_syncs.load(Ordering::Relaxed)
    }

    /// Whether the disk, and not who sent it, may be to blame for what is wrong in these ranges of a bundle: a sync failed, or may
    /// have failed unseen before the daemon was started.
    #[must_use]
    pub fn may_have_lost(&self, staged: &Staged, wrong: &[Range<u64>]) -> bool {
        let blocks = staged.blocks();
        self.failed_syncs() > 0 || wrong.iter().any(|range| !blocks.unseen.within(range.clone()).is_empty())
    }

    /// Whether the disk may have lost something of a bundle which was not read from the device since: the kernel may have lost
    /// more than it reported. A file system that cannot write its own metadata reports later syncs as good, even for data that is
    /// written after the failure, and lost data can be read until it leaves the cache.
    #[must_use]
    pub fn is_doubtful(&self, staged: &Staged) -> bool {
        let failed = self.failed_syncs();
        let blocks = staged.blocks();
        (failed > 0 || !blocks.unseen.is_empty()) && blocks.read_again != Some(failed)
    }

    /// Writes once more what the last run of the daemon wrote and did not see synced. After a failed sync the kernel calls such
    /// pages clean, and later syncs pass over them. This makes them dirty again.
    fn write_again(&self) -> io::Result<()> {
        for staged in self.all() {
            if !staged.blocks().is_unwritten {
                continue;
            }
            let is_whole = match self.write_unseen(&staged) {
                Err(error) if is_found_later(&error) => true,
                other => other?,
            };
            staged.blocks().is_unwritten = !is_whole;
        }
        Ok(())
    }

    /// False: some of it is in files, and where these are is not known before its announce is taken again.
    fn write_unseen(&self, staged: &Staged) -> io::Result<bool> {
        let mut is_whole = true;
        if matches!(*staged.read_place(), Place::Asleep(Some(_))) {
            drop(staged.wake(&self.disk)?);
        }
        let unseen: Vec<Range<u64>> = staged.blocks().unseen.iter().collect();
        let slice =
            |range: Range<u64>| range.clone().step_by(SLICE as usize).map(move |at| at..range.end.min(at + SLICE));
        for slice in unseen.into_iter().flat_map(slice) {
            // Nothing is cut or thrown away meanwhile, and writers wait for no more than this.
            let place = staged.read_place();
            let (flat, placed): (Vec<_>, Vec<_>) = {
                let stored = &staged.blocks().stored;
                let placed = stored.all.within(slice.clone()).into_iter().flat_map(|range| stored.flat.gaps(range));
                (stored.flat.within(slice), placed.collect())
            };
            if !flat.is_empty() {
                let data = self.disk.open_rw(&staged.object(ObjectKind::Data))?;
                flat.iter().try_for_each(|range| tree::copy_onto_itself(data.as_ref(), range))?;
            }
            match &*place {
                Place::Tree(tree) => placed.iter().try_for_each(|range| tree.write_again(range))?,
                Place::Gone => return Ok(true),
                Place::New | Place::Flat | Place::Asleep(_) => is_whole &= placed.is_empty(),
            }
        }
        Ok(is_whole)
    }

    /// Has all of a bundle read from the device again, by the next [`Store::catch_up`], after a checkpoint.
    pub fn read_again(&self, staged: &Staged, tree: &tree::Tree) -> io::Result<()> {
        let failed = self.failed_syncs();
        tree.drop_cached()?;
        *staged.hashing() = hashing::Hashing::default();
        staged.blocks().read_again = Some(failed);
        Ok(())
    }
}

/// Whether what is wrong is found when the bundle is hashed: something of it is not there any more, or is no announce.
fn is_found_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
}

/// What a bundle has stored, and how often it lost something before.
fn of_now(staged: Arc<Staged>) -> (Arc<Staged>, Stored, u64) {
    let (stored, losses) = {
        let blocks = staged.blocks();
        (blocks.stored.clone(), blocks.losses)
    };
    (staged, stored, losses)
}
