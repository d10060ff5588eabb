//! What goes out for a bundle, and in which order: announce, data with more of the announce along the way, hashes and
//! the announce again at the end.

use std::ops::Range;

use super::Parameters;
use super::schedule::{Block, Edge, StreamShape};
use crate::fec::{self, FecError, Plans};
use crate::id::BundleId;
use crate::partition::{Oti, OtiError};
use crate::wire::{ObjectKind, Symbol};

/// Which source blocks of the data a transmission covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// All of them.
    All,
    /// These ranges of SBNs, in order, each with the number of symbols of each block that should arrive over a link
    /// without bursts. As many more as a burst could take of these are sent later. None: as many as the block has and
    /// the usual repair.
    Ranges(Vec<(Range<u32>, Option<u32>)>),
}

/// A bundle's transmission in numbers.
#[derive(Debug, Clone)]
pub struct WorkShape {
    /// The bundle.
    pub bundle: BundleId,
    /// Length of the signed announce in bytes.
    pub announce_len: u64,
    /// Length of the data in bytes; 0 has no data on the wire.
    pub data_len: u64,
    /// What to send of the data.
    pub selection: Selection,
    /// ESIs below this have been used: 0 for the first pass, which then sends the source symbols.
    pub first_esi: u32,
}

/// One block to read, encode and push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// Its place; `esi` is the first to send.
    pub symbol: Symbol,
    /// Where its bytes begin in the object.
    pub offset: u64,
    /// How many real bytes it has.
    pub len: usize,
    /// Whether the K source symbols go out (first); otherwise only repair symbols do.
    pub source: bool,
    /// Repair symbols to make.
    pub repair: u32,
    /// How many of them wait until a burst would be over.
    pub deferred: u32,
}

/// The tasks of a bundle's transmission, in order. Hashes are not known when it starts: see [`Work::hashes`].
#[derive(Debug)]
pub struct Work {
    parameters: Parameters,
    bundle: BundleId,
    announce: Oti,
    data: Option<Oti>,
    ranges: Vec<(Range<u32>, Option<u32>)>,
    blocks: u64,
    /// N of the stream: the most symbols that a block sends before its deferred ones.
    stream_symbols: u32,
    first_esi: u32,
    /// Data blocks handed out.
    done: u64,
    at: (usize, u32),
    /// ESI for the announce's next copy, and blocks of the announce still to be handed out in the present copy.
    announce_esi: u32,
    copy: Option<Copy>,
    copies: u64,
}

#[derive(Debug, Clone, Copy)]
struct Copy {
    kind: ObjectKind,
    oti: Oti,
    next: u32,
    esi: u32,
    first: bool,
}

/// Copies of the announce along the way, when it is small beside the data.
const COPIES: u64 = 4;

impl Work {
    /// Errors: an announce or data that no OTI describes.
    pub fn new(parameters: &Parameters, shape: &WorkShape) -> Result<Self, OtiError> {
        let announce = parameters.oti(shape.announce_len)?;
        let data = if shape.data_len == 0 { None } else { Some(parameters.oti(shape.data_len)?) };
        let end = data.map_or(0, |oti| oti.blocks());
        let mut ranges = match &shape.selection {
            Selection::All => vec![(0..end, None)],
            Selection::Ranges(ranges) => ranges.clone(),
        };
        for (range, _) in &mut ranges {
            range.end = range.end.min(end);
        }
        ranges.retain(|(range, _)| !range.is_empty());
        let blocks = ranges.iter().map(|(range, _)| u64::from(range.end - range.start)).sum();
        // None is more than any Some that makes sense.
        let most = ranges.iter().map(|(_, count)| *count).try_fold(0, |most, count| Some(most.max(count?)));
        let full = data.and_then(|oti| oti.block_symbols(0)).unwrap_or(1);
        let full = u32::from(full) + parameters.repair_symbols(full);
        let stream_symbols = most.filter(|&most| most > 0).unwrap_or(full);
        Ok(Self {
            parameters: *parameters,
            bundle: shape.bundle,
            announce,
            data,
            ranges,
            blocks,
            stream_symbols,
            first_esi: shape.first_esi,
            done: 0,
            at: (0, 0),
            announce_esi: shape.first_esi,
            copy: None,
            copies: 0,
        })
    }

