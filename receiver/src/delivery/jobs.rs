//! A queue of jobs that may take long, for several threads. Only one thread works on a bundle at a time, so that no
//! thread waits for another while other bundles have work to do.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use checkvalve_protocol::id::BundleId;

/// A piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Job {
    Advance(BundleId),
    Checkpoint,
    /// What came since content was found to be spoilt.
    Clear(BundleId),
}

/// What is to be done.
#[derive(Default)]
pub(super) struct Jobs {
    queue: Mutex<Queue>,
    more: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    /// Bundles of which a thread has a piece.
    busy: Vec<BundleId>,
}

/// A piece that a thread has, until this is dropped.
pub(super) struct Taken<'a> {
    pub(super) job: Job,
    jobs: &'a Jobs,
}

impl Job {
    fn bundle(self) -> Option<BundleId> {
        match self {
            Self::Advance(id) | Self::Clear(id) => Some(id),
            Self::Checkpoint => None,
        }
    }
}

impl Jobs {
    /// Adds a piece, unless it waits already.
    pub(super) fn push(&self, job: Job) {
        let mut queue = self.lock();
        if !queue.waiting.contains(&job) {
            queue.waiting.push_back(job);
        }
        drop(queue);
        self.more.notify_one();
    }

    /// Waits until there is a piece to be had, or `timeout` is over. Whether there is one.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let waited = self.more.wait_timeout_while(self.lock(), timeout, |queue| queue.next().is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.next().is_some()
    }

    /// The oldest piece that no other thread stands in the way of.
    pub(super) fn take(&self) -> Option<Taken<'_>> {
        let mut queue = self.lock();
        let job = queue.next().and_then(|at| queue.waiting.remove(at))?;
        queue.busy.extend(job.bundle());
        Some(Taken { job, jobs: self })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn next(&self) -> Option<usize> {
        self.waiting.iter().position(|job| job.bundle().is_none_or(|id| !self.busy.contains(&id)))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let Some(bundle) = self.job.bundle() else { return };
        let mut queue = self.jobs.lock();
        queue.busy.retain(|id| *id != bundle);
        let waits = queue.waiting.iter().any(|job| job.bundle() == Some(bundle));
        drop(queue);
        if waits {
            self.jobs.more.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: BundleId = BundleId(1);
    const TWO: BundleId = BundleId(2);

    #[test]
    fn a_thread_does_not_wait_for_one_that_has_the_same_bundle() {
        let jobs = Jobs::default();
        for job in [Job::Advance(ONE), Job::Advance(ONE), Job::Clear(ONE), Job::Advance(TWO), Job::Checkpoint] {
            jobs.push(job);
        }
        let first = jobs.take().unwrap();
        assert_eq!(first.job, Job::Advance(ONE));
        // While it is at it, the same comes up again.
        jobs.push(Job::Advance(ONE));
        let second = jobs.take().unwrap();
        assert_eq!(second.job, Job::Advance(TWO));
        assert_eq!(jobs.take().map(|taken| taken.job), Some(Job::Checkpoint));
        assert!(jobs.take().is_none() && !jobs.wait(Duration::from_millis(1)));
        drop(first);
        assert!(jobs.wait(Duration::ZERO));
        for job in [Job::Clear(ONE), Job::Advance(ONE)] {
            assert_eq!(jobs.take().map(|taken| taken.job), Some(job));
        }
        assert!(jobs.take().is_none());
    }

    #[test]
    fn whoever_waits_is_woken_when_a_bundle_is_free_again() {
        let jobs = Jobs::default();
        jobs.push(Job::Advance(ONE));
        let first = jobs.take().unwrap();
        jobs.push(Job::Clear(ONE));
        let started = std::time::Instant::now();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| jobs.wait(Duration::from_secs(60)));
            std::thread::sleep(Duration::from_millis(20));
            drop(first);
            assert!(waits.join().unwrap());
        });
        assert!(started.elapsed() < Duration::from_secs(30), "it was woken, it did not look by itself");
    }
}
