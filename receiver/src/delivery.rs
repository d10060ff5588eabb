//! What happens to a bundle from its first block to its end. Synchronous: it acts through [`Disk`] and a `now` that it is
//! told, so that a simulator can drive it single-threaded; the daemon calls it from its threads.
//!
//! [`Delivery`] composes the parts, each of which has only what it may touch (`assemble` lists it), and hands every call on.
//! Nobody takes another lock, touches a disk or logs while it holds the ledger's lock.
//!
//! 1. The pipeline asks whether an object is wanted, and hands over its blocks (`sink`, `receive`).
//! 2. `manifests`: announce and hashes are admitted, or change nothing; `unknown` keeps what another trust would admit;
//!    `adopting` writes them to the disk; `refusing`: what a key signed wrong goes to quarantine.
//! 3. `advance`: a bundle that is whole is proven, published, written down; `spoilt`: what is not what was signed comes again.
//! 4. `install`: whose turn it is for the hook, and what became of it.
//! 5. `beacons`, `watch`, `forget`: beacons and time say what is incomplete, missing or forgotten.
//! 6. `operator`, `undo`, `trusting`, `status`, `ticket`, `telling`: what people ask, decide and are told.
//!
//! `staging`, `shares`, `alarms`, `jobs` and `shared` are what several parts use.

mod adopting;
mod advance;
pub mod alarms;
mod assemble;
mod beacons;
mod blocked;
mod forget;
mod install;
mod jobs;
mod manifests;
mod named;
mod operator;
mod rebuild;
mod receive;
mod refusing;
mod shared;
mod shares;
mod sink;
mod spoilt;
mod staging;
pub mod status;
mod telling;
pub mod ticket;
mod trusting;
mod undo;
mod unknown;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use checkvalve_host::disk::Disk;
use checkvalve_host::journal::{JournalError, Sync as Durable};
use checkvalve_protocol::admit::Trust;
use checkvalve_protocol::id::{BundleId, ChannelName, KeyId};
use checkvalve_protocol::limits::MAX_MANIFEST_LEN;
use checkvalve_protocol::manifest::Announce;
use checkvalve_protocol::wire::ObjectKind;

use self::adopting::Adopting;
use self::advance::Publishing;
use self::alarms::{Alarm, Alarms, Code};
use self::assemble::Base;
use self::beacons::{Hearing, NewestBeacons};
use self::forget::Forgetting;
use self::install::Installing;
use self::jobs::{Job, Jobs};
use self::manifests::Admission;
use self::operator::Deciding;
use self::receive::Receiving;
use self::refusing::Refusing;
use self::shared::{Clock, Waker};
use self::spoilt::Clearing;
use self::staging::Staging;
use self::status::{Status, Telling};
use self::ticket::{LackingOf, LossOf, TicketError, TicketView, Ticketing};
use self::trusting::Trusting;
use self::watch::Watching;
use crate::audit::Audit;
use crate::hook::{HookPolicy, Outcome};
use crate::inbox::{Durability, Inbox};
use crate::ledger::State;
use crate::ledger::file::LedgerFile;
use crate::sink::StoreError;
use crate::store::log::BootId;
use crate::store::space::{self, Space};
use crate::store::{Store, StoreOpenError};

pub use self::jobs::THREADS;
pub use crate::hook::HookRun;
pub use operator::{DecideError, Which};
pub use trusting::Judged;
pub(crate) use trusting::{NO_KEY, NOT_ITS};

/// How many bundles that are still coming are named.
const NAMED: usize = 5;

/// How deliveries are made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Published bundles go here.
    pub inbox: PathBuf,
    /// Refused ones here.
    pub quarantine: PathBuf,
    /// Ledger, audit trail and manifests are here.
    pub state: PathBuf,
    /// Bundles under way are here, on the file system of `inbox`.
    pub staging: PathBuf,
    /// How contents are made durable.
    pub durability: Durability,
    /// What is known of channels; others are published without a hook.
    pub channels: BTreeMap<ChannelName, Policy>,
    /// A bundle of which nothing came for so long is incomplete, in milliseconds.
    pub silence_ms: u64,
    /// What staging may take.
    pub space: space::Limits,
    /// A block in which so many files begin is stored in one piece first; [`CROWD`](crate::store::CROWD).
    pub crowd: usize,
    /// Files of staging that stay open between blocks.
    pub open_files: usize,
}

