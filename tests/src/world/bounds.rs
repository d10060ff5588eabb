//! Limits on what the receiver may store, checked against its disk and against what the simulation knows about the run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use checkvalve_protocol::id::BundleId;
use checkvalve_receiver::delivery::status::Status;
use checkvalve_receiver::ledger::{HELD, State};
use checkvalve_receiver::store::space::PAGE;

use super::book::Held;
use super::high::{UNSIGNED_BUNDLES, UNSIGNED_BYTES, UNSIGNED_FILES};
use super::play::{MS, World};

/// The interval between checks, in milliseconds.
const EVERY: u64 = 700;
/// How long the files of unknown bundles may stay, in nanoseconds, with some slack.
const STRAY: u64 = 45_000 * MS;
/// What a killed process may leave uncounted of bundles that nobody signed for, in bytes.
const UNCOUNTED: u64 = 2 * PAGE;
/// How many channels one key may have besides those of the config.
const CHANNELS: usize = 16;
/// How many signed bundles may claim one sequence.
const CLAIMS: usize = 8;

impl World<'_> {
    /// Checks the receiver once per interval.
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

    /// Checks that the receiver reports only what it can know, and remembers no more than it may.
    pub(super) fn is_true(&self, status: &Status) -> Held {
        self.nothing_forged(status)?;
        self.book.said.is_all(status, self.script.options.neighbour)?;
        // A death in the middle of a write, or a disk that fails, may damage what was kept of signed objects.
        let intact = self.high.epoch == 1 && self.high.failed_until == 0;
        if !self.peer.there && intact && !status.discarded.is_empty() {
            return Err(format!("the receiver does not believe the sender: {:?}", status.discarded));
        }
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

    /// Checks that bundles that nobody signed for take no more of the disk than they may.
    fn disk_is_bounded(&self) -> Held {
        // Files that a failing disk did not remove stay for a while, and the receiver does not count them before it is started again.
        let (since, failed) = (self.high.failed_until.max(self.high.started), self.high.failed_until > 0);
        let failed = self.high.faulty || failed && self.now < since + STRAY;
        if !self.peer.there || failed {
            return Ok(());
        }
        let (mut bundles, mut files, mut bytes, mut each) = (BTreeSet::new(), 0, 0, Vec::new());
        for found in self.high.disk.tree(Path::new("/")) {
            let mut ids = found.path.iter().filter_map(|name| name.to_str()?.parse::<BundleId>().ok());
            let Some(id) = ids.find(|id| self.peer.made_up.contains(id)) else { continue };
            bundles.insert(id);
            files += 1;
            // Holes take no space.
            let pages = found.bytes.chunks(PAGE as usize).filter(|page| page.iter().any(|byte| *byte != 0));
            let pages = 1 + pages.count() as u64;
            bytes += PAGE * pages;
            each.push((found.path, pages));
        }
        // Nothing says of a block that it was being written when the process was killed.
        bytes = bytes.saturating_sub(if self.high.epoch > 1 { UNCOUNTED } else { 0 });
        let count = bundles.len() as u64;
        if count > UNSIGNED_BUNDLES || files > UNSIGNED_FILES || bytes > UNSIGNED_BYTES {
            return Err(format!(
                "{count} bundles that nobody signed for take {files} files and {bytes} bytes, in pages: {each:?}"
            ));
        }
        Ok(())
    }
}
