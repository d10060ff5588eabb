//! The memory for blocks. It is reused, and counted by who holds it: every holder of bytes has a [`Lease`], and dropping the
//! lease gives the bytes back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::lobby::OVERHEAD;
use super::record::{BlockMemory, HEAD, REPAIR_SYMBOLS, Record};
use super::{Limits, Signer};
use crate::id::KeyTag;
use crate::partition::Oti;
use crate::wire::Symbol;

/// The bytes that an open block takes besides its records: a slot in a map that is at most half empty, and a place in a queue
/// or two. [`super::block`] asserts that this is enough.
pub(super) const BLOCK_OVERHEAD: u64 = 752;
/// The bytes that an object takes besides its blocks.
pub(super) const OBJECT_OVERHEAD: u64 = 768;
/// The most records that are kept for reuse.
const MOST_SPARE: usize = 4_096;
/// Symbols that wait for the caller's answer take such a part of the limit at most.
const ASKED: u64 = 32;
/// How many records are freed at once. Each takes the kernel some time.
const AT_ONCE: usize = 32;
/// Eighths of the limit that the bundles of all keys take before each key is kept to its share.
const SHARED: u64 = 7;

/// Memory that somebody holds, and the open blocks in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) bytes: u64,
    pub(super) blocks: u64,
}

/// Counts what is held by all, by a key, or for a purpose.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter(Arc<(AtomicU64, AtomicU64)>);

/// What counts as held until this is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    all: Meter,
    /// The meter of a key, of what nobody signed for, of the lobby, or of what is asked about.
    class: Meter,
    held: Held,
}

impl Held {
    pub(super) fn bytes(bytes: u64) -> Self {
        Self { bytes, blocks: 0 }
    }

    pub(super) fn block(bytes: u64) -> Self {
        Self { bytes, blocks: 1 }
    }

    /// Whether it would be more than `most` with what is added, of which there is something.
    fn exceeds(self, more: Self, most: Self) -> bool {
        let one = |held: u64, more: u64, most: u64| more > 0 && held.saturating_add(more) > most;
        one(self.bytes, more.bytes, most.bytes) || one(self.blocks, more.blocks, most.blocks)
    }

    /// So many eighths of it for each of `keys`.
    fn eighths(self, eighths: u64, keys: u64) -> Self {
        let part = |n: u64| n / 8 * eighths / keys.max(1);
        Self { bytes: part(self.bytes), blocks: part(self.blocks) }
    }
}

impl Meter {
    pub(super) fn get(&self) -> Held {
        Held { bytes: self.0.0.load(Ordering::Relaxed), blocks: self.0.1.load(Ordering::Relaxed) }
    }

    fn add(&self, more: Held) {
        self.0.0.fetch_add(more.bytes, Ordering::Relaxed);
        self.0.1.fetch_add(more.blocks, Ordering::Relaxed);
    }

    fn sub(&self, less: Held) {
        let bytes = self.0.0.fetch_sub(less.bytes, Ordering::Relaxed);
        let blocks = self.0.1.fetch_sub(less.blocks, Ordering::Relaxed);
        assert!(bytes >= less.bytes && blocks >= less.blocks, "no more is given back than was held");
    }
}

impl Lease {
    fn new(all: &Meter, class: &Meter, held: Held) -> Self {
        all.add(held);
        class.add(held);
        Self { all: all.clone(), class: class.clone(), held }
    }

    fn grow(&mut self, bytes: u64) {
        self.all.add(Held::bytes(bytes));
        self.class.add(Held::bytes(bytes));
        self.held.bytes += bytes;
    }

    fn move_to(&mut self, class: &Meter) {
        self.class.sub(self.held);
        class.add(self.held);
        self.class = class.clone();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.all.sub(self.held);
        self.class.sub(self.held);
    }
}

/// Records for blocks and their repair symbols, and buffers for late symbols.
pub(super) struct Buffers {
    limit: Held,
    /// How much of the limit blocks of unsigned bundles may take.
    unsigned_limit: u64,
    /// How much of the limit symbols of unsigned bundles may take that have no block.
    lobby_limit: u64,
    memory: Option<Box<dyn BlockMemory>>,
    all: Meter,
    /// What the bundles of each key hold that it signed.
    keys: BTreeMap<KeyTag, Meter>,
    unsigned: Meter,
    lobby: Meter,
    /// Symbols that wait for the caller's answer about their object.
    asked: Meter,
    /// Bytes of all spare records.
    spare: u64,
    /// Spare records by length.
    records: BTreeMap<usize, Vec<Record>>,
    spares: usize,
    /// Whether a record was requested.
    used: bool,
}

impl Buffers {
    /// Buffers within these limits. Of the memory for bundles that nobody signed for, half is for blocks, half for single symbols.
    pub(super) fn new(limits: &Limits, memory: Option<Box<dyn BlockMemory>>) -> Self {
        Self {
            limit: Held { bytes: limits.memory, blocks: limits.open_blocks as u64 },
            unsigned_limit: limits.unsigned_memory / 2,
            lobby_limit: limits.unsigned_memory / 2,
            memory,
            all: Meter::default(),
            keys: BTreeMap::new(),
            unsigned: Meter::default(),
            lobby: Meter::default(),
            asked: Meter::default(),
            spare: 0,
            records: BTreeMap::new(),
            spares: 0,
            used: false,
        }
    }

