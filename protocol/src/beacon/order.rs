//! Which beacons of a key are news, and what those are that are not: SPEC.md, "Epochs and sessions".

use serde::{Deserialize, Serialize};

use super::{Beacon, Epoch};
use crate::id::SessionId;

/// Sessions before the newest whose ids are kept.
pub const KEPT_SESSIONS: usize = 16;
/// Sessions that do not count, or no longer count, whose highest beacon counter is kept.
pub const KEPT_ASIDE: usize = 32;

/// What is known of the sender that has a key. Outlives restarts: it is encoded as it is here, in records of the receiver that
/// have a version of their own. Another layout is another version of those.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    epoch: Epoch,
    newest: KnownSession,
    /// Oldest first.
    earlier: Vec<KnownSession>,
    /// The sender's clock when the newest session was first heard of.
    since_ms: u64,
    /// Sessions of other epochs, and sessions whose number another session has. Oldest first.
    aside: Vec<(Epoch, KnownSession)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KnownSession {
    number: u64,
    id: SessionId,
    /// The highest of a beacon.
    counter: u64,
}

/// What a beacon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// The newest of its session.
    News,
    /// The first of a session.
    NewSession,
    /// The first of an epoch.
    NewEpoch,
    /// It came before, or others that are newer did.
    Repeated,
    /// Of an epoch that is over: a sender goes on that was replaced.
    OldEpoch,
    /// Of another state with the same epoch number: the sender's state was lost, or made anew elsewhere.
    AnotherState,
    /// Of a session whose number another has: an older copy of the state came back, or two senders have one key.
    ReusedSession,
    /// Of a session that was followed by another and goes on: two senders have one key.
    LateSession,
}

impl Known {
    /// What is known after the first beacon of a key.
    #[must_use]
    pub fn first(beacon: &Beacon) -> Self {
        Self {
            epoch: beacon.epoch,
            newest: KnownSession::of(beacon),
            earlier: Vec::new(),
            since_ms: beacon.clock_ms,
            aside: Vec::new(),
        }
    }

    /// Takes a beacon that the key signed, and says what it is. Only a beacon for which [`Order::is_news`] is true may
    /// change anything else. A beacon that does not count is reported as more than [`Order::Repeated`] only if it is
    /// newer than everything that came of its session, and was signed after the newest session began: so recordings
    /// raise no alarm.
    pub fn take(&mut self, beacon: &Beacon) -> Order {
        let order = self.order(beacon);
        if !order.is_news() && beacon.clock_ms < self.since_ms {
            return Order::Repeated;
        }
        match order {
            Order::News => self.newest.counter = beacon.counter,
            Order::NewSession => {
                if self.earlier.len() >= KEPT_SESSIONS {
                    self.earlier.remove(0);
                }
                self.earlier.push(std::mem::replace(&mut self.newest, KnownSession::of(beacon)));
                self.since_ms = beacon.clock_ms;
            }
            Order::NewEpoch => {
                let last = std::mem::replace(self, Self::first(beacon));
                let over = last.earlier.into_iter().chain([last.newest]).map(|session| (last.epoch, session));
                self.aside = last.aside.into_iter().chain(over).collect();
                self.trim();
            }
            // So that it is late only once.
            Order::LateSession => {
                let late = self.earlier.iter_mut().find(|session| session.number == beacon.session_number);
                if let Some(late) = late {
                    late.counter = beacon.counter;
                }
            }
            Order::OldEpoch | Order::AnotherState | Order::ReusedSession if !self.is_news_aside(beacon) => {
                return Order::Repeated;
            }
            Order::Repeated | Order::OldEpoch | Order::AnotherState | Order::ReusedSession => {}
        }
        order
    }

    /// Whether a beacon that does not count is newer than what came of its session and of its epoch.
    fn is_news_aside(&mut self, beacon: &Beacon) -> bool {
        let (mut newest, mut kept) = (0, None);
        for (_, session) in self.aside.iter_mut().filter(|(epoch, _)| *epoch == beacon.epoch) {
            newest = session.number.max(newest);
            if session.number == beacon.session_number && session.id == beacon.session {
                kept = Some(session);
            }
        }
        match kept {
            Some(kept) => {
                let is_newer = beacon.counter > kept.counter;
                kept.counter = kept.counter.max(beacon.counter);
                is_newer
            }
            None if beacon.session_number < newest => false,
            None => {
                self.aside.push((beacon.epoch, KnownSession::of(beacon)));
                self.trim();
                true
            }
        }
    }

    fn trim(&mut self) {
        self.aside.drain(..self.aside.len().saturating_sub(KEPT_ASIDE));
    }

    /// The newest epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The number of the newest session.
    #[must_use]
    pub fn session_number(&self) -> u64 {
        self.newest.number
    }

    /// The newest session.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.newest.id
    }

    fn order(&self, beacon: &Beacon) -> Order {
        if beacon.epoch.number < self.epoch.number {
            return Order::OldEpoch;
        }
        if beacon.epoch.number > self.epoch.number {
            return Order::NewEpoch;
        }
        if beacon.epoch.id != self.epoch.id {
            return Order::AnotherState;
        }
        if beacon.session_number > self.newest.number {
            return Order::NewSession;
        }
        let kept = std::iter::once(&self.newest).chain(&self.earlier).find(|s| s.number == beacon.session_number);
        match kept {
            Some(kept) if kept.id != beacon.session => Order::ReusedSession,
            Some(kept) if beacon.counter <= kept.counter => Order::Repeated,
            Some(kept) if kept.number == self.newest.number => Order::News,
            Some(_) => Order::LateSession,
            None => Order::Repeated,
        }
    }
}

