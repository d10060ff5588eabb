//! What is known of bundles while they are received, beside what the ledger writes down and what staging holds.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::manifest::Announce;
use checkvalve_protocol::partition::Oti;

use super::Entry;
use crate::sink::{Lost, ObjectProgress};

/// Announces and hashes that wait for the disk at once; those of more bundles have to come again.
const ADOPTIONS: usize = 16_384;
/// Bytes of them.
const ADOPTION_BYTES: usize = 32 << 20;
/// Bundles remembered as not wanted because their sequence is over and forgotten.
const MAX_SPURNED: usize = 4_096;

/// All bundles under way, and what the data plane is to be told of them.
#[derive(Default)]
pub struct Reception {
    bundles: HashMap<BundleId, Live>,
    /// Those that nobody signed for and of which staging has something: when a block came last, in Unix milliseconds.
    unsigned: HashMap<BundleId, u64>,
    spurned: Spurned,
    /// Bundles of which something was given up, and the data plane has not been told.
    lost: BTreeMap<BundleId, Lost>,
    /// Bundles that somebody signed for, and of which the data plane has not been told.
    vouched: Vec<BundleId>,
    /// Bundles in the inbox whose staging is to be cleaned as soon as the ledger says that they are there.
    published: Vec<BundleId>,
    adoptions: Arc<Adoptions>,
}

/// A bundle under way, of which an announce, hashes or a beacon came.
#[derive(Default)]
pub struct Live {
    /// Its announce counts.
    pub announced: bool,
    /// Its hashes came.
    pub hashes: bool,
    /// They came while the announce was not in memory: they must still be checked against it, and may be a withdrawal.
    pub unjudged: bool,
    /// Length of its data object, once announced.
    pub data_len: u64,
    /// OTI of its data object, as announced; None where it has no data.
    pub oti: Option<Oti>,
    /// The announce, until the disk has it.
    pub adopting: Option<Adoption>,
    /// The hashes, until the disk has them.
    pub pending_hashes: Option<PendingHashes>,
    /// When a block came last, in Unix milliseconds; 0: none since the start.
    pub last_ms: u64,
    /// How far the data plane is with its data.
    pub progress: Option<ObjectProgress>,
    /// Why it could not be stored or published, for people.
    pub trouble: Option<String>,
    /// Not tried again before this, in Unix milliseconds.
    pub retry_ms: u64,
    /// Bytes that were spoilt on the way, until a ticket asks for them or they are right.
    pub spoilt: Vec<Range<u64>>,
    /// Whatever came for the spoilt bytes since then is to be discarded once nothing more comes.
    pub clear: bool,
}

/// An announce that was admitted, and its signed bytes.
#[derive(Clone)]
pub struct Adoption {
    /// What it says.
    pub announce: Arc<Announce>,
    /// As it came.
    pub bytes: Arc<Vec<u8>>,
    _place: Arc<AdoptionPlace>,
}

/// Hashes that were admitted.
#[derive(Clone)]
pub struct PendingHashes {
    /// As they came.
    pub bytes: Arc<Vec<u8>>,
    _place: Arc<AdoptionPlace>,
}

/// Announces and hashes that wait for the disk, and their bytes.
#[derive(Default)]
struct Adoptions {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

/// The room that one of them takes, until it is dropped.
pub struct AdoptionPlace(Arc<Adoptions>, usize);

#[derive(Default)]
struct Spurned {
    set: HashSet<BundleId>,
    order: VecDeque<BundleId>,
}

impl Reception {
    /// A bundle that somebody signed for.
    #[must_use]
    pub fn get(&self, id: BundleId) -> Option<&Live> {
        self.bundles.get(&id)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, id: BundleId) -> Option<&mut Live> {
        self.bundles.get_mut(&id)
    }

    /// Somebody signed for a bundle.
    pub fn entry(&mut self, id: BundleId) -> &mut Live {
        self.bundles.entry(id).or_default()
    }

    /// All that somebody signed for, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (BundleId, &Live)> {
        self.bundles.iter().map(|(&id, live)| (id, live))
    }

