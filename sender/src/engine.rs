//! The sender's decisions, without threads, sockets or clocks: what to claim, to plan, to send next, to keep.
//!
//! A daemon or a simulator tells it what happened (inotify, work done, jobs finished, requests) with the time, and then
//! calls [`Engine::step`] for what to do: jobs for the pipeline, work for threads, when to call again.
//!
//! 1. [`claiming`]: names in the spool become claims, claims become bundles with a sequence, or go to `.failed`.
//! 2. [`sending`]: the next bundle of each channel becomes a job; a finished job becomes its bundle's new state.
//! 3. [`resending`]: what a person wants to have sent again, [`ticket`]: as the other side asks for it, [`restoring`]: when
//!    its content was let go.
//! 4. [`keeping`]: how long content is held.
//! 5. [`view`]: what beacons and status say.
//!
//! Whatever the disk refuses is tried again a little later; until then the bundle stays where it is.

mod claiming;
mod keeping;
mod open;
mod resending;
mod restoring;
mod sending;
mod ticket;
mod trouble;
mod view;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use checkvalve_host::disk::Disk;
use checkvalve_host::journal::Sync;
use checkvalve_protocol::beacon::Epoch;
use checkvalve_protocol::crypto::SigningKey;
use checkvalve_protocol::id::{BundleId, ChannelName, KeyId};
use checkvalve_protocol::transmit::Parameters;

use crate::bundles::Bundles;
use crate::holding::Holding;
use crate::ledger::{BundleRecord, LedgerError};
use crate::pipeline::{Finished, Job};
use crate::spool::{Place, Seen, Spool};
use crate::work::{Done, Work};
use trouble::Topic;

pub use crate::bundles::Restoring;
pub use open::OpenError;
pub(crate) use open::taken_back;
pub use resending::{Chosen, ResendError};
pub use restoring::{PREFIX as RESTORE_PREFIX, RestoreError};
pub use ticket::{Asked, Priced};
pub use view::{BundleState, BundleView, ChannelView, OnWireView, RetainedView, SpoolView, View, WaitingView};

/// How long to wait before something that failed is tried again.
const RETRY_MS: u64 = 1_000;
/// How soon after a bundle was transmitted retention is looked at.
const KEEP_MS: u64 = 1_000;
/// How often to look whether a job came to the wire.
const LOOK_MS: u64 = 250;
/// Names that are claimed in one step.
const CLAIMS: usize = 64;

/// The time, as the caller tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since 1970, which an administrator may set: only told to people, and to the other side.
    pub wall_ms: u64,
    /// Milliseconds since any point, never set: what everything is measured with.
    pub mono_ms: u64,
}

/// What an engine is made of.
pub struct Setup {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// The spool.
    pub spool: PathBuf,
    /// The state directory, which this engine has alone.
    pub state: PathBuf,
    /// The configured channels.
    pub channels: BTreeMap<ChannelName, Rules>,
    /// How long something that was written in place must be quiet.
    pub settle_ms: u64,
    /// How often the spool is scanned for what inotify missed.
    pub rescan_ms: u64,
    /// Bytes of transmitted bundles that are held at most.
    pub retain_bytes: u64,
    /// How long they are held at most.
    pub retain_ms: u64,
    /// Who signs.
    pub key: Arc<SigningKey>,
    /// What follows from the link.
    pub parameters: Parameters,
    /// Gives 64 random bits.
    pub random: Box<dyn FnMut() -> u64 + Send>,
}

/// How a channel's bundles are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The highest goes first.
    pub priority: i16,
    /// How often each bundle is sent, 1 or more.
    pub passes: u32,
    /// How long after a pass the next is due.
    pub pass_interval_ms: u64,
    /// How often what was sent is sent again until a newer bundle of the same name was.
    pub carousel_ms: Option<u64>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { priority: 0, passes: 1, pass_interval_ms: 0, carousel_ms: None }
    }
}

/// What to do now.
#[derive(Default)]
pub struct Actions {
    /// For the pipeline; [`Engine::finished`] wants to know how each ended.
    pub jobs: Vec<Job>,
    /// For threads; [`Engine::done`] wants what came of it.
    pub work: Vec<Work>,
    /// When to call [`Engine::step`] again at the latest, on the clock of [`Now::mono_ms`].
    pub wake_ms: u64,
    /// Whether what beacons should say changed: see [`Engine::beacon`].
    pub beacon: bool,
}

/// The engine.
pub struct Engine {
    setup: Setup,
    holding: Holding,
    bundles: Bundles,
    epoch: Epoch,
    session_number: u64,
    /// The id of the key that signs.
    signer: KeyId,
    spool: Spool,
    now: Now,
    next_scan_ms: u64,
    next_keeping_ms: u64,
    next_uptime_ms: u64,
    /// For threads, at the next step.
    work: Vec<Work>,
    /// What is not tried until when.
    held_up: BTreeMap<HeldUp, u64>,
    /// What a person should look at, by what it is about.
    troubles: BTreeMap<Topic, String>,
    beacon_changed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum HeldUp {
    Planning(ChannelName),
    Saving,
    Failing,
    Removing,
}

impl Engine {
    /// The state that this session is of.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The number of this session: higher than that of any before in its epoch.
    #[must_use]
    pub fn session_number(&self) -> u64 {
        self.session_number
    }

    /// The folders of the spool to watch.
    #[must_use]
    pub fn folders(&self) -> Vec<(ChannelName, PathBuf)> {
        self.setup.channels.keys().map(|channel| (channel.clone(), self.holding.folder(channel))).collect()
    }

    /// inotify told something.
    pub fn seen(&mut self, place: Place, seen: Seen, now: Now) {
        self.tick(now);
        self.spool.seen(place, seen, now.mono_ms);
    }

