//! A source block while its symbols arrive.

use super::buffers::{BLOCK_OVERHEAD, Buffers, Lease};
use super::record::{HEAD, REPAIR_SYMBOLS, Record};
use super::{DropReason, Origin, Signer};
use crate::fec::{self, FecError, Plans};
use crate::id::BundleId;
use crate::limits::MAX_BLOCK_SYMBOLS;
use crate::partition::Oti;
use crate::time::Time;
use crate::wire::{ObjectKind, Symbol};

/// How many symbols that arrive while their block is being decoded are kept, in case decoding fails.
const MAX_LATE: usize = 8;
/// How many symbols beyond K a block keeps, for the rare case that K symbols do not decode.
const EXTRA: u32 = 8;

/// The symbols of one block.
#[derive(Debug)]
pub struct ReceivedBlock {
    place: Symbol,
    symbols: u16,
    /// The source symbols in their places.
    record: Record,
    have: [u64; MAX_BLOCK_SYMBOLS as usize / 64],
    source: u16,
    /// ESIs of the repair symbols, in their order in `repair_records`.
    repair: Vec<u32>,
    repair_records: Vec<Record>,
    /// Counts the block's bytes as held. None: the block has left the reassembly.
    lease: Option<Lease>,
    /// How many of its symbols the caller keeps.
    parked: u32,
    /// What was known of its bundle's sender when the block was complete.
    origin: Origin,
    /// Whether source symbols were rebuilt.
    decoded: bool,
    /// Whether decoding failed although K symbols were there, and no symbol came since.
    insufficient: bool,
}

impl ReceivedBlock {
    /// The bundle.
    #[must_use]
    pub fn bundle(&self) -> BundleId {
        self.place.bundle
    }

    /// Which of the bundle's objects the block belongs to.
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

    /// The place of its first symbol.
    pub(super) fn symbol(&self) -> Symbol {
        self.place
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

    /// Whether every source symbol is present, so that [`ReceivedBlock::data`] is right without decoding.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.source == self.symbols
    }

    /// Whether source symbols had to be rebuilt.
    pub(super) fn was_decoded(&self) -> bool {
        self.decoded
    }

    /// What was known of its bundle's sender when the block was complete.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The key that signed for its bundle, as was known when it was complete.
    pub(super) fn signer(&self) -> Signer {
        (self.origin == Origin::Signed).then(|| self.bundle().tag())
    }

    /// Whether the caller keeps symbols of it. It must add them with [`ReceivedBlock::add`] before decoding.
    #[must_use]
    pub fn has_parked(&self) -> bool {
        self.parked > 0
    }

    /// Adds a symbol that was parked. False: the symbol is not needed or does not fit this block.
    pub fn add(&mut self, esi: u32, symbol: &[u8]) -> bool {
        self.place_symbol(esi, symbol, &mut Record::heap).is_ok()
    }

    /// Rebuilds the missing source symbols. On [`FecError::NotEnough`], give the block back with
    /// [`Reassembly::undecodable`](super::Reassembly::undecodable).
    pub fn decode(&mut self, plans: &Plans) -> Result<(), FecError> {
        if self.is_whole() {
            return Ok(());
        }
        let have = self.have;
        let has = |esi: u16| have[usize::from(esi) / 64] >> (esi % 64) & 1 == 1;
        let (size, len) = (self.place.oti.symbol_size(), self.len());
        let repair = repair_symbols(&self.repair, &self.repair_records, usize::from(size));
        fec::decode(plans, self.record.source_mut(len), size, has, repair)?;
        self.source = self.symbols;
        self.have = [u64::MAX; MAX_BLOCK_SYMBOLS as usize / 64];
        self.decoded = true;
        Ok(())
    }

    /// The object's bytes in this block, without padding. Right only if [`ReceivedBlock::is_whole`].
    #[must_use]
    pub fn data(&self) -> &[u8] {
        let len = self.place.oti.block_len(self.place.sbn).unwrap_or(0);
        self.record.source(len.min(self.len()))
    }

    /// The symbols that were received: ESI and T bytes each.
    pub fn received_symbols(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let size = usize::from(self.place.oti.symbol_size());
        let source = (0..self.symbols).filter(|&esi| self.has(esi));
        let bytes = self.record.source(self.len());
        let source = source.map(move |esi| (u32::from(esi), &bytes[usize::from(esi) * size..][..size]));
        source.chain(repair_symbols(&self.repair, &self.repair_records, size))
    }

