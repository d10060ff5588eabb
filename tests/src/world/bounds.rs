//! What may be taken of the receiver, counted anew from its disk and from what is known of the run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use checkvalve_protocol::id::BundleId;
use checkvalve_receiver::delivery::status::Status;
use checkvalve_receiver::ledger::{HELD, State};
use checkvalve_receiver::store::space::PAGE;

use super::book::Held;
use super::high::{UNSIGNED_BUNDLES, UNSIGNED_BYTES, UNSIGNED_FILES};
use super::play::{MS, World};

/// Between looks, in milliseconds.
const EVERY: u64 = 700;
/// What is of no known bundle is removed after so many nanoseconds, and some more.
const STRAY: u64 = 45_000 * MS;
/// Channels that one key may have beside those of the config.
const CHANNELS: usize = 16;
/// Bundles of one sequence that are believed to be signed for it.
const CLAIMS: usize = 8;

impl World<'_> {
    /// Looks at everything now and then.
    pub(super) fn look(&mut self) -> Held {
        if self.now < self.looks_at {
            return Ok(());
        }
        self.looks_at = self.now + EVERY * MS;
        let Some(process) = &self.high.process else { return Ok(()) };
        let wall = self.high_wall_ms();
        let status = self.high.disk.outside(|| process.delivery.status(wall));
        self.is_true(&status)?;
        self.disk_is_bounded()
    }

    /// The receiver says nothing that nobody may have told it, and remembers no more than it may.
    pub(super) fn is_true(&self, status: &Status) -> Held {
        self.nothing_forged(status)?;
        self.book.said.is_all(status, self.script.options.neighbour)?;
        self.records_are_bounded(status)
    }

    fn records_are_bounded(&self, status: &Status) -> Held {
        let (mut channels, mut claims, mut held) = (BTreeSet::new(), BTreeMap::<_, usize>::new(), 0);
        for row in &status.bundles {
            let Ok(id) = row.id.parse::<BundleId>() else { continue };
            if !self.peer.own.contains(&id) || row.channel.is_empty() {
                continue;
            }
            if row.state == State::Held {
                held += 1;
                continue;
            }
            channels.insert(&row.channel);
            if row.state.is_open() {
                *claims.entry((&row.channel, row.sequence)).or_default() += 1;
            }
        }
        let most = claims.into_values().max().unwrap_or(0);
        if channels.len() > CHANNELS || most > CLAIMS || held > HELD {
            return Err(format!(
                "one key has {} channels, {most} bundles of one sequence, and {held} that are held",
                channels.len()
            ));
        }
        Ok(())
    }

    /// What nobody can have signed for takes no more of the disk than it may.
    fn disk_is_bounded(&self) -> Held {
        // What a disk that failed did not let go of stays there for a while, uncounted.
        let failed = self.high.faulty || self.now < self.high.failed_until + STRAY;
        if !self.peer.there || failed {
            return Ok(());
        }
        let (mut bundles, mut files, mut bytes) = (BTreeSet::new(), 0, 0);
        for found in self.high.disk.tree(Path::new("/")) {
            let mut ids = found.path.iter().filter_map(|name| name.to_str()?.parse::<BundleId>().ok());
            let Some(id) = ids.find(|id| self.peer.made_up.contains(id)) else { continue };
            bundles.insert(id);
            files += 1;
            // Holes take nothing.
            let pages = found.bytes.chunks(PAGE as usize).filter(|page| page.iter().any(|byte| *byte != 0));
            bytes += PAGE * (1 + pages.count() as u64);
        }
        let count = bundles.len() as u64;
        if count > UNSIGNED_BUNDLES || files > UNSIGNED_FILES || bytes > UNSIGNED_BYTES {
            return Err(format!("{count} bundles that nobody signed for take {files} files and {bytes} bytes"));
        }
        Ok(())
    }
}
