//! The state of bundles in reception that is neither in the ledger's journal nor in staging.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::manifest::Announce;
use checkvalve_protocol::partition::Oti;

use super::Entry;
use crate::sink::{Lost, ObjectProgress};

/// How many announces and hashes may wait for the disk at once. Any more have to come again.
const ADOPTIONS: usize = 16_384;
/// How many bytes of announces and hashes may wait for the disk at once.
const ADOPTION_BYTES: usize = 32 << 20;
/// How many unwanted bundles are remembered.
const MAX_SPURNED: usize = 4_096;

/// All bundles in reception, and what the data plane must be told about them.
#[derive(Default)]
pub struct Reception {
    bundles: BTreeMap<BundleId, Live>,
    /// When the last block came, in Unix milliseconds, for each bundle in staging that nobody signed for.
    unsigned: BTreeMap<BundleId, u64>,
    spurned: Spurned,
    /// Bundles of which something was given up. The data plane has not been told yet.
    lost: BTreeMap<BundleId, Lost>,
    /// Bundles that somebody signed for. The data plane has not been told yet.
    vouched: Vec<BundleId>,
    /// Bundles in the inbox whose staging is removed once the ledger says that they are published.
    published: Vec<BundleId>,
    adoptions: Arc<Adoptions>,
}

/// A bundle in reception of which an announce, hashes or a beacon came.
#[derive(Default)]
pub struct Live {
    /// Its announce was accepted.
    pub announced: bool,
    /// Its hashes came.
    pub hashes: bool,
    /// The hashes came while the announce was not in memory. They must still be checked against it, and may be a withdrawal.
    pub unjudged: bool,
    /// Length of its data object, once announced.
    pub data_len: u64,
    /// OTI of its data object, as announced; None where it has no data.
    pub oti: Option<Oti>,
    /// The announce, until the disk has it.
    pub adopting: Option<Adoption>,
    /// The hashes, until the disk has them.
    pub pending_hashes: Option<PendingHashes>,
    /// When the last block came, in Unix milliseconds; 0: none since the start.
    pub last_ms: u64,
    /// How far the data plane is with its data.
    pub progress: Option<ObjectProgress>,
    /// Why it could not be stored or published, for people.
    pub trouble: Option<String>,
    /// Not tried again before this, in Unix milliseconds.
    pub retry_ms: u64,
    /// Bytes that arrived spoilt, until a ticket has asked for them or they are right.
    pub spoilt: Vec<Range<u64>>,
    /// Discard whatever came for the spoilt bytes since then once nothing more comes.
    pub clear: bool,
    /// It is on its way into the inbox: nothing ends it before it is there.
    pub publishing: bool,
}

/// An announce that was admitted, and its signed bytes.
#[derive(Clone)]
pub struct Adoption {
    /// The announce.
    pub announce: Arc<Announce>,
    /// Its signed bytes.
    pub bytes: Arc<Vec<u8>>,
    _place: Arc<AdoptionPlace>,
}

/// Hashes that were admitted.
#[derive(Clone)]
pub struct PendingHashes {
    /// Their signed bytes.
    pub bytes: Arc<Vec<u8>>,
    _place: Arc<AdoptionPlace>,
}

/// Counts the announces and hashes that wait for the disk, and their bytes.
#[derive(Default)]
struct Adoptions {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

/// The room that an announce or hashes take while they wait for the disk. Dropping this frees it.
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

    /// A bundle that somebody signed for, to change it.
    pub fn get_mut(&mut self, id: BundleId) -> Option<&mut Live> {
        self.bundles.get_mut(&id)
    }

    /// A bundle that somebody signed for; added if it is new.
    pub fn entry(&mut self, id: BundleId) -> &mut Live {
        self.bundles.entry(id).or_default()
    }

    /// All bundles that somebody signed for, in the order of their ids, so that a simulated run replays.
    pub fn iter(&self) -> impl Iterator<Item = (BundleId, &Live)> {
        self.bundles.iter().map(|(&id, live)| (id, live))
    }