    /// How the schedule should treat this transmission's stream.
    #[must_use]
    pub fn stream(&self, priority: i16) -> StreamShape {
        StreamShape {
            priority,
            blocks: self.blocks,
            block_symbols: self.stream_symbols,
            depth: self.parameters.depth(),
            symbol_size: self.parameters.symbol_size(),
        }
    }

    /// OTI of the data; None when there is none.
    #[must_use]
    pub fn data_oti(&self) -> Option<Oti> {
        self.data
    }

    /// Data blocks in this transmission.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The next block. None: all of announce and data is handed out; go on with [`Work::hashes`].
    pub fn next_task(&mut self) -> Option<Task> {
        if self.copy.is_none() && self.copies <= self.copies_due() {
            self.start_announce();
        }
        self.next_of_copy().or_else(|| self.next_data())
    }

    /// Begins the end of the transmission: the hashes, `len` bytes long, then the announce again.
    ///
    /// Call [`Work::next_closing`] until it returns None.
    pub fn hashes(&mut self, len: u64) -> Result<(), OtiError> {
        let oti = self.parameters.oti(len)?;
        self.copy = Some(Copy { kind: ObjectKind::Hashes, oti, next: 0, esi: self.first_esi, first: true });
        Ok(())
    }

    /// The next block of the closing copies.
    pub fn next_closing(&mut self) -> Option<Task> {
        if let Some(task) = self.next_of_copy() {
            return Some(task);
        }
        if self.copies <= COPIES && self.blocks > 0 {
            self.copies = COPIES + 1;
            self.start_announce();
            return self.next_of_copy();
        }
        None
    }

    /// Copies of the announce that should have begun by now, less the first.
    fn copies_due(&self) -> u64 {
        let small = self.announce.symbols() * COPIES * 100 <= self.blocks * u64::from(self.data_symbols());
        if small { (self.done * COPIES / self.blocks.max(1)).min(COPIES - 1) } else { 0 }
    }

    fn start_announce(&mut self) {
        self.copies += 1;
        let esi = self.announce_esi;
        let first = esi == self.first_esi;
        self.copy = Some(Copy { kind: ObjectKind::Announce, oti: self.announce, next: 0, esi, first });
    }

    fn next_of_copy(&mut self) -> Option<Task> {
        let copy = self.copy.as_mut()?;
        let sbn = copy.next;
        let Some(symbols) = copy.oti.block_symbols(sbn) else {
            self.copy = None;
            return None;
        };
        let copy = {
            copy.next += 1;
            *copy
        };
        let k = u32::from(symbols);
        // These two objects are what a bundle stands or falls with, and small beside it: a quarter more at once, and
        // as much as a burst can take, or all of it, again after a burst.
        let heavy = (k / 4).max(self.parameters.repair_symbols(symbols)).max(k.min(2));
        let source = copy.esi == 0;
        let at_once = k + heavy;
        let exposure = self.parameters.burst_symbols().div_ceil(copy.oti.blocks()) + 2;
        let deferred = if copy.first { exposure.saturating_sub(heavy).min(k + 2) } else { 0 };
        let total = at_once + deferred;
        let repair = if source { total - k } else { total };
        if copy.kind == ObjectKind::Announce {
            self.announce_esi = self.announce_esi.max(copy.esi + total.max(2 * k + heavy + 2));
        }
        self.task(copy.kind, copy.oti, sbn, copy.esi, source, repair, deferred)
    }

