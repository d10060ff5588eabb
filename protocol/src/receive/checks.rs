//! Signed objects that came in one block, and beacons, on their way to be checked: no more of them a second than signatures may be
//! checked.
//!
//! Beacons, objects of bundles that a trusted key signed for, and objects of bundles whose id names a trusted key take
//! turns. One check in sixteen goes to a bundle whose id names none. Within both groups of objects, keys take turns.
//! Where a key is only named, the bundle of which more came goes first: to get ahead of an honest bundle, an attacker
//! has to send as much, and half of that again after each check that fails.

use std::collections::{BTreeMap, VecDeque};
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
/// Beacons of a session of which one counted that wait at most.
const OF_A_SESSION: usize = 4;
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
    /// Beacons of sessions of which none counted yet.
    beacons: Vec<(SessionId, Vec<u8>)>,
    /// Those of sessions of which one counted, by whose turn it is.
    known_beacons: VecDeque<(SessionId, Vec<Vec<u8>>)>,
    /// Whether one of the others had its turn last.
    unknown_beacons: bool,
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
            known_beacons: VecDeque::new(),
            unknown_beacons: false,
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

    /// A beacon came, of a session of which one counted before or not. False: it, or one that waited, is turned away, since there
    /// are too many.
    pub(super) fn push_beacon(&mut self, session: SessionId, is_known: bool, signed: &[u8]) -> bool {
        let dice = self.throw() as usize;
        if is_known {
            return self.push_known_beacon(dice, session, signed);
        }
        if self.beacons.len() < self.most_beacons {
            self.beacons.push((session, signed.to_vec()));
            return true;
        }
        // Each that comes is as likely to be looked at as any other.
        let at = dice % (self.most_beacons * 2).max(1);
        if let Some(place) = self.beacons.get_mut(at) {
            *place = (session, signed.to_vec());
        }
        false
    }

    /// Sessions take turns, so that the beacons of one keep none of another out.
    fn push_known_beacon(&mut self, dice: usize, session: SessionId, signed: &[u8]) -> bool {
        let Some((_, beacons)) = self.known_beacons.iter_mut().find(|(known, _)| *known == session) else {
            let has_room = self.known_beacons.len() < self.most_beacons;
            if has_room {
                self.known_beacons.push_back((session, vec![signed.to_vec()]));
            }
            return has_room;
        };
        if beacons.len() < OF_A_SESSION {
            beacons.push(signed.to_vec());
            return true;
        }
        if let Some(place) = beacons.get_mut(dice % (OF_A_SESSION * 2)) {
            *place = signed.to_vec();
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
                0 => self.next_beacon(),
                1 => self.signed.next(traffic).map(object),
                _ => self.named.next(traffic).map(object),
            };
            if next.is_some() {
                return next;
            }
        }
        self.unknown.pop().map(object)
    }

    /// The oldest beacon: sessions of which one counted and the others take turns.
    fn next_beacon(&mut self) -> Option<Check> {
        self.unknown_beacons = !self.unknown_beacons;
        let is_known = !self.known_beacons.is_empty() && (self.unknown_beacons || self.beacons.is_empty());
        if !is_known {
            let (session, signed) = (!self.beacons.is_empty()).then(|| self.beacons.remove(0))?;
            return Some(Check::Beacon(session, signed));
        }
        let (session, mut beacons) = self.known_beacons.pop_front()?;
        let signed = beacons.remove(0);
        if !beacons.is_empty() {
            self.known_beacons.push_back((session, beacons));
        }
        Some(Check::Beacon(session, signed))
    }

    pub(super) fn is_empty(&self) -> bool {
        let beacons = self.beacons.len() + self.known_beacons.len();
        self.signed.len + self.named.len + self.unknown.len() + beacons == 0
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
        if !self.checks.push_beacon(session, self.counters.is_counted(session), signed) {
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
mod tests;
