//! Finds the names in the spool whose turn it is without visiting all of them.

use std::collections::BTreeSet;

/// Names by the time to look at them and, once that time has come, by turn. The number of its turn stands for a name.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct Turns {
    by_time: BTreeSet<(u64, u64)>,
    /// Names whose time had come at `now_ms`.
    due: BTreeSet<u64>,
    now_ms: u64,
    /// How many names [`Turns::due`] visited.
    #[cfg(test)]
    visits: Visits,
}

/// A count that comparisons ignore.
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
        assert!(self.by_time.remove(&(at_ms, order)), "a name is removed with the time it was inserted with");
        self.due.remove(&order);
    }

    /// Sets the time to `now_ms`, from a clock that never goes back.
    pub(super) fn advance_to(&mut self, now_ms: u64) {
        if now_ms > self.now_ms {
            let come = self.by_time.range((self.now_ms + 1, 0)..=(now_ms, u64::MAX));
            self.due.extend(come.map(|&(_, order)| order));
            self.now_ms = now_ms;
        }
    }

    /// Names whose time has come, in the order of their turns.
    pub(super) fn due(&self) -> impl Iterator<Item = u64> {
        self.due.iter().copied().inspect(|_| {
            #[cfg(test)]
            self.visits.0.set(self.visits.0.get() + 1);
        })
    }

    /// How many names [`Turns::due`] visited.
    #[cfg(test)]
    pub(super) fn visited(&self) -> usize {
        self.visits.0.get()
    }

    /// When the next name is due, or was.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.by_time.first().map(|&(at_ms, _)| at_ms)
    }

    /// Empty turns with the same time.
    #[cfg(test)]
    pub(super) fn emptied(&self) -> Self {
        Self { now_ms: self.now_ms, ..Self::default() }
    }
}
