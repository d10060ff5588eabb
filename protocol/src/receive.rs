//! The receiving side, without sockets, threads or clocks.
//!
//! 1. An [`Opener`](crate::seal::Opener), one a receive thread, authenticates datagrams; no other leaves a trace.
//! 2. [`Reassembly::take`], or [`Reassembly::handle`] of what has been opened, puts each symbol in the place it has in its block. The
//!    symbols of a new object wait until the caller has said whether it is wanted ([`Reassembly::poll_question`]).
//! 3. A block that has K symbols comes out of [`Reassembly::poll_block`]: whole, or to be decoded
//!    ([`ReceivedBlock::decode`], outside of any lock). A signed object of one block comes out of [`Reassembly::poll_check`], as beacons
//!    do ([`Reassembly::push_beacon`]), when there is time for its signature.
//! 4. The caller gives it back: [`Reassembly::stored`], [`Reassembly::undecodable`], [`Reassembly::failed`] or
//!    [`Reassembly::discarded`].
//!
//! Whoever has the link key can send symbols of any bundle. So bundles that a trusted key signed for ([`Wanted::Yes`],
//! [`Reassembly::vouch`]) have room of their own. All others share a small room, in which only what is silent makes
//! room for others. Their announces have another room, since an announce may get its bundle signed for. Symbols that
//! find no room there wait one by one until their bundle is signed for, and the oldest make room: so no bundle is kept
//! out that was announced in time.
//!
//! [`Limits::memory`] bounds the memory, and everything counts as what it takes. When it is full, the block that has
//! waited longest for a symbol comes out of [`Reassembly::poll_parked`] with the symbols that it has, or is dropped if
//! nobody signed for its bundle. As long as the caller leaves a block there, symbols of new blocks are dropped instead,
//! so that open blocks complete. If the caller keeps the symbols ([`Reassembly::parked`]), they count when more arrive:
//! the block that comes out then says so ([`ReceivedBlock::has_parked`]).

mod block;
mod buffers;
mod checks;
mod counters;
mod drops;
pub mod intake;
mod lobby;
mod objects;
mod questions;
mod record;
mod recover;
mod reports;
mod room;
mod take;
mod tally;
mod vouch;
mod wanted;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

pub use self::block::ReceivedBlock;
use self::buffers::Buffers;
use self::checks::Checks;
pub use self::checks::{Check, NextCheck};
use self::counters::Counters;
pub use self::drops::{DropReason, Drops};
use self::lobby::Lobby;
use self::objects::{Handle, ObjectState, Objects};
pub use self::questions::Question;
use self::questions::Questions;
pub use self::record::{BlockMemory, Extent};
pub use self::recover::recover;
pub use self::take::Taken;
use self::tally::Margins;
pub use self::tally::Tally;
use self::vouch::AdmittedSymbols;
use crate::id::{BundleId, KeyTag, SessionId};
use crate::partition::{BlockSet, Oti};
use crate::time::Time;
use crate::wire::ObjectKind;

/// What a reassembly may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of all blocks that are not stored yet, and of what is known of them.
    pub memory: u64,
    /// How much of it bundles may take that nobody signed for.
    pub unsigned_memory: u64,
    /// At most this many objects of bundles that a trusted key signed for are known at once; fewer if these would take
    /// more than an eighth of the memory. The object that has been silent for longest makes room.
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
    /// Signatures that are checked a second, at most.
    pub signatures: u32,
    /// Signed objects that wait for that, of bundles that were signed for, and as many of others.
    pub checks: usize,
    /// Beacons that wait for it.
    pub beacons: usize,
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
            signatures: 4_000,
            checks: 256,
            beacons: 64,
        }
    }
}

/// What is known of a bundle's sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A trusted key signed for it.
    Signed,
    /// Nobody did yet; its id names a trusted key.
    Named,
    /// Its id names no trusted key.
    Unknown,
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
        /// Whose bundle it is.
        origin: Origin,
    },
    /// Drop its symbols under this reason.
    No(DropReason),
}

/// What a beacon that counts says of its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// The key that signed it.
    pub by: KeyTag,
    /// Datagrams that were sent before it.
    pub datagrams: u64,
}

