//! Announces and hashes that were admitted and wait for the disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use checkvalve_protocol::manifest::Announce;

/// Announces that wait for the disk at once; those of more bundles have to come again.
const ADOPTIONS: usize = 16_384;
/// Bytes of them.
const ADOPTION_BYTES: usize = 32 << 20;

/// An announce that was admitted, and its signed bytes.
#[derive(Clone)]
pub(super) struct Adoption {
    pub announce: Arc<Announce>,
    pub bytes: Arc<Vec<u8>>,
    pub _place: Arc<AdoptionPlace>,
}

/// Hashes that were admitted.
#[derive(Clone)]
pub(super) struct PendingHashes {
    pub bytes: Arc<Vec<u8>>,
    pub _place: Arc<AdoptionPlace>,
}

/// Announces and hashes that wait for the disk, and their bytes.
#[derive(Default)]
pub(super) struct Adoptions {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

/// One of them, until it is dropped.
pub(super) struct AdoptionPlace(Arc<Adoptions>, usize);

impl AdoptionPlace {
    /// None: there are too many.
    pub(super) fn take(adoptions: &Arc<Adoptions>, bytes: usize) -> Option<Self> {
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
