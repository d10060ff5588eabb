//! What happens to a bundle from its first block to its end. Synchronous: it acts through [`Disk`] and a `now` that it is
//! told, so that a simulator can drive it single-threaded; the daemon calls it from its threads.
//!
//! 1. The pipeline asks whether an object is wanted, and hands over its blocks ([`crate::sink::Sink`], `receive`).
//! 2. `manifests`: announce and hashes are opened with the trusted keys; what is not trusted goes to quarantine.
//! 3. `advance`: a bundle that is whole is proven, published, written down. [`Delivery::work`] does this.
//! 4. `install`: whose turn it is for the hook, and what became of it.
//! 5. `watch`: beacons and time say what is incomplete or missing.
//! 6. `operator`, `status`: what people ask and decide.

mod advance;
mod install;
mod manifests;
mod operator;
mod rebuild;
mod receive;
pub mod status;
pub mod ticket;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use checkvalve_host::disk::Disk;
use checkvalve_host::journal::{JournalError, Sync as Durable};
use checkvalve_host::log::Throttle;
use checkvalve_protocol::crypto::TrustStore;
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::limits::MAX_MANIFEST_LEN;
use checkvalve_protocol::wire::ObjectKind;

use crate::audit::Audit;
use crate::hook::HookPolicy;
use crate::inbox::{Durability, Inbox};
use crate::ledger::file::LedgerFile;
use crate::sink::ObjectProgress;
use crate::store::log::BootId;
use crate::store::space::Space;
use crate::store::{OpenError as StoreOpenError, Staged, Store};

pub use install::HookRun;
pub use operator::{RejectError, Which};

/// Bundles at once of which data came but no announce.
const MAX_UNANNOUNCED: usize = 16;
/// Bundles remembered as not wanted because their sequence is over and forgotten.
const MAX_SPURNED: usize = 4_096;

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
    /// Bytes of staging's disk that are left alone.
    pub reserve: u64,
    /// Most bytes in staging.
    pub quota: u64,
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
}

/// All deliveries.
pub struct Delivery {
    disk: Arc<dyn Disk>,
    settings: Settings,
    trust: RwLock<TrustStore>,
    store: Store,
    ledger: LedgerFile,
    audit: Audit,
    inbox: Inbox,
    lives: Mutex<HashMap<BundleId, Live>>,
    spurned: Mutex<(HashSet<BundleId>, VecDeque<BundleId>)>,
    /// Bundles whose stored blocks were given up.
    lost: Mutex<BTreeSet<BundleId>>,
    jobs: Jobs,
    /// Channels whose hook runs.
    running: Mutex<BTreeSet<ChannelName>>,
    waker: OnceLock<Box<dyn Fn() + Send + Sync>>,
    heard: Mutex<watch::Heard>,
    watched: Mutex<watch::Watched>,
    now_ms: AtomicU64,
    throttle: Throttle,
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

/// What is known of a bundle under way beside what is on the disk.
#[derive(Default)]
struct Live {
    announced: bool,
    hashes: bool,
    /// Length of its data object, once announced.
    data_len: u64,
    /// When a block came last, in Unix milliseconds; 0: none since the start.
    last_ms: u64,
    progress: Option<ObjectProgress>,
    /// Why it could not be stored or published, for people.
    trouble: Option<String>,
    /// Not tried again before this, in Unix milliseconds.
    retry_ms: u64,
}

/// Work that may take long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Job {
    Advance(BundleId),
    Checkpoint,
}

#[derive(Default)]
struct Jobs {
    queue: Mutex<VecDeque<Job>>,
    more: Condvar,
}

