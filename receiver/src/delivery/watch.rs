//! State changes and clean-up that depend on time, such as when a bundle counts as incomplete or missing.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use checkvalve_host::disk::Disk;
use checkvalve_host::journal::Sync as Durable;
use checkvalve_host::log::{Throttle, escape_path};
use checkvalve_host::progress::counted;
use checkvalve_protocol::id::{BundleId, KeyTag};

use super::alarms::{Alarms, Code};
use super::blocked;
use super::forget::Forgetting;
use super::jobs::{Job, Jobs};
use super::named::Named;
use super::shared::{CurrentTrust, Waker};
use super::shares::Shares;
use super::spoilt::is_to_be_cleared;
use super::staging::{RETRY_MS, Staging, is_whole, of_its_data};
use crate::ledger::file::LedgerFile;
use crate::ledger::{Entry, Live, State};
use crate::sink::{NO_ROOM, ObjectProgress};
use crate::store::Store;
use crate::store::space::{Bound, Cost};

/// How long a bundle's last blocks may still be under way after the sender says that it has sent it, in milliseconds.
const GRACE_MS: u64 = 1_500;
/// How often states are checked, in milliseconds.
const LOOK_MS: u64 = 250;
/// After how long without a block a bundle's memory is freed, in milliseconds.
const SLEEP_MS: u64 = 30_000;
/// After how long without a block an unsigned bundle is removed from staging, in milliseconds.
const STRAY_MS: u64 = 40_000;
/// How often growing staging is made durable: after this many milliseconds, or [`CHECKPOINT_BYTES`].
const CHECKPOINT_MS: u64 = 30_000;
const CHECKPOINT_BYTES: u64 = 1 << 30;
/// What an operator can do for a bundle that lacks nothing.
const ALL_HERE: &str = "all of it is here, and it goes on by itself once that is mended";
/// How often old bundles are forgotten, in milliseconds.
const PRUNE_MS: u64 = 60_000;

/// When each periodic task last ran.
#[derive(Default)]
pub(super) struct Watched {
    looked_ms: u64,
    checkpoint_ms: u64,
    checkpoint_bytes: u64,
    pruned_ms: u64,
    prune_more: bool,
}

/// Where what it looks after is.
pub(super) struct Paths {
    pub(super) state: PathBuf,
    pub(super) staging: PathBuf,
}

/// Looks after bundles and staging as time passes.
pub(super) struct Watching {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) alarms: Arc<Alarms>,
    pub(super) paths: Paths,
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) named: Arc<Named>,
    pub(super) store: Arc<Store>,
    pub(super) staging: Arc<Staging>,
    pub(super) shares: Arc<Shares>,
    pub(super) trust: Arc<CurrentTrust>,
    pub(super) jobs: Arc<Jobs>,
    pub(super) forgetting: Arc<Forgetting>,
    pub(super) waker: Arc<Waker>,
    pub(super) silence_ms: u64,
    pub(super) watched: Mutex<Watched>,
    pub(super) log: Arc<Throttle>,
    /// Throttles the lines about states that the passing of time brings about.
    pub(super) states_log: Throttle,
}

/// How much of something a cost is, what so much of it costs, and what is fair.
type Amount = (fn(&Cost) -> u64, fn(u64) -> Cost, u64);

