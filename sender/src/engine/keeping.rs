//! How long transmitted bundles are held: retention, the carousel, and removal.

use std::collections::BTreeSet;
use std::io;

use checkvalve_host::journal::Sync;
use checkvalve_protocol::id::ChannelName;

use super::{Actions, Engine, HeldUp, RETRY_MS, Topic};
use crate::bundles::{Content, Record, Stage};
use crate::holding::Home;
use crate::ledger::{BundleRecord, State};
use crate::work::Work;

/// How often the retention limits are checked when nothing else happens.
const EVERY_MS: u64 = 60_000;
/// How many bundles are dropped from retention at once.
const BATCH: usize = 1_000;

impl Engine {
    /// Drops transmitted bundles that are older than `retain`'s age, and the oldest ones while the total is above its size.
    /// Never drops a bundle that is unsent, under way, asked for, or in the carousel. Works in batches, with one sync and one
    /// piece of work each, because there may be ten thousand bundles.
    pub(super) fn keep_within_limits(&mut self, actions: &mut Actions) {
        if self.bundles.is_removing() || self.is_held_up(&HeldUp::Removing) {
            return;
        }
        let mut homes = Vec::new();
        for id in self.bundles.leftover(BATCH) {
            if let Some(Content::Leftover(home)) = self.bundles.record(id).map(Record::content) {
                homes.push(home.clone());
            }
        }
        if self.now.mono_ms >= self.next_keeping_ms {
            self.next_keeping_ms = self.now.mono_ms.saturating_add(EVERY_MS);
            homes.extend(self.let_go());
            let tidied = self.bundles.tidy();
            if let Err(error) = tidied {
                self.trouble(Topic::Ledger, format!("the ledger cannot be rewritten: {error}"));
            }
        }
        if !homes.is_empty() {
            homes.iter().for_each(|home| self.bundles.set_content(home.id(), Content::Removing));
            actions.work.push(Work::Remove { homes });
        }
    }

    /// Marks the bundles that exceed the limits as no longer held, and returns where their content is.
    fn let_go(&mut self) -> Vec<Home> {
        let (mut records, mut homes) = (Vec::new(), Vec::new());
        for mut record in self.too_much() {
            let Ok(home) = self.home(&record) else { continue };
            record.held = false;
            homes.extend(home);
            records.push(record);
        }
        if records.is_empty() {
            return homes;
        }
        // Written down before anything is removed: half a bundle must not look like a whole one.
        let put = self.bundles.put_all(records.clone(), Sync::Yes);
        if self.written(put).is_err() {
            self.next_keeping_ms = self.now.mono_ms.saturating_add(RETRY_MS);
            return Vec::new();
        }
        for BundleRecord { id, channel, sequence, .. } in records {
            // It may have waited for a turn of the carousel.
            self.bundles.set_stage(id, Stage::Idle);
            tracing::info!(%channel, sequence, bundle = %id, "no longer retained");
        }
        homes
    }

    pub(super) fn removed(&mut self, removed: Vec<(Home, io::Result<()>)>) {
        let mut failed = None;
        for (home, removed) in removed {
            let id = home.id();
            let left = match removed {
                Ok(()) => Content::Kept,
                // Half of it may be gone. If it were forgotten, the next start would take the rest for a newly dropped bundle.
                Err(error) => {
                    failed = Some((id, error));
                    Content::Leftover(home)
                }
            };
            self.bundles.set_content(id, left);
        }
        match failed {
            None => self.untrouble(&Topic::Retain),
            Some((id, error)) => {
                self.hold_up(HeldUp::Removing);
                self.trouble(
                    Topic::Retain,
                    format!("bundle {id} is no longer retained and cannot be removed: {error}"),
                );
            }
        }
        // There may be more than one batch.
        self.next_keeping_ms = self.now.mono_ms;
    }

    /// Puts the newest transmitted bundle of each name into the channel's carousel, if it has one, and takes the others out.
    pub(super) fn turn_carousel(&mut self, channel: &ChannelName) {
        let every = self.rules(channel).carousel_ms;
        let mut names = BTreeSet::new();
        let mut changed = Vec::new();
        for record in self.bundles.newest(channel).filter(|r| r.state == State::Transmitted) {
            let turns = every.is_some() && record.held && names.insert(&record.name);
            if turns != record.due_ms.is_some() {
                changed.push((record.clone(), turns));
            }
        }
        for (mut record, turns) in changed {
            record.due_ms = every.filter(|_| turns).map(|every| self.bundles.after(every));
            self.put_later(record, Sync::No);
        }
    }

    /// How many bytes of transmitted bundles are held, and how many bundles those are.
    pub(super) fn retained(&self) -> (u64, usize) {
        let retained = self.bundles.iter().filter(|record| record.held && record.state == State::Transmitted);
        retained.fold((0, 0), |(bytes, count), record| (bytes.saturating_add(record.bytes), count + 1))
    }

    /// The first [`BATCH`] bundles to drop from retention.
    fn too_much(&self) -> Vec<BundleRecord> {
        let uptime = self.bundles.uptime_ms();
        let mut total = self.retained().0;
        let too_much = self.bundles.releasable().filter(|record| {
            let age = uptime.saturating_sub(record.retained_since_ms.unwrap_or(uptime));
            let goes = total > self.setup.retain_bytes || age > self.setup.retain_ms;
            total = total.saturating_sub(if goes { record.bytes } else { 0 });
            goes
        });
        too_much.take(BATCH).cloned().collect()
    }
}