impl KnownSession {
    fn of(beacon: &Beacon) -> Self {
        Self { number: beacon.session_number, id: beacon.session, counter: beacon.counter }
    }
}

impl Order {
    /// Whether the beacon counts.
    #[must_use]
    pub fn is_news(self) -> bool {
        matches!(self, Self::News | Self::NewSession | Self::NewEpoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::EpochId;

    /// A beacon of (epoch, epoch id, session number, session id, counter).
    fn beacon((epoch, epoch_id, number, session, counter): (u64, u64, u64, u64, u64)) -> Beacon {
        Beacon {
            epoch: Epoch { number: epoch, id: EpochId(epoch_id) },
            session_number: number,
            session: SessionId(session),
            counter,
            clock_ms: 0,
            rate_bits: 0,
            datagrams: 0,
            on_wire: None,
            channel: None,
        }
    }

    #[test]
    fn each_row_of_the_table() {
        let mut known = Known::first(&beacon((2, 20, 7, 70, 5)));
        let steps = [
            ((2, 20, 7, 70, 6), Order::News),
            ((2, 20, 7, 70, 6), Order::Repeated),
            ((2, 20, 7, 70, 5), Order::Repeated),
            ((2, 20, 7, 70, 90), Order::News),
            ((1, 10, 9, 90, 1), Order::OldEpoch),
            ((1, 20, 7, 70, 91), Order::OldEpoch),
            ((2, 21, 8, 80, 1), Order::AnotherState),
            ((2, 20, 7, 71, 91), Order::ReusedSession),
            ((2, 20, 6, 60, 1), Order::Repeated),
            ((2, 20, 8, 80, 1), Order::NewSession),
            ((2, 20, 7, 70, 90), Order::Repeated),
            ((2, 20, 7, 70, 91), Order::LateSession),
            ((2, 20, 7, 70, 91), Order::Repeated),
            ((2, 20, 7, 70, 92), Order::LateSession),
            ((2, 20, 7, 72, 93), Order::ReusedSession),
            ((2, 20, 8, 80, 2), Order::News),
            ((2, 20, 7, 72, 93), Order::Repeated),
            ((2, 20, 7, 72, 94), Order::ReusedSession),
            ((2, 21, 8, 80, 1), Order::Repeated),
            ((2, 21, 7, 81, 9), Order::Repeated),
            ((2, 21, 8, 80, 2), Order::AnotherState),
            ((1, 20, 7, 70, 91), Order::Repeated),
            ((3, 30, 1, 10, 1), Order::NewEpoch),
            ((2, 20, 8, 80, 2), Order::Repeated),
            ((2, 20, 7, 70, 92), Order::Repeated),
            ((2, 20, 5, 50, 9), Order::Repeated),
            ((2, 20, 8, 80, 3), Order::OldEpoch),
            ((2, 20, 8, 80, 3), Order::Repeated),
            ((3, 30, 1, 10, 2), Order::News),
        ];
        for (n, (step, order)) in steps.into_iter().enumerate() {
            assert_eq!(known.take(&beacon(step)), order, "step {n}: {step:?}");
        }
        assert_eq!((known.epoch().number, known.session_number(), known.session()), (3, 1, SessionId(10)));
    }

    #[test]
    fn recordings_of_what_never_came_raise_no_alarm() {
        let at = |clock_ms, beacon| Beacon { clock_ms, ..beacon };
        let mut known = Known::first(&at(100, beacon((2, 20, 7, 70, 5))));
        assert_eq!(known.take(&at(500, beacon((2, 20, 8, 80, 1)))), Order::NewSession);
        for recorded in [(2, 20, 7, 70, 6), (2, 20, 7, 71, 6), (1, 10, 7, 70, 6), (2, 21, 9, 90, 6)] {
            assert_eq!(known.take(&at(499, beacon(recorded))), Order::Repeated, "{recorded:?}");
            assert_ne!(known.take(&at(501, beacon(recorded))), Order::Repeated, "{recorded:?}");
        }
    }

    #[test]
    fn what_is_kept_aside_is_bounded() {
        let mut known = Known::first(&beacon((1, 1, 1, 1, 1)));
        for epoch in 2..=9 {
            assert_eq!(known.take(&beacon((epoch, epoch, 1, 1, 1))), Order::NewEpoch);
            for number in 2..=40 {
                assert_eq!(known.take(&beacon((epoch, epoch, number, number, 1))), Order::NewSession);
                assert_eq!(known.take(&beacon((epoch, 99, number, number, 1))), Order::AnotherState);
            }
            assert!(known.aside.len() <= KEPT_ASIDE);
        }
    }

    #[test]
    fn of_many_sessions_the_newest_are_kept() {
        let mut known = Known::first(&beacon((1, 1, 1, 1, 1)));
        for number in 2..=100 {
            assert_eq!(known.take(&beacon((1, 1, number, number, 1))), Order::NewSession);
        }
        assert_eq!(known.earlier.len(), KEPT_SESSIONS);
        assert_eq!(known.take(&beacon((1, 1, 83, 83, 9))), Order::Repeated, "it is not kept");
        assert_eq!(known.take(&beacon((1, 1, 84, 84, 9))), Order::LateSession);
        assert_eq!(known.take(&beacon((1, 1, 84, 4, 9))), Order::ReusedSession);
    }
}