    fn next_data(&mut self) -> Option<Task> {
        let oti = self.data?;
        let (range, symbols_wanted) = self.ranges.get(self.at.0)?.clone();
        let sbn = range.start + self.at.1;
        let index = self.done;
        self.done += 1;
        self.at = if sbn + 1 < range.end { (self.at.0, self.at.1 + 1) } else { (self.at.0 + 1, 0) };
        let symbols = oti.block_symbols(sbn)?;
        if let Some(count) = symbols_wanted {
            let deferred = self.deferred_of(count, index);
            return self.task(ObjectKind::Data, oti, sbn, self.first_esi, false, count + deferred, deferred);
        }
        let k = u32::from(symbols);
        let own = self.parameters.repair_symbols(symbols);
        let edge = Edge {
            blocks: self.blocks,
            block_symbols: self.data_symbols(),
            depth: self.parameters.depth(),
            burst: self.parameters.burst_symbols(),
        };
        let inner = index >= u64::from(edge.depth) && index + u64::from(edge.depth) < edge.blocks;
        let deferred = if inner || self.parameters.burst_symbols() == 0 {
            0
        } else {
            (edge.exposure(index) + 1).saturating_sub(own).min(k + 2)
        };
        let source = self.first_esi == 0;
        let repair = if source { own + deferred } else { k + own + deferred };
        self.task(ObjectKind::Data, oti, sbn, self.first_esi, source, repair, deferred.min(repair))
    }

    /// How many of `count` symbols of block `index` a burst could take. Where others send more of theirs, the ring holds
    /// fewer blocks than its depth says.
    fn deferred_of(&self, count: u32, index: u64) -> u32 {
        let burst = self.parameters.burst_symbols();
        if burst == 0 || count == 0 {
            return 0;
        }
        let edge = Edge { blocks: self.blocks, block_symbols: count, depth: self.parameters.depth(), burst };
        let crowding = self.stream_symbols.div_ceil(count);
        edge.exposure(index).saturating_mul(crowding).saturating_add(1).min(count)
    }

    /// N of a full data block.
    fn data_symbols(&self) -> u32 {
        let symbols = self.data.and_then(|oti| oti.block_symbols(0)).unwrap_or(1);
        u32::from(symbols) + self.parameters.repair_symbols(symbols)
    }

    #[allow(clippy::too_many_arguments)]
    fn task(
        &self,
        kind: ObjectKind,
        oti: Oti,
        sbn: u32,
        esi: u32,
        source: bool,
        repair: u32,
        deferred: u32,
    ) -> Option<Task> {
        // Repair symbols of block K begin at ESI K: a later pass on a bundle that never had a first one starts there.
        let esi = if source { 0 } else { esi.max(u32::from(oti.block_symbols(sbn)?)) };
        let symbol = Symbol { bundle: self.bundle, kind, sbn, esi, oti };
        Some(Task { symbol, offset: oti.block_offset(sbn)?, len: oti.block_len(sbn)?, source, repair, deferred })
    }
}

/// Turns a task and its bytes into a block for the schedule.
pub struct Encoder<'a> {
    plans: &'a Plans,
}

impl<'a> Encoder<'a> {
    /// `plans` are shared by all encoders of a process.
    #[must_use]
    pub fn new(plans: &'a Plans) -> Self {
        Self { plans }
    }

    /// How long `source` must be for [`Encoder::encode`]: K × T bytes.
    #[must_use]
    pub fn padded_len(task: &Task) -> usize {
        let symbols = task.symbol.oti.block_symbols(task.symbol.sbn).unwrap_or(0);
        usize::from(symbols) * usize::from(task.symbol.oti.symbol_size())
    }