impl Delivery {
    /// Opens everything and goes on where the last run stopped. `boot` says which run of the kernel this is; `now_ms` is
    /// Unix time in milliseconds. The directories exist.
    pub fn open(
        disk: Arc<dyn Disk>,
        settings: Settings,
        trust: TrustStore,
        boot: BootId,
        now_ms: u64,
    ) -> Result<Self, OpenError> {
        let (ledger, recovered) = LedgerFile::open(&disk, &settings.state.join("ledger")).map_err(OpenError::Ledger)?;
        let damaged = recovered.torn_bytes > 0 || !recovered.corrupt.is_empty();
        if damaged {
            tracing::warn!(torn_bytes = recovered.torn_bytes, corrupt = ?recovered.corrupt, "ledger was damaged");
        }
        let audit = Audit::open(&disk, &settings.state.join("audit.jsonl")).map_err(OpenError::State)?;
        let space = Space::new(settings.reserve, settings.quota);
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
            trust: RwLock::new(TrustStore::new()),
            store,
            ledger,
            audit,
            inbox,
            lives: Mutex::default(),
            spurned: Mutex::default(),
            lost: Mutex::default(),
            jobs: Jobs::default(),
            running: Mutex::default(),
            waker: OnceLock::new(),
            heard: Mutex::default(),
            watched: Mutex::default(),
            now_ms: AtomicU64::new(now_ms),
            throttle: Throttle::new(20, 60_000),
        };
        // Empty is also what is lost; where nothing ever came the audit trail has nothing either.
        if damaged || this.ledger.lock().entries().next().is_none() {
            let rebuilt = this.rebuild().map_err(OpenError::State)?;
            if rebuilt > 0 {
                tracing::warn!(bundles = rebuilt, "the ledger was rebuilt from the audit trail and the manifests");
            }
        }
        // It may have been set while no daemon ran.
        this.ledger.lock().clock_went_back(now_ms);
        this.set_trust(trust, now_ms).map_err(OpenError::State)?;
        this.recover();
        Ok(this)
    }

    /// Calls `wake` whenever a hook may have become due.
    pub fn set_waker(&self, wake: Box<dyn Fn() + Send + Sync>) {
        drop(self.waker.set(wake));
    }

    /// Waits for work until `timeout` is over. True: there is some.
    pub fn wait_for_work(&self, timeout: Duration) -> bool {
        let queue = self.jobs.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let (queue, _) = self
            .jobs
            .more
            .wait_timeout_while(queue, timeout, |queue| queue.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        !queue.is_empty()
    }

    /// Does one piece of work, which may take as long as the disk does. False: there was none. Several threads may.
    pub fn work(&self) -> bool {
        let job = self.jobs.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        match job {
            None => return false,
            Some(Job::Advance(id)) => self.advance(id),
            Some(Job::Checkpoint) => {
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
        self.save();
    }

    /// Goes on with every bundle that the last run left in staging.
    fn recover(&self) {
        for staged in self.store.all() {
            let id = staged.id;
            let state = self.ledger.lock().entry(id).map(|entry| entry.state);
            if state.is_some_and(|state| !state.is_open()) {
                self.discard(id);
                continue;
            }
            if matches!(self.adopt_published(&staged), Ok(true)) {
                continue;
            }
            self.ledger.lock().seen(id, self.now());
            self.lives().entry(id).or_default();
            for kind in [ObjectKind::Announce, ObjectKind::Hashes] {
                match self.store.object(&staged, kind, MAX_MANIFEST_LEN as u64) {
                    Ok(None) => {}
                    // It was kept without waiting for the disk: a power cut may have left anything.
                    Ok(Some(bytes)) if !self.is_intact(id, kind, &bytes) => {
                        tracing::warn!(bundle = %id, ?kind, "a signed object in staging is damaged and has to come again");
                    }
                    Ok(Some(bytes)) => {
                        if let Err(error) = self.take_object(&staged, kind, &bytes) {
                            self.trouble(id, &error.to_string());
                        }
                    }
                    Err(error) => self.trouble(id, &error.to_string()),
                }
            }
            self.sleep(&staged);
            self.enqueue(Job::Advance(id));
        }
        self.finish_withdrawals();
        if let Err(error) = self.ledger.save(Durable::No) {
            tracing::error!(%error, "ledger cannot be written");
        }
    }

    /// Whether an object that was kept is what was kept.
    fn is_intact(&self, id: BundleId, kind: ObjectKind, bytes: &[u8]) -> bool {
        let trust = self.trust.read().unwrap_or_else(PoisonError::into_inner);
        match kind {
            ObjectKind::Announce => {
                let known = self.ledger.lock().entry(id).and_then(|entry| entry.announce);
                known.map_or_else(
                    || checkvalve_protocol::manifest::Announce::open(bytes, &trust).is_ok(),
                    |digest| blake3::hash(bytes) == digest,
                )
            }
            _ => checkvalve_protocol::manifest::Hashes::open(bytes, &trust).is_ok(),
        }
    }

    fn now(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    fn lives(&self) -> MutexGuard<'_, HashMap<BundleId, Live>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn policy(&self, channel: &ChannelName) -> Policy {
        self.settings.channels.get(channel).cloned().unwrap_or_default()
    }

    fn enqueue(&self, job: Job) {
        let mut queue = self.jobs.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if !queue.contains(&job) {
            queue.push_back(job);
        }
        drop(queue);
        self.jobs.more.notify_one();
    }

    fn wake(&self) {
        if let Some(wake) = self.waker.get() {
            wake();
        }
    }

    /// Something stands in the way of a bundle; it is tried again in a while.
    fn trouble(&self, id: BundleId, what: &str) {
        let now = self.now();
        if let Some(live) = self.lives().get_mut(&id) {
            live.trouble = Some(what.to_owned());
            live.retry_ms = now.saturating_add(watch::RETRY_MS);
        }
        if let Some(suppressed) = self.throttle.allow(now) {
            tracing::warn!(bundle = %id, reason = what, suppressed, "bundle cannot go on");
        }
    }

    /// What staging has of a bundle is nothing: all of it has to come again.
    fn begin_again(&self, id: BundleId, why: &str) {
        self.trouble(id, why);
        self.discard(id);
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        let now = self.now();
        self.ledger.lock().change(id, now, |entry| {
            if entry.state.is_open() {
                entry.reason = Some(why.to_owned());
            }
        });
    }

    /// Removes what staging has of a bundle that came to an end.
    fn discard(&self, id: BundleId) {
        self.lives().remove(&id);
        if let Err(error) = self.store.remove(id) {
            tracing::warn!(bundle = %id, %error, "staging cannot be cleaned; the next start does it");
        }
    }

    /// Never takes datagrams of this bundle again, although the ledger does not know it.
    fn spurn(&self, id: BundleId) {
        let mut spurned = self.spurned.lock().unwrap_or_else(PoisonError::into_inner);
        let (set, order) = &mut *spurned;
        if set.insert(id) {
            order.push_back(id);
        }
        if order.len() > MAX_SPURNED
            && let Some(oldest) = order.pop_front()
        {
            set.remove(&oldest);
        }
    }

    fn is_spurned(&self, id: BundleId) -> bool {
        self.spurned.lock().unwrap_or_else(PoisonError::into_inner).0.contains(&id)
    }

    /// A sync failed: what staging holds and was not synced before has to come again.
    fn give_up_unsynced(&self) {
        self.store.give_up_unsynced();
        self.all_lost();
    }

    fn all_lost(&self) {
        let ids: Vec<BundleId> = self.store.all().into_iter().map(|staged| staged.id).collect();
        // What the data plane counted is not so any more.
        self.lives().values_mut().for_each(|live| live.progress = None);
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
    }

    /// Gives back a bundle's memory, unless it is being moved on: that may take longer than it stands still, and would begin
    /// again each time.
    fn sleep(&self, staged: &Staged) {
        let Ok(_alone) = staged.advancing.try_lock() else { return };
        let announced = self.lives().get(&staged.id).is_some_and(|live| live.announced);
        let digest = self.ledger.lock().entry(staged.id).and_then(|entry| entry.announce).filter(|_| announced);
        self.store.sleep(staged, digest);
    }
}

#[cfg(test)]
mod tests;
