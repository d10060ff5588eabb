//! A source block while its symbols come in, and the buffers that blocks are made of.

use super::DropReason;
use crate::fec::{self, FecError, Plans};
use crate::id::BundleId;
use crate::limits::MAX_BLOCK_SYMBOLS;
use crate::partition::Oti;
use crate::time::Time;
use crate::wire::{ObjectKind, Symbol};

/// Symbols that come while their block is being decoded and are kept for the case that it could not be.
const MAX_LATE: usize = 8;
/// Repair symbols a block keeps beyond what it lacks, for the rare case that K symbols do not decode.
const EXTRA: u32 = 8;

/// The symbols of one block.
#[derive(Debug)]
pub struct ReceivedBlock {
    place: Symbol,
    symbols: u16,
    /// K × T bytes, source symbols in their places.
    bytes: Vec<u8>,
    have: [u64; MAX_BLOCK_SYMBOLS as usize / 64],
    source: u16,
    repair: Vec<(u32, Vec<u8>)>,
    /// Whether its buffers count as held.
    counted: bool,
    /// Symbols of it that the caller keeps.
    parked: u32,
}

impl ReceivedBlock {
    /// The bundle.
    #[must_use]
    pub fn bundle(&self) -> BundleId {
        self.place.bundle
    }

    /// Which object of it.
    #[must_use]
    pub fn kind(&self) -> ObjectKind {
        self.place.kind
    }

    /// The object's OTI.
    #[must_use]
    pub fn oti(&self) -> Oti {
        self.place.oti
    }

    /// Source block number.
    #[must_use]
    pub fn sbn(&self) -> u32 {
        self.place.sbn
    }

    /// K.
    #[must_use]
    pub fn symbols(&self) -> u16 {
        self.symbols
    }

    /// Symbols received, source and repair.
    #[must_use]
    pub fn received(&self) -> u32 {
        u32::from(self.source) + self.repair.len() as u32
    }

