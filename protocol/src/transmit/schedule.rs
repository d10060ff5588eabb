//! Which symbol goes next.
//!
//! A *stream* is one bundle's transmission. Its data blocks enter a ring one after another, one each N/D rounds, and
//! every round sends one symbol of each block in the ring; so D blocks are on the wire at once, each at another point
//! of its life, and a burst of loss takes a few symbols of many blocks. Where fewer than D blocks can share the wire
//! (a small object, the first and the last blocks of a large one), [`Edge`] says how many more repair symbols a block
//! needs to survive the same burst; these wait in `deferred` until the burst would be over.
//!
//! Streams of the highest priority go first; streams of equal priority take turns.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Time;
use crate::wire::Symbol;

/// A block on its way to the wire.
#[derive(Debug)]
pub struct Block {
    /// Place of its symbols; `esi` is the first one to send.
    pub symbol: Symbol,
    /// Source symbols to send first: K of them, or none in a later pass.
    pub source: Vec<u8>,
    /// Repair symbols, sent after these.
    pub repair: Vec<u8>,
    /// How many of all these symbols go out at the end, more than a burst after the others.
    pub deferred: u32,
    /// Announce and hashes do not wait for their turn in the ring.
    pub express: bool,
    /// ESI of the first repair symbol.
    pub repair_esi: u32,
}

/// The schedule's view of a stream.
#[derive(Debug, Clone, Copy)]
pub struct StreamShape {
    /// The highest goes first.
    pub priority: i16,
    /// Data blocks that will be pushed.
    pub blocks: u64,
    /// N: symbols of a full data block, deferred ones not counted.
    pub block_symbols: u32,
    /// D.
    pub depth: u32,
    /// T in bytes, of every block of the stream.
    pub symbol_size: u16,
}

/// Names a stream within a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// The buffers of a block whose symbols have all gone, for use again.
#[derive(Debug)]
pub struct Spent {
    /// The stream that it belonged to.
    pub stream: StreamId,
    /// Its place.
    pub symbol: Symbol,
    /// [`Block::source`].
    pub source: Vec<u8>,
    /// [`Block::repair`].
    pub repair: Vec<u8>,
}

/// The blocks of a ring lie all over memory, so a symbol is asked for so many symbols before its turn.
const AHEAD: usize = 2;

/// The schedule. Symbols come from [`Schedule::next`], spent blocks from [`Schedule::poll_spent`].
#[derive(Debug)]
pub struct Schedule {
    streams: Vec<Stream>,
    /// Where the last turn was taken.
    turn: usize,
    quiet: Duration,
    spent: VecDeque<Spent>,
    held: usize,
    next_id: u64,
}

#[derive(Debug)]
struct Stream {
    id: StreamId,
    shape: StreamShape,
    express: VecDeque<Sending>,
    waiting: VecDeque<Sending>,
    ring: Vec<Sending>,
    cursor: usize,
    round: u64,
    entered: u64,
    /// In order of `due`.
    deferred: VecDeque<Sending>,
    closed: bool,
}

#[derive(Debug)]
struct Sending {
    block: Block,
    next: u32,
    /// Stop here and wait until `due`.
    pause: u32,
    end: u32,
    due: Time,
}

impl Schedule {
    /// Deferred symbols wait `quiet` after the others of their block.
    #[must_use]
    pub fn new(quiet: Duration) -> Self {
        Self { streams: Vec::new(), turn: 0, quiet, spent: VecDeque::new(), held: 0, next_id: 0 }
    }

    /// Opens a stream. Push its blocks, then close it.
    pub fn open(&mut self, shape: StreamShape) -> StreamId {
        assert!(shape.depth > 0 && shape.block_symbols > 0, "a stream has a shape");
        let id = StreamId(self.next_id);
        self.next_id += 1;
        self.streams.push(Stream {
            id,
            shape,
            express: VecDeque::new(),
            waiting: VecDeque::new(),
            ring: Vec::new(),
            cursor: 0,
            round: 0,
            entered: 0,
            deferred: VecDeque::new(),
            closed: false,
        });
        id
    }

    /// Hands over a block of an open stream. A block without symbols is spent at once.
    pub fn push(&mut self, id: StreamId, block: Block) {
        let Some(stream) = self.streams.iter_mut().find(|s| s.id == id) else {
            self.spent.push_back(Spent {
                stream: id,
                symbol: block.symbol,
                source: block.source,
                repair: block.repair,
            });
            return;
        };
        self.held += 1;
        let size = usize::from(block.symbol.oti.symbol_size());
        let end = u32::try_from((block.source.len() + block.repair.len()) / size).unwrap_or(u32::MAX);
        let pause = end.saturating_sub(block.deferred);
        let express = block.express;
        let sending = Sending { block, next: 0, pause, end, due: Time::ZERO };
        if express { stream.express.push_back(sending) } else { stream.waiting.push_back(sending) }
    }

