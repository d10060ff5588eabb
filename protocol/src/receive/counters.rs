//! What datagram counters tell of the link: how many of those that were sent came, and how long the gaps were.
//!
//! Signed beacons say how many datagrams were sent ([`Counters::sent`]); counters only say which of these came. So
//! nobody without a signing key can fake losses, however high the counters that he sends are. What a key says counts for that
//! key only: it says nothing of what another one's sender sent, in whatever session.

use crate::id::{KeyTag, SessionId};

/// Counters after the beacon before the newest that are kept: at 800,000 datagrams a second, five seconds.
const SPAN: u64 = 1 << 22;
const WORDS: usize = (SPAN / 64) as usize;
/// Datagrams that may come while the first beacon of a session is checked: these are not counted, nor called lost.
const UNCHECKED: u64 = 1 << 15;
/// Sessions of one key that are counted at once; the one whose last beacon is oldest is forgotten.
const SESSIONS: usize = 2;
/// Keys whose sessions are counted; more keys have no sender that is counted.
const KEYS: usize = 16;

/// Datagrams of the sessions that a beacon vouched for.
#[derive(Default)]
pub(super) struct Counters {
    /// By when their last beacon came, the oldest first.
    sessions: Vec<Session>,
    totals: Vec<Total>,
}

/// What is known of the datagrams of one key's sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Total {
    pub(super) key: KeyTag,
    /// Datagrams sent.
    pub(super) sent: u64,
    /// Those of them that came.
    pub(super) received: u64,
    /// The most in a row that did not.
    pub(super) longest: u64,
}

struct Session {
    id: SessionId,
    /// Whose beacon vouched for it.
    key: KeyTag,
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
        for known in &mut self.sessions {
            if known.id == session {
                known.came(counter);
            }
        }
    }

    /// Whether a beacon of this session counted.
    pub(super) fn is_counted(&self, session: SessionId) -> bool {
        self.sessions.iter().any(|known| known.id == session)
    }

    /// A beacon of this session, which counts, says that `datagrams` were sent before it.
    pub(super) fn sent(&mut self, session: SessionId, key: KeyTag, datagrams: u64) {
        let Some(at) = self.sessions.iter().position(|s| s.id == session && s.key == key) else {
            return self.begin(session, key, datagrams);
        };
        self.sessions[at..].rotate_left(1);
        let (Some(session), Some(total)) =
            (self.sessions.last_mut(), self.totals.iter_mut().find(|total| total.key == key))
        else {
            return;
        };
        if datagrams <= session.newest {
            return;
        }
        if !session.began {
            // Those before the first that is noted came while none of its beacons had been checked, if they came.
            let first = session.first_noted(datagrams);
            session.began = first.is_some();
            (session.counted, session.newest) = (first.unwrap_or(datagrams), datagrams);
            return;
        }
        // Only up to the beacon before: what it overtook on the way has come by now.
        // What lies beyond the span was not noted, and does not count.
        let end = session.newest.min(session.counted.saturating_add(SPAN));
        let (came, longest) = session.count_until(end);
        total.sent = total.sent.saturating_add(end.saturating_sub(session.counted));
        if end < session.newest {
            session.gap = 0;
        }
        total.received = total.received.saturating_add(came);
        total.longest = total.longest.max(longest);
        session.counted = session.newest;
        session.newest = datagrams;
    }

    fn begin(&mut self, session: SessionId, key: KeyTag, datagrams: u64) {
        if !self.totals.iter().any(|total| total.key == key) {
            if self.totals.len() >= KEYS {
                return;
            }
            self.totals.push(Total { key, sent: 0, received: 0, longest: 0 });
        }
        if self.sessions.iter().filter(|s| s.key == key).count() >= SESSIONS
            && let Some(oldest) = self.sessions.iter().position(|s| s.key == key)
        {
            self.sessions.remove(oldest);
        }
        self.sessions.push(Session::new(session, key, datagrams));
    }

    /// What was counted of each key's sender; the longest burst since this was asked last.
    pub(super) fn tally(&mut self) -> Vec<Total> {
        let totals = self.totals.clone();
        self.totals.iter_mut().for_each(|total| total.longest = 0);
        totals
    }
}

