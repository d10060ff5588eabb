//! RaptorQ (RFC 6330): the only user of the raptorq crate, and the fence around it.
//!
//! Each source block is one RaptorQ object of K symbols. The crate panics on symbols of a wrong size or a foreign OTI,
//! so sizes are checked here before it is called, and a panic that comes all the same is caught and becomes an error.
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::arithmetic_side_effects)]

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use raptorq::{
    EncodingPacket, ObjectTransmissionInformation, PayloadId, SourceBlockDecoder, SourceBlockEncoder,
    SourceBlockEncodingPlan,
};

use crate::limits::{MAX_BLOCK_SYMBOLS, MAX_ESI, MAX_SYMBOL_SIZE, SYMBOL_ALIGNMENT};

/// Encoding plans that are kept: two sizes of block per object in flight, and some room.
const MAX_PLANS: usize = 64;

/// Encoding plans by K, shared by all encoders of a process. Making one costs about as much as encoding ten blocks.
#[derive(Default)]
pub struct Plans {
    plans: Mutex<HashMap<u16, Arc<SourceBlockEncodingPlan>>>,
}

/// A request that RaptorQ cannot serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FecError {
    /// K is 0 or above [`MAX_BLOCK_SYMBOLS`], or T no multiple of [`SYMBOL_ALIGNMENT`] up to [`MAX_SYMBOL_SIZE`].
    #[error("no such block: {symbols} symbols of {symbol_size} bytes")]
    Shape {
        /// K.
        symbols: u16,
        /// T.
        symbol_size: u16,
    },
    /// A buffer is not as long as its symbols.
    #[error("a buffer is not as long as its symbols")]
    Length,
    /// An ESI above [`MAX_ESI`], or one that is no repair symbol's where only these can be.
    #[error("an ESI is out of range")]
    Esi,
    /// The symbols do not determine the block: more are needed.
    #[error("more symbols are needed")]
    NotEnough,
    /// The coder panicked. The block is as it was.
    #[error("the coder refused the block")]
    Coder,
}

impl Plans {
    /// None yet; they are made as they are asked for.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn get(&self, symbols: u16) -> Result<Arc<SourceBlockEncodingPlan>, FecError> {
        if let Some(plan) = self.lock().get(&symbols) {
            return Ok(Arc::clone(plan));
        }
        // Made outside of the lock: two threads may make the same plan once, nobody waits for another K.
        let plan = catch_unwind(|| SourceBlockEncodingPlan::generate(symbols)).map_err(|_| FecError::Coder)?;
        let plan = Arc::new(plan);
        let mut plans = self.lock();
        if plans.len() >= MAX_PLANS {
            plans.clear();
        }
        plans.insert(symbols, Arc::clone(&plan));
        Ok(plan)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u16, Arc<SourceBlockEncodingPlan>>> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Appends `count` repair symbols of T bytes each, ESIs from `first_esi` (K or more), to `out`.
///
/// `source` is the whole block, K × T bytes, the last symbol padded with zeros.
pub fn encode(
    plans: &Plans,
    source: &[u8],
    symbol_size: u16,
    first_esi: u32,
    count: u32,
    out: &mut Vec<u8>,
) -> Result<(), FecError> {
    let symbols = source.len().checked_div(usize::from(symbol_size)).unwrap_or(0);
    let symbols = u16::try_from(symbols).unwrap_or(u16::MAX);
    let config = config(symbols, symbol_size)?;
    if source.len() != block_bytes(symbols, symbol_size) {
        return Err(FecError::Length);
    }
    let start = first_esi.checked_sub(u32::from(symbols)).ok_or(FecError::Esi)?;
    if first_esi.checked_add(count).is_none_or(|end| end > MAX_ESI) {
        return Err(FecError::Esi);
    }
    if count == 0 {
        return Ok(());
    }
    let plan = plans.get(symbols)?;
    let repair = catch_unwind(AssertUnwindSafe(|| {
        SourceBlockEncoder::with_encoding_plan(0, &config, source, &plan).repair_packets(start, count)
    }))
    .map_err(|_| FecError::Coder)?;
    out.reserve(repair.len().saturating_mul(usize::from(symbol_size)));
    for symbol in &repair {
        out.extend_from_slice(symbol.data());
    }
    Ok(())
}

/// Fills in the source symbols that `have` says are missing.
///
/// `block` is K × T bytes with the received source symbols in their places; `repair` the received repair symbols.
/// [`FecError::NotEnough`] leaves the block as it was: call again with one symbol more.
pub fn decode<'a>(
    block: &mut [u8],
    symbol_size: u16,
    have: impl Fn(u16) -> bool,
    repair: impl Iterator<Item = (u32, &'a [u8])>,
) -> Result<(), FecError> {
    let size = usize::from(symbol_size);
    let symbols = u16::try_from(block.len().checked_div(size).unwrap_or(0)).unwrap_or(u16::MAX);
    let config = config(symbols, symbol_size)?;
    if block.len() != block_bytes(symbols, symbol_size) {
        return Err(FecError::Length);
    }
    let mut received = Vec::with_capacity(usize::from(symbols).saturating_add(16));
    for (esi, symbol) in (0..symbols).zip(block.chunks_exact(size)) {
        if have(esi) {
            received.push(EncodingPacket::new(PayloadId::new(0, u32::from(esi)), symbol.to_vec()));
        }
    }
    for (esi, symbol) in repair {
        if symbol.len() != size {
            return Err(FecError::Length);
        }
        if esi < u32::from(symbols) || esi > MAX_ESI {
            return Err(FecError::Esi);
        }
        received.push(EncodingPacket::new(PayloadId::new(0, esi), symbol.to_vec()));
    }
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        SourceBlockDecoder::new(0, &config, block_bytes(symbols, symbol_size) as u64).decode(received)
    }))
    .map_err(|_| FecError::Coder)?
    .ok_or(FecError::NotEnough)?;
    if decoded.len() != block.len() {
        return Err(FecError::Coder);
    }
    for ((esi, place), symbol) in (0..symbols).zip(block.chunks_exact_mut(size)).zip(decoded.chunks_exact(size)) {
        if !have(esi) {
            place.copy_from_slice(symbol);
        }
    }
    Ok(())
}