    /// All bundles that somebody signed for, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Live> {
        self.bundles.values_mut()
    }

    /// Removes a bundle that is no longer received.
    pub fn remove(&mut self, id: BundleId) {
        self.bundles.remove(&id);
        self.unsigned.remove(&id);
    }

    /// Notes that a bundle is in the inbox while the ledger cannot be saved. Staging keeps its files, so that the next start can
    /// update the ledger.
    pub fn published_untold(&mut self, id: BundleId) {
        self.bundles.remove(&id);
        self.published.push(id);
    }

    /// Whether any published bundle waits for the ledger to be saved.
    #[must_use]
    pub fn has_untold(&self) -> bool {
        !self.published.is_empty()
    }

    /// Takes the published bundles out after the ledger was saved. Their staging can be removed.
    pub fn take_told(&mut self) -> Vec<BundleId> {
        std::mem::take(&mut self.published)
    }

    /// When the last block came of a bundle that nobody signed for.
    #[must_use]
    pub fn unsigned(&self, id: BundleId) -> Option<u64> {
        self.unsigned.get(&id).copied()
    }

    /// Notes that staging has something of an unsigned bundle, unless its announce has come meanwhile.
    pub fn set_unsigned(&mut self, id: BundleId, now_ms: u64) {
        if self.bundles.get(&id).is_none_or(|live| !live.announced) {
            self.unsigned.insert(id, now_ms);
        }
    }

    /// Notes that staging has something of an unsigned bundle, unless that is known already.
    pub fn ensure_unsigned(&mut self, id: BundleId, now_ms: u64) {
        self.unsigned.entry(id).or_insert(now_ms);
    }

    /// Notes that a block of an unsigned bundle came.
    pub fn touch_unsigned(&mut self, id: BundleId, now_ms: u64) {
        if let Some(last_ms) = self.unsigned.get_mut(&id) {
            *last_ms = now_ms;
        }
    }

    /// Removes a bundle from the unsigned ones. Returns whether it was one of them.
    pub fn take_unsigned(&mut self, id: BundleId) -> bool {
        self.unsigned.remove(&id).is_some()
    }

    /// The unsigned bundle that has been silent for longest, and since when.
    #[must_use]
    pub fn most_silent(&self) -> Option<(BundleId, u64)> {
        self.unsigned.iter().min_by_key(|(_, last)| **last).map(|(&id, &last)| (id, last))
    }

    /// The unsigned bundles that have been silent since `before_ms` or longer.
    #[must_use]
    pub fn silent_since(&self, before_ms: u64) -> Vec<BundleId> {
        self.unsigned.iter().filter(|(_, last)| **last <= before_ms).map(|(&id, _)| id).collect()
    }

    /// Marks a bundle that the ledger does not know as unwanted.
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

    /// Makes an unwanted bundle wanted again.
    pub fn unspurn(&mut self, id: BundleId) {
        let Spurned { set, order } = &mut self.spurned;
        if set.remove(&id) {
            order.retain(|other| *other != id);
        }
    }

    /// Whether a bundle was marked as unwanted.
    #[must_use]
    pub fn is_spurned(&self, id: BundleId) -> bool {
        self.spurned.set.contains(&id)
    }

    /// Notes that something of a bundle was given up. The data plane must be told.
    pub fn lose(&mut self, id: BundleId, what: Lost) {
        let known = self.lost.entry(id).or_insert(what);
        *known = what.max(*known);
    }

    /// What was given up since the last call. Also clears the progress of these bundles, which is no longer right.
    pub fn take_lost(&mut self) -> Vec<(BundleId, Lost)> {
        let lost = std::mem::take(&mut self.lost);
        for id in lost.keys() {
            if let Some(live) = self.bundles.get_mut(id) {
                live.progress = None;
            }
        }
        lost.into_iter().collect()
    }

    /// Notes that somebody signed for a bundle. The data plane must be told.
    pub fn vouch(&mut self, id: BundleId) {
        self.unsigned.remove(&id);
        self.vouched.push(id);
    }

    /// The bundles that somebody signed for since the last call.
    pub fn take_vouched(&mut self) -> Vec<BundleId> {
        std::mem::take(&mut self.vouched)
    }

    /// Room in memory for an announce or hashes of this size. None: too many already wait for the disk.
    #[must_use]
    pub fn place(&self, bytes: usize) -> Option<AdoptionPlace> {
        AdoptionPlace::take(&self.adoptions, bytes)
    }

    /// Bundles whose announce or hashes wait for the disk.
    #[must_use]
    pub fn waiting_for_disk(&self) -> Vec<BundleId> {
        let waits = |live: &Live| live.adopting.is_some() || live.pending_hashes.is_some();
        self.iter().filter(|(_, live)| waits(live)).map(|(id, _)| id).collect()
    }

    /// Handles a clock that was set back to `now_ms`: no time may lie after it.
    pub(super) fn clock_went_back(&mut self, now_ms: u64) {
        for live in self.bundles.values_mut() {
            live.last_ms = live.last_ms.min(now_ms);
            live.retry_ms = live.retry_ms.min(now_ms);
        }
        self.unsigned.values_mut().for_each(|last| *last = now_ms.min(*last));
    }
}

impl Live {
    /// The progress of its data. None if its length differs from the announced one: it then belongs to another object.
    #[must_use]
    pub fn progress_of(&self, entry: &Entry) -> Option<ObjectProgress> {
        self.progress.filter(|progress| entry.channel.is_none() || progress.length == entry.bytes)
    }
}

impl Adoption {
    /// An announce that waits for the disk, and takes up `place`.
    #[must_use]
    pub fn new(announce: Announce, bytes: &[u8], place: AdoptionPlace) -> Self {
        Self { announce: Arc::new(announce), bytes: Arc::new(bytes.to_vec()), _place: Arc::new(place) }
    }
}

impl PendingHashes {
    /// Hashes that wait for the disk, and take up `place`.
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
