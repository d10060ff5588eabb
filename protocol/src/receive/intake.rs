//! What the receiver's threads do next, without threads, sockets, disks or clocks.
//!
//! 1. A lane's thread gives each datagram to [`Intake::handle_datagram`], and rests while [`Intake::is_pressed`].
//! 2. A thread that stores asks [`Intake::poll_work`], does what it says without the lock, and reports with
//!    [`Intake::handle_block`] or [`Intake::handle_parked`].
//! 3. The thread that checks signatures asks [`Intake::poll_check`], and reports with [`Intake::handle_block`] or
//!    [`Intake::handle_beacon`].
//! 4. About ten times a second somebody calls [`Intake::handle_timeout`] and takes what [`Intake::poll_expired`] has.
//!
//! Each thread's loop is: lock, poll, unlock, do it, lock, report, [`Intake::poll_wakes`], unlock. Then it answers what
//! [`Intake::poll_question`] asks, without the lock, and reports with [`Intake::handle_answer`]. There are four classes of methods:
//!
//! - *Getters* say how things are: [`Intake::usage`], [`Intake::is_pressed`], [`Intake::lacking`].
//! - *`handle_*`* report what happened, with the time where that matters.
//! - *Mutators* say what somebody wants changed: [`Intake::forget`], [`Intake::ask_again`], [`Intake::stop`].
//! - *`poll_*`* say what to do next, and change nothing but what waits for that.

mod queue;

use std::collections::VecDeque;
use std::time::Duration;

use self::queue::{BlockKey, StoreQueues, Turn};
use super::{
    BlockMemory, DropReason, Drops, Limits, NextCheck, Question, Reassembly, ReceiveProgress, ReceivedBlock, Sent,
    Taken, Tally, Usage, Wanted,
};
use crate::id::{BundleId, SessionId};
use crate::seal::Opener;
use crate::time::Time;
use crate::wire::{Content, Header};

/// Unfinished blocks that wait to be kept on disk; beyond these, symbols of new blocks are dropped, since memory is bounded.
const MAX_PARKED: usize = 16;
/// Blocks that are stored between two that are kept, while both wait.
const STORES: usize = 4;
/// Blocks that wait before storing counts as late.
const BACKLOG: usize = 4;

/// What a thread that stores does next.
#[derive(Debug)]
pub enum NextWork {
    /// Decode this block and store it; report with [`Intake::handle_block`].
    Store(ReceivedBlock),
    /// Keep the symbols of this unfinished block; report with [`Intake::handle_parked`].
    Park(ReceivedBlock),
    /// Nothing before so long, unless it is woken.
    Wait(Duration),
    /// Nothing any more: it was told to stop.
    Over,
}

/// What became of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockOutcome {
    /// It is stored, or the signed object that it holds counts.
    Stored,
    /// Its symbols did not suffice.
    Undecodable,
    /// The signed object that it holds does not count.
    Refused,
    /// Its bundle has come to an end meanwhile.
    Unwanted,
    /// There is no room for it.
    NoRoom,
    /// The disk failed.
    Failed,
}

/// Who need not sleep any longer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IntakeWakes {
    /// So many of the threads that store.
    pub workers: usize,
    /// The thread that checks signatures.
    pub checker: bool,
    /// All lanes' threads that rest.
    pub lanes: bool,
}

/// Blocks since the start, by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// They came whole.
    pub whole: u64,
    /// They had to be decoded.
    pub decoded: u64,
    /// The disk failed.
    pub failed: u64,
    /// Unfinished ones, whose symbols were kept.
    pub parked: u64,
    /// Unfinished ones, whose symbols could not be kept.
    pub lost: u64,
}

/// The machine.
pub struct Intake {
    reassembly: Reassembly,
    /// Blocks to be stored.
    queue: StoreQueues<ReceivedBlock>,
    /// Blocks whose symbols are to be kept.
    parked: VecDeque<ReceivedBlock>,
    drops: Drops,
    counts: BlockCounts,
    /// Bytes of blocks from which on the lanes rest.
    pressed: u64,
    /// Blocks that were given out to be stored since one was to be kept.
    stores: usize,
    /// The lanes may be resting.
    resting: bool,
    /// The thread that checks was told that nothing waits.
    idle: bool,
    stopping: bool,
}