impl Watching {
    pub(super) fn watch(&self, now_ms: u64) {
        let (checkpoint, prune) = {
            let mut watched = self.watched();
            if watched.looked_ms.abs_diff(now_ms) < LOOK_MS {
                return;
            }
            watched.looked_ms = now_ms;
            (self.checkpoint_due(&mut watched, now_ms), watched.prune_due(now_ms))
        };
        self.look_after_staging(now_ms);
        let open = self.ledger.lock().open();
        open.into_iter().for_each(|id| self.look(id, now_ms));
        self.make_room_for_others(now_ms);
        self.give_back_memory(now_ms);
        if checkpoint {
            self.jobs.push(Job::Checkpoint);
        }
        if prune && self.forgetting.prune() {
            self.watched().prune_more = true;
        }
        let untold = self.ledger.lock().reception.has_untold();
        if untold && self.ledger.keep() {
            let told = self.ledger.lock().reception.take_told();
            told.into_iter().for_each(|id| self.jobs.push(Job::Advance(id)));
        }
        let saved = self.ledger.save(Durable::No);
        if let Err(error) = &saved
            && self.log.allow(now_ms).is_some()
        {
            tracing::error!(%error, "ledger cannot be written");
        }
        self.tell_of("ledger", "so that no hook starts and nothing that is decided lasts", saved.err());
        self.named.save(now_ms);
        self.waker.wake();
    }

    /// Checks how much space staging has, and divides it into shares. Creates staging again if somebody removed it.
    fn look_after_staging(&self, now_ms: u64) {
        let there = match self.store.is_there() {
            Ok(false) => {
                for staged in self.store.all() {
                    self.staging.begin_again(staged.id, "staging was removed; what it held has to come again");
                }
                self.store.make_again().inspect(|()| tracing::warn!("staging was removed; it is there again"))
            }
            there => there.map(drop),
        };
        self.store.mend();
        let usable = there.and_then(|()| self.store.refresh_space());
        if let Err(error) = &usable
            && let Some(suppressed) = self.log.allow(now_ms)
        {
            tracing::error!(%error, suppressed, "staging cannot be used");
        }
        self.tell_of("staging", "so that nothing is stored", usable.err());
        self.shares.divide();
    }

    /// The alarm that a part of the state fails, or its end.
    fn tell_of(&self, part: &str, so: &str, error: Option<io::Error>) {
        let Some(error) = error else { return self.alarms.clear(Code::CannotPublish, part) };
        let path = if part == "staging" { self.paths.staging.clone() } else { self.paths.state.join(part) };
        let said = format!("{}: {error}", escape_path(&path));
        let mend = blocked::diagnose(self.disk.as_ref(), &said, &blocked::user()).mend;
        let text = format!("the {part} cannot be used, {so}: {said}. {mend}; then it goes on by itself");
        self.alarms.raise(Code::CannotPublish, part, &text);
    }

    /// If several keys are trusted and one takes more than its fair share, removes its silent, unfinished bundles when another
    /// key needs the space: the newest first, one at a time. A removed bundle has to come again.
    fn make_room_for_others(&self, now_ms: u64) {
        let keys = self.trust.get().keys.len();
        let space = self.store.space();
        if keys < 2 {
            return;
        }
        let fair = self.shares.fair(keys);
        let amounts: [Amount; 4] = [
            (|cost| cost.bytes, |amount| Cost::bytes(amount), fair.bytes),
            (|cost| cost.files, |files| Cost { files, ..Cost::default() }, fair.files),
            (|cost| cost.ranges, |ranges| Cost { ranges, ..Cost::default() }, fair.ranges),
            (|cost| cost.blocks, |blocks| Cost { blocks, ..Cost::default() }, fair.blocks),
        ];
        for (amount, cost_of, fair) in amounts {
            if let Some((greedy, taken)) = space.largest_key(amount)
                && taken > fair
                && self.gives_way(now_ms, greedy, &|id, lacks| {
                    // Bytes are lacking that are still to come; of the rest what found no room, or one.
                    let least = amount(&self.store.refused_cost(id)).max(1);
                    let more = amount(&Cost::bytes(lacks)).max(least);
                    let ours = [Bound::Disk, Bound::Quota, Bound::Files, Bound::Inodes, Bound::Pieces];
                    let bound = self.store.bound(id, cost_of(more));
                    amount(&space.of_key(id.tag())) < fair && bound.is_some_and(|bound| ours.contains(&bound))
                })
            {
                return;
            }
        }
    }