    /// Whether every source symbol is here, so that [`ReceivedBlock::data`] is right without decoding.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.source == self.symbols
    }

    /// Whether the caller keeps symbols of it, which it adds with [`ReceivedBlock::add`] before decoding.
    #[must_use]
    pub fn has_parked(&self) -> bool {
        self.parked > 0
    }

    /// Adds a symbol that was parked; false if it is here already, or is none of this block.
    pub fn add(&mut self, esi: u32, symbol: &[u8]) -> bool {
        self.place_symbol(esi, symbol, &mut |symbol| symbol.to_vec()).is_ok()
    }

    /// Rebuilds the missing source symbols. [`FecError::NotEnough`]: give it back with
    /// [`Reassembly::undecodable`](super::Reassembly::undecodable).
    pub fn decode(&mut self, plans: &Plans) -> Result<(), FecError> {
        if self.is_whole() {
            return Ok(());
        }
        let have = self.have;
        let has = |esi: u16| have[usize::from(esi) / 64] >> (esi % 64) & 1 == 1;
        let repair = self.repair.iter().map(|(esi, bytes)| (*esi, bytes.as_slice()));
        fec::decode(plans, &mut self.bytes, self.place.oti.symbol_size(), has, repair)?;
        self.source = self.symbols;
        self.have = [u64::MAX; MAX_BLOCK_SYMBOLS as usize / 64];
        Ok(())
    }

    /// The block's bytes of the object, without padding. Right only when [`ReceivedBlock::is_whole`].
    #[must_use]
    pub fn data(&self) -> &[u8] {
        let len = self.place.oti.block_len(self.place.sbn).unwrap_or(0);
        &self.bytes[..len.min(self.bytes.len())]
    }

    /// The symbols that are here: ESI and T bytes.
    pub fn received_symbols(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let size = usize::from(self.place.oti.symbol_size());
        let source = (0..self.symbols).filter(|&esi| self.has(esi));
        let source = source.map(move |esi| (u32::from(esi), &self.bytes[usize::from(esi) * size..][..size]));
        source.chain(self.repair.iter().map(|(esi, bytes)| (*esi, bytes.as_slice())))
    }

    fn has(&self, esi: u16) -> bool {
        self.have[usize::from(esi) / 64] >> (esi % 64) & 1 == 1
    }

    pub(super) fn lacking(&self) -> u32 {
        u32::from(self.symbols).saturating_sub(self.received())
    }

    /// K, symbols received, and the highest ESI of them.
    pub(super) fn counted(&self) -> (u32, u32, u32) {
        let repair = self.repair.iter().map(|(esi, _)| *esi).max();
        let highest = repair.unwrap_or_else(|| u32::from(self.symbols).saturating_sub(1));
        (self.symbols.into(), self.received(), highest)
    }

    pub(super) fn clear_parked(&mut self) {
        self.parked = 0;
    }

    pub(super) fn put(&mut self, esi: u32, payload: &[u8], buffers: &mut Buffers) -> Result<(), DropReason> {
        self.place_symbol(esi, payload, &mut |symbol| buffers.symbol(symbol))
    }

    fn place_symbol(
        &mut self,
        esi: u32,
        payload: &[u8],
        own: &mut dyn FnMut(&[u8]) -> Vec<u8>,
    ) -> Result<(), DropReason> {
        let size = usize::from(self.place.oti.symbol_size());
        if payload.len() != size {
            return Err(DropReason::Place);
        }
        match u16::try_from(esi).ok().filter(|&esi| esi < self.symbols) {
            Some(esi) => {
                let (word, bit) = (usize::from(esi) / 64, 1 << (esi % 64));
                if self.have[word] & bit != 0 {
                    return Err(DropReason::Duplicate);
                }
                self.have[word] |= bit;
                self.source += 1;
                self.bytes[usize::from(esi) * size..][..size].copy_from_slice(payload);
            }
            None => {
                if self.repair.iter().any(|(have, _)| *have == esi) {
                    return Err(DropReason::Duplicate);
                }
                if self.received() >= u32::from(self.symbols) + EXTRA {
                    return Err(DropReason::Surplus);
                }
                self.repair.push((esi, own(payload)));
            }
        }
        Ok(())
    }
}

/// A block in the reassembly.
pub(super) struct Open {
    /// None while it is being decoded and stored.
    pub(super) block: Option<ReceivedBlock>,
    pub(super) state: State,
    pub(super) heard: Time,
}

pub(super) enum State {
    Collecting,
    /// Handed out with this many symbols; these came since.
    Working {
        whole: bool,
        late: Vec<(u32, Vec<u8>)>,
    },
}

impl Open {
    pub(super) fn take(
        &mut self,
        now: Time,
        esi: u32,
        payload: &[u8],
        buffers: &mut Buffers,
    ) -> Result<(), DropReason> {
        match (&mut self.block, &mut self.state) {
            (Some(block), _) => block.put(esi, payload, buffers)?,
            (None, State::Working { whole: false, late }) if late.len() < MAX_LATE => {
                if late.iter().any(|(have, _)| *have == esi) {
                    return Err(DropReason::Duplicate);
                }
                late.push((esi, buffers.symbol(payload)));
            }
            (None, _) => return Err(DropReason::Surplus),
        }
        self.heard = now;
        Ok(())
    }

    /// The block, if it has K symbols with the `parked` ones; from then on it is being worked on.
    pub(super) fn complete(&mut self, parked: u32) -> Option<ReceivedBlock> {
        if self.block.as_ref().is_none_or(|b| b.received() + parked < u32::from(b.symbols)) {
            return None;
        }
        let mut block = self.block.take()?;
        block.parked = parked;
        self.state = State::Working { whole: block.is_whole(), late: Vec::new() };
        Some(block)
    }