impl Intake {
    /// Nothing received yet. Blocks are in `memory` as long as it has room, if there is any, else on the heap.
    #[must_use]
    pub fn new(limits: Limits, memory: Option<Box<dyn BlockMemory>>) -> Self {
        let reassembly = match memory {
            Some(memory) => Reassembly::with_memory(limits, memory),
            None => Reassembly::new(limits),
        };
        Self {
            reassembly,
            queue: StoreQueues::default(),
            parked: VecDeque::new(),
            drops: Drops::default(),
            counts: BlockCounts::default(),
            pressed: limits.memory / 4 * 3,
            stores: 0,
            resting: false,
            idle: false,
            stopping: false,
        }
    }

    /// What is in use.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.reassembly.usage()
    }

    /// Datagrams dropped since the start, by reason.
    #[must_use]
    pub fn drops(&self) -> Drops {
        self.drops
    }

    /// What became of blocks since the start.
    #[must_use]
    pub fn counts(&self) -> BlockCounts {
        self.counts
    }

    /// Which blocks of a bundle's data have some of their symbols, by SBN, and how many they lack.
    #[must_use]
    pub fn lacking(&self, bundle: BundleId) -> Vec<(u32, u32)> {
        self.reassembly.lacking(bundle)
    }

    /// How far each object is that is being collected.
    pub fn progress(&self) -> impl Iterator<Item = ReceiveProgress> + '_ {
        self.reassembly.progress()
    }

    /// Whether memory is nearly full of blocks that wait to be stored. Threads that receive go before threads that
    /// store. On few cores the latter would never get the processor, and symbols would be lost. So a lane rests until
    /// it is woken, or the kernel's buffer is half full.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        self.reassembly.memory() >= self.pressed && self.queue.len() > 0 && !self.stopping
    }

    /// Whether blocks come faster than they are stored.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.queue.len() > BACKLOG
    }

    /// Blocks that wait for a thread that stores.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.len() + self.parked.len()
    }

    /// Whether something waits for the thread that checks.
    #[must_use]
    pub fn has_checks(&self) -> bool {
        self.reassembly.has_checks()
    }

    /// Opens a datagram and takes it. Whether it is authentic.
    pub fn handle_datagram(&mut self, now: Time, opener: &mut Opener, datagram: &mut [u8]) -> bool {
        let taken = self.reassembly.take(now, opener, datagram);
        match &taken {
            Ok(Taken::Symbol) => {}
            Ok(Taken::Beacon(session, payload)) => self.reassembly.push_beacon(*session, payload),
            Ok(Taken::Dropped(reason)) => self.drops.add(*reason),
            Err(error) => self.drops.add((*error).into()),
        }
        taken.is_ok()
    }

    /// Takes an authentic datagram that was opened elsewhere.
    pub fn handle_opened(&mut self, now: Time, header: &Header, payload: &[u8]) {
        match self.reassembly.handle(now, header, payload) {
            Err(reason) => self.drops.add(reason),
            Ok(()) if header.content == Content::Beacon => self.reassembly.push_beacon(header.session, payload),
            Ok(()) => {}
        }
    }

    /// Datagrams were dropped elsewhere.
    pub fn handle_drops(&mut self, drops: &Drops) {
        self.drops.merge(drops);
    }

    /// What became of a block that was to be stored or checked.
    pub fn handle_block(&mut self, now: Time, block: ReceivedBlock, outcome: BlockOutcome) {
        if outcome != BlockOutcome::Undecodable {
            let count = if block.was_decoded() { &mut self.counts.decoded } else { &mut self.counts.whole };
            *count += 1;
        }
        match outcome {
            BlockOutcome::Stored => self.reassembly.stored(block),
            BlockOutcome::Undecodable => self.reassembly.undecodable(now, block),
            BlockOutcome::Refused => self.reassembly.discarded(block),
            BlockOutcome::Unwanted => self.reassembly.unwanted(block),
            BlockOutcome::NoRoom => self.reassembly.failed(now, block),
            BlockOutcome::Failed => {
                self.counts.failed += 1;
                self.reassembly.failed(now, block);
            }
        }
    }

    /// So many symbols of an unfinished block are kept, those that were kept before among them; 0: none could be.
    pub fn handle_parked(&mut self, now: Time, block: ReceivedBlock, kept: u32) {
        if kept > 0 {
            self.counts.parked += 1;
            self.reassembly.parked(now, block, kept);
        } else {
            self.counts.lost += 1;
            self.reassembly.recycle(block);
        }
    }

    /// A beacon was checked: what it says, if it counts.
    pub fn handle_beacon(&mut self, session: SessionId, sent: Option<Sent>) {
        match sent {
            Some(sent) => self.reassembly.sent(session, sent),
            None => self.drops.add(DropReason::Beacon),
        }
    }

    /// A trusted key signed for this bundle.
    pub fn handle_vouched(&mut self, now: Time, bundle: BundleId) {
        self.reassembly.vouch(now, bundle);
    }

    /// Time passed. Call about ten times a second.
    pub fn handle_timeout(&mut self, now: Time) {
        self.reassembly.handle_timeout(now);
    }

    /// Nothing of this bundle is wanted any more, or all that was said of it has changed.
    pub fn forget(&mut self, bundle: BundleId) {
        self.reassembly.forget(bundle);
    }

    /// The caller's answer to a question.
    pub fn handle_answer(&mut self, now: Time, question: &Question, answer: Wanted) {
        self.drops.merge(&self.reassembly.handle_answer(now, question, answer));
    }

    /// What is stored of this bundle has changed, or whether it is wanted: a question is due. What is here of it stays, if it is
    /// wanted and not stored.
    pub fn ask_again(&mut self, bundle: BundleId) {
        self.reassembly.ask_again(bundle);
    }

    /// Nothing more is received: from now on what is ready is given out to be stored, then what is unfinished to be kept.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// What a thread that stores does next.
    pub fn poll_work(&mut self, now: Time) -> NextWork {
        let hurry = self.stopping || self.reassembly.memory() >= self.pressed;
        // Blocks that are kept make room, too: they do not wait for ever behind those that are stored.
        let keep_first = self.stores >= STORES && !self.parked.is_empty();
        let turn = if keep_first { Turn::Wait(Duration::ZERO) } else { self.queue.next(now, hurry) };
        let wait = match turn {
            Turn::Take(block) => {
                self.stores += 1;
                return NextWork::Store(block);
            }
            Turn::Wait(wait) => wait,
        };
        if let Some(block) = self.parked.pop_front() {
            self.stores = 0;
            return NextWork::Park(block);
        }
        if !self.stopping {
            return NextWork::Wait(wait);
        }
        self.reassembly.park_all();
        self.reassembly.poll_parked().map_or(NextWork::Over, NextWork::Park)
    }

    /// What the thread that checks does next: a signed object of one block, or a beacon, as many a second as may be checked. After
    /// [`Intake::stop`] all objects at once, which may not come again, and no beacon.
    pub fn poll_check(&mut self, now: Time) -> NextCheck {
        if !self.stopping {
            let next = self.reassembly.poll_check(now);
            self.idle = matches!(next, NextCheck::Idle);
            return next;
        }
        while let Some(next) = self.reassembly.poll_check_now() {
            if matches!(next, super::Check::Object(_)) {
                return NextCheck::Check(next);
            }
        }
        NextCheck::Over
    }

    /// A bundle that nobody signed for, and of which nothing is known here any more: what else there is of it may go too.
    pub fn poll_expired(&mut self) -> Option<BundleId> {
        self.reassembly.poll_expired()
    }

    /// What to ask about an object, without the lock: whether it is wanted. Call after [`Intake::poll_wakes`] until there is none.
    pub fn poll_question(&mut self) -> Option<Question> {
        self.reassembly.poll_question()
    }

    /// What is known of the datagrams of each key's sender; begins longest burst and margin anew.
    pub fn poll_tally(&mut self) -> Vec<Tally> {
        self.reassembly.tally()
    }

    /// Whose sleep is over. Call after [`Intake::poll_work`] and every `handle_*`, or after some of them,
    /// before the lock is given up.
    pub fn poll_wakes(&mut self, now: Time) -> IntakeWakes {
        let before = self.waiting();
        self.collect_parked();
        if self.reassembly.has_admitted() && !self.stopping {
            self.reassembly.take_admitted(now);
            self.collect_parked();
        }
        while let Some(block) = self.reassembly.poll_block() {
            let key = BlockKey { bundle: block.bundle(), kind: block.kind(), sbn: block.sbn() };
            self.queue.push(now, block.signer(), key, block);
        }
        self.drops.merge(&self.reassembly.given_up());
        let pressed = self.is_pressed();
        let lanes = std::mem::replace(&mut self.resting, pressed) && !pressed;
        let checker = self.idle && self.reassembly.has_checks();
        self.idle &= !checker;
        IntakeWakes { workers: self.waiting() - before, checker, lanes }
    }

    /// As many as those who keep them may keep up with. After a stop they are taken one by one.
    fn collect_parked(&mut self) {
        while !self.stopping
            && self.parked.len() < MAX_PARKED
            && let Some(block) = self.reassembly.poll_parked()
        {
            self.parked.push_back(block);
        }
    }
}

#[cfg(test)]
mod tests;