    /// Removes the newest silent, unfinished bundle of a greedy key if a bundle of another key `waits` for room, as it is told with how
    /// many bytes it lacks. Whether it did.
    fn gives_way(&self, now_ms: u64, greedy: KeyTag, waits: &dyn Fn(BundleId, u64) -> bool) -> bool {
        let (mut silent, mut others) = (Vec::new(), Vec::new());
        for (id, live) in self.ledger.lock().reception.iter().filter(|(_, live)| live.announced) {
            let is_silent = now_ms.saturating_sub(live.last_ms) >= self.silence_ms;
            match id.tag() == greedy {
                true if is_silent => silent.push(id),
                true => {}
                false => {
                    let has_no_room = live.trouble.as_ref().is_some_and(|trouble| trouble.starts_with(NO_ROOM));
                    others.push((id, live.data_len, !is_silent, has_no_room));
                }
            }
        }
        let waits = others.into_iter().any(|(id, len, is_coming, has_no_room)| {
            let lacks = len.saturating_sub(self.store.get(id).map_or(0, |staged| staged.fill().1));
            (is_coming || has_no_room && self.staging.is_all_here(id)) && waits(id, lacks)
        });
        if !waits {
            return false;
        }
        let newest = {
            let ledger = self.ledger.lock();
            let open = silent.into_iter().filter_map(|id| ledger.entry(id)).filter(|entry| entry.state().is_open());
            open.max_by_key(|entry| entry.first_ms).map(|entry| entry.id)
        };
        let Some(id) = newest.filter(|&id| !self.staging.is_all_here(id)) else { return false };
        self.staging.begin_again(id, "its room was needed by the bundles of another key; all of it has to come again");
        true
    }