    /// Whether this stream takes blocks.
    #[must_use]
    pub fn takes_blocks(&self, id: StreamId) -> bool {
        self.streams.iter().any(|stream| stream.id == id && !stream.closed)
    }

    /// No more blocks come for this stream; it ends when its symbols have gone.
    pub fn close(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.iter_mut().find(|s| s.id == id) {
            stream.closed = true;
            stream.shape.blocks = stream.entered + stream.waiting.len() as u64;
        }
        self.drop_ended();
    }

    /// Gives up a stream: its blocks come back as spent, unsent.
    pub fn abort(&mut self, id: StreamId) {
        if let Some(at) = self.streams.iter().position(|s| s.id == id) {
            let stream = self.streams.remove(at);
            for s in stream.express.into_iter().chain(stream.waiting).chain(stream.ring).chain(stream.deferred) {
                self.held -= 1;
                self.spent.push_back(s.spend(id));
            }
        }
    }

    /// Whether the stream has symbols to send, or may still get some.
    #[must_use]
    pub fn is_open(&self, id: StreamId) -> bool {
        self.streams.iter().any(|s| s.id == id)
    }

    /// Blocks pushed and not yet spent.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Gives the next symbol that may go at `now`, its place and its bytes, to `put`. False: nothing is ready.
    ///
    /// `turn` goes on with the present stream's turn; it takes symbols of that size only.
    pub fn next(&mut self, now: Time, turn: Option<u16>, put: impl FnOnce(Symbol, &[u8])) -> bool {
        let Some(at) = self.pick(now, turn) else { return false };
        let quiet = self.quiet;
        let stream = &mut self.streams[at];
        let id = stream.id;
        let ended = stream.step(now, quiet, put);
        if let Some(sending) = ended {
            self.held -= 1;
            self.spent.push_back(sending.spend(id));
        }
        if self.streams[at].is_ended() {
            self.streams.remove(at);
        }
        true
    }

    /// When something that waits now becomes ready by itself. None: only a push can help.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        self.streams.iter().filter_map(|s| s.deferred.front().map(|d| d.due)).min()
    }

    /// A block whose symbols have all gone.
    pub fn poll_spent(&mut self) -> Option<Spent> {
        self.spent.pop_front()
    }

    fn pick(&mut self, now: Time, turn: Option<u16>) -> Option<usize> {
        let count = self.streams.len();
        let first = if turn.is_none() { self.turn + 1 } else { self.turn };
        let mut best: Option<(i16, usize)> = None;
        for i in 0..count {
            let at = (first + i) % count;
            let stream = &mut self.streams[at];
            let priority = stream.shape.priority;
            if turn.is_some_and(|size| size != stream.shape.symbol_size) {
                continue;
            }
            if best.is_none_or(|(p, _)| priority > p) && stream.is_ready(now) {
                best = Some((priority, at));
            }
        }
        let (_, at) = best?;
        self.turn = at;
        Some(at)
    }

    fn drop_ended(&mut self) {
        self.streams.retain(|s| !s.is_ended());
    }
}

impl Stream {
    fn is_ended(&self) -> bool {
        self.closed
            && self.express.is_empty()
            && self.waiting.is_empty()
            && self.ring.is_empty()
            && self.deferred.is_empty()
    }

    /// Whether [`Stream::step`] has a symbol; lets blocks into the ring.
    fn is_ready(&mut self, now: Time) -> bool {
        self.deferred.front().is_some_and(|d| d.due <= now) || !self.express.is_empty() || self.fill_ring()
    }

    /// Between rounds, lets the blocks in whose turn has come. False: the ring is empty, or must wait for a block that
    /// has not been pushed yet, so that its neighbours do not crowd together.
    fn fill_ring(&mut self) -> bool {
        if self.cursor > 0 {
            return true;
        }
        let StreamShape { blocks, block_symbols, depth, .. } = self.shape;
        if self.ring.is_empty() && self.entered < blocks {
            self.round = self.round.max((self.entered * u64::from(block_symbols)).div_ceil(u64::from(depth)));
        }
        while self.entered < blocks && self.round * u64::from(depth) >= self.entered * u64::from(block_symbols) {
            let Some(sending) = self.waiting.pop_front() else { return false };
            self.ring.push(sending);
            self.entered += 1;
        }
        !self.ring.is_empty()
    }

