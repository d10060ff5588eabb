//! The objects that are known, found by name, by bundle, and by who has been silent for longest.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use super::block::Open;
use super::buffers::Lease;
use super::{DropReason, Limits, Origin, Signer};
use crate::id::BundleId;
use crate::partition::{BlockSet, Oti};
use crate::time::Time;
use crate::wire::{ObjectKind, Symbol};

/// Objects of one kind of a bundle: an honest sender has one, under one OTI.
pub(super) const OF_A_KIND: usize = 4;
/// Objects of bundles whose id names no trusted key.
const UNKNOWN: usize = 32;
/// Objects that are looked at to find one that makes room, before the newcomer is turned away.
const LOOKS: usize = 16;

/// How often blocks that the caller keeps, and that are of no use, are tried before it is asked again.
const TRIES: u8 = 8;
/// Objects that are looked at in one go, whether they are over.
const RETIRED: usize = 4_096;

/// A transport object.
pub(super) struct Object {
    pub(super) bundle: BundleId,
    pub(super) kind: ObjectKind,
    pub(super) oti: Oti,
    pub(super) state: ObjectState,
    pub(super) origin: Origin,
    pub(super) have: BlockSet,
    pub(super) open: HashMap<u32, Open, SbnHash>,
    /// Symbols that the caller keeps, by SBN.
    pub(super) parked: HashMap<u32, u32, SbnHash>,
    /// When something of it came last.
    pub(super) heard: Time,
    /// When a symbol came last that was of use.
    pub(super) last: Time,
    /// The caller is to be asked about it again.
    pub(super) is_stale: bool,
    /// Blocks that the caller keeps are not taken up before.
    pub(super) retry: Time,
    /// How often that was of no use since the caller was asked.
    pub(super) tries: u8,
    /// Tells it from another that had its slot before.
    pub(super) generation: u64,
    pub(super) counted: Lease,
}

pub(super) enum ObjectState {
    Wanted,
    Unwanted { reason: DropReason, since: Time },
}

/// Which room an object takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pool {
    Signed,
    /// Of bundles that nobody signed for.
    Unsigned,
    /// Announces of these, which may change that.
    Announces,
    /// Those whose bundle's id names no trusted key.
    Unknown,
}

const POOLS: usize = Pool::Unknown as usize + 1;

/// Where an object is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Handle {
    slot: usize,
    generation: u64,
}

/// What tells an object from others.
pub(super) type Key = (BundleId, ObjectKind, Oti);

pub(super) fn key(symbol: &Symbol) -> Key {
    (symbol.bundle, symbol.kind, symbol.oti)
}

/// All objects.
#[derive(Default)]
pub(super) struct Objects {
    slots: Vec<Option<Object>>,
    free: Vec<usize>,
    by_key: HashMap<Key, usize>,
    bundles: HashMap<BundleId, Bundle>,
    /// By when they were last heard of, roughly, oldest first. An object heard of since goes to the end when its turn
    /// comes.
    queues: [VecDeque<(Time, Handle)>; POOLS],
    counts: [usize; POOLS],
    generation: u64,
    /// Where the last symbol's object was found.
    recent: usize,
    sbn_hash: SbnHash,
}

/// A bundle of which objects are known.
#[derive(Default)]
struct Bundle {
    slots: Vec<usize>,
    signed: bool,
    /// Datagrams that came.
    traffic: u64,
}

/// What had to go so that another could come.
pub(super) enum Room {
    /// There is room.
    Free,
    /// There will be, when this object has gone.
    After(Handle),
    /// There is none.
    None,
}

impl Object {
    /// Blocks that the caller keeps were of no use: they are tried again in a while, some times, and then when it was asked again.
    pub(super) fn try_later(&mut self, now: Time, wait: Duration) {
        self.retry = now + wait;
        self.tries = self.tries.saturating_add(1);
        self.is_stale = true;
    }

    pub(super) fn may_try(&self, now: Time) -> bool {
        now >= self.retry && self.tries < TRIES
    }
}

