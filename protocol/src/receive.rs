//! The receiving side, without sockets, threads or clocks.
//!
//! 1. An [`Opener`](crate::seal::Opener), one a receive thread, authenticates datagrams; no other leaves a trace.
//! 2. [`Reassembly::take`], or [`Reassembly::handle`] of what has been opened, asks the caller once about each new
//!    object, and puts each symbol in the place it has in its block.
//! 3. A block that has K symbols comes out of [`Reassembly::poll_block`]: whole, or to be decoded
//!    ([`ReceivedBlock::decode`], outside of any lock).
//! 4. The caller gives it back: [`Reassembly::stored`], [`Reassembly::undecodable`], [`Reassembly::failed`] or
//!    [`Reassembly::discarded`].
//!
//! Whoever has the link key can send symbols of anything. So bundles that a trusted key signed for ([`Wanted::Yes`],
//! [`Reassembly::vouch`]) have room of their own, and the others share a small one, in which the silent make room; their announces,
//! which may change what they are, have another.
//!
//! Memory is bounded by [`Limits::memory`], in which everything counts as what it takes: when it is full, the block that has waited
//! longest for a symbol comes out of [`Reassembly::poll_parked`] with what it has, or is dropped if nobody signed for it; as long as
//! the caller leaves one there, symbols of new blocks are dropped instead, so that those that are open complete. If the caller keeps
//! these symbols ([`Reassembly::parked`]), they count when more arrive: the block that comes out then says so
//! ([`ReceivedBlock::has_parked`]).

mod block;
mod buffers;
mod counters;
mod drops;
mod objects;
mod record;
mod take;
mod tally;

use std::collections::VecDeque;
use std::time::Duration;

pub use self::block::ReceivedBlock;
use self::block::{Open, State};
use self::buffers::Buffers;
use self::counters::Counters;
pub use self::drops::{DropReason, Drops};
use self::objects::{Handle, Object, ObjectState, Objects, Room};
pub use self::record::{BlockMemory, Extent, recover};
pub use self::take::Taken;
use self::tally::Margins;
pub use self::tally::Tally;
use crate::id::{BundleId, SessionId};
use crate::partition::{BlockSet, Oti};
use crate::time::Time;
use crate::wire::{ObjectKind, Symbol};

/// What a reassembly may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of all blocks that are not stored yet, and of what is known of them.
    pub memory: u64,
    /// How much of it bundles may take that nobody signed for.
    pub unsigned_memory: u64,
    /// Objects of bundles that a trusted key signed for, known at once; the one unheard of for longest makes room.
    pub objects: usize,
    /// Objects of other bundles, without their announces.
    pub unsigned_objects: usize,
    /// Announces of other bundles.
    pub announces: usize,
    /// Blocks under way.
    pub open_blocks: usize,
    /// A block without a new symbol for this long is parked.
    pub idle: Duration,
    /// What is of a bundle that nobody signed for, and silent for this long, makes room for others.
    pub junk_idle: Duration,
    /// It leaves after this long even if nobody needs the room.
    pub junk_most: Duration,
    /// An answer of [`Wanted::No`] is asked for again after this long.
    pub ask_again: Duration,
}

impl Limits {
    /// The usual ones, with so many bytes of memory.
    #[must_use]
    pub fn new(memory: u64) -> Self {
        Self {
            memory,
            unsigned_memory: memory / 4,
            objects: 65_536,
            unsigned_objects: 1_024,
            announces: 256,
            open_blocks: 65_536,
            idle: Duration::from_secs(20),
            junk_idle: Duration::from_secs(1),
            junk_most: Duration::from_secs(30),
            ask_again: Duration::from_millis(500),
        }
    }
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
        /// A trusted key signed for its bundle.
        signed: bool,
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

/// How much of what a reassembly may use is in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes, as [`Limits::memory`] counts them.
    pub memory: u64,
    /// Those of them of bundles that nobody signed for.
    pub unsigned_memory: u64,
    /// Objects known.
    pub objects: usize,
    /// Those of them of bundles that nobody signed for.
    pub unsigned_objects: usize,
    /// Blocks under way.
    pub open_blocks: usize,
}