/// How far an object is.
#[derive(Debug, Clone, Copy)]
pub struct ReceiveProgress {
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
    lobby: Lobby,
    /// Symbols from the lobby whose bundle has been signed for since, and that have no place in a block yet.
    admitted: BTreeMap<KeyTag, AdmittedSymbols>,
    questions: Questions,
    checks: Checks,
    ready: VecDeque<ReceivedBlock>,
    parked: VecDeque<ReceivedBlock>,
    /// What was taken and given up later.
    drops: Drops,
    /// Blocks of each signer by when they were heard of, roughly, oldest first.
    waiting: BTreeMap<Signer, VecDeque<(Time, Handle, u32)>>,
    open_blocks: usize,
    /// Bundles that nobody signed for and of which nothing is left.
    expired: VecDeque<BundleId>,
    margins: Margins,
    /// When memory was asked for, roughly.
    used: Time,
}

/// The key that signed for a bundle; None: nobody did.
type Signer = Option<KeyTag>;

/// Objects that are known of one bundle, at most.
const MOST_OF_BUNDLE: usize = 3 * objects::OF_A_KIND;
/// Expired bundles that wait to be asked for; of more the caller learns when it looks.
const MOST_EXPIRED: usize = 4_096;
/// Silent blocks that wait at once for the caller to keep them.
const MOST_SILENT: usize = 16;
/// Memory that was used and is free is given back when no block has needed any for so long.
const SPARE: Duration = Duration::from_secs(10);
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

    fn with(mut limits: Limits, memory: Option<Box<dyn BlockMemory>>) -> Self {
        // Else objects alone could take all of it, and no room be made for a block.
        let most = usize::try_from(limits.memory / 8 / buffers::OBJECT_OVERHEAD).unwrap_or(usize::MAX);
        limits.objects = limits.objects.min(most.max(MOST_OF_BUNDLE));
        Self {
            limits,
            counters: Counters::default(),
            objects: Objects::default(),
            buffers: Buffers::new(&limits, memory),
            lobby: Lobby::default(),
            admitted: BTreeMap::new(),
            questions: Questions::default(),
            checks: Checks::new(&limits),
            ready: VecDeque::new(),
            parked: VecDeque::new(),
            drops: Drops::default(),
            waiting: BTreeMap::new(),
            open_blocks: 0,
            expired: VecDeque::new(),
            margins: Margins::default(),
            used: Time::ZERO,
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

    /// What was taken first and given up later, by reason; begins anew.
    pub fn given_up(&mut self) -> Drops {
        std::mem::take(&mut self.drops)
    }

    /// A beacon that counts says what was sent in this session before it.
    pub fn sent(&mut self, session: SessionId, sent: Sent) {
        self.counters.sent(session, sent.by, sent.datagrams);
    }

    /// What is known of the datagrams of each key's sender; begins longest burst and margin anew.
    pub fn tally(&mut self) -> Vec<Tally> {
        self.margins.tally(self.counters.tally())
    }

    /// Parks blocks that have waited too long, takes up those that are complete with what was parked, lets go of what nobody signed
    /// for and is silent, and gives memory back that is not used. Call about ten times a second.
    pub fn handle_timeout(&mut self, now: Time) {
        self.margins.settle(now);
        if self.buffers.was_used() {
            self.used = now;
        } else if now.since(self.used) >= SPARE {
            self.buffers.give_back();
        }
        for handle in self.objects.handles() {
            if self.objects.get(handle).is_some_and(|object| !object.parked.is_empty()) {
                self.complete_parked(now, handle);
            }
        }
        // What waits to be kept does not count as held: no more of it than the caller keeps up with.
        while self.parked.len() < MOST_SILENT
            && let Some((handle, sbn)) = self.longest_waiting_signed(now, self.limits.idle)
        {
            self.park(handle, sbn, true);
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
        let gone = self.lobby.expire(now, self.limits.junk_most);
        self.drops.add_many(DropReason::Limit, gone);
    }

    /// How far each object is that is being collected.
    pub fn progress(&self) -> impl Iterator<Item = ReceiveProgress> + '_ {
        self.objects.all().filter(|o| o.is_signed() && matches!(o.state, ObjectState::Wanted)).map(|o| {
            ReceiveProgress {
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
            }
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
}

#[cfg(test)]
mod tests;
