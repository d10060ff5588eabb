//! Signed objects that came in one block, and beacons, on their way to be checked: off the receive path, by a thread that waits for no
//! disk, and no more of them a second than signatures may be checked.
//!
//! Beacons, objects of bundles that a trusted key signed for, and all others take turns; in both of these so do keys, by what bundle
//! ids say of them. Of one key those go first of whose bundle more came: to get before an honest one, somebody has to send as much.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::time::Duration;

use checkvalve_protocol::id::{KeyTag, SessionId};
use checkvalve_protocol::receive::ReceivedBlock;
use checkvalve_protocol::time::Time;

/// Signed objects that wait at most.
const WAITING: usize = 256;
/// Beacons that wait at most.
const BEACONS: usize = 64;
/// Checks that may be made at once after a rest.
const AHEAD: Duration = Duration::from_millis(100);

/// What waits to be checked.
#[derive(Default)]
pub(super) struct Waiting {
    blocks: Vec<ReceivedBlock>,
    beacons: Vec<(SessionId, Vec<u8>)>,
    /// Whether it was a beacon's turn, that of what somebody signed for, or of the rest.
    turn: u8,
    /// Whose turn it was, of what nobody and of what somebody signed for.
    last: [Option<KeyTag>; 2],
    dice: u64,
}

/// What to check now.
pub(super) enum Check {
    Object(Box<ReceivedBlock>),
    Beacon(SessionId, Vec<u8>),
}

impl Waiting {
    /// A signed object came. Gives the one that is turned away for it, if there are too many.
    pub(super) fn push(&mut self, block: ReceivedBlock) -> Option<ReceivedBlock> {
        self.blocks.push(block);
        if self.blocks.len() <= WAITING {
            return None;
        }
        // What somebody signed for stays as long as there is anything else. Of the rest that of a key with the most, with the least
        // traffic, the newest.
        let is_other = |block: &ReceivedBlock| block.traffic() < ReceivedBlock::SIGNED;
        let any_other = self.blocks.iter().any(is_other);
        let may_go = |block: &ReceivedBlock| is_other(block) || !any_other;
        let mut counts: HashMap<KeyTag, usize> = HashMap::new();
        for block in self.blocks.iter().filter(|block| may_go(block)) {
            *counts.entry(block.bundle().tag()).or_default() += 1;
        }
        let most = counts.values().max().copied();
        let is_of_most = |block: &ReceivedBlock| counts.get(&block.bundle().tag()).copied() == most;
        let its = self.blocks.iter().enumerate().filter(|(_, block)| may_go(block) && is_of_most(block));
        let least = its.min_by_key(|(at, block)| (block.traffic(), usize::MAX - at));
        least.map(|(at, _)| at).map(|at| self.blocks.swap_remove(at))
    }

    /// A beacon came. False: it, or one that waited, is turned away, since there are too many.
    pub(super) fn push_beacon(&mut self, session: SessionId, signed: &[u8]) -> bool {
        if self.beacons.len() < BEACONS {
            self.beacons.push((session, signed.to_vec()));
            return true;
        }
        // Each that comes is as likely to be looked at as any other.
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (self.dice >> 33) as usize % (BEACONS * 2);
        if let Some(place) = self.beacons.get_mut(at) {
            *place = (session, signed.to_vec());
        }
        false
    }

    /// What is to be checked next.
    pub(super) fn next(&mut self) -> Option<Check> {
        // Beacons, what somebody signed for, and the rest take turns: none keeps the others waiting.
        for _ in 0..3 {
            self.turn = (self.turn + 1) % 3;
            let next = match self.turn {
                0 => self.next_beacon(),
                turn => self.next_object(turn == 1),
            };
            if next.is_some() {
                return next;
            }
        }
        None
    }

    fn next_beacon(&mut self) -> Option<Check> {
        let is_any = !self.beacons.is_empty();
        let (session, signed) = is_any.then(|| self.beacons.remove(0))?;
        Some(Check::Beacon(session, signed))
    }

    /// Of those that somebody signed for, or that nobody did, the keys take turns.
    fn next_object(&mut self, signed: bool) -> Option<Check> {
        let ours = |block: &ReceivedBlock| (block.traffic() == ReceivedBlock::SIGNED) == signed;
        let tags = self.blocks.iter().filter(|block| ours(block)).map(|block| block.bundle().tag());
        let tags: BTreeSet<KeyTag> = tags.collect();
        let last = &mut self.last[usize::from(signed)];
        let after = last.and_then(|last| tags.range((Bound::Excluded(last), Bound::Unbounded)).next());
        let turn = after.or(tags.first()).copied();
        *last = turn;
        let its = self.blocks.iter().enumerate();
        let its = its.filter(|(_, block)| ours(block) && Some(block.bundle().tag()) == turn);
        let at = its.max_by_key(|(at, block)| (block.traffic(), usize::MAX - at)).map(|(at, _)| at)?;
        Some(Check::Object(Box::new(self.blocks.remove(at))))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.beacons.is_empty()
    }
}

/// How many checks may be made.
pub(super) struct Budget {
    each: u64,
    /// The budget is spent up to this time.
    until: Time,
}

impl Budget {
    /// So many checks a second.
    pub(super) fn new(a_second: u32) -> Self {
        Self { each: 1_000_000_000 / u64::from(a_second.max(1)), until: Time(0) }
    }