impl Session {
    fn new(id: SessionId, key: KeyTag, datagrams: u64) -> Self {
        Self { id, key, counted: datagrams, newest: datagrams, began: false, gap: 0, seen: vec![0; WORDS].into() }
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

    /// The first counter from `counted` to `end` that came.
    fn first_noted(&self, end: u64) -> Option<u64> {
        let noted = end.min(self.counted.saturating_add(SPAN));
        let mut at = self.counted;
        while at < noted {
            let (word, bit) = place(at);
            match self.seen[word] {
                0 => at = (at | 63) + 1,
                seen if seen & bit != 0 => return Some(at),
                _ => at += 1,
            }
        }
        None
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
    use crate::id::BundleId;

    const S: SessionId = SessionId(1);
    const KEY: KeyTag = BundleId(1).tag();
    const OTHER: KeyTag = BundleId(2).tag();

    fn tally(counters: &mut Counters) -> (u64, u64, u64) {
        let totals = counters.tally();
        assert!(totals.len() <= 1);
        totals.first().map_or((0, 0, 0), |total| (total.sent, total.received, total.longest))
    }

    #[test]
    fn loss_is_told_a_beacon_later() {
        let mut counters = Counters::default();
        counters.sent(S, KEY, 0);
        (0..1_000).filter(|n| !(300..310).contains(n)).for_each(|n| counters.came(S, n));
        counters.sent(S, KEY, 1_000);
        assert_eq!(tally(&mut counters), (0, 0, 0));
        // One that was overtaken by the beacon.
        counters.came(S, 305);
        (1_000..1_500).for_each(|n| counters.came(S, n));
        counters.sent(S, KEY, 2_000);
        assert_eq!(tally(&mut counters), (1_000, 991, 5));
        counters.sent(S, KEY, 2_001);
        assert_eq!(tally(&mut counters), (2_000, 1_491, 500));
        assert_eq!(tally(&mut counters), (2_000, 1_491, 0));
    }

    #[test]
    fn what_comes_while_the_first_beacon_is_checked_is_not_lost() {
        let mut counters = Counters::default();
        counters.sent(S, KEY, 500);
        (505..1_000).for_each(|n| counters.came(S, n));
        counters.sent(S, KEY, 1_000);
        (1_001..2_000).for_each(|n| counters.came(S, n));
        counters.sent(S, KEY, 2_000);
        assert_eq!(tally(&mut counters), (495, 495, 0));
        counters.sent(S, KEY, 2_001);
        assert_eq!(tally(&mut counters), (1_495, 1_494, 1));
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
        assert_eq!(tally(&mut counters), (0, 0, 0));
        for second in 0..10_u64 {
            counters.sent(S, KEY, second * 100);
            flood(&mut counters);
            (second * 100..(second + 1) * 100).for_each(|n| counters.came(S, n));
            flood(&mut counters);
        }
        assert_eq!(tally(&mut counters), (800, 800, 0));
    }

    #[test]
    fn what_beacons_say_is_bounded_too() {
        let mut counters = Counters::default();
        for session in 0..100 {
            for datagrams in [0, u64::MAX, 5, u64::MAX - 1, u64::MAX] {
                counters.sent(SessionId(session), KEY, datagrams);
                counters.came(SessionId(session), datagrams);
            }
        }
        assert_eq!(counters.sessions.len(), SESSIONS);
        let mut counters = Counters::default();
        counters.sent(S, KEY, 0);
        counters.came(S, 0);
        counters.sent(S, KEY, SPAN * 5);
        counters.sent(S, KEY, SPAN * 5 + 1);
        assert_eq!(tally(&mut counters), (SPAN, 1, SPAN - 1));
    }

    /// So many came while its first beacon was checked that none near it is noted.
    #[test]
    fn counting_begins_however_long_the_first_beacon_is_checked() {
        let mut counters = Counters::default();
        counters.sent(S, KEY, 0);
        for second in 1..4 {
            let first = second * 1_000_000 - if second == 1 { 900_000 } else { 1_000_000 };
            (first..second * 1_000_000).for_each(|n| counters.came(S, n));
            counters.sent(S, KEY, second * 1_000_000);
        }
        assert_eq!(tally(&mut counters), (1_900_000, 1_900_000, 0));
    }

    /// They came in one burst, before its first beacon was checked.
    #[test]
    fn what_came_before_any_beacon_was_checked_is_not_lost() {
        let mut counters = Counters::default();
        (0..225).for_each(|n| counters.came(S, n));
        for datagrams in [0, 223, 224, 225] {
            counters.sent(S, KEY, datagrams);
        }
        (225..300).for_each(|n| counters.came(S, n));
        counters.sent(S, KEY, 299);
        counters.sent(S, KEY, 300);
        assert_eq!(tally(&mut counters), (74, 74, 0));
    }

    #[test]
    fn agrees_with_a_plain_set() {
        let mut state = 7_u64;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % n
        };
        let (mut counters, mut at, mut sent, mut plain) = (Counters::default(), 0, 0, Vec::new());
        counters.sent(S, KEY, 0);
        for _ in 0..300 {
            let count = 1 + below(200_000);
            let outage = below(count)..below(count);
            plain.extend((0..count).map(|n| at + n == 0 || !outage.contains(&n) && below(50) > 0));
            (0..count).filter(|&n| plain[(at + n) as usize]).for_each(|n| counters.came(S, at + n));
            (sent, at) = (at, at + count);
            counters.sent(S, KEY, at);
        }
        let came = plain[..sent as usize].iter().filter(|came| **came).count() as u64;
        let longest = plain[..sent as usize].split(|came| *came).map(<[bool]>::len).max().unwrap() as u64;
        assert_eq!(tally(&mut counters), (sent, came, longest));
    }

    /// A key that names the session of another's sender, with any number, changes nothing of what is counted for that.
    #[test]
    fn what_a_key_says_counts_for_that_key_only() {
        let mut counters = Counters::default();
        counters.sent(S, KEY, 0);
        for session in 1..9 {
            counters.sent(SessionId(session), OTHER, 1 << 60);
        }
        counters.sent(S, OTHER, 0);
        (0..1_000).filter(|n| n % 10 != 5).for_each(|n| counters.came(S, n));
        counters.sent(S, OTHER, u64::MAX);
        counters.sent(S, KEY, 1_000);
        counters.sent(S, KEY, 1_001);
        let mine = counters.tally().into_iter().find(|total| total.key == KEY).unwrap();
        assert_eq!((mine.sent, mine.received), (1_000, 900));
        assert_eq!(counters.sessions.len(), 1 + SESSIONS);
    }
}
