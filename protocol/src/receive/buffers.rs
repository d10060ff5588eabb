//! The memory that blocks are made of, used again and again, and counted.

use super::block::{Open, ReceivedBlock};
use super::record::{BlockMemory, HEAD, REPAIR_SYMBOLS, Record};
use crate::partition::Oti;
use crate::wire::Symbol;

/// Records for blocks and their repair symbols, and buffers for symbols that come late.
pub(super) struct Buffers {
    limit: u64,
    memory: Option<Box<dyn BlockMemory>>,
    /// Bytes in blocks that are out.
    held: u64,
    /// Bytes in the two lists below.
    spare: u64,
    records: Vec<Record>,
    symbols: Vec<Vec<u8>>,
}

impl Buffers {
    pub(super) fn new(limit: u64, memory: Option<Box<dyn BlockMemory>>) -> Self {
        Self { limit, memory, held: 0, spare: 0, records: Vec::new(), symbols: Vec::new() }
    }

    pub(super) fn held(&self) -> u64 {
        self.held
    }

    pub(super) fn block_bytes(symbols: u16, oti: &Oti) -> u64 {
        HEAD as u64 + u64::from(symbols) * u64::from(oti.symbol_size())
    }

    /// What a repair symbol may take, at most.
    pub(super) fn repair_bytes(oti: &Oti) -> u64 {
        (HEAD + REPAIR_SYMBOLS * usize::from(oti.symbol_size())) as u64
    }

    /// Whether `bytes` more would pass the limit, even if nothing new had to be allocated.
    pub(super) fn is_full(&self, bytes: u64) -> bool {
        self.held + bytes > self.limit
    }

    pub(super) fn block(&mut self, place: &Symbol, symbols: u16) -> ReceivedBlock {
        let size = usize::from(place.oti.symbol_size());
        let len = HEAD + usize::from(symbols) * size;
        // One size for all blocks of an object, the last and shorter ones too.
        let full = HEAD + usize::from(place.oti.max_block_symbols()) * size;
        let record = self.record(len, if full / 2 <= len { full } else { len });
        ReceivedBlock::new(place, symbols, record)
    }

    /// At least `len` bytes, `best` where they have to be allocated.
    pub(super) fn record(&mut self, len: usize, best: usize) -> Record {
        let record = match self.records.iter().rposition(|r| r.len() >= len && r.len() / 2 <= len) {
            Some(at) => {
                let record = self.records.swap_remove(at);
                self.spare = self.spare.saturating_sub(record.len() as u64);
                record
            }
            None => {
                self.trim(best as u64);
                let lasting = self.memory.as_mut().and_then(|memory| memory.take(best));
                lasting.map_or_else(|| Record::heap(best), Record::Lasting)
            }
        };
        self.held += record.len() as u64;
        record
    }

    pub(super) fn symbol(&mut self, payload: &[u8]) -> Vec<u8> {
        let mut symbol = self.symbols.pop().unwrap_or_default();
        self.spare = self.spare.saturating_sub(symbol.capacity() as u64);
        symbol.clear();
        symbol.extend_from_slice(payload);
        self.held += symbol.capacity() as u64;
        symbol
    }

    /// The block leaves the reassembly: it does not count any more.
    pub(super) fn release(&mut self, block: &mut ReceivedBlock) {
        if std::mem::take(&mut block.counted) {
            let repair: u64 = block.repair_records.iter().map(|r| r.len() as u64).sum();
            self.held = self.held.saturating_sub(block.record.len() as u64 + repair);
        }
    }

    pub(super) fn recycle(&mut self, mut block: ReceivedBlock) {
        self.release(&mut block);
        let repair = std::mem::take(&mut block.repair_records);
        for mut record in repair.into_iter().chain([block.record]) {
            record.end();
            if self.may_keep(record.len() as u64) {
                self.records.push(record);
            }
        }
    }

    pub(super) fn recycle_symbol(&mut self, symbol: Vec<u8>) {
        self.held = self.held.saturating_sub(symbol.capacity() as u64);
        if self.may_keep(symbol.capacity() as u64) {
            self.symbols.push(symbol);
        }
    }

    pub(super) fn recycle_open(&mut self, mut open: Open) {
        for (_, symbol) in open.resume() {
            self.recycle_symbol(symbol);
        }
    }

    fn may_keep(&mut self, bytes: u64) -> bool {
        let keep = self.held + self.spare + bytes <= self.limit;
        self.spare += if keep { bytes } else { 0 };
        keep
    }

    /// Frees spare buffers so that `bytes` can be allocated within the limit.
    fn trim(&mut self, bytes: u64) {
        while self.held + self.spare + bytes > self.limit {
            let freed = match self.records.pop() {
                Some(record) => record.len(),
                None => match self.symbols.pop() {
                    Some(symbol) => symbol.capacity(),
                    None => return,
                },
            };
            self.spare = self.spare.saturating_sub(freed as u64);
        }
    }
}
