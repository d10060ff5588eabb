//! What datagram counters tell of the link: how many of those that were sent came, and how long the gaps were.
//!
//! Signed beacons say how many datagrams were sent ([`Counters::sent`]); counters only say which of these came. So
//! nobody without a signing key can fake losses, however high the counters that he sends are.

use std::collections::VecDeque;

use crate::id::SessionId;

/// Counters after the beacon before the newest that are kept: at 800,000 datagrams a second, five seconds.
const SPAN: u64 = 1 << 22;
const WORDS: usize = (SPAN / 64) as usize;
/// Datagrams that may come while the first beacon of a session is checked: these are not counted, nor called lost.
const UNCHECKED: u64 = 1 << 15;
/// Sessions that are counted at once; the one that was heard of longest ago is forgotten.
const SESSIONS: usize = 4;

/// Datagrams of the sessions that a beacon vouched for.
#[derive(Default)]
pub(super) struct Counters {
    /// The one of the last datagram first.
    sessions: VecDeque<Session>,
    sent: u64,
    received: u64,
    longest: u64,
}

struct Session {
    id: SessionId,
    /// What the beacon before the newest said was sent: up to here all is counted.
    counted: u64,
    /// What the newest said.
    newest: u64,
    /// Whether one of its datagrams came since its first beacon was checked: counting begins with that one.
    began: bool,
    /// Datagrams in a row that did not come, up to `counted`.
    gap: u64,
    /// A bit for each counter from `counted` on, at its remainder by [`SPAN`].
    seen: Box<[u64]>,
}

impl Counters {
    /// An authentic datagram came.
    pub(super) fn came(&mut self, session: SessionId, counter: u64) {
        match self.sessions.iter().position(|s| s.id == session) {
            Some(0) => {}
            Some(at) => self.sessions.make_contiguous()[..=at].rotate_right(1),
            None => return,
        }
        if let Some(session) = self.sessions.front_mut() {
            session.came(counter);
        }
    }

    /// A beacon of this session, which counts, says that `datagrams` were sent before it.
    pub(super) fn sent(&mut self, session: SessionId, datagrams: u64) {
        let Some(at) = self.sessions.iter().position(|s| s.id == session) else {
            self.sessions.truncate(SESSIONS - 1);
            self.sessions.push_front(Session::new(session, datagrams));
            return;
        };
        let session = &mut self.sessions[at];
        if datagrams <= session.newest {
            return;
        }
        // Only up to the beacon before: what it overtook on the way has come by now.
        // What lies beyond the span was not noted, and does not count.
        let end = session.newest.min(session.counted.saturating_add(SPAN));
        let (came, longest) = session.count_until(end);
        self.sent = self.sent.saturating_add(end.saturating_sub(session.counted));
        if end < session.newest {
            session.gap = 0;
        }
        self.received = self.received.saturating_add(came);
        self.longest = self.longest.max(longest);
        session.counted = session.newest;
        session.newest = datagrams;
    }

    /// Datagrams sent, those of them that came, and the most in a row that did not since this was asked last.
    pub(super) fn tally(&mut self) -> (u64, u64, u64) {
        (self.sent, self.received, std::mem::take(&mut self.longest))
    }
}

impl Session {
    fn new(id: SessionId, datagrams: u64) -> Self {
        Self { id, counted: datagrams, newest: datagrams, began: false, gap: 0, seen: vec![0; WORDS].into() }
    }

    fn came(&mut self, counter: u64) {
        if !self.began && counter.checked_sub(self.counted).is_some_and(|ahead| ahead < UNCHECKED) {
            (self.began, self.counted, self.newest) = (true, counter, self.newest.max(counter));
        }
        if counter.checked_sub(self.counted).is_some_and(|ahead| ahead < SPAN) {
            let (word, bit) = place(counter);
            self.seen[word] |= bit;
        }
    }

    /// How many counters from `counted` to `end` came, and the longest row of those that did not; forgets them.
    fn count_until(&mut self, end: u64) -> (u64, u64) {
        let (mut came, mut longest, mut at) = (0_u64, self.gap, self.counted);
        // What lies beyond the span was not noted: nothing can have come for so long.
        let noted = end.min(self.counted.saturating_add(SPAN));
        while at < noted {
            let (word, bit) = place(at);
            let whole = bit == 1 && noted - at >= 64;
            match self.seen[word] {
                0 if whole => {
                    self.gap = self.gap.saturating_add(64);
                    at += 64;
                    continue;
                }
                u64::MAX if whole => {
                    (self.seen[word], self.gap) = (0, 0);
                    came += 64;
                    at += 64;
                    continue;
                }
                seen if seen & bit != 0 => {
                    self.seen[word] &= !bit;
                    self.gap = 0;
                    came += 1;
                }
                _ => self.gap = self.gap.saturating_add(1),
            }
            longest = longest.max(self.gap);
            at += 1;
        }
        self.gap = self.gap.saturating_add(end.saturating_sub(at));
        (came, longest.max(self.gap))
    }
}

