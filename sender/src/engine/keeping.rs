//! How long what was transmitted is held: retention, the carousel, and removing.

use std::collections::BTreeSet;
use std::io;

use checkvalve_host::journal::Sync;
use checkvalve_protocol::id::{BundleId, ChannelName};

use super::{Actions, Engine, RETRY_MS, Topic};
use crate::ledger::{BundleRecord, State};
use crate::work::Work;

/// How often retention is looked at when nothing happens.
const EVERY_MS: u64 = 60_000;

impl Engine {
    /// Lets go of transmitted bundles that are older than `retain`'s age, and of the oldest while they are larger than its
    /// size. Never of what is unsent, on its way, asked for, or in the carousel.
    pub(super) fn keep_within_limits(&mut self, actions: &mut Actions) {
        for home in std::mem::take(&mut self.leftovers) {
            self.removing.insert(home.id());
            actions.work.push(Work::Remove { home });
        }
        if self.now.mono_ms < self.next_keeping_ms {
            return;
        }
        self.next_keeping_ms = self.now.mono_ms.saturating_add(EVERY_MS);
        for id in self.too_much() {
            let Some(mut record) = self.ledger.get(id).cloned() else { continue };
            let Ok(home) = self.home(&record) else { continue };
            record.held = false;
            tracing::info!(channel = %record.channel, sequence = record.sequence, bundle = %id, "no longer retained");
            // Known before it is done: half a bundle must not look like a whole one.
            if self.put(record, Sync::Yes).is_err() {
                self.next_keeping_ms = self.now.mono_ms.saturating_add(RETRY_MS);
                break;
            }
            if let Some(home) = home {
                self.removing.insert(id);
                actions.work.push(Work::Remove { home });
            }
        }
        if let Err(error) = self.ledger.tidy() {
            self.trouble(Topic::Ledger, format!("the ledger cannot be rewritten: {error}"));
        }
    }

    pub(super) fn removed(&mut self, id: BundleId, removed: &io::Result<()>) {
        self.removing.remove(&id);
        match removed {
            Ok(()) => self.untrouble(&Topic::Retain),
            // At the next start it is a leftover.
            Err(error) => {
                self.trouble(Topic::Retain, format!("bundle {id} is no longer retained and cannot be removed: {error}"))
            }
        }
    }

    /// Puts the newest transmitted bundle of each name into the carousel of a channel that has one, and takes the others out.
    pub(super) fn turn_carousel(&mut self, channel: &ChannelName) {
        let every = self.rules(channel).carousel_ms;
        let mut names = BTreeSet::new();
        let mut changed = Vec::new();
        for record in self.ledger.newest(channel).filter(|r| r.state == State::Transmitted) {
            let turns = every.is_some() && record.held && names.insert(&record.name);
            if turns != record.due_ms.is_some() {
                changed.push((record.clone(), turns));
            }
        }
        for (mut record, turns) in changed {
            record.due_ms = every.filter(|_| turns).map(|every| self.ledger.after(every));
            self.put_later(record, Sync::No);
        }
    }

    /// Bytes that are held of transmitted bundles, and how many they are.
    pub(super) fn retained(&self) -> (u64, usize) {
        let retained = self.ledger.bundles().filter(|record| record.held && record.state == State::Transmitted);
        retained.fold((0, 0), |(bytes, count), record| (bytes.saturating_add(record.bytes), count + 1))
    }

    fn too_much(&self) -> Vec<BundleId> {
        let uptime = self.ledger.uptime_ms();
        let mut total = self.retained().0;
        let mut releasable: Vec<_> = self.ledger.bundles().filter(|record| self.is_releasable(record)).collect();
        releasable.sort_unstable_by_key(|record| (record.retained_since_ms, record.sequence));
        let mut ids = Vec::new();
        for record in releasable {
            let age = uptime.saturating_sub(record.retained_since_ms.unwrap_or(uptime));
            if total > self.setup.retain_bytes || age > self.setup.retain_ms {
                total = total.saturating_sub(record.bytes);
                ids.push(record.id);
            }
        }
        ids
    }

    fn is_releasable(&self, record: &BundleRecord) -> bool {
        record.held
            && record.state == State::Transmitted
            && record.due_ms.is_none()
            && record.resends.is_empty()
            && !self.active.contains_key(&record.id)
            && !self.unsaved.contains_key(&record.id)
    }
}