    /// Back to collecting; returns what came meanwhile.
    pub(super) fn resume(&mut self) -> Vec<(u32, Vec<u8>)> {
        match std::mem::replace(&mut self.state, State::Collecting) {
            State::Working { late, .. } => late,
            State::Collecting => Vec::new(),
        }
    }

    pub(super) fn lacking(&self) -> u32 {
        self.block.as_ref().map_or(0, ReceivedBlock::lacking)
    }
}

/// Buffers for blocks and repair symbols, used again and again, and counted.
pub(super) struct Buffers {
    limit: u64,
    /// Bytes in blocks that are out.
    held: u64,
    /// Bytes in the two lists below.
    spare: u64,
    blocks: Vec<Vec<u8>>,
    symbols: Vec<Vec<u8>>,
}

impl Buffers {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, held: 0, spare: 0, blocks: Vec::new(), symbols: Vec::new() }
    }

    pub(super) fn held(&self) -> u64 {
        self.held
    }

    pub(super) fn block_bytes(symbols: u16, oti: &Oti) -> u64 {
        u64::from(symbols) * u64::from(oti.symbol_size())
    }

    /// Whether `bytes` more would pass the limit, even if nothing new had to be allocated.
    pub(super) fn is_full(&self, bytes: u64) -> bool {
        self.held + bytes > self.limit
    }

    pub(super) fn block(&mut self, place: &Symbol, symbols: u16) -> ReceivedBlock {
        let len = usize::from(symbols) * usize::from(place.oti.symbol_size());
        let mut bytes = match self.blocks.iter().rposition(|b| b.capacity() >= len && b.capacity() / 2 <= len) {
            Some(at) => {
                let bytes = self.blocks.swap_remove(at);
                self.spare = self.spare.saturating_sub(bytes.capacity() as u64);
                bytes
            }
            None => {
                self.trim(len as u64);
                // One size for all blocks of an object, the last and shorter ones too.
                let full = usize::from(place.oti.max_block_symbols()) * usize::from(place.oti.symbol_size());
                Vec::with_capacity(if full / 2 <= len { full } else { len })
            }
        };
        bytes.resize(len, 0);
        self.held += bytes.capacity() as u64;
        ReceivedBlock {
            place: Symbol { esi: 0, ..*place },
            symbols,
            bytes,
            have: [0; MAX_BLOCK_SYMBOLS as usize / 64],
            source: 0,
            repair: Vec::new(),
            counted: true,
            parked: 0,
        }
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
            let repair: u64 = block.repair.iter().map(|(_, s)| s.capacity() as u64).sum();
            self.held = self.held.saturating_sub(block.bytes.capacity() as u64 + repair);
        }
    }

    pub(super) fn recycle(&mut self, mut block: ReceivedBlock) {
        self.release(&mut block);
        for (_, symbol) in block.repair.drain(..) {
            self.keep(symbol, false);
        }
        self.keep(block.bytes, true);
    }

    pub(super) fn recycle_symbol(&mut self, symbol: Vec<u8>) {
        self.held = self.held.saturating_sub(symbol.capacity() as u64);
        self.keep(symbol, false);
    }

    pub(super) fn recycle_open(&mut self, mut open: Open) {
        for (_, symbol) in open.resume() {
            self.recycle_symbol(symbol);
        }
    }

    fn keep(&mut self, buffer: Vec<u8>, block: bool) {
        let bytes = buffer.capacity() as u64;
        if self.held + self.spare + bytes > self.limit {
            return;
        }
        self.spare += bytes;
        if block { self.blocks.push(buffer) } else { self.symbols.push(buffer) }
    }

    /// Frees spare buffers so that `bytes` can be allocated within the limit.
    fn trim(&mut self, bytes: u64) {
        while self.held + self.spare + bytes > self.limit {
            let Some(buffer) = self.blocks.pop().or_else(|| self.symbols.pop()) else { return };
            self.spare = self.spare.saturating_sub(buffer.capacity() as u64);
        }
    }
}
