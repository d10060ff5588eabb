//! Small things that several parts share. None of them calls another part, and none keeps its lock while others run.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use checkvalve_host::disk::Disk;
use checkvalve_protocol::admit::Trust;
use checkvalve_protocol::id::ChannelName;

use super::Policy;

/// The time that was told last, in Unix milliseconds.
pub(super) struct Clock(AtomicU64);

/// Who is trusted now.
#[derive(Default)]
pub(super) struct CurrentTrust(RwLock<Arc<Trust>>);

/// What is done with the bundles of each channel.
pub(super) struct Policies(pub(super) BTreeMap<ChannelName, Policy>);

/// Tells whoever runs hooks that one may have become due.
#[derive(Default)]
pub(super) struct Waker(OnceLock<Box<dyn Fn() + Send + Sync>>);

/// Signed objects and beacons that changed nothing, by the rule that they broke.
#[derive(Default)]
pub(super) struct Discards(Mutex<BTreeMap<&'static str, u64>>);

impl Clock {
    pub(super) fn new(now_ms: u64) -> Self {
        Self(AtomicU64::new(now_ms))
    }

    pub(super) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// True: the clock went back.
    pub(super) fn set(&self, now_ms: u64) -> bool {
        now_ms < self.0.swap(now_ms, Ordering::Relaxed)
    }
}

impl CurrentTrust {
    pub(super) fn get(&self) -> Arc<Trust> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set(&self, trust: Trust) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(trust);
    }
}

impl Policies {
    pub(super) fn get(&self, channel: &ChannelName) -> Policy {
        self.0.get(channel).cloned().unwrap_or_default()
    }

    pub(super) fn has_hook(&self, channel: &ChannelName) -> bool {
        self.0.get(channel).is_some_and(|policy| policy.hook.is_some())
    }
}

impl Waker {
    pub(super) fn set(&self, wake: Box<dyn Fn() + Send + Sync>) {
        drop(self.0.set(wake));
    }

    pub(super) fn wake(&self) {
        if let Some(wake) = self.0.get() {
            wake();
        }
    }
}

impl Discards {
    pub(super) fn add(&self, rule: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(rule).or_default();
        *count = count.saturating_add(1);
    }

    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(&rule, &count)| (rule.to_owned(), count)).collect()
    }
}

pub(super) fn is_missing(disk: &dyn Disk, path: &Path) -> io::Result<bool> {
    match disk.lstat(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        other => other.map(|_| false),
    }
}
