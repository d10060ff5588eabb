//! What happens to a bundle from its first block to its end. Synchronous: it acts through [`Disk`] and a `now` that it is
//! told, so that a simulator can drive it single-threaded; the daemon calls it from its threads.
//!
//! 1. The pipeline asks whether an object is wanted, and hands over its blocks ([`crate::sink::Sink`], `receive`).
//! 2. `manifests`: announce and hashes are admitted, or change nothing; `unknown` keeps what another trust would admit;
//!    `refusing`: what a key signed wrong goes to quarantine.
//! 3. `advance`: a bundle that is whole is proven, published, written down. [`Delivery::work`] does this.
//! 4. `install`: whose turn it is for the hook, and what became of it.
//! 5. `beacons`, `watch`: beacons and time say what is incomplete or missing.
//! 6. `operator`, `trusting`, `status`, `alarms`, `telling`: what people ask, decide and are told.

mod advance;
pub mod alarms;
mod beacons;
mod forget;
mod install;
mod jobs;
mod manifests;
mod operator;
mod rebuild;
mod receive;
mod refusing;
pub mod status;
mod telling;
pub mod ticket;
mod trusting;
mod unknown;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use checkvalve_host::disk::Disk;
use checkvalve_host::journal::{JournalError, Sync as Durable};
use checkvalve_host::log::Throttle;
use checkvalve_protocol::admit::Trust;
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::limits::MAX_MANIFEST_LEN;
use checkvalve_protocol::wire::ObjectKind;

use self::jobs::{Job, Jobs};
use crate::audit::Audit;
use crate::hook::HookPolicy;
use crate::inbox::{Durability, Inbox};
use crate::ledger::Live;
use crate::ledger::file::LedgerFile;
use crate::sink::{Lost, StoreError};
use crate::store::log::BootId;
use crate::store::space::{self, Space};
use crate::store::{Staged, Store, StoreOpenError};

pub use crate::hook::HookRun;
pub use operator::{DecideError, Which};
pub use trusting::Judged;
pub(crate) use trusting::{NO_KEY, NOT_ITS};

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

/// All deliveries.
pub struct Delivery {
    disk: Arc<dyn Disk>,
    settings: Settings,
    trust: RwLock<Arc<Trust>>,
    store: Store,
    ledger: LedgerFile,
    audit: Audit,
    inbox: Inbox,
    unknown: Mutex<unknown::Unknown>,
    noted: Mutex<alarms::Noted>,
    /// Signed objects and beacons that changed nothing, by the rule that they broke.
    discards: Mutex<Discards>,
    jobs: Jobs,
    /// Channels whose hook runs.
    running: Mutex<BTreeSet<ChannelName>>,
    waker: OnceLock<Box<dyn Fn() + Send + Sync>>,
    heard: Mutex<beacons::LastBeacon>,
    watched: Mutex<watch::Watched>,
    now_ms: AtomicU64,
    throttle: Throttle,
    /// Throttles the lines about announced bundles: each bundle has a line unless too many come at once.
    announced_log: Throttle,
    /// Lines about states that the passing of time brings about.
    states_log: Throttle,
}