    fn look(&self, id: BundleId, now_ms: u64) {
        let Some(entry) = self.ledger.lock().entry(id).cloned() else { return };
        let stored = self.staging.stored(id);
        let (mut retry, mut clear) = (false, false);
        let (state, reason) = {
            let mut ledger = self.ledger.lock();
            let live = ledger.reception.get_mut(id);
            if let Some(live) = &live {
                retry = live.trouble.is_some() && live.retry_ms <= now_ms && live.announced;
                clear = is_to_be_cleared(&entry, live, stored, now_ms, self.silence_ms);
            }
            let judged = self.judge(&entry, live.as_deref(), stored, now_ms);
            if let Some(live) = live
                && retry
            {
                live.retry_ms = now_ms.saturating_add(RETRY_MS);
            }
            judged
        };
        if retry {
            self.jobs.push(Job::Advance(id));
        }
        if clear {
            self.jobs.push(Job::Clear(id));
        }
        if state == entry.state() && reason == entry.reason {
            return;
        }
        let mut is_open = false;
        self.ledger.lock().change(id, now_ms, |e| {
            is_open = e.state().is_open();
            match state {
                _ if !is_open => {}
                State::Receiving => e.receive(reason.clone()),
                State::Missing => e.miss(reason.clone()),
                _ => e.lack(reason.clone()),
            }
        });
        if is_open
            && state != entry.state()
            && state != State::Receiving
            && let Some(suppressed) = self.states_log.allow(now_ms)
        {
            let why = reason.as_deref().unwrap_or_default();
            tracing::warn!(bundle = %id, sequence = entry.sequence, state = state.as_str(), reason = why, suppressed, "bundle");
        }
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(
        &self,
        entry: &Entry,
        live: Option<&Live>,
        stored: (Option<u64>, u64),
        now_ms: u64,
    ) -> (State, Option<String>) {
        let Some(live) = live else {
            let waited = now_ms.saturating_sub(entry.first_ms);
            let missing = entry.sent && waited >= GRACE_MS || waited >= self.silence_ms;
            return match missing || entry.state() != State::Receiving {
                true => (State::Missing, entry.reason.clone()),
                false => (State::Receiving, entry.reason.clone()),
            };
        };
        let whole = is_whole(live, stored);
        let over = has_ended(entry, live, now_ms, self.silence_ms);
        let (length, stored) = of_its_data(entry, stored);
        let lacking =
            || lacking(live, live.progress_of(entry), length.or(Some(entry.bytes).filter(|&n| n > 0)), stored);
        match &live.trouble {
            Some(trouble) if whole => (State::Incomplete, Some(format!("{trouble}; {ALL_HERE}"))),
            Some(trouble) if over => (State::Incomplete, Some(format!("{trouble}; {}", lacking()))),
            // Content that is about to be discarded does not count.
            _ if whole || !over || live.clear => (State::Receiving, None),
            _ => (State::Incomplete, Some(lacking())),
        }
    }

    fn checkpoint_due(&self, watched: &mut Watched, now_ms: u64) -> bool {
        let staged = self.store.written();
        if staged == 0 || watched.checkpoint_ms == 0 {
            (watched.checkpoint_ms, watched.checkpoint_bytes) = (now_ms, staged);
        }
        let grown = staged.saturating_sub(watched.checkpoint_bytes);
        watched.checkpoint_bytes = watched.checkpoint_bytes.min(staged);
        let due = grown >= CHECKPOINT_BYTES || grown > 0 && watched.checkpoint_ms.abs_diff(now_ms) >= CHECKPOINT_MS;
        if due {
            (watched.checkpoint_ms, watched.checkpoint_bytes) = (now_ms, staged);
        }
        due
    }

    /// Frees the memory of silent bundles, and removes unsigned ones altogether.
    fn give_back_memory(&self, now_ms: u64) {
        let silent = |last_ms: u64, most: u64| now_ms.saturating_sub(last_ms) >= most;
        let idle: Vec<BundleId> = {
            let mut ledger = self.ledger.lock();
            let idle = ledger.reception.iter().filter(|(_, live)| silent(live.last_ms, SLEEP_MS)).map(|(id, _)| id);
            let idle: Vec<_> = idle.collect();
            // The ledger forgot the bundle because another one was announced for its sequence.
            for &id in &idle {
                if ledger.entry(id).is_none() {
                    ledger.reception.ensure_unsigned(id, now_ms);
                }
            }
            idle
        };
        for staged in idle.into_iter().filter_map(|id| self.store.get(id)) {
            self.staging.sleep(&staged);
        }
        let strays = now_ms.checked_sub(STRAY_MS).map(|before| self.ledger.lock().reception.silent_since(before));
        strays.into_iter().flatten().for_each(|id| self.staging.let_go(id));
    }
}

impl Watched {
    fn prune_due(&mut self, now_ms: u64) -> bool {
        let due = std::mem::take(&mut self.prune_more) || self.pruned_ms.abs_diff(now_ms) >= PRUNE_MS;
        if due {
            self.pruned_ms = now_ms;
        }
        due
    }
}

/// Whether a bundle's transmission seems to have ended.
pub(super) fn has_ended(entry: &Entry, live: &Live, now_ms: u64, silence_ms: u64) -> bool {
    let idle = now_ms.saturating_sub(live.last_ms);
    entry.sent && idle >= GRACE_MS || idle >= silence_ms
}

/// What a bundle lacks, in words.
fn lacking(live: &Live, progress: Option<ObjectProgress>, length: Option<u64>, stored: u64) -> String {
    let mut lacking = Vec::new();
    if !live.announced {
        lacking.push("its announce".to_owned());
    }
    match (length, progress) {
        (Some(length), Some(p)) if stored < length && p.blocks_total > 0 => lacking.push(format!(
            "{} of {} ({} of {})",
            p.blocks_total.saturating_sub(p.blocks_done),
            counted(p.blocks_total.into(), "block"),
            length.saturating_sub(stored),
            counted(length, "byte"),
        )),
        (Some(length), _) if stored < length => {
            lacking.push(format!("{} of {}", length.saturating_sub(stored), counted(length, "byte")));
        }
        _ => {}
    }
    if !live.hashes {
        lacking.push("its hashes".to_owned());
    }
    format!("lacks {}", lacking.join(", "))
}