    /// `source` holds the block, padded with zeros to [`Encoder::padded_len`]; `repair` is a buffer to use again.
    ///
    /// When only repair symbols go out, `source` comes back as the second value.
    pub fn encode(
        &self,
        task: &Task,
        source: Vec<u8>,
        mut repair: Vec<u8>,
    ) -> Result<(Block, Option<Vec<u8>>), FecError> {
        let symbol = task.symbol;
        if source.len() != Self::padded_len(task) {
            return Err(FecError::Length);
        }
        let symbols = u32::from(symbol.oti.block_symbols(symbol.sbn).unwrap_or(0));
        let repair_esi = if task.source { symbols } else { symbol.esi };
        repair.clear();
        fec::encode(self.plans, &source, symbol.oti.symbol_size(), repair_esi, task.repair, &mut repair)?;
        let express = symbol.kind != ObjectKind::Data;
        let (source, back) = if task.source { (source, None) } else { (Vec::new(), Some(source)) };
        Ok((Block { symbol, source, repair, deferred: task.deferred, express, repair_esi }, back))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::time::Time;
    use crate::transmit::Link;
    use crate::transmit::schedule::Schedule;

    fn parameters() -> Parameters {
        let link =
            Link { mtu: 1_500, rate: 900_000_000, repair: 0.05, burst: Duration::from_millis(10), memory: 128 << 20 };
        Parameters::derive(&link).unwrap()
    }

    fn tasks(announce_len: u64, data_len: u64, selection: Selection, first_esi: u32) -> Vec<Task> {
        let shape = WorkShape { bundle: BundleId(1), announce_len, data_len, selection, first_esi };
        let mut work = Work::new(&parameters(), &shape).unwrap();
        let mut tasks: Vec<Task> = std::iter::from_fn(|| work.next_task()).collect();
        work.hashes(100).unwrap();
        tasks.extend(std::iter::from_fn(|| work.next_closing()));
        tasks
    }

    #[test]
    fn a_small_bundle_costs_a_few_datagrams_and_survives_a_burst() {
        let tasks = tasks(200, 4_096, Selection::All, 0);
        let kinds: Vec<ObjectKind> = tasks.iter().map(|t| t.symbol.kind).collect();
        assert_eq!(kinds, [ObjectKind::Announce, ObjectKind::Data, ObjectKind::Hashes, ObjectKind::Announce]);
        let datagrams: u32 = tasks.iter().map(|t| t.repair + if t.source { 3 } else { 0 }).sum();
        assert!(datagrams < 30, "{datagrams}");
        let data = tasks[1];
        assert!(data.deferred >= 3, "all of it again after a burst: {data:?}");
    }

    #[test]
    fn no_esi_is_used_twice_in_a_pass_nor_beyond_what_is_reserved() {
        let bound = parameters().esis_per_pass();
        for (announce, data, first) in [(200, 4_096, 0), (6_000_000, 400 << 20, 0), (200, 64 << 20, bound), (200, 0, 0)]
        {
            let mut seen = std::collections::HashSet::new();
            for task in tasks(announce, data, Selection::All, first) {
                let k = u32::from(task.symbol.oti.block_symbols(task.symbol.sbn).unwrap());
                let first_esi = task.symbol.esi;
                let count = task.repair + if task.source { k } else { 0 };
                for esi in first_esi..first_esi + count {
                    assert!(seen.insert((task.symbol.kind, task.symbol.sbn, esi)), "{task:?} repeats ESI {esi}");
                    assert!(esi >= first && esi < first + bound, "{task:?}");
                    assert!(first == 0 || esi >= k, "a later pass sends repair symbols only");
                }
            }
        }
    }

    #[test]
    fn a_selection_sends_only_its_blocks() {
        let all = tasks(200, 64 << 20, Selection::All, 0).iter().filter(|t| t.symbol.kind == ObjectKind::Data).count();
        assert_eq!(all as u64, (64_u64 << 20).div_ceil(1_408).div_ceil(256));
        let ranges = Selection::Ranges(vec![(3..5, Some(7)), (100..1_000_000, None)]);
        let some: Vec<Task> =
            tasks(200, 64 << 20, ranges, 10_000).into_iter().filter(|t| t.symbol.kind == ObjectKind::Data).collect();
        let first: Vec<_> = some[..2].iter().map(|t| (t.symbol.sbn, t.repair - t.deferred)).collect();
        assert_eq!(first, [(3, 7), (4, 7)]);
        assert_eq!(some.len(), 2 + (all - 100));
    }

    #[test]
    fn what_a_burst_takes_of_a_few_blocks_comes_again_after_it() {
        for (ranges, exposed) in [
            (vec![(3..4, Some(7))], 7),
            (vec![(3..4, Some(7)), (90..91, Some(200))], 7),
            // In a full ring a burst of 842 symbols takes 12 of each of 71 blocks.
            (vec![(0..180, Some(100))], 13),
        ] {
            let tasks = tasks(200, 64 << 20, Selection::Ranges(ranges.clone()), 10_000);
            let data: Vec<Task> = tasks.into_iter().filter(|t| t.symbol.kind == ObjectKind::Data).collect();
            let middle = data[data.len() / 2 - usize::from(data.len() == 2)];
            assert!((exposed..exposed + 2).contains(&middle.deferred), "{ranges:?}: {middle:?}");
            for task in data {
                assert!(task.deferred >= exposed.min(task.repair - task.deferred), "{ranges:?}: {task:?}");
            }
        }
    }

    #[test]
    fn nothing_of_the_data_is_a_selection_too() {
        let tasks = tasks(200, 64 << 20, Selection::Ranges(vec![(0..0, None)]), 10_000);
        let kinds: Vec<ObjectKind> = tasks.iter().map(|t| t.symbol.kind).collect();
        assert_eq!(kinds, [ObjectKind::Announce, ObjectKind::Hashes]);
    }

    #[test]
    fn the_announce_comes_again_along_a_large_bundle() {
        let tasks = tasks(300, 1 << 30, Selection::All, 0);
        let copies = tasks.iter().filter(|t| t.symbol.kind == ObjectKind::Announce).count();
        assert_eq!(copies as u64, COPIES + 1);
    }

    /// Place and time of every symbol of a first pass, as a link without gaps sends it.
    fn departures(parameters: &Parameters, tasks: &[Task], stream: StreamShape) -> Vec<(Time, Symbol)> {
        let size = usize::from(parameters.symbol_size());
        let step = Duration::from_nanos(parameters.wire_len() as u64 * 8_000_000_000 / parameters.rate());
        let mut schedule = Schedule::new(parameters.burst() + parameters.burst() / 4);
        let id = schedule.open(stream);
        for task in tasks {
            let k = task.symbol.oti.block_symbols(task.symbol.sbn).unwrap();
            let block = Block {
                symbol: task.symbol,
                source: vec![0; if task.source { usize::from(k) * size } else { 0 }],
                repair: vec![0; task.repair as usize * size],
                deferred: task.deferred,
                express: task.symbol.kind != ObjectKind::Data,
                repair_esi: if task.source { k.into() } else { task.symbol.esi },
            };
            schedule.push(id, block);
        }
        schedule.close(id);
        let (mut now, mut sent) = (Time(1), Vec::new());
        loop {
            if schedule.next(now, None, |symbol, _| sent.push((now, symbol))) {
                now = now + step;
            } else if let Some(due) = schedule.next_due() {
                now = due;
            } else {
                return sent;
            }
        }
    }

    #[test]
    fn a_burst_at_either_end_is_survived_as_long_as_is_said() {
        for (ms, megabytes) in [(1, 64), (10, 3), (10, 64), (50, 64), (90, 64)] {
            let burst = Duration::from_millis(ms);
            let link = Link { mtu: 1_500, rate: 900_000_000, repair: 0.05, burst, memory: 96 << 20 };
            let parameters = Parameters::derive(&link).unwrap();
            let shape = WorkShape {
                bundle: BundleId(1),
                announce_len: 200,
                data_len: megabytes << 20,
                selection: Selection::All,
                first_esi: 0,
            };
            let mut work = Work::new(&parameters, &shape).unwrap();
            let mut tasks: Vec<Task> = std::iter::from_fn(|| work.next_task()).collect();
            work.hashes(100).unwrap();
            tasks.extend(std::iter::from_fn(|| work.next_closing()));
            let sent = departures(&parameters, &tasks, work.stream(0));
            let (end, survived) = (sent.last().unwrap().0, parameters.survivable_burst());
            assert_eq!(survived < burst, ms >= 50, "memory binds");
            for (from, count) in [(Time::ZERO, survived), (end - survived, survived)] {
                let mut came = std::collections::HashMap::new();
                for (at, symbol) in &sent {
                    let is_lost = *at >= from && *at <= from + count;
                    *came.entry((symbol.kind, symbol.oti, symbol.sbn)).or_insert(0) += u32::from(!is_lost);
                }
                for ((kind, oti, sbn), came) in came {
                    let needed = u32::from(oti.block_symbols(sbn).unwrap());
                    assert!(came >= needed, "{ms} ms from {from:?}: {came} of {needed} of block {sbn} of {kind:?}");
                }
            }
        }
    }
}