    /// A block without any symbols.
    pub(super) fn new(place: &Symbol, symbols: u16, signer: Signer, buffers: &mut Buffers) -> Self {
        let (mut record, lease) = buffers.block(place, symbols, signer);
        record.begin(place, true);
        Self { lease: Some(lease), ..Self::bare(place, symbols, record) }
    }

    fn bare(place: &Symbol, symbols: u16, record: Record) -> Self {
        Self {
            place: Symbol { esi: 0, ..*place },
            symbols,
            record,
            have: [0; MAX_BLOCK_SYMBOLS as usize / 64],
            source: 0,
            repair: Vec::new(),
            repair_records: Vec::new(),
            lease: None,
            parked: 0,
            origin: Origin::Signed,
            decoded: false,
            insufficient: false,
        }
    }

    pub(super) fn on_heap(place: &Symbol, symbols: u16) -> Self {
        let len = HEAD + usize::from(symbols) * usize::from(place.oti.symbol_size());
        let mut record = Record::heap(len);
        record.begin(place, true);
        Self::bare(place, symbols, record)
    }

    /// Stops counting its bytes as held.
    pub(super) fn release(&mut self) {
        self.lease = None;
    }

    /// Gives its records back for reuse.
    pub(super) fn recycle(self, buffers: &mut Buffers) {
        // The records must not be counted any more.
        drop(self.lease);
        buffers.recycle(self.repair_records.into_iter().chain([self.record]));
    }

    pub(super) fn set_origin(&mut self, origin: Origin) {
        self.origin = origin;
    }

    pub(super) fn lease_mut(&mut self) -> Option<&mut Lease> {
        self.lease.as_mut()
    }

    /// K × T.
    fn len(&self) -> usize {
        usize::from(self.symbols) * usize::from(self.place.oti.symbol_size())
    }

    fn has(&self, esi: u16) -> bool {
        self.have[usize::from(esi) / 64] >> (esi % 64) & 1 == 1
    }

    pub(super) fn lacking(&self) -> u32 {
        u32::from(self.symbols).saturating_sub(self.received())
    }

    /// K, the number of symbols received, and their highest ESI.
    pub(super) fn counted(&self) -> (u32, u32, u32) {
        let repair = self.repair.iter().copied().max();
        let highest = repair.unwrap_or_else(|| u32::from(self.symbols).saturating_sub(1));
        (self.symbols.into(), self.received(), highest)
    }

    pub(super) fn clear_parked(&mut self) {
        self.parked = 0;
    }

    /// Notes that decoding failed. If the block has K symbols, it needs another one.
    pub(super) fn was_undecodable(&mut self) {
        self.insufficient = self.lacking() == 0;
    }

    /// Whether it needs another symbol although it has at least K.
    pub(super) fn is_insufficient(&self) -> bool {
        self.insufficient
    }

    pub(super) fn put(&mut self, esi: u32, payload: &[u8], buffers: &mut Buffers) -> Result<(), DropReason> {
        let mut lease = self.lease.take();
        let put = self.place_symbol(esi, payload, &mut |len| buffers.repair_record(len, &mut lease));
        self.lease = lease;
        put
    }

    /// The room for a missing source symbol with an ESI below K. Bytes written there count only after
    /// [`ReceivedBlock::filled`].
    pub(super) fn vacant(&mut self, esi: u16) -> Option<&mut [u8]> {
        let size = usize::from(self.place.oti.symbol_size());
        (!self.has(esi)).then(|| self.record.source_symbol_mut(esi, size))
    }

    /// Notes that the room from [`ReceivedBlock::vacant`] now has the symbol's bytes.
    pub(super) fn filled(&mut self, esi: u16) {
        let word = &mut self.have[usize::from(esi) / 64];
        *word |= 1 << (esi % 64);
        self.source += 1;
        self.insufficient = false;
        self.record.has_source(esi, *word);
    }

