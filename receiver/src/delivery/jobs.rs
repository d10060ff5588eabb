//! Jobs that may take long, for several threads. Only one thread works on a bundle at a time, so that no thread waits for
//! another while other bundles have work to do.
//!
//! Keys take turns, each with one bundle, and so do they with the checkpoint: a bundle waits for those of its own key, and
//! for one of every other. No key ever has all threads, so that a short job goes on beside the long ones of another key.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use checkvalve_protocol::id::{BundleId, KeyTag};

/// How many threads take jobs.
pub const THREADS: usize = 3;
/// How many of them may work for one key.
const OF_ONE_KEY: usize = THREADS - 1;

/// A piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Job {
    Advance(BundleId),
    Checkpoint,
    /// What came since content was found to be spoilt.
    Clear(BundleId),
}

/// The bundle that a job is for; none: the checkpoint.
type Subject = Option<BundleId>;
/// The key of that bundle.
type Turn = Option<KeyTag>;

/// What is to be done.
#[derive(Default)]
pub(super) struct Jobs {
    queue: Mutex<Queue>,
    more: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Those that have something to take, the next one first.
    turns: VecDeque<Turn>,
    of: HashMap<Turn, OfKey>,
    subjects: HashMap<Subject, OfSubject>,
}

#[derive(Default)]
struct OfKey {
    /// Those that have jobs and of which no thread has one, the oldest first.
    free: VecDeque<Subject>,
    /// Threads that work for it.
    threads: usize,
    /// Whether it is among the turns.
    in_turns: bool,
}

/// At least one job, or a thread has one.
#[derive(Default)]
struct OfSubject {
    jobs: VecDeque<Job>,
    taken: bool,
}

/// A piece that a thread has, until this is dropped.
pub(super) struct Taken<'a> {
    pub(super) job: Job,
    jobs: &'a Jobs,
}

impl Job {
    fn subject(self) -> Subject {
        match self {
            Self::Advance(id) | Self::Clear(id) => Some(id),
            Self::Checkpoint => None,
        }
    }
}

impl Jobs {
    /// Adds a piece, unless it waits already.
    pub(super) fn push(&self, job: Job) {
        self.lock().push(job);
        self.more.notify_one();
    }

    /// Waits until there is a piece to be had, or `timeout` is over. Whether there is one.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let waited = self.more.wait_timeout_while(self.lock(), timeout, |queue| queue.turns.is_empty());
        !waited.unwrap_or_else(PoisonError::into_inner).0.turns.is_empty()
    }

    /// The oldest piece of the key whose turn it is that no other thread stands in the way of.
    pub(super) fn take(&self) -> Option<Taken<'_>> {
        let job = self.lock().take()?;
        Some(Taken { job, jobs: self })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, job: Job) {
        let subject = job.subject();
        let waiting = self.subjects.entry(subject).or_default();
        if waiting.jobs.contains(&job) {
            return; // of a subject there are two at most
        }
        waiting.jobs.push_back(job);
        if waiting.jobs.len() == 1 && !waiting.taken {
            self.free(subject);
        }
    }

    fn take(&mut self) -> Option<Job> {
        let turn = self.turns.pop_front()?;
        let of = self.of.get_mut(&turn)?;
        of.in_turns = false;
        let subject = of.free.pop_front()?;
        of.threads += 1;
        self.give_turn(turn);
        let waiting = self.subjects.get_mut(&subject)?;
        waiting.taken = true;
        waiting.jobs.pop_front()
    }

    /// A thread has done a job of `subject`.
    fn done(&mut self, subject: Subject) {
        let turn = turn(subject);
        if let Some(of) = self.of.get_mut(&turn) {
            of.threads -= 1;
        }
        if let Some(waiting) = self.subjects.get_mut(&subject) {
            waiting.taken = false;
            match waiting.jobs.is_empty() {
                true => drop(self.subjects.remove(&subject)),
                false => self.free(subject),
            }
        }
        self.give_turn(turn);
        if self.of.get(&turn).is_some_and(|of| of.threads == 0 && of.free.is_empty()) {
            self.of.remove(&turn);
        }
    }

    /// A subject has jobs, and no thread has one of them.
    fn free(&mut self, subject: Subject) {
        let turn = turn(subject);
        self.of.entry(turn).or_default().free.push_back(subject);
        self.give_turn(turn);
    }

    /// A turn for whoever has something to take and has none yet, after all others.
    fn give_turn(&mut self, turn: Turn) {
        let Some(of) = self.of.get_mut(&turn) else { return };
        if !of.in_turns && !of.free.is_empty() && of.threads < OF_ONE_KEY {
            of.in_turns = true;
            self.turns.push_back(turn);
        }
    }
}

fn turn(subject: Subject) -> Turn {
    subject.map(BundleId::tag)
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut queue = self.jobs.lock();
        queue.done(self.job.subject());
        let more = !queue.turns.is_empty();
        drop(queue);
        if more {
            self.jobs.more.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: BundleId = BundleId(1);
    const TWO: BundleId = BundleId(1 << 24 | 1);

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
        assert_eq!(jobs.take().map(|taken| taken.job), Some(Job::Checkpoint), "it has a turn of its own");
        assert_eq!(jobs.take().map(|taken| taken.job), Some(Job::Advance(TWO)));
        assert!(jobs.take().is_none() && !jobs.wait(Duration::from_millis(1)));
        drop(first);
        assert!(jobs.wait(Duration::ZERO));
        for job in [Job::Clear(ONE), Job::Advance(ONE)] {
            assert_eq!(jobs.take().map(|taken| taken.job), Some(job));
        }
        assert!(jobs.take().is_none());
        let queue = jobs.lock();
        assert!(queue.of.is_empty() && queue.subjects.is_empty() && queue.turns.is_empty(), "nothing is left behind");
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

    /// Bundle `n` of a key.
    fn of(key: u64, n: u64) -> Job {
        Job::Advance(BundleId(n << 24 | key))
    }

    #[test]
    fn keys_take_turns() {
        let jobs = Jobs::default();
        for n in 0..100 {
            jobs.push(of(1, n));
        }
        for job in [of(2, 0), of(2, 1), of(3, 0), Job::Checkpoint] {
            jobs.push(job);
        }
        let order: Vec<Job> = std::iter::from_fn(|| jobs.take().map(|taken| taken.job)).collect();
        let first = [of(1, 0), of(2, 0), of(3, 0), Job::Checkpoint, of(1, 1), of(2, 1), of(1, 2), of(1, 3)];
        assert_eq!(order[..8], first);
        assert_eq!(order.len(), 104);
    }

    #[test]
    fn one_key_never_has_all_threads() {
        let jobs = Jobs::default();
        for n in 0..9 {
            jobs.push(of(1, n));
        }
        let mut long: Vec<_> = std::iter::from_fn(|| jobs.take()).collect();
        assert_eq!(long.len(), THREADS - 1);
        assert!(!jobs.wait(Duration::ZERO));
        jobs.push(of(2, 0));
        assert!(jobs.wait(Duration::ZERO));
        assert_eq!(jobs.take().map(|taken| taken.job), Some(of(2, 0)), "at once");
        assert!(jobs.take().is_none());
        long.pop();
        assert_eq!(jobs.take().map(|taken| taken.job), Some(of(1, 2)));
    }
}