    /// inotify lost something.
    pub fn lost(&mut self, now: Now) {
        self.tick(now);
        self.spool.overflowed();
        self.next_scan_ms = now.mono_ms;
    }

    /// The system's watching of the spool does not work (or works again): then only scans find what is dropped.
    pub fn watching(&mut self, problem: Option<String>) {
        match problem {
            Some(problem) => {
                self.trouble(Topic::Watch, format!("inotify does not work, so that drops are found late: {problem}"))
            }
            None => self.untrouble(&Topic::Watch),
        }
    }

    /// Work is done.
    pub fn done(&mut self, done: Done, now: Now) {
        self.tick(now);
        match done {
            Done::Probed(place, looks) => self.spool.probed(&place, looks, now.mono_ms),
            Done::Planned(id, planned) => self.planned(id, planned),
            Done::Loaded(id, loaded) => self.loaded(id, loaded),
            Done::Restored(id, restored) => self.restored(id, restored),
            Done::Removed(removed) => self.removed(removed),
        }
    }

    /// A job ended.
    pub fn finished(&mut self, id: BundleId, finished: Finished, now: Now) {
        self.tick(now);
        self.job_finished(id, finished);
    }

    /// Decides what to do next.
    pub fn step(&mut self, now: Now) -> Actions {
        self.tick(now);
        let mut actions = Actions { work: std::mem::take(&mut self.work), ..Actions::default() };
        self.held_up.retain(|_, until| *until > now.mono_ms);
        self.bundles.end_waits(now.mono_ms);
        self.look_at_jobs();
        self.save_again();
        self.withdraw_next(&mut actions);
        self.fail_again();
        self.scan_if_due();
        self.claim(&mut actions);
        self.plan_next(&mut actions);
        self.send_next(&mut actions);
        self.keep_within_limits(&mut actions);
        self.write_uptime_if_due();
        actions.beacon = std::mem::take(&mut self.beacon_changed);
        actions.wake_ms = self.next_wake_ms().max(now.mono_ms);
        actions
    }

    /// Panics unless what is derived from the records of bundles is what they say: for tests and the simulator.
    pub fn assert_consistent(&self) {
        self.bundles.assert_consistent();
    }

    fn tick(&mut self, now: Now) {
        self.bundles.run_for(now.mono_ms.saturating_sub(self.now.mono_ms));
        self.now = now;
    }

    fn rules(&self, channel: &ChannelName) -> Rules {
        self.setup.channels.get(channel).copied().unwrap_or_default()
    }

    /// Makes what is known of a bundle durable.
    fn put(&mut self, record: BundleRecord, sync: Sync) -> Result<(), LedgerError> {
        let result = self.bundles.put(record, sync);
        self.written(result)
    }

    /// The ledger was written, or not.
    fn written(&mut self, result: Result<(), LedgerError>) -> Result<(), LedgerError> {
        match &result {
            Ok(()) => {
                self.untrouble(&Topic::Ledger);
                self.beacon_changed = true;
            }
            Err(error) => self.trouble(Topic::Ledger, format!("the ledger cannot be written: {error}")),
        }
        result
    }

    /// As [`Engine::put`], for what happened anyway: if the disk refuses, it is kept in mind and tried again.
    fn put_later(&mut self, record: BundleRecord, sync: Sync) {
        if self.put(record.clone(), sync).is_err() {
            self.bundles.remember_unsaved(record);
            self.hold_up(HeldUp::Saving);
        }
    }

    fn save_again(&mut self) {
        if self.is_held_up(&HeldUp::Saving) {
            return;
        }
        for record in self.bundles.unsaved() {
            self.put_later(record, Sync::Yes);
        }
    }

    fn hold_up(&mut self, what: HeldUp) {
        self.held_up.insert(what, self.now.mono_ms.saturating_add(RETRY_MS));
    }

    fn is_held_up(&self, what: &HeldUp) -> bool {
        self.held_up.contains_key(what)
    }

    fn write_uptime_if_due(&mut self) {
        const EVERY_MS: u64 = 600_000;
        if self.now.mono_ms >= self.next_uptime_ms {
            self.next_uptime_ms = self.now.mono_ms.saturating_add(EVERY_MS);
            // If this fails, bundles are only retained for longer.
            drop(self.bundles.write_uptime());
        }
    }

    fn next_wake_ms(&self) -> u64 {
        let now = self.now.mono_ms;
        let uptime = self.bundles.uptime_ms();
        let due = |channel: &ChannelName| {
            let next = self.bundles.next_due(channel)?;
            let wait = if next.scheduled { next.at_ms.saturating_sub(uptime) } else { 0 };
            // What is due already waits for a job to end, which wakes by itself.
            (wait > 0).then(|| now.saturating_add(wait))
        };
        let dues = self.bundles.channels().filter_map(due);
        let times = [self.next_scan_ms, self.next_uptime_ms];
        // While a batch is being removed, its end wakes.
        let keeps = !self.bundles.is_removing() && !self.is_held_up(&HeldUp::Removing);
        let keeping = keeps.then_some(self.next_keeping_ms);
        let held_up = self.held_up.values().copied().chain(self.bundles.next_wait_ms());
        let looks = (!self.bundles.waiting().is_empty()).then(|| now.saturating_add(LOOK_MS));
        let all =
            times.into_iter().chain(keeping).chain(self.spool.next_look_ms()).chain(dues).chain(held_up).chain(looks);
        all.min().unwrap_or(now.saturating_add(RETRY_MS))
    }

    /// Has a bundle rest for a while: the disk refused something.
    fn wait(&mut self, id: BundleId) {
        self.bundles.wait(id, self.now.mono_ms.saturating_add(RETRY_MS));
    }
}

#[cfg(test)]
mod tests;
