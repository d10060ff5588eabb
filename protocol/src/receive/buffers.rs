//! The memory for blocks. It is reused, and counted by who holds it: every holder of bytes has a [`Lease`], and dropping the
//! lease gives the bytes back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::lobby::OVERHEAD;
use super::record::{BlockMemory, HEAD, REPAIR_SYMBOLS, Record};
use crate::partition::Oti;
use crate::wire::Symbol;

/// The bytes that an open block takes besides its records: a slot in a map that is at most half empty, and a place in a queue
/// or two. [`super::block`] asserts that this is enough.
pub(super) const BLOCK_OVERHEAD: u64 = 736;
/// The bytes that an object takes besides its blocks.
pub(super) const OBJECT_OVERHEAD: u64 = 768;
/// The most records that are kept for reuse.
const MOST_SPARE: usize = 4_096;
/// Symbols that wait for the caller's answer take such a part of the limit at most.
const ASKED: u64 = 32;
/// How many records are freed at once. Each takes the kernel some time.
const AT_ONCE: usize = 32;

/// Bytes that somebody holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter(Arc<AtomicU64>);

/// Bytes that count as held until this is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    all: Meter,
    /// The meter for signed bundles, for unsigned ones, for the lobby, or for what is asked about.
    class: Meter,
    bytes: u64,
}

impl Meter {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn sub(&self, bytes: u64) {
        let before = self.0.fetch_sub(bytes, Ordering::Relaxed);
        assert!(before >= bytes, "no more is given back than was held");
    }
}

impl Lease {
    fn new(all: &Meter, class: &Meter, bytes: u64) -> Self {
        all.add(bytes);
        class.add(bytes);
        Self { all: all.clone(), class: class.clone(), bytes }
    }

    fn grow(&mut self, bytes: u64) {
        self.all.add(bytes);
        self.class.add(bytes);
        self.bytes += bytes;
    }

    fn move_to(&mut self, class: &Meter) {
        self.class.sub(self.bytes);
        class.add(self.bytes);
        self.class = class.clone();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.all.sub(self.bytes);
        self.class.sub(self.bytes);
    }
}

/// Records for blocks and their repair symbols, and buffers for late symbols.
pub(super) struct Buffers {
    limit: u64,
    /// How much of the limit blocks of unsigned bundles may take.
    unsigned_limit: u64,
    /// How much of the limit symbols of unsigned bundles may take that have no block.
    lobby_limit: u64,
    memory: Option<Box<dyn BlockMemory>>,
    all: Meter,
    signed: Meter,
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
    /// Buffers of at most `limit` bytes. Unsigned bundles may take `unsigned` of these: half in blocks, half as single symbols.
    pub(super) fn new(limit: u64, unsigned: u64, memory: Option<Box<dyn BlockMemory>>) -> Self {
        Self {
            limit,
            unsigned_limit: unsigned / 2,
            lobby_limit: unsigned / 2,
            memory,
            all: Meter::default(),
            signed: Meter::default(),
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
        self.all.get()
    }

    pub(super) fn held_unsigned(&self) -> u64 {
        self.unsigned.get() + self.lobby.get()
    }

    /// Whether `bytes` more would make blocks of unsigned bundles take more than half of their limit.
    pub(super) fn is_pressed(&self, bytes: u64) -> bool {
        self.unsigned.get().saturating_add(bytes) > self.unsigned_limit / 2
    }

    /// Whether `bytes` more would make symbols without a block take more than they may.
    pub(super) fn has_no_lobby_room(&self, bytes: u64) -> bool {
        let rest = (self.unsigned_limit + self.lobby_limit).saturating_sub(self.unsigned.get());
        self.lobby.get().saturating_add(bytes) > rest.min(self.lobby_limit) || self.is_full(bytes, true)
    }

    /// A lease for a symbol of an unsigned bundle that has no block.
    pub(super) fn lobby(&self, bytes: u64) -> Lease {
        Lease::new(&self.all, &self.lobby, bytes)
    }

    /// A lease for a symbol that waits for the caller's answer about its object. Blocks make room for it when the next one begins.
    /// None: as much waits already as may.
    pub(super) fn asked(&self, payload: usize) -> Option<Lease> {
        let bytes = payload as u64 + OVERHEAD;
        let held = self.asked.get();
        (held == 0 || held.saturating_add(bytes) <= self.limit / ASKED)
            .then(|| Lease::new(&self.all, &self.asked, bytes))
    }

    pub(super) fn block_bytes(symbols: u16, oti: &Oti) -> u64 {
        BLOCK_OVERHEAD + HEAD as u64 + u64::from(symbols) * u64::from(oti.symbol_size())
    }

    /// The most bytes that a repair symbol may take.
    pub(super) fn repair_bytes(oti: &Oti) -> u64 {
        (HEAD + REPAIR_SYMBOLS * usize::from(oti.symbol_size())) as u64
    }

    /// Whether `bytes` more would exceed the limit, even without a new allocation.
    pub(super) fn is_full(&self, bytes: u64, signed: bool) -> bool {
        self.all.get().saturating_add(bytes) > self.limit
            || !signed && self.unsigned.get().saturating_add(bytes) > self.unsigned_limit
    }

    /// A lease for what an object takes besides its blocks.
    pub(super) fn object(&self, signed: bool) -> Lease {
        self.lease(OBJECT_OVERHEAD, signed)
    }

    /// The record for a block's source symbols, and its lease.
    pub(super) fn block(&mut self, place: &Symbol, symbols: u16, signed: bool) -> (Record, Lease) {
        let size = usize::from(place.oti.symbol_size());
        let len = HEAD + usize::from(symbols) * size;
        // All blocks of an object get the same size, even a shorter last block if it has at least half of it.
        let full = HEAD + usize::from(place.oti.max_block_symbols()) * size;
        let record = self.record(len, if full / 2 <= len { full } else { len });
        let lease = self.lease(BLOCK_OVERHEAD + record.cost(), signed);
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
    pub(super) fn late(&self, payload: &[u8], signed: bool) -> (Vec<u8>, Lease) {
        (payload.to_vec(), self.lease(payload.len() as u64, signed))
    }

    /// Counts the bytes of a lease as those of a signed bundle.
    pub(super) fn vouch(&self, lease: &mut Lease) {
        lease.move_to(&self.signed);
    }

    /// Keeps records for reuse. No lease may count them any more.
    pub(super) fn recycle(&mut self, records: impl IntoIterator<Item = Record>) {
        for mut record in records {
            record.end();
            let fits = self.held().saturating_add(self.spare).saturating_add(record.cost()) <= self.limit;
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

    fn lease(&self, bytes: u64, signed: bool) -> Lease {
        Lease::new(&self.all, if signed { &self.signed } else { &self.unsigned }, bytes)
    }

    /// A record of at least `len` bytes. A newly allocated one has `best` bytes.
    fn record(&mut self, len: usize, best: usize) -> Record {
        self.used = true;
        let found = self.records.range(len..=len.saturating_mul(2)).next().map(|(&len, _)| len);
        if let Some(record) = found.and_then(|len| self.take_spare(len)) {
            return record;
        }
        while self.held().saturating_add(self.spare).saturating_add(best as u64) > self.limit {
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