/// Everything between authentic datagrams and blocks. Never keyed by anything that has not been authenticated.
pub struct Reassembly {
    limits: Limits,
    counters: Counters,
    objects: Objects,
    buffers: Buffers,
    ready: VecDeque<ReceivedBlock>,
    parked: VecDeque<ReceivedBlock>,
    /// Blocks by when they were heard of, roughly, oldest first; of bundles that were signed for, and of others.
    waiting: [VecDeque<(Time, Handle, u32)>; 2],
    open_blocks: usize,
    /// Bundles that nobody signed for and of which nothing is left.
    expired: VecDeque<BundleId>,
    margins: Margins,
}

/// Expired bundles that wait to be asked for; of more the caller learns when it looks.
const MOST_EXPIRED: usize = 4_096;
/// An object that is complete, and of which nothing came for so long, is not remembered any more.
const SETTLED: Duration = Duration::from_secs(5);

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
            counters: Counters::default(),
            objects: Objects::default(),
            buffers: Buffers::new(limits.memory, limits.unsigned_memory, memory),
            ready: VecDeque::new(),
            parked: VecDeque::new(),
            waiting: [VecDeque::new(), VecDeque::new()],
            open_blocks: 0,
            expired: VecDeque::new(),
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

    /// A bundle that nobody signed for, and of which nothing is known here any more: what else there is of it may go too.
    pub fn poll_expired(&mut self) -> Option<BundleId> {
        self.expired.pop_front()
    }

    /// A trusted key signed for this bundle: it has the room of those from now on.
    pub fn vouch(&mut self, bundle: BundleId) {
        for handle in self.objects.vouch(bundle) {
            let Some(object) = self.objects.get_mut(handle) else { continue };
            for (&sbn, open) in &mut object.open {
                if let Some(lease) = open.block.as_mut().and_then(ReceivedBlock::lease_mut) {
                    self.buffers.vouch(lease);
                }
                self.waiting[1].push_back((open.heard, handle, sbn));
            }
            self.buffers.vouch(&mut object.counted);
        }
    }

    /// A beacon that counts says that `datagrams` were sent in this session before it.
    pub fn sent(&mut self, session: SessionId, datagrams: u64) {
        self.counters.sent(session, datagrams);
    }

    /// The block is stored: its further symbols are surplus.
    pub fn stored(&mut self, block: ReceivedBlock) {
        if let Some(handle) = self.worked_on(&block)
            && let Some(object) = self.objects.get_mut(handle)
        {
            object.have.insert(block.sbn());
            object.parked.remove(&block.sbn());
            self.close(handle, block.sbn());
        }
        self.buffers.recycle(block);
    }

    /// The caller keeps `symbols` symbols of this parked block: it gives them back when the block comes out again, which
    /// may be at once ([`Reassembly::poll_block`]) when the others came meanwhile, or later when there is no room.
    pub fn parked(&mut self, block: ReceivedBlock, symbols: u32) {
        let sbn = block.sbn();
        let handle = self.objects.find(&block.symbol());
        if let Some(object) = handle.and_then(|handle| self.objects.get_mut(handle)).filter(|o| !o.have.contains(sbn)) {
            object.parked.insert(sbn, symbols);
            if let Some(open) = object.open.get_mut(&sbn) {
                self.ready.extend(open.complete(symbols, 0));
            }
        }
        self.buffers.recycle(block);
        if let Some(handle) = handle {
            self.complete_parked(handle);
        }
    }

    /// Takes every block out that is not being worked on, so that the caller can keep its symbols over a restart.
    pub fn park_all(&mut self) {
        for handle in self.objects.handles() {
            let Some(object) = self.objects.get_mut(handle) else { continue };
            let waiting = object.open.extract_if(|_, open| open.block.is_some());
            let before = self.parked.len();
            self.parked.extend(waiting.filter_map(|(_, open)| open.block));
            self.open_blocks -= self.parked.len() - before;
        }
    }

    /// The block's symbols did not suffice: it goes on collecting.
    pub fn undecodable(&mut self, mut block: ReceivedBlock) {
        let sbn = block.sbn();
        let handle = self.worked_on(&block);
        let object = handle.and_then(|handle| self.objects.get_mut(handle));
        let Some(open) = object.and_then(|object| object.open.get_mut(&sbn)) else {
            self.buffers.recycle(block);
            return;
        };
        let mut more = false;
        for late in open.resume() {
            more |= block.put(late.esi, &late.bytes, &mut self.buffers).is_ok();
        }
        // What was parked is in the block by now.
        block.clear_parked();
        let traffic = block.traffic();
        open.block = Some(block);
        if more && let Some(block) = open.complete(0, traffic) {
            self.ready.push_back(block);
        } else if let Some(handle) = handle {
            self.wait(handle, sbn);
        }
        if let Some(object) = handle.and_then(|handle| self.objects.get_mut(handle)) {
            object.parked.remove(&sbn);
        }
    }

    /// The block could not be stored: it counts as not received, and the object is asked about again.
    pub fn failed(&mut self, block: ReceivedBlock) {
        if let Some(handle) = self.worked_on(&block) {
            self.remove_object(handle, false);
        }
        self.buffers.recycle(block);
    }

    /// The block's object is not what it should be: nothing of it was received, and it is asked about again.
    pub fn discarded(&mut self, block: ReceivedBlock) {
        self.failed(block);
    }

    /// The blocks of this bundle are not wanted any more, or the answer about them has changed.
    pub fn forget(&mut self, bundle: BundleId) {
        for handle in self.objects.of(bundle) {
            self.remove_object(handle, false);
        }
    }

    /// Which blocks of a bundle's data have some of their symbols, those that the caller keeps among them, and how many they
    /// lack. Blocks that are not named are stored, or lack all. Empty when nothing came of late.
    #[must_use]
    pub fn lacking(&self, bundle: BundleId) -> Vec<(u32, u32)> {
        let wanted = |o: &&Object| o.kind == ObjectKind::Data && matches!(o.state, ObjectState::Wanted);
        let objects = self.objects.of(bundle);
        let Some(object) = objects.iter().filter_map(|&handle| self.objects.get(handle)).find(wanted) else {
            return Vec::new();
        };
        let source = |sbn: u32| u32::from(object.oti.block_symbols(sbn).unwrap_or(0));
        // One that is being stored at this moment lacks nothing, or one when it cannot be decoded.
        let open = object.open.iter().map(|(&sbn, open)| (sbn, open.lacking().saturating_sub(object.kept(sbn)).max(1)));
        let parked = object.parked.iter().filter(|(sbn, _)| !object.open.contains_key(sbn));
        let parked = parked.map(|(&sbn, &symbols)| (sbn, source(sbn).saturating_sub(symbols).max(1)));
        let mut all: Vec<(u32, u32)> = open.chain(parked).filter(|(sbn, _)| !object.have.contains(*sbn)).collect();
        all.sort_unstable();
        all
    }

    /// What is known of the link; begins longest burst and margin anew.
    pub fn tally(&mut self) -> Tally {
        let (sent, received, longest_burst) = self.counters.tally();
        Tally { sent, received, longest_burst, margin: self.margins.least() }
    }

    /// Parks blocks that have waited too long, takes up those that are complete with what was parked, and lets go of what nobody
    /// signed for and is silent. Call about ten times a second.
    pub fn handle_timeout(&mut self, now: Time) {
        self.margins.settle(now);
        for handle in self.objects.handles() {
            if self.objects.get(handle).is_some_and(|object| !object.parked.is_empty()) {
                self.complete_parked(handle);
            }
        }
        while let Some((handle, sbn)) = self.longest_waiting(true, Some((now, self.limits.idle))) {
            self.park(handle, sbn);
        }
        for handle in self.objects.retired(now, SETTLED) {
            self.remove_object(handle, false);
        }
        // Where there is little room left, the silent leave sooner.
        let pressed = self.objects.unsigned() > (self.limits.unsigned_objects + self.limits.announces) / 2
            || self.buffers.held_unsigned() > self.limits.unsigned_memory / 2;
        let idle = if pressed { self.limits.junk_idle } else { self.limits.junk_most };
        while let Some(handle) = self.objects.silent_unsigned(now, idle) {
            self.remove_object(handle, false);
        }
    }

    /// Gives back the memory of a parked block whose symbols nobody keeps.
    pub fn recycle(&mut self, block: ReceivedBlock) {
        self.buffers.recycle(block);
    }

    /// How far each object is that is being collected.
    pub fn progress(&self) -> impl Iterator<Item = Progress> + '_ {
        self.objects.all().filter(|o| o.signed && matches!(o.state, ObjectState::Wanted)).map(|o| Progress {
            bundle: o.bundle,
            kind: o.kind,
            oti: o.oti,
            blocks_done: o.have.len(),
            blocks_open: o.open.len() as u64,
            symbols_lacking: o
                .open
                .iter()
                .map(|(&sbn, open)| u64::from(open.lacking().saturating_sub(o.kept(sbn))))
                .sum(),
            last: o.last,
        })
    }

    /// Bytes held for blocks that are not stored yet.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.buffers.held()
    }

    /// What is in use.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            memory: self.buffers.held(),
            unsigned_memory: self.buffers.held_unsigned(),
            objects: self.objects.all().count(),
            unsigned_objects: self.objects.unsigned(),
            open_blocks: self.open_blocks,
        }
    }

    fn object(
        &mut self,
        now: Time,
        symbol: &Symbol,
        want: &mut dyn FnMut(&Symbol) -> Wanted,
    ) -> Result<Handle, DropReason> {
        if let Some(handle) = self.objects.find(symbol)
            && let Some(object) = self.objects.get_mut(handle)
        {
            match object.state {
                ObjectState::Wanted => return Ok(handle),
                ObjectState::Unwanted { reason, since } if now.since(since) < self.limits.ask_again => {
                    object.heard = now;
                    return Err(reason);
                }
                ObjectState::Unwanted { .. } => self.remove_object(handle, false),
            }
        }
        let known = self.objects.is_signed(symbol.bundle);
        let (state, have, parked, signed, answer) = match want(symbol) {
            Wanted::Yes { have, parked, signed } => (ObjectState::Wanted, have, parked, signed || known, Ok(())),
            Wanted::No(reason) => {
                // What is not wanted takes the room of those that nobody signed for.
                (ObjectState::Unwanted { reason, since: now }, BlockSet::new(), Vec::new(), known, Err(reason))
            }
        };
        match self.objects.room(now, symbol, (signed, answer.is_ok()), &self.limits) {
            Room::Free => {}
            Room::After(handle) => self.remove_object(handle, signed),
            Room::None => return answer.and(Err(DropReason::Limit)),
        }
        let mut kept = self.objects.map();
        kept.extend(parked);
        let handle = self.objects.insert(Object {
            bundle: symbol.bundle,
            kind: symbol.kind,
            oti: symbol.oti,
            state,
            signed,
            have,
            open: self.objects.map(),
            parked: kept,
            heard: now,
            last: now,
            generation: 0,
            counted: self.buffers.object(signed),
        });
        self.complete_parked(handle);
        answer.map(|()| handle)
    }

    /// Blocks of which the caller keeps enough, so that nothing more need come of them: as many as there is room for.
    fn complete_parked(&mut self, handle: Handle) {
        let Some(object) = self.objects.get(handle).filter(|object| !object.parked.is_empty()) else { return };
        let source = |sbn: u32| object.oti.block_symbols(sbn).unwrap_or(u16::MAX);
        let kept = object.parked.iter().map(|(&sbn, &kept)| (sbn, source(sbn), kept));
        let enough = kept.filter(|(sbn, source, kept)| {
            *kept >= u32::from(*source) && !object.open.contains_key(sbn) && !object.have.contains(*sbn)
        });
        let place = Symbol { bundle: object.bundle, kind: object.kind, sbn: 0, esi: 0, oti: object.oti };
        let signed = object.signed;
        for (sbn, source, kept) in enough.collect::<Vec<_>>() {
            if !self.make_room(Buffers::block_bytes(source, &place.oti), signed) {
                return;
            }
            // Making room may have taken the object itself.
            let Some(object) = self.objects.get_mut(handle) else { return };
            let block = self.buffers.block(&Symbol { sbn, ..place }, source, signed);
            let mut open = Open { block: Some(block), state: State::Collecting, heard: object.heard };
            self.ready.extend(open.complete(kept, 0));
            object.open.insert(sbn, open);
            self.open_blocks += 1;
        }
    }

    fn remove_object(&mut self, handle: Handle, park: bool) {
        let Some((object, last)) = self.objects.remove(handle) else { return };
        self.open_blocks -= object.open.len();
        for (_, open) in object.open {
            match open.block {
                // It counts until the caller gives it back: many may go at once.
                Some(block) if park && object.signed => self.parked.push_back(block),
                Some(block) => self.buffers.recycle(block),
                // Whoever works on it gives it back, and finds that it is not known.
                None => {}
            }
        }
        if last && self.expired.len() < MOST_EXPIRED {
            self.expired.push_back(object.bundle);
        }
    }

    /// Sees to it that `bytes` fit, for a bundle that was `signed` for or not: drops the blocks of bundles that nobody signed for, then
    /// parks those that have waited longest. False: what is left is being worked on, or the caller has no time to keep more. Evicting
    /// one interleaved block for the next would livelock: none would complete.
    fn make_room(&mut self, bytes: u64, signed: bool) -> bool {
        while self.buffers.is_full(bytes, signed) || self.open_blocks >= self.limits.open_blocks {
            if let Some((handle, sbn)) = self.longest_waiting(false, None) {
                self.drop_block(handle, sbn);
                continue;
            }
            if !signed || !self.parked.is_empty() {
                return false;
            }
            let Some((handle, sbn)) = self.longest_waiting(true, None) else { return false };
            self.park(handle, sbn);
        }
        true
    }

    /// The block that has waited longest, of those that were signed for or the others; with `idle`, only if it has waited for that long.
    /// It leaves the queue.
    fn longest_waiting(&mut self, signed: bool, idle: Option<(Time, Duration)>) -> Option<(Handle, u32)> {
        let class = usize::from(signed);
        for _ in 0..self.waiting[class].len() {
            let (since, handle, sbn) = *self.waiting[class].front()?;
            let object = self.objects.get(handle).filter(|object| object.signed == signed);
            let Some(open) = object.and_then(|o| o.open.get(&sbn)).filter(|open| open.block.is_some()) else {
                self.waiting[class].pop_front();
                continue;
            };
            let heard = open.heard;
            if let Some((now, idle)) = idle
                && now.since(heard) < idle
                && heard <= since
            {
                return None;
            }
            self.waiting[class].pop_front();
            if heard > since {
                self.waiting[class].push_back((heard, handle, sbn));
                continue;
            }
            return Some((handle, sbn));
        }
        None
    }

    /// A block waits for symbols.
    fn wait(&mut self, handle: Handle, sbn: u32) {
        let Some(object) = self.objects.get(handle) else { return };
        let Some(open) = object.open.get(&sbn) else { return };
        let class = usize::from(object.signed);
        self.waiting[class].push_back((open.heard, handle, sbn));
        if self.waiting[class].len() > 1_024 + 4 * self.open_blocks {
            let mut waiting = std::mem::take(&mut self.waiting[class]);
            let mut seen = std::collections::HashSet::new();
            waiting.retain(|&(_, handle, sbn)| {
                self.objects.get(handle).is_some_and(|o| o.open.contains_key(&sbn)) && seen.insert((handle, sbn))
            });
            self.waiting[class] = waiting;
        }
    }

    /// A block leaves memory with what it has.
    fn park(&mut self, handle: Handle, sbn: u32) {
        let Some(mut block) = self.take_out(handle, sbn) else { return };
        let (source, received, highest) = block.counted();
        if block.kind() == ObjectKind::Data && self.objects.get(handle).is_some_and(|o| o.signed && o.kept(sbn) == 0) {
            self.margins.lacks(source, source.saturating_sub(received), highest);
        }
        // Its buffers are free once the caller gives it back; until then it does not count.
        block.release();
        self.parked.push_back(block);
    }

    /// A block is given up.
    fn drop_block(&mut self, handle: Handle, sbn: u32) {
        if let Some(block) = self.take_out(handle, sbn) {
            self.buffers.recycle(block);
        }
    }

    fn take_out(&mut self, handle: Handle, sbn: u32) -> Option<ReceivedBlock> {
        let open = self.objects.get_mut(handle)?.open.remove(&sbn)?;
        self.open_blocks -= 1;
        open.block
    }

    /// A block that was worked on is over.
    fn close(&mut self, handle: Handle, sbn: u32) {
        if let Some(block) = self.take_out(handle, sbn) {
            self.buffers.recycle(block);
        }
    }

    /// The object of a block that is given back, if it is the one that gave the block out.
    fn worked_on(&mut self, block: &ReceivedBlock) -> Option<Handle> {
        let handle = self.objects.find(&block.symbol())?;
        let open = self.objects.get(handle)?.open.get(&block.sbn())?;
        open.block.is_none().then_some(handle)
    }
}

#[cfg(test)]
mod tests;
