//! How much staging may still take: the disk less its reserve, and `quota`.

use std::sync::atomic::{AtomicU64, Ordering};

/// Room in staging. What is free is asked of the disk now and then, and counted down in between.
pub struct Space {
    /// Bytes of the disk that are left alone.
    reserve: u64,
    /// Most bytes in staging.
    quota: u64,
    staged: AtomicU64,
    free: AtomicU64,
}

impl Space {
    /// `reserve` and `quota` in bytes.
    #[must_use]
    pub fn new(reserve: u64, quota: u64) -> Self {
        Self { reserve, quota, staged: AtomicU64::new(0), free: AtomicU64::new(0) }
    }

    /// The disk has `free` bytes.
    pub fn refresh(&self, free: u64) {
        self.free.store(free, Ordering::Relaxed);
    }

    /// Whether `bytes` more would fit.
    #[must_use]
    pub fn fits(&self, bytes: u64) -> bool {
        let staged = self.staged.load(Ordering::Relaxed);
        self.free.load(Ordering::Relaxed) >= self.reserve.saturating_add(bytes)
            && staged.saturating_add(bytes) <= self.quota
    }

    /// Counts `bytes` as staged.
    pub fn take(&self, bytes: u64) {
        self.staged.fetch_add(bytes, Ordering::Relaxed);
        let less = |free: u64| Some(free.saturating_sub(bytes));
        _ = self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// `bytes` are not staged any more. What that frees shows when the disk is asked again.
    pub fn give_back(&self, bytes: u64) {
        let less = |staged: u64| Some(staged.saturating_sub(bytes));
        _ = self.staged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Bytes in staging.
    #[must_use]
    pub fn staged(&self) -> u64 {
        self.staged.load(Ordering::Relaxed)
    }

    /// Bytes that the disk has, its reserve included, as of the last time it was asked.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }
}
