//! What of staging would survive a power cut, and what is not believed after a sync has failed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use checkvalve_host::disk::is_loss;

use super::log::Stored;
use super::{Staged, Store, hashing, tree};

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

    /// Whether the disk may not hold what was written of a bundle: a sync failed, or may have failed unseen before the daemon was
    /// started.
    #[must_use]
    pub fn may_have_lost(&self, staged: &Staged) -> bool {
        self.failed_syncs() > 0 || !staged.blocks().unseen.is_empty()
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

    /// Writes once more what the last run of the daemon did not see synced. Where a sync failed, the kernel takes what it could not
    /// write for written, and no later sync is about it.
    pub fn write_again(&self, staged: &Staged, tree: &tree::Tree) -> io::Result<()> {
        let blocks = staged.blocks();
        let unseen: Vec<_> = blocks.unseen.iter().flat_map(|range| blocks.stored.all.within(range)).collect();
        drop(blocks);
        unseen.iter().try_for_each(|range| tree.write_again(range))
    }

    /// Has all of a bundle read from the device again, by the next [`Store::catch_up`], after a checkpoint.
    pub fn read_again(&self, staged: &Staged, tree: &tree::Tree) -> io::Result<()> {
        let failed = self.failed_syncs.load(Ordering::Relaxed);
        tree.drop_cached()?;
        *staged.hashing() = hashing::Hashing::default();
        staged.blocks().read_again = Some(failed);
        Ok(())
    }
}

/// What a bundle has stored, and how often it lost something before.
fn of_now(staged: Arc<Staged>) -> (Arc<Staged>, Stored, u64) {
    let (stored, losses) = {
        let blocks = staged.blocks();
        (blocks.stored.clone(), blocks.losses)
    };
    (staged, stored, losses)
}
