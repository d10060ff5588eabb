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

/// What a thread that stores knows of its own place.
pub(super) struct Place {
    /// Where it may be at all; None where it has no choice.
    allowed: Option<CpuSet>,
    left: Instant,
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

    /// The calling thread stores.
    pub(super) fn stores(&self) -> Place {
        go_first(NICENESS[1]);
        let allowed = sched_getaffinity(None).ok().filter(|set| set.count() > 1);
        Place { allowed, left: Instant::now() }
    }

    /// Blocks wait to be stored: leaves a processor that a lane's thread is on for one where none is. The scheduler counts
    /// threads, or their weight, and leaves two of ours on one processor while two of somebody else have the other; then
    /// storing gets what receiving leaves, the other side of the link does not, and memory runs full.
    pub(super) fn keep_apart(&self, place: &mut Place) {
        let Some(allowed) = &place.allowed else { return };
        let taken = |cpu: usize| self.lanes.iter().any(|lane| lane.load(Ordering::Relaxed) == cpu);
        if !taken(sched_getcpu()) || place.left.elapsed() < SETTLE {
            return;
        }
        place.left = Instant::now();
        let mut free = *allowed;
        for lane in &self.lanes {
            let cpu = lane.load(Ordering::Relaxed);
            if cpu < CpuSet::MAX_CPU {
                free.unset(cpu);
            }
        }
        // Moved there, and from then on where the scheduler likes.
        if free.count() > 0 && sched_setaffinity(None, &free).is_ok() {
            let _ = sched_setaffinity(None, allowed);
        }
    }
}

/// Lets this thread go before others where that is allowed.
fn go_first(niceness: i32) {
    if let Err(error) = rustix::process::setpriority_process(None, niceness) {
        tracing::debug!(%error, "this thread has no more right to the processor than others");
    }
}