/// What is done with a channel's bundles.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// The install hook.
    pub hook: Option<Arc<HookPolicy>>,
    /// How long a missing bundle holds up later ones, in milliseconds. None: for ever.
    pub wait_for_missing_ms: Option<u64>,
    /// Bytes that its unfinished bundles may take. None: four fifths of what staging may.
    pub quota: Option<u64>,
}

/// All deliveries: the parts, and what every part may be told.
pub struct Delivery {
    clock: Arc<Clock>,
    ledger: Arc<LedgerFile>,
    store: Arc<Store>,
    staging: Arc<Staging>,
    alarms: Arc<Alarms>,
    newest: Arc<NewestBeacons>,
    jobs: Arc<Jobs>,
    waker: Arc<Waker>,
    receiving: Receiving,
    adopting: Arc<Adopting>,
    admission: Admission,
    hearing: Hearing,
    refusing: Arc<Refusing>,
    clearing: Arc<Clearing>,
    publishing: Publishing,
    installing: Installing,
    watching: Watching,
    forgetting: Arc<Forgetting>,
    trusting: Trusting,
    deciding: Deciding,
    telling: Telling,
    ticketing: Ticketing,
}

/// Why deliveries cannot begin. One line each.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The ledger.
    #[error("ledger: {0}")]
    Ledger(JournalError),
    /// The staging area.
    #[error(transparent)]
    Store(#[from] StoreOpenError),
    /// The state directory.
    #[error("state: {0}")]
    State(io::Error),
}

impl Delivery {
    /// Opens everything and goes on where the last run stopped. `boot` says which run of the kernel this is; `now_ms` is
    /// Unix time in milliseconds. The directories exist.
    pub fn open(
        disk: Arc<dyn Disk>,
        settings: Settings,
        trust: Trust,
        boot: BootId,
        now_ms: u64,
    ) -> Result<Self, OpenError> {
        let (ledger, damage) = LedgerFile::open(&disk, &settings.state.join("ledger")).map_err(OpenError::Ledger)?;
        let damaged = damage.is_any();
        if damaged {
            let (torn_bytes, ranges, records) = (damage.torn_bytes, damage.corrupt.len(), damage.unreadable);
            tracing::warn!(torn_bytes, ranges, records, "ledger was damaged");
        }
        let audit = Audit::open(&disk, &settings.state.join("audit.jsonl")).map_err(OpenError::State)?;
        let space = Space::new(settings.space);
        let store = Store::open(Arc::clone(&disk), &settings.staging, boot, space, settings.crowd)?;
        store.keep_open(settings.open_files);
        let manifests = settings.state.join("manifests");
        disk.create_dir_all(&manifests, 0o750).map_err(OpenError::State)?;
        let inbox = Inbox::new(
            Arc::clone(&disk),
            settings.inbox.clone(),
            settings.quarantine.clone(),
            manifests,
            settings.staging.clone(),
            settings.durability,
        );
        ledger.lock().configure(settings.channels.keys().cloned());
        // A lost ledger is empty, too. If nothing ever came, so is the audit trail, and there is nothing to rebuild.
        let is_empty = ledger.lock().entries().next().is_none();
        let mut mended = Vec::new();
        if damaged || is_empty {
            let (rebuilt, unreadable) = rebuild::rebuild(&ledger, &audit, &inbox).map_err(OpenError::State)?;
            if rebuilt > 0 {
                tracing::warn!(bundles = rebuilt, "the ledger was rebuilt from the audit trail and the manifests");
            }
            mended = rebuild::told(&damage, rebuilt, &unreadable, &settings.state);
        }
        if damaged {
            ledger.rewrite().map_err(OpenError::Ledger)?;
        }
        // It may have been set while no daemon ran.
        ledger.lock().clock_went_back(now_ms);
        rebuild::settle_turns(&ledger, &audit, now_ms);
        let this = Base { disk, settings, ledger, store, inbox, audit, now_ms }.assemble();
        mended.iter().for_each(|alarm| this.alarms.raise_for_good(alarm.code, "", &alarm.text));
        this.set_trust(trust, now_ms).map_err(OpenError::State)?;
        this.recover();
        this.forgetting.sweep();
        Ok(this)
    }