    /// Takes one check, or says how long to wait for it.
    pub(super) fn take(&mut self, now: Time) -> Result<(), Duration> {
        let ahead = u64::try_from(AHEAD.as_nanos()).unwrap_or(u64::MAX);
        let from = self.until.0.max(now.0.saturating_sub(ahead));
        if from > now.0 {
            return Err(Duration::from_nanos(from - now.0));
        }
        self.until = Time(from.saturating_add(self.each));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use checkvalve_protocol::id::{BundleId, KeyId};
    use checkvalve_protocol::partition::{BlockSet, Oti};
    use checkvalve_protocol::receive::{Limits, Reassembly, Wanted};
    use checkvalve_protocol::wire::{Content, Header, ObjectKind, Symbol};

    use super::*;

    #[test]
    fn a_budget_is_kept_and_not_saved_up() {
        let mut budget = Budget::new(100);
        let start = Time(5_000_000_000);
        let taken = |budget: &mut Budget, now: Time| std::iter::from_fn(|| budget.take(now).ok()).count();
        assert!((10..=12).contains(&taken(&mut budget, start)));
        assert!(
            (99..=101)
                .contains(&(0..1_000).map(|ms| taken(&mut budget, start + Duration::from_millis(ms))).sum::<usize>())
        );
        assert!(budget.take(start).is_err());
        assert!((10..=12).contains(&taken(&mut budget, start + Duration::from_secs(3_600))));
    }

    /// An announce that came whole, of a bundle whose id names `key`.
    fn block(key: u16, n: u64, signed: bool) -> ReceivedBlock {
        let mut id = [0; 8];
        id[..2].copy_from_slice(&key.to_be_bytes());
        id[6..].copy_from_slice(&key.to_be_bytes());
        let bundle = BundleId::new(n, KeyId(id));
        let oti = Oti::new(64, 64, 1).unwrap();
        let symbol = Symbol { bundle, kind: ObjectKind::Announce, sbn: 0, esi: 0, oti };
        let header = Header { sealed: true, session: SessionId(1), counter: n, content: Content::Symbol(symbol) };
        let mut reassembly = Reassembly::new(Limits::new(1 << 20));
        let mut want = |_: &Symbol| Wanted::Yes { have: BlockSet::new(), parked: Vec::new(), signed };
        reassembly.handle(Time(1), &header, &[0; 64], &mut want).unwrap();
        reassembly.poll_block().unwrap()
    }

    fn next_of(waiting: &mut Waiting) -> Option<BundleId> {
        match waiting.next()? {
            Check::Object(block) => Some(block.bundle()),
            Check::Beacon(..) => None,
        }
    }

    #[test]
    fn beacons_keep_no_object_waiting() {
        let mut waiting = Waiting::default();
        for signed in [false, true] {
            for n in 0..BEACONS as u64 {
                waiting.push_beacon(SessionId(n), b"beacon");
            }
            let announce = block(1, 7, signed);
            let id = announce.bundle();
            assert!(waiting.push(announce).is_none());
            assert!((0..3).any(|_| next_of(&mut waiting) == Some(id)), "signed: {signed}");
        }
    }

    #[test]
    fn what_somebody_signed_for_is_neither_turned_away_nor_last() {
        for honest in [1, 300, 900] {
            let mut waiting = Waiting::default();
            let vouched = block(honest, 1, true);
            let id = vouched.bundle();
            assert!(waiting.push(vouched).is_none());
            for n in 0..1_000 {
                let junk = if n % 2 == 0 { block(honest, 100 + n, false) } else { block(n as u16, 100 + n, false) };
                let away = waiting.push(junk).map(|block| block.bundle());
                assert_ne!(away, Some(id), "of key {honest}, at {n}");
            }
            assert!((0..3).any(|_| next_of(&mut waiting) == Some(id)), "of key {honest}");
        }
    }

    #[test]
    fn keys_take_turns() {
        let mut waiting = Waiting::default();
        (0..200).for_each(|n| assert!(waiting.push(block(1, n, false)).is_none()));
        let honest = block(2, 1, false);
        let id = honest.bundle();
        assert!(waiting.push(honest).is_none());
        assert!((0..2).any(|_| next_of(&mut waiting) == Some(id)));
        // Where there are too many, one of those goes of whose key there are most.
        let honest = block(2, 2, false);
        let id = honest.bundle();
        (0..300).for_each(|n| drop(waiting.push(block(1, 1_000 + n, false))));
        assert_ne!(waiting.push(honest).map(|block| block.bundle()), Some(id));
        assert!((0..2).any(|_| next_of(&mut waiting) == Some(id)));
    }

    #[test]
    fn of_too_many_beacons_some_are_looked_at() {
        let mut waiting = Waiting::default();
        let pushed = (0..10_000_u64).filter(|&n| waiting.push_beacon(SessionId(n), &n.to_be_bytes())).count();
        assert_eq!(pushed, BEACONS);
        let mut sessions: Vec<u64> = Vec::new();
        while let Some(Check::Beacon(session, _)) = waiting.next() {
            sessions.push(session.0);
        }
        assert_eq!(sessions.len(), BEACONS);
        assert!(sessions.iter().any(|&n| n > 5_000), "{sessions:?}");
        assert!(waiting.is_empty());
    }
}
