//! The receiving side, without sockets, threads or clocks.
//!
//! 1. An [`Opener`](crate::seal::Opener), one a receive thread, authenticates datagrams; no other leaves a trace.
//! 2. [`Reassembly::take`], or [`Reassembly::handle`] of what has been opened, drops replays, asks the caller once about each new
//!    object, and puts each symbol in the place it has in its block.
//! 3. A block that has K symbols comes out of [`Reassembly::poll_block`]: whole, or to be decoded
//!    ([`ReceivedBlock::decode`], outside of any lock).
//! 4. The caller gives it back: [`Reassembly::stored`], [`Reassembly::undecodable`] or [`Reassembly::failed`].
//!
//! Memory is bounded by [`Limits::memory`]: when it is full, the block that has waited longest for a symbol comes out of
//! [`Reassembly::poll_parked`] with what it has; as long as the caller leaves one there, symbols of new blocks are dropped instead, so
//! that those that are open complete. If the caller keeps these symbols ([`Reassembly::parked`]), they count
//! when more arrive: the block that comes out then says so ([`ReceivedBlock::has_parked`]).

mod block;
mod buffers;
mod drops;
mod record;
mod replay;
mod take;
mod tally;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

pub use self::block::ReceivedBlock;
use self::block::{Open, State};
use self::buffers::Buffers;
pub use self::drops::{DropReason, Drops};
pub use self::record::{BlockMemory, Extent, recover};
use self::replay::Sessions;
pub use self::take::Taken;
use self::tally::Margins;
pub use self::tally::Tally;
use crate::id::BundleId;
use crate::partition::{BlockSet, Oti};
use crate::time::Time;
use crate::wire::{ObjectKind, Symbol};

/// What a reassembly may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of all blocks that are not stored yet.
    pub memory: u64,
    /// Objects known at once; the one unheard of for longest makes room.
    pub objects: usize,
    /// A block without a new symbol for this long is parked.
    pub idle: Duration,
    /// An answer of [`Wanted::No`] is asked for again after this long.
    pub ask_again: Duration,
}

/// The caller's answer about an object that it has not been asked about before, or not for a while.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// Collect it, but for these blocks.
    Yes {
        /// SBNs that are stored already.
        have: BlockSet,
        /// How many symbols the caller keeps of blocks that were parked.
        parked: Vec<(u32, u32)>,
    },
    /// Drop its symbols under this reason.
    No(DropReason),
}

/// How far an object is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// The bundle.
    pub bundle: BundleId,
    /// Which object of it.
    pub kind: ObjectKind,
    /// Its OTI.
    pub oti: Oti,
    /// Blocks stored.
    pub blocks_done: u64,
    /// Blocks of which some symbols are here.
    pub blocks_open: u64,
    /// Symbols that these lack at least.
    pub symbols_lacking: u64,
    /// When the last symbol came that was not a duplicate.
    pub last: Time,
}

/// Everything between authentic datagrams and blocks. Never keyed by anything that has not been authenticated.
pub struct Reassembly {
    limits: Limits,
    sessions: Sessions,
    objects: Vec<Object>,
    /// Where the last symbol's object was found.
    recent: usize,
    buffers: Buffers,
    ready: VecDeque<ReceivedBlock>,
    parked: VecDeque<ReceivedBlock>,
    margins: Margins,
}

struct Object {
    bundle: BundleId,
    kind: ObjectKind,
    oti: Oti,
    state: ObjectState,
    have: BlockSet,
    open: HashMap<u32, Open, BuildHasherDefault<SbnHasher>>,
    /// Symbols that the caller keeps, by SBN.
    parked: HashMap<u32, u32, BuildHasherDefault<SbnHasher>>,
    heard: Time,
    last: Time,
}

enum ObjectState {
    Wanted,
    Unwanted { reason: DropReason, since: Time },
}

/// Only authenticated SBNs get here, so a multiplication is hash enough.
#[derive(Default)]
struct SbnHasher(u64);