    /// The same, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Live> {
        self.bundles.values_mut()
    }

    /// Nothing is being received of a bundle any more.
    pub fn remove(&mut self, id: BundleId) {
        self.bundles.remove(&id);
        self.unsigned.remove(&id);
    }

    /// A bundle is in the inbox, and the ledger cannot be told: staging keeps what it has, so that the next start finds it there and
    /// says so again.
    pub fn published_untold(&mut self, id: BundleId) {
        self.bundles.remove(&id);
        self.published.push(id);
    }

    /// Whether there are any.
    #[must_use]
    pub fn has_untold(&self) -> bool {
        !self.published.is_empty()
    }

    /// The ledger has been told of all of them: staging is to be cleaned.
    pub fn take_told(&mut self) -> Vec<BundleId> {
        std::mem::take(&mut self.published)
    }

    /// When a block came last of a bundle that nobody signed for.
    #[must_use]
    pub fn unsigned(&self, id: BundleId) -> Option<u64> {
        self.unsigned.get(&id).copied()
    }

    /// Staging has something of a bundle that nobody signed for, unless its announce came meanwhile.
    pub fn set_unsigned(&mut self, id: BundleId, now_ms: u64) {
        if self.bundles.get(&id).is_none_or(|live| !live.announced) {
            self.unsigned.insert(id, now_ms);
        }
    }

    /// The same, unless that is known.
    pub fn ensure_unsigned(&mut self, id: BundleId, now_ms: u64) {
        self.unsigned.entry(id).or_insert(now_ms);
    }

    /// A block of it came.
    pub fn touch_unsigned(&mut self, id: BundleId, now_ms: u64) {
        if let Some(last_ms) = self.unsigned.get_mut(&id) {
            *last_ms = now_ms;
        }
    }

    /// Somebody signed for it, or it goes. Whether it was one that nobody signed for.
    pub fn take_unsigned(&mut self, id: BundleId) -> bool {
        self.unsigned.remove(&id).is_some()
    }

    /// Of those that nobody signed for the one that has been silent for longest, and since when.
    #[must_use]
    pub fn most_silent(&self) -> Option<(BundleId, u64)> {
        self.unsigned.iter().min_by_key(|(_, last)| **last).map(|(&id, &last)| (id, last))
    }

    /// Those of which nothing came since.
    #[must_use]
    pub fn silent_since(&self, before_ms: u64) -> Vec<BundleId> {
        self.unsigned.iter().filter(|(_, last)| **last <= before_ms).map(|(&id, _)| id).collect()
    }

    /// A bundle is never wanted again, although the ledger does not know it.
    pub fn spurn(&mut self, id: BundleId) {
        let Spurned { set, order } = &mut self.spurned;
        if set.insert(id) {
            order.push_back(id);
        }
        if order.len() > MAX_SPURNED
            && let Some(oldest) = order.pop_front()
        {
            set.remove(&oldest);
        }
    }

    /// The bundle is wanted again.
    pub fn unspurn(&mut self, id: BundleId) {
        let Spurned { set, order } = &mut self.spurned;
        if set.remove(&id) {
            order.retain(|other| *other != id);
        }
    }

    /// Whether it is not wanted for that.
    #[must_use]
    pub fn is_spurned(&self, id: BundleId) -> bool {
        self.spurned.set.contains(&id)
    }

    /// Something of a bundle was given up: the data plane is to be told.
    pub fn lose(&mut self, id: BundleId, what: Lost) {
        let known = self.lost.entry(id).or_insert(what);
        *known = what.max(*known);
    }

    /// What was given up since the last call. What the data plane counted of it is not so any more.
    pub fn take_lost(&mut self) -> Vec<(BundleId, Lost)> {
        let lost = std::mem::take(&mut self.lost);
        for id in lost.keys() {
            if let Some(live) = self.bundles.get_mut(id) {
                live.progress = None;
            }
        }
        lost.into_iter().collect()
    }

    /// Somebody signed for a bundle: the data plane is to be told.
    pub fn vouch(&mut self, id: BundleId) {
        self.unsigned.remove(&id);
        self.vouched.push(id);
    }

    /// For whom somebody signed since the last call.
    pub fn take_vouched(&mut self) -> Vec<BundleId> {
        std::mem::take(&mut self.vouched)
    }

    /// Room in memory for an announce or hashes of so many bytes. None: too many wait for the disk.
    #[must_use]
    pub fn place(&self, bytes: usize) -> Option<AdoptionPlace> {
        AdoptionPlace::take(&self.adoptions, bytes)
    }

    /// Bundles of which something waits for the disk.
    #[must_use]
    pub fn waiting_for_disk(&self) -> Vec<BundleId> {
        let waits = |live: &Live| live.adopting.is_some() || live.pending_hashes.is_some();
        self.iter().filter(|(_, live)| waits(live)).map(|(id, _)| id).collect()
    }

    /// The clock was set back to `now_ms`: what was noted later was not.
    pub(super) fn clock_went_back(&mut self, now_ms: u64) {
        for live in self.bundles.values_mut() {
            live.last_ms = live.last_ms.min(now_ms);
            live.retry_ms = live.retry_ms.min(now_ms);
        }
        self.unsigned.values_mut().for_each(|last| *last = now_ms.min(*last));
    }
}

impl Live {
    /// How far it is; not somebody else's object of another length than a beacon or the announce gave.
    #[must_use]
    pub fn progress_of(&self, entry: &Entry) -> Option<ObjectProgress> {
        self.progress.filter(|progress| entry.channel.is_none() || progress.length == entry.bytes)
    }
}

impl Adoption {
    /// Waits in `place` for the disk.
    #[must_use]
    pub fn new(announce: Announce, bytes: &[u8], place: AdoptionPlace) -> Self {
        Self { announce: Arc::new(announce), bytes: Arc::new(bytes.to_vec()), _place: Arc::new(place) }
    }
}

impl PendingHashes {
    /// Wait in `place` for the disk.
    #[must_use]
    pub fn new(bytes: &[u8], place: AdoptionPlace) -> Self {
        Self { bytes: Arc::new(bytes.to_vec()), _place: Arc::new(place) }
    }
}

impl AdoptionPlace {
    fn take(adoptions: &Arc<Adoptions>, bytes: usize) -> Option<Self> {
        let held = adoptions.bytes.load(Ordering::Relaxed);
        let fits = adoptions.count.load(Ordering::Relaxed) < ADOPTIONS
            && held.saturating_add(bytes) <= ADOPTION_BYTES.max(bytes);
        fits.then(|| {
            adoptions.count.fetch_add(1, Ordering::Relaxed);
            adoptions.bytes.fetch_add(bytes, Ordering::Relaxed);
            Self(Arc::clone(adoptions), bytes)
        })
    }
}

impl Drop for AdoptionPlace {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        self.0.bytes.fetch_sub(self.1, Ordering::Relaxed);
    }
}
