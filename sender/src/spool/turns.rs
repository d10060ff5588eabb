//! Whose turn it is among the names in the spool, without going through all of them.

use std::collections::BTreeSet;

/// Names by when to look at them, and by their turns once that has come. A name is here by the number of its turn.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct Turns {
    by_time: BTreeSet<(u64, u64)>,
    /// Those whose time had come at `now_ms`.
    due: BTreeSet<u64>,
    now_ms: u64,
    /// Names that [`Turns::due`] went through.
    #[cfg(test)]
    visits: Visits,
}

/// A count that makes no two things differ.
#[cfg(test)]
#[derive(Default, Debug)]
struct Visits(std::cell::Cell<usize>);

#[cfg(test)]
impl PartialEq for Visits {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

#[cfg(test)]
impl Eq for Visits {}

impl Turns {
    pub(super) fn insert(&mut self, at_ms: u64, order: u64) {
        assert!(self.by_time.insert((at_ms, order)), "a name has one turn");
        if at_ms <= self.now_ms {
            self.due.insert(order);
        }
    }

    pub(super) fn remove(&mut self, at_ms: u64, order: u64) {
        assert!(self.by_time.remove(&(at_ms, order)), "a name is taken out as it was put in");
        self.due.remove(&order);
    }

    /// The time is `now_ms`, of a clock that never goes back.
    pub(super) fn advance_to(&mut self, now_ms: u64) {
        if now_ms > self.now_ms {
            let come = self.by_time.range((self.now_ms + 1, 0)..=(now_ms, u64::MAX));
            self.due.extend(come.map(|&(_, order)| order));
            self.now_ms = now_ms;
        }
    }

    /// Those whose time has come, in turn.
    pub(super) fn due(&self) -> impl Iterator<Item = u64> {
        self.due.iter().copied().inspect(|_| {
            #[cfg(test)]
            self.visits.0.set(self.visits.0.get() + 1);
        })
    }

    /// How many names [`Turns::due`] went through.
    #[cfg(test)]
    pub(super) fn visited(&self) -> usize {
        self.visits.0.get()
    }

    /// When the time of the next one comes, or came.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.by_time.first().map(|&(at_ms, _)| at_ms)
    }

    /// An empty one at the same time.
    #[cfg(test)]
    pub(super) fn emptied(&self) -> Self {
        Self { now_ms: self.now_ms, ..Self::default() }
    }
}