/// Counts by rule.
#[derive(Default)]
struct Discards(BTreeMap<&'static str, u64>);

impl Discards {
    fn add(&mut self, rule: &'static str) {
        let count = self.0.entry(rule).or_default();
        *count = count.saturating_add(1);
    }
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
            tracing::warn!(?damage, "ledger was damaged");
        }
        let audit = Audit::open(&disk, &settings.state.join("audit.jsonl")).map_err(OpenError::State)?;
        let space = Space::new(settings.space);
        let store = Store::open(Arc::clone(&disk), &settings.staging, boot, space, settings.crowd)?;
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
        let this = Self {
            disk,
            settings,
            trust: RwLock::default(),
            store,
            ledger,
            audit,
            inbox,
            unknown: Mutex::default(),
            noted: Mutex::default(),
            discards: Mutex::default(),
            jobs: Jobs::default(),
            running: Mutex::default(),
            waker: OnceLock::new(),
            heard: Mutex::default(),
            watched: Mutex::default(),
            now_ms: AtomicU64::new(now_ms),
            throttle: Throttle::new(20, 60_000),
            announced_log: Throttle::new(600, 60_000),
            states_log: Throttle::new(60, 60_000),
        };
        this.ledger.lock().configure(this.settings.channels.keys().cloned());
        // A lost ledger is empty, too. If nothing ever came, so is the audit trail, and there is nothing to rebuild.
        if damaged || this.ledger.lock().entries().next().is_none() {
            let rebuilt = this.rebuild().map_err(OpenError::State)?;
            if rebuilt > 0 {
                tracing::warn!(bundles = rebuilt, "the ledger was rebuilt from the audit trail and the manifests");
            }
        }
        if damaged {
            this.ledger.rewrite().map_err(OpenError::Ledger)?;
        }
        // It may have been set while no daemon ran.
        this.ledger.lock().clock_went_back(now_ms);
        this.set_trust(trust, now_ms).map_err(OpenError::State)?;
        this.recover();
        this.sweep();
        Ok(this)
    }

    /// Calls `wake` whenever a hook may have become due.
    pub fn set_waker(&self, wake: Box<dyn Fn() + Send + Sync>) {
        drop(self.waker.set(wake));
    }

    /// Waits for work until `timeout` is over. True: there is some.
    pub fn wait_for_work(&self, timeout: Duration) -> bool {
        self.jobs.wait(timeout)
    }

    /// Does one piece of work, which may take as long as the disk does. False: there was none. Several threads may.
    pub fn work(&self) -> bool {
        let Some(taken) = self.jobs.take() else { return false };
        match taken.job {
            Job::Advance(id) => self.advance(id),
            Job::Clear(id) => {
                self.clear_spoilt(id, false);
            }
            Job::Checkpoint => {
                if let Err(error) = self.store.checkpoint() {
                    self.all_lost();
                    tracing::error!(%error, "staging cannot be synced: what it took since the last time is given up");
                }
            }
        }
        true
    }

    /// The last thing before the process ends: what is known is written down.
    pub fn tick_last(&self, now_ms: u64) {
        self.now_ms.store(now_ms, Ordering::Relaxed);
        let waiting = self.ledger.lock().reception.waiting_for_disk();
        for id in waiting {
            let Some(staged) = self.begin(id) else { continue };
            let _alone = staged.advancing.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = self.adopt(&staged) {
                tracing::warn!(bundle = %id, %error, "what came last is not kept");
            }
        }
        self.ledger.lock().keep_counters();
        self.save();
    }

    /// Goes on with every bundle that the last run left in staging.
    fn recover(&self) {
        for staged in self.store.all() {
            let id = staged.id;
            let known = self.ledger.lock().entry(id).map(|entry| entry.state());
            if known.is_some_and(|state| !state.is_open()) {
                self.discard(id);
                continue;
            }
            if matches!(self.adopt_published(&staged), Ok(true)) {
                continue;
            }
            // It counts as unsigned until something signed vouches for it.
            self.ledger.lock().reception.set_unsigned(id, self.now());
            if known.is_some() {
                self.ledger.lock().reception.entry(id);
                self.vouch(id, None);
            }
            for kind in [ObjectKind::Announce, ObjectKind::Hashes] {
                // They were kept without waiting for the disk: a power cut may have left anything.
                let taken = match self.store.object(&staged, kind, MAX_MANIFEST_LEN as u64) {
                    Ok(None) => Ok(()),
                    Ok(Some(bytes)) => self.take_object(id, kind, &bytes),
                    Err(error) => Err(error.into()),
                };
                match taken {
                    Ok(()) => {}
                    Err(StoreError::Refused) => {
                        tracing::warn!(bundle = %id, ?kind, "a signed object in staging does not count and has to come again");
                    }
                    Err(error) => self.trouble(id, &error.to_string()),
                }
            }
            if let Err(error) = self.adopt(&staged) {
                self.trouble(id, &error.to_string());
            }
            self.sleep(&staged);
            self.enqueue(Job::Advance(id));
        }
        self.finish_withdrawals();
        if let Err(error) = self.ledger.save(Durable::No) {
            tracing::error!(%error, "ledger cannot be written");
        }
    }

    fn now(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    /// Something of a bundle under way. None: nobody signed for it.
    fn live<T>(&self, id: BundleId, what: impl FnOnce(&Live) -> T) -> Option<T> {
        self.ledger.lock().reception.get(id).map(what)
    }

    fn policy(&self, channel: &ChannelName) -> Policy {
        self.settings.channels.get(channel).cloned().unwrap_or_default()
    }

    /// What the bundles of a channel may take: one does not shut out the others.
    fn share(&self, channel: &ChannelName) -> space::Share {
        let quota = self.settings.channels.get(channel).and_then(|policy| policy.quota);
        // Where there is but one, nobody else needs what it leaves.
        let part = self.part(self.ledger.lock().channels().count());
        space::Share { bytes: quota.unwrap_or(part.bytes), ..part }
    }

    /// What the bundles of one key may take of staging, in all channels that it signs for.
    fn key_share(&self) -> space::Share {
        match self.trust().keys.len() {
            0 | 1 => space::Share::ALL,
            many => self.part(many),
        }
    }

    /// Bytes that each of `keys` keys may take when others need room. A key that takes more then loses bundles that
    /// have stopped coming.
    fn fair_share(&self, keys: usize) -> u64 {
        self.part(1).bytes.checked_div(keys as u64).unwrap_or(u64::MAX)
    }

    /// The most that one of so many may take of staging, so that it leaves something to the others.
    fn part(&self, of: usize) -> space::Share {
        const PART: u64 = 5;
        let part = if of > 1 { PART - 1 } else { PART };
        let space = self.store.space();
        let limits = space.limits();
        let most = space.staged().saturating_add(space.free().saturating_sub(limits.reserve)).min(limits.quota);
        space::Share { bytes: (most / PART).saturating_mul(part), files: (limits.files / PART).saturating_mul(part) }
    }

    fn enqueue(&self, job: Job) {
        self.jobs.push(job);
    }

    fn wake(&self) {
        if let Some(wake) = self.waker.get() {
            wake();
        }
    }

    /// Something stands in the way of a bundle; it is tried again in a while.
    fn trouble(&self, id: BundleId, what: &str) {
        let now = self.now();
        let mut is_new = true;
        if let Some(live) = self.ledger.lock().reception.get_mut(id) {
            is_new = live.trouble.as_deref() != Some(what);
            live.trouble = Some(what.to_owned());
            live.retry_ms = now.saturating_add(watch::RETRY_MS);
        }
        if is_new && let Some(suppressed) = self.throttle.allow(now) {
            tracing::warn!(bundle = %id, reason = what, suppressed, "bundle cannot go on");
        }
    }

    /// Discards everything that staging has of a bundle: all of it has to come again.
    fn begin_again(&self, id: BundleId, why: &str) {
        self.trouble(id, why);
        self.discard(id);
        let now = self.now();
        self.ledger.lock().change(id, now, |entry| {
            if entry.state().is_open() {
                entry.reason = Some(why.to_owned());
            }
        });
    }

    /// Removes what staging and the data plane have of a bundle that came to an end, or has to come again.
    fn discard(&self, id: BundleId) {
        self.clean_up(id);
        self.lose(id, Lost::All);
    }

    /// Removes what staging has of a bundle that is published.
    fn clean_up(&self, id: BundleId) {
        self.ledger.lock().reception.remove(id);
        if let Err(error) = self.store.remove(id) {
            tracing::warn!(bundle = %id, %error, "staging cannot be cleaned; the next start does it");
        }
    }

    /// A sync failed: what staging holds and was not synced before has to come again.
    fn give_up_unsynced(&self) {
        self.store.give_up_unsynced();
        self.all_lost();
    }

    fn all_lost(&self) {
        let ids: Vec<BundleId> = self.store.all().into_iter().map(|staged| staged.id).collect();
        let mut ledger = self.ledger.lock();
        // What the data plane counted is not so any more.
        ledger.reception.iter_mut().for_each(|live| live.progress = None);
        ids.into_iter().for_each(|id| ledger.reception.lose(id, Lost::Stored));
    }

    fn lose(&self, id: BundleId, what: Lost) {
        self.ledger.lock().reception.lose(id, what);
    }

    /// Frees a bundle's memory, unless a thread is advancing it: that may take longer than the idle time after which
    /// memory is freed, and would start over each time.
    fn sleep(&self, staged: &Staged) {
        let Ok(_alone) = staged.advancing.try_lock() else { return };
        let digest = {
            let ledger = self.ledger.lock();
            let announced = ledger.reception.get(staged.id).is_some_and(|live| live.announced);
            ledger.entry(staged.id).and_then(|entry| entry.announce).filter(|_| announced)
        };
        self.store.sleep(staged, digest);
    }
}

#[cfg(test)]
mod tests;