    fn place_symbol(
        &mut self,
        esi: u32,
        payload: &[u8],
        room: &mut dyn FnMut(usize) -> Record,
    ) -> Result<(), DropReason> {
        let size = usize::from(self.place.oti.symbol_size());
        if payload.len() != size {
            return Err(DropReason::Place);
        }
        match u16::try_from(esi).ok().filter(|&esi| esi < self.symbols) {
            Some(esi) => {
                self.vacant(esi).ok_or(DropReason::Duplicate)?.copy_from_slice(payload);
                self.filled(esi);
            }
            None => {
                if self.repair.contains(&esi) {
                    return Err(DropReason::Duplicate);
                }
                if self.received() >= u32::from(self.symbols) + EXTRA {
                    return Err(DropReason::Surplus);
                }
                let at = self.repair.len() % REPAIR_SYMBOLS;
                if at == 0 {
                    let mut record = room(HEAD + REPAIR_SYMBOLS * size);
                    record.begin(&self.place, false);
                    self.repair_records.push(record);
                }
                if let Some(record) = self.repair_records.last_mut() {
                    record.put_repair(at, esi, payload);
                    self.repair.push(esi);
                    self.insufficient = false;
                }
            }
        }
        Ok(())
    }
}

/// ESI and bytes of each repair symbol.
fn repair_symbols<'a>(
    esis: &'a [u32],
    records: &'a [Record],
    size: usize,
) -> impl Iterator<Item = (u32, &'a [u8])> + 'a {
    let at = move |n: usize| Some(records.get(n / REPAIR_SYMBOLS)?.repair(n % REPAIR_SYMBOLS, size));
    esis.iter().enumerate().filter_map(move |(n, &esi)| Some((esi, at(n)?)))
}

const _: () = assert!(2 * size_of::<Open>() as u64 + 96 <= BLOCK_OVERHEAD);

/// A block in the reassembly.
pub(super) struct Open {
    /// None while it is being decoded and stored.
    pub(super) block: Option<ReceivedBlock>,
    pub(super) state: State,
    pub(super) heard: Time,
}

pub(super) enum State {
    Collecting,
    /// Handed out to be decoded and stored.
    Working {
        whole: bool,
        late: Vec<Late>,
        /// Whether the caller has been asked since then what it has.
        doubtful: bool,
    },
}

/// A symbol that came while its block was being worked on.
pub(super) struct Late {
    pub(super) esi: u32,
    pub(super) bytes: Vec<u8>,
    _counted: Lease,
}

impl Open {
    pub(super) fn take(
        &mut self,
        now: Time,
        esi: u32,
        payload: &[u8],
        signer: Signer,
        buffers: &mut Buffers,
    ) -> Result<(), DropReason> {
        match (&mut self.block, &mut self.state) {
            (Some(block), _) => block.put(esi, payload, buffers)?,
            (None, State::Working { whole: false, late, .. }) if late.len() < MAX_LATE => {
                if late.iter().any(|late| late.esi == esi) {
                    return Err(DropReason::Duplicate);
                }
                if buffers.is_at_limit(payload.len() as u64) {
                    return Err(DropReason::Memory);
                }
                let (bytes, counted) = buffers.late(payload, signer);
                late.push(Late { esi, bytes, _counted: counted });
            }
            (None, _) => return Err(DropReason::Surplus),
        }
        self.heard = now;
        Ok(())
    }

    /// Hands the block out if it has K symbols including the `parked` ones. From then on it is being worked on.
    pub(super) fn complete(&mut self, parked: u32, origin: Origin) -> Option<ReceivedBlock> {
        if self.block.as_ref().is_none_or(|b| b.received().saturating_add(parked) < u32::from(b.symbols)) {
            return None;
        }
        let mut block = self.block.take()?;
        (block.parked, block.origin) = (parked, origin);
        self.state = State::Working { whole: block.is_whole(), late: Vec::new(), doubtful: false };
        Some(block)
    }

    /// Notes that the caller was asked what it has. If this block is being stored, the answer may or may not include it.
    pub(super) fn doubt(&mut self) {
        if let (None, State::Working { doubtful, .. }) = (&self.block, &mut self.state) {
            *doubtful = true;
        }
    }

    pub(super) fn is_doubtful(&self) -> bool {
        matches!(self.state, State::Working { doubtful: true, .. })
    }

    /// Goes back to collecting. Returns the symbols that came meanwhile.
    pub(super) fn resume(&mut self) -> Vec<Late> {
        match std::mem::replace(&mut self.state, State::Collecting) {
            State::Working { late, .. } => late,
            State::Collecting => Vec::new(),
        }
    }

    pub(super) fn lacking(&self) -> u32 {
        self.block.as_ref().map_or(0, ReceivedBlock::lacking)
    }
}
