//! Signed objects that came in one block, and beacons, on their way to be checked: no more of them a second than signatures may be
//! checked.
//!
//! Beacons, objects of bundles that a trusted key signed for, and objects of bundles whose id names a trusted key take
//! turns. One check in sixteen goes to a bundle whose id names none. Within both groups of objects, keys take turns.
//! Where a key is only named, the bundle of which more came goes first: to get ahead of an honest bundle, an attacker
//! has to send as much, and half of that again after each check that fails.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use super::{DropReason, Limits, Lobby, Objects, Origin, Reassembly, ReceivedBlock};
use crate::id::{BundleId, KeyTag, SessionId};
use crate::time::Time;
use crate::wire::ObjectKind;

/// Signed objects that wait at most, of bundles whose id names no trusted key.
const UNKNOWN: usize = 16;
/// Checks that may be made at once after a rest.
const AHEAD: Duration = Duration::from_millis(100);
/// If too many wait, this many are compared to choose the one that is turned away.
const COMPARED: usize = 8;
/// One check in this many goes to a bundle whose id names no trusted key.
const TURNS: u8 = 16;

/// Something to be checked.
#[derive(Debug)]
pub enum Check {
    /// A signed object; give it back with [`Reassembly::stored`](super::Reassembly::stored) or
    /// [`Reassembly::discarded`](super::Reassembly::discarded).
    Object(Box<ReceivedBlock>),
    /// A beacon of this session.
    Beacon(SessionId, Vec<u8>),
}

/// What to do next.
#[derive(Debug)]
pub enum NextCheck {
    /// This.
    Check(Check),
    /// Nothing before so long.
    Wait(Duration),
    /// Nothing waits.
    Idle,
    /// Nothing any more: it was told to stop ([`Intake`](super::intake::Intake)).
    Over,
}

/// How much of a bundle came.
pub(super) type Traffic<'a> = &'a dyn Fn(BundleId) -> u64;

/// What waits to be checked.
pub(super) struct Checks {
    signed: ByKey,
    named: ByKey,
    unknown: Vec<ReceivedBlock>,
    beacons: Vec<(SessionId, Vec<u8>)>,
    /// Signed objects that wait at most, of bundles that were signed for, and as many of those whose id names a trusted key.
    most: usize,
    most_beacons: usize,
    turn: u8,
    dice: u64,
    budget: CheckBudget,
}

/// Signed objects by the key that the ids of their bundles name.
#[derive(Default)]
struct ByKey {
    blocks: BTreeMap<KeyTag, Vec<ReceivedBlock>>,
    len: usize,
    /// Which key had its turn.
    last: Option<KeyTag>,
}

impl Checks {
    /// Nothing waits.
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            most: limits.checks,
            most_beacons: limits.beacons,
            signed: ByKey::default(),
            named: ByKey::default(),
            unknown: Vec::new(),
            beacons: Vec::new(),
            turn: 0,
            dice: 0,
            budget: CheckBudget::new(limits.signatures),
        }
    }

    /// A signed object came. Gives the one that is turned away for it, if there are too many.
    pub(super) fn push(&mut self, block: ReceivedBlock, traffic: Traffic<'_>) -> Option<ReceivedBlock> {
        let origin = block.origin();
        let queue = match origin {
            Origin::Signed => &mut self.signed,
            Origin::Named => &mut self.named,
            Origin::Unknown => {
                self.unknown.push(block);
                return (self.unknown.len() > UNKNOWN).then(|| self.unknown.remove(0));
            }
        };
        queue.push(block);
        if queue.len <= self.most {
            return None;
        }
        let dice: [u64; COMPARED] = std::array::from_fn(|_| self.throw());
        let queue = if origin == Origin::Signed { &mut self.signed } else { &mut self.named };
        queue.turn_away(&dice, traffic)
    }

    /// A beacon came. False: it, or one that waited, is turned away, since there are too many.
    pub(super) fn push_beacon(&mut self, session: SessionId, signed: &[u8]) -> bool {
        if self.beacons.len() < self.most_beacons {
            self.beacons.push((session, signed.to_vec()));
            return true;
        }
        // Each that comes is as likely to be looked at as any other.
        let at = self.throw() as usize % (self.most_beacons * 2).max(1);
        if let Some(place) = self.beacons.get_mut(at) {
            *place = (session, signed.to_vec());
        }
        false
    }

    /// A trusted key signed for this bundle. Gives what is turned away, if there are too many then.
    pub(super) fn vouch(&mut self, bundle: BundleId, traffic: Traffic<'_>) -> Vec<ReceivedBlock> {
        for mut block in self.named.take(bundle) {
            block.set_origin(Origin::Signed);
            self.signed.push(block);
        }
        let mut away = Vec::new();
        while self.signed.len > self.most {
            let dice: [u64; COMPARED] = std::array::from_fn(|_| self.throw());
            away.extend(self.signed.turn_away(&dice, traffic));
        }
        away
    }

    /// What is to be checked next, if it is time.
    pub(super) fn poll(&mut self, now: Time, traffic: Traffic<'_>) -> NextCheck {
        if self.is_empty() {
            return NextCheck::Idle;
        }
        match self.budget.take(now) {
            Ok(()) => self.next(traffic).map_or(NextCheck::Idle, NextCheck::Check),
            Err(wait) => NextCheck::Wait(wait),
        }
    }

    /// The same without looking at the time.
    pub(super) fn next(&mut self, traffic: Traffic<'_>) -> Option<Check> {
        self.turn = (self.turn + 1) % TURNS;
        let object = |block| Check::Object(Box::new(block));
        if self.turn == 0
            && let Some(block) = self.unknown.pop()
        {
            return Some(object(block));
        }
        for turn in self.turn..self.turn + 3 {
            let next = match turn % 3 {
                0 => {
                    (!self.beacons.is_empty()).then(|| self.beacons.remove(0)).map(|(s, bytes)| Check::Beacon(s, bytes))
                }
                1 => self.signed.next(traffic).map(object),
                _ => self.named.next(traffic).map(object),
            };
            if next.is_some() {
                return next;
            }
        }
        self.unknown.pop().map(object)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.signed.len + self.named.len + self.unknown.len() + self.beacons.len() == 0
    }

    /// A number that nobody outside can choose.
    fn throw(&mut self) -> u64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.dice >> 33
    }
}

