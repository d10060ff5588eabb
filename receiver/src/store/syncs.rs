//! Syncs that run at the same time. The kernel reports each error only once, to whichever thread syncs first. A thread
//! whose sync runs beside a failed one gets no error, and must not publish before the other thread has recorded what is
//! lost.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};

/// The syncs that are under way.
#[derive(Default)]
pub struct Syncs {
    running: Mutex<(u64, BTreeSet<u64>)>,
    ended: Condvar,
}

/// One of them, until what it lost is given up.
pub struct Sync<'a> {
    all: &'a Syncs,
    number: u64,
}

impl Syncs {
    /// A sync begins.
    pub fn begin(&self) -> Sync<'_> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let number = running.0;
        running.0 += 1;
        running.1.insert(number);
        Sync { all: self, number }
    }
}

impl Sync<'_> {
    /// It was good. Waits until those have ended that ran beside it.
    pub fn good(self) {
        let all = self.all;
        drop(self);
        let mut running = all.running.lock().unwrap_or_else(PoisonError::into_inner);
        let beside = running.1.clone();
        while !running.1.is_disjoint(&beside) {
            running = all.ended.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Sync<'_> {
    fn drop(&mut self) {
        self.all.running.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&self.number);
        self.all.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_good_sync_waits_for_what_ran_beside_it_and_for_nothing_later() {
        let (syncs, lost) = (Syncs::default(), AtomicBool::new(false));
        let beside = syncs.begin();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                syncs.begin().good();
                lost.load(Ordering::SeqCst)
            });
            std::thread::sleep(Duration::from_millis(50));
            assert!(!waits.is_finished());
            let _later = syncs.begin();
            lost.store(true, Ordering::SeqCst);
            drop(beside);
            assert!(waits.join().unwrap(), "it knows what was lost");
        });
        syncs.begin().good();
    }
}