impl Objects {
    /// The object that a symbol is of.
    pub(super) fn find(&mut self, symbol: &Symbol) -> Option<Handle> {
        let is = |o: &Object| o.bundle == symbol.bundle && o.kind == symbol.kind && o.oti == symbol.oti;
        match self.slots.get(self.recent).and_then(Option::as_ref) {
            Some(object) if is(object) => {}
            _ => self.recent = *self.by_key.get(&key(symbol))?,
        }
        self.handle(self.recent)
    }

    /// The one that was found last, to be looked at without a search.
    pub(super) fn recent(&mut self) -> Option<&mut Object> {
        self.slots.get_mut(self.recent)?.as_mut()
    }

    pub(super) fn get(&self, handle: Handle) -> Option<&Object> {
        self.slots.get(handle.slot)?.as_ref().filter(|object| object.generation == handle.generation)
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut Object> {
        self.slots.get_mut(handle.slot)?.as_mut().filter(|object| object.generation == handle.generation)
    }

    /// Handles of the objects of a bundle.
    pub(super) fn of(&self, bundle: BundleId) -> Vec<Handle> {
        let slots = self.bundles.get(&bundle).map(|bundle| bundle.slots.as_slice()).unwrap_or_default();
        slots.iter().filter_map(|&slot| self.handle(slot)).collect()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Object> {
        self.slots.iter().flatten()
    }

    /// Handles of all objects.
    pub(super) fn handles(&self) -> Vec<Handle> {
        (0..self.slots.len()).filter_map(|slot| self.handle(slot)).collect()
    }

    /// A map by SBN.
    pub(super) fn map<T>(&self) -> HashMap<u32, T, SbnHash> {
        HashMap::with_hasher(self.sbn_hash)
    }

    /// A datagram of a bundle came.
    pub(super) fn came(&mut self, bundle: BundleId) {
        if let Some(bundle) = self.bundles.get_mut(&bundle) {
            bundle.traffic = bundle.traffic.saturating_add(1);
        }
    }

    /// Whether a trusted key signed for a bundle of which objects are known.
    pub(super) fn is_signed(&self, bundle: BundleId) -> bool {
        self.bundles.get(&bundle).is_some_and(|bundle| bundle.signed)
    }

    /// How many datagrams came of a bundle whose objects are known.
    pub(super) fn traffic(&self, bundle: BundleId) -> u64 {
        self.bundles.get(&bundle).map_or(0, |bundle| bundle.traffic)
    }

    /// Half of what came of a bundle speaks for it no more.
    pub(super) fn spend(&mut self, bundle: BundleId) {
        if let Some(bundle) = self.bundles.get_mut(&bundle) {
            bundle.traffic /= 2;
        }
    }

    /// Objects of bundles that nobody signed for.
    pub(super) fn unsigned(&self) -> usize {
        self.counts.iter().sum::<usize>() - self.counts[Pool::Signed as usize]
    }

    /// Whether another object may come: one that is `wanted`, or only kept in mind as unwanted.
    pub(super) fn room(&mut self, now: Time, symbol: &Symbol, origin: Origin, wanted: bool, limits: &Limits) -> Room {
        let same = |o: &&Object| o.kind == symbol.kind;
        let of_a_kind: Vec<Handle> = self.of(symbol.bundle);
        let of_a_kind = of_a_kind.into_iter().filter(|&handle| self.get(handle).as_ref().is_some_and(same));
        let of_a_kind: Vec<Handle> = of_a_kind.collect();
        if of_a_kind.len() >= OF_A_KIND {
            // What is not wanted goes first, and never takes the place of what is.
            let is_wanted = |handle: &Handle| self.get(*handle).is_some_and(|o| matches!(o.state, ObjectState::Wanted));
            let may_go = of_a_kind.into_iter().filter(|handle| wanted || !is_wanted(handle));
            let silent = may_go.min_by_key(|handle| (is_wanted(handle), self.get(*handle).map(|o| o.heard)));
            return silent.map_or(Room::None, Room::After);
        }
        let pool = pool(symbol.kind, origin);
        let (most, idle) = match pool {
            Pool::Signed => (limits.objects, std::time::Duration::ZERO),
            Pool::Unsigned => (limits.unsigned_objects, limits.junk_idle),
            Pool::Announces => (limits.announces, limits.junk_idle / 10),
            Pool::Unknown => (UNKNOWN, limits.junk_idle / 10),
        };
        if self.counts[pool as usize] < most {
            return Room::Free;
        }
        self.silent(pool, now, idle).map_or(Room::None, Room::After)
    }

    /// The object of a signed bundle that was not heard of for longest, if there are more than may be.
    pub(super) fn too_many_signed(&mut self, now: Time, limits: &Limits) -> Option<Handle> {
        let too_many = self.counts[Pool::Signed as usize] > limits.objects;
        too_many.then(|| self.silent(Pool::Signed, now, std::time::Duration::ZERO)).flatten()
    }

    /// Objects of bundles that nobody signed for and that are silent for `idle`: a few at a time.
    pub(super) fn silent_unsigned(&mut self, now: Time, idle: std::time::Duration) -> Option<Handle> {
        let pools = [Pool::Unsigned, Pool::Announces, Pool::Unknown];
        pools.into_iter().find_map(|pool| self.silent(pool, now, idle))
    }

    /// The object of a pool that was not heard of for longest, if for `idle`; it leaves the queue.
    fn silent(&mut self, pool: Pool, now: Time, idle: std::time::Duration) -> Option<Handle> {
        for _ in 0..LOOKS {
            let (since, handle) = *self.queues[pool as usize].front()?;
            let Some(object) = self.get(handle).filter(|o| o.pool() == pool) else {
                self.queues[pool as usize].pop_front();
                continue;
            };
            if object.heard <= since {
                if now.since(since) < idle {
                    return None;
                }
                self.queues[pool as usize].pop_front();
                // Until it is removed; whoever asked does that.
                return Some(handle);
            }
            let heard = object.heard;
            self.queues[pool as usize].pop_front();
            self.queues[pool as usize].push_back((heard, handle));
        }
        None
    }

    /// Objects that have been silent for `idle`, are complete or not wanted: nothing is lost if they are asked about again. A few at
    /// a time.
    pub(super) fn retired(&mut self, now: Time, idle: std::time::Duration) -> Vec<Handle> {
        let mut retired = Vec::new();
        for _ in 0..self.queues[Pool::Signed as usize].len().min(RETIRED) {
            let Some(&(since, handle)) = self.queues[Pool::Signed as usize].front() else { break };
            let Some(object) = self.get(handle) else {
                self.queues[Pool::Signed as usize].pop_front();
                continue;
            };
            if object.heard <= since && now.since(since) < idle {
                break;
            }
            let silent = now.since(object.heard) >= idle;
            let over = object.have.len() == u64::from(object.oti.blocks()) && object.open.is_empty();
            let unwanted = matches!(object.state, ObjectState::Unwanted { .. });
            self.queues[Pool::Signed as usize].pop_front();
            if silent && (over || unwanted) {
                retired.push(handle);
            } else {
                self.queues[Pool::Signed as usize].push_back((now, handle));
            }
        }
        retired
    }

    /// Adds an object, for which there is room.
    pub(super) fn insert(&mut self, mut object: Object) -> Handle {
        self.generation += 1;
        object.generation = self.generation;
        let bundle = self.bundles.entry(object.bundle).or_default();
        bundle.signed |= object.is_signed();
        if bundle.signed {
            object.origin = Origin::Signed;
        }
        let slot = self.free.pop().unwrap_or(self.slots.len());
        bundle.slots.push(slot);
        self.by_key.insert((object.bundle, object.kind, object.oti), slot);
        let handle = Handle { slot, generation: self.generation };
        let pool = object.pool();
        self.counts[pool as usize] += 1;
        self.queues[pool as usize].push_back((object.heard, handle));
        if slot == self.slots.len() {
            self.slots.push(Some(object));
        } else {
            self.slots[slot] = Some(object);
        }
        self.recent = slot;
        handle
    }

    /// Takes an object out. The second value: it was the last of a bundle that nobody signed for.
    pub(super) fn remove(&mut self, handle: Handle) -> Option<(Object, bool)> {
        self.get(handle)?;
        let object = self.slots.get_mut(handle.slot)?.take()?;
        self.free.push(handle.slot);
        self.by_key.remove(&(object.bundle, object.kind, object.oti));
        let pool = object.pool();
        self.counts[pool as usize] -= 1;
        let mut last = false;
        if let Some(bundle) = self.bundles.get_mut(&object.bundle) {
            bundle.slots.retain(|&slot| slot != handle.slot);
            if bundle.slots.is_empty() {
                last = !bundle.signed;
                self.bundles.remove(&object.bundle);
            }
        }
        if self.queues[pool as usize].len() > 64 + 4 * self.counts[pool as usize] {
            self.tidy(pool);
        }
        Some((object, last))
    }

    /// A trusted key signed for a bundle: its objects are of another class from now on; gives those that were not before.
    pub(super) fn vouch(&mut self, id: BundleId) -> Vec<Handle> {
        let Some(bundle) = self.bundles.get_mut(&id) else { return Vec::new() };
        // One that came after its announce was checked may have said so already.
        bundle.signed = true;
        let is_other = |handle: &Handle| self.get(*handle).is_some_and(|object| !object.is_signed());
        let handles: Vec<Handle> = self.of(id).into_iter().filter(is_other).collect();
        for &handle in &handles {
            let Some(object) = self.get_mut(handle) else { continue };
            let before = object.pool();
            object.origin = Origin::Signed;
            let heard = object.heard;
            self.counts[before as usize] -= 1;
            self.counts[Pool::Signed as usize] += 1;
            self.queues[Pool::Signed as usize].push_back((heard, handle));
        }
        handles
    }

    /// Drops what a queue holds of objects that are gone.
    fn tidy(&mut self, pool: Pool) {
        let mut queue = std::mem::take(&mut self.queues[pool as usize]);
        queue.retain(|(_, handle)| self.get(*handle).is_some_and(|object| object.pool() == pool));
        self.queues[pool as usize] = queue;
    }

    fn handle(&self, slot: usize) -> Option<Handle> {
        let generation = self.slots.get(slot)?.as_ref()?.generation;
        Some(Handle { slot, generation })
    }
}

impl Object {
    fn pool(&self) -> Pool {
        pool(self.kind, self.origin)
    }

    /// The key that signed for its bundle.
    pub(super) fn signer(&self) -> Signer {
        self.is_signed().then(|| self.bundle.tag())
    }

    /// Whether a trusted key signed for its bundle.
    pub(super) fn is_signed(&self) -> bool {
        self.origin == Origin::Signed
    }

    /// Symbols of a block that the caller keeps.
    pub(super) fn kept(&self, sbn: u32) -> u32 {
        if self.parked.is_empty() { 0 } else { self.parked.get(&sbn).copied().unwrap_or(0) }
    }
}

fn pool(kind: ObjectKind, origin: Origin) -> Pool {
    match (origin, kind) {
        (Origin::Signed, _) => Pool::Signed,
        (Origin::Unknown, _) => Pool::Unknown,
        (Origin::Named, ObjectKind::Announce) => Pool::Announces,
        (Origin::Named, _) => Pool::Unsigned,
    }
}

/// Hashes SBNs by a multiplication with a number that nobody outside knows, so that nobody can make many collide.
#[derive(Clone, Copy)]
pub(super) struct SbnHash(u64);

pub(super) struct SbnHasher {
    factor: u64,
    hash: u64,
}

impl Default for SbnHash {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0_u32) | 1)
    }
}

impl BuildHasher for SbnHash {
    type Hasher = SbnHasher;

    fn build_hasher(&self) -> SbnHasher {
        SbnHasher { factor: self.0, hash: 0 }
    }
}

impl Hasher for SbnHasher {
    fn finish(&self) -> u64 {
        self.hash
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u32(u32::from(b));
        }
    }
    fn write_u32(&mut self, n: u32) {
        self.hash = (self.hash ^ u64::from(n)).wrapping_mul(self.factor).rotate_left(26);
    }
}