impl ByKey {
    fn push(&mut self, block: ReceivedBlock) {
        self.blocks.entry(block.bundle().tag()).or_default().push(block);
        self.len += 1;
    }

    /// One of those of the key with the most: of some that are drawn the one with the least traffic.
    fn turn_away(&mut self, dice: &[u64], traffic: Traffic<'_>) -> Option<ReceivedBlock> {
        let (&tag, blocks) = self.blocks.iter().max_by_key(|(_, blocks)| blocks.len())?;
        let drawn = dice.iter().map(|dice| *dice as usize % blocks.len());
        let at = drawn.min_by_key(|&at| blocks.get(at).map(|block| traffic(block.bundle())))?;
        self.remove(tag, at)
    }

    /// An object of the next key: of the bundle with the most traffic, the announce, which says what the others belong
    /// to, or else the newest object.
    fn next(&mut self, traffic: Traffic<'_>) -> Option<ReceivedBlock> {
        let after = self.last.and_then(|last| self.blocks.range((Bound::Excluded(last), Bound::Unbounded)).next());
        let (&tag, blocks) = after.or_else(|| self.blocks.first_key_value())?;
        let rank = |block: &ReceivedBlock| (traffic(block.bundle()), block.kind() == ObjectKind::Announce);
        let most = blocks.iter().enumerate().max_by_key(|(at, block)| (rank(block), *at));
        let at = most.map(|(at, _)| at)?;
        self.last = Some(tag);
        self.remove(tag, at)
    }

    /// All of a bundle.
    fn take(&mut self, bundle: BundleId) -> Vec<ReceivedBlock> {
        let tag = bundle.tag();
        let of_it = |block: &ReceivedBlock| block.bundle() == bundle;
        let at = |queue: &Self| queue.blocks.get(&tag).and_then(|blocks| blocks.iter().position(of_it));
        std::iter::from_fn(|| at(self).and_then(|at| self.remove(tag, at))).collect()
    }

    fn remove(&mut self, tag: KeyTag, at: usize) -> Option<ReceivedBlock> {
        let blocks = self.blocks.get_mut(&tag)?;
        // In the order in which they came.
        let block = (at < blocks.len()).then(|| blocks.remove(at));
        self.len -= usize::from(block.is_some());
        if blocks.is_empty() {
            self.blocks.remove(&tag);
        }
        block
    }
}

impl Reassembly {
    /// A beacon came in this session; `signed` are its bytes. It is checked in its turn, unless there are too many.
    pub fn push_beacon(&mut self, session: SessionId, signed: &[u8]) {
        if !self.checks.push_beacon(session, signed) {
            self.drops.add(DropReason::Limit);
        }
    }

    /// Whether anything waits to be checked.
    #[must_use]
    pub fn has_checks(&self) -> bool {
        !self.checks.is_empty()
    }

    /// What is to be checked next: a signed object of one block, or a beacon.
    pub fn poll_check(&mut self, now: Time) -> NextCheck {
        self.checks.poll(now, &traffic(&self.objects, &self.lobby))
    }

    /// The same whatever the time, for when nothing more comes.
    pub fn poll_check_now(&mut self) -> Option<Check> {
        self.checks.next(&traffic(&self.objects, &self.lobby))
    }