    pub(super) fn held(&self) -> u64 {
        self.all.get().bytes
    }

    pub(super) fn held_unsigned(&self) -> u64 {
        self.unsigned.get().bytes + self.lobby.get().bytes
    }

    /// Whether `bytes` more would make blocks of unsigned bundles take more than half of their limit.
    pub(super) fn is_pressed(&self, bytes: u64) -> bool {
        self.unsigned.get().bytes.saturating_add(bytes) > self.unsigned_limit / 2
    }

    /// Whether `bytes` more would make symbols without a block take more than they may.
    pub(super) fn has_no_lobby_room(&self, bytes: u64) -> bool {
        let rest = (self.unsigned_limit + self.lobby_limit).saturating_sub(self.unsigned.get().bytes);
        self.lobby.get().bytes.saturating_add(bytes) > rest.min(self.lobby_limit) || self.is_at_limit(bytes)
    }

    /// A lease for a symbol of an unsigned bundle that has no block.
    pub(super) fn lobby(&self, bytes: u64) -> Lease {
        Lease::new(&self.all, &self.lobby, Held::bytes(bytes))
    }

    /// A lease for a symbol that waits for the caller's answer about its object. Blocks make room for it when the next one begins.
    /// None: as much waits already as may.
    pub(super) fn asked(&self, payload: usize) -> Option<Lease> {
        let bytes = payload as u64 + OVERHEAD;
        let held = self.asked.get().bytes;
        (held == 0 || held.saturating_add(bytes) <= self.limit.bytes / ASKED)
            .then(|| Lease::new(&self.all, &self.asked, Held::bytes(bytes)))
    }

    pub(super) fn block_bytes(symbols: u16, oti: &Oti) -> u64 {
        BLOCK_OVERHEAD + HEAD as u64 + u64::from(symbols) * u64::from(oti.symbol_size())
    }

    /// The most bytes that a repair symbol may take.
    pub(super) fn repair_bytes(oti: &Oti) -> u64 {
        (HEAD + REPAIR_SYMBOLS * usize::from(oti.symbol_size())) as u64
    }

    /// Whether `bytes` more would exceed the limit, even without a new allocation.
    pub(super) fn is_at_limit(&self, bytes: u64) -> bool {
        self.held().saturating_add(bytes) > self.limit.bytes
    }

    /// Whether bundles of this signer may not take `bytes` more now.
    pub(super) fn is_full(&self, bytes: u64, signer: Signer) -> bool {
        self.has_no_room(Held::bytes(bytes), signer)
    }

    /// The keys whose bundles hold anything, the one that holds most first.
    pub(super) fn holders(&self) -> Vec<KeyTag> {
        let mut keys: Vec<(u64, KeyTag)> = self.keys.iter().map(|(&key, meter)| (meter.get().bytes, key)).collect();
        keys.sort_unstable_by(|a, b| b.cmp(a));
        keys.into_iter().map(|(_, key)| key).collect()
    }

    /// The same for any amount.
    pub(super) fn has_no_room(&self, more: Held, signer: Signer) -> bool {
        let own = match signer {
            Some(key) => self.exceeds_share(key, more),
            None => {
                self.unsigned.get().bytes.saturating_add(more.bytes) > self.unsigned_limit
                    || self.all.get().exceeds(more, self.limit.eighths(SHARED, 1))
            }
        };
        own || self.all.get().exceeds(more, self.limit)
    }

    /// Whether a key's bundles would have more than their share while there is little left for those of others. What they hold may be
    /// complete, so that it leaves only when it is stored.
    pub(super) fn exceeds_share(&self, key: KeyTag, more: Held) -> bool {
        if !self.all.get().exceeds(more, self.limit.eighths(SHARED, 1)) {
            return false;
        }
        let held = |meter: &Meter| meter.get() != Held::default();
        let others = self.keys.iter().filter(|(other, meter)| **other != key && held(meter)).count();
        let own = self.keys.get(&key).map(Meter::get).unwrap_or_default();
        own.exceeds(more, self.limit.eighths(SHARED, others as u64 + 1))
    }

    /// A lease for what an object takes besides its blocks.
    pub(super) fn object(&mut self, signer: Signer) -> Lease {
        self.lease(Held::bytes(OBJECT_OVERHEAD), signer)
    }

    /// The record for a block's source symbols, and its lease.
    pub(super) fn block(&mut self, place: &Symbol, symbols: u16, signer: Signer) -> (Record, Lease) {
        let size = usize::from(place.oti.symbol_size());
        let len = HEAD + usize::from(symbols) * size;
        // All blocks of an object get the same size, even a shorter last block if it has at least half of it, and if that fits: room
        // was made for its own bytes only.
        let full = HEAD + usize::from(place.oti.max_block_symbols()) * size;
        let is_same = full / 2 <= len && !self.is_at_limit(BLOCK_OVERHEAD + full as u64);
        let record = self.record(len, if is_same { full } else { len });
        let lease = self.lease(Held::block(BLOCK_OVERHEAD + record.cost()), signer);
        (record, lease)
    }