impl Hasher for SbnHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u32(u32::from(b));
        }
    }
    fn write_u32(&mut self, n: u32) {
        self.0 = (self.0 ^ u64::from(n)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

impl Reassembly {
    /// Nothing received yet; blocks are on the heap.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self::with(limits, None)
    }

    /// Nothing received yet; blocks are in `memory` as long as it has room, then on the heap. Where that memory outlives the
    /// process, [`recover`] finds them in it.
    #[must_use]
    pub fn with_memory(limits: Limits, memory: Box<dyn BlockMemory>) -> Self {
        Self::with(limits, Some(memory))
    }

    fn with(limits: Limits, memory: Option<Box<dyn BlockMemory>>) -> Self {
        Self {
            limits,
            sessions: Sessions::default(),
            objects: Vec::new(),
            recent: 0,
            buffers: Buffers::new(limits.memory, memory),
            ready: VecDeque::new(),
            parked: VecDeque::new(),
            margins: Margins::default(),
        }
    }

    /// A block with K symbols or more.
    pub fn poll_block(&mut self) -> Option<ReceivedBlock> {
        self.ready.pop_front()
    }

    /// A block that had to make room, or waited too long. Its symbols are lost unless the caller keeps them.
    pub fn poll_parked(&mut self) -> Option<ReceivedBlock> {
        self.parked.pop_front()
    }

    /// The block is stored: its further symbols are surplus.
    pub fn stored(&mut self, block: ReceivedBlock) {
        if let Some(object) = self.find(&block) {
            object.have.insert(block.sbn());
            object.parked.remove(&block.sbn());
            if let Some(open) = object.open.remove(&block.sbn()) {
                self.buffers.recycle_open(open);
            }
        }
        self.buffers.recycle(block);
    }

    /// The caller keeps `symbols` symbols of this parked block: it gives them back when the block comes out again, which
    /// may be at once ([`Reassembly::poll_block`]) when the others came meanwhile, or later when there is no room.
    pub fn parked(&mut self, block: ReceivedBlock, symbols: u32) {
        let sbn = block.sbn();
        let at = self.objects.iter().position(|o| o.is(block.bundle(), block.kind(), &block.oti()));
        let Some(at) = at.filter(|&at| !self.objects[at].have.contains(sbn)) else {
            return self.buffers.recycle(block);
        };
        let object = &mut self.objects[at];
        object.parked.insert(sbn, symbols);
        if let Some(open) = object.open.get_mut(&sbn) {
            self.ready.extend(open.complete(symbols));
        }
        self.buffers.recycle(block);
        self.complete_parked(at);
    }

    /// Takes every block out that is not being worked on, so that the caller can keep its symbols over a restart.
    pub fn park_all(&mut self) {
        for object in &mut self.objects {
            let waiting = object.open.extract_if(|_, open| open.block.is_some());
            self.parked.extend(waiting.filter_map(|(_, open)| open.block));
        }
    }

    /// The block's symbols did not suffice: it goes on collecting.
    pub fn undecodable(&mut self, mut block: ReceivedBlock) {
        let sbn = block.sbn();
        let at = self.objects.iter().position(|o| o.is(block.bundle(), block.kind(), &block.oti()));
        let Some(open) = at.and_then(|at| self.objects[at].open.get_mut(&sbn)) else {
            self.buffers.recycle(block);
            return;
        };
        let late = open.resume();
        let mut more = false;
        for (esi, bytes) in late {
            more |= block.put(esi, &bytes, &mut self.buffers).is_ok();
            self.buffers.recycle_symbol(bytes);
        }
        // What was parked is in the block by now.
        block.clear_parked();
        open.block = Some(block);
        if more && let Some(block) = open.complete(0) {
            self.ready.push_back(block);
        }
        if let Some(at) = at {
            self.objects[at].parked.remove(&sbn);
        }
    }

    /// The block could not be stored: it counts as not received, and the object is asked about again.
    pub fn failed(&mut self, block: ReceivedBlock) {
        let sbn = block.sbn();
        let at = self.objects.iter().position(|o| o.is(block.bundle(), block.kind(), &block.oti()));
        if let Some(at) = at {
            if let Some(open) = self.objects[at].open.remove(&sbn) {
                self.buffers.recycle_open(open);
            }
            self.remove_object(at, false);
        }
        self.buffers.recycle(block);
    }

    /// The blocks of this bundle are not wanted any more, or the answer about them has changed.
    pub fn forget(&mut self, bundle: BundleId) {
        while let Some(at) = self.objects.iter().position(|o| o.bundle == bundle) {
            self.remove_object(at, false);
        }
    }

    /// Which blocks of a bundle's data have some of their symbols, those that the caller keeps among them, and how many they
    /// lack. Blocks that are not named are stored, or lack all. Empty when nothing came of late.
    #[must_use]
    pub fn lacking(&self, bundle: BundleId) -> Vec<(u32, u32)> {
        let is_data = |o: &&Object| o.bundle == bundle && o.kind == ObjectKind::Data;
        let Some(object) = self.objects.iter().find(|o| is_data(o) && matches!(o.state, ObjectState::Wanted)) else {
            return Vec::new();
        };
        let source = |sbn: u32| u32::from(object.oti.block_symbols(sbn).unwrap_or(0));
        let kept = |sbn: &u32| object.parked.get(sbn).copied().unwrap_or(0);
        // One that is being stored at this moment lacks nothing, or one when it cannot be decoded.
        let open = object.open.iter().map(|(sbn, open)| (*sbn, open.lacking().saturating_sub(kept(sbn)).max(1)));
        let parked = object.parked.iter().filter(|(sbn, _)| !object.open.contains_key(sbn));
        let parked = parked.map(|(&sbn, &symbols)| (sbn, source(sbn).saturating_sub(symbols).max(1)));
        let mut all: Vec<(u32, u32)> = open.chain(parked).filter(|(sbn, _)| !object.have.contains(*sbn)).collect();
        all.sort_unstable();
        all
    }

    /// What is known of the link; begins longest burst and margin anew.
    pub fn tally(&mut self) -> Tally {
        let (sent, received, longest_burst) = self.sessions.tally();
        Tally { sent, received, longest_burst, margin: self.margins.least() }
    }

    /// Parks blocks that have waited too long, and takes up those that are complete with what was parked. Call about ten times a
    /// second.
    pub fn handle_timeout(&mut self, now: Time) {
        self.margins.settle(now);
        (0..self.objects.len()).for_each(|at| self.complete_parked(at));
        let idle = self.limits.idle;
        for object in &mut self.objects {
            let stale = object.open.iter().filter(|(_, open)| open.block.is_some() && now.since(open.heard) >= idle);
            let stale: Vec<u32> = stale.map(|(&sbn, _)| sbn).collect();
            for sbn in stale {
                let open = object.open.remove(&sbn);
                if let Some((source, received, highest)) =
                    open.as_ref().and_then(|open| open.block.as_ref()).map(ReceivedBlock::counted)
                    && object.kind == ObjectKind::Data
                    && !object.parked.contains_key(&sbn)
                {
                    self.margins.lacks(source, source.saturating_sub(received), highest);
                }
                self.parked.extend(open.and_then(|open| open.block));
            }
        }
    }

    /// Gives back the memory of a parked block whose symbols nobody keeps.
    pub fn recycle(&mut self, block: ReceivedBlock) {
        self.buffers.recycle(block);
    }

    /// How far each object is that is being collected.
    pub fn progress(&self) -> impl Iterator<Item = Progress> + '_ {
        self.objects.iter().filter(|o| matches!(o.state, ObjectState::Wanted)).map(|o| Progress {
            bundle: o.bundle,
            kind: o.kind,
            oti: o.oti,
            blocks_done: o.have.len(),
            blocks_open: o.open.len() as u64,
            symbols_lacking: o
                .open
                .iter()
                .map(|(sbn, open)| u64::from(open.lacking().saturating_sub(o.parked.get(sbn).copied().unwrap_or(0))))
                .sum(),
            last: o.last,
        })
    }

    /// Bytes held for blocks that are not stored yet.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.buffers.held()
    }

    fn object(
        &mut self,
        now: Time,
        symbol: &Symbol,
        want: &mut dyn FnMut(&Symbol) -> Wanted,
    ) -> Result<usize, DropReason> {
        let is = |o: &Object| o.is(symbol.bundle, symbol.kind, &symbol.oti);
        let found = if self.objects.get(self.recent).is_some_and(is) {
            Some(self.recent)
        } else {
            self.objects.iter().position(is)
        };
        if let Some(at) = found {
            self.recent = at;
            match self.objects[at].state {
                ObjectState::Wanted => return Ok(at),
                ObjectState::Unwanted { reason, since } if now.since(since) < self.limits.ask_again => {
                    self.objects[at].heard = now;
                    return Err(reason);
                }
                ObjectState::Unwanted { .. } => self.remove_object(at, false),
            }
        }
        if self.objects.len() >= self.limits.objects {
            let oldest = self.objects.iter().enumerate().min_by_key(|(_, o)| o.heard).map(|(at, _)| at);
            if let Some(at) = oldest {
                self.remove_object(at, true);
            }
        }
        let (state, have, parked, answer) = match want(symbol) {
            Wanted::Yes { have, parked } => (ObjectState::Wanted, have, parked, Ok(())),
            Wanted::No(reason) => {
                (ObjectState::Unwanted { reason, since: now }, BlockSet::new(), Vec::new(), Err(reason))
            }
        };
        self.objects.push(Object {
            bundle: symbol.bundle,
            kind: symbol.kind,
            oti: symbol.oti,
            state,
            have,
            open: HashMap::default(),
            parked: parked.into_iter().collect(),
            heard: now,
            last: now,
        });
        self.recent = self.objects.len() - 1;
        self.complete_parked(self.recent);
        answer.map(|()| self.recent)
    }

    /// Blocks of which the caller keeps enough, so that nothing more need come of them: as many as there is room for.
    fn complete_parked(&mut self, at: usize) {
        let object = &self.objects[at];
        let source = |sbn: u32| object.oti.block_symbols(sbn).unwrap_or(u16::MAX);
        let kept = object.parked.iter().map(|(&sbn, &kept)| (sbn, source(sbn), kept));
        let enough = kept.filter(|(sbn, source, kept)| {
            *kept >= u32::from(*source) && !object.open.contains_key(sbn) && !object.have.contains(*sbn)
        });
        let place = Symbol { bundle: object.bundle, kind: object.kind, sbn: 0, esi: 0, oti: object.oti };
        for (sbn, source, kept) in enough.collect::<Vec<_>>() {
            if !self.make_room(Buffers::block_bytes(source, &place.oti)) {
                return;
            }
            let block = self.buffers.block(&Symbol { sbn, ..place }, source);
            let object = &mut self.objects[at];
            let mut open = Open { block: Some(block), state: State::Collecting, heard: object.heard };
            self.ready.extend(open.complete(kept));
            object.open.insert(sbn, open);
        }
    }

    fn remove_object(&mut self, at: usize, park: bool) {
        let object = self.objects.swap_remove(at);
        self.recent = 0;
        for (_, mut open) in object.open {
            match open.block.take() {
                Some(block) if park => self.parked.push_back(block),
                block => {
                    if let Some(block) = block {
                        self.buffers.recycle(block);
                    }
                    self.buffers.recycle_open(open);
                }
            }
        }
    }

    /// Parks the blocks that have waited longest until `bytes` fit. False: what is left is being worked on, or the caller has no
    /// time to keep more. Blocks on the wire take turns, so each in its turn would make room for the next and none complete.
    fn make_room(&mut self, bytes: u64) -> bool {
        while self.buffers.is_full(bytes) {
            if !self.parked.is_empty() {
                return false;
            }
            let waiting = self.objects.iter().enumerate().flat_map(|(at, o)| {
                o.open.iter().filter(|(_, open)| open.block.is_some()).map(move |(&sbn, open)| (open.heard, at, sbn))
            });
            let Some((_, at, sbn)) = waiting.min() else { return false };
            let block = self.objects[at].open.remove(&sbn).and_then(|open| open.block);
            // Its buffers are free once the caller gives it back; until then it does not count.
            if let Some(mut block) = block {
                self.buffers.release(&mut block);
                self.parked.push_back(block);
            }
        }
        true
    }

    fn find(&mut self, block: &ReceivedBlock) -> Option<&mut Object> {
        self.objects.iter_mut().find(|o| o.is(block.bundle(), block.kind(), &block.oti()))
    }
}

impl Object {
    fn is(&self, bundle: BundleId, kind: ObjectKind, oti: &Oti) -> bool {
        self.bundle == bundle && self.kind == kind && self.oti == *oti
    }
}

#[cfg(test)]
mod tests;