    /// A block that is complete, to be stored or to be checked, whatever the time: for callers that do both at once.
    pub fn poll_complete(&mut self) -> Option<ReceivedBlock> {
        self.poll_block().or_else(|| match self.poll_check_now()? {
            Check::Object(block) => Some(*block),
            Check::Beacon(..) => None,
        })
    }

    /// A block is complete: what can be checked at once waits for that, the rest is to be stored.
    pub(super) fn hand_out(&mut self, block: ReceivedBlock) {
        if block.kind() == ObjectKind::Data || block.oti().blocks() != 1 || block.has_parked() {
            self.ready.push_back(block);
            return;
        }
        let away = self.checks.push(block, &traffic(&self.objects, &self.lobby));
        if let Some(away) = away {
            self.drops.add(DropReason::Limit);
            self.unwanted(away);
        }
    }
}

/// How much came of a bundle that still speaks for it.
pub(super) fn traffic<'a>(objects: &'a Objects, lobby: &'a Lobby) -> impl Fn(BundleId) -> u64 + 'a {
    |bundle| objects.traffic(bundle).saturating_add(lobby.traffic(bundle))
}

/// How many checks may be made.
struct CheckBudget {
    each: u64,
    /// The budget is spent up to this time.
    until: Time,
}

impl CheckBudget {
    /// So many checks a second.
    fn new(a_second: u32) -> Self {
        Self { each: 1_000_000_000 / u64::from(a_second.max(1)), until: Time(0) }
    }