    /// A record for a block's repair symbols. The block's lease counts it.
    pub(super) fn repair_record(&mut self, len: usize, lease: &mut Option<Lease>) -> Record {
        let record = self.record(len, len);
        if let Some(lease) = lease {
            lease.grow(record.cost());
        }
        record
    }

    /// A copy of a late symbol, and its lease.
    pub(super) fn late(&mut self, payload: &[u8], signer: Signer) -> (Vec<u8>, Lease) {
        (payload.to_vec(), self.lease(Held::bytes(payload.len() as u64), signer))
    }

    /// Counts a lease as that of a bundle which this key signed.
    pub(super) fn vouch(&mut self, lease: &mut Lease, key: KeyTag) {
        lease.move_to(self.of(key));
    }

    /// Keeps records for reuse. No lease may count them any more.
    pub(super) fn recycle(&mut self, records: impl IntoIterator<Item = Record>) {
        for mut record in records {
            record.end();
            let fits = self.held().saturating_add(self.spare).saturating_add(record.cost()) <= self.limit.bytes;
            if fits && self.spares < MOST_SPARE {
                self.spare += record.cost();
                self.spares += 1;
                self.records.entry(record.len()).or_default().push(record);
            }
        }
    }

    /// Whether a record was requested since the last call.
    pub(super) fn was_used(&mut self) -> bool {
        std::mem::take(&mut self.used)
    }

    /// Frees some spare records.
    pub(super) fn give_back(&mut self) {
        for _ in 0..AT_ONCE {
            let Some((&len, _)) = self.records.last_key_value() else { return };
            drop(self.take_spare(len));
        }
    }

    fn lease(&mut self, held: Held, signer: Signer) -> Lease {
        let all = self.all.clone();
        let class = match signer {
            Some(key) => self.of(key),
            None => &self.unsigned,
        };
        Lease::new(&all, class, held)
    }

    /// What the bundles of a key hold. Keys whose bundles hold nothing are forgotten when another comes.
    fn of(&mut self, key: KeyTag) -> &Meter {
        if !self.keys.contains_key(&key) {
            self.keys.retain(|_, meter| meter.get() != Held::default());
        }
        self.keys.entry(key).or_default()
    }

    /// A record of at least `len` bytes. A newly allocated one has `best` bytes.
    fn record(&mut self, len: usize, best: usize) -> Record {
        self.used = true;
        let found = self.records.range(len..=len.saturating_mul(2)).next().map(|(&len, _)| len);
        if let Some(record) = found.and_then(|len| self.take_spare(len)) {
            return record;
        }
        while self.held().saturating_add(self.spare).saturating_add(best as u64) > self.limit.bytes {
            let Some((&largest, _)) = self.records.last_key_value() else { break };
            drop(self.take_spare(largest));
        }
        let lasting = self.memory.as_mut().and_then(|memory| memory.take(best));
        lasting.map_or_else(|| Record::heap(best), Record::Lasting)
    }

    fn take_spare(&mut self, len: usize) -> Option<Record> {
        let same = self.records.get_mut(&len)?;
        let record = same.pop();
        if same.is_empty() {
            self.records.remove(&len);
        }
        if let Some(record) = &record {
            self.spare = self.spare.saturating_sub(record.cost());
            self.spares = self.spares.saturating_sub(1);
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use super::super::DropReason;
    use super::super::block::{Open, State};
    use super::*;
    use crate::id::BundleId;
    use crate::time::Time;
    use crate::wire::ObjectKind;

    #[test]
    fn what_comes_while_its_block_is_worked_on_respects_the_limit() {
        let mut buffers = Buffers::new(&Limits::new(100), None);
        let state = State::Working { whole: false, late: Vec::new(), doubtful: false };
        let mut open = Open { block: None, state, heard: Time(0) };
        let mut take = |esi| open.take(Time(0), esi, &[7; 64], None, &mut buffers);
        assert_eq!(take(0), Ok(()));
        assert_eq!((take(0), take(1)), (Err(DropReason::Duplicate), Err(DropReason::Memory)));
        drop(open);
        assert_eq!(buffers.held(), 0);
    }

    #[test]
    fn a_short_last_block_takes_no_more_than_there_is() {
        let (size, most, short) = (512, 64, 40);
        let oti = Oti::new(u64::from(most + short) * u64::from(size), size, most).unwrap();
        let symbol = Symbol { bundle: BundleId(1), kind: ObjectKind::Data, sbn: 1, esi: 0, oti };
        let (own, full) = (Buffers::block_bytes(short, &oti), Buffers::block_bytes(most, &oti));
        for (memory, takes) in [(own, own), (full - 1, own), (full, full)] {
            let mut buffers = Buffers::new(&Limits::new(memory), None);
            let (_, lease) = buffers.block(&symbol, short, None);
            assert_eq!((lease.held.bytes, buffers.held()), (takes, takes), "with {memory}");
        }
    }
}