    /// Sends one symbol; returns the block if that was its last.
    fn step(&mut self, now: Time, quiet: Duration, put: impl FnOnce(Symbol, &[u8])) -> Option<Sending> {
        if self.deferred.front().is_some_and(|d| d.due <= now) {
            let mut sending = self.deferred.pop_front()?;
            sending.emit(put);
            if sending.next >= sending.end {
                return Some(sending);
            }
            // Behind the others that are due, so that their symbols alternate.
            let due = self.deferred.iter().take_while(|d| d.due <= now).count();
            self.deferred.insert(due, sending);
            return None;
        }
        if let Some(mut sending) = self.express.pop_front() {
            sending.emit(put);
            if sending.next < sending.pause {
                self.express.push_back(sending);
                return None;
            }
            return self.pause(sending, now + quiet);
        }
        let at = self.cursor;
        if let Some(soon) = self.ring.get(at + AHEAD).or_else(|| self.ring.get((at + AHEAD) % self.ring.len())) {
            checkvalve_octets::prefetch(soon.next_symbol().1);
        }
        self.ring[at].emit(put);
        self.cursor += 1;
        let mut done = None;
        if self.ring[at].next >= self.ring[at].pause {
            let sending = self.ring.remove(at);
            self.cursor = at;
            done = self.pause(sending, now + quiet);
        }
        if self.cursor >= self.ring.len() {
            self.cursor = 0;
            self.round += 1;
        }
        done
    }

    fn pause(&mut self, mut sending: Sending, due: Time) -> Option<Sending> {
        if sending.next >= sending.end {
            return Some(sending);
        }
        sending.due = due;
        // `due` only grows, but a caller's clock may stand still or jump.
        let at = self.deferred.iter().rposition(|d| d.due <= due).map_or(0, |i| i + 1);
        self.deferred.insert(at, sending);
        None
    }
}

impl Sending {
    fn emit(&mut self, put: impl FnOnce(Symbol, &[u8])) {
        let (symbol, bytes) = self.next_symbol();
        put(symbol, bytes);
        self.next += 1;
    }

    fn next_symbol(&self) -> (Symbol, &[u8]) {
        let size = usize::from(self.block.symbol.oti.symbol_size());
        let sources = u32::try_from(self.block.source.len() / size).unwrap_or(u32::MAX);
        let mut symbol = self.block.symbol;
        let bytes = if self.next < sources {
            symbol.esi += self.next;
            &self.block.source[self.next as usize * size..][..size]
        } else {
            let at = self.next - sources;
            symbol.esi = self.block.repair_esi + at;
            &self.block.repair[at as usize * size..][..size]
        };
        (symbol, bytes)
    }

    fn spend(self, stream: StreamId) -> Spent {
        Spent { stream, symbol: self.block.symbol, source: self.block.source, repair: self.block.repair }
    }
}

/// How much more repair a block needs for its place in the object.
#[derive(Debug, Clone, Copy)]
pub struct Edge {
    /// Blocks in the stream.
    pub blocks: u64,
    /// N.
    pub block_symbols: u32,
    /// D.
    pub depth: u32,
    /// The longest burst, in symbols, that a block amid the object survives.
    pub burst: u32,
}

impl Edge {
    /// The most symbols of block `index` that a burst can take, in a ring with no other streams.
    #[must_use]
    pub fn exposure(&self, index: u64) -> u32 {
        let n = u64::from(self.block_symbols);
        let depth = u64::from(self.depth);
        let enters = |i: u64| (i * n).div_ceil(depth);
        // Blocks in the ring in a round: those that have entered less those that have left.
        let entered = |round: u64| (round * depth / n + 1).min(self.blocks);
        let in_ring = |round: u64| entered(round) - if round >= n { entered(round - n) } else { 0 };
        let start = enters(index);
        let count = |rounds: &mut dyn Iterator<Item = u64>| {
            let (mut slots, mut symbols) = (0, 0);
            for round in rounds {
                slots += in_ring(round);
                symbols += 1;
                if slots >= u64::from(self.burst) {
                    break;
                }
            }
            // A burst may begin just before a symbol.
            symbols + u32::from(slots >= u64::from(self.burst))
        };
        let forward = count(&mut (start..start + n));
        let backward = count(&mut (start..start + n).rev());
        forward.max(backward).min(self.block_symbols)
    }
}

#[cfg(test)]
mod tests;