    /// Takes one check, or says how long to wait for it.
    fn take(&mut self, now: Time) -> Result<(), Duration> {
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
    use super::*;
    use crate::id::KeyId;
    use crate::partition::Oti;
    use crate::wire::Symbol;

    #[test]
    fn a_budget_is_kept_and_not_saved_up() {
        let mut budget = CheckBudget::new(100);
        let start = Time(5_000_000_000);
        let taken = |budget: &mut CheckBudget, now: Time| std::iter::from_fn(|| budget.take(now).ok()).count();
        assert!((10..=12).contains(&taken(&mut budget, start)));
        assert!(
            (99..=101)
                .contains(&(0..1_000).map(|ms| taken(&mut budget, start + Duration::from_millis(ms))).sum::<usize>())
        );
        assert!(budget.take(start).is_err());
        assert!((10..=12).contains(&taken(&mut budget, start + Duration::from_secs(3_600))));
    }

    fn id(key: u16, n: u64) -> BundleId {
        let mut id = [0; 8];
        id[..2].copy_from_slice(&key.to_be_bytes());
        BundleId::new(n, KeyId(id))
    }

    /// An announce that came whole, of a bundle whose id names `key`.
    fn block(key: u16, n: u64, origin: Origin) -> ReceivedBlock {
        let oti = Oti::new(64, 64, 1).unwrap();
        let symbol = Symbol { bundle: id(key, n), kind: ObjectKind::Announce, sbn: 0, esi: 0, oti };
        let mut block = ReceivedBlock::on_heap(&symbol, 1);
        block.set_origin(origin);
        block
    }

    const WAITING: usize = 256;
    const BEACONS: usize = 64;

    fn checks() -> Checks {
        Checks::new(&Limits { checks: WAITING, beacons: BEACONS, ..Limits::new(1 << 20) })
    }

    const ALIKE: Traffic<'static> = &|_| 1;

    fn next_of(checks: &mut Checks) -> Option<BundleId> {
        match checks.next(ALIKE)? {
            Check::Object(block) => Some(block.bundle()),
            Check::Beacon(..) => None,
        }
    }

    #[test]
    fn beacons_keep_no_object_waiting() {
        for origin in [Origin::Signed, Origin::Named] {
            let mut checks = checks();
            for n in 0..BEACONS as u64 {
                checks.push_beacon(SessionId(n), b"beacon");
            }
            assert!(checks.push(block(1, 7, origin), ALIKE).is_none());
            assert!((0..3).any(|_| next_of(&mut checks) == Some(id(1, 7))), "{origin:?}");
        }
    }

    #[test]
    fn what_somebody_signed_for_is_neither_turned_away_nor_last() {
        for honest in [1, 300, 900] {
            let mut checks = checks();
            assert!(checks.push(block(honest, 1, Origin::Signed), ALIKE).is_none());
            for n in 0..1_000 {
                let key = if n % 2 == 0 { honest } else { n as u16 };
                let origin = if n % 3 == 0 { Origin::Unknown } else { Origin::Named };
                let away = checks.push(block(key, 100 + n, origin), ALIKE).map(|block| block.bundle());
                assert_ne!(away, Some(id(honest, 1)), "of key {honest}, at {n}");
            }
            assert!((0..4).any(|_| next_of(&mut checks) == Some(id(honest, 1))), "of key {honest}");
        }
    }

    #[test]
    fn keys_take_turns() {
        for origin in [Origin::Signed, Origin::Named] {
            let mut checks = checks();
            (0..200).for_each(|n| assert!(checks.push(block(1, n, origin), ALIKE).is_none()));
            assert!(checks.push(block(2, 1, origin), ALIKE).is_none());
            assert!((0..3).any(|_| next_of(&mut checks) == Some(id(2, 1))), "{origin:?}");
            // Where there are too many, one of those goes of whose key there are most.
            (0..300).for_each(|n| drop(checks.push(block(1, 1_000 + n, origin), ALIKE)));
            assert_ne!(checks.push(block(2, 2, origin), ALIKE).map(|block| block.bundle()), Some(id(2, 2)));
            assert!((0..3).any(|_| next_of(&mut checks) == Some(id(2, 2))), "{origin:?}");
        }
    }

    #[test]
    fn what_is_vouched_for_waits_with_the_signed() {
        let mut checks = checks();
        (0..5).for_each(|n| drop(checks.push(block(1, n % 2, Origin::Named), ALIKE)));
        assert!(checks.vouch(id(1, 1), ALIKE).is_empty());
        assert_eq!((checks.signed.len, checks.named.len), (2, 3));
        let Some(Check::Object(block)) = checks.next(ALIKE) else { panic!("one waits") };
        assert_eq!((block.bundle(), block.origin()), (id(1, 1), Origin::Signed));
    }

    #[test]
    fn ids_that_name_no_key_take_one_turn_of_sixteen() {
        let mut checks = checks();
        let mut honest = 0;
        for n in 0..1_600 {
            (0..4).for_each(|more| drop(checks.push(block(n as u16, 10 * n + more, Origin::Unknown), ALIKE)));
            let _ = checks.push(block(2, n, Origin::Named), ALIKE);
            honest += usize::from(next_of(&mut checks).is_some_and(|id| id.tag() == self::id(2, 0).tag()));
        }
        assert_eq!(honest, 1_500);
    }

    #[test]
    fn of_one_key_whose_bundle_more_came_of_is_neither_turned_away_nor_late() {
        let honest = id(1, 5);
        let traffic: Traffic<'_> = &|id: BundleId| if id == honest { 3 } else { 1 };
        let mut checks = checks();
        assert!(checks.push(block(1, 5, Origin::Named), traffic).is_none());
        for n in 0..5_000 {
            let away = checks.push(block(1, 100 + n, Origin::Named), traffic);
            assert_ne!(away.map(|block| block.bundle()), Some(honest), "at {n}");
        }
        assert!(matches!(checks.next(traffic), Some(Check::Object(block)) if block.bundle() == honest));
    }

    #[test]
    fn what_is_vouched_for_is_bounded_too() {
        let mut checks = checks();
        let mut away = 0;
        for n in 0..200 {
            (0..7).for_each(|_| drop(checks.push(block(1, n, Origin::Named), ALIKE)));
            away += checks.vouch(id(1, n), ALIKE).len();
            assert!(checks.signed.len <= WAITING);
        }
        assert_eq!(away, 200 * 7 - WAITING);
    }

    #[test]
    fn of_one_bundle_the_announce_is_checked_first() {
        let mut checks = checks();
        assert!(checks.push(block(1, 1, Origin::Named), ALIKE).is_none());
        let oti = Oti::new(64, 64, 1).unwrap();
        let hashes = Symbol { bundle: id(1, 1), kind: ObjectKind::Hashes, sbn: 0, esi: 0, oti };
        let mut hashes = ReceivedBlock::on_heap(&hashes, 1);
        hashes.set_origin(Origin::Named);
        assert!(checks.push(hashes, ALIKE).is_none());
        assert!(matches!(checks.next(ALIKE), Some(Check::Object(block)) if block.kind() == ObjectKind::Announce));
    }

    #[test]
    fn of_too_many_that_are_alike_new_ones_are_looked_at() {
        let mut checks = checks();
        (0..10_000).for_each(|n| drop(checks.push(block(1, n, Origin::Named), ALIKE)));
        assert_eq!(next_of(&mut checks), Some(id(1, 9_999)));
        assert_eq!(checks.named.len, WAITING - 1);
    }

    #[test]
    fn of_too_many_beacons_some_are_looked_at() {
        let mut checks = checks();
        let pushed = (0..10_000_u64).filter(|&n| checks.push_beacon(SessionId(n), &n.to_be_bytes())).count();
        assert_eq!(pushed, BEACONS);
        let mut sessions: Vec<u64> = Vec::new();
        while let Some(Check::Beacon(session, _)) = checks.next(ALIKE) {
            sessions.push(session.0);
        }
        assert_eq!(sessions.len(), BEACONS);
        assert!(sessions.iter().any(|&n| n > 5_000), "{sessions:?}");
        assert!(checks.is_empty());
    }
}