fn place(counter: u64) -> (usize, u64) {
    ((counter % SPAN / 64) as usize, 1 << (counter % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: SessionId = SessionId(1);

    #[test]
    fn loss_is_told_a_beacon_later() {
        let mut counters = Counters::default();
        counters.sent(S, 0);
        (0..1_000).filter(|n| !(300..310).contains(n)).for_each(|n| counters.came(S, n));
        counters.sent(S, 1_000);
        assert_eq!(counters.tally(), (0, 0, 0));
        // One that was overtaken by the beacon.
        counters.came(S, 305);
        (1_000..1_500).for_each(|n| counters.came(S, n));
        counters.sent(S, 2_000);
        assert_eq!(counters.tally(), (1_000, 991, 5));
        counters.sent(S, 2_001);
        assert_eq!(counters.tally(), (2_000, 1_491, 500));
        assert_eq!(counters.tally(), (2_000, 1_491, 0));
    }

    #[test]
    fn what_comes_while_the_first_beacon_is_checked_is_not_lost() {
        let mut counters = Counters::default();
        counters.sent(S, 500);
        (505..1_000).for_each(|n| counters.came(S, n));
        counters.sent(S, 1_000);
        (1_001..2_000).for_each(|n| counters.came(S, n));
        counters.sent(S, 2_000);
        assert_eq!(counters.tally(), (495, 495, 0));
        counters.sent(S, 2_001);
        assert_eq!(counters.tally(), (1_495, 1_494, 1));
    }

    #[test]
    fn no_counter_makes_a_loss_up() {
        let mut counters = Counters::default();
        let flood = |counters: &mut Counters| {
            for counter in [0, u64::MAX, u64::MAX - 1, 1 << 63, SPAN, SPAN * 2, SPAN * 3 - 1] {
                (0..9).for_each(|session| counters.came(SessionId(session), counter));
            }
        };
        flood(&mut counters);
        assert_eq!(counters.tally(), (0, 0, 0));
        for second in 0..10_u64 {
            counters.sent(S, second * 100);
            flood(&mut counters);
            (second * 100..(second + 1) * 100).for_each(|n| counters.came(S, n));
            flood(&mut counters);
        }
        assert_eq!(counters.tally(), (800, 800, 0));
    }

    #[test]
    fn what_beacons_say_is_bounded_too() {
        let mut counters = Counters::default();
        for session in 0..100 {
            for datagrams in [0, u64::MAX, 5, u64::MAX - 1, u64::MAX] {
                counters.sent(SessionId(session), datagrams);
                counters.came(SessionId(session), datagrams);
            }
        }
        assert_eq!(counters.sessions.len(), SESSIONS);
        let mut counters = Counters::default();
        counters.sent(S, 0);
        counters.sent(S, SPAN * 5);
        counters.sent(S, SPAN * 5 + 1);
        assert_eq!(counters.tally(), (SPAN, 0, SPAN));
    }

    #[test]
    fn agrees_with_a_plain_set() {
        let mut state = 7_u64;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % n
        };
        let (mut counters, mut at, mut sent, mut plain) = (Counters::default(), 0, 0, Vec::new());
        counters.sent(S, 0);
        for _ in 0..300 {
            let count = 1 + below(200_000);
            let outage = below(count)..below(count);
            plain.extend((0..count).map(|n| at + n == 0 || !outage.contains(&n) && below(50) > 0));
            (0..count).filter(|&n| plain[(at + n) as usize]).for_each(|n| counters.came(S, at + n));
            (sent, at) = (at, at + count);
            counters.sent(S, at);
        }
        let came = plain[..sent as usize].iter().filter(|came| **came).count() as u64;
        let longest = plain[..sent as usize].split(|came| *came).map(<[bool]>::len).max().unwrap() as u64;
        assert_eq!(counters.tally(), (sent, came, longest));
    }
}