    /// Calls `wake` whenever a hook may have become due.
    pub fn set_waker(&self, wake: Box<dyn Fn() + Send + Sync>) {
        self.waker.set(wake);
    }

    /// Waits for work until `timeout` is over. True: there is some.
    pub fn wait_for_work(&self, timeout: Duration) -> bool {
        self.jobs.wait(timeout)
    }

    /// Does one piece of work, which may take as long as the disk does. False: there was none. Several threads may.
    pub fn work(&self) -> bool {
        let Some(taken) = self.jobs.take() else { return false };
        match taken.job {
            Job::Advance(id) => self.publishing.advance(id),
            Job::Clear(id) => {
                self.clearing.clear(id, false);
            }
            Job::Checkpoint => self.staging.checkpoint(),
        }
        true
    }

    /// The last thing before the process ends: what is known is written down.
    pub fn tick_last(&self, now_ms: u64) {
        self.clock.set(now_ms);
        let waiting = self.ledger.lock().reception.waiting_for_disk();
        let mut failed = Failures::default();
        for id in waiting {
            let Some(staged) = self.staging.begin(id) else { continue };
            let _alone = staged.advancing.lock().unwrap_or_else(PoisonError::into_inner);
            failed.note(id, self.adopting.adopt(&staged).err());
        }
        if let Some((id, error)) = failed.first {
            let bundles = failed.count;
            tracing::warn!(bundles, first = %id, %error, "what came last is not kept");
        }
        self.ledger.lock().keep_counters();
        self.ledger.keep();
    }

    /// Trusts these keys from now on, each for what it may sign. Every bundle that is under way or not installed yet is judged
    /// again before this returns. Changes go to the audit trail, also those that were made while no daemon ran. Errors: the list
    /// of trusted keys in the state directory.
    pub fn set_trust(&self, trust: Trust, now_ms: u64) -> io::Result<Judged> {
        let heard: BTreeSet<KeyId> = {
            let ledger = self.ledger.lock();
            trust.keys.iter().map(|(key, ..)| key).filter(|&key| ledger.sender(key).is_some()).collect()
        };
        let (mut judged, change) = self.trusting.trust(trust, now_ms)?;
        self.newest.expect(&heard);
        let known = self.admission.take_unknown();
        judged.admit(known.into_iter().filter_map(|id| self.ledger.lock().entry(id).map(telling::number)));
        self.trusting.keep(change)?;
        Ok(judged)
    }

    /// Whom to trust cannot be read again, for this reason; None: it was.
    pub fn trust_is_read(&self, problem: Option<&str>) {
        let Some(problem) = problem else { return self.alarms.clear(Code::TrustNotRead, "") };
        let text = format!(
            "trusted keys were not read again, and those from before stay: {problem}. Mend that, then `systemctl reload checkvalve-receiver`"
        );
        self.alarms.raise_for_good(Code::TrustNotRead, "", &text);
    }

    /// The hooks that are to start now, one a channel at most; each is written down as started. The caller runs each and
    /// then says [`Delivery::hook_ended`].
    pub fn due_hooks(&self, now_ms: u64) -> Vec<HookRun> {
        self.installing.due_hooks(now_ms)
    }

    /// The announce of a published bundle and the hashes of its files in order, as the hook is told. Errors, in words: the
    /// record is not readable, or a key that signed it is no longer trusted, so that it may not be installed.
    pub fn manifest_of(&self, run: &HookRun) -> Result<(Announce, Vec<[u8; 32]>), String> {
        self.installing.manifest_of(run)
    }

    /// A hook has ended, or could not be started.
    pub fn hook_ended(&self, run: &HookRun, outcome: &Outcome, now_ms: u64) {
        self.installing.hook_ended(run, outcome, now_ms);
    }

    /// Gives a bundle up, so that later ones go on. What staging has of it is removed; what is published stays.
    pub fn reject(&self, which: &Which) -> Result<(), DecideError> {
        self.deciding.reject(which)
    }

    /// Lets a bundle come that is held, or says that a channel's sequences up to this one are in use. Errors: [`DecideError`].
    pub fn approve(&self, which: &Which) -> Result<String, DecideError> {
        self.deciding.approve(which)
    }

