//! Who gets a processor when there are too few: receiving goes before storing, and both before everybody else. What a thread
//! is too late to receive is lost, and what is not stored fills memory until the same is true of it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// Of the threads that receive, and of those that store (nice(2)).
const NICENESS: [i32; 2] = [-15, -10];
/// A thread leaves a processor at most this often, so that one that always finds the others taken does not wander.
const SETTLE: Duration = Duration::from_millis(5);

/// Where the threads that receive are.
pub(super) struct Cores {
    lanes: Vec<AtomicUsize>,
}

impl Cores {
    pub(super) fn new(lanes: usize) -> Self {
        Self { lanes: (0..lanes).map(|_| AtomicUsize::new(usize::MAX)).collect() }
    }

    /// The calling thread receives on this lane.
    pub(super) fn receives(&self, lane: usize) {
        go_first(NICENESS[0]);
        self.is_at(lane);
    }

    /// The lane's thread is where it is now.
    pub(super) fn is_at(&self, lane: usize) {
        if let Some(at) = self.lanes.get(lane) {
            at.store(sched_getcpu(), Ordering::Relaxed);
        }
    }

    /// The calling thread stores. Returns what [`Cores::keep_apart`] is to be given: when it left a processor last.
    pub(super) fn stores() -> Instant {
        go_first(NICENESS[1]);
        Instant::now()
    }

    /// Blocks wait to be stored: moves this thread from a processor that a lane's thread is on to one without such a
    /// thread, if there is any. The scheduler balances the number or the weight of threads, so it may leave two of ours
    /// on one processor while two of another program have the other. Storing then gets only the time that receiving
    /// leaves, the sender does not slow down, and memory fills up. Returns whether the thread moved.
    pub(super) fn keep_apart(&self, left: &mut Instant) -> bool {
        let taken = |cpu: usize| self.lanes.iter().any(|lane| lane.load(Ordering::Relaxed) == cpu);
        if !taken(sched_getcpu()) || left.elapsed() < SETTLE {
            return false;
        }
        *left = Instant::now();
        let Ok(allowed) = sched_getaffinity(None) else { return false };
        let mut free = allowed;
        (0..CpuSet::MAX_CPU).filter(|&cpu| taken(cpu)).for_each(|cpu| free.unset(cpu));
        // Moved there, and from then on where the scheduler likes.
        free.count() > 0 && sched_setaffinity(None, &free).is_ok() && sched_setaffinity(None, &allowed).is_ok()
    }
}

/// Lets this thread go before others where that is allowed.
fn go_first(niceness: i32) {
    if let Err(error) = rustix::process::setpriority_process(None, niceness) {
        tracing::debug!(%error, "this thread has no more right to the processor than others");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_stores_leaves_the_processor_of_one_that_receives() {
        let allowed = sched_getaffinity(None).unwrap();
        let cores = Cores::new(1);
        let long_ago = || Instant::now().checked_sub(SETTLE).unwrap();
        assert!(!cores.keep_apart(&mut long_ago()), "no lane is anywhere yet");
        // The scheduler may move this thread at any time.
        let moved = (0..1_000).any(|_| {
            cores.is_at(0);
            // However long this thread waits for a processor meanwhile.
            assert!(!cores.keep_apart(&mut (Instant::now() + Duration::from_secs(3_600))), "it has just left one");
            cores.is_at(0);
            cores.keep_apart(&mut long_ago())
        });
        assert_eq!(moved, allowed.count() > 1);
        assert_eq!(sched_getaffinity(None).unwrap(), allowed, "it may still be where it could be before");
    }
}