/// One block, one sub-block, symbols taken as they are.
fn config(symbols: u16, symbol_size: u16) -> Result<ObjectTransmissionInformation, FecError> {
    let shape = FecError::Shape { symbols, symbol_size };
    if symbols == 0 || symbols > MAX_BLOCK_SYMBOLS {
        return Err(shape);
    }
    if symbol_size == 0 || symbol_size > MAX_SYMBOL_SIZE || !symbol_size.is_multiple_of(SYMBOL_ALIGNMENT) {
        return Err(shape);
    }
    Ok(ObjectTransmissionInformation::new(block_bytes(symbols, symbol_size) as u64, symbol_size, 1, 1, 8))
}

fn block_bytes(symbols: u16, symbol_size: u16) -> usize {
    usize::from(symbols).saturating_mul(usize::from(symbol_size))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
mod tests {
    use super::*;

    fn block(symbols: u16, size: u16) -> Vec<u8> {
        (0..block_bytes(symbols, size)).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
    }

    #[test]
    fn any_k_symbols_and_a_few_rebuild_a_block() {
        let plans = Plans::new();
        for (symbols, size) in [(1, 64), (2, 128), (3, 1_408), (10, 64), (128, 64), (256, 64), (300, 64), (1_024, 64)] {
            let whole = block(symbols, size);
            let mut repair = Vec::new();
            let first = u32::from(symbols) + 1_000;
            encode(&plans, &whole, size, first, u32::from(symbols) + 4, &mut repair).unwrap();
            // Every second source symbol is lost; then all of them.
            for keep in [2, u16::MAX] {
                let have = |esi: u16| esi % keep == 1;
                let lost = (0..symbols).filter(|&esi| !have(esi)).count() + 4;
                let mut holed = whole.clone();
                for (esi, symbol) in (0..symbols).zip(holed.chunks_mut(usize::from(size))) {
                    if !have(esi) {
                        symbol.fill(0xee);
                    }
                }
                let received = (first..).zip(repair.chunks(usize::from(size))).take(lost);
                assert_eq!(decode(&mut holed, size, have, received), Ok(()), "K={symbols}");
                assert_eq!(holed, whole, "K={symbols}");
            }
        }
    }

    #[test]
    fn too_few_symbols_change_nothing() {
        let whole = block(16, 64);
        let mut holed = whole.clone();
        assert_eq!(decode(&mut holed, 64, |esi| esi != 3, std::iter::empty()), Err(FecError::NotEnough));
        assert_eq!(holed, whole);
    }

    #[test]
    fn refuses_what_would_make_the_coder_panic() {
        let plans = Plans::new();
        let mut out = Vec::new();
        assert!(matches!(encode(&plans, &[], 64, 0, 1, &mut out), Err(FecError::Shape { .. })));
        assert!(matches!(encode(&plans, &[0; 64], 0, 1, 1, &mut out), Err(FecError::Shape { .. })));
        assert!(matches!(encode(&plans, &[0; 65], 65, 1, 1, &mut out), Err(FecError::Shape { .. })));
        assert_eq!(encode(&plans, &[0; 100], 64, 1, 1, &mut out), Err(FecError::Length));
        assert_eq!(encode(&plans, &[0; 128], 64, 1, 1, &mut out), Err(FecError::Esi), "a source symbol");
        assert_eq!(encode(&plans, &[0; 128], 64, MAX_ESI, 2, &mut out), Err(FecError::Esi));
        assert!(out.is_empty());
        let mut two = [0; 128];
        let short = [0_u8; 63];
        let whole = [0_u8; 64];
        let repair = |esi: u32, symbol: &'static [u8]| std::iter::once((esi, symbol));
        assert_eq!(decode(&mut two, 64, |_| false, repair(2, Box::leak(Box::new(short)))), Err(FecError::Length));
        assert_eq!(decode(&mut two, 64, |_| false, repair(1, Box::leak(Box::new(whole)))), Err(FecError::Esi));
        assert_eq!(decode(&mut two, 64, |_| false, repair(u32::MAX, Box::leak(Box::new(whole)))), Err(FecError::Esi));
    }
}