    /// Undoes a refusal, or has a hook run again that failed, or at once one that waits. Gives what happens now. Errors:
    /// [`DecideError`].
    pub fn retry(&self, which: &Which) -> Result<String, DecideError> {
        self.deciding.retry(which)
    }

    /// What there is to tell.
    #[must_use]
    pub fn status(&self, now_ms: u64) -> Status {
        self.telling.status(now_ms)
    }

    /// Puts into a status what each incomplete bundle lacks, exactly.
    pub fn count_lacking(&self, status: &mut Status, lacking: LackingOf<'_>) {
        self.ticketing.count_lacking(status, lacking);
    }

    /// What a person should look at that happened of late.
    #[must_use]
    pub fn noted(&self, now_ms: u64) -> Vec<Alarm> {
        self.alarms.stand(now_ms)
    }

    /// One line for `systemctl status`.
    #[must_use]
    pub fn summary(&self) -> String {
        self.ledger.lock().summary()
    }

    /// The ticket of each bundle that `which` names, or with none named of all that lack something and whose transmission
    /// is over. Each has at most `max_lines` lines. Errors: [`TicketError`].
    pub fn tickets(
        &self,
        which: &[String],
        loss: LossOf<'_>,
        max_lines: usize,
        lacking: LackingOf<'_>,
    ) -> Result<Vec<TicketView>, TicketError> {
        self.ticketing.tickets(which, loss, max_lines, lacking)
    }

    /// Bundles of which something is still coming, as people name them.
    #[must_use]
    pub fn receiving(&self) -> Vec<String> {
        let ledger = self.ledger.lock();
        let receiving = ledger.entries().filter(|entry| entry.state() == State::Receiving);
        receiving.take(NAMED).map(telling::number).collect()
    }

    /// Whether a sender is silent: no beacon of its key that counts came of late, or since the start.
    #[must_use]
    pub fn is_silent(&self, now_ms: u64) -> bool {
        self.newest.is_any_silent(now_ms)
    }

    /// Goes on with every bundle that the last run left in staging.
    fn recover(&self) {
        let mut refused = Failures::default();
        for staged in self.store.all() {
            let id = staged.id;
            let known = self.ledger.lock().entry(id).map(|entry| entry.state());
            if known.is_some_and(|state| !state.is_open()) {
                self.staging.discard(id);
                continue;
            }
            if matches!(self.publishing.adopt_published(&staged), Ok(true)) {
                continue;
            }
            // It counts as unsigned until something signed vouches for it.
            self.ledger.lock().reception.set_unsigned(id, self.clock.now());
            if known.is_some() {
                self.ledger.lock().reception.entry(id);
                self.staging.vouch(id, None);
            }
            for kind in [ObjectKind::Announce, ObjectKind::Hashes] {
                // They were kept without waiting for the disk: a power cut may have left anything.
                let taken = match self.store.object(&staged, kind, MAX_MANIFEST_LEN as u64) {
                    Ok(None) => Ok(()),
                    Ok(Some(bytes)) => self.admission.take_object(id, kind, &bytes),
                    Err(error) => Err(error.into()),
                };
                match taken {
                    Ok(()) => {}
                    Err(StoreError::Refused) => refused.note(id, Some(kind)),
                    Err(error) => self.staging.trouble(id, &error.to_string()),
                }
            }
            if let Err(error) = self.adopting.adopt(&staged) {
                self.staging.trouble(id, &error.to_string());
            }
            self.staging.sleep(&staged);
            self.jobs.push(Job::Advance(id));
        }
        if let Some((id, kind)) = refused.first {
            let objects = refused.count;
            tracing::warn!(objects, first = %id, ?kind, "signed objects in staging do not count and have to come again");
        }
        self.refusing.finish_moves();
        if let Err(error) = self.ledger.save(Durable::No) {
            tracing::error!(%error, "ledger cannot be written");
        }
    }
}

/// What went wrong with many bundles at once, for one line of the log.
struct Failures<T> {
    count: usize,
    first: Option<(BundleId, T)>,
}

impl<T> Default for Failures<T> {
    fn default() -> Self {
        Self { count: 0, first: None }
    }
}

impl<T> Failures<T> {
    fn note(&mut self, id: BundleId, what: Option<T>) {
        self.count += usize::from(what.is_some());
        self.first = self.first.take().or(what.map(|what| (id, what)));
    }
}

#[cfg(test)]
mod tests;
